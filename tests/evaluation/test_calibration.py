"""Likelihood, Brier score and calibration errors: by hand, against torchmetrics and scikit-learn, and invariances."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_calibration_error

from unisegdiff_pipeline.evaluation import calibration
from unisegdiff_pipeline.evaluation.calibration import (
    CaseCalibration,
    ReliabilityCounts,
    calibration_error,
    case_calibration,
    evaluation_region,
    merge,
    no_counts,
    reliability_bins,
)

SHAPE = (6, 20, 25)  # 3000 voxels


def line(*values: float) -> np.ndarray:
    """An image of one row."""
    return np.array([[values]], float)


def mask(text: str) -> np.ndarray:
    return np.array([[[c == "#" for c in text]]])


def score(p: np.ndarray, y: np.ndarray) -> CaseCalibration:
    """Score every voxel."""
    return case_calibration(p, y, np.ones(p.shape, bool))


def random_case(seed: int, power: float = 1.0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and a reference that holds the class with p ** power (1: calibrated)."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.4, 0.4, shape).clip(0.001, 0.999)
    return p, rng.random(shape) < p**power


def same_counts(a: ReliabilityCounts, b: ReliabilityCounts) -> bool:
    return all(
        x.tobytes() == y.tobytes()
        for x, y in ((a.count, b.count), (a.confidence, b.confidence), (a.reference, b.reference))
    )


# By hand


def test_scores_by_hand() -> None:
    found = score(line(0.1, 0.1, 0.75, 0.75), mask("..#."))
    assert found.num_voxels == 4
    assert found.nll == pytest.approx(-(2 * math.log(0.9) + math.log(0.75) + math.log(0.25)) / 4)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.0625 + 0.5625) / 4)
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * abs(0.75 - 0.5))
    assert found.adaptive_ece == pytest.approx(found.ece)  # four bins of one voxel; equal probabilities share theirs


def test_reliability_by_hand() -> None:
    bins = reliability_bins(score(line(0.02, 0.06, 0.5, 1.0), mask("..##")).counts)
    assert len(bins) == 15
    assert [b.count for b in bins] == [2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert (bins[0].mean_confidence, bins[0].frequency) == (pytest.approx(0.04, abs=1e-7), 0.0)
    assert (bins[14].mean_confidence, bins[14].frequency) == (1.0, 1.0)
    assert math.isnan(bins[1].mean_confidence)
    assert math.isnan(bins[1].frequency)


def test_equal_mass_bins_hold_equal_shares_by_hand() -> None:
    counts = score(line(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), mask("..#.##")).counts
    bins = reliability_bins(counts, 3, equal_mass=True)
    assert [b.count for b in bins] == [2, 2, 2]
    assert [b.mean_confidence for b in bins] == pytest.approx([0.15, 0.35, 0.55])
    assert [b.frequency for b in bins] == pytest.approx([0, 0.5, 1])
    assert calibration_error(counts, 3, equal_mass=True) == pytest.approx((0.15 + 0.15 + 0.45) / 3)


def test_voxels_of_equal_probability_are_shared_out_between_bins() -> None:
    bins = reliability_bins(score(np.full((1, 2, 3), 0.5), mask("#.....").reshape(1, 2, 3)).counts, 4, equal_mass=True)
    assert [(b.count, b.mean_confidence) for b in bins] == [(1.5, 0.5)] * 4
    assert [b.frequency for b in bins] == pytest.approx([1 / 6] * 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_bins", [5, 15])
def test_a_probability_on_a_border_belongs_to_the_bin_above(dtype: type, num_bins: int) -> None:
    for k in range(num_bins):
        p = np.full((1, 1, 1), k / num_bins, dtype)
        filled = [b.count for b in reliability_bins(score(p, p > 1).counts, num_bins)]
        assert filled.index(1) == k


def test_certainty_costs_the_floor_and_no_more() -> None:
    wrong, right = score(line(0.0), mask("#")), score(line(1.0), mask("#"))
    assert wrong.nll == pytest.approx(-math.log(1e-4))
    assert right.nll == pytest.approx(1e-4, rel=1e-3)
    assert (wrong.brier, wrong.ece, wrong.adaptive_ece) == (1, 1, 1)
    assert (right.brier, right.ece, right.adaptive_ece) == (0, 0, 0)


# Independent implementations


@pytest.mark.parametrize("power", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("num_bins", [10, 15, 20])
def test_expected_error_is_that_of_torchmetrics(power: float, num_bins: int) -> None:
    p, y = random_case(7, power)
    theirs = binary_calibration_error(torch.tensor(p.ravel()), torch.tensor(y.ravel()).int(), n_bins=num_bins)
    assert calibration_error(score(p, y).counts, num_bins) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("kind", ["random", "one voxel", "no voxel", "every voxel", "disconnected", "border"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 30, 40)])
def test_likelihood_and_brier_are_those_of_scikit_learn(kind: str, shape: tuple[int, int, int]) -> None:
    p, y = random_case(2, shape=shape)
    if kind != "random":
        y = np.full(shape, kind == "every voxel")
        y[{"one voxel": (0, 3, 4), "disconnected": (0, slice(None, None, 7)), "border": (0, 0)}.get(kind, ())] |= (
            kind not in ("no voxel", "every voxel")
        )
    found = score(p, y)
    assert found.nll == pytest.approx(log_loss(y.ravel(), p.ravel(), labels=[False, True]))
    assert found.brier == pytest.approx(brier_score_loss(y.ravel(), p.ravel(), labels=[False, True], pos_label=True))


def by_sorting(p: np.ndarray, y: np.ndarray, num_bins: int) -> float:
    """Adaptive error from the sorted voxels themselves, cut into bins of equal size."""
    order = np.argsort(p.ravel(), kind="stable")
    parts = [np.array_split(x.ravel()[order].astype(float), num_bins) for x in (p, y)]
    return sum(len(c) * abs(c.mean() - f.mean()) for c, f in zip(*parts, strict=True)) / p.size


def test_adaptive_error_is_exact_where_no_border_cuts_a_fine_bin() -> None:
    rng = np.random.default_rng(4)
    p = rng.permutation(np.repeat((np.arange(960) + 0.3) / 960, 2)).reshape(4, 20, 24)
    y = rng.random(p.shape) < p**2
    assert score(p, y).adaptive_ece == pytest.approx(by_sorting(p, y, 15), abs=1e-7)


@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_adaptive_error_is_near_that_of_the_sorted_voxels(power: float, seed: int) -> None:
    p, y = random_case(seed, power)
    assert score(p, y).adaptive_ece == pytest.approx(by_sorting(p, y, 15), abs=2e-3)


def test_adaptive_bins_resolve_small_probabilities() -> None:
    """Most voxels lie far below 1/960: overconfident in the lower half of them, underconfident in the upper one."""
    p = np.repeat([2e-5, 8e-4], 5000).reshape(1, 100, 100)
    y = np.zeros(p.shape, bool)
    y[0, ::10, 0] = True
    y[0, 50:] = False
    found = calibration_error(score(p, y).counts, 2, equal_mass=True)
    assert found == pytest.approx(by_sorting(p, y, 2), rel=1e-3)


# Meaning


def test_calibrated_probabilities_have_no_error_and_overconfident_ones_do() -> None:
    rng = np.random.default_rng(11)
    truth = rng.uniform(0.2, 0.8, (10, 100, 100))
    y = rng.random(truth.shape) < truth
    calibrated, sharpened = score(truth, y), score(np.where(truth > 0.5, 0.95, 0.05), y)
    assert calibrated.ece < 0.01
    assert calibrated.adaptive_ece < 0.01
    assert sharpened.ece == pytest.approx(0.3, abs=0.01)  # 0.95 where 0.65 of the voxels hold the class
    assert sharpened.nll > calibrated.nll
    assert sharpened.brier > calibrated.brier


def test_several_raters_give_the_means_over_raters() -> None:
    p, _ = random_case(5)
    rng = np.random.default_rng(6)
    raters = [rng.random(SHAPE) < p for _ in range(3)]
    found, single = score_raters(p, raters), [score(p, y) for y in raters]
    assert found.nll == pytest.approx(np.mean([s.nll for s in single]))
    assert found.brier == pytest.approx(np.mean([s.brier for s in single]))
    assert np.allclose(found.counts.reference, sum(s.counts.reference for s in single) / 3, atol=1e-4)
    assert np.array_equal(found.counts.count, single[0].counts.count)


def score_raters(p: np.ndarray, raters: list[np.ndarray]) -> CaseCalibration:
    return case_calibration(p, raters, np.ones(p.shape, bool))


def test_one_rater_in_a_list_is_a_reference() -> None:
    p, y = random_case(5)
    listed, plain = score_raters(p, [y]), score(p, y)
    assert (listed.nll, listed.brier, listed.ece) == (plain.nll, plain.brier, plain.ece)


def test_voxels_outside_the_region_or_ignored_do_not_count() -> None:
    p, y = random_case(9)
    region = np.zeros(SHAPE, bool)
    region[1:4, 3:9, 5:20] = True
    valid = np.random.default_rng(1).random(SHAPE) < 0.5
    part = region & valid
    found = case_calibration(p, y, region, valid)
    alone = score(p[part][None, None], y[part][None, None])
    assert found.num_voxels == part.sum()
    assert found.nll == pytest.approx(alone.nll)
    assert found.brier == pytest.approx(alone.brier)
    assert same_counts(found.counts, alone.counts)


def test_values_outside_the_region_are_not_looked_at() -> None:
    p = line(0.25, np.nan, 7.0)
    assert case_calibration(p, mask("..."), mask("#..")).brier == pytest.approx(0.0625)


@pytest.mark.parametrize("nothing", ["region", "valid"])
def test_without_voxels_everything_is_undefined(nothing: str) -> None:
    p, y = random_case(1)
    none, all_of_it = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    found = case_calibration(p, y, *((none, None) if nothing == "region" else (all_of_it, none)))
    assert all(math.isnan(v) for v in (found.nll, found.brier, found.ece, found.adaptive_ece))
    assert found.num_voxels == 0
    assert reliability_bins(found.counts, equal_mass=True) == ()
    assert all(b.count == 0 for b in reliability_bins(found.counts))


def test_a_confident_false_positive_on_an_empty_reference_has_its_price() -> None:
    predicted, empty = mask("..##.."), mask("......")
    region = evaluation_region(empty, predicted, (1.0, 1.0, 1.0), margin_mm=1.0)
    found = case_calibration(line(0, 0, 1, 1, 0, 0), empty, region)
    assert found.num_voxels == 4
    assert found.brier == pytest.approx(0.5)
    assert found.ece == pytest.approx(0.5)


# Invariances


def test_flips_and_transposes_change_nothing() -> None:
    p, y = random_case(3)
    region = np.random.default_rng(2).random(SHAPE) < 0.7
    found = case_calibration(p, y, region)
    for turn in (lambda a: a[::-1, :, ::-1], lambda a: a.transpose(2, 0, 1)):
        turned = case_calibration(turn(p), turn(y), turn(region))
        assert same_counts(turned.counts, found.counts)
        assert (turned.ece, turned.adaptive_ece) == (found.ece, found.adaptive_ece)
        assert turned.nll == pytest.approx(found.nll, rel=1e-12)
        assert turned.brier == pytest.approx(found.brier, rel=1e-12)


def test_background_and_foreground_are_treated_alike() -> None:
    p, y = random_case(3, power=2.0)
    a, b = score(p, y), score(1 - p, ~y)
    assert a.nll == pytest.approx(b.nll)
    assert a.brier == pytest.approx(b.brier)
    assert a.ece == pytest.approx(b.ece, abs=1e-6)
    assert a.adaptive_ece == pytest.approx(b.adaptive_ece, abs=1e-6)


def test_merged_cases_equal_one_large_case_in_any_order() -> None:
    cases = [random_case(seed, power=seed / 3) for seed in range(1, 8)]
    counts = [score(p, y).counts for p, y in cases]
    large = score(np.concatenate([p for p, _ in cases]), np.concatenate([y for _, y in cases])).counts
    assert same_counts(merge(counts), large)
    assert same_counts(merge(counts[::-1]), large)
    assert same_counts(merge((merge(counts[4:]), merge(counts[:2]), merge(counts[2:4]))), large)
    assert same_counts(merge((large, no_counts())), large)


def test_merging_leaves_its_parts_alone_and_counts_travel_between_processes() -> None:
    p, y = random_case(1)
    counts = score(p, y).counts
    before = pickle.loads(pickle.dumps(counts))
    merge((counts, counts))
    assert same_counts(counts, before)


@pytest.mark.parametrize("size", [7, 77, 700])  # less than a row, a slice, the image
@pytest.mark.parametrize("shape", [SHAPE, (1, 60, 50)])
def test_blocks_do_not_show(shape: tuple[int, int, int], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = random_case(3, shape=shape)
    region = np.random.default_rng(2).random(shape) < 0.3
    whole = case_calibration(p, y, region)
    monkeypatch.setattr(calibration, "BLOCK_VOXELS", size)
    parts = case_calibration(p, y, region)
    assert same_counts(whole.counts, parts.counts)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-12)
    assert parts.brier == pytest.approx(whole.brier, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_stored_precision_changes_little(dtype: type) -> None:
    p, y = random_case(3, power=2.0)
    exact, stored = score(p, y), score(p.astype(dtype), y)
    assert stored.nll == pytest.approx(exact.nll, rel=2e-3)
    assert stored.brier == pytest.approx(exact.brier, rel=1e-3)
    assert stored.ece == pytest.approx(exact.ece, abs=1e-3)


# Refusals


@pytest.mark.parametrize("value", [np.nan, -3.0, 1.2, 255.0])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        score(line(0.5, value), mask(".#"))


def test_what_half_precision_adds_is_clipped() -> None:
    assert score(line(1.0005, -0.0005), mask("#.")).brier == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        case_calibration(line(0.5, 0.5), mask("#"), mask("##"))


def test_bins_must_divide_the_fine_ones() -> None:
    with pytest.raises(ValueError, match="divisor of 960"):
        calibration_error(no_counts(), 7)


# The region


def test_region_is_the_union_grown_by_five_millimetres() -> None:
    rng = np.random.default_rng(5)
    reference, predicted = rng.random((2, 12, 30, 30)) < 0.001
    spacing = (4.0, 1.1, 0.9)
    distance = ndimage.distance_transform_edt(~(reference | predicted), sampling=spacing)
    assert np.array_equal(evaluation_region(reference, predicted, spacing), distance <= 5)
    assert np.array_equal(evaluation_region(predicted, reference, spacing), distance <= 5)


def test_region_by_hand_in_2d() -> None:
    region = evaluation_region(mask("....#..........."), mask(".....#.........."), (1.0, 1.0, 2.0))
    assert "".join("#" if v else "." for v in region[0, 0]) == "..######........"


@pytest.mark.parametrize(
    ("shape", "radius"),
    [((1, 300, 400), 7), ((80, 90, 120), 2), ((1, 20, 20), 1)],  # 1.5 % of 500, of 170, and no less than one voxel
)
def test_region_follows_the_diagonal_where_the_spacing_is_not_known(shape: tuple[int, int, int], radius: int) -> None:
    reference = np.zeros(shape, bool)
    z, y, x = (size // 2 for size in shape)
    reference[z, y, x] = True
    region = evaluation_region(reference, np.zeros(shape, bool), (9.0, 9.0, 9.0), spacing_known=False)
    assert region[z, y].sum() == 2 * radius + 1
    assert region[z, :, x].sum() == 2 * radius + 1
    assert region[:, y, x].sum() == min(shape[0], 2 * radius + 1)


def test_region_of_two_empty_masks_is_empty() -> None:
    empty = np.zeros((3, 4, 5), bool)
    assert not evaluation_region(empty, empty, (1.0, 1.0, 1.0)).any()
