"""Spacings that cannot be: lost in a conversion, or in another unit than millimetres.

A wrong spacing is no property of a file alone: voxels of 0.001 mm are right for microscopy and wrong beside images of
1 mm. Resampling would make one voxel of such an image, or fill the memory, so it is refused beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_RATIO = 20.0  # thick CT slices have 10 mm where thin ones have 0.5
SMALLEST_MM, LARGEST_MM = 1e-6, 1e3  # a nanometre, a metre
_UNIT_RATIOS = (500.0, 2000.0)  # one unit taken for the next is a factor of 1000


def spacing_problem(
    spacing_mm: Sequence[float], shape: Sequence[int], expected_mm: Sequence[float | None], beside: str
) -> str | None:
    """Say in words why a spacing cannot be right; None where it may be.

    Args:
        spacing_mm: along some axes.
        shape: voxels along these axes; the spacing along an axis of a single voxel says nothing.
        expected_mm: of the images that it should be like, along the same axes; None where it is not known.
        beside: what these images are, "the training images" for instance.
    """
    used = [(s, e) for s, n, e in zip(spacing_mm, shape, expected_mm, strict=True) if n > 1]
    if any(not SMALLEST_MM <= s <= LARGEST_MM for s, _ in used):
        return f"voxels of {_millimetres(spacing_mm)} cannot be: allowed are {SMALLEST_MM:g} to {LARGEST_MM:g} mm"
    ratios = [s / e for s, e in used if e is not None]
    worst = max(ratios, key=lambda ratio: max(ratio, 1 / ratio), default=1.0)
    factor = max(worst, 1 / worst)
    if factor <= MAX_RATIO:
        return None
    known = [e for e in expected_mm if e is not None]
    how = "larger" if worst > 1 else "smaller"
    return (
        f"voxels of {_millimetres(spacing_mm)} are {factor:.0f} times {how} than those of {beside}, "
        f"{_millimetres(known)} (allowed is a factor of {MAX_RATIO:g}); {_likely(spacing_mm, worst)}"
    )


def _likely(spacing_mm: Sequence[float], ratio: float) -> str:
    low, high = _UNIT_RATIOS
    if low < 1 / ratio < high:
        return "the spacing seems to be in metres"
    if low < ratio < high:
        return "the spacing seems to be in micrometres"
    if all(s == 1 for s in spacing_mm):
        return "a spacing of 1 along all axes often means that it was lost in a conversion"
    return "it seems to have been lost or changed in a conversion"


def _millimetres(spacing_mm: Sequence[float]) -> str:
    return f"{' x '.join(f'{s:.4g}' for s in spacing_mm)} mm"
