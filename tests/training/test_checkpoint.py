from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.training.checkpoint import (
    CHECKPOINT_NAME,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)
from unisegdiff_pipeline.training.ema import Ema


def test_checkpoint_round_trip_and_foreign_plan(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "a") is None
    save_checkpoint(tmp_path, {"plan_hash": "a", "phase": 1, "network": {"w": torch.arange(3.0)}})
    state = load_checkpoint(tmp_path, "a")
    assert state is not None
    assert state["network"]["w"].tolist() == [0, 1, 2]
    with pytest.raises(UsdError, match=r"another plan.*--restart"):
        load_checkpoint(tmp_path, "b")


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"plan_hash": "a"})
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsdError, match=r"checkpoint\.pt cannot be read"):
        load_checkpoint(tmp_path, "a")


def test_weights_round_trip_and_errors(tmp_path: Path) -> None:
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    path = tmp_path / "w.safetensors"
    save_weights(path, first, {"plan_hash": "a"})
    load_weights(path, second, "a")
    assert torch.equal(first.weight, second.weight)
    with pytest.raises(UsdError, match="another plan"):
        load_weights(path, second, "b")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UsdError, match="damaged"):
        load_weights(path, second, "a")
    with pytest.raises(UsdError, match="does not exist"):
        load_weights(tmp_path / "none.safetensors", second, "a")


def test_ema_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    ema = Ema(net, decay=0.5)
    nn.init.ones_(net.weight)
    ema.update(net, 0)  # decay min(0.5, 1 / 10) = 0.1
    assert ema.network.weight.item() == pytest.approx(0.9)
    ema.update(net, 100)  # decay 0.5
    assert ema.network.weight.item() == pytest.approx(0.95)


def test_plan_hash_ignores_what_may_change(tmp_path: Path) -> None:
    from unisegdiff_pipeline.planning.plans import (
        ConfigurationPlan,
        DenoiserPlan,
        LevelPlan,
        NetworkPlan,
        PreprocessingPlan,
        TrainingPlan,
    )
    from unisegdiff_pipeline.training.checkpoint import plan_hash

    level = LevelPlan(4, (1, 1), (3, 3), 2)
    plan = ConfigurationPlan(
        "2d",
        PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",), (False,), ()),
        (1, 8, 8),
        NetworkPlan(2, (8, 8), 1, (level,)),
        DenoiserPlan(),
        TrainingPlan(batch_size=2),
    )
    assert plan_hash(plan) == plan_hash(dataclasses.replace(plan, training=TrainingPlan(batch_size=4)))
    assert plan_hash(plan) != plan_hash(dataclasses.replace(plan, denoiser=DenoiserPlan(features=(8, 16, 32))))
