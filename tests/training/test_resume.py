"""What may be gone on with: the same cases by the same numbers, and a phase 1 that has seen no held-out case."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.planning.plans import TrainingPlan
from unisegdiff_pipeline.training.pretrained import require_fair_phase_1
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.resume import (
    as_asked,
    describe_training,
    held_out_of,
    require_same_training,
)
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer


def run_in(folder: Path, **changes: Any) -> Any:
    """What a fold's run says of itself, with cases a to d."""
    fields: dict[str, Any] = {
        "folder": folder,
        "request": TrainRequest("4", "0", Roots(None, None, None), iterations=9),
        "seed": 0,
        "configuration": SimpleNamespace(name="2d", training=TrainingPlan(2)),
        "device": torch.device("cpu"),
        "train_cases": ("a", "b"),
        "holdout_cases": ("c",),
        "validation_cases": ("d",),
        "plans": SimpleNamespace(dataset_name="Dataset004_X"),
        "data": SimpleNamespace(folder=folder / "2d"),
    }
    return SimpleNamespace(**{**fields, **changes})


def begun(folder: Path) -> Path:
    """A folder in which that run has begun, and phase 1 has ended."""
    described = to_jsonable(describe_training(run_in(folder), SegmentationTrainer))
    (folder / "request.json").write_text(json.dumps(described))
    for name in ("phase_1.safetensors", "phase_1.json"):
        (folder / name).touch()
    return folder


def test_a_request_keeps_what_is_kept_of_validation_cases(tmp_path: Path) -> None:
    request = TrainRequest("4", "0", Roots(None, None, None), save_validation="all")
    described = to_jsonable(describe_training(run_in(tmp_path, request=request), SegmentationTrainer))
    (tmp_path / "request.json").write_text(json.dumps(described))
    assert as_asked(replace(request, save_validation=None), tmp_path).save_validation == "all"


def test_the_same_training_goes_on(tmp_path: Path) -> None:
    require_same_training(run_in(tmp_path), SegmentationTrainer)  # nothing has begun
    require_same_training(run_in(begun(tmp_path)), SegmentationTrainer)
    assert held_out_of(tmp_path) == ("c",)
    assert held_out_of(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"iterations": 10**20}, "--iterations is 100000000000000000000, allowed is from 1 to 1e\\+12"),
        ({"max_time_s": 1e300}, "--max-time is 1e\\+300, allowed is above 0 to 1e\\+09"),
        ({"batch_size": 100_000_000}, "--batch-size is 100000000, allowed is from 1 to 4096"),
        ({"learning_rate": 1e30}, "--lr is 1e\\+30, allowed is above 0 to 10"),
        ({"seed": 2**70}, "--seed is 1180591620717411303424"),
        ({"patience": 10**9}, "--patience is 1000000000"),
    ],
)
def test_what_request_json_may_not_hold_is_refused_before_it_is_written(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    request = TrainRequest("4", "0", Roots(None, None, None), **asked)
    for restart in (False, True):
        with pytest.raises(UsdError, match=message):
            as_asked(replace(request, restart=restart), tmp_path)


def test_weights_of_unknown_cases_are_not_validated(tmp_path: Path) -> None:
    """Those of an imported model: the fold's validation cases may have been trained on."""
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UsdError, match=r"no request\.json.*--run NAME"):
        require_same_training(run_in(tmp_path), SegmentationTrainer)


def test_another_trainer_plan_or_case_is_named(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(UsdError, match="by SegmentationTrainer and is now asked for DiffusionTrainer"):
        require_same_training(run_in(tmp_path), DiffusionTrainer)
    other = SimpleNamespace(name="2d", training=replace(TrainingPlan(2), weight_decay=0.5))
    with pytest.raises(UsdError, match=r"training\.weight_decay was 0\.01 and is now 0\.5"):
        require_same_training(run_in(tmp_path, configuration=other), SegmentationTrainer)
    with pytest.raises(UsdError, match=r"validation_cases were others: 1 came \(e\), 1 left \(d\)"):
        require_same_training(run_in(tmp_path, validation_cases=("e",)), SegmentationTrainer)
    with pytest.raises(UsdError, match="train_cases were others: they stand in another order"):
        require_same_training(run_in(tmp_path, train_cases=("b", "a")), SegmentationTrainer)


def test_a_foreign_phase_1_must_not_have_seen_what_is_held_out(tmp_path: Path) -> None:
    source = begun(tmp_path)
    require_fair_phase_1(run_in(tmp_path), source)
    with pytest.raises(UsdError, match=r"was trained on 1 case that \S+ holds out \(b, \.\.\.\)"):
        require_fair_phase_1(run_in(tmp_path, validation_cases=("b", "d")), source)
    (source / "phase_1.json").unlink()
    with pytest.raises(UsdError, match=r"holds no phase_1\.json"):
        require_fair_phase_1(run_in(tmp_path), source)
