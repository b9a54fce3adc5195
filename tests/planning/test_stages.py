"""Stage edges against values computed independently by simulation, and their behaviour at the corners."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.planning.plans import ReadabilityCurve
from unisegdiff_pipeline.planning.stages import (
    DEFAULT_EDGES,
    LAM_GRID,
    block_sums,
    class_curve,
    combine_curves,
    crossing,
    dice_curves,
    plan_stages,
    refine_stages,
    smoothing_matrix,
    truncation_edge,
)

FINE = np.arange(-14.0, 4.0, 0.1)


def ball(radius: float, size: int = 128, dims: int = 2) -> np.ndarray:
    """A disc or ball between the middle voxels, so that r = 3 has 32 pixels."""
    grids = np.meshgrid(*[np.arange(size) - size / 2 + 0.5] * dims, indexing="ij")
    return sum(g * g for g in grids) <= radius**2


def scheme(coding: str, *names: str) -> LabelScheme:
    values = tuple((i + 1,) for i in range(len(names)))
    return LabelScheme(names, values, coding, tuple(v[0] for v in values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("radius", "lam_30", "lam_95"), [(3, -2.3, 0.5), (8, -4.7, -0.7), (25, -8.7, -2.9)])
def test_discs_are_readable_where_simulation_says(radius: int, lam_30: float, lam_95: float) -> None:
    dice = dice_curves([ball(radius)], (1, 1), FINE)[0]
    assert crossing(FINE, dice, 0.3) == pytest.approx(lam_30, abs=0.12)
    assert crossing(FINE, dice, 0.95) == pytest.approx(lam_95, abs=0.12)


def test_expected_dice_agrees_with_noise_drawn_and_thresholded() -> None:
    """The closed form against a direct simulation of the same reading at one lam, on a torus (no border)."""
    from scipy.ndimage import gaussian_filter

    mask, lam = ball(8, 96), -3.0
    noise = np.random.default_rng(0).standard_normal((40, *mask.shape))
    best = 0.0
    for sigma in (4.0, 5.6):
        observed = (2 * math.exp(lam / 2) * mask + e for e in noise)
        fields = [gaussian_filter(y, sigma, truncate=3.0, mode="wrap") for y in observed]
        for theta in np.linspace(0.05, 0.4, 15):
            hits = [f > theta for f in fields]
            true_pos = np.mean([(h & mask).sum() for h in hits])
            best = max(best, 2 * true_pos / (mask.sum() + np.mean([h.sum() for h in hits])))
    assert dice_curves([mask], (1, 1), [lam])[0][0] == pytest.approx(best, abs=0.02)


def test_chance_is_removed_and_the_curve_rises_from_0_to_1() -> None:
    curve = class_curve("a", [ball(40)], (1, 1))
    assert curve is not None
    assert curve.readability[0] == pytest.approx(0.0, abs=0.01)
    assert curve.readability[-1] == pytest.approx(1.0, abs=0.01)
    assert np.all(np.diff(curve.readability) >= 0)


def test_one_hot_coding_moves_curves_by_ln_2() -> None:
    masks = {"a": [ball(6, 64)]}
    one_channel = plan_stages(masks, 2, (1, 1), scheme=scheme("binary", "a"))
    one_hot = plan_stages({**masks, "b": masks["a"]}, 2, (1, 1), scheme=scheme("softmax", "a", "b"))
    assert one_hot.lam_a == pytest.approx(one_channel.lam_a - math.log(2), abs=0.06)
    assert one_hot.lam_c == pytest.approx(one_channel.lam_c - math.log(2), abs=0.06)
    assert one_hot.input_scale == (1.0, 1.0, 1.0)


def test_edges_are_the_earliest_a_and_the_latest_c() -> None:
    stages = plan_stages({"big": [ball(25)], "small": [ball(3)]}, 2, (1, 1))
    assert stages.lam_a == stages.curves[0].lam_a < stages.curves[1].lam_a
    assert stages.lam_c == stages.curves[1].lam_c > stages.curves[0].lam_c


def test_a_segmenter_s_dice_above_the_floor_moves_lam_c() -> None:
    plan = plan_stages({"a": [ball(8)]}, 2, (1, 1))
    binary = scheme("binary", "a")
    assert refine_stages(plan, {"a": 0.8}, {}, binary) == plan
    high = refine_stages(plan, {"a": 0.97}, {}, binary)
    assert high.lam_c > plan.lam_c
    assert high.lam_a == plan.lam_a
    curve = plan.curves[0]
    assert high.lam_c == pytest.approx(crossing(np.array(curve.lam), np.array(curve.readability), 0.97), abs=0.01)


def test_a_segmenter_s_uncertainty_can_only_lower_lam_a() -> None:
    plan = plan_stages({"a": [ball(8)]}, 2, (1, 1))
    binary = scheme("binary", "a")
    assert refine_stages(plan, {}, {"a": 1000.0}, binary).lam_a == pytest.approx(-math.log(2000), abs=0.01)
    assert refine_stages(plan, {}, {"a": 0.5}, binary).lam_a == plan.lam_a


def test_one_hot_coding_pays_for_uncertainty_in_two_channels() -> None:
    two = scheme("softmax", "a", "b")
    plan = plan_stages({"a": [ball(8)], "b": [ball(8)]}, 2, (1, 1), scheme=two)
    assert refine_stages(plan, {}, {"a": 1000.0, "b": 10.0}, two).lam_a == pytest.approx(-math.log(4000), abs=0.01)


def test_a_plan_without_curves_stays_as_it_is() -> None:
    plan = plan_stages({"a": [np.zeros((8, 8), bool)]}, 2, (1, 1), scheme=scheme("binary", "a"))
    assert refine_stages(plan, {"a": 0.9}, {"a": 50.0}, scheme("binary", "a")) == plan


def test_one_nat_edge_by_hand() -> None:
    assert truncation_edge(10.0) == pytest.approx(-2.9957, abs=1e-4)  # 2 exp(lam) 10 = 1
    with pytest.raises(ValueError, match="positive"):
        truncation_edge(0.0)


def test_empty_and_full_patches_are_skipped() -> None:
    empty, full = np.zeros((32, 32), bool), np.ones((32, 32), bool)
    assert class_curve("a", [empty, full], (1, 1)) is None
    curve = class_curve("a", [empty, full, ball(5, 32)], (1, 1))
    assert curve is not None
    assert curve.num_patches == 1
    nothing = plan_stages({"a": [empty]}, 2, (1, 1), scheme=scheme("binary", "a"))
    assert (nothing.lam_a, nothing.lam_c) == DEFAULT_EDGES
    assert nothing.curves == ()


def test_wide_spans_are_pulled_together_by_the_input_scale() -> None:
    curves = (
        ReadabilityCurve("organ", LAM_GRID, (0.0,) * len(LAM_GRID), -13.0, -7.0, 1),
        ReadabilityCurve("speck", LAM_GRID, (0.0,) * len(LAM_GRID), -3.0, 1.0, 1),
    )
    stages = combine_curves(curves, scheme("softmax", "organ", "speck"))
    # middles -10 and -1 meet at -5.5: 2 ln b = -4.5 and +4.5
    assert stages.input_scale[0] == stages.input_scale[1]  # the background shows the organ no earlier than its channel
    assert stages.input_scale[1] == pytest.approx(0.125)  # exp(-2.25) = 0.105 is below the floor of 1/8
    assert stages.input_scale[2] == pytest.approx(8.0)  # exp(2.25) = 9.49 is above the ceiling of 8
    assert stages.lam_a == pytest.approx(-13 + 2 * math.log(8), abs=0.01)
    assert stages.lam_c == pytest.approx(max(-7 + 2 * math.log(8), 1 - math.log((64 + 1 / 64) / 2)), abs=0.01)


def test_scaled_regions_have_no_background_to_read() -> None:
    curves = (
        ReadabilityCurve("organ", LAM_GRID, (0.0,) * len(LAM_GRID), -10.0, -6.0, 1),
        ReadabilityCurve("speck", LAM_GRID, (0.0,) * len(LAM_GRID), -4.0, 1.0, 1),
    )
    stages = combine_curves(curves, scheme("regions", "organ", "speck"))
    # middles -8 and -1.5 meet at -4.75: 2 ln b = -3.25 and +3.25
    assert stages.input_scale == pytest.approx((math.exp(-1.625), math.exp(1.625)), abs=1e-4)
    assert (stages.lam_a, stages.lam_c) == pytest.approx((-7.25, -2.25), abs=0.01)


def test_narrow_spans_are_widened_to_two_nats() -> None:
    curve = ReadabilityCurve("a", LAM_GRID, (0.0,) * len(LAM_GRID), -1.0, -0.5, 1)
    stages = combine_curves((curve,), scheme("binary", "a"))
    assert (stages.lam_a, stages.lam_c) == (-1.75, 0.25)


def test_anisotropic_smoothing_uses_mm() -> None:
    """A slab one voxel thick and 5 mm deep reads like its 2D slice, not like a five times thicker object."""
    slab = np.zeros((7, 64, 64), bool)
    slab[3] = ball(6, 64)
    flat = dice_curves([ball(6, 64)], (1, 1), FINE)[0]
    deep = dice_curves([slab], (20, 1, 1), FINE)[0]
    assert crossing(FINE, deep, 0.8) == pytest.approx(crossing(FINE, flat, 0.8), abs=0.3)


def test_patches_of_another_rank_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 axes"):
        plan_stages({"a": [ball(3, 16)]}, 3, (1, 1, 1))


def test_pooling_counts_partial_blocks() -> None:
    values, cells = block_sums(np.array([[1, 1, 0], [1, 0, 1]], np.float32), (2, 2))
    assert values.tolist() == [[3, 1]]
    assert cells.tolist() == [[4, 2]]


@pytest.mark.parametrize(("length", "sigma"), [(1, 2.0), (5, 0.1), (7, 1.4), (40, 4.0), (9, 8.0)])
def test_smoothing_is_that_of_scipy_also_where_the_kernel_is_wider_than_the_axis(length: int, sigma: float) -> None:
    expected = gaussian_filter1d(np.eye(length), sigma, axis=0, mode="nearest", truncate=3.0)
    assert np.allclose(smoothing_matrix(length, sigma), expected, atol=1e-6)


def test_crossing_is_linear_and_clipped() -> None:
    lam = np.array([0.0, 1.0, 2.0])
    assert crossing(lam, np.array([0.0, 0.5, 1.0]), 0.75) == 1.5
    assert crossing(lam, np.array([0.0, 0.1, 0.2]), 0.75) == 2.0
    assert crossing(lam, np.array([0.8, 0.9, 1.0]), 0.75) == 0.0
