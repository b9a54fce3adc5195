"""Several predicted masks of one case against one or several raters: do they spread as the raters do?

Masks are treated as draws from a distribution, so that an empty mask is an outcome like any other: two empty masks are
equal (IoU 1, Dice 1, distance 0) and an empty mask has nothing in common with any other (IoU 0, distance 1). This is
the convention of Kohl et al. 2018 and 2019, and it differs from the overlap of a case in
`unisegdiff_pipeline.evaluation.metrics`, where two empty masks are undefined. Only `single_sample_dice` is an overlap
of a case and follows that rule.

The distance throughout is d(a, b) = 1 - IoU(a, b), the Jaccard distance. It is of negative type (IoU is a positive
definite kernel on sets), which is what makes the energy score proper and the generalised energy distance >= 0.

Estimators of E d(s, s') over n samples come in two forms:

- V (all n^2 pairs, the pairs of a sample with itself count as 0): what most papers report; shrinks the spread by
  (n - 1) / n, so that few samples look worse than they are.
- U (the n (n - 1) pairs of different samples): unbiased, comparable between numbers of samples; may be below 0.

Everything here is a function of the pairwise IoU, computed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Words of 64 voxels looked at together: a block of 16 masks is 4 MB and stays in the cache.
BLOCK_WORDS = 1 << 15
# Voxels correlated together, so that a map needs no second copy in double precision.
BLOCK_VOXELS = 1 << 20


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Pairwise IoU of N samples and R raters of one case; two empty masks have IoU 1.

    Attributes:
        samples: between samples, (N, N).
        raters: between raters, (R, R).
        cross: of every sample with every rater, (N, R).
        rater_empty: which raters drew nothing, (R,).
    """

    samples: np.ndarray
    raters: np.ndarray
    cross: np.ndarray
    rater_empty: np.ndarray


@dataclass(frozen=True)
class GedScore:
    """Generalised energy distance squared; 0 = same distribution, lower is better.

    Attributes:
        ged_u: from pairs of different masks; unbiased, may be negative; NaN for fewer than 2 samples or raters.
        ged_v: from all pairs, as in Kohl et al. 2018; in [0, 2]; NaN without samples or raters.
    """

    ged_u: float
    ged_v: float


@dataclass(frozen=True)
class EnergyScore:
    """Energy score 2 E d(s, y) - E d(s, s'); lower is better.

    Attributes:
        energy_score_u: from pairs of different samples ("fair", Ferro 2014); NaN for fewer than 2 samples.
        energy_score_v: from all pairs; 2 d(s, y) for a single sample; NaN without samples.
    """

    energy_score_u: float
    energy_score_v: float


@dataclass(frozen=True)
class DiversityScore:
    """Everything about the samples of one class in one case; NaN where undefined, see the function of each field.

    Attributes:
        num_samples, num_raters: how many masks were compared.
        ged_u, ged_v: `generalised_energy_distance`.
        energy_score_u, energy_score_v: `energy_score`; with several raters the mean over them.
        hm_iou: `hungarian_iou`.
        d_max: `maximum_dice_matching`.
        single_sample_dice: `single_sample_dice`.
        sample_diversity, rater_diversity: mean distance between two different samples, and between two raters.
        sample_agreement: mean Dice between two different samples; above 0.995 the sampler has collapsed.
        ncc: `ncc` of the given uncertainty map with the variance of the raters.
        ncc_samples: `ncc` of the variance of the samples with the variance of the raters.
    """

    num_samples: int
    num_raters: int
    ged_u: float
    ged_v: float
    energy_score_u: float
    energy_score_v: float
    hm_iou: float
    d_max: float
    single_sample_dice: float
    sample_diversity: float
    sample_agreement: float
    rater_diversity: float
    ncc: float
    ncc_samples: float


def score_samples(
    samples: Iterable[np.ndarray],
    raters: Iterable[np.ndarray],
    uncertainty: np.ndarray | None = None,
    valid: np.ndarray | None = None,
) -> DiversityScore:
    """Score the samples of one class in one case.

    Args:
        samples: predicted boolean masks, all of one shape, any number of axes. Read one after the other and kept as
            one bit a voxel: a generator that loads a file at a time keeps memory bounded.
        raters: reference boolean masks of the same shape; a single reference is a sequence of one.
        uncertainty: map of the same shape, larger = less sure; None leaves `ncc` undefined.
        valid: boolean, the voxels over which maps are correlated; None = all. Voxels outside must be False in the
            masks already.

    Raises:
        ValueError: where shapes differ, or without any mask at all.
    """
    sample_pile, rater_pile = _pile(samples), _pile(raters)
    piles = [pile for pile in (sample_pile, rater_pile) if pile is not None]
    _check_shapes([*(pile.votes for pile in piles), *(m for m in (uncertainty, valid) if m is not None)])
    overlaps = _overlaps(sample_pile, rater_pile)
    ged, energy = generalised_energy_distance(overlaps), energy_score(overlaps)
    # One rater has no variance: no correlation is defined, and no map of a large volume need be made.
    rater_map = rater_pile.variance() if rater_pile and len(rater_pile.packed) > 1 else None
    sample_map = sample_pile.variance() if sample_pile and rater_map is not None else None
    return DiversityScore(
        num_samples=len(overlaps.samples),
        num_raters=len(overlaps.raters),
        ged_u=ged.ged_u,
        ged_v=ged.ged_v,
        energy_score_u=energy.energy_score_u,
        energy_score_v=energy.energy_score_v,
        hm_iou=hungarian_iou(overlaps),
        d_max=maximum_dice_matching(overlaps),
        single_sample_dice=single_sample_dice(overlaps),
        sample_diversity=_mean_of_pairs(1 - overlaps.samples),
        sample_agreement=_mean_of_pairs(_dice(overlaps.samples)),
        rater_diversity=_mean_of_pairs(1 - overlaps.raters),
        ncc=_ncc_or_nan(uncertainty, rater_map, valid),
        ncc_samples=_ncc_or_nan(sample_map, rater_map, valid),
    )


def pairwise_overlaps(samples: Iterable[np.ndarray], raters: Iterable[np.ndarray]) -> Overlaps:
    """IoU of every pair of masks (boolean, one shape); either side may be empty, not both.

    Raises:
        ValueError: where shapes differ, or without any mask.
    """
    sample_pile, rater_pile = _pile(samples), _pile(raters)
    _check_shapes([pile.votes for pile in (sample_pile, rater_pile) if pile is not None])
    return _overlaps(sample_pile, rater_pile)


def mean_agreement(samples: Iterable[np.ndarray]) -> float:
    """Mean Dice between two different samples (boolean, one shape), two empty ones agree; NaN for fewer than two."""
    return _mean_of_pairs(_dice(pairwise_overlaps(samples, ()).samples))


def generalised_energy_distance(overlaps: Overlaps) -> GedScore:
    """GED^2 = 2 E d(s, y) - E d(s, s') - E d(y, y') with d = 1 - IoU.

    Szekely and Rizzo 2013 (energy distance), Kohl et al. 2018, "A probabilistic U-Net", eq. 5 (for segmentation). With
    one rater E d(y, y') cannot be estimated: `ged_u` is NaN and `ged_v` equals the energy score, which see.
    """
    cross = 2 * _mean(1 - overlaps.cross)
    between_samples, between_raters = 1 - overlaps.samples, 1 - overlaps.raters
    return GedScore(
        ged_u=cross - _mean_of_pairs(between_samples) - _mean_of_pairs(between_raters),
        ged_v=cross - _mean(between_samples) - _mean(between_raters),
    )


def energy_score(overlaps: Overlaps) -> EnergyScore:
    """2 E d(s, y) - E d(s, s') with d = 1 - IoU: a proper score of a distribution by a single reference.

    Gneiting and Raftery 2007, eq. 21, times -2 (so that lower is better and the score is the generalised energy
    distance without its last term, which does not depend on the samples). Several raters: the mean of their scores.
    """
    cross = 2 * _mean(1 - overlaps.cross)
    between = 1 - overlaps.samples
    return EnergyScore(energy_score_u=cross - _mean_of_pairs(between), energy_score_v=cross - _mean(between))


def hungarian_iou(overlaps: Overlaps) -> float:
    """HM-IoU: mean IoU of the best one-to-one matching of samples and raters; 1 = same set of masks.

    Kohl et al. 2019, "A hierarchical probabilistic U-Net", appendix. Both sets are repeated to the least common
    multiple of their sizes, so that each mask has the same weight. NaN without samples or raters.
    """
    num_samples, num_raters = overlaps.cross.shape
    if num_samples == 0 or num_raters == 0:
        return math.nan
    from scipy.optimize import linear_sum_assignment

    size = math.lcm(num_samples, num_raters)
    repeated = overlaps.cross.repeat(size // num_samples, axis=0).repeat(size // num_raters, axis=1)
    return float(repeated[linear_sum_assignment(repeated, maximize=True)].mean())


def maximum_dice_matching(overlaps: Overlaps) -> float:
    """D_max: the Dice of the best sample of each rater, averaged over raters.

    Rahman et al. 2023, "Ambiguous medical image segmentation using diffusion models" (CIMD). Grows with the number of
    samples: compare equal numbers only. An empty rater has 1 if any sample is empty, else 0. NaN without samples or
    raters.
    """
    return _mean(_dice(overlaps.cross).max(axis=0)) if overlaps.cross.size else math.nan


def single_sample_dice(overlaps: Overlaps) -> float:
    """Expected Dice of one sample against one rater, over the raters that drew something; NaN where none did."""
    return _mean(_dice(overlaps.cross[:, ~overlaps.rater_empty]))


def ncc(first: np.ndarray, second: np.ndarray, valid: np.ndarray | None = None) -> float:
    """Normalised cross-correlation (Pearson's r over voxels) of two maps; 1 = unsure in the same places.

    Baumgartner et al. 2019 (PHiSeg) correlate cross-entropies; here, as in Kahl et al. 2024 (ValUES), the map of the
    prediction is correlated with the variance p (1 - p) of the raters at each voxel. NaN where a map is constant over
    the valid voxels, as the variance of raters who agree everywhere is.

    Raises:
        ValueError: where shapes differ, or a map holds NaN or infinity.
    """
    _check_shapes([first, second] if valid is None else [first, second, valid])
    x, y = (first.ravel(), second.ravel()) if valid is None else (first[valid], second[valid])
    if x.size == 0:
        return math.nan
    ends = [(float(values.min()), float(values.max())) for values in (x, y)]
    if not np.isfinite(ends).all():
        raise ValueError("a map holds NaN or infinity, which correlate with nothing; give finite numbers")
    if any(low == high for low, high in ends):
        return math.nan
    mean_x, mean_y = x.mean(dtype=np.float64), y.mean(dtype=np.float64)
    xx = yy = xy = 0.0
    for start in range(0, x.size, BLOCK_VOXELS):
        dx = x[start : start + BLOCK_VOXELS] - mean_x
        dy = y[start : start + BLOCK_VOXELS] - mean_y
        xx, yy, xy = xx + float(dx @ dx), yy + float(dy @ dy), xy + float(dx @ dy)
    return max(-1.0, min(1.0, xy / (math.sqrt(xx) * math.sqrt(yy))))


@dataclass(frozen=True, eq=False)
class _Pile:
    """Masks of one side: a row of 64-voxel words each, and how many masks hold each voxel."""

    packed: list[np.ndarray]  # (words,) of each mask, uint64
    votes: np.ndarray  # shape of a mask, uint8 or uint16

    def variance(self) -> np.ndarray:
        """p (1 - p) of the fraction p of masks that hold a voxel."""
        p = np.arange(len(self.packed) + 1) / len(self.packed)
        return (p * (1 - p)).astype(np.float32)[self.votes]


def _pile(masks: Iterable[np.ndarray]) -> _Pile | None:
    """Read masks one after the other; None where there are none."""
    packed: list[np.ndarray] = []
    votes: np.ndarray | None = None
    for mask in masks:
        inside = np.asarray(mask, dtype=bool)
        if votes is None:
            votes = np.zeros(inside.shape, dtype=np.uint8)
        _check_shapes([votes, inside])
        if len(packed) == np.iinfo(np.uint8).max:
            votes = votes.astype(np.uint16)
        votes += inside
        packed.append(_pack(inside))
    return None if votes is None else _Pile(packed, votes)


def _pack(mask: np.ndarray) -> np.ndarray:
    """One bit a voxel in 64-bit words, the last one padded with zeros."""
    bits = np.packbits(mask.ravel())
    words = np.zeros(-(-bits.size // 8), dtype=np.uint64)
    words.view(np.uint8)[: bits.size] = bits
    return words


def _overlaps(samples: _Pile | None, raters: _Pile | None) -> Overlaps:
    rows = [row for pile in (samples, raters) if pile is not None for row in pile.packed]
    if not rows:
        raise ValueError("there is no mask to compare; give at least one sample or one rater")
    packed = np.stack(rows)
    iou = _pairwise_iou(packed)
    n = 0 if samples is None else len(samples.packed)
    rater_empty = np.logical_not(packed[n:].any(axis=1))
    return Overlaps(iou[:n, :n], iou[n:, n:], iou[:n, n:], rater_empty)


def _pairwise_iou(packed: np.ndarray) -> np.ndarray:
    """IoU of all pairs of rows, (masks, words) => (masks, masks)."""
    packed = packed[:, packed.any(axis=0)]  # most of an image is background in every mask
    intersection = np.zeros((len(packed), len(packed)), dtype=np.int64)
    for start in range(0, packed.shape[1], BLOCK_WORDS):
        block = packed[:, start : start + BLOCK_WORDS]
        for i, row in enumerate(block):
            intersection[i, i:] += np.bitwise_count(block[i:] & row).sum(axis=1, dtype=np.int64)
    voxels = intersection.diagonal()
    intersection = np.maximum(intersection, intersection.T)  # only the upper triangle was counted
    union = voxels[:, None] + voxels - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def _ncc_or_nan(first: np.ndarray | None, second: np.ndarray | None, valid: np.ndarray | None) -> float:
    return math.nan if first is None or second is None else ncc(first, second, valid)


def _dice(iou: np.ndarray) -> np.ndarray:
    return 2 * iou / (1 + iou)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean over the pairs of different masks of a symmetric matrix; NaN for fewer than two masks."""
    return _mean(matrix[np.triu_indices(len(matrix), k=1)])


def _check_shapes(arrays: list[np.ndarray]) -> None:
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(f"masks and maps of one case have the shapes {sorted(set(shapes))}; they must be equal")
