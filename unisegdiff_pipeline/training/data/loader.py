"""Batches in order, made ahead by worker processes or in this one, and never a training that hangs on them."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.parallel import main_module_hidden, no_processes, usable_cores
from unisegdiff_pipeline.core.signals import held_back, take_up
from unisegdiff_pipeline.training.data.patches import Batch, PackedBatch, PatchSource

BATCHES_AHEAD = 4

MAX_WORKERS = 12


@contextlib.contextmanager
def open_loader(
    source: PatchSource,
    first_iteration: int,
    last_iteration: int | None,
    workers: int,
    timeout_s: float = 300.0,
    pin_memory: bool = False,
) -> Iterator[Iterator[Batch]]:
    """Give an iterator over the batches first_iteration .. last_iteration - 1, without an end where that is None.

    The batches are the same bit by bit for any number of workers. Workers are forked where the system allows it:
    they start in milliseconds and share the cases that `source` has read into memory. Batches that do not fit into
    shared memory (/dev/shm, 64 MB in a Docker container) are made in this process, with a warning.

    Args:
        source: makes batch i on demand.
        first_iteration: number of the first batch.
        last_iteration: one past the last batch, or None.
        workers: processes that prepare batches ahead; 0 prepares each in this process when it is asked for.
        timeout_s: longest wait for one batch from the workers.
        pin_memory: page-locked batches, for a CUDA device.

    Raises:
        UsdError: while iterating, when a worker died or kept silent for `timeout_s`.
    """
    if workers < 0:
        raise ValueError(f"workers is {workers}; give 0 or more")
    if workers > 0 and (reason := no_processes(workers)):
        warnings.warn(f"{reason}; batches are prepared in this process, as with --workers 0.", stacklevel=2)
        workers = 0
    if workers > 0:
        source.preload()
    loader = DataLoader(
        _Batches(source),
        batch_size=None,
        sampler=itertools.count(first_iteration) if last_iteration is None else range(first_iteration, last_iteration),
        collate_fn=_unchanged,
        num_workers=workers,
        timeout=timeout_s if workers > 0 else 0,
        worker_init_fn=_start_worker,
        prefetch_factor=max(BATCHES_AHEAD // workers, 1) if workers > 0 else None,
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if workers > 0 else None,
        pin_memory=pin_memory,
        # Else the loader would take its seed from the global generator, and continuing would change the training.
        generator=torch.Generator(),
    )
    with held_back(signal.SIGINT, signal.SIGTERM), main_module_hidden():
        iterator = iter(loader)
    try:
        yield _unpacked(iterator, source)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker's death interrupts whatever the training is doing at that moment, a batch on its way included.
        message = _worker_problem(error, workers, timeout_s)
        if message is None:
            raise
        raise UsdError(message) from error
    finally:
        # Garbage collection would end the workers too, but not at a known time, and not while an exception that is
        # being handled still refers to the iterator.
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            with contextlib.suppress(Exception):  # what ended the training matters, not how its workers took it
                shutdown()


def _unpacked(iterator: Iterator[PackedBatch | _UserError | _NotShared], source: PatchSource) -> Iterator[Batch]:
    warned = False
    for result in iterator:
        if isinstance(result, _UserError):
            raise UsdError(result.message)
        if isinstance(result, _NotShared):
            if not warned:
                warnings.warn(
                    f"shared memory (/dev/shm) has no room for a batch ({result.reason}); batches are prepared in the "
                    f"training process itself, as with --workers 0. Where it is larger (docker run --shm-size=8g), "
                    f"worker processes prepare them ahead.",
                    stacklevel=2,
                )
            warned = True
            yield source.batch(result.iteration)
            continue
        yield result.unpack()


def _worker_problem(error: Exception, workers: int, timeout_s: float) -> str | None:
    """The message for the user where an error is that of a dead or silent worker, else None."""
    text = str(error) or type(error).__name__
    died = re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", text)
    if died or (workers > 0 and isinstance(error, (ConnectionError, EOFError))):
        return (
            f"a process that prepares training batches ended unexpectedly ({text.splitlines()[0]}); most often the "
            f"system ended it for lack of memory or of shared memory (/dev/shm). Use fewer than {workers} processes "
            f"with --workers, or --workers 0 to prepare batches in the training process itself."
        )
    if "DataLoader timed out" in text:
        return (
            f"no training batch arrived from {workers} worker processes within {timeout_s:g} seconds; the disk of the "
            f"preprocessed data may not answer, or the machine is overloaded. Use --workers 0 to prepare batches in "
            f"the training process itself."
        )
    return None


@dataclass(frozen=True)
class _UserError:
    """A UsdError on its way out of a worker; raised there it would arrive with a traceback in its message."""

    message: str


@dataclass(frozen=True)
class _NotShared:
    """In place of a batch that a worker has no shared memory for."""

    iteration: int
    reason: str


class _Batches(Dataset):
    """Batches by iteration number."""

    def __init__(self, source: PatchSource) -> None:
        self._source = source
        self._no_room = ""  # for batches in shared memory, as the system says it

    def __getitem__(self, iteration: int) -> PackedBatch | _UserError | _NotShared:
        if self._no_room:
            return _NotShared(iteration, self._no_room)
        try:
            batch = self._source.packed_batch(iteration)
        except UsdError as error:
            return _UserError(str(error))
        if torch.utils.data.get_worker_info() is not None:
            try:
                # Else the loader does it later, on a thread whose failure nobody hears of: the batch never arrives.
                batch.share_memory_()
            except (RuntimeError, OSError) as error:
                self._no_room = (str(error).splitlines() or [type(error).__name__])[0]
                return _NotShared(iteration, self._no_room)
        return batch


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Settle a new worker process: one thread, and no signals but from the training process.

    Ctrl-C and a scheduler's SIGTERM go to the whole process group, or to every process of a job (Slurm's scancel). The
    training process answers them by saving, for which its workers have to stay alive; it ends them itself, and they
    end by themselves when it is gone. A second SIGTERM ends a worker.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    take_up(signal.SIGINT, signal.SIGTERM)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def default_workers(processes: int = 1) -> int:
    """Workers that prepare patches, for each of the processes that train on this machine.

    All together take one core fewer than there are for each of these, but each has at least one.
    """
    return min(MAX_WORKERS, max(1, usable_cores() // processes - 1))
