"""Boxes and patches of a preprocessed case, also beyond its borders and through an affine map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.training.data.affine import affine_box, sample_image, sample_labels

Shape3 = tuple[int, int, int]


class Arrays(Protocol):
    """Image and labels of a case, in memory or on disk."""

    @property
    def image(self) -> Any: ...  # (C, Z, Y, X) float32

    @property
    def labels(self) -> Any: ...  # (R, Z, Y, X) integer; row 0 = labelsTr, rows 1.. = raters

    @property
    def mask(self) -> Any: ...  # (1, Z, Y, X) integer, of a cascade; else None


def read_patch(
    case: Arrays, row: int, start: Shape3, patch: tuple[int, ...], affine: np.ndarray | None
) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
    """Read image (C, *patch), labels and a cascade's mask (*patch), through the map `affine` where there is one."""
    flat = 3 - len(patch)  # axes that a patch of slices lacks
    maps = [(case.labels, slice(row, row + 1)), *(() if case.mask is None else ((case.mask, slice(None)),))]
    if affine is None:
        image = read_box(case.image, slice(None), start, (1,) * flat + patch)
        found = [read_box(array, rows, start, (1,) * flat + patch).reshape(patch) for array, rows in maps]
        return torch.from_numpy(image.reshape(-1, *patch)), found[0], found[1] if case.mask is not None else None
    box = affine_box(start[flat:], patch, affine, case.image.shape[1 + flat :])
    origin, shape = start[:flat] + box.origin, (1,) * flat + box.shape
    image = read_box(case.image, slice(None), origin, shape)
    found = [sample_labels(read_box(array, rows, origin, shape).reshape(box.shape), box, patch) for array, rows in maps]
    sampled = sample_image(torch.from_numpy(image.reshape(-1, *box.shape)), box, patch)
    return sampled, found[0], found[1] if case.mask is not None else None


def read_box(array: Any, rows: slice, origin: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Read array[rows] in a box that may reach over the borders, zeros there; returns (rows, *shape), contiguous."""
    inside, target = [], []
    for first, size, length in zip(origin, shape, array.shape[1:], strict=True):
        low, high = max(first, 0), min(first + size, length)
        inside.append(slice(low, max(high, low)))
        target.append(slice(low - first, max(high, low) - first))
    part = array[(rows, *inside)]
    if part.shape[1:] == tuple(shape):
        return np.array(part, order="C")  # a copy: augmentation works in place, and the case may lie in memory
    box = np.zeros((part.shape[0], *shape), part.dtype)
    if all(size > 0 for size in part.shape):
        box[(slice(None), *target)] = part
    return box
