"""Boxes: parts of an array with edges along its axes, and label maps kept as the box around their foreground."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[tuple[int, int], ...]  # (first, one past last) along each axis


def box_slices(box: Box) -> tuple[slice, ...]:
    """The box as slices: `array[box_slices(box)]`, with axes in front `array[:, *box_slices(box)]`."""
    return tuple(slice(low, high) for low, high in box)


def whole_box(shape: Sequence[int]) -> Box:
    """The box of a whole array."""
    return tuple((0, size) for size in shape)


def nonzero_box(*arrays: np.ndarray) -> Box | None:
    """Smallest box that holds every voxel which is non-zero in any of the arrays; None where all are zero everywhere.

    Args:
        arrays: of one shape, any number of axes; an image (C, Z, Y, X) is given as `*image`.

    Raises:
        ValueError: for arrays of different shapes, or none.
    """
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"arrays have the shapes {[array.shape for array in arrays]}; give some of one shape")
    # One axis at a time, each on what the last one left: the bulk of an empty border is looked at only once.
    box = list(whole_box(arrays[0].shape))
    for axis in range(len(box)):
        others = tuple(i for i in range(len(box)) if i != axis)
        used = (array[box_slices(tuple(box))].any(axis=others) for array in arrays)
        places = np.flatnonzero(functools.reduce(np.logical_or, used))
        if places.size == 0:
            return None
        box[axis] = (int(places[0]), int(places[-1]) + 1)
    return tuple(box)


def join_boxes(boxes: Iterable[Box | None]) -> Box | None:
    """Smallest box that holds all boxes; None and boxes without voxels count for nothing, and alone they give None."""
    filled = [box for box in boxes if box is not None and all(low < high for low, high in box)]
    if not filled:
        return None
    return tuple((min(low for low, _ in sides), max(high for _, high in sides)) for sides in zip(*filled, strict=True))


def grow_box(box: Box, margins: Sequence[int], shape: Sequence[int]) -> Box:
    """The box with as many voxels more on both sides of each axis as an array of `shape` has there."""
    sides = zip(box, margins, shape, strict=True)
    return tuple((max(low - margin, 0), min(high + margin, size)) for (low, high), margin, size in sides)


def centred_box(box: Box, extent: Sequence[int], shape: Sequence[int]) -> Box:
    """A box of `extent` around the middle of another, moved into an array of `shape`; the whole axis where too long."""
    sides = []
    for (low, high), length, size in zip(box, extent, shape, strict=True):
        start = min(max((low + high - length) // 2, 0), max(size - length, 0))
        sides.append((start, min(start + length, size)))
    return tuple(sides)


@dataclass(frozen=True, eq=False)
class CroppedLabels:
    """A label map kept as the box around its foreground, so that many of a case fit in memory.

    Attributes:
        shape: of the whole map.
        box: where `inner` lies in it; without voxels where all is background.
        inner: label values within the box.
    """

    shape: tuple[int, ...]
    box: Box
    inner: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> CroppedLabels:
        """Keep a copy of the part of a label map that is not background."""
        box = nonzero_box(labels) or ((0, 0),) * labels.ndim
        return cls(labels.shape, box, labels[box_slices(box)].copy())

    def whole(self) -> np.ndarray:
        """The label map."""
        return self.within(whole_box(self.shape))

    def within(self, box: Box) -> np.ndarray:
        """The label map in any box."""
        out = np.zeros([high - low for low, high in box], self.inner.dtype)
        shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, self.box, strict=True))
        if all(low < high for low, high in shared):
            out[_slices_within(shared, box)] = self.inner[_slices_within(shared, self.box)]
        return out


def _slices_within(box: Box, outer: Box) -> tuple[slice, ...]:
    """The box as slices of an array that begins at the corner of another box."""
    return tuple(slice(low - start, high - start) for (low, high), (start, _) in zip(box, outer, strict=True))
