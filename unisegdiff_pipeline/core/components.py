"""Connected components of a mask, found and measured from its runs: stretches of voxels along X.

A mask has far fewer runs than voxels: sizes, centroids, diameters and overlaps cost little, and of a large volume
neither the mask nor an array of numbers need exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, whole_box

Connectivity = Literal[6, 18, 26]

SLAB_VOXELS = 1 << 24  # of a mask that is looked at at once

# Rows that come before a row and touch it, as steps along Z and Y; the others come after it.
_ROWS_BEFORE = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
# Fewer points are compared pair by pair at once; more are worth a convex hull, and the import of scipy, first.
_POINTS_WORTH_A_HULL = 1000
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Runs:
    """Stretches of voxels along X, in the order of the array; each array is (n,).

    Attributes:
        first, last: index of the first and the last voxel into the raveled array.
        length: voxels.
    """

    first: np.ndarray
    last: np.ndarray

    @property
    def length(self) -> np.ndarray:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Components:
    """Connected components of a mask, numbered from 1, largest first; of equal ones by the corner of their boxes.

    Attributes:
        shape: of the mask (Z, Y, X).
        runs: of the mask.
        run_numbers: component of each run.
        voxels: size of each component, (n,).
    """

    shape: tuple[int, ...]
    runs: Runs
    run_numbers: np.ndarray
    voxels: np.ndarray

    def __len__(self) -> int:
        return len(self.voxels)

    @property
    def first_voxels(self) -> np.ndarray:
        """Index of the first voxel of each component into the raveled mask, (n,)."""
        order, starts = _grouping(self.run_numbers)
        return self.runs.first[order][starts]

    def numbers_at(self, flat: np.ndarray) -> np.ndarray:
        """Components of voxels given by their index into the raveled mask; 0 outside."""
        if not len(self):
            return np.zeros(np.shape(flat), np.int64)
        run = np.searchsorted(self.runs.first, flat, "right") - 1
        return np.where((run >= 0) & (flat <= self.runs.last[run]), self.run_numbers[run], 0)

    def numbers(self) -> np.ndarray:
        """Component of each voxel (Z, Y, X), from 1; 0 outside, int32."""
        return self.within(whole_box(self.shape))

    def within(self, box: Box) -> np.ndarray:
        """Component of each voxel in a box of the mask, as `numbers`."""
        (z_low, z_high), (y_low, y_high), (x_low, x_high) = box
        _, height, width = self.shape
        begin, end = np.searchsorted(self.runs.first, [z_low * height * width, z_high * height * width])
        z, y, x = np.unravel_index(self.runs.first[begin:end], self.shape)
        first, last = np.maximum(x, x_low), np.minimum(x + self.runs.length[begin:end], x_high)
        here = (y >= y_low) & (y < y_high) & (first < last)
        out = np.zeros((z_high - z_low, y_high - y_low, x_high - x_low), np.int32)
        places = np.ravel_multi_index(((z - z_low)[here], (y - y_low)[here], (first - x_low)[here]), out.shape)
        length = (last - first)[here]
        out.ravel()[_stretches(places, length)] = np.repeat(self.run_numbers[begin:end][here], length)
        return out

    def slices(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Of each slice that holds any: its index, the indices of voxels into the raveled slice, their components."""
        size = math.prod(self.shape[1:])
        slices, starts = np.unique(self.runs.first // max(size, 1), return_index=True)
        ends = np.append(starts, len(self.run_numbers))[1:]
        for z, begin, end in zip(slices.tolist(), starts, ends, strict=True):
            length = self.runs.length[begin:end]
            yield (
                z,
                _stretches(self.runs.first[begin:end] - z * size, length),
                np.repeat(self.run_numbers[begin:end], length),
            )

    def sums(self, per_run: np.ndarray) -> np.ndarray:
        """Sum of a value of each run over the runs of each component, (n,)."""
        return np.bincount(self.run_numbers - 1, weights=per_run, minlength=len(self))

    def boxes(self) -> np.ndarray:
        """Bounding box of each component, (n, 3, 2): first and one past last index along Z, Y, X."""
        first, last = self._positions()
        order, starts = _grouping(self.run_numbers)
        low, high = np.minimum.reduceat(first[order], starts), np.maximum.reduceat(last[order], starts)
        return np.stack([low, high + 1], axis=2)

    def centroids(self) -> np.ndarray:
        """Mean voxel index along Z, Y, X of each component, (n, 3)."""
        first, last = self._positions()
        middle = (first + last) / 2 * self.runs.length[:, None]
        return np.stack([self.sums(along) for along in middle.T], axis=1) / self.voxels[:, None]

    def longest_diameters_mm(self, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Largest distance in mm between two voxel centres of each component, (n,); 0 for a single voxel."""
        first, last = (position * np.asarray(spacing_mm) for position in self._positions())
        order, starts = _grouping(self.run_numbers)
        # No voxel inside a run is farther from any point than both ends of the run.
        ends = [np.concatenate([first[group], last[group]]) for group in np.split(order, starts[1:])]
        return np.array([longest_distance(points) for points in ends[: len(self)]])

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices along Z, Y, X of the first and the last voxel of each run, (n, 3) each."""
        z, y, x = np.unravel_index(self.runs.first, self.shape)
        return np.stack([z, y, x], axis=1), np.stack([z, y, x + self.runs.length - 1], axis=1)


def label_components(mask: np.ndarray, connectivity: Connectivity = 26) -> np.ndarray:
    """Number the connected components of a boolean mask (Z, Y, X) from 1 in the order of their first voxels; 0 outside.

    `connectivity` is 6, 18 or 26; in a mask with Z = 1 that is 4, 8 or 8.
    """
    import cc3d

    if not mask.any():  # most masks of most classes in lesion data; spares a pass of the labelling
        return np.zeros(mask.shape, np.uint16)
    if sum(size > 1 for size in mask.shape) < 2:
        connectivity = 6  # the same for voxels in one line, where cc3d 4.1.1 fails for 26
    labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity)
    return np.asarray(labels).reshape(mask.shape)


def find_components(mask: np.ndarray, connectivity: Connectivity = 26) -> Components:
    """Connected components of a boolean mask (Z, Y, X); in one with Z = 1, 6, 18 and 26 are 4, 8 and 8."""
    return connect_runs(find_runs(mask), mask.shape, connectivity)


def find_runs(mask: np.ndarray) -> Runs:
    """Runs of a boolean mask along its last axis."""
    return find_runs_in(mask[first:last] for first, last in slabs(mask.shape))


def slabs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges along the first axis that make up an array, of few voxels each."""
    step = max(1, SLAB_VOXELS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])


def find_runs_in(parts: Iterable[np.ndarray]) -> Runs:
    """Runs of a boolean mask whose parts along the first axis are given one after the other."""
    first, last, offset = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for part in parts:
        begins, ends = part.copy(), part.copy()
        np.greater(part[..., 1:], part[..., :-1], out=begins[..., 1:])
        np.greater(part[..., :-1], part[..., 1:], out=ends[..., :-1])
        first.append(np.flatnonzero(begins) + offset)
        last.append(np.flatnonzero(ends) + offset)
        offset += part.size
    return Runs(np.concatenate(first), np.concatenate(last))


def connect_runs(runs: Runs, shape: tuple[int, ...], connectivity: Connectivity = 26) -> Components:
    """Join the runs of a mask (Z, Y, X) of this shape to its components."""
    run_labels = _labels_of_runs(runs, shape, connectivity)
    voxels = np.bincount(run_labels, weights=runs.length).astype(np.int64)
    by_label, starts = _grouping(run_labels)
    positions = np.stack(np.unravel_index(runs.first[by_label], shape), axis=1)
    z, y, x = np.minimum.reduceat(positions, starts).T
    order = np.lexsort((x, y, z, -voxels[1:])) + 1
    number_of = np.zeros(len(order) + 1, np.int64)
    number_of[order] = np.arange(1, len(order) + 1)
    return Components(shape, runs, number_of[run_labels], voxels[order])


def _labels_of_runs(runs: Runs, shape: tuple[int, ...], connectivity: Connectivity) -> np.ndarray:
    """Component of each run, numbered from 1 in the order of the first runs."""
    count, (_, height, width) = len(runs.first), shape
    row = runs.first // max(width, 1)
    z, y = np.divmod(row, max(height, 1))
    ones, others = [], []  # runs that touch one another
    for along_z, along_y in _ROWS_BEFORE:
        # 6 neighbours share a face, 18 an edge at least, 26 a corner at least.
        reach = {6: 1, 18: 2, 26: 3}[connectivity] - abs(along_z) - abs(along_y)
        if reach < 0:
            continue
        before = row + along_z * height + along_y
        shift, reach = (along_z * height + along_y) * width, min(reach, 1)
        low = np.maximum(runs.first + shift - reach, before * width)
        high = np.minimum(runs.last + shift + reach, (before + 1) * width - 1)
        begin, end = np.searchsorted(runs.last, low), np.searchsorted(runs.first, high, "right")
        exists = (z + along_z >= 0) & (y + along_y >= 0) & (y + along_y < height)
        number = np.where(exists, end - begin, 0)
        ones.append(np.repeat(np.arange(count), number))
        others.append(_stretches(begin, number))
    first_runs = _first_of_linked(count, np.concatenate(ones), np.concatenate(others))
    return np.cumsum(first_runs == np.arange(count))[first_runs]


def _first_of_linked(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The first of all items that each of `count` is linked to, by whatever way, (count,).

    Items point to ever earlier ones (Shiloach & Vishkin 1982); importing scipy.sparse takes longer than this does for
    most masks.

    Args:
        one, other: links between two items, (n,) each.
    """
    first = np.arange(count)
    while len(one):
        low, high = np.minimum(first[one], first[other]), np.maximum(first[one], first[other])
        apart = low < high
        one, other = one[apart], other[apart]
        np.minimum.at(first, high[apart], low[apart])
        while True:
            earlier = first[first]
            if np.array_equal(earlier, first):
                break
            first = earlier
    return first


def _stretches(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """All whole numbers of stretches that begin at `first`: first[0], first[0] + 1, ..., first[1], ..."""
    behind = np.cumsum(length)
    return np.arange(behind[-1] if len(behind) else 0) + np.repeat(first - behind + length, length)


def longest_distance(points: np.ndarray) -> float:
    """Largest distance between two of the points (n, 1 to 3), exact; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    points = _without_inner_points(points)
    if len(points) > _POINTS_WORTH_A_HULL:
        points = _without_inner_points(_on_convex_hull(points))
    squared = 0.0
    for i in range(0, len(points), _ROWS_AT_ONCE):
        apart = points[i : i + _ROWS_AT_ONCE, None] - points[i:]
        squared = max(squared, float(np.square(apart, out=apart).sum(axis=2).max()))
    return float(np.sqrt(squared))


def _grouping(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order that puts equal numbers together, ascending, and where each of them starts in it."""
    order = np.argsort(numbers, kind="stable")
    return order, np.flatnonzero(np.diff(numbers[order], prepend=0))


def _on_convex_hull(points: np.ndarray) -> np.ndarray:
    """The points that are corners of the convex hull, or all where it cannot be found."""
    from scipy.spatial import ConvexHull, QhullError

    centred = points - points.mean(axis=0)
    spread, axes = np.linalg.eigh(centred.T @ centred)
    flat = centred @ axes[:, spread >= 1e-12 * spread.max()]  # a hull needs points that fill their space
    if flat.shape[1] == 1:
        return points[[int(flat.argmin()), int(flat.argmax())]]
    try:
        return points[np.sort(ConvexHull(flat).vertices)]
    except QhullError:
        return points


def _without_inner_points(points: np.ndarray) -> np.ndarray:
    """Leave out points too near the middle to be an end of the longest distance, whatever the other end is."""
    from_middle = np.linalg.norm(points - points.mean(axis=0), axis=1)
    start = points[from_middle.argmax()]
    for _ in range(3):  # each step to the farthest point gives a distance that the longest one cannot fall below
        distances = np.linalg.norm(points - start, axis=1)
        start = points[distances.argmax()]
    return points[from_middle + from_middle.max() >= distances.max() * (1 - 1e-9)]
