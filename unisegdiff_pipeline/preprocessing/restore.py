"""From the plan grid back to the grid of the image file, slab by slab."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.preprocessing.crop import uncrop
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.resample import LINEAR_SLAB_BYTES, GridMap

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor | LazyRows


def restore_labels(
    probabilities: Array,
    properties: CaseProperties,
    scheme: LabelScheme,
    scratch: Scratch | None = None,
) -> np.ndarray:
    """Label map (Z, Y, X) on the grid of the image file, from probabilities (K, Z, Y, X) on the plan grid.

    Probabilities are resampled linearly and decoded one slab of rows at a time, so that K channels of the full volume
    never exist; outside the crop box is background. Any float type is taken, half precision included. `scratch` makes
    the result.

    Raises:
        ValueError: where the shape is not the one of `properties` and `scheme`.
    """
    if probabilities.shape[0] != scheme.num_channels:
        raise ValueError(f"probabilities have {probabilities.shape[0]} channels, the labels need {scheme.num_channels}")
    return restore_derived(probabilities, properties, scheme.decode, scratch)


def restore_derived(
    probabilities: Array,
    properties: CaseProperties,
    derive: Callable[[np.ndarray], np.ndarray],
    scratch: Scratch | None = None,
) -> np.ndarray:
    """What `derive` makes of probabilities (K, rows, Y, X) => (rows, Y, X), on the grid of the image file (Z, Y, X).

    It is applied after the resampling, slab by slab, and in the axes of the plan; 0 stands outside of the crop box.
    """
    grid = _grid(tuple(probabilities.shape), properties)
    scratch = scratch or Scratch()
    cropped: np.ndarray | None = None
    for first, last in grid.slabs(probabilities.shape[0], LINEAR_SLAB_BYTES):
        derived = derive(grid.slab(probabilities, first, last))
        if cropped is None:
            cropped = scratch.empty((1, *properties.shape_cropped), derived.dtype)
        cropped[0, first:last] = derived
        scratch.release()
    assert cropped is not None
    return _to_file_axes(cropped, properties, 0, scratch)[0]


def restore_map(
    values: Array, properties: CaseProperties, fill: float = 0.0, scratch: Scratch | None = None
) -> np.ndarray:
    """Float map on the grid of the image file, float32, from (Z, Y, X) or (K, Z, Y, X) on the plan grid.

    Values are resampled linearly; `fill` is what stands outside the crop box. The result has the rank of `values`, and
    is made by `scratch`.
    """
    scratch = scratch or Scratch()
    channels = values if isinstance(values, LazyRows) or values.ndim != 3 else values[None]
    grid = _grid(tuple(channels.shape), properties)
    cropped = scratch.empty((channels.shape[0], *properties.shape_cropped))
    for channel in range(channels.shape[0]):
        for first, last in grid.slabs(1, LINEAR_SLAB_BYTES):
            cropped[channel, first:last] = grid.slab(channels[channel : channel + 1], first, last)[0]
            scratch.release()
    restored = _to_file_axes(cropped, properties, fill, scratch)
    return restored[0] if values.ndim == 3 else restored


def _grid(shape: tuple[int, ...], properties: CaseProperties) -> GridMap:
    if len(shape) != 4 or shape[1:] != properties.shape:
        raise ValueError(f"array has shape {shape}, expected (K, *{properties.shape}) of case {properties.case_id!r}")
    return GridMap(properties.shape, properties.shape_cropped, 1, properties.separate_axis, "cpu")


def _to_file_axes(cropped: np.ndarray, properties: CaseProperties, fill: float, scratch: Scratch) -> np.ndarray:
    whole = uncrop(cropped, properties.crop_box, properties.shape_permuted, fill, scratch)
    return scratch.contiguous(properties.reorientation.undo(whole))
