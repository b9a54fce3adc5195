"""Distances between the surfaces of two masks, in mm: HD, HD95, ASSD and surface Dice.

Definitions, the same for all four scores:

- Surface of a mask: its voxels with a face neighbour (6 in 3D, 4 in 2D) outside the mask. What lies beyond the image
  counts as outside, so that a mask cut off by the image has a surface there. MONAI and medpy take the same voxels.
- Distance of a surface voxel: Euclidean, between voxel centres, to the nearest surface voxel of the other mask.
  Identical masks have distance 0 everywhere; masks one voxel apart differ by the spacing.
- Every surface voxel counts the same, as in MONAI, medpy and Metrics Reloaded. DeepMind's surface-distance weights by
  the area of a triangulated surface instead, which gives slightly different means, percentiles and surface Dice.
- D(A, B) is the set of distances of the surface voxels of A to the surface of B; all scores are symmetric:

      HD           = max(max D(A, B), max D(B, A))
      HD95         = max(p95 D(A, B), p95 D(B, A)),  linear interpolation between the ordered distances
      ASSD         = (sum D(A, B) + sum D(B, A)) / (|D(A, B)| + |D(B, A)|)
      surface Dice = (#{D(A, B) <= t} + #{D(B, A) <= t}) / (|D(A, B)| + |D(B, A)|)

  HD95 is that of MONAI and of DeepMind's surface-distance; medpy takes the percentile of both sets pooled, which lets
  the mask with the larger surface outvote the other. ASSD is pooled as in MONAI and Metrics Reloaded; medpy averages
  the two directed means, which differs where the surfaces differ in size.

Empty masks follow the rule of the package (evaluation/metrics.py): everything is undefined (NaN) where the reference is
empty; where only the prediction is empty, distances are undefined and surface Dice is 0.

In 2D (Z = 1) the surface is the outline in the plane; the spacing along Z has no influence.

Sources: Huttenlocher et al. 1993 (HD); Heimann et al. 2009 (ASSD); Nikolov et al. 2021, doi:10.2196/26151 (surface
Dice); Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z (pitfalls, recommendations).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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

    Args:
        reference: boolean mask (Z, Y, X); 2D images have Z = 1.
        predicted: boolean mask of the same shape.
        spacing_mm: voxel size (Z, Y, X).
        tolerances_mm: distances up to which a surface voxel counts as right, one surface Dice each.

    Raises:
        ValueError: where shapes differ or are not 3D, or where a spacing or tolerance is no usable number.
    """
    raise NotImplementedError


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
    raise NotImplementedError
