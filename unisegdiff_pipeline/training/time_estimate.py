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
from unisegdiff_pipeline.training.time_budget import MEASURING_FRACTION, measure_costs, phase_iterations
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

TIMED_ITERATIONS = 3  # behind one that warms up
PREDICTING_LIMIT_S = 10.0


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of one fold: of both phases, and of all that is done with held-out and validation cases.

    `num_folds` folds take so many times as long.
    """

    phase_1_s: float
    phase_2_s: float
    cases_s: float
    num_folds: int = 1

    @property
    def seconds(self) -> float:
        """Of all folds."""
        return self.num_folds * (self.phase_1_s + self.phase_2_s + self.cases_s)

    def describe(self) -> str:
        """In words, for the terminal."""
        folds = "" if self.num_folds == 1 else f" for {self.num_folds} folds; each:"
        second = f", phase 2 {format_duration(self.phase_2_s)}" if self.phase_2_s else ""
        return (
            f"about {format_duration(self.seconds)}{folds or ':'} phase 1 {format_duration(self.phase_1_s)}{second}, "
            f"choosing and validation up to {format_duration(self.cases_s)}"
        )


def estimate_time(run: FoldRun, trainer: type[Trainer]) -> TimeEstimate | None:
    """Time a few iterations; None under a time budget, which says how long the fold takes. Nothing is written.

    Patches are prepared in this process, as with --workers 0: worker processes can only make it faster.

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
    costs = measure_costs(replace(run, request=limited), model)
    cases_s = costs.validation_s(run)
    for case_id in run.holdout_cases:
        cases_s += costs.case_s(case_id, first.num_validations, 0)
        if two_phases:
            cases_s += trainer.num_validations * costs.monitoring_s(case_id) + costs.choosing_s(case_id)
    return TimeEstimate(phase_1_s, phase_2_s, cases_s)


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
