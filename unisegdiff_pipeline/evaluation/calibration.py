"""Are predicted probabilities right: likelihood, Brier score, calibration error and reliability, one class at a time.

Definitions, with p the predicted probability of the class in a voxel and y what the reference says of it (0 or 1):

- Region: all scores are means over the voxels within 5 mm of the union of reference and prediction (within 1.5 % of
  the image diagonal where the spacing is not known). On whole volumes the background makes every method look perfect.
- NLL = mean of -(y ln p + (1 - y) ln(1 - p)), in nats, with p clipped to [1e-4, 1 - 1e-4]: probabilities are stored in
  half precision, which cannot say much more near 1, and a single wrong voxel at p = 0 would make the mean infinite.
- Brier = mean of (p - y)^2, one class (half of the sum over both outcomes).
- Calibration error = sum over bins of (fraction of the voxels) * |mean p - mean y|, from 0 to 1. Expected (ECE): 15
  bins of equal width, [k/15, (k+1)/15), the last one closed. Adaptive: 15 bins of equal mass. Both are per class: p is
  the probability of the class, not of whichever class is the likeliest.
- Several raters: y is the fraction of raters who marked the voxel. NLL, Brier and the calibration bins then hold the
  means over raters (each rater is one draw of the truth), so a Brier score of 0 is out of reach where raters disagree.
- Empty masks: where reference and prediction are both empty there is no region, and all scores are undefined (NaN).
  Where only one is empty the scores are defined, unlike Dice: confidence in a false positive has its price.

Both calibration errors come from sums in 972 fixed fine bins (960 of equal width, the outermost halved six times, since
most voxels lie near 0 or 1). The sums of cases add up to those of the data set in bounded memory. ECE is exact for any
number of bins that divides 960; a border of an equal-mass bin inside a fine bin shares its voxels out in proportion,
which moves a border by less than 1/960 and gives voxels of equal probability equal treatment.

Sources: Brier 1950; Naeini et al. 2015 (ECE); Nixon et al. 2019, arXiv:1904.01685 (per class, equal mass); Jungo et
al. 2020, doi:10.3389/fnins.2020.00282 (segmentation: why regions rather than whole volumes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import nonzero_box
from unisegdiff_pipeline.evaluation.dilation import dilated

DEFAULT_MARGIN_MM = 5.0
DIAGONAL_FRACTION = 0.015
PROBABILITY_FLOOR = 1e-4
NUM_BINS = 15
# Softmax in half precision misses 1 by this much; anything further outside [0, 1] is no probability.
RANGE_TOLERANCE = 1e-3

UNIFORM_BINS = 960
HALVINGS = 6
CELLS = UNIFORM_BINS << HALVINGS  # the narrowest fine bin is one cell wide
# Sums of multiples of this are exact in double precision up to 2^29 voxels, in any order: see ReliabilityCounts.
QUANTUM = 2.0**-24
BLOCK_VOXELS = 1_000_000


def _fine_bin_starts() -> np.ndarray:
    width = CELLS // UNIFORM_BINS
    halved = [1 << k for k in range(HALVINGS)]
    return np.array(sorted({*range(0, CELLS, width), *halved, *(CELLS - cell for cell in halved)}))


FINE_BIN_STARTS = _fine_bin_starts()  # in cells


@dataclass(frozen=True, eq=False)
class ReliabilityCounts:
    """What a reliability curve needs, summed over voxels within fixed fine bins of the predicted probability.

    Probabilities enter as multiples of 2^-24, so that the sums are exact and independent of the order of cases.

    Attributes:
        count: voxels per fine bin, int64, (972,).
        confidence: sum of their predicted probabilities, float64, (972,).
        reference: sum of y (number of voxels that hold the class), float64, (972,).
    """

    count: np.ndarray
    confidence: np.ndarray
    reference: np.ndarray

    @property
    def num_voxels(self) -> int:
        """Voxels in all bins."""
        return int(self.count.sum())


@dataclass(frozen=True)
class ReliabilityBin:
    """One point of a reliability curve.

    Attributes:
        count: voxels; a fraction where equal-mass bins share a fine bin.
        mean_confidence: mean predicted probability; NaN without voxels.
        frequency: mean of y, the fraction that holds the class; NaN without voxels.
    """

    count: float
    mean_confidence: float
    frequency: float


@dataclass(frozen=True, eq=False)
class CaseCalibration:
    """Probabilistic scores of one class in one case; NaN where the region is empty.

    Attributes:
        nll: mean negative log-likelihood, nats a voxel.
        brier: mean squared error of the probability, 0 to 1.
        ece: expected calibration error, 15 bins of equal width, 0 to 1.
        adaptive_ece: the same with 15 bins of equal mass.
        num_voxels: voxels in the region.
        counts: sums for the reliability curve and the errors of the whole data set; see `merge`.
    """

    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    num_voxels: int
    counts: ReliabilityCounts


def evaluation_region(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    spacing_known: bool = True,
    margin_mm: float = DEFAULT_MARGIN_MM,
) -> np.ndarray:
    """Voxels in which probabilities of a class are judged: the union of both masks and a margin around it.

    Where the spacing is not known the margin is 1.5 % of the image diagonal, in voxels and at least one; in 2D (Z = 1)
    the diagonal is that of the plane. Distances are between voxel centres: slices further apart than the margin are not
    reached.

    Args:
        reference: boolean, (Z, Y, X); of several raters, the union of their masks.
        predicted: boolean, same shape.
        spacing_mm: (Z, Y, X), not used unless `spacing_known`.

    Returns:
        boolean mask of the same shape; all False where both masks are empty.
    """
    union = reference | predicted
    if spacing_known:
        return dilated(union, margin_mm, spacing_mm)
    diagonal = math.hypot(*(size for size in union.shape if size > 1))
    return dilated(union, max(1.0, DIAGONAL_FRACTION * diagonal), (1.0,) * union.ndim)


def case_calibration(
    probability: np.ndarray,
    reference: np.ndarray | Sequence[np.ndarray],
    region: np.ndarray,
    valid: np.ndarray | None = None,
) -> CaseCalibration:
    """Score the probability of one class within a region; the module says how each score is defined.

    Extra memory stays below about 100 MB for any size of image.

    Args:
        probability: of the class, any floating type, (Z, Y, X), in [0, 1]; what half precision adds is clipped.
        reference: boolean mask, or a sequence of masks of several raters.
        region: boolean mask of the voxels that count; see `evaluation_region`.
        valid: False for voxels that do not count even so (ignored in the reference); None = all count.

    Raises:
        ValueError: where shapes differ, or the region holds values that are no probabilities (NaN, logits, percents).
    """
    raters = [reference] if isinstance(reference, np.ndarray) else list(reference)
    for other in (*raters, region, *([] if valid is None else [valid])):
        if other.shape != probability.shape:
            raise ValueError(f"probability has shape {probability.shape} and a mask {other.shape}; they must be equal")
    counts, likelihoods, squares = no_counts(), [], []
    for p, y in _blocks(probability, raters, region, valid):
        counts = merge((counts, _count(p, y)))
        likelihoods.append(_sum_nll(p, y))
        squares.append(_sum_squares(p, y))
    num_voxels = counts.num_voxels
    return CaseCalibration(
        nll=math.fsum(likelihoods) / num_voxels if num_voxels else math.nan,
        brier=math.fsum(squares) / num_voxels if num_voxels else math.nan,
        ece=calibration_error(counts),
        adaptive_ece=calibration_error(counts, equal_mass=True),
        num_voxels=num_voxels,
        counts=counts,
    )


def no_counts() -> ReliabilityCounts:
    """Counts of no voxel, where merging starts."""
    size = len(FINE_BIN_STARTS)
    return ReliabilityCounts(np.zeros(size, np.int64), np.zeros(size), np.zeros(size))


def merge(parts: Iterable[ReliabilityCounts]) -> ReliabilityCounts:
    """Counts of several cases together, voxel by voxel; exact, so equal for any order and grouping of the cases."""
    total = no_counts()
    for part in parts:
        total.count[:] += part.count
        total.confidence[:] += part.confidence
        total.reference[:] += part.reference
    return total


def calibration_error(counts: ReliabilityCounts, num_bins: int = NUM_BINS, equal_mass: bool = False) -> float:
    """Calibration error of one class, expected or (`equal_mass`) adaptive; NaN without voxels.

    Args:
        num_bins: must divide 960 unless `equal_mass`; fewer voxels than bins make as many equal-mass bins as voxels.
    """
    count, confidence, reference = _grouped(counts, num_bins, equal_mass)
    total = count.sum()
    return float(np.abs(confidence - reference).sum() / total) if total else math.nan


def reliability_bins(
    counts: ReliabilityCounts, num_bins: int = NUM_BINS, equal_mass: bool = False
) -> tuple[ReliabilityBin, ...]:
    """Points of the reliability curve, from low to high probability, from the bins of `calibration_error`.

    Empty bins of equal width are kept, with NaN, so that bin k is [k / num_bins, (k + 1) / num_bins). Without voxels
    there are no bins of equal mass.
    """
    return tuple(
        ReliabilityBin(float(n), float(c / n) if n else math.nan, float(r / n) if n else math.nan)
        for n, c, r in zip(*_grouped(counts, num_bins, equal_mass), strict=True)
    )


def _grouped(counts: ReliabilityCounts, num_bins: int, equal_mass: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels, sum of p and sum of y in each of a few bins."""
    if num_bins < 1 or (not equal_mass and UNIFORM_BINS % num_bins):
        raise ValueError(f"num_bins = {num_bins} must be a divisor of {UNIFORM_BINS}, such as {NUM_BINS}")
    if not equal_mass:
        first = np.searchsorted(FINE_BIN_STARTS, np.arange(num_bins) * (CELLS // num_bins))
        count, confidence, reference = (
            np.add.reduceat(x, first) for x in (counts.count, counts.confidence, counts.reference)
        )
        return count, confidence, reference
    total = counts.num_voxels
    num_bins = min(num_bins, total)
    borders = np.arange(num_bins + 1) * (total / max(1, num_bins))
    cumulative = np.cumsum(counts.count)
    count, confidence, reference = (
        np.diff(np.interp(borders, np.append(0, cumulative), np.append(0, np.cumsum(x))))
        for x in (counts.count, counts.confidence, counts.reference)
    )
    return count, confidence, reference


def _blocks(
    probability: np.ndarray, raters: Sequence[np.ndarray], region: np.ndarray, valid: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The region's p and y as vectors of double precision, from a few slices, or rows of one slice, at a time."""
    box = nonzero_box(region)
    if box is None:
        return
    z_side, y_side, (x_low, x_high) = box
    rows = max(1, BLOCK_VOXELS // (x_high - x_low))
    for y in _pieces(y_side, rows):
        for z in _pieces(z_side, max(1, rows // (y_side[1] - y_side[0]))):
            block = z, y, slice(x_low, x_high)
            inside = region[block] if valid is None else region[block] & valid[block]
            marked = raters[0][block][inside].astype(float)
            for rater in raters[1:]:
                marked += rater[block][inside]
            yield _checked(probability[block][inside]), marked / len(raters)


def _pieces(side: tuple[int, int], step: int) -> Iterator[slice]:
    low, high = side
    for start in range(low, high, step):
        yield slice(start, min(start + step, high))


def _checked(values: np.ndarray) -> np.ndarray:
    p = values.astype(float)
    if len(p) and not (p.min() >= -RANGE_TOLERANCE and p.max() <= 1 + RANGE_TOLERANCE):
        raise ValueError(
            f"probabilities run from {p.min():.4g} to {p.max():.4g}; they must lie in [0, 1]. Are these logits, "
            "percents or integers of a picture?"
        )
    return p.clip(0, 1)


def _count(p: np.ndarray, y: np.ndarray) -> ReliabilityCounts:
    cell = np.minimum((p * CELLS).astype(np.int64), CELLS - 1)
    sums = (np.bincount(cell, weights, CELLS) for weights in (None, np.rint(p / QUANTUM), np.rint(y / QUANTUM)))
    count, confidence, reference = (np.add.reduceat(x, FINE_BIN_STARTS) for x in sums)
    return ReliabilityCounts(count, confidence * QUANTUM, reference * QUANTUM)


def _sum_nll(p: np.ndarray, y: np.ndarray) -> float:
    q = p.clip(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    return -float((y * np.log(q) + (1 - y) * np.log1p(-q)).sum())


def _sum_squares(p: np.ndarray, y: np.ndarray) -> float:
    """Sum over voxels of the mean over raters of (p - y_rater)^2 = p^2 - 2 p y + y, because y_rater^2 = y_rater."""
    return float(((p - y) ** 2 + y * (1 - y)).sum())
