"""Resampling of label maps: the largest fraction decides, and where voxels become larger every object keeps its volume.

The fraction of a value in a new voxel is the part of the voxel that it covers (finer axes: linear interpolation of its
mask). On a finer grid the value with the largest fraction is taken, as in nnU-Net. On a coarser grid that rule, which
is a threshold of one half, changes the volume of small objects: a disc three voxels wide kept 0.79 of its area at half
the resolution after the smoothing that images get, and takes 1.13 without it, as every tie counts for the label. There
each object gets as many voxels as its fractions add up to, those that it covers most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box, whole_box
from unisegdiff_pipeline.core.components import label_components
from unisegdiff_pipeline.preprocessing.resample import LINEAR_SLAB_BYTES, GridMap

TIE_TOLERANCE = 1e-5
EQUAL_FRACTIONS = 1e-4  # fractions closer than this are told apart by their neighbourhood


def resample_labels(
    labels: np.ndarray,
    shape: Sequence[int],
    separate_axis: int | None = None,
    *,
    keep_volumes: bool = True,
) -> np.ndarray:
    """Resample a label map (Z, Y, X) to `shape`; the module says how.

    Args:
        separate_axis: axis that is resampled by nearest neighbour.
        keep_volumes: False takes the largest fraction on a coarser grid, too: slab by slab, without an array of real
            numbers of the whole grid.
    """
    grid = GridMap(labels.shape, shape, 1, separate_axis, covering=True)
    if grid.is_identity:
        return labels
    values = [int(v) for v in np.unique(labels) if v != 0]
    if not values:
        return np.zeros(tuple(shape), labels.dtype)
    if not keep_volumes or all(new >= old for new, old in zip(shape, labels.shape, strict=True)):
        return _largest_fraction(grid, labels, values)
    return _same_volume(grid, labels, values)


def _largest_fraction(grid: GridMap, labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """The background's fraction is what the others leave; at a tie the label wins, as in nnU-Net."""
    result = np.zeros(grid.shape_out, labels.dtype)
    for first, last in grid.slabs(1, LINEAR_SLAB_BYTES):
        start, stop = grid.needed_rows(first, last)
        rows = labels[start:stop]
        winner = result[first:last]
        best = np.zeros(winner.shape, np.float32)
        background = np.ones(winner.shape, np.float32)
        for value in values:
            mask = rows == value
            if mask.any():
                fraction = grid.apply(mask[None], first, last)[0]
                winner[fraction > best] = value
                np.maximum(best, fraction, out=best)
                background -= fraction
        winner[background > best + TIE_TOLERANCE] = 0
    return result


def _same_volume(grid: GridMap, labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Foreground against background first, then the values among themselves, the smallest first."""
    result = np.zeros(grid.shape_out, labels.dtype)
    flat = result.reshape(-1)
    foreground = _pieces(_fraction(grid, labels))
    if len(values) == 1:
        flat[foreground.whole] = values[0]
        flat[foreground.most_covered()] = values[0]
        return result
    # Voxels that several values, or a value and the background, share and that are foreground; each gets a value below.
    shared = np.zeros(flat.size, bool)
    shared[foreground.whole] = True
    shared[foreground.most_covered()] = True
    pieces = {value: _pieces(_fraction(grid, labels, value)) for value in values}
    owners = np.zeros(flat.size, np.uint8)
    for value, found in pieces.items():
        flat[found.whole] = value
        shared[found.whole] = False
        owners[found.partly] += owners[found.partly] < 2
    for value in sorted(values, key=lambda v: pieces[v].voxels):
        chosen = pieces[value].most_covered(shared, owners == 1)
        flat[chosen] = value
        shared[chosen] = False
    best = np.zeros(flat.size, np.float32)
    for value, found in pieces.items():  # what rounding left over
        left = shared[found.partly] & (found.fraction > best[found.partly])
        flat[found.partly[left]] = value
        best[found.partly[left]] = found.fraction[left]
    return result


def _fraction(grid: GridMap, labels: np.ndarray, value: int | None = None) -> np.ndarray:
    """Part of each new voxel (Z, Y, X) that a value, or all foreground, covers; float32."""
    fraction = np.zeros(grid.shape_out, np.float32)
    for first, last in grid.slabs(1, LINEAR_SLAB_BYTES):
        start, stop = grid.needed_rows(first, last)
        mask = labels[start:stop] != 0 if value is None else labels[start:stop] == value
        if mask.any():
            fraction[first:last] = grid.apply(mask[None], first, last)[0]
    return fraction


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Connected pieces of what a value covers on the new grid; voxels are flat indices.

    Attributes:
        whole: voxels that it covers whole.
        partly: voxels that it covers in part, the surface.
        fraction, around, piece: of each of `partly` the part that is covered, the mean fraction of the 3 x 3 x 3 voxels
            around, by which equal fractions are told apart, and the piece that it belongs to.
        wanted: voxels of `partly` that each piece has to get to keep its volume.
        voxels: volume of all pieces.
    """

    whole: np.ndarray
    partly: np.ndarray
    fraction: np.ndarray
    around: np.ndarray
    piece: np.ndarray
    wanted: np.ndarray
    voxels: float

    def most_covered(self, allowed: np.ndarray | None = None, certain: np.ndarray | None = None) -> np.ndarray:
        """The voxels of `partly` that keep the volume of every piece, those covered most.

        Args:
            allowed: boolean of all voxels, those that may be taken; None = all.
            certain: boolean of all voxels, those that come before all others.
        """
        kept = np.arange(len(self.partly)) if allowed is None else np.flatnonzero(allowed[self.partly])
        first = np.zeros(len(kept), bool) if certain is None else certain[self.partly[kept]]
        fraction = np.rint(self.fraction[kept] / EQUAL_FRACTIONS)
        kept = kept[np.lexsort((-self.around[kept], -fraction, ~first, self.piece[kept]))]
        piece = self.piece[kept]
        rank = np.arange(len(piece)) - np.searchsorted(piece, piece)  # within its piece
        return self.partly[kept[rank < self.wanted[piece]]]


def _pieces(fraction: np.ndarray) -> _Pieces:
    """Pieces (26 neighbours) of fractions (Z, Y, X) above 0."""
    from scipy.ndimage import uniform_filter

    box = nonzero_box(fraction) or whole_box(fraction.shape)
    inner = np.ascontiguousarray(fraction[box_slices(box)])
    pieces = label_components(inner > TIE_TOLERANCE).ravel()
    around = uniform_filter(inner, 3, mode="constant").ravel()
    flat = inner.ravel()
    volume = np.bincount(pieces, flat.astype(np.float64))
    volume[0] = 0
    whole = np.flatnonzero(flat >= 1 - TIE_TOLERANCE)
    partly = np.flatnonzero((flat > TIE_TOLERANCE) & (flat < 1 - TIE_TOLERANCE))
    wanted = np.rint(volume).astype(np.int64) - np.bincount(pieces[whole], minlength=len(volume))

    def in_image(index: np.ndarray) -> np.ndarray:
        places = np.unravel_index(index, inner.shape)
        return np.ravel_multi_index([p + low for p, (low, _) in zip(places, box, strict=True)], fraction.shape)

    return _Pieces(
        in_image(whole), in_image(partly), flat[partly], around[partly], pieces[partly], wanted, float(volume.sum())
    )
