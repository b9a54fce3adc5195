"""Resampling as one banded matrix per axis, applied in slabs: exact splines, bounded memory, any device.

Voxel i of an axis of n covers [i, i + 1). Both grids cover the same extent, so voxel j of m lies at (j + 0.5)*n/m - 0.5
(the convention of scikit-image, scipy's grid_mode and torch's align_corners=False). The border is repeated outwards.

Order 3 is the interpolating cubic B-spline (prefilter included), order 1 linear, order 0 nearest neighbour. Where an
axis loses voxels, n/m = s > 1, the image is first smoothed by a Gaussian of (s - 1)/2 voxels. nnU-Net does not smooth;
at the factors it meets, little over 1, there is next to no difference. This pipeline plans spacings up to four times
coarser for small machines, and there point sampling would fold speckle and noise into the image and let thin structures
come and go with the position of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.scratch import Scratch

ANISOTROPY_THRESHOLD = 3.0
EQUAL_SPACINGS = 1e-3  # what headers of 32 bits and directions lose tells no axis from another
SLAB_BYTES = 96 * 1024 * 1024  # a slab of cubic resampling; it shares 22 input rows with the next
LINEAR_SLAB_BYTES = 24 * 1024 * 1024  # linear slabs share two rows, so they may be as small as suits the cache
PREFILTER_REACH = 10  # voxels; the cubic prefilter decays as 0.268^k, 2e-6 at 10
OUTPUT_BLOCK = 32


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_spacing_mm: Sequence[float | None]
) -> tuple[int, int, int]:
    """Shape of the same extent at the target spacing, at least one voxel an axis; None keeps an axis."""
    z, y, x = (
        n if new is None else max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, target_spacing_mm, strict=True)
    )
    return z, y, x


def find_separate_axis(
    spacing_mm: Sequence[float], target_spacing_mm: Sequence[float], separate_z: str = "auto"
) -> int | None:
    """The axis to resample by nearest neighbour: the one coarse axis of anisotropic data, as in nnU-Net.

    "auto": where the image, or else the target, is anisotropic beyond ANISOTROPY_THRESHOLD and one axis alone is the
    coarsest; "always": wherever one axis alone is the coarsest in the image; "never": nowhere.
    """
    if separate_z == "never":
        return None
    for spacing in (spacing_mm, target_spacing_mm):
        if separate_z == "always" or max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarsest = [axis for axis, value in enumerate(spacing) if value > max(spacing) * (1 - EQUAL_SPACINGS)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def axis_weights(num_in: int, num_out: int, order: int, covering: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Weights of one axis: output j is the sum over k of weights[j, k] * input[clip(starts[j] + k)].

    All kernels act on the input repeated outwards without end, so that they are convolutions of each other: B-spline
    basis * prefilter sqrt(3) * (sqrt(3) - 2)^|k| * Gaussian.

    Args:
        order: 3, 1 or 0.
        covering: where the axis loses voxels, weigh an input by the part of the output voxel that it covers, which
            keeps sums, instead of smoothing.

    Returns:
        starts (num_out,), rising, may lie outside of the input; weights (num_out, K), float64, rows sum to one.
    """
    positions = (np.arange(num_out) + 0.5) * (num_in / num_out) - 0.5
    if order == 0:
        return np.floor(positions + 0.5).astype(int), np.ones((num_out, 1))
    if covering and num_out < num_in:
        return _covered_parts(num_in, num_out)
    below = np.floor(positions).astype(int)
    t = (positions - below)[:, None]
    if order == 1:
        starts, weights = below, np.hstack([1 - t, t])
    else:
        basis = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        prefilter = math.sqrt(3) * (math.sqrt(3) - 2) ** np.abs(np.arange(-PREFILTER_REACH, PREFILTER_REACH + 1))
        starts, weights = below - 1 - PREFILTER_REACH, _convolve_rows(np.hstack(basis) / 6, prefilter)
    sigma = (num_in / num_out - 1) / 2
    reach = math.ceil(4 * sigma) if sigma > 0 else 0
    if reach:
        gaussian = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        starts, weights = starts - reach, _convolve_rows(weights, gaussian)
    return starts, weights / weights.sum(axis=1, keepdims=True)


def _covered_parts(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
    """What part of output voxel j, [j, j + 1) * num_in / num_out, each input voxel covers."""
    edges = np.arange(num_out + 1) * (num_in / num_out)
    starts = np.floor(edges[:-1] + 1e-9).astype(int)
    inputs = starts[:, None] + np.arange(math.ceil(num_in / num_out) + 1)
    covered = np.minimum(inputs + 1, edges[1:, None]) - np.maximum(inputs, edges[:-1, None])
    weights = covered.clip(0)
    return starts, weights / weights.sum(axis=1, keepdims=True)


def _convolve_rows(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Full convolution of each row with a symmetric kernel."""
    out = np.zeros((len(rows), rows.shape[1] + len(kernel) - 1))
    for k in range(rows.shape[1]):
        out[:, k : k + len(kernel)] += rows[:, k : k + 1] * kernel
    return out


class AxisMap:
    """Resampling of one axis, applied in bands of OUTPUT_BLOCK outputs, so that the cost is linear in its length."""

    def __init__(self, num_in: int, num_out: int, order: int, covering: bool = False) -> None:
        self.num_in, self.num_out = num_in, num_out
        self.is_identity = num_in == num_out
        self._nearest = order == 0
        self._bands: dict[tuple[int, int], np.ndarray] = {}
        if not self.is_identity:
            self._starts, self._weights = axis_weights(num_in, num_out, order, covering)

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Range of input voxels that the outputs [first, last) depend on."""
        if self.is_identity:
            return first, last
        start = int(self._starts[first])
        stop = int(self._starts[last - 1]) + self._weights.shape[1]
        return min(max(start, 0), self.num_in - 1), max(min(stop, self.num_in), 1)

    def matrix(self, first: int, last: int) -> np.ndarray:
        """Dense weights (last - first, inputs that `needed` names), the repeated border folded in; float32."""
        if (first, last) not in self._bands:
            start, stop = self.needed(first, last)
            weights = self._weights[first:last]
            inputs = np.clip(self._starts[first:last, None] + np.arange(weights.shape[1]), 0, self.num_in - 1) - start
            dense = np.zeros((last - first, stop - start))
            np.add.at(dense, (np.arange(last - first)[:, None], inputs), weights)
            self._bands[first, last] = dense.astype(np.float32)
        return self._bands[first, last]

    def apply(self, values: Any, axis: int, first: int, last: int) -> Any:
        """Outputs [first, last) along `axis`; `values`, numpy or torch, hold the inputs that `needed` names for them.

        Numpy computes in the calling thread's BLAS, without the import of torch, which takes longer than many a data
        set; torch on the device of `values`, and on a CPU with its threads.
        """
        if self.is_identity:
            return values
        origin = self.needed(first, last)[0]
        before, after = math.prod(values.shape[:axis]), math.prod(values.shape[axis + 1 :])
        flat = values.reshape(before, values.shape[axis], after)
        if self._nearest:
            out = flat[:, self._starts[first:last].clip(0, self.num_in - 1) - origin]
        else:
            matmul, as_values = _matrix_product(values)
            out = _empty(values, (before, last - first, after))
            for begin in range(first, last, OUTPUT_BLOCK):
                end = min(begin + OUTPUT_BLOCK, last)
                start, stop = self.needed(begin, end)
                weights = as_values(self.matrix(begin, end))
                part = flat[:, start - origin : stop - origin]
                target = out[:, begin - first : end - first]
                if after == 1:
                    matmul(part[..., 0], weights.T, out=target[..., 0])
                else:
                    matmul(weights, part, out=target)
        return out.reshape(*values.shape[:axis], last - first, *values.shape[axis + 1 :])


def _empty(values: Any, shape: tuple[int, ...]) -> Any:
    """Room for float32 numbers where `values`, numpy or torch, are; nothing is copied from one device to another."""
    return np.empty(shape, np.float32) if isinstance(values, np.ndarray) else values.new_empty(shape)


def _matrix_product(values: Any) -> tuple[Callable[..., Any], Callable[[np.ndarray], Any]]:
    """Product of matrices of the library that `values` are of, and how an array gets to where they are."""
    if isinstance(values, np.ndarray):
        return np.matmul, np.asarray
    import torch

    return torch.matmul, lambda array: torch.from_numpy(array).to(values.device)


# Cases of a data set are often of one shape; bands of 16 axes are a few megabytes.
_axis_map = lru_cache(maxsize=16)(AxisMap)


class GridMap:
    """Resampling from one shape to another, of which slabs along the first axis can be asked for."""

    def __init__(
        self,
        shape_in: Sequence[int],
        shape_out: Sequence[int],
        order: int,
        separate_axis: int | None = None,
        device: str | None = None,
        covering: bool = False,
    ) -> None:
        """
        Args:
            shape_in, shape_out: (Z, Y, X).
            order: 3 or 1, for all axes but `separate_axis`, which is resampled with order 0.
            device: of torch, where the matrices are applied; None applies them to numpy arrays by numpy.
            covering: weigh by covered parts where an axis loses voxels; see `axis_weights`.
        """
        self.shape_in, self.shape_out = tuple(shape_in), tuple(shape_out)
        self._device = device
        self._axes = [
            _axis_map(n, m, 0 if axis == separate_axis else order, covering)
            for axis, (n, m) in enumerate(zip(shape_in, shape_out, strict=True))
        ]

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return all(axis.is_identity for axis in self._axes)

    def needed_rows(self, first: int, last: int) -> tuple[int, int]:
        """Input rows (first axis) that the output rows [first, last) depend on."""
        return self._axes[0].needed(first, last)

    def slab(self, array: Any, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of the result, (C, last - first, Y, X) float32, of `array` (C, Z, Y, X), numpy or torch.

        Only the rows that are needed are taken from `array` and converted.
        """
        start, stop = self.needed_rows(first, last)
        return self.apply(array[:, start:stop], first, last)

    def apply(self, rows: Any, first: int, last: int) -> np.ndarray:
        """As `slab`, given just the rows that `needed_rows` names."""
        if self._device is None and isinstance(rows, np.ndarray):
            return self._apply(rows.astype(np.float32, copy=False), first, last)
        import torch

        values = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(rows))
        return self._apply(values.to(device=self._device, dtype=torch.float32), first, last).cpu().numpy()

    def _apply(self, values: Any, first: int, last: int) -> Any:
        # The axis that loses most voxels goes first: what follows is then smaller.
        for axis in sorted(range(3), key=lambda a: self.shape_out[a] / self.shape_in[a]):
            bounds = (first, last) if axis == 0 else (0, self.shape_out[axis])
            if axis > 0:  # of the first axis only what is needed was given
                start, stop = self._axes[axis].needed(*bounds)
                values = values[(slice(None),) * (axis + 1) + (slice(start, stop),)]
            values = self._axes[axis].apply(values, axis + 1, *bounds)
        return values

    def slabs(self, num_channels: int, budget_bytes: int = SLAB_BYTES) -> Iterator[tuple[int, int]]:
        """Ranges of output rows whose float32 intermediates stay within `budget_bytes`."""
        rows_in, rows_out = self.shape_in[0], self.shape_out[0]
        plane = max(self.shape_in[1], self.shape_out[1]) * max(self.shape_in[2], self.shape_out[2])
        row_bytes = 4 * num_channels * plane * max(1.0, rows_in / rows_out)
        size = max(1, int(budget_bytes / (2 * row_bytes)))
        for first in range(0, rows_out, size):
            yield first, min(first + size, rows_out)


def resample_image(
    image: np.ndarray,
    shape: Sequence[int],
    order: int = 3,
    separate_axis: int | None = None,
    device: str | None = None,
    scratch: Scratch | None = None,
) -> np.ndarray:
    """Resample (C, Z, Y, X) to (C, *shape), float32; values stay within each channel's range, as in nnU-Net.

    A cubic spline overshoots at edges; beyond the range of a CT window or of 0..1 that would be a value no image has.
    `scratch` makes the result.
    """
    grid = GridMap(image.shape[1:], shape, order, separate_axis, device)
    if grid.is_identity:
        return np.asarray(image, np.float32)
    scratch = scratch or Scratch()
    result = scratch.empty((len(image), *shape))
    for channel, out in zip(image, result, strict=True):
        lowest, highest = channel.min(), channel.max()
        for first, last in grid.slabs(1):
            np.clip(grid.slab(channel[None], first, last)[0], lowest, highest, out=out[first:last])
            scratch.release()
    return result
