"""The main job on a GPU, and its predictions beside those of a CPU. Skips without a GPU."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.commands import predict as predict_command
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def request_(phantom_2d: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(phantom_2d.parent, tmp_path / "preprocessed", tmp_path / "results")
    arguments = ["-d", "902", "--raw", str(roots.raw), "--preprocessed", str(roots.preprocessed), "-c", "2d"]
    assert plan_and_preprocess.main(arguments) == 0
    plans = json.loads((tmp_path / "preprocessed/Dataset902_Phantom2D/plans.json").read_text())
    assert plans["budget"]["device"] == "cuda"
    return TrainRequest("902", "0", roots, iterations=60, batch_size=4, workers=2, device="cuda", seed=3)


def test_main_job_with_an_interruption(
    request_: TrainRequest, phantom_2d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._iterate

    def interrupted(self: Trainer, batch: object) -> object:
        result = step(self, batch)  # type: ignore[arg-type]
        if (self.phase, self.iteration) in {(1, 20), (2, 3)}:
            self.run.stop.signal_number = signal.SIGINT
        return result

    for _ in range(2):  # in the middle of each phase
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_iterate", interrupted)
            with pytest.raises(TrainingInterrupted):
                train(request_)
    result = train(request_).folds[0]
    assert result.scores["mean"]["dice"] > 0.3

    outputs = {}
    for device in ("cuda", "cpu"):
        outputs[device] = tmp_path / device
        folders = ["-i", phantom_2d / "imagesTs", "-o", outputs[device], "-m", result.folder.parent, "-f", 0]
        switches = ["--device", device, "--samples", 3, "--save-probabilities"]
        assert predict_command.main([str(word) for word in (*folders, *switches)]) == 0
    probabilities = sorted((outputs["cpu"] / "probabilities").glob("*.npz"))
    assert probabilities
    for path in probabilities:
        a, b = (np.load(outputs[d] / "probabilities" / path.name)["probabilities"].astype(float) for d in outputs)
        assert np.abs(a - b).mean() < 0.01  # bf16 against fp32
    masks = sorted(outputs["cpu"].glob("*.png"))
    assert masks
    for path in masks:
        a, b = (read_labels(outputs[d] / path.name).array for d in outputs)
        assert (a != b).mean() < 0.02


@pytest.mark.parametrize("trainer", ["SegmentationTrainer", "X0DiffusionTrainer", "FixedThirdsDiffusionTrainer"])
def test_other_trainers(request_: TrainRequest, trainer: str) -> None:
    result = train(dataclasses.replace(request_, trainer=trainer, iterations=8)).folds[0]
    assert 0 <= result.scores["mean"]["dice"] <= 1
