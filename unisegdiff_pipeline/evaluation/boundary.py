"""Distances between the surfaces of two masks, in mm: HD, HD95, ASSD and surface Dice.

Definitions, the same for all four scores:

- Surface of a mask: its voxels with a face neighbour (6 in 3D, 4 in 2D) outside the mask. What lies beyond the image
  counts as outside, so that a mask cut off by the image has a surface there. MONAI and medpy take the same voxels.
- Distance of a surface voxel: Euclidean, between voxel centres, to the nearest surface voxel of the other mask.
  Identical masks have distance 0 everywhere; masks one voxel apart differ by the spacing.
- Every surface voxel counts the same, as in MONAI, medpy and Metrics Reloaded. DeepMind's surface-distance weights by
  the area of a triangulated surface and measures between its elements, which is another scale: on 30 hippocampi of
  1 mm voxels against copies deformed to a Dice of 0.95, its ASSD is 0.08 mm where this one is 0.24 mm. Its values and
  these must not be compared.
- D(A, B) is the set of distances of the surface voxels of A to the surface of B; all scores are symmetric:

      HD           = max(max D(A, B), max D(B, A))
      HD95         = max(p95 D(A, B), p95 D(B, A)),  linear interpolation between the ordered distances
      ASSD         = (sum D(A, B) + sum D(B, A)) / (|D(A, B)| + |D(B, A)|)
      surface Dice = (#{D(A, B) <= t} + #{D(B, A) <= t}) / (|D(A, B)| + |D(B, A)|)

  HD95 takes the larger of the two percentiles, as MONAI does (and DeepMind's, of its other distances); medpy takes the
  percentile of both sets pooled, which lets the mask with the larger surface outvote the other. ASSD and surface Dice
  are pooled as in MONAI, Metrics Reloaded and medpy (0.5.2); panoptica averages the two directed values, which differs
  where the surfaces differ in size.

Empty masks follow the rule of the package (evaluation/metrics.py): everything is undefined (NaN) where the reference is
empty; where only the prediction is empty, distances are undefined and surface Dice is 0.

In 2D (Z = 1, or another axis of length 1, as of a single sagittal slice) the surface is the outline in the plane; the
spacing across it has no influence.

Sources: Huttenlocher et al. 1993 (HD); Heimann et al. 2009 (ASSD); Nikolov et al. 2021, doi:10.2196/26151 (surface
Dice); Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z (pitfalls, recommendations).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box
from unisegdiff_pipeline.evaluation.dilation import SPACING_ROUNDING

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

# Surface voxels searched at a time; each takes about 100 bytes. A body of 1.5 l has some 90 000 (0.8 mm).
BLOCK_VOXELS = 1_000_000
Block = tuple[int, int]


@dataclass(frozen=True)
class BoundaryScore:
    """How far the surfaces of two masks lie apart; the module says how each value is defined.

    Attributes:
        hd_mm: Hausdorff distance; NaN where either mask is empty.
        hd95_mm: larger of the two directed 95th percentiles; NaN where either mask is empty.
        assd_mm: average symmetric surface distance; NaN where either mask is empty.
        surface_dice: one value from 0 to 1 per tolerance, in the order asked for; NaN where the reference is empty, 0
            where only the prediction is.
    """

    hd_mm: float
    hd95_mm: float
    assd_mm: float
    surface_dice: tuple[float, ...]


def boundary_score(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    tolerances_mm: Sequence[float] = (1.0, 2.0),
) -> BoundaryScore:
    """Compare the surfaces of two masks.

    Memory: three bytes per voxel of the box around both masks, and about 100 bytes per surface voxel up to a million.

    Args:
        reference: boolean mask (Z, Y, X); 2D images have Z = 1.
        predicted: boolean mask of the same shape.
        spacing_mm: voxel size (Z, Y, X).
        tolerances_mm: distances up to which a surface voxel counts as right, one surface Dice each.

    Raises:
        ValueError: where masks are not boolean, shapes differ or are not 3D, a spacing is not above 0, or a tolerance
            is below 0.
    """
    _check(reference, predicted, spacing_mm, tolerances_mm)
    has_reference, has_prediction = bool(reference.any()), bool(predicted.any())
    masks, spacing = _in_plane(reference, predicted, spacing_mm)
    box = nonzero_box(*masks)
    if box is None or not (has_reference and has_prediction):
        dice = 0.0 if has_reference else math.nan
        return BoundaryScore(math.nan, math.nan, math.nan, (dice,) * len(tolerances_mm))
    one, other = (surface(mask[box_slices(box)]) for mask in masks)
    there = _directed(one, other, spacing, tolerances_mm)
    back = _directed(other, one, spacing, tolerances_mm)
    total = there.voxels + back.voxels
    return BoundaryScore(
        hd_mm=max(there.largest_mm, back.largest_mm),
        hd95_mm=max(there.percentile_95_mm, back.percentile_95_mm),
        assd_mm=(there.sum_mm + back.sum_mm) / total,
        surface_dice=tuple((a + b) / total for a, b in zip(there.within, back.within, strict=True)),
    )


def directed_distances_mm(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """D(reference, predicted) and D(predicted, reference) of two masks that are not empty, in no particular order.

    Args:
        reference, predicted, spacing_mm: as for `boundary_score`.
    """
    _check(reference, predicted, spacing_mm, ())
    masks, spacing = _in_plane(reference, predicted, spacing_mm)
    box = nonzero_box(*masks)
    assert box is not None, "both masks are empty"
    one, other = (surface(mask[box_slices(box)]) for mask in masks)
    return surface_distances_mm(one, other, spacing), surface_distances_mm(other, one, spacing)


def rater_tolerance_mm(rater_masks: Sequence[np.ndarray], spacing_mm: Sequence[float]) -> float:
    """Distance that separates human raters of one object, for use as tolerance of surface Dice.

    It is the median, over all pairs of raters, of the pair's average symmetric surface distance (ASSD). Pairs of which
    a rater marked nothing have no distance and are left out. Taking the tolerance from the raters follows Nikolov et
    al. 2021 (doi:10.2196/26151), who use the 95th percentile of the distances between raters over several scans; the
    average of a single case is less than that, hence stricter, and does not grow with one outlying patch.

    Args:
        rater_masks: boolean masks (Z, Y, X) of one shape, one per rater.
        spacing_mm: voxel size (Z, Y, X).

    Returns:
        Tolerance in mm; 0 for identical masks; NaN with fewer than two raters who marked anything.

    Raises:
        ValueError: as boundary_score.
    """
    pairs = itertools.combinations(rater_masks, 2)
    distances = [boundary_score(one, other, spacing_mm, ()).assd_mm for one, other in pairs]
    defined = [distance for distance in distances if not math.isnan(distance)]
    return float(np.median(defined)) if defined else math.nan


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a boolean mask (any number of axes) with a face neighbour that is not in it or lies beyond the array.

    The same as `mask & ~scipy.ndimage.binary_erosion(mask)`, several times faster.
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        ahead, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        ahead[1:] &= source[:-1]
        ahead[:-1] &= source[1:]
        ahead[0] = ahead[-1] = False
    inner ^= mask  # inner is a part of mask, so this leaves mask without inner
    return inner


@dataclass(frozen=True)
class _Directed:
    """What the scores need of D(A, B); the distances themselves are dropped, as there may be millions."""

    voxels: int
    sum_mm: float
    largest_mm: float
    percentile_95_mm: float
    within: tuple[int, ...]


def _directed(
    source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], tolerances_mm: Sequence[float]
) -> _Directed:
    distances = surface_distances_mm(source, target, spacing_mm)
    within = [int(np.count_nonzero(distances <= limit * (1 + SPACING_ROUNDING))) for limit in tolerances_mm]
    return _Directed(
        voxels=distances.size,
        sum_mm=float(distances.sum()),
        largest_mm=float(distances.max()),
        percentile_95_mm=float(np.percentile(distances, 95, overwrite_input=True)),
        within=tuple(within),
    )


def surface_distances_mm(source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """D(source, target) of two non-empty surfaces of equal shape, in no particular order.

    A search tree of the surface voxels alone, where others transform the whole box: several times faster, and the
    memory grows with the surface. Blocks of planes bound it for masks that are all surface, such as noise.
    """
    distances = np.zeros(np.count_nonzero(source))
    apart = source & ~target  # voxels of both surfaces have distance 0
    blocks = _blocks(target)

    @functools.lru_cache(maxsize=2)
    def tree(block: Block) -> cKDTree:
        from scipy.spatial import cKDTree

        # Balancing sorts by coordinates that have few distinct values here, which costs time and gains none.
        return cKDTree(_positions_mm(target, block, spacing_mm), balanced_tree=False, compact_nodes=False)

    filled = 0
    for block in _blocks(apart):
        positions = _positions_mm(apart, block, spacing_mm)
        nearest = np.full(len(positions), np.inf)
        for gap, other in sorted((_gap(block, other), other) for other in blocks):
            open_ = nearest > gap * spacing_mm[0]
            if not open_.any():
                break
            found, _ = tree(other).query(positions[open_], distance_upper_bound=nearest[open_].max())
            nearest[open_] = np.minimum(nearest[open_], found)
        distances[filled : filled + len(nearest)] = nearest
        filled += len(nearest)
    return distances


def _blocks(mask: np.ndarray) -> list[Block]:
    """Runs of planes (first, last + 1) that hold all voxels of a mask, each at most BLOCK_VOXELS or one plane."""
    counts = np.count_nonzero(mask.reshape(len(mask), -1), axis=1)
    blocks: list[Block] = []
    held = 0
    for plane in np.flatnonzero(counts).tolist():
        if not blocks or held + counts[plane] > BLOCK_VOXELS:
            blocks.append((plane, plane + 1))
            held = 0
        blocks[-1] = (blocks[-1][0], plane + 1)
        held += counts[plane]
    return blocks


def _gap(one: Block, other: Block) -> int:
    """Planes from one block to the other; 0 where they touch or overlap in range."""
    return max(0, one[0] - other[1] + 1, other[0] - one[1] + 1)


def _positions_mm(mask: np.ndarray, block: Block, spacing_mm: Sequence[float]) -> np.ndarray:
    """Centres (N, axes) of the voxels of a mask in a block of planes."""
    indices = np.nonzero(mask[block[0] : block[1]])
    positions = np.empty((len(indices[0]), mask.ndim))
    for axis, index in enumerate(indices):
        positions[:, axis] = index
    positions[:, 0] += block[0]
    positions *= spacing_mm
    return positions


def _in_plane(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """Both masks and their spacing without the first axis of length 1; as they are where there is none."""
    kept = list(range(reference.ndim))
    if 1 in reference.shape:
        kept.remove(reference.shape.index(1))
    shape = [reference.shape[axis] for axis in kept]
    return [mask.reshape(shape) for mask in (reference, predicted)], tuple(spacing_mm[axis] for axis in kept)


def _check(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerances_mm: Sequence[float]
) -> None:
    if reference.shape != predicted.shape or reference.ndim != 3:
        raise ValueError(
            f"reference has shape {reference.shape} and prediction {predicted.shape}; they must be equal, (Z, Y, X)"
        )
    if reference.dtype != bool or predicted.dtype != bool:
        raise ValueError(f"masks have dtypes {reference.dtype} and {predicted.dtype}; both must be bool")
    if len(spacing_mm) != 3 or not all(0 < value < math.inf for value in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; it must be three numbers above 0, (Z, Y, X)")
    if not all(0 <= value < math.inf for value in tolerances_mm):
        raise ValueError(f"tolerances_mm is {tuple(tolerances_mm)}; every tolerance must be a number from 0 on")
