"""Batches in order for any number of workers, and workers that fail."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.data.patches import Batch, PackedBatch


@dataclass
class CountingSource:
    """Batch i holds the number i, with an accident at one iteration."""

    accident: str = ""
    at: int = 2
    parent: int = 0
    preloaded: bool = False

    def preload(self) -> None:
        self.preloaded = True

    def batch(self, iteration: int) -> Batch:
        return self.packed_batch(iteration).unpack()

    def packed_batch(self, iteration: int) -> PackedBatch:
        if iteration == self.at and self.accident == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if iteration == self.at and self.accident == "silent":
            time.sleep(2)
        if iteration == self.at and self.accident == "user":
            raise UsdError("file x is damaged; copy it again.")
        if iteration == self.at and self.accident == "bug":
            raise KeyError("missing")
        image = torch.full((1, 1, 2, 2), float(iteration))
        return PackedBatch(image, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, (str(torch.get_num_threads()),))


def numbers(source, first, last, workers, **options) -> list[int]:
    with open_loader(source, first, last, workers, **options) as batches:
        return [int(b.image.mean()) for b in batches]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_and_end(workers) -> None:
    source = CountingSource()
    assert numbers(source, 5, 16, workers) == list(range(5, 16))
    assert source.preloaded == (workers > 0)
    assert numbers(source, 5, 5, workers) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_without_an_end_and_left_early(workers) -> None:
    before = len(multiprocessing.active_children())
    with open_loader(CountingSource(), 7, None, workers) as batches:
        assert [int(next(batches).image.mean()) for _ in range(4)] == [7, 8, 9, 10]
        assert len(multiprocessing.active_children()) == before + workers
    assert len(multiprocessing.active_children()) == before


def test_workers_end_when_the_training_fails() -> None:
    def train() -> None:
        with open_loader(CountingSource(), 0, None, 1) as batches:
            next(batches)
            raise RuntimeError("diverged")

    before = len(multiprocessing.active_children())
    with pytest.raises(RuntimeError, match="diverged"):
        train()
    assert len(multiprocessing.active_children()) == before


def test_workers_use_one_thread() -> None:
    with open_loader(CountingSource(), 0, 1, 1) as batches:
        assert next(batches).case_ids == ("1",)


def test_a_killed_worker_is_named_with_the_remedy() -> None:
    with pytest.raises(UsdError, match=r"ended unexpectedly .*pid.*--workers 0"):
        numbers(CountingSource("killed"), 0, 9, 1)


def test_a_silent_worker_does_not_hang_the_training() -> None:
    start = time.monotonic()
    with pytest.raises(UsdError, match=r"within 0\.5 seconds"):
        numbers(CountingSource("silent"), 0, 9, 1, timeout_s=0.5)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_keeps_its_one_paragraph(workers) -> None:
    with pytest.raises(UsdError, match=r"^file x is damaged; copy it again\.$"):
        numbers(CountingSource("user"), 0, 9, workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_ours_keeps_its_type(workers) -> None:
    with pytest.raises(KeyError, match="missing"):
        numbers(CountingSource("bug"), 0, 9, workers)


def test_a_worker_that_dies_with_a_batch_on_its_way_is_named_too() -> None:
    error = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(UsdError, match=r"ended unexpectedly \(.*reset"), open_loader(CountingSource(), 0, 9, 1):
        raise error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_for_the_whole_job_do_not_end_the_workers(number: signal.Signals) -> None:
    with open_loader(CountingSource(), 0, None, 1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert os.getpgid(worker.pid) != os.getpgid(0)
        os.kill(worker.pid, number)
        assert [int(next(batches).image.mean()) for _ in range(20)] == list(range(1, 21))


def test_opening_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    numbers(CountingSource(), 0, 3, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_negative_workers_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="workers is -1"),
        open_loader(CountingSource(), 0, 1, -1),
    ):
        pass


def test_batches_that_shared_memory_has_no_room_for_are_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(self: PackedBatch) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left on device (28)\ntrace")

    monkeypatch.setattr(PackedBatch, "share_memory_", no_room)
    said = r"/dev/shm\) has no room for a batch \(unable .* \(28\)\).*--workers 0"
    with pytest.warns(UserWarning, match=said) as found:
        assert numbers(CountingSource(), 0, 9, 2) == list(range(9))
    assert sum("has no room" in str(warning.message) for warning in found) == 1


def test_where_no_process_can_start_batches_are_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", full)
    with pytest.warns(UserWarning, match=r"/dev/shm is full or missing \(No space left on device\); batches are"):
        assert numbers(CountingSource(), 0, 3, 2) == [0, 1, 2]


def test_the_cleanup_of_a_loader_does_not_hide_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers

    original = Workers._shutdown_workers

    def failing(self: Workers) -> None:
        original(self)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    def train() -> None:
        with open_loader(CountingSource(), 0, None, 1):
            raise UsdError("the training has diverged")

    monkeypatch.setattr(Workers, "_shutdown_workers", failing)
    monkeypatch.setattr(Workers, "__del__", lambda self: None)
    with pytest.raises(UsdError, match="diverged"):
        train()
