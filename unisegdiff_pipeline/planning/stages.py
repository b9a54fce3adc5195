"""Edges of the diffusion stages, planned in closed form from label patches: no image, no network, no Monte Carlo.

A mask x0 in {0, 1} noised at log signal-to-noise ratio lam is, up to an offset and a scale, y = r*x0 + e with unit
noise e and r = 2 exp(lam/2), because the coded mask is 2*x0 - 1. The best reader that knows no image smooths y with a
Gaussian g and applies a threshold theta. With m = g * x0 and tau^2 = sum g^2,

    E[TP] = sum over lesion voxels     Phi((r*m - theta) / tau)
    E[FP] = sum over background voxels Phi((r*m - theta) / tau)
    D(lam) = max over g and theta of  2 E[TP] / (|x0| + E[TP] + E[FP])

Only the histograms of m inside and outside of the lesion enter, so that Phi is evaluated once for all patches. Chance
level D0 = 2 pi / (1 + pi) of a mask with foreground fraction pi is removed: S = clip((D - D0) / (1 - D0), 0, 1).

Codings: a binary task or a region has one channel. One-hot classes have two channels that tell a class from the
background, which doubles the signal-to-noise ratio: their curves move by -ln 2 on lam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices, grow_box, nonzero_box
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.parallel import usable_cores
from unisegdiff_pipeline.planning.plans import ReadabilityCurve, StagePlan

LAM_GRID: tuple[float, ...] = tuple(float(v) for v in np.arange(-18.0, 6.01, 0.5))
READABLE_AT_A = 0.25  # below lam_a a mask tells less than this fraction of what lies between chance and perfect
READABLE_AT_C = 0.93  # above lam_c the noised mask alone beats what a segmenter is expected to reach
DEFAULT_EDGES = (-4.0, 0.0)  # where no patch has a readable mask: those of a lesion of about 8 voxels across
MIN_SPAN = 2.0
MAX_SPAN = 10.0
MAX_FOREGROUND_FRACTION = 0.95
_SIGMAS = (0.0, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6, 32.0)
_NUM_BINS = 96
_NUM_THRESHOLDS = 64
_TRUNCATE = 3.0


def plan_stages(
    patches: Mapping[str, Sequence[np.ndarray]],
    dims: int,
    spacing: Sequence[float],
    *,
    scheme: LabelScheme | None = None,
) -> StagePlan:
    """Plan lam_a and lam_c from label patches at plan spacing and patch size.

    Args:
        patches: per foreground class or region, boolean arrays of `dims` axes; empty and nearly full ones are skipped.
        dims: 2 for (Y, X) patches, 3 for (Z, Y, X) patches.
        spacing: voxel size of the patches, one number an axis (only their ratios matter); more than `dims` numbers
            are taken as (Z, Y, X) and the last `dims` are used.
        scheme: the coding of the labels; without it every class is one channel of its own, as in a binary task.

    Raises:
        ValueError: for a patch with another number of axes.
    """
    spacing = tuple(float(s) for s in spacing)[-dims:]
    coding_shift = _coding_shift(scheme)
    curves = []
    for name, masks in patches.items():
        curve = class_curve(name, masks, spacing, coding_shift)
        if curve is not None:
            curves.append(curve)
    return combine_curves(tuple(curves), scheme)


def refine_stages(
    plan: StagePlan, d_c: Mapping[str, float], uncertainty: Mapping[str, float], scheme: LabelScheme
) -> StagePlan:
    """The edges of a plan with what a trained segmenter does on held-out cases in place of what was expected of it.

    Args:
        plan: as planned from the labels, with its curves.
        d_c: Dice reached on held-out cases, by class: a noised mask is nearly known once it tells more than this.
            Classes that are missing keep their lam_c.
        uncertainty: mean over held-out patches of sum p (1 - p), by class; lam_a is at most the lam where starting
            from the segmenter's mask instead of the true one costs 1 nat. Classes that are missing keep their lam_a.
        scheme: the coding of the labels.
    """
    shift = _coding_shift(scheme)
    curves = []
    for curve in plan.curves:
        reached = d_c.get(curve.class_name)
        if reached is not None:
            level = max(READABLE_AT_C, reached)
            found = crossing(np.asarray(curve.lam), np.asarray(curve.readability), level)
            curve = replace(curve, lam_c=round(found, 2))
        curves.append(_with_truncation(curve, uncertainty.get(curve.class_name), shift))
    return combine_curves(tuple(curves), scheme) if curves else plan


def class_curve(
    name: str, masks: Sequence[np.ndarray], spacing: Sequence[float], lam_shift: float = 0.0
) -> ReadabilityCurve | None:
    """Mean readability of the usable patches of one class with its own two edges; None if no patch is usable."""
    for mask in masks:
        if mask.ndim != len(spacing):
            raise ValueError(f"a patch of class {name!r} has shape {mask.shape}, expected {len(spacing)} axes")
    usable = [m for m in masks if 0.0 < m.mean() <= MAX_FOREGROUND_FRACTION]
    if not usable:
        return None
    lam = np.asarray(LAM_GRID)
    mean = np.mean(_readability(usable, dice_curves(usable, spacing, lam_shift=lam_shift)), axis=0)
    return ReadabilityCurve(
        class_name=name,
        lam=LAM_GRID,
        readability=tuple(round(float(v), 4) for v in mean),
        lam_a=round(crossing(lam, mean, READABLE_AT_A), 2),
        lam_c=round(crossing(lam, mean, READABLE_AT_C), 2),
        num_patches=len(usable),
    )


def _readability(masks: Sequence[np.ndarray], dice: np.ndarray) -> np.ndarray:
    """Dice (masks, lam) without what chance gives."""
    fraction = np.array([mask.mean() for mask in masks])[:, None]
    chance = 2 * fraction / (1 + fraction)
    return np.clip((dice - chance) / (1 - chance), 0.0, 1.0)


def dice_curves(
    masks: Sequence[np.ndarray],
    spacing: Sequence[float],
    lam: Sequence[float] | None = None,
    lam_shift: float = 0.0,
) -> np.ndarray:
    """Expected Dice D(lam) of the best smooth-and-threshold reading of each mask, (masks, lam).

    Args:
        masks: boolean, any number of axes, neither empty nor full.
        spacing: voxel size of each axis; the smoothing is isotropic in this unit.
        lam: where to evaluate, LAM_GRID by default.
        lam_shift: move of the curve along lam, -ln 2 for one-hot coding.
    """
    lams = tuple(LAM_GRID if lam is None else (float(v) for v in lam))
    sizes = np.array([mask.sum() for mask in masks])
    with ThreadPoolExecutor(usable_cores()) as pool:  # smoothing leaves the interpreter lock free
        smoothed = list(pool.map(lambda mask: _all_histograms(mask, spacing), masks))
    best = np.zeros((len(masks), len(lams)))
    for sigma in _SIGMAS:
        chosen = [i for i, histograms in enumerate(smoothed) if sigma in histograms]
        if not chosen:
            continue
        tau = math.prod(math.sqrt(_smoothed_variance(s)) for s in _in_voxels(sigma, spacing))
        rates = _exceedance(lams, lam_shift, round(tau, 6)).reshape(-1, _NUM_BINS)  # (lam and theta, bin)
        histograms = np.concatenate([smoothed[i][sigma] for i in chosen], axis=1)
        true_pos, all_pos = np.moveaxis((rates @ histograms).reshape(len(lams), -1, len(chosen), 2), -1, 0)
        dice = 2 * true_pos / (sizes[chosen] + all_pos)  # (lam, theta, mask)
        best[chosen] = np.maximum(best[chosen], dice.max(axis=1).T)
    return np.maximum.accumulate(best, axis=1)


def crossing(lam: np.ndarray, values: np.ndarray, level: float) -> float:
    """First lam at which a rising curve reaches `level`, linear between grid points, clipped to the grid's ends."""
    above = np.flatnonzero(values >= level)
    if above.size == 0:
        return float(lam[-1])
    i = int(above[0])
    if i == 0:
        return float(lam[0])
    part = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(lam[i - 1] + part * (lam[i] - lam[i - 1]))


def truncation_edge(uncertainty: float) -> float:
    """The lam where 2 exp(lam) * sum p(1-p) = 1 nat, with `uncertainty` = sum p(1-p) over a patch."""
    if uncertainty <= 0:
        raise ValueError(f"uncertainty is {uncertainty}, must be a positive sum of p*(1-p)")
    return -math.log(2.0 * uncertainty)


def _all_histograms(mask: np.ndarray, spacing: Sequence[float]) -> dict[float, np.ndarray]:
    """The histograms of a mask for each kernel that is worth trying."""
    box = nonzero_box(mask)
    assert box is not None, "a mask to read is not empty"
    sigmas = _sigmas_for(mask, box, spacing)
    return {sigma: _smooth_histograms(mask, box, _in_voxels(sigma, spacing)) for sigma in sigmas}


def _in_voxels(sigma: float, spacing: Sequence[float]) -> tuple[float, ...]:
    """A kernel width in units of the finest voxel as voxels of each axis."""
    return tuple(sigma * min(spacing) / s for s in spacing)


def _smooth_histograms(mask: np.ndarray, box: Box, sigma_vox: tuple[float, ...]) -> np.ndarray:
    """Voxels of the lesion, and all, in each bin of m = g * x0 in [0, 1] => (bins, 2); m is zero beyond the kernel."""
    part = _reachable_part(mask, box, sigma_vox)
    factors = tuple(_pooling_factor(s) for s in sigma_vox)
    ones = part.astype(np.float32)
    cells: np.ndarray | None = None
    if max(factors) > 1:
        ones, cells = block_sums(ones, factors)
    smooth = ones if cells is None else ones / cells
    for axis, (sigma, factor) in enumerate(zip(sigma_vox, factors, strict=True)):
        # pooling is itself a box of variance (f^2 - 1)/12, which the Gaussian of the pooled grid leaves out
        rest = math.sqrt(max(sigma * sigma - (factor * factor - 1) / 12, 0.0)) / factor
        smooth = _along_axis(smoothing_matrix(smooth.shape[axis], rest), smooth, axis)
    smooth *= _NUM_BINS - 1
    if cells is None:  # counting voxels is several times faster than adding weights
        bins = (smooth + (_NUM_BINS * ones + 0.5)).astype(np.intp)
        outside, inside = np.bincount(bins.ravel(), minlength=2 * _NUM_BINS).reshape(2, -1)
        every = inside + outside
    else:
        bins = (smooth + 0.5).astype(np.intp)
        inside = np.bincount(bins.ravel(), weights=ones.ravel(), minlength=_NUM_BINS)
        every = np.bincount(bins.ravel(), weights=cells.ravel(), minlength=_NUM_BINS)
    every[0] += mask.size - part.size
    return np.stack([inside, every], axis=1).astype(float)


def _along_axis(matrix: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    """`matrix` (m, n) applied to an axis of n values."""
    before, after = math.prod(values.shape[:axis]), math.prod(values.shape[axis + 1 :])
    if after == 1:
        result = values.reshape(before, -1) @ matrix.T
    else:
        result = matrix @ values.reshape(before, -1, after)
    return result.reshape(*values.shape[:axis], len(matrix), *values.shape[axis + 1 :])


def smoothing_matrix(length: int, sigma: float) -> np.ndarray:
    """Gaussian smoothing of an axis as a matrix (length, length); beyond an end all is as at the end."""
    line, sums = _kernel(sigma, length)
    rows, middle = np.arange(length), len(line) // 2
    matrix = line[(middle - rows)[:, None] + rows]
    matrix[:, 0] += sums[middle - rows]
    matrix[:, -1] += 1 - sums[middle + length - rows]
    return matrix


def _reachable_part(mask: np.ndarray, box: Box, sigma_vox: tuple[float, ...]) -> np.ndarray:
    """The mask's box with the kernel's reach around it; m is zero elsewhere."""
    reaches = [math.ceil(_TRUNCATE * sigma) + 1 for sigma in sigma_vox]
    return mask[box_slices(grow_box(box, reaches, mask.shape))]


def _pooling_factor(sigma: float) -> int:
    """Wide smoothing is done on a coarser grid; cells as wide as half of sigma would cost a tenth of a nat."""
    return 1 if sigma < 5.6 else 2 if sigma < 11.3 else 4 if sigma < 22.6 else 8


def block_sums(values: np.ndarray, factors: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Sums over blocks of `factors` voxels and the number of voxels in each block (fewer at the far border)."""
    counts = np.ones((1,) * values.ndim, np.float32)
    for axis, (length, factor) in enumerate(zip(values.shape, factors, strict=True)):
        block_of_voxel = np.arange(length) // factor
        members = (np.arange(block_of_voxel[-1] + 1)[:, None] == block_of_voxel).astype(np.float32)
        values = _along_axis(members, values, axis)
        counts = counts * np.expand_dims(members.sum(axis=1), tuple(a for a in range(values.ndim) if a != axis))
    return values, counts


@lru_cache(maxsize=1024)
def _kernel(sigma: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The sampled, normalised Gaussian of one axis, from `length` voxels before to as many after, and its sums so far.

    Sums begin with 0 and end with 1.
    """
    reach = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-max(reach, length), max(reach, length) + 1)
    weights = np.where(abs(offsets) <= reach, np.exp(-0.5 * (offsets / max(sigma, 1e-6)) ** 2), 0.0)
    weights /= weights.sum()
    return weights.astype(np.float32), np.concatenate([[0.0], np.cumsum(weights)]).astype(np.float32)


@lru_cache(maxsize=256)
def _smoothed_variance(sigma: float) -> float:
    """What the sampled, normalised one-axis Gaussian leaves of unit noise: the sum of its squares."""
    if sigma < 0.15:
        return 1.0
    reach = max(1, math.ceil(_TRUNCATE * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return float(((kernel / kernel.sum()) ** 2).sum())


@lru_cache(maxsize=256)
def _exceedance(lams: tuple[float, ...], lam_shift: float, tau: float) -> np.ndarray:
    """Phi((r*m - theta)/tau) for every lam, threshold and bin of m, shape (lam, theta, bin); cached per kernel."""
    from scipy.special import ndtr

    bins = np.linspace(0.0, 1.0, _NUM_BINS)
    signal = 2 * np.exp((np.asarray(lams) - lam_shift) / 2) / tau  # (lam,) peak of the smoothed mask in units of noise
    # Thresholds between "keep nearly all" and "keep nearly nothing", spaced by the noise and by the signal
    unit = np.linspace(0.0, 1.0, _NUM_THRESHOLDS)
    theta = -3.0 + unit[None, :] * (signal[:, None] + 7.0)  # (lam, theta)
    return ndtr(signal[:, None, None] * bins - theta[:, :, None])


def _sigmas_for(mask: np.ndarray, box: Box, spacing: Sequence[float]) -> tuple[float, ...]:
    """Kernel widths worth trying, in units of the finest voxel: up to twice the radius of the thickest part.

    A tube is read in the most noise by a kernel wider than itself, which also gathers voxels along it.
    """
    radius = _half_thickness(mask, box, spacing) / min(spacing)
    return tuple(s for s in _SIGMAS if s <= max(1.0, 2 * radius))


def _half_thickness(mask: np.ndarray, box: Box, spacing: Sequence[float]) -> float:
    """Largest distance of a mask voxel to the nearest background voxel, in units of `spacing`."""
    from scipy.ndimage import distance_transform_edt

    part = _reachable_part(mask, box, (0.0,) * mask.ndim)
    # A big mask is measured on a coarser grid: a voxel more or less of radius changes no choice of kernel
    step = max(1, round((part.size / 200_000) ** (1 / part.ndim)))
    part = part[(slice(None, None, step),) * part.ndim]
    if part.all():
        return min(n * s for n, s in zip(mask.shape, spacing, strict=True))
    return float(distance_transform_edt(part, sampling=[s * step for s in spacing]).max())


def _coding_shift(scheme: LabelScheme | None) -> float:
    return -math.log(2.0) if scheme is not None and scheme.coding == "softmax" else 0.0


def _with_truncation(curve: ReadabilityCurve, uncertainty: float | None, lam_shift: float) -> ReadabilityCurve:
    if uncertainty is None or uncertainty <= 0:
        return curve
    # In one-hot coding the background's channel pays the same nats again
    return replace(curve, lam_a=round(min(curve.lam_a, truncation_edge(uncertainty) + lam_shift), 2))


def combine_curves(curves: tuple[ReadabilityCurve, ...], scheme: LabelScheme | None) -> StagePlan:
    """Edges over all classes: the earliest lam_a and the latest lam_c, after scaling where they lie too far apart."""
    num_channels = scheme.num_channels if scheme is not None else max(len(curves), 1)
    if not curves:
        return StagePlan(*DEFAULT_EDGES, input_scale=(1.0,) * num_channels, curves=())
    scale = (1.0,) * num_channels
    lam_a, lam_c = min(c.lam_a for c in curves), max(c.lam_c for c in curves)
    if lam_c - lam_a > MAX_SPAN and num_channels > 1:
        per_class = _class_scales(curves)
        scale = _channel_scales(per_class, curves, scheme, num_channels)
        background = scale[0] if scheme is not None and scheme.coding == "softmax" else None
        moves = {name: _move_on_lam(b, background) for name, b in per_class.items()}
        lam_a = min(c.lam_a - moves[c.class_name] for c in curves)
        lam_c = max(c.lam_c - moves[c.class_name] for c in curves)
    if lam_c - lam_a < MIN_SPAN:
        middle = (lam_a + lam_c) / 2
        lam_a, lam_c = middle - MIN_SPAN / 2, middle + MIN_SPAN / 2
    return StagePlan(round(lam_a, 2), round(lam_c, 2), scale, curves)


def _class_scales(curves: Sequence[ReadabilityCurve]) -> dict[str, float]:
    """Input scale b of each class that puts the middles of all transitions on one lam (2 ln b is a move on lam)."""
    middles = {c.class_name: (c.lam_a + c.lam_c) / 2 for c in curves}
    common = float(np.mean(list(middles.values())))
    return {name: float(np.clip(math.exp((middle - common) / 2), 0.125, 8.0)) for name, middle in middles.items()}


def _move_on_lam(scale: float, background: float | None) -> float:
    """How far an input scale moves a class down on lam; one-hot classes are read from the background's channel, too."""
    if background is None:
        return 2 * math.log(scale)
    return math.log((scale**2 + background**2) / 2)


def _channel_scales(
    per_class: Mapping[str, float], curves: Sequence[ReadabilityCurve], scheme: LabelScheme | None, num_channels: int
) -> tuple[float, ...]:
    """Scales in the order of the coded channels; classes without a curve keep 1.

    The background's channel takes the smallest scale of all classes: at any other it would show the class of that scale
    in noise where its own channel hides it.
    """
    if scheme is None:
        return tuple(round(per_class[c.class_name], 4) for c in curves)
    scales = [round(min(per_class.values()), 4) if scheme.coding == "softmax" else 1.0] + [1.0] * (num_channels - 1)
    for i, name in enumerate(scheme.names):
        scales[scheme.foreground_offset + i] = round(per_class.get(name, 1.0), 4)
    return tuple(scales)
