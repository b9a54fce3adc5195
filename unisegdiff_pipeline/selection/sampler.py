"""The sampler of the masks, chosen on the inner hold-out.

Stage A's answer to pure noise is the mean of the masks that may be, so it makes the mean. Masks are sampled from that
answer, and once again after a call where stage B begins, unless the energy score, a proper score of a set of masks
against each annotator, is significantly better with another sampler.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.comparison import is_significantly_above
from unisegdiff_pipeline.evaluation.diversity import energy_score, pairwise_overlaps
from unisegdiff_pipeline.evaluation.spread import PLACE_IN_TRUTH
from unisegdiff_pipeline.evaluation.summary import macro_mean
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.selection.field_length import field_lengths_mm, rounded_mm
from unisegdiff_pipeline.selection.hold_out import HoldOut, annotated_classes, sample_tiles, sources_of_cases, tiled
from unisegdiff_pipeline.selection.spread import annotators, masks_by_class

# Of the field that draws surfaces, as parts of that which draws objects; the first is the default. Annotators move a
# surface as a whole, the errors of an organ's do not.
SURFACE_PARTS = (1.0, 1 / 4, 1 / 8, 1 / 11, 1 / 16)
STAGE_A_CALL = SamplerSettings(method="ddim", start="stage_a", num_calls=0, lam_end=0.0)  # one call at pure noise
# From p_det, without any call.
SAMPLES_ALONE = SamplerSettings(method="ddim", start="det", num_calls=0, lam_end=0.0, draw=True)
# Draws the masks, unless another is significantly better.
DEFAULT_SAMPLER = SamplerSettings(method="hard", start="stage_a", num_calls=1, lam_end=0.0)
# The same for a network that has no stage A.
DEFAULT_SAMPLER_FROM_DET = SamplerSettings(method="hard", start="det", num_calls=2, lam_end=0.0)
OTHERS = (
    STAGE_A_CALL,
    DEFAULT_SAMPLER_FROM_DET,
    SamplerSettings(method="hard", start="stage_a", num_calls=2, lam_end=0.0),
    SamplerSettings(method="ddim", start="det", num_calls=4, lam_end=2.0),
)
SPREAD_ERRORS = 1.0  # standard errors by which sampled volumes must be too wide for another surface
SAMPLER_ERRORS = 2.0  # standard errors by which another sampler must have the better energy score


@dataclass(frozen=True)
class Search:
    """How far samplers are searched: samples from p_det and the default sampler always, and these others.

    `samplings_per_case` is about what choosing takes of a case beside `time_budget.CHOOSING_PASSES`, in times that the
    default sampler takes for its masks.
    """

    others: tuple[SamplerSettings, ...]
    samplings_per_case: float
    surface_parts: tuple[float, ...] = SURFACE_PARTS[:1]

    @property
    def most_calls(self) -> int:
        """Calls that mean and masks may take together."""
        return max(map(_calls_with_mean, (DEFAULT_SAMPLER, *self.others)))


def _calls_with_mean(sampler: SamplerSettings) -> int:
    """Calls of a sampler of masks and of the mean: stage A's answer is the first call of those that begin with it."""
    return sampler.total_calls + (sampler.start != "stage_a")


FULL_SEARCH = Search(OTHERS, 17.0, SURFACE_PARTS)
SHORT_SEARCH = Search(tuple(s for s in OTHERS if _calls_with_mean(s) <= 3), 14.0, SURFACE_PARTS)
QUICK_SEARCH = Search((), 5.0)


@dataclass(frozen=True)
class SamplerTrial:
    """A sampler and its energy scores in the cases that choose (lower is better), which are of these groups.

    In a unified data set the cases have `sources`, over which means are taken: a large one counts as a small one.
    `size_of_cases` are the scores of the sampled sizes (`size_score`), where they were compared, and `place_of_cases`
    say where the references lie among the sampled volumes (`mean_place`).
    """

    sampler: SamplerSettings
    energy_of_cases: tuple[float, ...]
    groups: tuple[str, ...] | None = None
    size_of_cases: tuple[float, ...] = ()
    place_of_cases: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """Mean over the cases; NaN without one."""
        return macro_mean(self.energy_of_cases, self.sources)

    @property
    def size(self) -> float:
        """The same of the sizes."""
        return macro_mean(self.size_of_cases, self.sources)

    def significantly_above(self, other: SamplerTrial) -> bool:
        """Whether its masks are worse than the other's beyond what chance may do."""
        return is_significantly_above(
            self.energy_of_cases, other.energy_of_cases, self.groups, self.sources, SAMPLER_ERRORS
        )

    def too_wide(self) -> bool:
        """Whether the sampled volumes spread more than the truth beyond what chance may do."""
        truth = (PLACE_IN_TRUTH,) * len(self.place_of_cases)
        return is_significantly_above(truth, self.place_of_cases, self.groups, self.sources, SPREAD_ERRORS)


def drawing(sampler: SamplerSettings, length_mm: float, surface_part: float = SURFACE_PARTS[0]) -> SamplerSettings:
    """The sampler with draws by a field of this length for objects, and one of a part of it for their surfaces."""
    surface_mm = rounded_mm(surface_part * length_mm)
    return replace(sampler, correlation_length_mm=length_mm, surface_length_mm=surface_mm, draw=True)


def default_sampler(settings: InferenceSettings) -> SamplerSettings:
    """Of masks; pure noise holds no mask to invert, as a network for the noise would have to."""
    return DEFAULT_SAMPLER_FROM_DET if settings.target == "epsilon" else DEFAULT_SAMPLER


def trajectory(sampler: SamplerSettings) -> SamplerSettings:
    """The sampler up to its end: what is drawn there and what is thresholded come of the same calls."""
    if sampler.total_calls == 0:
        return sampler
    return replace(sampler, draw=False, correlation_length_mm=0.0, surface_length_mm=None)


def try_samplers(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    cases: Mapping[str, LogitCalibration],
    search: Search,
) -> list[SamplerTrial]:
    """Draws from p_det with several lengths of the field, then draws and trajectories with the length that is taken.

    It is the planned one unless masks with another are significantly better. Those were lucky, so samplers are compared
    on other samples than the ones that chose the length.
    """
    opened = [held_out.data.open(case_id) for case_id in cases]
    groups = tuple(stored.group for stored in opened)
    sources = sources_of_cases(held_out.configuration.sources, cases)

    def trials(samplers: Sequence[SamplerSettings], first_sample: int) -> list[SamplerTrial]:
        energies = score_samplers(held_out, model, settings, samplers, cases, first_sample)
        return [SamplerTrial(s, tuple(of_cases), groups, sources=sources) for s, of_cases in energies.items()]

    without_calls = {mm: drawing(SAMPLES_ALONE, mm) for mm in field_lengths_mm(held_out, opened[0])}
    by_length = rank_samplers(
        trials(list(without_calls.values()), 0), without_calls[settings.drawn_by.correlation_length_mm]
    )
    draws = by_length[0].sampler
    able = [s for s in search.others if settings.target != "epsilon" or s.start == "det"]
    calling = [drawing(s, draws.correlation_length_mm) for s in dict.fromkeys([default_sampler(settings), *able])]
    return rank_samplers(trials([draws, *calling], settings.num_samples), calling[0]) + by_length[1:]


def score_samplers(
    held_out: HoldOut,
    model: StagedModel,
    settings: InferenceSettings,
    samplers: Sequence[SamplerSettings],
    cases: Mapping[str, LogitCalibration],
    first_sample: int = 0,
) -> dict[SamplerSettings, list[float]]:
    """Energy scores of the masks of samplers that draw at their end, case by case.

    The same calls also give the energy scores of thresholding each sample at 0.5 instead of drawing its mask. Samples
    are counted from `first_sample` on: others have other noise. `cases` says with which calibration each is predicted.
    """
    energies: dict[SamplerSettings, list[float]] = defaultdict(list)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        tiles = tiled(held_out, model, stored)
        raters, annotated = annotators(stored), annotated_classes(held_out, stored)
        for sampler in samplers:
            tried = replace(settings.calibrated(calibration), sampler=sampler, mask_sampler=None)
            prediction = sample_tiles(held_out, tiles, tried, stored, keep_soft=True, first_sample=first_sample)
            numbers = range(prediction.num_samples)
            masks = (prediction.sample(i) for i in numbers)
            energies[sampler].append(_energy(held_out, raters, masks, annotated))
            if sampler.total_calls and sampler.method != "hard":
                soft = (prediction.soft_sample(i) for i in numbers)
                energies[trajectory(sampler)].append(_energy(held_out, raters, soft, annotated))
    return dict(energies)


def _energy(held_out: HoldOut, raters: np.ndarray, samples: Iterator[Tensor], annotated: frozenset[str]) -> float:
    """Mean over the annotated classes of the energy score of one case."""
    scheme = held_out.labels
    masks = masks_by_class((scheme.decode(sample.numpy()) for sample in samples), scheme)
    references = masks_by_class(raters, scheme)  # without ignored voxels, which are of no class
    valid = ~scheme.ignored(raters[0])
    scores = [
        energy_score(pairwise_overlaps([mask & valid for mask in masks[name]], references[name])).energy_score_u
        for name in scheme.names
        if name in annotated
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
