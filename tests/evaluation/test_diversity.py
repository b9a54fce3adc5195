"""Spread of samples and raters: by hand, against brute force and MONAI, and what must not change it."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from monai.metrics import compute_iou
from scipy.stats import pearsonr

from unisegdiff_pipeline.evaluation.diversity import (
    DiversityScore,
    Overlaps,
    energy_score,
    generalised_energy_distance,
    hungarian_iou,
    maximum_dice_matching,
    ncc,
    pairwise_overlaps,
    score_samples,
    single_sample_dice,
)

Masks = list[np.ndarray]


def row(*cells: str) -> Masks:
    """Masks of one row of pixels each, shape (1, 1, X)."""
    return [np.array([[[c == "1" for c in cell]]]) for cell in cells]


EMPTY, A, B, AB, ALL = row("0000", "1000", "0100", "1100", "1111")


def random_masks(seed: int, count: int, shape: tuple[int, ...] = (3, 7, 11), fraction: float = 0.3) -> Masks:
    rng = np.random.default_rng(seed)
    return [rng.random(shape) < fraction for _ in range(count)]


def adversarial(shape: tuple[int, ...]) -> Masks:
    """Empty, full, one voxel, a face of the image, and two voxels at opposite corners."""
    empty, one, face, corners = (np.zeros(shape, dtype=bool) for _ in range(4))
    one[tuple(n // 2 for n in shape)] = True
    face[..., -1] = True
    corners[(0,) * len(shape)] = corners[(-1,) * len(shape)] = True
    return [empty, ~empty, one, face, corners]


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two sets of coordinates."""
    first, second = set(map(tuple, np.argwhere(a))), set(map(tuple, np.argwhere(b)))
    return len(first & second) / len(first | second) if first | second else 1.0


def slow_dice(a: np.ndarray, b: np.ndarray) -> float:
    voxels = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / voxels if voxels else 1.0


def slow_mean_distance(first: Masks, second: Masks) -> float:
    return float(np.mean([1 - slow_iou(a, b) for a in first for b in second]))


def slow_mean_of_pairs(masks: Masks) -> float:
    return float(np.mean([1 - slow_iou(a, b) for a, b in itertools.permutations(masks, 2)]))


def values(score: DiversityScore) -> list[float]:
    return list(dataclasses.astuple(score))


# Pairwise IoU


def test_overlaps_by_hand() -> None:
    overlaps = pairwise_overlaps([A, AB], [AB, EMPTY, ALL])
    assert overlaps.samples.tolist() == [[1, 0.5], [0.5, 1]]
    assert overlaps.raters.tolist() == [[1, 0, 0.5], [0, 1, 0], [0.5, 0, 1]]
    assert overlaps.cross.tolist() == [[0.5, 0, 0.25], [1, 0, 0.5]]
    assert overlaps.rater_empty.tolist() == [False, True, False]


def test_two_empty_masks_are_equal() -> None:
    assert pairwise_overlaps([EMPTY, EMPTY], [EMPTY]).samples.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("shape", [(3, 7, 11), (1, 9, 13), (1, 1, 1), (1, 1, 64), (1, 1, 65), (5, 6), (130,)])
def test_overlaps_equal_brute_force(shape: tuple[int, ...]) -> None:
    masks = adversarial(shape) + random_masks(1, 3, shape)
    overlaps = pairwise_overlaps(masks[:4], masks[4:])
    whole = np.block([[overlaps.samples, overlaps.cross], [overlaps.cross.T, overlaps.raters]])
    assert whole == pytest.approx(np.array([[slow_iou(a, b) for b in masks] for a in masks]), abs=1e-12)


def test_overlaps_equal_monai() -> None:
    samples, raters = random_masks(2, 4), random_masks(3, 3, fraction=0.5)
    pairs = [(s, r) for s in samples for r in raters]
    first, second = (torch.tensor(np.stack(side))[:, None].float() for side in zip(*pairs, strict=True))
    expected = compute_iou(first, second, include_background=True).numpy().reshape(4, 3)
    assert pairwise_overlaps(samples, raters).cross == pytest.approx(expected, abs=1e-6)


def test_masks_of_many_blocks_are_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = random_masks(4, 3, (1, 40, 100))
    expected = pairwise_overlaps(masks, masks).samples
    monkeypatch.setattr("unisegdiff_pipeline.evaluation.diversity.BLOCK_WORDS", 3)
    assert pairwise_overlaps(masks, masks).samples.tolist() == expected.tolist()


def test_iou_is_positive_definite_so_that_the_energy_score_is_proper() -> None:
    masks = adversarial((3, 4, 5)) + random_masks(5, 40, (3, 4, 5), fraction=0.1)
    assert np.linalg.eigvalsh(pairwise_overlaps(masks, masks[:1]).samples).min() > -1e-12


# Distances between distributions


def test_energy_distance_by_hand() -> None:
    # d(A, AB) = d(B, AB) = 1/2, d(A, B) = 1. Samples A, B; raters AB, A.
    overlaps = pairwise_overlaps([A, B], [AB, A])
    cross = 2 * (1 / 2 + 0 + 1 / 2 + 1) / 4
    ged = generalised_energy_distance(overlaps)
    assert ged.ged_v == pytest.approx(cross - 2 / 4 - 1 / 4)
    assert ged.ged_u == pytest.approx(cross - 1 - 1 / 2)
    energy = energy_score(overlaps)
    assert energy.energy_score_v == pytest.approx(cross - 2 / 4)
    assert energy.energy_score_u == pytest.approx(cross - 1)


@pytest.mark.parametrize("seed", range(3))
def test_energy_distance_equals_brute_force(seed: int) -> None:
    samples = adversarial((3, 7, 11))[seed:] + random_masks(seed, 2)
    raters = adversarial((3, 7, 11))[:2] + random_masks(seed + 10, 2, fraction=0.6)
    cross = 2 * slow_mean_distance(samples, raters)
    score = score_samples(samples, raters)
    all_samples, all_raters = slow_mean_distance(samples, samples), slow_mean_distance(raters, raters)
    assert score.ged_v == pytest.approx(cross - all_samples - all_raters)
    assert score.energy_score_v == pytest.approx(cross - all_samples)
    assert score.ged_u == pytest.approx(cross - slow_mean_of_pairs(samples) - slow_mean_of_pairs(raters))
    assert score.energy_score_u == pytest.approx(cross - slow_mean_of_pairs(samples))
    assert score.sample_diversity == pytest.approx(slow_mean_of_pairs(samples))
    assert score.rater_diversity == pytest.approx(slow_mean_of_pairs(raters))


def test_equal_sets_have_no_distance() -> None:
    masks = random_masks(6, 4)
    score = score_samples(masks, masks)
    assert score.ged_v == pytest.approx(0, abs=1e-12)
    assert score.hm_iou == score.d_max == 1
    assert score.ged_u < 0  # 2 E d holds the pairs of a mask with itself, the other terms do not


def test_one_sample_of_one_empty_reference() -> None:
    right, wrong = score_samples([EMPTY], [EMPTY]), score_samples([A], [EMPTY])
    assert (right.ged_v, right.energy_score_v, right.hm_iou, right.d_max) == (0, 0, 1, 1)
    assert (wrong.ged_v, wrong.energy_score_v, wrong.hm_iou, wrong.d_max) == (2, 2, 0, 0)
    undefined = ("ged_u", "energy_score_u", "single_sample_dice", "sample_diversity", "sample_agreement", "ncc_samples")
    assert all(math.isnan(getattr(score, name)) for score in (right, wrong) for name in undefined)


def test_the_energy_score_is_the_energy_distance_of_a_single_rater() -> None:
    score = score_samples(random_masks(7, 5), random_masks(8, 1))
    assert score.ged_v == score.energy_score_v
    assert math.isnan(score.ged_u)
    assert not math.isnan(score.energy_score_u)


def test_the_energy_score_of_raters_is_the_mean_of_their_scores() -> None:
    samples, raters = random_masks(9, 4), random_masks(10, 3)
    single = [energy_score(pairwise_overlaps(samples, [rater])) for rater in raters]
    whole = energy_score(pairwise_overlaps(samples, raters))
    assert whole.energy_score_u == pytest.approx(np.mean([s.energy_score_u for s in single]))
    assert whole.energy_score_v == pytest.approx(np.mean([s.energy_score_v for s in single]))


def test_u_does_not_depend_on_the_number_of_samples_and_v_does() -> None:
    population = row(*(format(i, "04b") for i in range(16)))
    overlaps = pairwise_overlaps(population, population)
    rng = np.random.default_rng(0)

    def mean_scores(count: int) -> tuple[float, float]:
        found = []
        for _ in range(4000):
            s, r = rng.integers(0, 16, count), rng.integers(0, 16, 4)
            iou = overlaps.samples
            drawn = Overlaps(iou[np.ix_(s, s)], iou[np.ix_(r, r)], iou[np.ix_(s, r)], r == 0)
            ged = generalised_energy_distance(drawn)
            found.append((ged.ged_u, ged.ged_v))
        u, v = np.mean(found, axis=0)
        return float(u), float(v)

    few, many = mean_scores(2), mean_scores(16)
    assert few[0] == pytest.approx(0, abs=0.02)  # samples and raters have one distribution
    assert many[0] == pytest.approx(0, abs=0.02)
    assert few[1] > many[1] + 0.2


# Matchings


def test_matching_by_hand() -> None:
    overlaps = pairwise_overlaps([A, AB], [AB, ALL])
    assert hungarian_iou(overlaps) == pytest.approx((1 / 4 + 1) / 2)  # beats A-AB, AB-ALL: (1/2 + 1/2) / 2
    assert maximum_dice_matching(overlaps) == pytest.approx((1 + 2 / 3) / 2)
    assert single_sample_dice(overlaps) == pytest.approx((2 / 3 + 2 / 5 + 1 + 2 / 3) / 4)


def test_sets_of_different_size_are_repeated() -> None:
    # 2 samples and 3 raters: six slots. A, A, A, AB, AB, AB against AB, AB, A, A, ALL, ALL.
    overlaps = pairwise_overlaps([A, AB], [AB, A, ALL])
    best = max(
        np.mean([slow_iou(s, r) for s, r in zip([A, A, A, AB, AB, AB], order, strict=True)])
        for order in itertools.permutations([AB, AB, A, A, ALL, ALL])
    )
    assert hungarian_iou(overlaps) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_all_permutations(seed: int) -> None:
    samples, raters = adversarial((2, 3, 5)), random_masks(seed, 5, (2, 3, 5))
    best = max(
        np.mean([slow_iou(s, r) for s, r in zip(samples, order, strict=True)])
        for order in itertools.permutations(raters)
    )
    overlaps = pairwise_overlaps(samples, raters)
    assert hungarian_iou(overlaps) == pytest.approx(best)
    d_max = np.mean([max(slow_dice(s, r) for s in samples) for r in raters])
    assert maximum_dice_matching(overlaps) == pytest.approx(d_max)


def test_empty_raters_are_left_out_of_the_dice_of_a_sample_only() -> None:
    overlaps = pairwise_overlaps([A, EMPTY], [A, EMPTY])
    assert single_sample_dice(overlaps) == 0.5  # A and EMPTY against A
    assert maximum_dice_matching(overlaps) == 1


def test_agreement_of_samples_is_their_mean_dice() -> None:
    masks = random_masks(11, 4)
    expected = np.mean([slow_dice(a, b) for a, b in itertools.combinations(masks, 2)])
    assert score_samples(masks, masks[:1]).sample_agreement == pytest.approx(expected)


# Uncertainty maps


def test_correlation_by_hand() -> None:
    assert ncc(np.array([0.0, 1, 2]), np.array([5.0, 7, 9])) == pytest.approx(1)
    assert ncc(np.array([0.0, 1, 2]), np.array([1.0, 0, -1])) == pytest.approx(-1)
    assert ncc(np.array([1.0, -1, 1, -1]), np.array([1.0, 1, -1, -1])) == pytest.approx(0)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_correlation_equals_scipy(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unisegdiff_pipeline.evaluation.diversity.BLOCK_VOXELS", block)
    rng = np.random.default_rng(12)
    x = rng.random((3, 5, 7)).astype(np.float32)
    y = (x + rng.random(x.shape)).astype(np.float32)
    valid = rng.random(x.shape) < 0.7
    assert ncc(x, y) == pytest.approx(pearsonr(x.ravel().astype(float), y.ravel().astype(float)).statistic)
    expected = pearsonr(x[valid].astype(float), y[valid].astype(float)).statistic
    assert ncc(x, y, valid) == pytest.approx(expected)


def test_correlation_with_a_constant_map_is_undefined() -> None:
    x = np.arange(4.0)
    assert math.isnan(ncc(x, np.full(4, 0.1)))
    assert math.isnan(ncc(np.full(4, 0.1), x))
    assert math.isnan(ncc(x, x, np.zeros(4, dtype=bool)))
    assert math.isnan(ncc(x, x, x == 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_maps_that_are_not_finite_correlate_with_nothing(value: float) -> None:
    x, y = np.array([0.0, 1, 2, 3]), np.array([5.0, 9, 7, 1])
    x[1] = value
    for pair in ((x, y), (y, x)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            ncc(*pair)
    finite = np.isfinite(x)
    assert ncc(x, y, finite) == pytest.approx(ncc(x[finite], y[finite]))  # voxels that do not count may hold anything


def test_maps_of_the_samples_and_raters_are_correlated() -> None:
    samples, raters = random_masks(13, 5), random_masks(14, 3)
    given = np.random.default_rng(15).random(samples[0].shape)
    valid = given < 0.8
    score = score_samples(samples, raters, given, valid)
    of_samples, of_raters = (np.var(np.stack(masks).astype(float), axis=0)[valid] for masks in (samples, raters))
    assert score.ncc_samples == pytest.approx(pearsonr(of_samples, of_raters).statistic)
    assert score.ncc == pytest.approx(pearsonr(given[valid], of_raters).statistic)


def test_more_samples_than_a_byte_counts() -> None:
    samples, raters = random_masks(28, 300, (1, 4, 5), fraction=0.95), random_masks(29, 2, (1, 4, 5))
    score = score_samples(samples, raters)
    of_samples, of_raters = (np.var(np.stack(masks).astype(float), axis=0).ravel() for masks in (samples, raters))
    assert score.num_samples == 300
    assert score.ncc_samples == pytest.approx(pearsonr(of_samples, of_raters).statistic)


def test_raters_who_agree_leave_the_correlation_undefined() -> None:
    score = score_samples([A, B], [AB, AB], np.arange(4.0).reshape(1, 1, 4))
    assert math.isnan(score.ncc)
    assert math.isnan(score.ncc_samples)
    assert score.rater_diversity == 0


# What must not matter, and what must be refused


def test_order_flips_and_transposition_change_nothing() -> None:
    samples, raters = random_masks(16, 4), random_masks(17, 3)
    given = np.random.default_rng(18).random(samples[0].shape)
    expected = values(score_samples(samples, raters, given))
    for change in (np.flip, np.transpose, lambda x: np.flip(x, axis=1), lambda x: np.pad(x, 0)):
        changed = [change(s) for s in samples], [change(r) for r in raters], change(given)
        assert values(score_samples(*changed)) == pytest.approx(expected)
    assert values(score_samples(samples[::-1], raters[::-1], given)) == pytest.approx(expected)


def test_background_around_the_masks_changes_no_overlap() -> None:
    samples, raters = random_masks(19, 4), random_masks(20, 3)
    padded = [[np.pad(mask, 20) for mask in masks] for masks in (samples, raters)]
    expected, found = score_samples(samples, raters), score_samples(*padded)
    for field in dataclasses.fields(DiversityScore):
        if not field.name.startswith("ncc"):
            assert getattr(found, field.name) == pytest.approx(getattr(expected, field.name), nan_ok=True), field.name


def test_samples_and_raters_can_be_swapped_where_the_score_is_symmetric() -> None:
    samples, raters = random_masks(21, 4), random_masks(22, 6)
    one, other = score_samples(samples, raters), score_samples(raters, samples)
    for name in ("ged_u", "ged_v", "hm_iou", "ncc_samples"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert one.sample_diversity == pytest.approx(other.rater_diversity)
    assert one.d_max != pytest.approx(other.d_max)


def test_every_sample_is_read_once() -> None:
    samples, raters = random_masks(23, 4), random_masks(24, 2)

    def reading(masks: Masks) -> Iterator[np.ndarray]:
        yield from masks

    assert values(score_samples(reading(samples), reading(raters))) == pytest.approx(
        values(score_samples(samples, raters)), nan_ok=True
    )


def test_the_masks_are_left_as_they_are() -> None:
    samples, raters = random_masks(25, 3), random_masks(26, 2)
    before = [mask.copy() for mask in (*samples, *raters)]
    score_samples(samples, raters)
    assert all((mask == old).all() for mask, old in zip((*samples, *raters), before, strict=True))


def test_one_side_may_be_missing() -> None:
    no_rater = score_samples([A, AB], [])
    assert (no_rater.num_samples, no_rater.num_raters, no_rater.sample_diversity) == (2, 0, 0.5)
    no_sample = score_samples([], [A, AB])
    assert (no_sample.num_samples, no_sample.num_raters, no_sample.rater_diversity) == (0, 2, 0.5)
    for score in (no_rater, no_sample):
        for name in ("ged_u", "ged_v", "energy_score_u", "energy_score_v", "hm_iou", "d_max", "single_sample_dice"):
            assert math.isnan(getattr(score, name)), name
    with pytest.raises(ValueError, match="at least one"):
        score_samples([], [])


def test_shapes_must_agree() -> None:
    small, large = np.zeros((1, 2, 2), dtype=bool), np.zeros((1, 2, 3), dtype=bool)
    for arguments in (
        ([small, large], [small]),
        ([small], [large]),
        ([small], [small], np.zeros((1, 2, 3))),
        ([small], [small], None, large),
    ):
        with pytest.raises(ValueError, match=r"\(1, 2, 2\), \(1, 2, 3\)"):
            score_samples(*arguments)
