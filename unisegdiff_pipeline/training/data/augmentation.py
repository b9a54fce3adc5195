"""nnU-Net's augmentation recipe: what is drawn for an example, and how the draw changes the intensities.

Probabilities and ranges are those of nnU-Net's training transforms (batchgeneratorsv2): rotation, scaling, noise, blur,
brightness, contrast, low resolution, gamma with and without inversion, mirroring. The tests hold every intensity
operation against batchgeneratorsv2 itself for equal parameters. What differs, and why:

- All random numbers of an example are drawn in one place from its own generator, where the library mixes the global
  generators of numpy and torch. An example therefore depends on (seed, iteration, item) alone.
- Blur and low resolution are linear and separable: one small matrix per axis replaces padding, convolution and two
  interpolations (same values up to rounding, a third of the time).
- Gamma works in the range [0, 1] with exp(g ln y) and takes the statistics there (same values up to rounding).
- Rotation and scaling read the case itself (`affine.py`) where nnU-Net reads a patch enlarged for a scale of 1/0.85
  and fills what lies beyond with zeros: here the corners of a strongly shrunk patch hold real voxels.
- Axes that the plan does not mirror are not mirrored, nor by full turns of the plane: 15 degrees take their place.
- For channels normalised inside a non-zero mask, "outside" is where all of them are exactly zero after the spatial
  part; nnU-Net carries the mask as label -1.

Processor time per example on one core, weighted by how often each transform takes place (library / here), one channel:
40 x 56 x 40 with three labels 8.2 / 1.3 ms; 128 x 160 with two labels 0.8 / 0.3 ms. Of the library's 8.2 ms, 7.3 go
into rotation and scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]
Number = TypeVar("Number")


@dataclass(frozen=True)
class AugmentationRecipe:
    """Probabilities and ranges; the defaults are nnU-Net's.

    Attributes:
        dims: 2 or 3, the number of spatial axes of a patch.
        rotation: range of each rotation angle in radians.
        in_plane_only: rotate, scale and lower the resolution within the last two axes only (nnU-Net's "dummy 2D",
            for patches of very coarse first axis).
        scaling: range of the one factor for all axes; above 1 objects become smaller.
        noise_std: range of the standard deviation. nnU-Net calls the same number a variance, yet uses it as the
            standard deviation.
        blur_sigma: range in voxels, one draw per axis.
        low_resolution: range of the fraction of samples kept along each axis.
        mirror_axes: spatial axes that are flipped with probability 0.5 each.
    """

    dims: int
    rotation: Range
    in_plane_only: bool = False
    scaling: Range = (0.7, 1.4)
    noise_std: Range = (0.0, 0.1)
    blur_sigma: Range = (0.5, 1.0)
    brightness: Range = (0.75, 1.25)
    contrast: Range = (0.75, 1.25)
    low_resolution: Range = (0.5, 1.0)
    gamma: Range = (0.7, 1.5)
    mirror_axes: tuple[int, ...] = ()
    p_rotation: float = 0.2
    p_scaling: float = 0.2
    p_noise: float = 0.1
    p_blur: float = 0.2
    p_blur_per_channel: float = 0.5
    p_brightness: float = 0.15
    p_contrast: float = 0.15
    p_low_resolution: float = 0.25
    p_low_resolution_per_channel: float = 0.5
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3


@dataclass(frozen=True)
class AugmentationDraw:
    """The numbers drawn for one example; None means that an operation does not take place.

    Attributes:
        affine: matrix A of `affine.py`, shape (dims, dims).
        noise: (standard deviation, seed of the noise).
        blur: per channel the sigma of each axis in voxels, or None for an untouched channel.
        brightness, contrast, gamma_inverted, gamma: one number per channel.
        low_resolution: per channel the fraction of samples kept, or None for an untouched channel.
        mirror: per spatial axis, whether it is flipped.
    """

    affine: np.ndarray | None
    noise: tuple[float, int] | None
    blur: tuple[tuple[float, ...] | None, ...] | None
    brightness: tuple[float, ...] | None
    contrast: tuple[float, ...] | None
    low_resolution: tuple[float | None, ...] | None
    gamma_inverted: tuple[float, ...] | None
    gamma: tuple[float, ...] | None
    mirror: tuple[bool, ...]

    @property
    def changes_intensity(self) -> bool:
        """Whether any operation but the spatial ones takes place."""
        operations = (self.noise, self.blur, self.brightness, self.contrast)
        return any(o is not None for o in (*operations, self.low_resolution, self.gamma_inverted, self.gamma))


def recipe_for_patch(
    patch_size: Sequence[int], in_plane_only: bool, mirror_axes: Sequence[int] | None = None
) -> AugmentationRecipe:
    """nnU-Net's recipe for a patch: it rotates less where turning would push much of the patch out of view.

    Full turns in 2D and in-plane, 15 degrees for 2D patches of aspect above 1.5, 30 degrees about each axis in 3D.
    Where an axis of the plane is not to be mirrored there are no full turns either, because half a turn mirrors both.

    Args:
        patch_size: of the plan, (Y, X) or (Z, Y, X).
        in_plane_only: for patches of very coarse first axis.
        mirror_axes: axes of the patch that may be mirrored; None: all.
    """
    dims = len(patch_size)
    axes = tuple(range(dims) if mirror_axes is None else mirror_axes)
    elongated_2d = dims == 2 and max(patch_size) / min(patch_size) > 1.5
    in_plane = dims == 2 or in_plane_only
    no_full_turns = in_plane and not {dims - 2, dims - 1} <= set(axes)
    degrees = 15.0 if elongated_2d or no_full_turns else 180.0 if in_plane else 30.0
    angle = math.radians(degrees)
    return AugmentationRecipe(dims, (-angle, angle), in_plane_only and dims == 3, mirror_axes=axes)


def draw_augmentation(recipe: AugmentationRecipe, num_channels: int, rng: np.random.Generator) -> AugmentationDraw:
    """Draw all numbers for one example of `num_channels` image channels."""
    per_channel = range(num_channels)

    def happens(probability: float) -> bool:
        return bool(rng.random() < probability)

    def multipliers(probability: float, limits: Range) -> tuple[float, ...] | None:
        return tuple(_balanced(limits, rng) for _ in per_channel) if happens(probability) else None

    def blur_sigmas() -> tuple[float, ...] | None:
        return tuple(rng.uniform(*recipe.blur_sigma, recipe.dims)) if happens(recipe.p_blur_per_channel) else None

    def fraction_kept() -> float | None:
        return rng.uniform(*recipe.low_resolution) if happens(recipe.p_low_resolution_per_channel) else None

    return AugmentationDraw(
        affine=_draw_affine(recipe, rng),
        noise=(rng.uniform(*recipe.noise_std), int(rng.integers(2**62))) if happens(recipe.p_noise) else None,
        blur=tuple(blur_sigmas() for _ in per_channel) if happens(recipe.p_blur) else None,
        brightness=multipliers(recipe.p_brightness, recipe.brightness),
        contrast=multipliers(recipe.p_contrast, recipe.contrast),
        low_resolution=tuple(fraction_kept() for _ in per_channel) if happens(recipe.p_low_resolution) else None,
        gamma_inverted=multipliers(recipe.p_gamma_inverted, recipe.gamma),
        gamma=multipliers(recipe.p_gamma, recipe.gamma),
        mirror=tuple(axis in recipe.mirror_axes and happens(0.5) for axis in range(recipe.dims)),
    )


def _balanced(limits: Range, rng: np.random.Generator) -> float:
    """Draw below 1 and above 1 equally often, uniformly within each part."""
    low, high = limits
    below = rng.random() < 0.5 and low < 1
    return rng.uniform(low, 1.0) if below else rng.uniform(max(low, 1.0), high)


def _draw_affine(recipe: AugmentationRecipe, rng: np.random.Generator) -> np.ndarray | None:
    rotate, scale = rng.random() < recipe.p_rotation, rng.random() < recipe.p_scaling
    if not (rotate or scale):
        return None
    plane = 2 if recipe.in_plane_only else recipe.dims
    angles = rng.uniform(*recipe.rotation, 3 if plane == 3 else 1) if rotate else np.zeros(3 if plane == 3 else 1)
    inner = rotation_matrix(angles) * (rng.uniform(*recipe.scaling) if scale else 1.0)
    matrix = np.eye(recipe.dims)
    matrix[-plane:, -plane:] = inner
    return matrix


def rotation_matrix(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation by one angle (2, 2), or about the first, then the second, then the third axis (3, 3); radians."""

    def turn(size: int, first: int, second: int, angle: float) -> np.ndarray:
        matrix = np.eye(size)
        matrix[first, first] = matrix[second, second] = math.cos(angle)
        matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
        return matrix

    if len(angles) == 1:
        return turn(2, 0, 1, angles[0])
    return turn(3, 0, 1, angles[2]) @ turn(3, 2, 0, angles[1]) @ turn(3, 1, 2, angles[0])


def augment_intensity(image: Tensor, draw: AugmentationDraw, recipe: AugmentationRecipe, masked: Sequence[int]) -> None:
    """Apply the intensity part of a draw to `image` (C, *patch), float32 and contiguous, in place.

    Args:
        image: normalised patch.
        draw: numbers from `draw_augmentation`.
        recipe: the recipe that the draw came from.
        masked: channels that were normalised inside a non-zero mask; their outside stays zero.
    """
    if not draw.changes_intensity:
        return
    outside = (image[list(masked)] == 0).all(dim=0) if masked else None
    if draw.noise is not None:
        std, seed = draw.noise
        generator = torch.Generator().manual_seed(seed)
        image.add_(torch.empty_like(image).normal_(0.0, 1.0, generator=generator), alpha=std)
    _each_channel(image, draw.blur, _blur)
    _each_channel(image, draw.brightness, lambda channel, factor: channel.mul_(factor))
    _each_channel(image, draw.contrast, _change_contrast)
    first_axis = 1 if recipe.in_plane_only else 0
    _each_channel(
        image, draw.low_resolution, lambda channel, fraction: _lower_resolution(channel, fraction, first_axis)
    )
    _each_channel(image, draw.gamma_inverted, lambda channel, gamma: change_gamma(channel, gamma, inverted=True))
    _each_channel(image, draw.gamma, lambda channel, gamma: change_gamma(channel, gamma, inverted=False))
    if outside is not None:
        for channel in masked:
            image[channel].masked_fill_(outside, 0.0)


def _each_channel(
    image: Tensor, numbers: Sequence[Number | None] | None, change: Callable[[Tensor, Number], object]
) -> None:
    """Call change(channel, number) for every channel that has a number."""
    if numbers is None:
        return
    for channel, number in zip(image, numbers, strict=True):
        if number is not None:
            change(channel, number)


def _blur(channel: Tensor, sigmas: Sequence[float]) -> None:
    apply_along_axes(channel, [blur_matrix(size, sigma) for size, sigma in zip(channel.shape, sigmas, strict=True)])


def _lower_resolution(channel: Tensor, fraction: float, first_axis: int) -> None:
    fractions = [fraction if axis >= first_axis else 1.0 for axis in range(channel.ndim)]
    apply_along_axes(channel, [low_resolution_matrix(n, s) for n, s in zip(channel.shape, fractions, strict=True)])


def _change_contrast(channel: Tensor, factor: float) -> None:
    """Stretch about the mean and keep the range."""
    mean = channel.mean()
    low, high = torch.aminmax(channel)
    channel.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def change_gamma(channel: Tensor, gamma: float, *, inverted: bool) -> None:
    """Raise a channel, scaled to [0, 1], to the power gamma; its mean and standard deviation stay.

    Inverted means that the channel is negated before and after, so that bright and dark change roles.
    """
    low, high = (float(v) for v in torch.aminmax(channel))
    extent = high - low
    if extent < 1e-7:  # a constant patch has no contrast to bend
        return
    if inverted:
        channel.neg_().add_(high).mul_(1 / extent)
    else:
        channel.sub_(low).mul_(1 / extent)
    mean, std = _mean_and_std(channel)
    channel.log_().mul_(gamma).exp_()  # y^gamma; ln 0 = -inf leads back to 0. A third of the time of Tensor.pow_
    new_mean, new_std = _mean_and_std(channel)
    stretch = std / max(new_std, 1e-7)
    shift = mean - new_mean * stretch
    scale, start = (-extent, high) if inverted else (extent, low)
    channel.mul_(scale * stretch).add_(scale * shift + start)


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of values in [0, 1]; that range makes E[y^2] - E[y]^2 exact enough in float32."""
    flat, count = values.reshape(-1), values.numel()
    mean = float(flat.mean())
    variance = (float(torch.dot(flat, flat)) - count * mean * mean) / max(count - 1, 1)
    return mean, math.sqrt(max(variance, 0.0))


def apply_along_axes(channel: Tensor, matrices: Sequence[Tensor | None]) -> None:
    """Replace a contiguous channel by its product with one (n, n) matrix along each axis; None leaves an axis."""
    result = channel
    for axis, matrix in enumerate(matrices):
        if matrix is None:
            continue
        outer, size = math.prod(channel.shape[:axis]), channel.shape[axis]
        if axis == channel.ndim - 1:
            result = result.reshape(outer, size) @ matrix.T
        else:
            result = matrix @ result.reshape(outer, size, -1)
    if result is not channel:
        channel.copy_(result.reshape(channel.shape))


def blur_matrix(size: int, sigma: float) -> Tensor | None:
    """Gaussian blur of `size` samples as a matrix, borders mirrored about the outermost sample.

    The kernel has the odd length next to 6 sigma + 0.5 as in batchgeneratorsv2: 3 to 7 for sigma 0.5 to 1.
    """
    if size == 1:
        return None
    radius = math.floor((6 * sigma + 0.5) / 2)
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2)
    rows, period = np.arange(size), 2 * (size - 1)
    matrix = np.zeros((size, size), np.float32)
    for tap, weight in zip(taps, kernel / kernel.sum(), strict=True):
        columns = np.abs(rows + tap) % period
        matrix[rows, np.where(columns < size, columns, period - columns)] += weight
    return torch.from_numpy(matrix)


def low_resolution_matrix(size: int, fraction: float) -> Tensor | None:
    """Take round(fraction * size) samples by nearest neighbour, then interpolate back: a matrix (size, size)."""
    kept = max(round(size * fraction), 1)
    if kept == size:
        return None
    nearest = np.floor((np.arange(kept) + 0.5) * size / kept).astype(int)
    position = np.maximum((np.arange(size) + 0.5) * kept / size - 0.5, 0.0)
    lower = np.floor(position).astype(int)
    upper = np.minimum(lower + 1, kept - 1)
    towards_upper = position - lower
    matrix = np.zeros((size, size), np.float32)
    rows = np.arange(size)
    matrix[rows, nearest[lower]] += 1 - towards_upper
    matrix[rows, nearest[upper]] += towards_upper
    return torch.from_numpy(matrix)
