"""Connected components of a mask, measured from its runs: stretches of voxels along X that belong to one component.

A mask has far fewer runs than voxels, so that sizes, centroids, diameters and overlaps cost little once it is labelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Connectivity = Literal[6, 18, 26]

# Fewer points are compared pair by pair at once; more are worth a convex hull first.
_POINTS_WORTH_A_HULL = 500
_ROWS_AT_ONCE = 512


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
        labels: (Z, Y, X) as `label_components` gives them; the component of a voxel is `number_of[label]`.
        number_of: component of each label, (n + 1,), 0 for 0.
        runs: of the mask.
        run_numbers: component of each run.
        voxels: size of each component, (n,).
    """

    labels: np.ndarray
    number_of: np.ndarray
    runs: Runs
    run_numbers: np.ndarray
    voxels: np.ndarray

    def __len__(self) -> int:
        return len(self.voxels)

    @property
    def label_of(self) -> np.ndarray:
        """Label of each component, (n,): the inverse of `number_of`."""
        return np.argsort(self.number_of)[1:]

    def numbers_at(self, flat: np.ndarray) -> np.ndarray:
        """Components of voxels given by their index into the raveled mask; 0 outside."""
        return self.number_of[self.labels.ravel()[flat]]

    def numbers(self) -> np.ndarray:
        """Component of each voxel (Z, Y, X), from 1; 0 outside, int32."""
        return self.number_of.astype(np.int32)[self.labels]

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
        z, y, x = np.unravel_index(self.runs.first, self.labels.shape)
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
    """Label a boolean mask (Z, Y, X), see `label_components`, and order its components."""
    labels = label_components(mask, connectivity)
    runs = find_runs(mask)
    run_labels = labels.ravel()[runs.first].astype(np.int64)
    voxels = np.bincount(run_labels, weights=runs.length).astype(np.int64)
    by_label, starts = _grouping(run_labels)
    positions = np.stack(np.unravel_index(runs.first[by_label], mask.shape), axis=1)
    z, y, x = np.minimum.reduceat(positions, starts).T
    order = np.lexsort((x, y, z, -voxels[1:])) + 1
    number_of = np.zeros(len(order) + 1, np.int64)
    number_of[order] = np.arange(1, len(order) + 1)
    return Components(labels, number_of, runs, number_of[run_labels], voxels[order])


def find_runs(mask: np.ndarray) -> Runs:
    """Runs of a boolean mask along its last axis."""
    begins, ends = mask.copy(), mask.copy()
    np.greater(mask[..., 1:], mask[..., :-1], out=begins[..., 1:])
    np.greater(mask[..., :-1], mask[..., 1:], out=ends[..., :-1])
    return Runs(np.flatnonzero(begins), np.flatnonzero(ends))


def longest_distance(points: np.ndarray) -> float:
    """Largest distance between two of the points (n, 1 to 3), exact; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    if len(points) > _POINTS_WORTH_A_HULL:
        points = _without_inner_points(_on_convex_hull(points))
    from scipy.spatial.distance import cdist

    rows = range(0, len(points), _ROWS_AT_ONCE)
    squared = max(float(cdist(points[i : i + _ROWS_AT_ONCE], points[i:], "sqeuclidean").max()) for i in rows)
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
