"""Generated pictures with lesions, as unlike each other as they can be made (domain randomisation, Tobin et al. 2017).

Nothing in them is modelled on an organ or a scanner: grey values and colours, textures, shapes, contrasts and artefacts
are random, so that what all of them have in common is all there is to learn: a lesion is a compact body that stands out
from what surrounds it. Ranges were chosen by looking at pictures; none was tuned on a score.

All functions work in any number of dimensions; lengths are in voxels unless a name says otherwise. Every random number
comes from the generator passed in, so that a picture is identified by its seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.special import expit

EMPTY_FRACTION = 0.1
NUM_LESIONS = (1, 1, 1, 2, 3)  # one of these, where there are any
_WAVES = 5  # that the boundary of a body is bent by


@dataclass(frozen=True)
class Picture:
    """A picture (C, *size), float32 with zero mean and unit variance in each channel, and its lesions (*size), bool."""

    image: np.ndarray
    mask: np.ndarray


def draw_picture(rng: np.random.Generator, size: Sequence[int], channels: int) -> Picture:
    """A picture with no lesion, or with up to three; half of the pictures have equal channels, as a grey image has."""
    size = tuple(size)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij"))
    palette = _Palette(channels, 0.0 if rng.random() < 0.5 else rng.uniform(0.05, 0.2))
    image = _with_vessels(rng, _draw_tissue(rng, grid, palette), grid, palette)
    image, mask = _with_lesions(rng, image, grid, palette)
    image, mask = _acquired(rng, image, mask, grid)
    return Picture(_normalised(rng, image), mask)


# ------------------------------------------------------------------------------------------------------- ingredients


@dataclass(frozen=True)
class _Palette:
    """How far the channels of a picture go apart."""

    channels: int
    spread: float

    def tinted(self, rng: np.random.Generator, value: float, dims: int) -> np.ndarray:
        """A value a channel (C, 1, ...), around the one given."""
        values = value + self.spread * rng.normal(size=self.channels)
        return values.reshape(-1, *(1,) * dims).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: Sequence[int], lengths: Sequence[float]) -> np.ndarray:
    """Gaussian noise with a correlation length for each axis, of zero mean and unit variance, (*size)."""
    step = [max(1, int(length / 2)) for length in lengths]
    coarse = [math.ceil(n / s) + 2 for n, s in zip(size, step, strict=True)]
    sigma = [length / s for length, s in zip(lengths, step, strict=True)]
    noise = gaussian_filter(rng.standard_normal(coarse, np.float32), sigma, mode="wrap", truncate=2.5)
    if max(step) > 1:
        noise = zoom(noise, step, order=1)
    noise = noise[tuple(slice(n) for n in size)]
    return (noise - noise.mean()) / (noise.std() + 1e-6)


def _lengths(rng: np.random.Generator, dims: int, low: float, high: float, stretch: float = 2.5) -> list[float]:
    """Correlation lengths around a random one between `low` and `high`; half of the time equal along all axes."""
    length = _between(rng, low, high)
    if rng.random() < 0.5:
        return [length] * dims
    return [length * _between(rng, 1 / stretch, stretch) for _ in range(dims)]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is evenly distributed."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _texture(rng: np.random.Generator, size: Sequence[int]) -> np.ndarray:
    """One or two noises of different lengths, of unit variance."""
    dims = len(size)
    count = rng.integers(1, 3)
    noises = (rng.uniform(0.2, 1) * smooth_noise(rng, size, _lengths(rng, dims, 0.6, 6)) for _ in range(count))
    total: np.ndarray = sum(noises, np.zeros(size, np.float32))
    return total / (total.std() + 1e-6)


def body_distance(
    rng: np.random.Generator, grid: np.ndarray, centre: np.ndarray, radius: float, roughness: float = 0.3
) -> np.ndarray:
    """Radial distance (*size) to a bent ellipsoid of random orientation, negative inside; grid is (dims, *size)."""
    dims = len(grid)
    axes, _ = np.linalg.qr(rng.normal(size=(dims, dims)))
    log_scale = rng.uniform(-0.4, 0.4, dims)
    scale = np.exp(log_scale - log_scale.mean())
    offset = np.tensordot((axes * scale[:, None]).astype(np.float32), grid - _point(centre), axes=1)
    length = np.sqrt((offset**2).sum(axis=0))
    direction = offset / np.maximum(length, 1e-6)
    bent = np.ones_like(length)
    rough = rng.uniform(0, roughness)
    for wave in range(1, _WAVES + 1):
        frequency = rng.normal(0, wave, dims).astype(np.float32)
        bent += rough / wave * rng.normal() * np.sin(np.tensordot(frequency, direction, axes=1) + rng.uniform(0, 6.3))
    return length - radius * np.maximum(bent, 0.3)


def _point(position: np.ndarray) -> np.ndarray:
    """A position (dims,) to be taken off a grid."""
    return position.reshape(-1, *(1,) * len(position)).astype(np.float32)


def _edge(grid: np.ndarray) -> int:
    """The shorter edge of a slice, which sizes of bodies refer to."""
    return min(grid.shape[-2:])


def _anywhere(rng: np.random.Generator, grid: np.ndarray, margin: float) -> np.ndarray:
    """A point, at least a fraction `margin` of the picture away from its edges."""
    return rng.uniform(margin, 1 - margin, len(grid)) * grid.shape[1:]


# --------------------------------------------------------------------------------------------------------- the parts


def _draw_tissue(rng: np.random.Generator, grid: np.ndarray, palette: _Palette) -> np.ndarray:
    """A few regions (C, *size), each with a colour and a texture: large bodies, shells and level sets of noise."""
    size, edge = grid.shape[1:], _edge(grid)
    image = _material(rng, size, palette)
    for _ in range(rng.integers(1, 5)):
        kind = rng.random()
        if kind < 0.45:
            level = smooth_noise(rng, size, _lengths(rng, len(size), edge / 8, edge / 2, 4)) - rng.normal(0, 0.7)
            inside = expit(level * rng.uniform(5, 30))
        else:
            distance = body_distance(rng, grid, _anywhere(rng, grid, 0.0), edge * rng.uniform(0.4, 0.8))
            if kind > 0.8:  # a shell, as skull, wall and rind are
                distance = np.abs(distance) - edge * rng.uniform(0.01, 0.06)
            inside = expit(-distance / rng.uniform(0.3, 2))
        image = image * (1 - inside) + inside * _material(rng, size, palette)
    return image


def _material(rng: np.random.Generator, size: Sequence[int], palette: _Palette) -> np.ndarray:
    """A colour with a texture, (C, *size)."""
    return palette.tinted(rng, rng.uniform(0, 1), len(size)) + rng.uniform(0, 0.12) * _texture(rng, size)


def _with_vessels(rng: np.random.Generator, image: np.ndarray, grid: np.ndarray, palette: _Palette) -> np.ndarray:
    """Up to three winding lines (sheets in 3D): vessels, folds, ribs."""
    size, edge = grid.shape[1:], _edge(grid)
    for _ in range(rng.integers(0, 4)):
        normal = rng.standard_normal(len(grid), np.float32)
        normal /= np.linalg.norm(normal)
        across = np.tensordot(normal, grid - _point(_anywhere(rng, grid, 0.0)), axes=1)
        across += edge * rng.uniform(0, 0.06) * smooth_noise(rng, size, [edge / 5] * len(size))
        profile = expit((_between(rng, 0.6, 0.05 * edge) - np.abs(across)) / 0.5)
        image = image + palette.tinted(rng, rng.uniform(-0.5, 0.5), len(size)) * profile
    return image


def _with_lesions(
    rng: np.random.Generator, image: np.ndarray, grid: np.ndarray, palette: _Palette
) -> tuple[np.ndarray, np.ndarray]:
    """Lesions on top of the tissue, nearly all brighter or nearly all darker; image (C, *size), mask (*size)."""
    mask = np.zeros(grid.shape[1:], bool)
    if rng.random() < EMPTY_FRACTION:
        return image, mask
    count = int(rng.choice(NUM_LESIONS))
    largest = 0.36 if count == 1 else 0.2
    sign = rng.choice((-1.0, 1.0))
    blurred = gaussian_filter(image, (0, *(_edge(grid) / 16,) * len(grid)), truncate=2)
    for _ in range(count):
        radius = _edge(grid) * _between(rng, 0.06, largest)
        centre = _anywhere(rng, grid, 0.12)
        distance = body_distance(rng, grid, centre, radius)
        distance += rng.uniform(0, 0.2) * radius * smooth_noise(rng, mask.shape, [max(1.0, radius / 3)] * mask.ndim)
        contrast = palette.tinted(rng, sign * rng.uniform(0.2, 0.6) * (-1 if rng.random() < 0.1 else 1), mask.ndim)
        image = _painted(rng, image, blurred + contrast, distance, radius)
        if rng.random() < 0.25:
            image = image + rng.uniform(-0.3, 0.3) * _shadow(grid, centre, radius) * (distance > 0)
        mask |= distance < 0
    return image, mask


def _painted(
    rng: np.random.Generator, image: np.ndarray, surroundings: np.ndarray, distance: np.ndarray, radius: float
) -> np.ndarray:
    """A lesion with texture, often a rim or core, and an edge between sharp and blurred."""
    inside = distance < 0
    content = surroundings
    if inside.any():  # between the surroundings' structure and one even colour
        even = surroundings[:, inside].mean(axis=1).reshape(-1, *(1,) * distance.ndim)
        weight = rng.uniform(0, 1)
        content = weight * surroundings + (1 - weight) * even
    content = content + rng.uniform(0, 0.2) * _texture(rng, distance.shape)
    if rng.random() < 0.3:
        content = content + rng.uniform(-0.4, 0.4) * expit((distance + radius * rng.uniform(0.2, 0.6)) / 0.7)
    profile = expit(-distance / rng.uniform(0.2, 0.2 + 0.12 * radius))
    return image * (1 - profile) + profile * content


def _shadow(grid: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """What lies behind a lesion along the axis before the last, as behind a mass in ultrasound, (*size)."""
    aside = np.delete(grid - _point(centre), len(grid) - 2, axis=0)
    behind = (np.sqrt((aside**2).sum(axis=0)) < 0.8 * radius) & (grid[-2] > centre[-2])
    return gaussian_filter(behind.astype(np.float32), 1.5, truncate=2)


def _acquired(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shading, speckle, blur, noise, highlights and a field of view, each in a part of the pictures."""
    size, edge = mask.shape, _edge(grid)
    image = image * (1 + rng.uniform(0, 0.2) * smooth_noise(rng, size, [edge / 2] * len(size)))
    if rng.random() < 0.3:
        image = image * (1 + rng.uniform(0.05, 0.35) * smooth_noise(rng, size, _lengths(rng, len(size), 0.5, 1.5)))
    if rng.random() < 0.5:
        image = gaussian_filter(image, (0, *(rng.uniform(0.3, 1.2),) * len(size)), truncate=2.5)
    image = image + rng.uniform(0, 0.08) * rng.standard_normal(image.shape if rng.random() < 0.5 else size, np.float32)
    if rng.random() < 0.15:
        for _ in range(rng.integers(1, 8)):
            spot = body_distance(rng, grid, _anywhere(rng, grid, 0.0), rng.uniform(0.5, 2.5))
            image = np.maximum(image, rng.uniform(0.8, 1.3) * expit(-spot / 0.4))
    if rng.random() < 0.25:
        from_centre = grid - _point(np.array(size) / 2)
        outside = np.sqrt((from_centre**2).sum(axis=0)) > edge * rng.uniform(0.45, 0.62)
        image = np.where(outside, rng.uniform(-0.2, 0.2) if rng.random() < 0.8 else rng.uniform(0, 1), image)
        mask = mask & ~outside
    return image, mask


def _normalised(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Clipped at outer percentiles, with a random gamma, each channel with zero mean and unit variance."""
    low, high = np.percentile(image[..., ::2, ::2], (0.5, 99.5))
    image = np.clip((image - low) / (high - low + 1e-6), 0, 1) ** math.exp(rng.normal(0, 0.3))
    spatial = tuple(range(1, image.ndim))
    mean, spread = image.mean(axis=spatial, keepdims=True), image.std(axis=spatial, keepdims=True)
    return ((image - mean) / (spread + 1e-3)).astype(np.float32)
