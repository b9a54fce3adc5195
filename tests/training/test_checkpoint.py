from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint, save_checkpoint
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


def test_a_flipped_byte_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"plan_hash": "a", "network": {"w": torch.full((1000,), 3.0)}})
    path = tmp_path / CHECKPOINT_NAME
    content = path.read_bytes()
    place = content.index(torch.full((1000,), 3.0).numpy().tobytes()) + 2000
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UsdError, match=r"checkpoint\.pt cannot be read \(wrong checksum"):
        load_checkpoint(tmp_path, "a")


def test_something_else_than_a_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / CHECKPOINT_NAME)
    with pytest.raises(UsdError, match="another plan"):
        load_checkpoint(tmp_path, "a")


def test_ema_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    ema = Ema(net, decay=0.5)
    nn.init.ones_(net.weight)
    ema.update(net, 0)  # decay min(0.5, 1 / 10) = 0.1
    assert ema.network.weight.item() == pytest.approx(0.9)
    ema.update(net, 100)  # decay 0.5
    assert ema.network.weight.item() == pytest.approx(0.95)
