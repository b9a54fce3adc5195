"""What is chosen on the inner hold-out: temperature, sampler, segmenter weight, and the threshold of the mask.

The temperature of p_det is fitted on the very cases that then compare p_det with what the denoiser makes of them, which
nothing was fitted on. So each of them is predicted with the temperature that the other patients' cases have.

Stage A's answer to pure noise is the mean of the masks that may be, so it makes the mean, mixed with p_det by the
segmenter weight. Masks are sampled from that answer, and once again after a call where stage B begins, unless the
energy score, a proper score of a set of masks against each annotator, is significantly better with another sampler. The
cases are few, and what the best of many candidates gains on a dozen of them is mostly luck; so each choice has a
default, and the burden of proof lies with the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.diffusion.coding import (
    NO_CALIBRATION,
    LogitCalibration,
    calibrate,
    cross_entropy,
    cross_entropy_of_probabilities,
    foreground_log_odds,
    probabilities_from_logits,
)
from unisegdiff_pipeline.diffusion.samplers import LENGTH_PER_REACH, SamplerSettings
from unisegdiff_pipeline.evaluation.comparison import mean_gain
from unisegdiff_pipeline.evaluation.diversity import energy_score, pairwise_overlaps
from unisegdiff_pipeline.evaluation.spread import PLACE_IN_TRUTH, mean_place, size_score
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.settings import DECISIONS, Decision, InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, sample_case
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.components import ANNOTATED
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.hold_out import HoldOut, score_on_plan_grid, tiled
from unisegdiff_pipeline.selection.spread import annotators, spread_of_case

DIVISORS = tuple(np.geomspace(0.5, 8.0, 33).tolist())
SOFT_CAPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the log odds of foreground
SOFT_CAP_GAIN = 0.005  # of the loss in voxels that are found; below it there is no ceiling
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS_VOXELS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # of the smooth field of coherent draws, in voxels of the plan
# A shorter field draws pieces of objects; with a longer one all objects that are in doubt come and go together.
RADII_PER_LENGTH = LENGTH_PER_REACH
# Of the field that draws surfaces, as parts of that which draws objects; the first is the default. Annotators move a
# surface as a whole, the errors of an organ's do not.
SURFACE_PARTS = (1.0, 1 / 4, 1 / 8, 1 / 11, 1 / 16)
FALLBACK_LENGTH_VOXELS = 16.0  # where nothing is annotated
MOST_MEASURED_CASES = 200
STAGE_A_CALL = SamplerSettings(method="ddim", start="stage_a", num_calls=0, lam_end=0.0)  # one call at pure noise
# From p_det, without any call.
DRAWS_ALONE = SamplerSettings(method="ddim", start="det", num_calls=0, lam_end=0.0, draw=True)
# Draws the masks, unless another is clearly better.
DEFAULT_SAMPLER = SamplerSettings(method="hard", start="stage_a", num_calls=1, lam_end=0.0)
# The same for a network that has no stage A.
DEFAULT_SAMPLER_FROM_DET = SamplerSettings(method="hard", start="det", num_calls=2, lam_end=0.0)
OTHERS = (
    STAGE_A_CALL,
    DEFAULT_SAMPLER_FROM_DET,
    SamplerSettings(method="hard", start="stage_a", num_calls=2, lam_end=0.0),
    SamplerSettings(method="ddim", start="det", num_calls=4, lam_end=2.0),
)
DEFAULT_SEGMENTER_WEIGHT = 0.25
SPREAD_ERRORS = 1.0  # standard errors by which sampled volumes must be too wide for another surface
SAMPLER_ERRORS = 2.0  # standard errors by which another sampler must have the better energy score
LIKELIHOOD_ERRORS = 1.0  # the same for another segmenter weight and the likelihood
DICE_AT_STAKE = 0.01  # loss against the plain segmenter that one standard error has to exclude
DICE_ERRORS = 2.0  # standard errors by which Dice must be below the best to rule out a way to make the mask
DICE_TOLERANCE = 0.002  # so much less Dice than the best has nobody sees, however small the standard error
# Patients with annotated objects that a choice needs; fewer leave the default. (A single case gave a temperature of 8
# and probabilities that never reached 0.57.)
FEWEST_FOR_CALIBRATION = 4
FEWEST_FOR_SETTINGS = 6  # sampler, segmenter weight, threshold and spread
VOXELS_PER_CASE = 20_000  # near foreground, and as many elsewhere
NEAR_FOREGROUND = 0.05
MARGIN_VOXELS = 4
FLOOR = 1e-4


@dataclass(frozen=True)
class Search:
    """How far samplers are searched: draws from p_det and the usual sampler always, and these others.

    `calls_per_case` is about what choosing takes of a case beside `costs.CHOOSING_PASSES`, in network calls.
    """

    others: tuple[SamplerSettings, ...]
    calls_per_case: float
    surface_parts: tuple[float, ...] = SURFACE_PARTS[:1]

    @property
    def most_calls(self) -> int:
        """Calls that mean and masks may take together."""
        return max(map(_calls_with_mean, (DEFAULT_SAMPLER, *self.others)))


def _calls_with_mean(sampler: SamplerSettings) -> int:
    """Calls of a sampler of masks and of the mean: stage A's answer is the first call of those that begin with it."""
    return sampler.total_calls + (sampler.start != "stage_a")


FULL_SEARCH = Search(OTHERS, 27.0, SURFACE_PARTS)  # two calls for each of the surfaces
SHORT_SEARCH = Search(tuple(s for s in OTHERS if _calls_with_mean(s) <= 3), 22.0, SURFACE_PARTS)
QUICK_SEARCH = Search((), 5.0)


@dataclass(frozen=True)
class SamplerTrial:
    """A sampler and its energy scores in the cases that choose (lower is better), which are of these groups.

    `size_of_cases` are the scores of the sampled sizes (`size_score`), where they were compared, and `place_of_cases`
    say where the references lie among the sampled volumes (`mean_place`).
    """

    sampler: SamplerSettings
    energy_of_cases: tuple[float, ...]
    groups: tuple[str, ...] | None = None
    size_of_cases: tuple[float, ...] = ()
    place_of_cases: tuple[float, ...] = ()

    @property
    def energy(self) -> float:
        """Mean over the cases; NaN without one."""
        return mean_of_defined(self.energy_of_cases)

    def significantly_above(self, other: SamplerTrial) -> bool:
        """Whether its masks are worse than the other's beyond what chance may do."""
        return is_significantly_above(self.energy_of_cases, other.energy_of_cases, self.groups, SAMPLER_ERRORS)

    def too_wide(self) -> bool:
        """Whether the sampled volumes spread more than the truth beyond what chance may do."""
        truth = (PLACE_IN_TRUTH,) * len(self.place_of_cases)
        return is_significantly_above(truth, self.place_of_cases, self.groups, SPREAD_ERRORS)


@dataclass(frozen=True)
class MeanTrial:
    """A way to make the mask, and the Dice and negative log-likelihood that it reached on the hold-out.

    Both are given case by case, Dice as the mean over the classes of a case, NaN where none is defined; all trials have
    the same cases, of these groups (patients).
    """

    sampler: SamplerSettings
    segmenter_weight: float
    decision: Decision
    dice_of_cases: tuple[float, ...]
    nll_of_cases: tuple[float, ...]
    groups: tuple[str, ...] | None = None

    @property
    def dice(self) -> float:
        """Mean over the cases where Dice is defined; NaN without one."""
        return mean_of_defined(self.dice_of_cases)

    @property
    def nll(self) -> float:
        """Mean over the cases that have voxels which count; NaN without one."""
        return mean_of_defined(self.nll_of_cases)

    def gain(self, other: MeanTrial) -> tuple[float, float]:
        """Mean difference of Dice to another trial over the same cases, and its standard error."""
        return mean_gain(self.dice_of_cases, other.dice_of_cases, self.groups)

    def significantly_above(self, other: MeanTrial) -> bool:
        """Whether its likelihood loss is higher than the other's beyond what chance may do."""
        return is_significantly_above(self.nll_of_cases, other.nll_of_cases, self.groups, LIKELIHOOD_ERRORS)


def is_significantly_above(a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None, errors: float) -> bool:
    """Whether a lies above b by more than so many standard errors; never where too few cases tell."""
    difference, error = mean_gain(a, b, groups)
    return 0 < errors * error < difference


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what was tried, best first; other lengths of the field than the one taken stand last.

    `calibrations` are those that the cases were predicted with. `warning` says what too few patients left at its
    default; nothing was tried then, or the temperature was not fitted either.
    """

    settings: InferenceSettings
    calibrations: Mapping[str, LogitCalibration]
    samplers: tuple[SamplerTrial, ...]
    means: tuple[MeanTrial, ...]
    warning: str = ""


@dataclass(frozen=True)
class _Voxels:
    """Some voxels of a case (V,): flat indices, how many voxels each stands for, and its coded label (K, V)."""

    indices: Tensor
    weights: Tensor
    target: Tensor


@dataclass(frozen=True)
class FittedCalibration:
    """The temperature of p_det, and for each held-out case the one that cases of all other groups (patients) give.

    The latter make p_det on a held-out case what it will be on a new one.
    """

    of_all: LogitCalibration
    of_others: Mapping[str, LogitCalibration]


def num_informative(held_out: HoldOut, cases: Sequence[str]) -> int:
    """Patients (groups) among the cases for whom anything is annotated: an empty case tells nothing of objects."""
    return len({stored.group for stored in map(held_out.data.open, cases) if len(_radii_mm(stored))})


def too_few(patients: int) -> str:
    """What stays at its default with so few patients, and why; empty where they suffice."""
    if patients >= FEWEST_FOR_SETTINGS:
        return ""
    left, needed = "sampler, segmenter weight, threshold and spread of the samples", f"{FEWEST_FOR_SETTINGS} are needed"
    if patients < FEWEST_FOR_CALIBRATION:
        left = f"temperature, {left}"
        needed = f"{FEWEST_FOR_CALIBRATION} are needed for the temperature, {FEWEST_FOR_SETTINGS} for the others"
    shown = f"{counted(patients, 'held-out patient')} with annotated objects"
    return f"{left} are the defaults and not chosen: {shown} are too few ({needed})"


def choose_calibration(held_out: HoldOut, model: StagedModel, cases: Sequence[str]) -> FittedCalibration:
    """The temperatures of p_det with the least negative log-likelihood of whole held-out cases.

    Of each case voxels near foreground and voxels elsewhere are drawn, and weighted by how many they stand for. With
    several annotators each counts. Fewer than FEWEST_FOR_TEMPERATURE patients with objects leave it at 1.
    """
    if num_informative(held_out, cases) < FEWEST_FOR_CALIBRATION:
        return FittedCalibration(NO_CALIBRATION, dict.fromkeys(cases, NO_CALIBRATION))
    logits, target, weights, lengths = held_out_logits(held_out, model, cases)
    groups = [held_out.data.open(case_id).group for case_id in cases]
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    owners = torch.tensor([numbers[group] for group in groups]).repeat_interleave(torch.tensor(lengths))
    of_all, without = fit_calibrations(logits, target, weights, held_out.labels.coding, owners, len(numbers))
    of_others = {case_id: without[numbers[group]] for case_id, group in zip(cases, groups, strict=True)}
    return FittedCalibration(of_all, of_others)


def held_out_logits(
    held_out: HoldOut, model: StagedModel, cases: Sequence[str], near_only: bool = False
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Logits of p_det and coded labels (1, K, V) at some voxels of held-out cases, the weights of the voxels (V,), and
    how many voxels are of each case.

    Args:
        held_out, model: as trained.
        cases: where to look.
        near_only: leave out the voxels far from all foreground.
    """
    logits, targets, weights = [], [], []
    generator = np.random.default_rng(held_out.seed)
    for case_id in cases:
        stored = held_out.data.open(case_id)
        tiles = tiled(held_out, model, stored)
        z = tiles.det_logits()[(slice(None), *tiles.grid.inner)].cpu()
        p = probabilities_from_logits(z[None], held_out.labels.coding)[0]
        chosen = _voxels(p, held_out, stored, generator, near_only)
        logits.append(z.flatten(1)[:, chosen.indices])
        targets.append(chosen.target)
        weights.append(chosen.weights)
    counts = [len(w) for w in weights]
    return torch.cat(logits, dim=1)[None], torch.cat(targets, dim=1)[None], torch.cat(weights), counts


def fit_calibrations(
    logits: Tensor, target: Tensor, weights: Tensor, coding: Coding, owners: Tensor, num_groups: int
) -> tuple[LogitCalibration, list[LogitCalibration]]:
    """The likeliest of TEMPERATURES and CEILINGS for all voxels, and for those of all groups but each.

    Losses are sums over voxels, so one pass over them gives every group's share. A single group has no others, and
    gets the temperature of all.

    Args:
        logits, target: (1, K, V).
        weights: (V,).
        owners: (V,), the number of the group that a voxel belongs to, from 0 to `num_groups` - 1.
    """

    def losses(tried: Sequence[LogitCalibration], part: Tensor | slice) -> Tensor:
        """(len(tried), num_groups), of some voxels."""
        z, x, weight, owner = logits[..., part], target[..., part], weights[part].double(), owners[part]
        table = torch.zeros(len(tried), num_groups, dtype=torch.float64)
        for row, calibration in zip(table, tried, strict=True):
            row.index_add_(0, owner, weight * cross_entropy(calibrate(z, coding, calibration), x, coding)[0])
        return table

    # Every voxel is divided by one of the two (of regions each channel), so that each can be fitted alone.
    found = (foreground_log_odds(logits, coding) > 0).any(dim=1)[0]
    backgrounds = [LogitCalibration(1.0, value) for value in DIVISORS]
    foregrounds = [LogitCalibration(value, 1.0, soft_cap) for soft_cap in (None, *SOFT_CAPS) for value in DIVISORS]
    of_background, of_foreground = losses(backgrounds, slice(None)), losses(foregrounds, found)
    handicap = torch.tensor([1.0 if t.soft_cap else 1.0 - SOFT_CAP_GAIN for t in foregrounds], dtype=torch.float64)
    counts, counts_found = (torch.bincount(v, minlength=num_groups) for v in (owners, owners[found]))

    def best(groups: Tensor) -> LogitCalibration:
        """Of the voxels of some groups (num_groups,)."""
        if not counts[groups].any():
            return LogitCalibration()
        background = backgrounds[int(of_background[:, groups].sum(dim=1).argmin())].background
        if not counts_found[groups].any():
            return LogitCalibration(background=round(background, 3))
        chosen = foregrounds[int((of_foreground[:, groups].sum(dim=1) * handicap).argmin())]
        return LogitCalibration(round(chosen.foreground, 3), round(background, 3), chosen.soft_cap)

    of_all = best(torch.ones(num_groups, dtype=torch.bool))
    if num_groups < 2:
        return of_all, [of_all] * num_groups
    return of_all, [best(torch.arange(num_groups) != group) for group in range(num_groups)]


def choose_settings(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    cases: Sequence[str],
    search: Search = FULL_SEARCH,
) -> Choice:
    """Temperature, the sampler of the masks, then segmenter weight and decision, on held-out cases.

    Args:
        held_out, model: as trained.
        settings: the defaults (`default_settings`), whose field is as long as planned.
        cases: held-out ones to choose on; too few patients among them (`too_few`) leave the default settings.
        search: samplers to try.
    """
    fitted = choose_calibration(held_out, model, cases)
    settings = replace(settings, calibration=fitted.of_all)
    if warning := too_few(num_informative(held_out, cases)):
        return Choice(settings, fitted.of_others, (), (), warning)
    samplers = _try_samplers(held_out, model, settings, fitted.of_others, search)
    if len(search.surface_parts) > 1 and samplers[0].sampler.surface_length_mm is not None:
        surfaces = _try_surfaces(held_out, model, settings, samplers[0].sampler, fitted.of_others, search.surface_parts)
        samplers = [surfaces[0], *samplers[1:], *surfaces[1:]]
    means = rank_means(try_means(held_out, model, with_samplers(settings, samplers[0].sampler), fitted.of_others))
    chosen = replace(
        with_samplers(settings, samplers[0].sampler, means[0].segmenter_weight), decision=means[0].decision
    )
    return Choice(chosen, fitted.of_others, tuple(samplers), tuple(means))


def default_settings(held_out: HoldOut, settings: InferenceSettings) -> InferenceSettings:
    """The usual answers, before anything is chosen, or where a fold holds no case out."""
    return with_samplers(settings, drawing(default_sampler(settings), planned_length_mm(held_out)))


def drawing(sampler: SamplerSettings, length_mm: float, surface_part: float = SURFACE_PARTS[0]) -> SamplerSettings:
    """The sampler with draws by a field of this length for objects, and one of a part of it for their surfaces."""
    surface_mm = round(surface_part * length_mm, 3)
    return replace(sampler, correlation_length_mm=length_mm, surface_length_mm=surface_mm, draw=True)


def default_sampler(settings: InferenceSettings) -> SamplerSettings:
    """Of masks; pure noise holds no mask to invert, as a network for the noise would have to."""
    return DEFAULT_SAMPLER_FROM_DET if settings.target == "epsilon" else DEFAULT_SAMPLER


def with_samplers(
    settings: InferenceSettings, masks: SamplerSettings, segmenter_weight: float = DEFAULT_SEGMENTER_WEIGHT
) -> InferenceSettings:
    """The settings with a sampler of the masks, and stage A for the mean where there is one and anything of it counts.

    A network for the noise has no stage A: the masks' own sampler makes the mean.
    """
    own = segmenter_weight == 1 or settings.target == "epsilon" or _trajectory(masks) == STAGE_A_CALL
    return replace(
        settings,
        segmenter_weight=segmenter_weight,
        sampler=masks if own else STAGE_A_CALL,
        mask_sampler=None if own else masks,
    )


def _try_samplers(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    cases: Mapping[str, LogitCalibration],
    search: Search,
) -> list[SamplerTrial]:
    """Draws from p_det with several lengths of the field, then draws and trajectories with the length that is taken.

    It is the planned one unless draws with another are clearly better; those draws were lucky, so with it all draw
    other masks than chose it.
    """
    opened = [held_out.data.open(case_id) for case_id in cases]
    groups = tuple(stored.group for stored in opened)
    without_calls = {mm: drawing(DRAWS_ALONE, mm) for mm in field_lengths_mm(held_out, opened[0])}
    found = score_samplers(held_out, model, settings, list(without_calls.values()), cases)
    trials = [SamplerTrial(s, tuple(energies), groups) for s, energies in found.items()]
    by_length = rank_samplers(trials, without_calls[settings.drawn_by.correlation_length_mm])
    draws = by_length[0].sampler
    able = [s for s in search.others if settings.target != "epsilon" or s.start == "det"]
    calling = [drawing(s, draws.correlation_length_mm) for s in dict.fromkeys([default_sampler(settings), *able])]
    found = score_samplers(held_out, model, settings, [draws, *calling], cases, first_sample=settings.num_samples)
    drawn = [SamplerTrial(s, tuple(energies), groups) for s, energies in found.items()]
    return rank_samplers(drawn, calling[0]) + by_length[1:]


def _try_surfaces(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    sampler: SamplerSettings,
    cases: Mapping[str, LogitCalibration],
    parts: Sequence[float],
) -> list[SamplerTrial]:
    """A sampler with fields of several lengths for the surfaces, the one that is taken first.

    How much a sampled volume varies hangs on it. The default, the first of `parts`, stays unless its volumes are too
    wide. That is asked of the places of the references, since a dozen cases tell it by several standard errors where
    they tell the scores of two lengths apart by one or two; no other length costs anything where it is not so.
    """

    tried = [drawing(sampler, sampler.correlation_length_mm, part) for part in parts]
    trials = _score_surfaces(held_out, model, settings, tried[:1], cases)
    if trials[0].too_wide():
        trials += _score_surfaces(held_out, model, settings, tried[1:], cases)
    return rank_surfaces(trials)


def _score_surfaces(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    samplers: Sequence[SamplerSettings],
    cases: Mapping[str, LogitCalibration],
) -> list[SamplerTrial]:
    """Samplers with their energy, sizes and places in each case, means over its classes; all draw with equal noise."""
    dims, groups = held_out.configuration.network.dims, []
    scores: dict[SamplerSettings, list[np.ndarray]] = defaultdict(list)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        groups.append(stored.group)
        tiles, raters = tiled(held_out, model, stored), annotators(stored)
        for one in samplers:
            with_one = replace(settings, calibration=calibration, sampler=one, mask_sampler=None)
            prediction = _sampled(held_out, tiles, with_one, stored, first_sample=2 * settings.num_samples)
            spreads = spread_of_case(prediction, raters, held_out.labels, case_id)
            scores[one].append(np.mean([(s.energy, size_score(s, dims), mean_place(s)) for s in spreads], axis=0))
    columns = {one: np.transpose(rows).tolist() for one, rows in scores.items()}
    return [
        SamplerTrial(one, tuple(energies), tuple(groups), tuple(sizes), tuple(places))
        for one, (energies, sizes, places) in columns.items()
    ]


def rank_surfaces(trials: Sequence[SamplerTrial]) -> list[SamplerTrial]:
    """Trials by the score of the sizes; those whose masks are clearly worse than the first one's, the default, last."""
    return sorted(trials, key=lambda t: (t.significantly_above(trials[0]), mean_of_defined(t.size_of_cases)))


def planned_length_mm(held_out: HoldOut) -> float:
    """Of the smooth field: what is nearest to RADII_PER_LENGTH median radii of the annotated objects trained on.

    Radii are those of discs or, in volumes, balls of the same size; each annotator's objects count.
    """
    step = -(-len(held_out.train_cases) // MOST_MEASURED_CASES)
    opened = [held_out.data.open(case_id) for case_id in held_out.train_cases[::step]]
    radii = np.concatenate([_radii_mm(stored) for stored in opened])
    lengths = field_lengths_mm(held_out, opened[0])
    if not len(radii):
        return lengths[LENGTHS_VOXELS.index(FALLBACK_LENGTH_VOXELS)]
    aim = RADII_PER_LENGTH * float(np.median(radii))
    return min(lengths, key=lambda length: abs(np.log(length / aim)))


def _radii_mm(stored: StoredCase) -> np.ndarray:
    """Of the objects that annotators drew in a case (N,)."""
    table, spacing_mm = stored.components, stored.properties.spacing_mm
    counted = (table.class_index != ANNOTATED) & ((table.row > 0) | (stored.num_rows == 1))
    num_voxels = table.num_voxels[counted].astype(np.float64)
    if stored.image.shape[1] == 1:
        return np.sqrt(num_voxels * np.prod(spacing_mm[1:]) / np.pi)
    return np.cbrt(num_voxels * np.prod(spacing_mm) * 3 / (4 * np.pi))


def field_lengths_mm(held_out: HoldOut, stored: StoredCase) -> list[float]:
    """LENGTHS_VOXELS on the grid of a case."""
    spacing_mm = stored.properties.spacing_mm[-held_out.configuration.network.dims :]
    unit_mm = float(np.prod(spacing_mm)) ** (1 / len(spacing_mm))
    return [round(voxels * unit_mm, 3) for voxels in LENGTHS_VOXELS]


def _trajectory(sampler: SamplerSettings) -> SamplerSettings:
    """The sampler up to its end: what is drawn and what is cut there come of the same calls."""
    if sampler.total_calls == 0:
        return sampler
    return replace(sampler, draw=False, correlation_length_mm=0.0, surface_length_mm=None)


def score_samplers(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    samplers: Sequence[SamplerSettings],
    cases: Mapping[str, LogitCalibration],
    first_sample: int = 0,
) -> dict[SamplerSettings, list[float]]:
    """Energy scores of the masks of samplers that draw at their end, case by case.

    The same calls also give the energy scores of cutting each sample at 0.5 instead of drawing its mask. Samples are
    counted from `first_sample` on: others have other noise. `cases` says with which temperature each is predicted.
    """
    energies: dict[SamplerSettings, list[float]] = defaultdict(list)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        tiles = tiled(held_out, model, stored)
        raters = annotators(stored)
        for sampler in samplers:
            tried = replace(settings, calibration=calibration, sampler=sampler, mask_sampler=None)
            prediction = _sampled(held_out, tiles, tried, stored, keep_soft=True, first_sample=first_sample)
            numbers = range(prediction.num_samples)
            energies[sampler].append(_energy(held_out, raters, (prediction.sample(i) for i in numbers)))
            if sampler.total_calls and sampler.method != "hard":
                soft = (prediction.soft_sample(i) for i in numbers)
                energies[_trajectory(sampler)].append(_energy(held_out, raters, soft))
    return dict(energies)


def _energy(held_out: HoldOut, raters: np.ndarray, samples: Iterator[Tensor]) -> float:
    """Mean over the classes of the energy score of one case."""
    scheme = held_out.labels
    masks: dict[str, list[np.ndarray]] = defaultdict(list)
    for sample in samples:
        for name, mask in scheme.class_masks(scheme.decode(sample.numpy())):
            masks[name].append(mask)
    references: dict[str, list[np.ndarray]] = defaultdict(list)
    for row in raters:
        for name, mask in scheme.class_masks(row):
            references[name].append(mask & ~scheme.ignored(row))
    ignored = scheme.ignored(raters[0])
    scores = [
        energy_score(pairwise_overlaps([m & ~ignored for m in masks[name]], references[name])).energy_score_u
        for name in scheme.names
    ]
    return float(np.mean(scores))


def rank_samplers(trials: Sequence[SamplerTrial], sampler: SamplerSettings) -> list[SamplerTrial]:
    """Trials by energy, the default sampler before them all unless the best is significantly better."""
    ranked = sorted(trials, key=lambda trial: trial.energy)
    default = next(trial for trial in ranked if trial.sampler == sampler)
    if not default.significantly_above(ranked[0]):
        ranked.remove(default)
        ranked.insert(0, default)
    return ranked


def try_means(
    held_out: HoldOut, model: StagedModel, settings: InferenceSettings, cases: Mapping[str, LogitCalibration]
) -> list[MeanTrial]:
    """Every segmenter weight and every threshold of the mean, for the samplers of `settings`, on held-out cases.

    `cases` says with which temperature each is predicted.
    """
    scheme, sampler = held_out.labels, settings.sampler
    weights = WEIGHTS if sampler.total_calls else (1.0,)  # without calls the samples' mean is p_det
    dice: dict[tuple[float, Decision], list[float]] = defaultdict(list)
    losses: dict[float, list[float]] = defaultdict(list)
    groups: list[str] = []
    generator = np.random.default_rng(held_out.seed)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        groups.append(stored.group)
        tried = replace(settings, calibration=calibration)
        prediction = _sampled(held_out, tiled(held_out, model, stored), tried, stored)
        voxels = _voxels(prediction.p_det, held_out, stored, generator)
        masks = [scheme.decode(prediction.sample(i).numpy()) for i in range(prediction.num_samples)]
        for w in weights:
            p = prediction.probabilities(w)
            q = p.flatten(1)[:, voxels.indices].clamp(FLOOR, 1 - FLOOR)[None]
            loss = cross_entropy_of_probabilities(q, voxels.target[None], scheme.coding)[0]
            losses[w].append(float((loss * voxels.weights).sum() / voxels.weights.sum()))  # NaN without a voxel
            for decision in DECISIONS:
                scores = score_on_plan_grid(held_out, stored, decided_probabilities(p, masks, scheme, decision))
                dice[w, decision].append(mean_of_defined(score.dice for score in scores))
    return [
        MeanTrial(sampler, w, decision, tuple(found), tuple(losses[w]), tuple(groups))
        for (w, decision), found in dice.items()
    ]


def rank_means(trials: Sequence[MeanTrial], dice_errors: float = DICE_ERRORS) -> list[MeanTrial]:
    """Trials, best first.

    Standard errors of the paired differences decide (Breiman et al. 1984, their rule for trees): by one of them masks
    may not lose DICE_AT_STAKE against the plain segmenter's (weight 1, threshold 0.5), nor by `dice_errors` and by
    DICE_TOLERANCE be worse than the best that is left, which of ten ways is mostly the luckiest. Of those the one with
    DEFAULT_SEGMENTER_WEIGHT comes first, unless another is likelier by LIKELIHOOD_ERRORS. The threshold for the highest
    Dice has to gain one standard error against 0.5. Where the hold-out says nothing (no foreground at all), the plain
    segmenter comes first.
    """
    halves = {trial.segmenter_weight: trial for trial in trials if trial.decision == "half"}

    def may_win(trial: MeanTrial) -> bool:
        gain, error = trial.gain(halves[1.0])
        if gain - error < -DICE_AT_STAKE:
            return False
        gain, error = trial.gain(halves[trial.segmenter_weight])
        return trial.decision == "half" or gain > error

    def loss(trial: MeanTrial) -> float:
        return np.inf if np.isnan(trial.nll) else trial.nll

    able = [t for t in trials if may_win(t)]
    best = max(able, key=lambda t: np.nan_to_num(t.dice))
    gains = {t: best.gain(t) for t in able}
    near = [t for t in able if gains[t][0] <= max(dice_errors * gains[t][1], DICE_TOLERANCE)]
    likeliest = min(near, key=loss)

    def is_default(trial: MeanTrial) -> bool:
        return (
            trial.segmenter_weight == DEFAULT_SEGMENTER_WEIGHT
            and not np.isnan(trial.nll)
            and not trial.significantly_above(likeliest)
        )

    def order(trial: MeanTrial) -> tuple[bool, float, float, float]:
        return not is_default(trial), loss(trial), -np.nan_to_num(trial.dice), -trial.segmenter_weight

    near.sort(key=order)
    return near + sorted((t for t in trials if t not in near), key=lambda t: -np.nan_to_num(t.dice))


def _sampled(
    held_out: HoldOut,
    tiles: TiledCase,
    settings: InferenceSettings,
    stored: StoredCase,
    keep_soft: bool = False,
    first_sample: int = 0,
) -> CasePrediction:
    return sample_case(
        tiles,
        settings,
        case_id=stored.case_id,
        seed=held_out.seed,
        sample_ids=range(first_sample, first_sample + settings.num_samples),
        spacing_mm=stored.properties.spacing_mm,
        keep_soft=keep_soft,
    )


def _mean_target(held_out: HoldOut, stored: StoredCase) -> Tensor:
    """Coded labels (K, Z, Y, X), the mean over the annotators where there are several."""
    rows = [held_out.labels.encode(row) for row in annotators(stored)]
    return torch.from_numpy(np.stack(rows).astype(np.float32)).mean(dim=0)


def _voxels(
    p: Tensor, held_out: HoldOut, stored: StoredCase, generator: np.random.Generator, near_only: bool = False
) -> _Voxels:
    """Voxels near foreground that anybody sees, and voxels elsewhere, at most VOXELS_PER_CASE each.

    Ignored voxels are left out.
    """
    target = _mean_target(held_out, stored)
    first = held_out.labels.foreground_offset
    seen = (p[first:].amax(dim=0) > NEAR_FOREGROUND) | (target[first:].amax(dim=0) > 0)
    side = [1 if length == 1 else 2 * MARGIN_VOXELS + 1 for length in seen.shape]
    margin = [length // 2 for length in side]
    near = functional.max_pool3d(seen[None, None].float(), side, 1, margin)[0, 0] > 0
    counted = torch.ones_like(near)
    if held_out.labels.ignore_value is not None:
        counted &= ~torch.from_numpy(held_out.labels.ignored(stored.labels[0:1][0]))
    indices, weights = [], []
    for part in (near & counted,) if near_only else (near & counted, ~near & counted):
        found = part.flatten().nonzero()[:, 0]
        kept = found
        if len(found) > VOXELS_PER_CASE:
            kept = found[torch.from_numpy(generator.choice(len(found), VOXELS_PER_CASE, replace=False))]
        indices.append(kept)
        weights.append(torch.full((len(kept),), len(found) / max(len(kept), 1)))
    places = torch.cat(indices)
    return _Voxels(places, torch.cat(weights), target.flatten(1)[:, places])
