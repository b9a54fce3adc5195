"""Conditions of tiles in memory, on disk, and nowhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from unisegdiff_pipeline.core import scratch
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference import condition_store
from unisegdiff_pipeline.inference.condition_store import ConditionStore
from unisegdiff_pipeline.networks.denoiser import Condition

BYTES = 64 + 128  # of one condition: 4 x 4 bytes padded to 64, and 10 x 10 bytes padded to 128


def condition(value: int) -> Condition:
    logits = torch.full((1, 1, 2, 2), float(value))
    return Condition(logits, (torch.full((1, 1, 10, 5), value, dtype=torch.float16),))


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(condition_store, "BLOCK_BYTES", 1)


def same(found: Condition, expected: Condition) -> bool:
    pairs = zip((found.det_logits, *found.features), (expected.det_logits, *expected.features), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_places_are_taken_again_once_forgotten() -> None:
    store = ConditionStore(2 * BYTES, None)
    assert [store.keep(tile, condition(tile)) for tile in range(3)] == [True, True, False]
    store.forget_except([1])
    assert store.keep(2, condition(2))
    assert [tile in store for tile in range(3)] == [False, True, True]
    assert same(store[1], condition(1))
    assert same(store[2], condition(2))


def test_what_memory_does_not_hold_is_on_disk_and_the_same(tmp_path: Path) -> None:
    files = Scratch(tmp_path)
    store = ConditionStore(BYTES, files)
    assert all(store.keep(tile, condition(tile)) for tile in range(3))
    files.release()
    assert all(same(store[tile], condition(tile)) for tile in range(3))
    assert not list(tmp_path.iterdir())


def test_half_of_the_disk_is_left_to_arrays_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scratch, "free_disk_bytes", lambda self: 4 * BYTES + 1)
    store = ConditionStore(0, Scratch(tmp_path))
    assert [store.keep(tile, condition(tile)) for tile in range(4)] == [True, True, False, False]


def test_a_disk_that_others_fill_costs_no_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ConditionStore(0, Scratch(tmp_path))
    assert store.keep(0, condition(0))
    monkeypatch.setattr(scratch.os, "posix_fallocate", full, raising=False)
    assert not store.keep(1, condition(1))
    assert same(store[0], condition(0))
    assert not list(tmp_path.iterdir())
