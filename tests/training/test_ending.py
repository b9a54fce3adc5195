"""Trainings that end early: by patience, by a stop file; and deterministic ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, open_model_folder
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.settings import read_settings
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training import determinism
from unisegdiff_pipeline.training import run as run_module
from unisegdiff_pipeline.training.determinism import deterministic_algorithms
from unisegdiff_pipeline.training.fold_run import STOP_NAME
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer
from unisegdiff_pipeline.training.validation import HeldOutDice


@pytest.fixture
def request_(prepared: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(raw=None, preprocessed=prepared, results=tmp_path)
    return TrainRequest("902", "0", roots, iterations=40, batch_size=1, workers=0, device="cpu", seed=3)


def log_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def scored(monkeypatch: pytest.MonkeyPatch, *dice: float) -> None:
    """Let the looks at the two held-out cases of any phase see these values in turn, the last one from then on."""
    left = list(dice)

    def validate(self: Trainer) -> HeldOutDice:
        value = left.pop(0) if len(left) > 1 else left[0]
        return HeldOutDice({"dice_mean": value}, (value, value), ("a", "b"))

    for trainer in (SegmentationTrainer, DiffusionTrainer):
        monkeypatch.setattr(trainer, "validate", validate)


def test_patience_ends_each_phase_and_completes_the_model(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 iterations of phase 1 are looked at 8 times, after 4, 8, 12, ...: the best is the first of them."""
    scored(monkeypatch, 0.5)
    fold = train(replace(request_, patience=2)).folds[0].folder
    ended = log_of(fold, "ended_early")
    assert [(e["phase"], e["iteration"]) for e in ended] == [(1, 12), (2, 4)]
    looks = [(e["phase"], e["iteration"]) for e in log_of(fold, "validation")]
    assert looks == sorted(set(looks))  # none of the same weights again
    assert ended[0]["reason"] == "no better Dice on held-out cases in 2 looks (--patience)"
    assert open_model_folder(fold.parent).folds == ("0",)
    assert "Phase 1 ended at 40% of its length" in (fold / "report.html").read_text()
    assert json.loads((fold / "request.json").read_text())["patience"] == 2


def test_a_better_look_renews_patience(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 0.1, 0.1, 0.2, 0.2, 0.2)
    request = replace(request_, patience=2, trainer="SegmentationTrainer", iterations=30)
    fold = train(request).folds[0].folder
    assert [e["iteration"] for e in log_of(fold, "ended_early")] == [19]  # the fifth look of eight


def test_looks_that_tell_nothing_do_not_count(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, float("nan"))
    fold = train(replace(request_, patience=1, trainer="SegmentationTrainer", iterations=6)).folds[0].folder
    assert not log_of(fold, "ended_early")


def test_without_patience_nothing_ends_early(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, 0.5, 0.1)
    fold = train(replace(request_, trainer="SegmentationTrainer", iterations=6)).folds[0].folder
    assert not log_of(fold, "ended_early")
    assert len(log_of(fold, "validation")) == 6


def test_another_patience_is_another_training(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(request_, trainer="SegmentationTrainer", iterations=2, patience=3)
    train(short)
    train(replace(short, patience=None))  # as asked before
    with pytest.raises(UsdError, match=r"--patience 3 and is now asked for --patience 4"):
        train(replace(short, patience=4))


def test_patience_without_held_out_cases_is_refused(request_: TrainRequest) -> None:
    with pytest.raises(UsdError, match=r"--patience 2 needs held-out cases, and fold all has none"):
        train(replace(request_, fold="all", patience=2))
    assert not list(request_.roots.require_results().rglob("fold_*"))


def stopped_in(monkeypatch: pytest.MonkeyPatch, phase: int, iteration: int) -> None:
    """Make the stop file, as a person would, when this iteration has been done."""
    former = Trainer.iterate

    def iterate(self: Trainer, batch: Any) -> Any:
        found = former(self, batch)
        if (self.phase, self.iteration) == (phase, iteration):
            (self.run.folder / STOP_NAME).touch()
        return found

    monkeypatch.setattr(Trainer, "iterate", iterate)


@pytest.mark.parametrize(("phase", "iteration", "samples"), [(1, 3, 0), (2, 2, 8)])
def test_a_stop_file_ends_the_training_with_a_complete_model(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch, phase: int, iteration: int, samples: int
) -> None:
    """In phase 1 it leaves the segmenter alone, in phase 2 both; validation is given up, and may follow."""
    stopped_in(monkeypatch, phase, iteration)
    fold = train(request_).folds[0].folder
    (ended,) = log_of(fold, "ended_early")
    assert (ended["phase"], ended["iteration"], ended["reason"]) == (phase, iteration, "the stop file is there")
    assert not (fold / STOP_NAME).exists()
    assert read_settings(fold).num_samples == samples
    model = Predictor(fold.parent, device="cpu")
    assert (model.networks[0][0].denoiser is None) == (phase == 1)
    summary = json.loads((fold / "validation/summary.json").read_text())
    assert len(summary["not_validated"]) == 3
    hashed = file_hash(fold / WEIGHTS_NAME)
    train(request_)  # finished
    assert train(replace(request_, validate_only=True)).folds[0].scores
    assert file_hash(fold / WEIGHTS_NAME) == hashed


def test_a_stop_file_of_before_is_removed(request_: TrainRequest) -> None:
    short = replace(request_, trainer="SegmentationTrainer", iterations=4)
    fold = request_.roots.require_results() / "Dataset902_Phantom2D/SegmentationTrainer__2d/fold_0"
    fold.mkdir(parents=True)
    (fold / STOP_NAME).touch()
    assert train(short).folds[0].folder == fold
    assert not log_of(fold, "ended_early")
    (fold / STOP_NAME).touch()
    train(short)
    assert not (fold / STOP_NAME).exists()


def test_deterministic_algorithms_are_on_while_training_and_off_behind(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[bool] = []
    former = run_module.train_fold

    def observed(*arguments: Any) -> Any:
        found.append(torch.are_deterministic_algorithms_enabled())
        return former(*arguments)

    monkeypatch.setattr(run_module, "train_fold", observed)
    short = replace(request_, trainer="SegmentationTrainer", iterations=2, deterministic=True)
    fold = train(short).folds[0].folder
    train(replace(short, run="b"))
    assert found == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert json.loads((fold / "request.json").read_text())["deterministic"] is True
    other = fold.parents[1] / "SegmentationTrainer__2d__b/fold_0" / WEIGHTS_NAME
    assert file_hash(other) == file_hash(fold / WEIGHTS_NAME)


def test_deterministic_by_the_clock_is_refused(request_: TrainRequest) -> None:
    with pytest.raises(UsdError, match="--deterministic goes with --epochs or --iterations"):
        train(replace(request_, iterations=None, max_time_s=60, deterministic=True))


def test_settings_come_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(determinism._WORKSPACE, raising=False)

    def fails(message: str) -> None:
        with deterministic_algorithms(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ[determinism._WORKSPACE] == ":4096:8"
            raise RuntimeError(message)

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(UsdError, match="--deterministic cannot be kept"):
            fails("upsample_trilinear3d_backward does not have a deterministic implementation")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert determinism._WORKSPACE not in os.environ
        with pytest.raises(RuntimeError, match="other"):
            fails("other")
    finally:
        torch.use_deterministic_algorithms(False)
