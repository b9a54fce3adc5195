"""What the steps of a fold cost, and how a time budget is shared between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import accumulate

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted, format_duration
from unisegdiff_pipeline.inference.active_region import BLOCK
from unisegdiff_pipeline.inference.case_prediction import SamplingFacts
from unisegdiff_pipeline.inference.limits import Limits
from unisegdiff_pipeline.inference.sliding_window import TileGrid, plan_tiles, prediction_window
from unisegdiff_pipeline.io.sources import cases_by_source
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.field_length import fallback_length_mm
from unisegdiff_pipeline.selection.hold_out import planned_settings, predict_stored
from unisegdiff_pipeline.selection.sampler import (
    FULL_SEARCH,
    QUICK_SEARCH,
    SHORT_SEARCH,
    Search,
    default_sampler,
    drawing,
)
from unisegdiff_pipeline.selection.segmenter_weight import with_samplers
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

CHOOSING_FRACTION = 0.1  # of the time budget, for choosing on the hold-out
MONITORING_FRACTION = 0.005  # of the time budget, for one validation during training
DESCRIBING_FRACTION = 0.02  # of the time budget, for what phase 1 is like on the hold-out
# In forward passes over a case: what temperatures, masks drawn without calls and the scores of a few take. With the
# samplings of a search, one process of one core took 1.0 (a narrow 3D network, two classes) and 0.7 (2D, one class)
# times as long as this says for the quick search, 1.1 and 0.6 times for the short one.
CHOOSING_PASSES = 12
FEWEST_CASES = 6  # to choose on, however short the time is
MEASURED_CASES = 5  # the largest of a few with foreground is timed
MEASURING_FRACTION = 0.0125  # of the time budget, for timing; a training times four times at most
# Seconds of samples by seconds of the segmenter where time is too short to measure them; between 1 and 10 were seen.
ASSUMED_SAMPLING = 10.0
# What needs some number of cases at least may take so many times its fraction of the budget, not more.
STRETCH = 3.0
# Of the time budget, where one validation during training, or describing phase 1, takes longer than was planned.
MONITORING_LIMIT_FRACTION = 0.03
DESCRIBING_LIMIT_FRACTION = 0.08
UNFORESEEN_S = 5.0
UNFORESEEN_FRACTION = 0.02  # of the time budget: the costs of a case are measured once, and differ by a fifth
LEAST_PHASE_S = 1.0
LEAST_PHASE_2_FRACTION = 0.15  # of the time budget
# Of the time budget, for choosing and the final validation. Phase 1 keeps no more, because it knows the costs of
# untrained weights only: these sample everywhere, trained ones around lesions. What the shortest search needs has to be
# there in any case, so of that it keeps more.
LARGEST_FINAL_FRACTION = 0.15
LARGEST_QUICK_FRACTION = 0.4
LEAST_PHASE_1_FRACTION = 0.4  # of the time that is left for both phases and the end, whatever the end may take


@dataclass(frozen=True)
class CaseSize:
    """How much there is to segment and to sample in a case, in times of the case that was timed."""

    segmented: float = 1.0
    sampled: float = 1.0


@dataclass(frozen=True)
class Costs:
    """Seconds that the timed case takes to segment, and on top to sample masks by the default sampler.

    `search` is how far samplers are to be searched; it decides what choosing and the final validation may take.
    `sizes` are those of the held-out and validation cases of a unified data set, where volumes stand beside single
    pictures; cases that it does not name are taken to be like the timed one.
    """

    segment_s: float = 0.0
    sample_s: float = 0.0
    search: Search = FULL_SEARCH
    sizes: Mapping[str, CaseSize] = field(default_factory=dict)

    def case_s(self, case_id: str, segmentings: float, samplings: float) -> float:
        """Seconds to segment a case, and to sample its masks, so many times."""
        size = self.sizes.get(case_id, CaseSize())
        return segmentings * self.segment_s * size.segmented + samplings * self.sample_s * size.sampled

    def choosing_s(self, case_id: str) -> float:
        """Seconds a case takes when temperatures and settings are chosen."""
        return self.case_s(case_id, CHOOSING_PASSES, self.search.samplings_per_case)

    def monitoring_s(self, case_id: str) -> float:
        """Seconds a case takes when its mask is scored during training: half as many samples of as many calls."""
        return self.case_s(case_id, 1, 0.5)

    def choosing_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as the time for choosing allows, FEWEST_CASES where that is anyhow possible."""
        return _affordable(run, CHOOSING_FRACTION, self.choosing_s, FEWEST_CASES)

    def described_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as may be segmented twice after phase 1, FEWEST_CASES where that is possible."""
        return _affordable(run, DESCRIBING_FRACTION, partial(self.case_s, segmentings=2, samplings=0), FEWEST_CASES)

    def calibrating_s(self, run: FoldRun) -> float:
        """Seconds that the temperatures of single sources take; 0 for an ordinary data set."""
        if run.configuration.sources is None:
            return 0.0
        return sum(self.case_s(case_id, segmentings=1, samplings=0) for case_id in self.described_cases(run))

    def monitored_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as may be scored several times during training, three where that is possible."""
        return _affordable(run, MONITORING_FRACTION, self.monitoring_s, 3)

    def final_s(self, run: FoldRun, largest_fraction: float = 1.0) -> float:
        """Seconds to keep for choosing and the final validation, at most `largest_fraction` of the time budget."""
        assert run.request.max_time_s is not None
        choosing_s = 0.0
        if self.sample_s:
            choosing_s = self.calibrating_s(run) + sum(map(self.choosing_s, self.choosing_cases(run)))
        monitoring_s = sum(map(self.monitoring_s, self.monitored_cases(run)))
        unforeseen_s = UNFORESEEN_S + run.log.report_s + UNFORESEEN_FRACTION * run.request.max_time_s
        expected_s = choosing_s + self.validation_s(run) + monitoring_s
        return min(largest_fraction * run.request.max_time_s, expected_s) + unforeseen_s

    def validation_s(self, run: FoldRun) -> float:
        """Seconds of the final validation with the most calls that the samplers of mean and masks may take."""
        samplings = self.search.most_calls / QUICK_SEARCH.most_calls
        # Restoring and scoring a case cost about as much as segmenting it.
        return sum(self.case_s(case_id, 2, samplings) for case_id in run.validation_cases)


def _affordable(run: FoldRun, fraction: float, seconds_of: Callable[[str], float], fewest: int) -> tuple[str, ...]:
    """As many held-out cases as a fraction of the time budget allows, or up to `fewest` in STRETCH times as much.

    Of a unified data set `fewest` is a case of each source at least; held-out cases come in turn by source. Where the
    stop file is there, it is `fewest` at most.
    """
    cases = run.holdout_cases
    if run.configuration.sources is not None:
        fewest = max(fewest, len(cases_by_source(cases)))
    if run.is_asked_to_end:
        return cases[:fewest]
    if run.request.max_time_s is None:
        return cases
    limit_s = fraction * run.request.max_time_s
    return max(
        _first_within(limit_s, cases, seconds_of), _first_within(STRETCH * limit_s, cases[:fewest], seconds_of), key=len
    )


def _first_within(limit_s: float, cases: Sequence[str], seconds_of: Callable[[str], float]) -> tuple[str, ...]:
    """The first cases, as many as take at most `limit_s` together."""
    totals_s = accumulate(map(seconds_of, cases))
    return tuple(cases[: sum(total_s <= limit_s for total_s in totals_s)])


def measure_costs(run: FoldRun, model: StagedModel) -> Costs:
    """Time the prediction of one held-out (or training) case, under a time budget only.

    Of a case of many tiles one is timed, and the whole case only where that surely fits into MEASURING_FRACTION of the
    budget; else every tile is taken to be sampled. With untrained weights that is so, since everything is foreground to
    them.
    """
    if run.request.max_time_s is None:
        return Costs()
    stored = _largest(run)
    tile, num_tiles = _one_tile(run, model, stored)
    run.log.say(f"timing the prediction of {'a case' if num_tiles == 1 else f'one of {num_tiles} tiles of a case'}")
    settings = planned_settings(run.configuration)
    if model.denoiser is not None:
        sampler = drawing(default_sampler(settings), fallback_length_mm(run.held_out, stored))
        settings = with_samplers(settings, sampler)
    limit_s = MEASURING_FRACTION * run.request.max_time_s

    def timed(case: StoredCase, num_samples: int) -> tuple[float, SamplingFacts]:
        start = time.monotonic()
        facts = predict_stored(run.held_out, model, case, settings, num_samples, keep_samples=True).facts
        return time.monotonic() - start, facts

    sampled = model.denoiser is not None
    segment_s = timed(tile, 0)[0]  # whatever it takes: without it nothing is known
    sample_s = ASSUMED_SAMPLING * segment_s if sampled else 0.0
    result, num_active = Costs(num_tiles * segment_s, num_tiles * sample_s), num_tiles
    start = time.monotonic()
    with run.stop.limited(limit_s - segment_s):
        if sampled:
            timed(tile, 1)  # the first prediction of a process takes longer
        segment_s = timed(tile, 0)[0]
        if sampled:
            sample_s = max(0.0, timed(tile, settings.num_samples)[0] - segment_s)
        result = Costs(num_tiles * segment_s, num_tiles * sample_s)
        whole_s = result.segment_s + result.sample_s / max(settings.num_samples, 1)
        if num_tiles > 1 and whole_s < limit_s - (time.monotonic() - start):
            seconds, facts = timed(stored, 1 if sampled else 0)
            num_active = facts.num_active_tiles
            result = Costs(seconds - facts.seconds_samples, num_active * sample_s)
    return replace(result, sizes=_sizes(run, model, num_tiles, num_active))


def as_trained(run: FoldRun, model: StagedModel, costs: Costs) -> Costs:
    """What untrained weights cost, which sample every tile, for weights that have learned where lesions are.

    These sample the tiles that hold annotated lesions, or lie a block beside them.
    """
    stored = _largest(run)
    grid = _tiles(run, model, stored.image.shape[1:])
    voxels = stored.components.voxels.reshape(-1, 3)
    num_active = 0
    for i in range(len(grid.starts)):
        place = grid.slices(i)
        first, end = (np.array([getattr(part, name) for part in place]) for name in ("start", "stop"))
        num_active += bool(((voxels >= first - BLOCK) & (voxels < end + BLOCK)).all(axis=1).any())
    num_active = max(1, num_active)
    sizes = _sizes(run, model, len(grid.starts), num_active)
    return replace(costs, sample_s=costs.sample_s * num_active / len(grid.starts), sizes=sizes)


def _largest(run: FoldRun) -> StoredCase:
    """The case of most voxels of a few, of those with foreground where there are any."""
    cases = [run.data.open(case_id) for case_id in (run.holdout_cases or run.train_cases)[:MEASURED_CASES]]
    return max(cases, key=lambda case: (bool(len(case.components.num_voxels)), math.prod(case.image.shape)))


def _sizes(run: FoldRun, model: StagedModel, num_tiles: int, num_active: int) -> dict[str, CaseSize]:
    """`Costs.sizes` beside a case of `num_tiles`, of which `num_active` are sampled.

    Tiles of lesions are taken to be as many in any case, or as large a part of it, whichever is more.
    """
    if run.configuration.sources is None:
        return {}
    sizes = {}
    for case_id in (*run.holdout_cases, *run.validation_cases):
        shape = run.data.properties(case_id).shape
        tiles = _num_tiles(tuple(shape), run.configuration.network.patch_size, model.segmenter.divisor)
        active = min(tiles, max(num_active, tiles * num_active / num_tiles))
        sizes[case_id] = CaseSize(tiles / num_tiles, active / max(num_active, 1))
    return sizes


def _tiles(run: FoldRun, model: StagedModel, shape: Sequence[int]) -> TileGrid:
    """The tiles that a case of a shape (Z, Y, X) is predicted in."""
    return _tile_grid(shape, run.configuration.network.patch_size, model.segmenter.divisor)


def _tile_grid(shape: Sequence[int], patch_size: Sequence[int], divisor: Sequence[int]) -> TileGrid:
    return plan_tiles(shape, prediction_window(patch_size, shape, divisor), Limits().step)


@cache  # asked several times a training for all held-out and validation cases, of which many have one shape
def _num_tiles(shape: tuple[int, ...], patch_size: tuple[int, ...], divisor: tuple[int, ...]) -> int:
    return len(_tile_grid(shape, patch_size, divisor).starts)


def _one_tile(run: FoldRun, model: StagedModel, stored: StoredCase) -> tuple[StoredCase, int]:
    """A case cut down to one tile, with foreground where it has any, and the number of tiles of the whole case."""
    shape = stored.image.shape[1:]
    grid = _tiles(run, model, shape)
    voxel = stored.components.draw(np.random.default_rng(run.request.seed), "component", None)
    middle = [length // 2 for length in shape] if voxel is None else voxel
    box = []
    for position, window, length in zip(middle, grid.window, shape, strict=True):
        start = min(max(int(position) - window // 2, 0), max(length - window, 0))
        box.append(slice(start, start + window))
    return stored.within(tuple(box)), len(grid.starts)


def affordable_cases(run: FoldRun, model: StagedModel, costs: Costs) -> tuple[tuple[str, ...], float | None]:
    """Held-out cases to choose on, now that both phases are over: as planned, fewer where a case takes longer by now.

    The model is timed again: what it finds, and what else the machine does, may have changed since phase 2 began. With
    fewer than FEWEST_CASES nothing could be chosen; of these the temperature at least, which comes first, may be.

    Returns:
        The cases, none where the time is over, and the seconds that choosing may take until it is left as it is by
        then; the final validation has the others, of what is left half at most. None without a time budget.
    """
    planned = costs.choosing_cases(run)
    if run.request.max_time_s is None or run.is_asked_to_end:
        return planned, time_left_s(run)
    now = replace(measure_costs(run, model), search=costs.search)
    left_s = time_left_s(run)
    assert left_s is not None
    if left_s <= 0:
        return (), left_s
    left_s -= min(now.validation_s(run), left_s / 2)
    for_settings_s = left_s - now.calibrating_s(run)
    return max(planned[:FEWEST_CASES], _first_within(for_settings_s, planned, now.choosing_s), key=len), left_s


def time_left_s(run: FoldRun) -> float | None:
    """Seconds until the time budget is spent, without those that its last report needs; None without a budget."""
    if run.request.max_time_s is None:
        return None
    return run.request.max_time_s - run.watch.seconds - UNFORESEEN_S - run.log.report_s


def fraction_s(run: FoldRun, fraction: float) -> float | None:
    """A fraction of the time budget in seconds; None without a budget."""
    return None if run.request.max_time_s is None else fraction * run.request.max_time_s


def phase_1_budget(run: FoldRun, fraction: float, start_s: float | None = None) -> PhaseBudget:
    """Length of phase 1.

    Args:
        run: the fold.
        fraction: of both phases together.
        start_s: when phase 1 began, which may have been in an earlier session; None: it begins now.
    """
    total = total_iterations(run)
    if total is not None:
        _require_both(total, fraction)
        run.monitored_cases = run.holdout_cases
        return PhaseBudget(iterations=_phase_1_iterations(total, fraction))
    assert run.request.max_time_s is not None
    untrained = to_device(build_model(run.configuration, run.plans.labels, fraction < 1), run.device)
    costs = measure_costs(run, untrained)
    run.monitored_cases = replace(costs, sample_s=0.0).monitored_cases(run)
    run.monitoring_limit_s = fraction_s(run, MONITORING_LIMIT_FRACTION)
    start_s = run.watch.seconds if start_s is None else start_s
    validation_s = sum(costs.case_s(case_id, 1, 0) for case_id in run.validation_cases)
    if validation_s > LARGEST_QUICK_FRACTION * run.request.max_time_s:
        run.log.say(
            f"--max-time {run.request.max_time_s:g} s is short: segmenting the "
            f"{counted(len(run.validation_cases), 'validation case')} alone may take {format_duration(validation_s)}; "
            f"settings are chosen and cases validated as far as time allows"
        )
    quick_s = replace(costs, search=QUICK_SEARCH).final_s(run, LARGEST_QUICK_FRACTION)
    reserved_s = max(costs.final_s(run, LARGEST_FINAL_FRACTION), quick_s)
    left_s = run.request.max_time_s - start_s
    seconds = fraction * max(left_s - reserved_s, LEAST_PHASE_1_FRACTION * left_s)
    return PhaseBudget(seconds=max(LEAST_PHASE_S, seconds))


def within_budget(run: FoldRun, costs: Costs, start_s: float) -> Costs:
    """The costs with the widest search that time allows; `start_s` is when phase 2 began.

    Where the stop file is there it is the narrowest.

    Choosing and the final validation are to take at most LARGEST_FINAL_FRACTION of the time budget and to leave phase 2
    at least LEAST_PHASE_2_FRACTION of it: samplers of several calls are no use to networks that had no time to learn.
    """
    if run.is_asked_to_end:
        return replace(costs, search=QUICK_SEARCH)
    if run.request.max_time_s is None:
        return costs
    budget_s = run.request.max_time_s
    for search in (FULL_SEARCH, SHORT_SEARCH):
        tried = replace(costs, search=search)
        final_s = tried.final_s(run)
        if (
            final_s <= LARGEST_FINAL_FRACTION * budget_s
            and final_s + start_s <= (1 - LEAST_PHASE_2_FRACTION) * budget_s
        ):
            return tried
        run.log.say(f"time is short: samplers of {search.most_calls} network calls are not tried")
    return replace(costs, search=QUICK_SEARCH)


def phase_2_budget(run: FoldRun, fraction: float, costs: Costs, start_s: float) -> PhaseBudget:
    """What is left; `start_s` is when phase 2 began, which may have been in an earlier session."""
    run.monitored_cases = costs.monitored_cases(run)
    run.monitoring_limit_s = fraction_s(run, MONITORING_LIMIT_FRACTION)
    total = total_iterations(run)
    if total is not None:
        return PhaseBudget(iterations=total - _phase_1_iterations(total, fraction))
    assert run.request.max_time_s is not None
    final_s = costs.final_s(run, LARGEST_QUICK_FRACTION)
    left_s = run.request.max_time_s - final_s - start_s
    least_s = min(LEAST_PHASE_2_FRACTION * run.request.max_time_s, (run.request.max_time_s - start_s) / 2)
    if left_s < least_s:
        run.log.say(
            f"choosing settings and the final validation may take {format_duration(final_s)}; they are shortened, so "
            f"that phase 2 gets {format_duration(max(LEAST_PHASE_S, least_s))}. Give more time."
        )
    return PhaseBudget(seconds=max(LEAST_PHASE_S, least_s, left_s))


def phase_iterations(run: FoldRun, trainer: type[Trainer]) -> tuple[int, int] | None:
    """Iterations of each phase; None under a time budget.

    Raises:
        UsdError: too few for two phases.
    """
    total = total_iterations(run)
    if total is None:
        return None
    fraction = phase_1_fraction(run, trainer)
    _require_both(total, fraction)
    first = _phase_1_iterations(total, fraction)
    return first, total - first


def phase_1_fraction(run: FoldRun, trainer: type[Trainer]) -> float:
    """What phase 1 takes of both phases: all of it for a segmenter, nothing where another training stands for it."""
    if not issubclass(trainer, DiffusionTrainer):
        return 1.0
    if run.request.phase_1_from is not None or run.request.phase_2_only:
        return 0.0
    return run.configuration.training.phase_1_fraction


def _require_both(total: int, fraction: float) -> None:
    if total < 2 and 0 < fraction < 1:
        raise UsdError(f"--iterations {total} leaves one of the two phases without any; give at least 2.")


def _phase_1_iterations(total: int, fraction: float) -> int:
    """Each phase gets one iteration at least, unless its fraction is 0."""
    return round(total * fraction) if fraction in (0, 1) else min(total - 1, max(1, round(total * fraction)))


def total_iterations(run: FoldRun) -> int | None:
    """Iterations of both phases; None under a time budget."""
    if run.request.max_time_s is not None:
        return None
    if run.request.iterations is not None:
        return run.request.iterations
    plan = run.configuration.training
    return (run.request.epochs or plan.num_epochs) * plan.iterations_per_epoch
