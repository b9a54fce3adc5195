"""From spacing and image size to a U-Net: pooling, kernels, patch size, and what such a network costs.

The rules are those of nnU-Net: an axis is halved while its edge allows it and its spacing is within a factor of 2 of
the finest; kernels stay 1 along an axis until then; the patch starts with the aspect that the spacing gives, is never
larger than the median image, and shrinks along the axis that covers most of the median image until the network fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan

MIN_EDGE = 4  # smallest edge of a feature map, in voxels
CONVS_PER_LEVEL = 2
_SHORT_FRACTION = 0.5


@dataclass(frozen=True)
class Topology:
    """Pooling of one patch: `strides[i]` leads into level i, `divisor` is the product of the strides of an axis."""

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    divisor: tuple[int, ...]


def pooling_topology(spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Halve the axes of a patch level by level and pad the patch to a multiple of what that needs.

    Args:
        spacing: voxel size, one number an axis of the patch.
        patch_size: wanted patch in voxels.

    An axis is halved while its edge is at least twice MIN_EDGE. An axis that would be halved alone needs three times
    it: a level for the sake of one short axis is not worth its convolutions.
    """
    dims = len(patch_size)
    current_spacing, current_size = list(spacing), list(patch_size)
    kernel, divisor = [1] * dims, [1] * dims
    strides: list[tuple[int, ...]] = [(1,) * dims]
    kernels: list[tuple[int, ...]] = []
    while axes := _axes_to_halve(current_spacing, current_size):
        finest = min(current_spacing)
        kernel = [3 if k == 3 or s / finest < 2 else 1 for k, s in zip(kernel, current_spacing, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(dims)))
        for axis in axes:
            current_spacing[axis] *= 2
            current_size[axis] = math.ceil(current_size[axis] / 2)
            divisor[axis] *= 2
    kernels.append((3,) * dims)
    padded = tuple(math.ceil(size / d) * d for size, d in zip(patch_size, divisor, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels), tuple(divisor))


def _axes_to_halve(spacing: Sequence[float], size: Sequence[int]) -> list[int]:
    large_enough = [i for i, edge in enumerate(size) if edge >= 2 * MIN_EDGE]
    if not large_enough:
        return []
    finest = min(spacing[i] for i in large_enough)
    axes = [i for i in large_enough if spacing[i] / finest < 2]
    return [] if len(axes) == 1 and size[axes[0]] < 3 * MIN_EDGE else axes


def initial_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    """The largest patch worth trying: edges inverse to the spacing, 256^3 or 2048^2 voxels, within the median image."""
    dims = len(spacing)
    volume = {2: 2048**2, 3: 256**3}[dims]
    inverse = [1 / s for s in spacing]
    scale = (volume / math.prod(inverse)) ** (1 / dims)
    edges = (round(v * scale) for v in inverse)
    return tuple(int(max(1, min(edge, round(limit)))) for edge, limit in zip(edges, median_shape, strict=True))


def shrink_patch(
    spacing: Sequence[float],
    topology: Topology,
    median_shape: Sequence[float],
    keep_short_axes: bool = False,
) -> Topology | None:
    """One step smaller along the axis that covers most of the median image; None if no axis can give way.

    With `keep_short_axes` an axis gives way last whose extent in mm is below half of the longest: small budgets would
    otherwise turn a stack of few slices into patches of still fewer.

    The step is the divisor of the SHRUNK patch: subtracting the present one (say 64 from 256) would skip sizes that
    are valid with one halving less (224 = 7 * 32).
    """
    covered = [p / m for p, m in zip(topology.patch_size, median_shape, strict=True)]
    extent = [p * s for p, s in zip(topology.patch_size, spacing, strict=True)]
    short = [keep_short_axes and e < _SHORT_FRACTION * max(extent) for e in extent]
    for axis in sorted(range(len(covered)), key=lambda i: (short[i], -covered[i], -i)):
        trial = list(topology.patch_size)
        trial[axis] -= topology.divisor[axis]
        if trial[axis] < 1:
            trial[axis] = 1
        step = pooling_topology(spacing, trial).divisor[axis]
        smaller = list(topology.patch_size)
        smaller[axis] -= step
        if smaller[axis] >= MIN_EDGE:
            candidate = pooling_topology(spacing, smaller)
            if math.prod(candidate.patch_size) < math.prod(topology.patch_size):
                return candidate
    return None


def build_network(
    topology: Topology,
    num_input_channels: int,
    base_features: int,
    max_features: int,
    blocks: Sequence[int] | None = None,
) -> NetworkPlan:
    """U-Net of a topology: features double from level to level up to `max_features`.

    Args:
        topology: patch, strides and kernels.
        num_input_channels: channels of an image.
        base_features, max_features: of the first level, and the most of any.
        blocks: of a residual encoder, one number a level, the last for all further ones; None plans a plain network.
    """
    levels = []
    for i, (stride, kernel) in enumerate(zip(topology.strides, topology.kernels, strict=True)):
        convs = CONVS_PER_LEVEL if blocks is None else blocks[min(i, len(blocks) - 1)]
        levels.append(LevelPlan(min(max_features, base_features * 2**i), stride, kernel, convs))
    encoder: Literal["plain", "resenc"] = "plain" if blocks is None else "resenc"
    return NetworkPlan(len(topology.patch_size), topology.patch_size, num_input_channels, tuple(levels), encoder)


def fit_patch(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    build: Callable[[Topology], NetworkPlan],
    fits: Callable[[NetworkPlan], bool],
    keep_short_axes: bool = False,
) -> NetworkPlan:
    """The network with the largest patch that fits; the smallest possible one where none does (see shrink_patch)."""
    topology = pooling_topology(spacing, initial_patch(spacing, median_shape))
    while not fits(network := build(topology)):
        smaller = shrink_patch(spacing, topology, median_shape, keep_short_axes=keep_short_axes)
        if smaller is None:
            break
        topology = smaller
    return network


def level_shapes(network: NetworkPlan) -> tuple[tuple[int, ...], ...]:
    """Size of the feature maps at each level for the network's own patch."""
    shapes, size = [], network.patch_size
    for level in network.levels:
        size = tuple(edge // stride for edge, stride in zip(size, level.stride, strict=True))
        shapes.append(size)
    return tuple(shapes)


class _FeatureMap(NamedTuple):
    """What one operation of the encoder writes: `taps` is the kernel's voxels, 0 for a pooling."""

    inputs: int
    outputs: int
    taps: int


def _encoder_maps(network: NetworkPlan) -> list[list[_FeatureMap]]:
    """The feature maps of each level of the encoder, all of them of the level's own size."""
    found = []
    inputs = network.num_input_channels
    for i, level in enumerate(network.levels):
        width, taps = level.features, math.prod(level.kernel)
        inner = _FeatureMap(width, width, taps)
        maps = []
        if network.encoder == "plain":
            maps = [_FeatureMap(inputs, width, taps), *[inner] * (level.num_convs - 1)]
        else:
            if network.encoder == "resenc" and i == 0:
                maps, inputs = [_FeatureMap(inputs, width, taps)], width
            maps += [_FeatureMap(inputs, width, taps), *[inner] * (2 * level.num_convs - 1)]
            if inputs != width:
                maps.append(_FeatureMap(inputs, width, 1))
            elif math.prod(level.stride) > 1:
                maps.append(_FeatureMap(inputs, width, 0))
        found.append(maps)
        inputs = width
    return found


def feature_map_values(network: NetworkPlan, num_outputs: int) -> int:
    """Values in all convolution outputs of one example: nnU-Net's measure of memory (5.6e8 in 3D = 8 GB at batch 2)."""
    levels, voxels = network.levels, [math.prod(s) for s in level_shapes(network)]
    total = sum(n * sum(m.outputs for m in maps) for maps, n in zip(_encoder_maps(network), voxels, strict=True))
    for level, n in zip(levels[:-1], voxels[:-1], strict=True):  # the up-convolution and what follows the concatenation
        total += (network.decoder_convs(level) + 1) * level.features * n
    return total + num_outputs * voxels[0]


def multiply_adds(network: NetworkPlan, num_outputs: int) -> int:
    """Multiply-adds of one forward pass of the segmenter over one patch: convolutions, heads of training included."""
    levels, voxels = network.levels, [math.prod(s) for s in level_shapes(network)]
    total = 0
    for maps, n in zip(_encoder_maps(network), voxels, strict=True):
        total += n * sum(m.inputs * m.outputs * m.taps for m in maps)
    for above, level, n in zip(levels[1:], levels[:-1], voxels[:-1], strict=True):
        total += n * above.features * level.features  # stride = kernel: each output voxel is written once
        total += n * math.prod(level.kernel) * level.features * (1 + network.decoder_convs(level)) * level.features
        total += n * level.features * num_outputs
    return total


def denoiser_multiply_adds(network: NetworkPlan, features: Sequence[int], num_channels: int) -> int:
    """Multiply-adds of one call of the denoiser for one sample of one patch, convolutions only.

    A U-Net on space-to-depth of the mask by the segmenter's first stride (`networks.denoiser`): one convolution a level
    on either side. Projecting the segmenter's features takes no part in a call: it is done once a patch.
    """
    levels, voxels = network.levels[1:], [math.prod(s) for s in level_shapes(network)[1:]]
    if not levels:  # images too small for a U-Net: building it says so
        return 0
    used = list(zip(levels, voxels, features, strict=False))
    packed = num_channels * math.prod(levels[0].stride)
    total = voxels[0] * features[0] * (3 * packed + 2 * packed)  # stem, and the head of logits and noise
    total += sum(n * math.prod(level.kernel) * width**2 for level, n, width in used)
    for (level, n, width), (_, _, below) in itertools.pairwise(used):
        total += n * width * (2 * below + math.prod(level.kernel) * width)  # down, up, and the convolution after it
    return total
