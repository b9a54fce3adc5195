"""How long a fold will take, from a few iterations of each phase and the prediction of one tile."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from unisegdiff_pipeline.core.progress import format_duration
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.training.data.patches import PatchSource
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.time_budget import (
    MEASURING_FRACTION,
    Costs,
    as_trained,
    measure_costs,
    phase_iterations,
)
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

TIMED_ITERATIONS = 3  # after one that warms up
PREDICTING_LIMIT_S = 10.0


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of one fold: of both phases, and of all that is done with held-out and validation cases.

    Attributes:
        phase_1_s, phase_2_s: of the phases.
        cases_s: of choosing and validation, by networks that have learned where lesions are and sample there.
        most_cases_s: the same by networks that take everything for a lesion, as those of a few iterations may.
        num_folds: so many folds take so many times as long.
    """

    phase_1_s: float
    phase_2_s: float
    cases_s: float
    most_cases_s: float
    num_folds: int = 1

    @property
    def seconds(self) -> float:
        """Of all folds."""
        return self.num_folds * (self.phase_1_s + self.phase_2_s + self.cases_s)

    def describe(self) -> str:
        """In words, for the terminal."""
        folds = "" if self.num_folds == 1 else f" for {self.num_folds} folds; each:"
        second = f", phase 2 {format_duration(self.phase_2_s)}" if self.phase_2_s else ""
        most = ""
        if self.most_cases_s > 1.2 * self.cases_s:
            most = f" (up to {format_duration(self.most_cases_s)} where it is too short to learn where lesions are)"
        return (
            f"about {format_duration(self.seconds)}{folds or ':'} phase 1 {format_duration(self.phase_1_s)}{second}, "
            f"choosing and validation {format_duration(self.cases_s)}{most}"
        )


def estimate_time(run: FoldRun, trainer: type[Trainer]) -> TimeEstimate | None:
    """Time a few iterations; None under a time budget, which says how long the fold takes. Nothing is written.

    Patches are prepared in this process, as with --workers 0, and nothing is compiled: workers and compilation can only
    make it faster. Patience may end a phase earlier, but looks more often.

    Raises:
        UsdError: as training; a fold without room for both phases.
    """
    counts = phase_iterations(run, trainer)
    if counts is None:
        return None
    two_phases = issubclass(trainer, DiffusionTrainer)
    first = trainer if issubclass(trainer, SegmentationTrainer) else SegmentationTrainer
    budget = PhaseBudget(iterations=TIMED_ITERATIONS + 1)
    phase_1_s = counts[0] * seconds_an_iteration(first(run, budget)) if counts[0] else 0.0
    model = to_device(build_model(run.configuration, run.plans.labels, two_phases), run.device)
    phase_2_s = 0.0
    if two_phases:
        assert issubclass(trainer, DiffusionTrainer)
        settings = planned_settings(run.configuration)
        phase_2_s = counts[1] * seconds_an_iteration(trainer(run, budget, model.segmenter, settings))
    limited = replace(run.request, max_time_s=PREDICTING_LIMIT_S / MEASURING_FRACTION)
    most = measure_costs(replace(run, request=limited), model)

    looks = first.looks(run.request.patience) if counts[0] else 0

    def of_cases(costs: Costs) -> float:
        seconds = costs.validation_s(run)
        for case_id in run.holdout_cases:
            seconds += costs.case_s(case_id, looks, 0)
            if two_phases:
                seconds += trainer.looks(run.request.patience) * costs.monitoring_s(case_id)
                seconds += costs.choosing_s(case_id)
        return seconds

    return TimeEstimate(phase_1_s, phase_2_s, of_cases(as_trained(run, model, most)), of_cases(most))


def seconds_an_iteration(trainer: Trainer) -> float:
    """Seconds of one iteration, its patches included."""
    run = trainer.run
    source = PatchSource(run.data, run.train_cases, run.configuration, run.plans.labels, run.seed, augment=True)
    trainer.network.train()
    start = time.monotonic()
    for iteration in range(TIMED_ITERATIONS + 1):
        trainer.step(source.batch(iteration))
        if iteration == 0:
            start = time.monotonic()
    return (time.monotonic() - start) / TIMED_ITERATIONS
