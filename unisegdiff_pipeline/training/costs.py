"""What the steps of a fold cost, and how a time budget is shared between them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.training.choosing import FULL_SEARCH, QUICK_SEARCH, SHORT_SEARCH, USUAL_FROM_DET, Search
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainer import FoldRun
from unisegdiff_pipeline.training.validation import planned_settings, predict_stored

CHOOSING_SHARE = 0.1  # of the time budget, for choosing on the hold-out
MONITORING_SHARE = 0.005  # of the time budget, for one validation during training
DESCRIBING_SHARE = 0.02  # of the time budget, for what phase 1 is like on the hold-out
# In forward passes over a case: what temperatures, draws without calls and their scores take. 4 to 9 were measured on
# one core, more on two, since scores are taken on one.
CHOOSING_PASSES = 14
FEWEST_CASES = 6  # to choose on, however short the time is
MEASURED_CASES = 5  # the largest of a few with foreground is timed
UNFORESEEN_S = 5.0
UNFORESEEN_SHARE = 0.02  # of the time budget: the costs of a case are measured once, and differ by a fifth
LEAST_PHASE_2_S = 1.0
LEAST_PHASE_2_SHARE = 0.15  # of the time budget
# Of the time budget, for choosing and the final validation. Phase 1 keeps no more, because it knows the costs of
# untrained weights only: these sample everywhere, trained ones around lesions. What the shortest search needs has to be
# there in any case, so of that it keeps more.
LARGEST_FINAL_SHARE = 0.15
LARGEST_QUICK_SHARE = 0.4
LEAST_PHASE_1_SHARE = 0.4  # of the time that is left for both phases and the end, whatever the end may take
TOO_SHORT_SHARE = 0.8  # of the time budget, needed by the final validation alone


@dataclass(frozen=True)
class Costs:
    """Seconds that one held-out case takes to segment, and to sample with the default settings on top.

    `search` is how far samplers are to be searched; it decides what choosing and the final validation may take.
    """

    segment_s: float = 0.0
    sample_s: float = 0.0
    search: Search = FULL_SEARCH

    @property
    def choosing_s(self) -> float:
        """Seconds a case takes when temperatures and settings are chosen."""
        return (
            CHOOSING_PASSES * self.segment_s
            + self.sample_s * self.search.calls_per_case / SamplerSettings().total_calls
        )

    @property
    def monitoring_s(self) -> float:
        """Seconds a case takes when its mask is scored during training: half as many samples of two calls."""
        return self.segment_s + self.sample_s / 2 * USUAL_FROM_DET.total_calls / SamplerSettings().total_calls

    def choosing_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as the time for choosing allows, at least FEWEST_CASES."""
        if run.request.max_time_s is None:
            return run.holdout_cases
        affordable = int(CHOOSING_SHARE * run.request.max_time_s / max(self.choosing_s, 1e-6))
        return run.holdout_cases[: max(FEWEST_CASES, affordable)]

    def described_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as may be segmented twice after phase 1, at least FEWEST_CASES."""
        if run.request.max_time_s is None:
            return run.holdout_cases
        affordable = int(DESCRIBING_SHARE * run.request.max_time_s / max(2 * self.segment_s, 1e-6))
        return run.holdout_cases[: max(FEWEST_CASES, affordable)]

    def monitored_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as may be scored several times during training, at least three."""
        if run.request.max_time_s is None:
            return run.holdout_cases
        affordable = int(MONITORING_SHARE * run.request.max_time_s / max(self.monitoring_s, 1e-6))
        return run.holdout_cases[: max(3, affordable)]

    def final_s(self, run: FoldRun, largest_share: float = 1.0) -> float:
        """Seconds to keep for choosing and the final validation, at most `largest_share` of the time budget."""
        assert run.request.max_time_s is not None
        choosing = self.choosing_s * len(self.choosing_cases(run)) if self.sample_s else 0.0
        monitoring = len(self.monitored_cases(run)) * self.monitoring_s
        unforeseen_s = UNFORESEEN_S + run.log.report_s + UNFORESEEN_SHARE * run.request.max_time_s
        expected_s = choosing + self.validation_s(run) + monitoring
        return min(largest_share * run.request.max_time_s, expected_s) + unforeseen_s

    def validation_s(self, run: FoldRun) -> float:
        """Seconds of the final validation with the most calls that the samplers of mean and masks may take."""
        sampling_s = self.sample_s * self.search.most_calls / SamplerSettings().total_calls
        # Restoring and scoring a case cost about as much as segmenting it.
        return len(run.validation_cases) * (2 * self.segment_s + sampling_s)


def measure_costs(run: FoldRun, model: StagedModel) -> Costs:
    """Time one held-out (or training) case, under a time budget only.

    With untrained weights this is the slowest case there is, since everything is foreground to them.
    """
    if run.request.max_time_s is None:
        return Costs()
    cases = [run.data.open(case_id) for case_id in (run.holdout_cases or run.train_cases)[:MEASURED_CASES]]
    stored = max(cases, key=lambda case: (bool(len(case.components.num_voxels)), case.image.shape))
    settings = planned_settings(run.configuration)

    def seconds(num_samples: int) -> float:
        start = time.monotonic()
        predict_stored(run, model, stored, settings, num_samples)
        return time.monotonic() - start

    sampled = model.denoiser is not None
    seconds(1 if sampled else 0)  # the first prediction of a process takes longer
    segment_s = seconds(0)
    return Costs(segment_s, max(0.0, seconds(settings.num_samples) - segment_s) if sampled else 0.0)


def affordable_cases(run: FoldRun, model: StagedModel, costs: Costs) -> tuple[str, ...]:
    """Held-out cases to choose on, now that both phases are over: as planned, fewer where a case takes longer by now.

    The model is timed again: what it finds, and what else the machine does, may have changed since phase 2 began.
    """
    planned = costs.choosing_cases(run)
    if run.request.max_time_s is None:
        return planned
    now = replace(measure_costs(run, model), search=costs.search)
    left_s = run.request.max_time_s - run.watch.seconds - now.validation_s(run) - UNFORESEEN_S - run.log.report_s
    return planned[: max(FEWEST_CASES, int(left_s / max(now.choosing_s, 1e-6)))]


def phase_1_budget(run: FoldRun, share: float, start_s: float | None = None) -> PhaseBudget:
    """Length of phase 1.

    Args:
        run: the fold.
        share: of both phases together.
        start_s: when phase 1 began, which may have been in an earlier sitting; None: it begins now.
    """
    total = _total_iterations(run)
    if total is not None:
        if total < 2 and share < 1:
            raise UsdError(f"--iterations {total} leaves one of the two phases without any; give at least 2.")
        run.monitored_cases = run.holdout_cases
        return PhaseBudget(iterations=_phase_1_iterations(total, share))
    assert run.request.max_time_s is not None
    untrained = to_device(build_model(run.configuration, run.plans.labels, share < 1), run.device)
    costs = measure_costs(run, untrained)
    run.monitored_cases = replace(costs, sample_s=0.0).monitored_cases(run)
    start_s = run.watch.seconds if start_s is None else start_s
    least = start_s + len(run.validation_cases) * costs.segment_s
    if least >= TOO_SHORT_SHARE * run.request.max_time_s:
        raise UsdError(
            f"--max-time {run.request.max_time_s:g} s is too short: the validation of {len(run.validation_cases)} "
            f"cases needs about {least:.0f} s of it; give at least {2 * least:.0f} s."
        )
    quick_s = replace(costs, search=QUICK_SEARCH).final_s(run, LARGEST_QUICK_SHARE)
    reserved_s = max(costs.final_s(run, LARGEST_FINAL_SHARE), quick_s)
    left_s = run.request.max_time_s - start_s
    return PhaseBudget(seconds=share * max(left_s - reserved_s, LEAST_PHASE_1_SHARE * left_s))


def within_budget(run: FoldRun, costs: Costs, start_s: float) -> Costs:
    """The costs with the widest search that time allows; `start_s` is when phase 2 began.

    Choosing and the final validation are to take at most LARGEST_FINAL_SHARE of the time budget and to leave phase 2 at
    least LEAST_PHASE_2_SHARE of it: samplers of several calls are of no use to networks that had no time to learn.
    """
    if run.request.max_time_s is None:
        return costs
    budget_s = run.request.max_time_s
    for search in (FULL_SEARCH, SHORT_SEARCH):
        tried = replace(costs, search=search)
        final_s = tried.final_s(run)
        if final_s <= LARGEST_FINAL_SHARE * budget_s and final_s + start_s <= (1 - LEAST_PHASE_2_SHARE) * budget_s:
            return tried
        run.log.say(f"time is short: samplers of {search.most_calls} calls are not tried")
    return replace(costs, search=QUICK_SEARCH)


def phase_2_budget(run: FoldRun, share: float, costs: Costs, start_s: float) -> PhaseBudget:
    """What is left; `start_s` is when phase 2 began, which may have been in an earlier sitting."""
    run.monitored_cases = costs.monitored_cases(run)
    total = _total_iterations(run)
    if total is not None:
        return PhaseBudget(iterations=total - _phase_1_iterations(total, share))
    assert run.request.max_time_s is not None
    final_s = costs.final_s(run)
    left_s = run.request.max_time_s - final_s - start_s
    if left_s < LEAST_PHASE_2_S:
        run.log.say(
            f"choosing settings and the final validation take about {final_s:.0f} s, so that --max-time is exceeded by "
            f"about {LEAST_PHASE_2_S - left_s:.0f} s; phase 2 gets {LEAST_PHASE_2_S:.0f} s only. Give more time."
        )
    return PhaseBudget(seconds=max(LEAST_PHASE_2_S, left_s))


def _phase_1_iterations(total: int, share: float) -> int:
    """Each phase gets one iteration at least, unless its share is nothing."""
    return round(total * share) if share in (0, 1) else min(total - 1, max(1, round(total * share)))


def _total_iterations(run: FoldRun) -> int | None:
    """Iterations of both phases; None under a time budget."""
    if run.request.max_time_s is not None:
        return None
    if run.request.iterations is not None:
        return run.request.iterations
    plan = run.configuration.training
    return (run.request.epochs or plan.num_epochs) * plan.iterations_per_epoch
