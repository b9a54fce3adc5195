"""usd_demo where its training is interrupted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from unisegdiff_pipeline import pipeline
from unisegdiff_pipeline.commands.demo import main
from unisegdiff_pipeline.training import run
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.request import SYNTHETIC_WEIGHTS, TrainRequest
from unisegdiff_pipeline.training.resume import OtherRequestError


def test_a_stopped_training_ends_the_demo_with_the_code_of_its_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise TrainingInterrupted(signal.SIGTERM)

    monkeypatch.setattr(run, "train", stopped)
    monkeypatch.setattr(pipeline, "plan_and_preprocess", lambda *_, **__: None)
    (tmp_path / "preprocessed").mkdir()
    arguments = ["--output", str(tmp_path), "--train-cases", "10", "--test-cases", "2", "--device", "cpu"]
    assert main(arguments) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


def test_the_training_begins_from_the_start_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainRequest] = []

    def stopped(request: TrainRequest, *_: object) -> None:
        asked.append(request)
        raise TrainingInterrupted(signal.SIGTERM)

    monkeypatch.setattr(run, "train", stopped)
    monkeypatch.setattr(pipeline, "plan_and_preprocess", lambda *_, **__: None)
    (tmp_path / "preprocessed").mkdir()
    main(["--output", str(tmp_path), "--train-cases", "10", "--test-cases", "2", "--device", "cpu"])
    assert [(request.pretrained, request.max_time_s) for request in asked] == [(SYNTHETIC_WEIGHTS, 155.0)]


def test_a_demo_of_other_flags_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OtherRequestError("--max-time 60s there, --max-time 300s now")

    monkeypatch.setattr(run, "train", refuse)
    monkeypatch.setattr(pipeline, "plan_and_preprocess", lambda *_, **__: None)
    arguments = ["--output", str(tmp_path), "--train-cases", "10", "--test-cases", "2", "--device", "cpu"]
    assert main(arguments) == 1
    assert "another folder with --output" in " ".join(capsys.readouterr().err.split())
