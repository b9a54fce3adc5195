"""Target spacing, order of the axes and median image size, by nnU-Net's rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.fingerprint import Fingerprint

ANISOTROPY = 3.0
_MUCH_COARSER = 1.5


@dataclass(frozen=True)
class SpacingPlan:
    """Spacing and size of the resampled images, and the median spacing before, with reasons.

    Axes are in plan order already, the coarsest first.
    """

    axis_order: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    median_spacing_mm: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    median_shape_unresampled: tuple[float, float, float]
    spacing_reason: str
    order_reason: str


def plan_spacing(fingerprint: Fingerprint) -> SpacingPlan:
    """Median spacing, but the 10th percentile on a coarse axis with few slices; coarsest axis first."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases], float)
    shapes = np.array([case.shape_after_crop for case in fingerprint.cases], float)
    target, spacing_reason = _target_spacing(spacings, shapes)
    order, order_reason = _axis_order(target, fingerprint.is_2d)
    resampled = resampled_shapes(shapes, spacings, target)
    return SpacingPlan(
        axis_order=order,
        spacing_mm=_permuted(target, order),
        median_spacing_mm=_permuted(np.median(spacings, axis=0), order),
        median_shape=_permuted(np.median(resampled, axis=0), order),
        median_shape_unresampled=_permuted(np.median(shapes, axis=0), order),
        spacing_reason=spacing_reason,
        order_reason=order_reason,
    )


def image_size(shape: Sequence[float], dims: int) -> float:
    """Edge of the square, or for three dimensions of the cube, that is as large as an image of `shape` (Z, Y, X)."""
    return math.prod(shape[-dims:]) ** (1 / dims)


def resampled_shapes(shapes: np.ndarray, spacings: np.ndarray, target: Sequence[float] | np.ndarray) -> np.ndarray:
    """Shapes (N, 3) after resampling from `spacings` (N, 3) to `target` (3,)."""
    return np.maximum(np.rint(shapes * spacings / np.asarray(target)), 1)


def _target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, str]:
    target = np.median(spacings, axis=0)
    size = np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY * target[others].max()
    few_slices = size[worst] * ANISOTROPY < size[others].min()
    if not (coarse and few_slices):
        return target, "median spacing of the training cases; no axis is both over 3 times coarser and 3 times shorter"
    # The median would blur the cases with thinner slices, which have few slices already
    fine = float(np.percentile(spacings[:, worst], 10))
    target[worst] = max(fine, float(target[others].max()) + 1e-5)
    return target, (
        f"median spacing, but the 10th percentile on axis {'ZYX'[worst]}, which is over 3 times coarser and has over "
        f"3 times fewer voxels than the others: its median would interpolate away slices of the finer cases"
    )


def _axis_order(target: np.ndarray, is_2d: bool) -> tuple[tuple[int, int, int], str]:
    if is_2d:
        return (0, 1, 2), "2D images"
    coarsest = int(np.argmax(target))
    second = float(np.sort(target)[1])
    # nnU-Net turns images for any difference: 1.0 x 1.4 x 1.4 mm axial slices then become coronal ones
    if coarsest == 0 or target[coarsest] < _MUCH_COARSER * second:
        return (0, 1, 2), "kept: no other axis is over 1.5 times coarser than both of the others"
    rest = [axis for axis in range(3) if axis != coarsest]
    reason = f"axis {'ZYX'[coarsest]} is over 1.5 times coarser than the others and comes first"
    return (coarsest, rest[0], rest[1]), reason


def _permuted(values: np.ndarray, order: tuple[int, int, int]) -> tuple[float, float, float]:
    return float(values[order[0]]), float(values[order[1]]), float(values[order[2]])


def triple(values: Iterable[float]) -> tuple[float, float, float]:
    """One number an axis."""
    z, y, x = values
    return float(z), float(y), float(x)
