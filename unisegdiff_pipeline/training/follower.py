"""What a process does that helps another to train: it takes every step with it, and writes nothing."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.determinism import deterministic_algorithms
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.interrupt import StopRequest, TrainingInterrupted
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.ranks import GatherOrder, PhaseOrder, Ranks, StepOrder
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.trainers.registry import find_trainer
from unisegdiff_pipeline.training.trainers.trainer import LOADER_TIMEOUT_S, Diverged, Trainer


def follow(request: TrainRequest, ranks: Ranks, workers: int) -> None:
    """Help the leading process until it ends. SIGINT and SIGTERM are passed on to it, with the next step.

    Args:
        request: as this process was asked.
        ranks: of which this process does not lead.
        workers: processes that prepare patches.

    Raises:
        UsdError: the preprocessed data cannot be read here.
        RankLost: another process has ended.
    """
    find_trainer(request.trainer)  # imports it, so that what the leader sends of it can be read
    with contextlib.suppress(TrainingInterrupted), StopRequest() as stop, stop.deferred():
        order = ranks.hear()
        while order is not None:
            if not isinstance(order, PhaseOrder):
                order = ranks.hear()
                continue
            trainer = _trainer(order, ranks, stop, workers)
            with deterministic_algorithms(bool(trainer.run.request.deterministic)):
                order = _follow_phase(trainer)


def _trainer(phase: PhaseOrder, ranks: Ranks, stop: StopRequest, workers: int) -> Trainer:
    """The leader's trainer, with weights and optimiser as they are there, for this process's device."""
    assert ranks.device is not None
    # Of our own leader, which may name any trainer: no file from elsewhere.
    shared, trainer = torch.load(io.BytesIO(phase.content), map_location=ranks.device, weights_only=False)
    assert isinstance(trainer, Trainer)
    log = RunLog(shared["folder"])  # of which nothing is opened or written
    own: dict[str, Any] = {"device": ranks.device, "workers": workers, "stop": stop, "ranks": ranks, "log": log}
    trainer.run = FoldRun(**shared, **own)
    if not trainer.run.data.folder.is_dir():
        raise UsdError(
            f"process {ranks.rank} finds no folder {trainer.run.data.folder}: the preprocessed data must lie at the "
            f"same path on every machine."
        )
    return trainer


def _follow_phase(trainer: Trainer) -> PhaseOrder | StepOrder | GatherOrder | None:
    """Take part in the iterations of a phase; returns the order that ends them."""
    run, pinned = trainer.run, trainer.run.device.type == "cuda"
    first, last = trainer.iteration, trainer.budget.iterations
    with open_loader(trainer.patches(), first, last, run.workers, LOADER_TIMEOUT_S, pinned) as batches:
        batch = next(batches, None)  # made before it is asked for, while the leader makes its own
        while isinstance(order := run.ranks.hear(), StepOrder | GatherOrder):
            if isinstance(order, GatherOrder):
                trainer.gather_statistics()
                continue
            assert batch is not None
            assert order.iteration == trainer.iteration
            trainer.bf16 = order.bf16
            with contextlib.suppress(Diverged):  # the leader sees the same, and says so
                trainer.take_step(order, batch.to(run.device))
            batch = next(batches, None)
    return order
