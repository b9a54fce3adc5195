"""The closed form of readability against Monte Carlo, another reader's table, and masks that fill their patch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.fft import irfftn, rfftn
from scipy.ndimage import gaussian_filter

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.stages import (
    DEFAULT_EDGES,
    LAM_GRID,
    MAX_FOREGROUND_FRACTION,
    MIN_SPAN,
    class_curve,
    crossing,
    dice_curves,
    plan_stages,
)

FINE = np.arange(-14.0, 4.0, 0.1)
LEVELS = (0.3, 0.5, 0.8, 0.95)
SIGMAS = (0.0, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 11.3, 16.0, 22.6)
BINARY = LabelScheme(("a",), ((1,),), "binary", (1,))


def ball(radius: float, size: int, dims: int) -> np.ndarray:
    """A disc (dims = 2) or ball (dims = 3) in the middle of a patch of `size` voxels an axis."""
    grids = np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * dims, indexing="ij")
    return sum(g * g for g in grids) <= radius**2


def tube(radius: float, size: int, dims: int) -> np.ndarray:
    """A straight tube along the first axis, through the whole patch; a band in 2D."""
    return np.repeat(ball(radius, size, dims - 1)[None], size, axis=0)


def simulated_dice(
    mask: np.ndarray, lams: np.ndarray, max_sigma: float, noise_size: int, num_draws: int, seed: int = 0
) -> np.ndarray:
    """Dice of the best smooth-and-threshold reading by Monte Carlo, same length as `lams`.

    The mask is read at every place of noise fields on a torus, which counts as many draws as a field has voxels. What a
    smoothed noise voxel exceeds is counted in the fields: no normal law, no tau, no pooling, no histogram of the mask.
    """
    noise_shape = (noise_size,) * mask.ndim
    rng = np.random.default_rng(seed)
    spectra = [rfftn(rng.standard_normal(noise_shape, dtype=np.float32)) for _ in range(num_draws)]
    best = np.zeros(len(lams))
    for sigma in (s for s in SIGMAS if s <= max_sigma):
        survival_at, survival = exceedance_of_noise(spectra, sigma, noise_shape)
        scale = survival_at[-1] / 6
        m = gaussian_filter(mask.astype(float), sigma, truncate=3.0, mode="nearest").round(6)
        values, index = np.unique(m, return_inverse=True)
        inside = np.bincount(index.ravel(), weights=mask.ravel())
        outside = np.bincount(index.ravel(), weights=~mask.ravel())
        for i, lam in enumerate(lams):
            signal = 2 * math.exp(lam / 2) * values
            for theta in np.arange(-3 * scale, signal.max() + 4 * scale, 0.1 * scale):
                rate = np.interp(theta - signal, survival_at, survival)
                hits = rate @ inside
                best[i] = max(best[i], 2 * hits / (mask.sum() + hits + rate @ outside))
    return best


def exceedance_of_noise(
    spectra: list[np.ndarray], sigma: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Share of smoothed noise above each of 6001 values over +-6 of its standard deviations."""
    impulse = np.zeros(shape)
    impulse[(0,) * len(shape)] = 1
    kernel = rfftn(gaussian_filter(impulse, sigma, truncate=3.0, mode="wrap")).astype(np.complex64)
    fields = [irfftn(spectrum * kernel, shape) for spectrum in spectra]
    edge = 6 * math.sqrt(np.mean([np.mean(f * f) for f in fields]))
    counts = np.zeros(6000)
    for field in fields:
        bins = np.clip((field.ravel() / edge + 1) * 3000, 0, 5999).astype(np.int64)
        counts += np.bincount(bins, minlength=6000)
    counts += counts[::-1]  # noise and its negative are equally likely
    above = np.concatenate([[0.0], np.cumsum(counts[::-1])])[::-1]
    return np.linspace(-edge, edge, 6001), above / above[0]


@pytest.mark.parametrize(
    ("mask", "max_sigma", "noise_size", "num_draws"),
    [
        pytest.param(ball(3, 64, 2), 2.8, 128, 40, id="disc-3"),
        pytest.param(ball(8, 96, 2), 8.0, 192, 60, id="disc-8"),
        pytest.param(ball(20, 128, 2), 16.0, 256, 60, id="disc-20"),
        pytest.param(tube(2, 64, 2), 2.8, 128, 40, id="band-2"),
        pytest.param(ball(3, 32, 3), 2.8, 40, 20, id="ball-3"),
        pytest.param(ball(6, 48, 3), 5.6, 48, 40, id="ball-6"),
        pytest.param(tube(2, 32, 3), 2.8, 32, 40, id="tube-2"),
    ],
)
def test_closed_form_is_within_a_tenth_of_a_nat_of_monte_carlo(
    mask: np.ndarray, max_sigma: float, noise_size: int, num_draws: int
) -> None:
    planned = dice_curves([mask], (1,) * mask.ndim, FINE)[0]
    at = np.array([crossing(FINE, planned, level) for level in LEVELS])
    simulated = simulated_dice(mask, np.concatenate([at - 0.1, at + 0.1]), max_sigma, noise_size, num_draws)
    below, above = simulated.reshape(2, -1)
    assert np.all(below < LEVELS), (at, below)
    assert np.all(above > LEVELS), (at, above)


@pytest.mark.parametrize(
    ("mask", "levels", "published"),
    [
        pytest.param(ball(3, 128, 2), LEVELS, (-2.5, -1.8, -0.8, 0.5), id="disc-3"),
        pytest.param(ball(8, 128, 2), LEVELS, (-4.6, -3.9, -2.4, -1.2), id="disc-8"),
        pytest.param(ball(25, 128, 2), LEVELS, (-10.1, -8.1, -4.7, -2.8), id="disc-25"),
        pytest.param(tube(2, 128, 2), LEVELS, (-3.6, -2.8, -1.4, -0.1), id="band-2"),
        pytest.param(ball(3, 64, 3), LEVELS, (-3.2, -2.0, -1.2, -0.4), id="ball-3"),
        pytest.param(ball(8, 64, 3), LEVELS, (-5.4, -4.8, -3.7, -2.1), id="ball-8"),
        # it takes 22 % of the patch, so that a Dice of 0.3 or 0.5 says more of the patch than of the mask
        pytest.param(ball(24, 64, 3), LEVELS[2:], (-6.5, -4.8), id="ball-24"),
        pytest.param(tube(2, 64, 3), LEVELS, (-2.9, -2.2, -1.2, -0.2), id="tube-2"),
    ],
)
def test_another_reader_agrees_within_one_and_a_half_nats(
    mask: np.ndarray, levels: tuple[float, ...], published: tuple[float, ...]
) -> None:
    """A simulated reader that keeps the mask's true number of voxels, instead of the best threshold for all draws."""
    planned = dice_curves([mask], (1,) * mask.ndim, FINE)[0]
    assert [crossing(FINE, planned, level) for level in levels] == pytest.approx(published, abs=1.5)


@pytest.mark.parametrize(("dims", "size", "radii"), [(2, 128, (2, 3, 4, 6, 8, 12, 16, 24)), (3, 48, (2, 3, 4, 6, 8))])
def test_larger_objects_are_readable_in_more_noise(dims: int, size: int, radii: tuple[int, ...]) -> None:
    curves = [class_curve("a", [ball(radius, size, dims)], (1,) * dims) for radius in radii]
    for edges in ([c.lam_a for c in curves if c], [c.lam_c for c in curves if c]):
        assert len(edges) == len(radii)
        assert np.all(np.diff(edges) < 0), edges


@pytest.mark.parametrize("mask", [ball(3, 64, 2), ball(20, 64, 2), ball(5, 32, 3), tube(2, 32, 3)])
def test_less_noise_reads_better_at_every_single_lam(mask: np.ndarray) -> None:
    """One call for each lam, since a call for many takes the running maximum."""
    spacing = (1,) * mask.ndim
    single = [dice_curves([mask], spacing, [lam])[0][0] for lam in LAM_GRID[::2]]
    assert np.all(np.diff(single) > -0.002), single
    assert single[-1] > single[0] + 0.3


def filling_masks(size: int, dims: int) -> dict[str, np.ndarray]:
    """Masks of 50 to 95 % of the patch that touch its borders."""
    half, corner, hole = (np.ones((size,) * dims, bool) for _ in range(3))
    half[: size // 2] = False
    corner[(slice(0, size // 2),) * dims] = False
    hole[(slice(size // 4, size // 2),) * dims] = False
    return {"half": half, "corner": corner, "hole": hole}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dims", "size"), [(2, 64), (3, 24)])
def test_masks_that_fill_the_patch_plan_like_any_other(dims: int, size: int) -> None:
    full = np.ones((size,) * dims, bool)
    for name, mask in filling_masks(size, dims).items():
        usable = int(mask.mean() <= MAX_FOREGROUND_FRACTION)
        curve = class_curve("a", [mask], (1,) * dims)
        assert (curve is not None) == usable, name
        assert curve is None or curve.readability[0] < 0.05, name
        assert curve is None or curve.readability[-1] > 0.98, name
        stages = plan_stages({"a": [mask, full]}, dims, (1,) * dims, scheme=BINARY)
        assert sum(c.num_patches for c in stages.curves) == usable
        assert stages.lam_c - stages.lam_a >= MIN_SPAN - 0.011, name  # both edges are rounded to 0.01
        assert LAM_GRID[0] < stages.lam_a < stages.lam_c < LAM_GRID[-1], name
    only_full = plan_stages({"a": [full, full]}, dims, (1,) * dims, scheme=BINARY)
    assert (only_full.lam_a, only_full.lam_c) == DEFAULT_EDGES


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("patch", [64, 224])
def test_tumours_that_fill_the_image_plan_without_an_edge_case(raw_data: Path, patch: int) -> None:
    folder = raw_data / "Dataset105_EBHI"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    raw = open_raw_dataset(folder)
    paths = [case.label_path for case in raw.cases[:24] if case.label_path is not None]
    labels = [read_labels(path).array[0, 0] for path in paths]
    (name,) = raw.description.labels.names
    patches = [label[:patch, :patch] > 0 for label in labels]
    fractions = np.array([p.mean() for p in patches])
    usable = int(((fractions > 0) & (fractions <= MAX_FOREGROUND_FRACTION)).sum())
    assert np.mean(fractions[fractions > 0]) > 0.4  # else this is no test of what it says
    stages = plan_stages({name: patches}, 2, (1, 1), scheme=raw.description.labels)
    (curve,) = stages.curves
    assert curve.num_patches == usable > 0
    assert np.all(np.diff(curve.readability) >= 0)
    assert LAM_GRID[0] < stages.lam_a < stages.lam_c < LAM_GRID[-1]
