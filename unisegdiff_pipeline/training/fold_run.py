"""Everything that the phases of one fold share: what was asked, data, cases, device, log, and when to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from unisegdiff_pipeline.core.files import text_hash
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.selection.hold_out import HoldOut
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.pretrained_start import SeenCases, StartRecord
from unisegdiff_pipeline.training.ranks import ALONE, Ranks
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.schedule import Stopwatch

STOP_NAME = "stop"  # a file of this name in the fold's folder ends the training


@dataclass
class FoldRun:
    """Everything that the phases of one fold share.

    Attributes:
        request: what was asked, nothing left open that the fold was asked before.
        configuration: the plan, with the request's overrides of the training.
        folder: results folder of the fold.
        train_cases: cases that weights are learned from; without `holdout_cases`.
        holdout_cases: the inner hold-out, on which everything that is chosen is chosen.
        validation_cases: the fold's own, predicted once at the end; empty for fold "all".
        watch: seconds of this fold, all sessions together.
        monitored_cases: held-out cases that are scored during training; fewer where time is short.
        start: what the weights started from, where the request names something and the fold has begun.
        phase_1_seen: cases that a phase 1 taken over has seen, its own start included; None for none.
        monitoring_limit_s: longest time that scoring them once may take; None without a time budget.
        ranks: the processes that share each batch.
        compiled: the networks are compiled for training; off again once a compiler has failed that nobody asked for.
    """

    request: TrainRequest
    plans: Plans
    configuration: ConfigurationPlan
    data: PreprocessedFolder
    folder: Path
    train_cases: tuple[str, ...]
    holdout_cases: tuple[str, ...]
    validation_cases: tuple[str, ...]
    device: torch.device
    workers: int
    plan_hash: str
    log: RunLog
    stop: StopRequest
    watch: Stopwatch = field(default_factory=Stopwatch)
    monitored_cases: tuple[str, ...] = ()
    monitoring_limit_s: float | None = None
    start: StartRecord | None = None
    phase_1_seen: SeenCases | None = None
    ranks: Ranks = ALONE
    compiled: bool = False

    @property
    def fold(self) -> str:
        """ "0" to "4", or "all"."""
        return self.folder.name.removeprefix("fold_")

    @property
    def seed(self) -> int:
        """What every random number of the fold follows from."""
        return self.request.seed_or_default

    @property
    def held_out(self) -> HoldOut:
        """What choosing on held-out cases needs of the fold."""
        return HoldOut(
            self.data,
            self.plans.labels,
            self.configuration,
            self.plans.spacing_known,
            self.train_cases,
            self.device,
            self.seed,
            self.leave_if_asked,
        )

    def for_followers(self) -> dict[str, Any]:
        """The fields that another process of the same training has in common with this one."""
        own = {"device", "workers", "log", "stop", "watch", "ranks"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in own}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within this context this process computes alone."""
        former, self.ranks = self.ranks, ALONE
        try:
            yield
        finally:
            self.ranks = former

    @property
    def is_asked_to_end(self) -> bool:
        """Whether the stop file is there: what is begun is shortened, and the model completed."""
        return (self.folder / STOP_NAME).exists()

    def leave_if_asked(self) -> None:
        """Raise TrainingInterrupted after SIGINT or SIGTERM; called where everything is saved."""
        self.stop.check()

    def generator(self, *key: object) -> torch.Generator:
        """A generator on the training's device, keyed by the seed and `key`: no state has to be saved."""
        return torch.Generator(self.device).manual_seed(self.derived_seed(*key))

    def derived_seed(self, *key: object) -> int:
        """A seed for one purpose, which follows from that of the fold and from what `key` names."""
        return int(text_hash("|".join(map(str, (self.seed, *key))))[:15], 16)
