"""Cropping to the non-zero region, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices, nonzero_box, whole_box
from unisegdiff_pipeline.core.components import label_components
from unisegdiff_pipeline.core.scratch import Scratch

__all__ = ["crop_to_nonzero", "nonzero_mask", "uncrop"]


def crop_to_nonzero(image: np.ndarray) -> tuple[np.ndarray, Box]:
    """Crop (C, Z, Y, X) to the box in which any channel is non-zero; a view, and the box."""
    box = nonzero_box(*image) or whole_box(image.shape[1:])
    return image[:, *box_slices(box)], box


def uncrop(
    values: np.ndarray, box: Box, shape: Sequence[int], fill: float = 0.0, scratch: Scratch | None = None
) -> np.ndarray:
    """Put (C, *shape of the box) back into an array (C, *shape) filled with `fill`, which `scratch` makes."""
    if box == whole_box(shape):
        return values
    scratch = scratch or Scratch()
    whole = scratch.empty((len(values), *shape), values.dtype)
    for channel, inner in zip(whole, values, strict=True):
        channel[...] = fill
        channel[box_slices(box)] = inner
        scratch.release()
    return whole


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Voxels (Z, Y, X) where any channel of (C, Z, Y, X) is non-zero, holes filled.

    A hole is background that does not reach the border of the array (through faces). Labelling the background finds
    them in one pass; scipy's binary_fill_holes grows the outside voxel layer by voxel layer.
    """
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    if mask.all():
        return mask
    regions = label_components(~mask, connectivity=6)
    outside = np.zeros(int(regions.max()) + 1, bool)
    for axis in range(1 if mask.shape[0] == 1 else 0, 3):  # a 2D image lies at the border everywhere along Z
        for side in (0, -1):
            outside[np.unique(regions.take(side, axis=axis))] = True
    outside[0] = False  # 0 is the mask itself
    return ~outside[regions]
