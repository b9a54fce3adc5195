"""Scores of two masks, a function each: `usd.metrics`.

    >>> usd.metrics.dice(np.array([1, 1, 0])[None], np.array([0, 1, 0])[None])
    0.6666666666666666

Masks are arrays (Z, Y, X), or (Y, X) for 2D images, of any type; what is not zero is in the mask. Values between whole
numbers, as of probabilities, are refused. Spacings follow the axes, in mm. Both masks empty, or the reference alone:
undefined (NaN), as everywhere in this package; the head of `evaluation.metrics` says why. Definitions of distances
stand at the head of `evaluation.boundary`.

All functions raise ValueError where shapes, spacing or tolerance do not fit, or a mask holds NaN or fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.arrays import plain_array
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import MM3_PER_ML
from unisegdiff_pipeline.evaluation.boundary import BoundaryScore, boundary_score, directed_distances_mm
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.lesions import LesionScore, score_lesions
from unisegdiff_pipeline.evaluation.metrics import ClassScore, score_masks

__all__ = [
    "SurfaceDistances",
    "assd",
    "dice",
    "hd",
    "hd95",
    "iou",
    "lesions",
    "precision",
    "sensitivity",
    "surface_dice",
    "surface_distances",
    "volume_error_percent",
    "volume_ml",
]


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces in mm, in no particular order; empty arrays where either mask is.

    Example:
        >>> empty = usd.metrics.surface_distances(np.zeros((4, 4)), np.ones((4, 4)), (1.0, 1.0))
        >>> empty.predicted_to_reference.size
        0

    Attributes:
        reference_to_predicted: from each surface voxel of the reference to the nearest one of the prediction.
        predicted_to_reference: the other way.
    """

    reference_to_predicted: np.ndarray
    predicted_to_reference: np.ndarray


def dice(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Dice coefficient, 2 TP / (2 TP + FP + FN), from 0 to 1.

    Example:
        >>> usd.metrics.dice(np.array([[1, 1, 0]]), np.array([[0, 1, 0]]))  # 2 * 1 / (2 + 1)
        0.6666666666666666
    """
    return _overlap(reference, predicted).dice


def iou(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union, TP / (TP + FP + FN), from 0 to 1.

    Example:
        >>> usd.metrics.iou(np.array([[1, 1, 0]]), np.array([[0, 1, 0]]))
        0.5
    """
    return _overlap(reference, predicted).iou


def sensitivity(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Fraction of the reference that is predicted, TP / (TP + FN).

    Example:
        >>> usd.metrics.sensitivity(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]))
        0.5
    """
    return _overlap(reference, predicted).sensitivity


def precision(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Fraction of the prediction that is right, TP / (TP + FP); 0 for an empty prediction.

    Example:
        >>> usd.metrics.precision(np.array([[1, 1, 0]]), np.array([[0, 1, 0]]))
        1.0
    """
    return _overlap(reference, predicted).precision


def volume_ml(mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask (Z, Y, X) in ml; of a 2D mask (Y, X) its area in mm2.

    Example:
        >>> usd.metrics.volume_ml(np.ones((10, 10, 10)), (1.0, 1.0, 2.0))  # 1000 voxels of 2 mm3
        2.0
    """
    inside, _ = _masks(mask, mask)
    geometry = grid_of(np.shape(mask), spacing_mm)
    return int(np.count_nonzero(inside)) * geometry.voxel_volume_mm3 / (1.0 if geometry.is_2d else MM3_PER_ML)


def volume_error_percent(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Predicted minus reference volume, in percent of the reference.

    Example:
        >>> usd.metrics.volume_error_percent(np.array([[1, 1, 0]]), np.array([[1, 1, 1]]))
        50.0
    """
    return _overlap(reference, predicted).volume_error_percent


def surface_distances(reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Distance of every surface voxel of one mask to the surface of the other, both ways, in mm.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], other[0, 3] = 1, 1
        >>> usd.metrics.surface_distances(one, other, spacing_mm=(1.0, 2.0)).reference_to_predicted  # 3 voxels of 2 mm
        array([6.])
    """
    masks = _masks(reference, predicted)
    spacing = grid_of(np.shape(reference), spacing_mm).spacing_mm
    if not (masks[0].any() and masks[1].any()):
        return SurfaceDistances(np.empty(0), np.empty(0))
    return SurfaceDistances(*directed_distances_mm(*masks, spacing))


def surface_dice(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> float:
    """Fraction of both surfaces that lies within a tolerance (in mm) of the other; 0 for an empty prediction.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], other[0, 1] = 1, 1
        >>> usd.metrics.surface_dice(one, other, (1.0, 2.0), tolerance_mm=2.0)
        1.0
    """
    return _boundary(reference, predicted, spacing_mm, (tolerance_mm,)).surface_dice[0]


def hd(reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Hausdorff distance in mm: the largest of all surface distances; NaN where either mask is empty.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], other[0, 3] = 1, 1
        >>> usd.metrics.hd(one, other, (1.0, 2.0))
        6.0
    """
    return _boundary(reference, predicted, spacing_mm).hd_mm


def hd95(reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in mm; NaN where either mask is empty.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], other[0, 3] = 1, 1
        >>> usd.metrics.hd95(one, other, (1.0, 2.0))
        6.0
    """
    return _boundary(reference, predicted, spacing_mm).hd95_mm


def assd(reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Average symmetric surface distance in mm, both directions pooled; NaN where either mask is empty.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], other[0, 0], other[0, 2] = 1, 1, 1  # distances 0, and back 0 and 2 voxels
        >>> usd.metrics.assd(one, other, (1.0, 3.0))
        2.0
    """
    return _boundary(reference, predicted, spacing_mm).assd_mm


def lesions(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    rule: MatchingRule | None = None,
) -> LesionScore:
    """Lesions counted and matched: sensitivity, precision, F1 and Dice over lesions.

    Example:
        >>> one, other = np.zeros((1, 5)), np.zeros((1, 5))
        >>> one[0, 0], one[0, 4], other[0, 0] = 1, 1, 1
        >>> usd.metrics.lesions(one, other, (1.0, 1.0)).lesion_sensitivity
        0.5

    Args:
        reference, predicted: masks.
        spacing_mm: of their axes.
        rule: when two lesions match; by default where they share a voxel.
    """
    masks = _masks(reference, predicted)
    return score_lesions(*masks, grid_of(np.shape(reference), spacing_mm), rule or MatchingRule())[0]


def _overlap(reference: np.ndarray, predicted: np.ndarray) -> ClassScore:
    return score_masks("mask", *_masks(reference, predicted), valid=None, voxel_ml=1.0)


def _boundary(
    reference: np.ndarray, predicted: np.ndarray, spacing_mm: Sequence[float], tolerances_mm: Sequence[float] = ()
) -> BoundaryScore:
    masks = _masks(reference, predicted)
    return boundary_score(*masks, grid_of(np.shape(reference), spacing_mm).spacing_mm, tolerances_mm)


def _masks(reference: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as boolean (Z, Y, X)."""
    reference, predicted = plain_array(reference, "reference"), plain_array(predicted, "prediction")
    require_equal_shapes(reference, predicted)
    for mask in (reference, predicted):
        if mask.dtype.kind != "f":
            continue
        if np.isnan(mask).any():
            raise ValueError("a mask holds NaN, which is neither inside nor outside; replace it")
        if (between := mask[mask != np.rint(mask)]).size:
            raise ValueError(
                f"a mask holds {between[0]:g}, but its values are whole numbers; give probabilities as the mask that "
                f"they make, such as p > 0.5"
            )
    masks = [mask != 0 for mask in (reference, predicted)]
    first, second = (mask[None] if mask.ndim == 2 else mask for mask in masks)
    return first, second


def require_equal_shapes(reference: np.ndarray, predicted: np.ndarray) -> None:
    """Raise a ValueError unless both arrays are (Z, Y, X), or (Y, X), of one shape."""
    if reference.shape != predicted.shape or reference.ndim not in (2, 3):
        raise ValueError(
            f"reference has shape {reference.shape} and prediction {predicted.shape}; they must be equal, (Z, Y, X) or "
            f"(Y, X)"
        )


def grid_of(shape: Sequence[int], spacing_mm: Sequence[float]) -> Geometry:
    """Geometry of an array (Z, Y, X) or (Y, X); a ValueError where the spacing does not follow its axes."""
    if len(spacing_mm) != len(shape) or not all(0 < value < np.inf for value in spacing_mm):
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; it must be one number above 0 for each axis of {shape}")
    z, y, x = (1.0, *map(float, spacing_mm))[-3:]
    return Geometry((z, y, x), is_2d=len(shape) == 2)
