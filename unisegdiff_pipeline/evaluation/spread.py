"""Do samples spread as the truth does? Coverage of volume intervals, spread against error, fractions against truth.

A reference that is one more draw of what the samples are drawn from lies at any rank among them with equal probability.
With `less` of N samples below it and `equal` at it, its place in their distribution is u, uniform between
less / (N + 1) and (less + equal + 1) / (N + 1); over the cases u is uniform on [0, 1]. So the interval of level L, the
middle L of the distribution, holds a fraction L of the references, for any N and with ties (as of empty masks), and no
quantile of few samples need be interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.bounds import FloatOrNaN
from unisegdiff_pipeline.evaluation.diversity import energy_score, pairwise_overlaps

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NUM_BINS = 10
PLACE_IN_TRUTH = 1 / 3  # `mean_place` where samples spread as the truth does: the mean of (2 u - 1)^2, u uniform
SPREAD_NAME = "spread.json"  # in validation/ of a fold


@dataclass(frozen=True)
class CaseSpread:
    """Samples of one class in one case beside its references.

    Attributes:
        case_id, class_name: of what.
        volumes: of the samples, in voxels (N,).
        references: volumes of the references, one for each annotator (R,).
        sample_distance, rater_distance: mean 1 - IoU of two samples, and of two annotators; NaN for fewer than two.
        energy: energy score of the samples (`diversity.energy_score`, unbiased).
        confidence: the largest probability of the class in the case.
        voxels, marked: for each count of samples that mark a voxel, 0 to N: how many voxels, and the sum over them of
            the fraction of annotators that mark them (N + 1,).
    """

    case_id: str
    class_name: str
    volumes: tuple[int, ...]
    references: tuple[int, ...]
    sample_distance: FloatOrNaN
    rater_distance: FloatOrNaN
    energy: FloatOrNaN
    confidence: float
    voxels: tuple[int, ...]
    marked: tuple[float, ...]

    @property
    def num_empty(self) -> int:
        """Samples without a voxel of the class."""
        return sum(volume == 0 for volume in self.volumes)


def case_spread(
    case_id: str, class_name: str, samples: Sequence[np.ndarray], references: Sequence[np.ndarray], confidence: float
) -> CaseSpread:
    """From boolean masks of one shape, at least one sample and one reference; the largest probability is given."""
    counts = np.sum(samples, axis=0, dtype=np.int64).ravel()
    voxels = np.bincount(counts, minlength=len(samples) + 1)
    marked = np.bincount(counts, np.mean(references, axis=0).ravel(), minlength=len(samples) + 1)
    overlaps = pairwise_overlaps(samples, references)
    return CaseSpread(
        case_id,
        class_name,
        tuple(int(m.sum()) for m in samples),
        tuple(int(m.sum()) for m in references),
        _mean_of_pairs(overlaps.samples),
        _mean_of_pairs(overlaps.raters),
        energy_score(overlaps).energy_score_u,
        confidence,
        tuple(voxels.tolist()),
        tuple(marked.tolist()),
    )


def _mean_of_pairs(iou: np.ndarray) -> float:
    values = 1 - iou[np.triu_indices(len(iou), k=1)]
    return float(values.mean()) if values.size else math.nan


def interval_coverage(cases: Sequence[CaseSpread], level: float) -> tuple[float, float]:
    """How often the middle `level` of the sampled volumes holds a reference, and the standard error of that.

    Every case counts the same, its annotators together. NaN without a case of at least two samples.
    """
    held = [
        np.mean([_held(case.volumes, volume, level) for volume in case.references])
        for case in cases
        if len(case.volumes) > 1 and case.references
    ]
    if not held:
        return math.nan, math.nan
    return float(np.mean(held)), math.sqrt(level * (1 - level) / len(held))


def _place(volumes: Sequence[int], reference: int) -> tuple[float, float]:
    """Between what the place u of a reference is uniform."""
    less, equal = sum(v < reference for v in volumes), sum(v == reference for v in volumes)
    return less / (len(volumes) + 1), (less + equal + 1) / (len(volumes) + 1)


def _held(volumes: Sequence[int], reference: int, level: float) -> float:
    low, high = _place(volumes, reference)
    inside = min(high, 0.5 + level / 2) - max(low, 0.5 - level / 2)
    return max(0.0, inside) / (high - low)


def spread_ratio(cases: Sequence[CaseSpread]) -> float:
    """Standard deviation of the sampled volumes over that of the error of their mean; 1 = as wide as wrong.

    sqrt((N + 1) / N mean var / mean squared error), Fortin et al. 2014, with the bias over the cases taken out of the
    error, which no spread can cover. NaN where nothing is wrong or there are fewer than two cases.
    """
    counted = [case for case in cases if len(case.volumes) > 1 and case.references]
    if len(counted) < 2:
        return math.nan
    variances = [np.var(case.volumes, ddof=1) * (1 + 1 / len(case.volumes)) for case in counted]
    errors = np.concatenate([np.subtract(case.references, np.mean(case.volumes)) for case in counted])
    error = float(np.std(errors, ddof=1))
    return float(np.sqrt(np.mean(variances))) / error if error > 0 else math.nan


def mean_place(case: CaseSpread) -> float:
    """How far from the middle of the sampled volumes the references lie: the mean of (2 u - 1)^2, from 0 to 1.

    Its mean over cases is PLACE_IN_TRUTH where samples spread as the truth does (exactly so for empty samples of empty
    references), smaller where they are too wide, larger where too narrow or biased. It has less noise than the coverage
    of any one interval, and no large object decides alone. NaN for fewer than two samples.
    """
    if len(case.volumes) < 2 or not case.references:
        return math.nan
    ends = [[2 * u - 1 for u in _place(case.volumes, volume)] for volume in case.references]
    return float(np.mean([(high**3 - low**3) / (3 * (high - low)) for low, high in ends]))


def size_score(case: CaseSpread, dims: int) -> float:
    """Continuous ranked probability score of the sampled sizes against the references', the mean over these.

    E |s - y| - E |s - s'| / 2 (Gneiting and Raftery 2007, eq. 21; pairs of different samples), of size =
    volume^(1/dims) in voxels, so that large objects do not decide alone. Proper: lowest for samples as wide as the
    truth. NaN for fewer than two samples.
    """
    sizes, references = (np.power(v, 1 / dims) for v in (case.volumes, case.references))
    if len(sizes) < 2 or not len(references):
        return math.nan
    apart = np.abs(sizes[:, None] - sizes[None])[np.triu_indices(len(sizes), k=1)].mean()
    return float(np.abs(sizes[:, None] - references[None]).mean() - apart / 2)


def volume_bias(cases: Sequence[CaseSpread]) -> float:
    """Mean sampled volume over all cases, as a multiple of that of the references; NaN where these are empty."""
    counted = [case for case in cases if case.volumes and case.references]
    total = sum(float(np.mean(case.references)) for case in counted)
    return sum(float(np.mean(case.volumes)) for case in counted) / total if total else math.nan


@dataclass(frozen=True)
class FractionBin:
    """Voxels that a fraction of the samples in one interval marks.

    Attributes:
        fraction: mean over the voxels of the fraction of samples that mark them.
        marked: mean of the fraction of annotators.
        voxels: how many.
    """

    fraction: float
    marked: float
    voxels: int


def fraction_curve(cases: Sequence[CaseSpread]) -> list[FractionBin]:
    """How often voxels are marked in truth, by the fraction of samples that mark them; empty bins are left out.

    Voxels that no sample marks make a bin of their own, and so do those that all mark.
    """
    sums = np.zeros((NUM_BINS + 2, 3))
    for case in cases:
        n = len(case.volumes)
        for count, (voxels, marked) in enumerate(zip(case.voxels, case.marked, strict=True)):
            inner = 1 + min(NUM_BINS - 1, int(count * NUM_BINS / n))
            row = 0 if count == 0 else NUM_BINS + 1 if count == n else inner
            sums[row] += voxels, voxels * count / n, marked
    return [FractionBin(f / v, m / v, int(v)) for v, f, m in sums if v > 0]


def empty_samples(cases: Sequence[CaseSpread], confidence: float) -> tuple[int, int]:
    """(empty samples, samples) of the cases in which the class is likelier somewhere than `confidence`."""
    sure = [case for case in cases if case.confidence > confidence]
    return sum(case.num_empty for case in sure), sum(len(case.volumes) for case in sure)


def mean_distances(cases: Sequence[CaseSpread]) -> tuple[float, float]:
    """Mean 1 - IoU of two samples and of two annotators, over the cases with both; NaN without one."""
    both = [case for case in cases if not math.isnan(case.sample_distance + case.rater_distance)]
    if not both:
        return math.nan, math.nan
    return float(np.mean([c.sample_distance for c in both])), float(np.mean([c.rater_distance for c in both]))


@dataclass(frozen=True)
class Spread:
    """validation/spread.json: the samples of a fold's validation cases beside their references."""

    cases: tuple[CaseSpread, ...] = ()

    def by_class(self) -> dict[str, list[CaseSpread]]:
        """Cases of each class."""
        result: dict[str, list[CaseSpread]] = {}
        for case in self.cases:
            result.setdefault(case.class_name, []).append(case)
        return result
