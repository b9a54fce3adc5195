"""Several plans of one data set: files, preprocessed cases and models beside each other; and one writer at a time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unisegdiff_pipeline.commands import fingerprint, plan, plan_and_preprocess, predict, preprocess, train
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.inference.model_search import find_model

BUDGET = ["--device", "cpu", "--memory-gb", "4"]


@pytest.fixture
def roots(phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Variables set; returns where the preprocessed data set will lie."""
    monkeypatch.setenv("usd_raw", str(phantom_2d.parent))
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    return tmp_path / "preprocessed" / phantom_2d.name


def message(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_second_plan_lies_beside_the_first(
    roots: Path, phantom_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_and_preprocess.main(["-d", "902", *BUDGET, "--workers", "0"]) == 0
    first = (roots / "plans.json").read_bytes()
    assert plan.main(["-d", "902", "--plans", "coarse", *BUDGET]) == 0
    path = roots / "plans_coarse.json"
    edited = json.loads(path.read_text())
    edited["configurations"]["2d"]["preprocessing"]["target_spacing_mm"] = [None, 2.0, 2.0]
    path.write_text(json.dumps(edited))
    capsys.readouterr()
    training = ["902", "0", "--trainer", "SegmentationTrainer", "--iterations", "1", "--batch-size", "2"]
    assert train.main([*training, "--plans", "coarse", "--dry-run"]) == 1
    assert "not planned yet in" in message(capsys)
    assert preprocess.main(["-d", "902", "--plans", "coarse", "--workers", "0"]) == 0
    assert (roots / "plans.json").read_bytes() == first
    assert json.loads(path.read_text())["configurations"]["2d"]["stages"] is not None
    assert {p.name for p in roots.iterdir() if p.is_dir()} == {"2d", "2d__plans_coarse", "reference"}

    assert train.main([*training, "--plans", "coarse", "--workers", "0", "--device", "cpu"]) == 0
    model = tmp_path / "results" / phantom_2d.name / "SegmentationTrainer__2d__plans_coarse"
    trained = json.loads((model / "plans.json").read_text())
    assert trained["configurations"]["2d"]["preprocessing"]["target_spacing_mm"] == [None, 2.0, 2.0]
    assert find_model(model.parent, "StagedDiffusionTrainer", plans="coarse") == model
    output = tmp_path / "masks"
    images = sorted((phantom_2d / "imagesTs").iterdir())[:1]
    given = ["-i", *map(str, images), "-o", str(output), "-d", "902", "--plans", "coarse", "--device", "cpu"]
    assert predict.main(given) == 0
    assert list(output.glob("*.png"))

    capsys.readouterr()
    assert train.main([*training, "--plans", "fine"]) == 1
    assert "it has plans named coarse. Run usd_plan" in message(capsys)
    assert train.main([*training, "--plans", "../x"]) == 1
    assert "cannot be part of a folder's name" in message(capsys)


def test_two_commands_do_not_write_one_preprocessed_data_set_at_once(
    roots: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fingerprint.main(["-d", "902", "--workers", "0"]) == 0
    assert plan.main(["-d", "902", *BUDGET]) == 0
    before = {p: p.read_bytes() for p in roots.rglob("*") if p.is_file()}
    with locked(roots / ".lock", "x"):
        for command, flags in (
            (fingerprint, []),
            (plan, BUDGET),
            (preprocess, []),
            (plan_and_preprocess, BUDGET),
        ):
            capsys.readouterr()
            assert command.main(["-d", "902", *flags]) == 1, command.__name__
            assert f"process {os.getpid()} on this machine" in message(capsys)
    assert {p: p.read_bytes() for p in roots.rglob("*") if p.is_file()} == before
