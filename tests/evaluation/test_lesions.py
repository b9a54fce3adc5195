"""Lesion scores by hand, against scikit-image and comparing voxel by voxel, and under what must not change them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter
from skimage import measure

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.lesions import (
    LesionScore,
    ScoredLesion,
    count_lesions,
    score_lesions,
    strata_edges_ml,
    stratify,
)

NAN = math.nan
GEOMETRY = Geometry((4.0, 0.5, 2.0), (10.0, -20.0, 30.0))
OBLIQUE = (0.0, -1.0, 0.0, 0.6, 0.0, 0.8, -0.8, 0.0, 0.6)


def score_of(*values: float) -> LesionScore:
    return LesionScore(*(int(v) for v in values[:4]), *values[4:])


def assert_same(found: LesionScore, expected: LesionScore) -> None:
    for field in dataclasses.fields(LesionScore):
        actual, wanted = getattr(found, field.name), getattr(expected, field.name)
        assert actual == pytest.approx(wanted, nan_ok=True), field.name


def example() -> tuple[np.ndarray, np.ndarray]:
    """Reference: lesions of 8, 4 and 1 voxels. Prediction: 6 in the first, 2 + 2 around the second, 3 elsewhere."""
    reference, predicted = np.zeros((4, 8, 10), bool), np.zeros((4, 8, 10), bool)
    reference[0:2, 0:2, 0:2] = True
    reference[3, 4, 0:4] = True
    reference[0, 7, 9] = True
    predicted[0:2, 0:2, 0:2] = True
    predicted[1, 1, 0:2] = False
    predicted[3, 4:6, 0] = True  # one voxel in, one out
    predicted[3, 4:6, 3] = True
    predicted[0, 3:6, 8] = True
    return reference, predicted


def test_example_by_hand() -> None:
    score, lesions = score_lesions(*example(), GEOMETRY, MatchingRule())
    # Dice: 2 * 6 / (8 + 6) = 6 / 7; 2 * 2 / (4 + 2 + 2) = 1 / 2; missed = 0.
    # Two of three found, three of four right, F1 = 2 * 2 / (2 * 2 + 1 + 1).
    assert_same(score, score_of(3, 4, 2, 1, 2 / 3, 3 / 4, 2 / 3, (6 / 7 + 1 / 2) / 3, (6 / 7 + 1 / 2) / 2))
    reference, predicted = lesions[:3], lesions[3:]
    assert [lesion.side for lesion in lesions] == ["reference"] * 3 + ["prediction"] * 4
    assert [lesion.lesion_id for lesion in lesions] == [1, 2, 3, 1, 2, 3, 4]
    assert [lesion.voxels for lesion in lesions] == [8, 4, 1, 6, 3, 2, 2]
    assert [lesion.matched_ids for lesion in reference] == [(1,), (3, 4), ()]
    assert [lesion.matched_ids for lesion in predicted] == [(1,), (), (2,), (2,)]
    assert [lesion.dice for lesion in reference] == pytest.approx([6 / 7, 1 / 2, 0])
    assert [lesion.iou for lesion in reference] == pytest.approx([6 / 8, 2 / 6, 0])
    assert [lesion.dice for lesion in predicted] == pytest.approx([6 / 7, 0, 1 / 3, 1 / 3])
    assert [lesion.iou for lesion in predicted] == pytest.approx([6 / 8, 0, 1 / 5, 1 / 5])
    assert [lesion.volume_ml for lesion in reference] == pytest.approx([0.032, 0.016, 0.004])  # 4 mm3 a voxel
    assert all(lesion.area_mm2 is None for lesion in lesions)
    assert all(math.isnan(lesion.confidence) for lesion in lesions)


def test_places_and_diameters_by_hand() -> None:
    _, (cube, line, voxel, *_) = score_lesions(*example(), GEOMETRY, MatchingRule())
    # Centroids (x, y, z): origin + index * spacing, in reversed order of the axes.
    assert cube.centroid_mm == pytest.approx((10 + 0.5 * 2, -20 + 0.5 * 0.5, 30 + 0.5 * 4))
    assert line.centroid_mm == pytest.approx((10 + 1.5 * 2, -20 + 4 * 0.5, 30 + 3 * 4))
    assert voxel.centroid_mm == pytest.approx((10 + 9 * 2, -20 + 7 * 0.5, 30))
    assert cube.longest_diameter_mm == pytest.approx(math.sqrt(4**2 + 0.5**2 + 2**2))
    assert line.longest_diameter_mm == pytest.approx(6.0)
    assert voxel.longest_diameter_mm == 0.0


def test_centroids_are_where_the_file_says() -> None:
    image = sitk.Image(10, 8, 4, sitk.sitkUInt8)
    image.SetSpacing(GEOMETRY.spacing_mm[::-1])
    image.SetOrigin(GEOMETRY.origin_mm)
    image.SetDirection(OBLIQUE)
    reference, predicted = example()
    _, lesions = score_lesions(reference, predicted, dataclasses.replace(GEOMETRY, direction=OBLIQUE), MatchingRule())
    for lesion, index in zip(lesions, [(0.5, 0.5, 0.5), (3, 4, 1.5), (0, 7, 9)], strict=False):
        expected = image.TransformContinuousIndexToPhysicalPoint(index[::-1])
        assert lesion.centroid_mm == pytest.approx(expected)


def test_one_to_one_and_iou_by_hand() -> None:
    # Of the two halves of the second lesion one is a partner (Dice 2 / 6), the other a false positive.
    score, lesions = score_lesions(*example(), GEOMETRY, MatchingRule(one_to_one=True))
    assert_same(score, score_of(3, 4, 2, 2, 2 / 3, 1 / 2, 4 / 7, (6 / 7 + 1 / 3) / 3, (6 / 7 + 1 / 3) / 2))
    assert [len(lesion.matched_ids) for lesion in lesions] == [1, 1, 0, 1, 0, 1, 0]
    score, _ = score_lesions(*example(), GEOMETRY, MatchingRule("iou", 0.5))
    assert_same(score, score_of(3, 4, 1, 3, 1 / 3, 1 / 4, 2 / 7, 6 / 7 / 3, 6 / 7))


def test_a_lesion_that_is_only_near_is_detected_with_dice_zero() -> None:
    reference, predicted = np.zeros((1, 1, 5), bool), np.zeros((1, 1, 5), bool)
    reference[0, 0, 0] = predicted[0, 0, 2] = True
    score, lesions = score_lesions(reference, predicted, Geometry(), MatchingRule("dilated", dilation_mm=2))
    assert_same(score, score_of(1, 1, 1, 0, 1, 1, 1, 0, 0))
    assert [lesion.matched_ids for lesion in lesions] == [(1,), (1,)]
    score, _ = score_lesions(reference, predicted, Geometry(), MatchingRule("dilated", dilation_mm=1.9))
    assert_same(score, score_of(1, 1, 0, 1, 0, 0, 0, 0, NAN))


@pytest.mark.parametrize("rule", [MatchingRule(), MatchingRule("dilated", one_to_one=True), MatchingRule("iou", 0.5)])
def test_empty_masks(rule: MatchingRule) -> None:
    empty, two = np.zeros((3, 4, 5), bool), np.zeros((3, 4, 5), bool)
    two[0, 0, 0] = two[2, 3, 4] = True
    score, lesions = score_lesions(empty, empty, GEOMETRY, rule)
    assert_same(score, score_of(0, 0, 0, 0, NAN, NAN, NAN, NAN, NAN))
    assert lesions == ()
    score, lesions = score_lesions(empty, two, GEOMETRY, rule)
    assert_same(score, score_of(0, 2, 0, 2, NAN, NAN, NAN, NAN, NAN))
    assert [lesion.dice for lesion in lesions] == [0, 0]
    score, lesions = score_lesions(two, empty, GEOMETRY, rule)
    assert_same(score, score_of(2, 0, 0, 0, 0, NAN, 0, 0, NAN))
    assert [lesion.matched_ids for lesion in lesions] == [(), ()]
    score, _ = score_lesions(two, two, GEOMETRY, rule)
    assert_same(score, score_of(2, 2, 2, 0, 1, 1, 1, 1, 1))


def test_2d_lesions_have_an_area() -> None:
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 1:3, 1:4] = True
    geometry = Geometry((1.0, 0.5, 2.0), is_2d=True)
    _, (lesion, _) = score_lesions(mask, mask, geometry, MatchingRule())
    assert lesion.area_mm2 == pytest.approx(6.0)
    assert lesion.volume_ml == pytest.approx(0.006)
    assert lesion.longest_diameter_mm == pytest.approx(math.hypot(0.5, 4.0))


def test_a_lesion_in_one_slice_of_a_volume_has_no_area() -> None:
    mask = np.zeros((3, 6, 6), bool)
    mask[1, 1:3, 1:4] = True
    _, (lesion, _) = score_lesions(mask, mask, GEOMETRY, MatchingRule())
    assert lesion.area_mm2 is None


# ------------------------------------------------------------------------------------------------------- confidence


def test_confidence_is_the_share_of_samples_that_touch_the_lesion() -> None:
    reference, predicted = example()
    samples = [np.zeros_like(predicted) for _ in range(4)]
    samples[0][0, 0, 0] = True  # one voxel of the first
    samples[1][:] = True
    samples[2][0:2, 0:2, 0:2] = ~predicted[0:2, 0:2, 0:2]  # beside the first, not in it
    samples[2][0, 5, 8] = True
    probability = np.full(predicted.shape, 0.9)
    _, lesions = score_lesions(reference, predicted, GEOMETRY, MatchingRule(), samples, probability)
    assert [lesion.confidence for lesion in lesions] == pytest.approx([NAN] * 3 + [0.5, 0.5, 0.25, 0.25], nan_ok=True)


def test_confidence_without_samples_is_the_mean_probability() -> None:
    reference, predicted = example()
    probability = np.full(predicted.shape, 0.1, np.float32)
    probability[0:2, 0:2, 0:2] = [[[0.5, 0.6], [0.7, 0.8]], [[0.9, 1.0], [0.0, 0.0]]]
    probability[3, 4:6, 0] = [0.25, 0.75]
    for samples in (None, []):
        _, lesions = score_lesions(reference, predicted, GEOMETRY, MatchingRule(), samples, probability)
        assert [lesion.confidence for lesion in lesions[3:]] == pytest.approx([4.5 / 6, 0.1, 0.5, 0.1])


def test_confidence_of_nothing() -> None:
    reference, _ = example()
    empty = np.zeros_like(reference)
    score, _ = score_lesions(reference, empty, GEOMETRY, MatchingRule(), [reference], reference.astype(float))
    assert score.num_predicted_lesions == 0


# ----------------------------------------------------------------------------------- against an independent counting


def masks(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two similar random masks, which also touch the border."""
    rng = np.random.default_rng(seed)
    shared, own, other = (gaussian_filter(rng.standard_normal(shape), 1.0, mode="wrap") for _ in range(3))
    return (shared + own) > np.quantile(shared + own, 0.88), (shared + other) > np.quantile(shared + other, 0.85)


def independent_score(reference: np.ndarray, predicted: np.ndarray) -> LesionScore:
    """Overlap, many-to-many, 26-connected, on the labels of scikit-image, one lesion at a time."""
    a, b = measure.label(reference, connectivity=3), measure.label(predicted, connectivity=3)
    dice = []
    for region in measure.regionprops(a):
        lesion = a == region.label
        matched = np.isin(b, np.setdiff1d(b[lesion], [0]))
        dice.append(2 * np.sum(lesion & matched) / (np.sum(lesion) + np.sum(matched)))
    false_positives = sum(not reference[b == region.label].any() for region in measure.regionprops(b))
    tp, fn = np.count_nonzero(dice), dice.count(0.0)
    precision = 1 - false_positives / b.max() if b.max() else NAN
    return score_of(
        a.max(),
        b.max(),
        tp,
        false_positives,
        tp / (tp + fn),
        precision,
        tp / (tp + (false_positives + fn) / 2),
        np.mean(dice),
        np.sum(dice) / tp if tp else NAN,
    )


@pytest.mark.parametrize("shape", [(8, 20, 22), (1, 40, 40), (30, 6, 1)])
def test_scores_are_those_of_an_independent_counting(shape: tuple[int, int, int]) -> None:
    for seed in range(5):
        reference, predicted = masks(shape, seed)
        score, lesions = score_lesions(reference, predicted, GEOMETRY, MatchingRule())
        assert score.num_detected > 0
        assert_same(score, independent_score(reference, predicted))
        regions = measure.regionprops(measure.label(reference, connectivity=3))
        expected = sorted((int(r.area), tuple(np.round(r.centroid, 6).tolist())) for r in regions)
        offsets = [np.subtract(le.centroid_mm, GEOMETRY.origin_mm)[::-1] / GEOMETRY.spacing_mm for le in lesions]
        found = [
            (le.voxels, tuple(np.round(o, 6).tolist()))
            for le, o in zip(lesions, offsets, strict=True)
            if le.side == "reference"
        ]
        assert sorted(found) == expected


@pytest.mark.parametrize("density", [0.001, 0.02, 0.3, 0.999])
def test_noise_is_scored_as_by_an_independent_counting(density: float) -> None:
    rng = np.random.default_rng(11)
    reference, predicted = rng.random((6, 15, 14)) < density, rng.random((6, 15, 14)) < density
    score, _ = score_lesions(reference, predicted, GEOMETRY, MatchingRule())
    assert_same(score, independent_score(reference, predicted))


# ------------------------------------------------------------------------------------------------------ invariances

RULES = [MatchingRule(), MatchingRule("iou", 0.3, one_to_one=True), MatchingRule("dilated", dilation_mm=2.1)]


def without_places(lesions: tuple[ScoredLesion, ...]) -> list[tuple[object, ...]]:
    keep = ("side", "voxels", "longest_diameter_mm", "dice", "iou")
    rows = [tuple(getattr(lesion, name) for name in keep) for lesion in lesions]
    return sorted((side, voxels, *(round(value, 9) for value in rest)) for side, voxels, *rest in rows)


@pytest.mark.parametrize("rule", RULES)
def test_flips_and_transpositions_change_nothing(rule: MatchingRule) -> None:
    reference, predicted = masks((9, 14, 15), 3)
    spacing = np.array([3.0, 0.9, 1.2])
    score, lesions = score_lesions(reference, predicted, Geometry(tuple(spacing)), rule)
    for order in itertools.permutations(range(3)):
        turned = Geometry(tuple(spacing[list(order)].tolist()))
        a, b = np.flip(reference.transpose(order), 1), np.flip(predicted.transpose(order), 1)
        again, lesions_again = score_lesions(a, b, turned, rule)
        assert_same(again, score)
        assert without_places(lesions_again) == without_places(lesions)


@pytest.mark.parametrize("rule", RULES)
def test_swapping_the_masks_swaps_the_sides(rule: MatchingRule) -> None:
    reference, predicted = masks((9, 14, 15), 4)
    score, lesions = score_lesions(reference, predicted, GEOMETRY, rule)
    swapped, lesions_swapped = score_lesions(predicted, reference, GEOMETRY, rule)
    assert swapped.lesion_sensitivity == score.lesion_precision
    assert swapped.lesion_precision == score.lesion_sensitivity
    number = score.num_reference_lesions
    for a, b in zip(lesions[number:] + lesions[:number], lesions_swapped, strict=True):
        assert dataclasses.replace(a, side=b.side, confidence=0) == dataclasses.replace(b, confidence=0)


def test_an_empty_border_changes_nothing() -> None:
    reference, predicted = masks((5, 14, 15), 6)
    padded = [np.pad(mask, ((2, 3), (1, 0), (4, 1))) for mask in (reference, predicted)]
    z, y, x = GEOMETRY.spacing_mm
    origin = tuple(np.subtract(GEOMETRY.origin_mm, (4 * x, 1 * y, 2 * z)).tolist())
    sample = np.random.default_rng(0).random((5, 14, 15)) < 0.01
    score, lesions = score_lesions(reference, predicted, GEOMETRY, MatchingRule(), [sample])
    again, lesions_again = score_lesions(
        *padded,
        dataclasses.replace(GEOMETRY, origin_mm=origin),
        MatchingRule(),
        [np.pad(sample, ((2, 3), (1, 0), (4, 1)), constant_values=True)],
    )
    assert_same(again, score)
    for a, b in zip(lesions, lesions_again, strict=True):
        assert b.centroid_mm == pytest.approx(a.centroid_mm)
        assert repr(dataclasses.replace(a, centroid_mm=b.centroid_mm)) == repr(b)


def test_the_masks_are_left_as_they_are() -> None:
    reference, predicted = masks((5, 14, 15), 6)
    copies = reference.copy(), predicted.copy()
    score_lesions(reference, predicted, GEOMETRY, MatchingRule("dilated"), [predicted])
    np.testing.assert_array_equal(reference, copies[0])
    np.testing.assert_array_equal(predicted, copies[1])


@pytest.mark.parametrize("which", ["prediction", "sample 2", "probability"])
def test_shapes_must_agree(which: str) -> None:
    right, wrong = np.ones((2, 3, 4), bool), np.ones((2, 3, 5), bool)
    with pytest.raises(ValueError, match=which):
        score_lesions(
            right,
            wrong if which == "prediction" else right,
            GEOMETRY,
            MatchingRule(),
            [right, wrong if which == "sample 2" else right],
            np.ones(wrong.shape) if which == "probability" else None,
        )


def test_a_liver_in_a_large_volume_is_one_lesion() -> None:
    mask = np.zeros((60, 300, 300), bool)
    grid = np.indices((50, 200, 200)) / np.reshape([50, 200, 200], (3, 1, 1, 1)) - 0.5
    mask[5:55, 50:250, 50:250] = (grid**2).sum(axis=0) < 0.24
    score, _ = score_lesions(mask, np.roll(mask, 2, 2), GEOMETRY, MatchingRule("dilated"), [mask] * 4)
    assert score.num_detected == 1


# ----------------------------------------------------------------------------------------------------------- strata


def lesion_of(volume_ml: float, *, dice: float = 0.0, matched: bool = False, side: str = "reference") -> ScoredLesion:
    ids = (1,) if matched else ()
    return ScoredLesion(side, 1, 1, volume_ml, None, 0.0, (0, 0, 0), ids, dice, dice, NAN)  # type: ignore[arg-type]


def test_strata_by_hand() -> None:
    lesions = [
        lesion_of(0.05),
        lesion_of(0.09, dice=0.5, matched=True),
        lesion_of(0.1, dice=0.8, matched=True),  # the lower end belongs to the stratum
        lesion_of(7.0, side="prediction"),
        lesion_of(0.02, side="prediction"),
        lesion_of(0.03, side="prediction", matched=True),
    ]
    small, medium, large = stratify(iter(lesions), (0.1, 1.0))
    assert (small.name, medium.name, large.name) == ("below 0.1 ml", "0.1 to 1 ml", "1 ml and more")
    assert (small.low_ml, small.high_ml, medium.low_ml, large.high_ml) == (0, 0.1, 0.1, math.inf)
    assert (small.num_reference, small.num_detected, small.num_false_positive) == (2, 1, 1)
    assert (small.sensitivity, small.mean_dice) == (0.5, 0.25)
    assert (medium.num_reference, medium.sensitivity, medium.mean_dice) == (1, 1.0, 0.8)
    assert (large.num_reference, large.num_false_positive) == (0, 1)
    assert math.isnan(large.sensitivity)
    assert math.isnan(large.mean_dice)


def test_one_stratum_and_no_lesions() -> None:
    (everything,) = stratify([lesion_of(1.0)], ())
    assert (everything.name, everything.num_reference) == ("all", 1)
    assert [s.num_reference for s in stratify([], (1.0,))] == [0, 0]


@pytest.mark.parametrize("edges", [(1.0, 0.5), (0.0,), (1.0, 1.0), (-1.0, 1.0), (NAN,)])
def test_edges_must_ascend(edges: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        stratify([], edges)


def test_edges_are_thirds_in_two_digits() -> None:
    volumes = [0.001 * i for i in range(1, 1000)]
    assert strata_edges_ml(volumes) == (0.33, 0.67)
    assert strata_edges_ml(reversed(volumes), 4) == (0.25, 0.5, 0.75)
    assert strata_edges_ml(volumes, 1) == ()


@pytest.mark.parametrize("volumes", [[], [1.234], [2.0] * 50, [0.0011, 0.001101]])
def test_too_few_or_too_similar_volumes_have_no_edges(volumes: list[float]) -> None:
    assert strata_edges_ml(volumes) == ()
    assert len(stratify([lesion_of(v) for v in volumes], strata_edges_ml(volumes))) == 1


def test_edges_of_any_volumes_can_be_used() -> None:
    rng = np.random.default_rng(0)
    for size in range(1, 30):
        volumes = np.exp(rng.normal(0, 3, size)).tolist()
        strata = stratify([lesion_of(v) for v in volumes], strata_edges_ml(volumes))
        assert sum(s.num_reference for s in strata) == size
        assert min(s.num_reference for s in strata) > 0


def test_number_of_strata_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_strata is 0"):
        strata_edges_ml([1.0], 0)


def test_counts_pool_over_cases() -> None:
    _, lesions = score_lesions(*example(), GEOMETRY, MatchingRule())
    empty = np.zeros((2, 2, 2), bool)
    _, none = score_lesions(empty, ~empty, GEOMETRY, MatchingRule())
    pooled = count_lesions([*lesions, *lesions, *none])
    assert (pooled.num_reference_lesions, pooled.num_predicted_lesions, pooled.num_false_positive) == (6, 9, 3)
    assert pooled.lesion_sensitivity == pytest.approx(2 / 3)
    assert pooled.lesion_precision == pytest.approx(6 / 9)
    assert pooled.lesion_f1 == pytest.approx(8 / (8 + 2 + 3))
