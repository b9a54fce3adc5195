"""Cropping to the non-zero region, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisegdiff_pipeline.core.geometry import Box, box_slices, nonzero_box
from unisegdiff_pipeline.core.scratch import Scratch

__all__ = ["crop_to_nonzero", "nonzero_mask", "uncrop"]


def crop_to_nonzero(image: np.ndarray) -> tuple[np.ndarray, Box]:
    """Crop (C, Z, Y, X) to the box in which any channel is non-zero; a view, and the box."""
    box = nonzero_box(image)
    return image[(slice(None), *box_slices(box))], box


def uncrop(
    values: np.ndarray, box: Box, shape: Sequence[int], fill: float = 0.0, scratch: Scratch | None = None
) -> np.ndarray:
    """Put (C, *shape of the box) back into an array (C, *shape) filled with `fill`, which `scratch` makes."""
    if all(edge == (0, n) for edge, n in zip(box, shape, strict=True)):
        return values
    scratch = scratch or Scratch()
    whole = scratch.empty((len(values), *shape), values.dtype)
    z, y, x = box_slices(box)
    for channel, inner in zip(whole, values, strict=True):
        for row in range(shape[0]):
            channel[row] = fill
            if z.start <= row < z.stop:
                channel[row, y, x] = inner[row - z.start]
        scratch.release()
    return whole


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Voxels (Z, Y, X) where any channel of (C, Z, Y, X) is non-zero, holes filled.

    A hole is background that does not reach the border of the array (through faces). Labelling the background finds
    them in one pass; scipy's binary_fill_holes grows the outside voxel layer by voxel layer.
    """
    import cc3d

    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    if mask.all():
        return mask
    planar = mask.shape[0] == 1  # a 2D image lies at the border everywhere along Z
    empty = ~(mask[0] if planar else mask)
    regions = np.asarray(cc3d.connected_components(empty, connectivity=4 if planar else 6))
    outside = np.zeros(int(regions.max()) + 1, bool)
    for axis in range(regions.ndim):
        for side in (0, -1):
            outside[np.unique(regions.take(side, axis=axis))] = True
    outside[0] = False  # 0 is the mask itself
    filled = ~outside[regions]
    return filled[None] if planar else filled
