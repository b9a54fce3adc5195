"""Promises from held-out patients: values by hand, refusals, and what is kept over random splits of a known law."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unisegdiff_pipeline as usd
from unisegdiff_pipeline.evaluation.conformal import (
    MaskVolumes,
    RiskThreshold,
    VolumeMargin,
    control_risk,
    lesion_scores,
    lesion_threshold,
    mask_thresholds,
    mask_volumes,
    smallest_num_patients,
    volume_margin,
)

NUM_SPLITS = 200


def single_lesions(*scores: float) -> dict[str, list[float]]:
    return {f"p{i}": [score] for i, score in enumerate(scores)}


def test_the_example_of_the_page_is_sound() -> None:
    page = Path(__file__).resolve().parents[2] / "documentation/how-to/guarantees.md"
    example = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)[-1]
    names: dict[str, Any] = {}
    exec(example, names)
    assert 0.7 < names["found"].threshold < 1
    assert names["found"].num_patients == 19
    assert (names["inner"] <= names["outer"]).all()
    assert names["low"] < 36 < names["high"]
    assert (names["mask"] & (names["reference"] > 0)).any()


def test_examples_of_the_docstrings() -> None:
    for test in doctest.DocTestFinder().find(usd.guarantees, globs={"usd": usd, "np": np}):
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


# --------------------------------------------------------------------------------------------------- values by hand


def test_smallest_number_of_patients() -> None:
    assert [smallest_num_patients(alpha) for alpha in (0.5, 0.3, 0.2, 0.1, 0.05, 0.01)] == [1, 3, 4, 9, 19, 99]
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="alpha is"):
            smallest_num_patients(alpha)


def test_no_lesion_may_be_missed_in_10_patients_and_one_in_19() -> None:
    scores = [0.05 * i for i in range(1, 20)]
    assert lesion_threshold(single_lesions(*scores[:10]), 0.1) == RiskThreshold(0.05, 0.1, 1 / 11, 10)
    found = lesion_threshold(single_lesions(*scores), 0.1)  # (1 + 1) / 20
    assert (found.threshold, found.corrected_risk) == (0.1, 0.1)


def test_each_patient_counts_once_and_those_without_a_lesion_not_at_all() -> None:
    scores = {"many": [0.1, 0.9, 0.9, 0.9], "a": [0.8], "b": [0.7], "none": []}
    found = lesion_threshold(scores, 0.4)  # at 0.7 (1 / 4 + 0 + 0 + 1) / 4, at 0.8 (1 / 4 + 0 + 1 + 1) / 4
    assert (found.threshold, found.num_patients, found.corrected_risk) == (0.7, 3, 1.25 / 4)


def test_a_lesion_is_found_as_long_as_the_mask_shares_a_voxel_with_it() -> None:
    probability = np.array([[[0.9, 0.2, 0.0, 0.7], [0.1, 0.3, 0.0, 0.0]]], np.float32)
    reference = np.array([[[0, 1, 0, 1], [1, 1, 0, 0]]])
    scores = lesion_scores(probability, reference)
    np.testing.assert_allclose(scores, [0.3, 0.7], rtol=1e-6)  # largest lesion first
    found = lesion_threshold({"a": scores, "b": [0.9], "c": [0.9]}, 0.25)
    assert (found.mask(probability) & (reference != 0))[0, 1, 1]
    assert lesion_scores(probability, np.zeros_like(reference)).size == 0
    assert lesion_scores(probability[0], reference[0]).tolist() == scores.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_mask_is_that_which_the_threshold_was_made_from_in_every_precision(dtype: type) -> None:
    p = np.array([[0.69, 0.7, 0.71]], dtype)  # 0.7 is a little less in single, a little more in half precision
    for level in (0.7, float(p[0, 1])):
        inside = RiskThreshold(level, 0.1, 0.1, 9).mask(p)
        assert inside.tolist() == [[False, float(p[0, 1]) >= level, True]]
        assert mask_volumes(p, [[1, 1, 1]], thresholds=(level,)).mask.tolist() == [inside.sum()]
    assert RiskThreshold(0.7, 0.1, 0.1, 9).mask([0, 1]).tolist() == [False, True]


def test_the_margin_is_the_finite_sample_quantile_of_the_patients_worst_images() -> None:
    samples = list(range(1, 20))  # central 80 % at the positions 2 and 18
    references = {f"p{i}": [(samples, 18.0 + i), (samples, 10.0)] for i in range(10)}
    assert volume_margin(references, 0.8) == VolumeMargin(8.0, 0.8, 10, 19)  # the 9th of 0 ... 9: ceil(11 * 0.8)
    assert volume_margin(references, 0.8).interval(samples) == pytest.approx((0.0, 26.0))
    inside = {f"p{i}": [(samples, 10.0)] for i in range(9)}
    assert volume_margin(inside, 0.8).interval(samples) == pytest.approx((10.0, 10.0))  # a margin of -8
    assert VolumeMargin(-9.0, 0.8, 9, 19).interval(samples) == pytest.approx((10.0, 10.0))  # nothing left


def test_volumes_of_masks_are_those_of_thresholded_arrays() -> None:
    rng = np.random.default_rng(0)
    p, truth = rng.random((3, 5, 6)).astype(np.float32), rng.random((3, 5, 6)) < 0.3
    volumes = mask_volumes(p, truth, 0.5)
    for level, mask, common in zip(volumes.thresholds, volumes.mask, volumes.common, strict=True):
        inside = p.astype(np.float64) >= level
        assert (mask, common) == (inside.sum() / 2, (inside & truth).sum() / 2)
    assert volumes.reference == truth.sum() / 2


def test_inner_and_outer_masks_by_hand() -> None:
    levels = (0.1, 0.5, 0.8)
    sound = mask_volumes([[0.9, 0.6, 0.2]], [[1, 1, 0]], thresholds=levels)  # outside 0 0 1/2, false 1/3 0 0
    false = mask_volumes([[0.9, 0.6, 0.2]], [[0, 1, 0]], thresholds=levels)  # false 2/3 1/2 1
    patients = {f"p{i}": [sound] for i in range(9)}
    found = mask_thresholds(patients, 0.15)
    assert (found.inner, found.outer) == (RiskThreshold(0.5, 0.15, 0.1, 9), RiskThreshold(0.5, 0.15, 0.1, 9))
    with_false = mask_thresholds(
        {**patients, "f": [false]}, 0.2
    )  # 1/2 at 0.5 would allow 0.15; the running maximum is 1
    assert with_false.inner == RiskThreshold(0.5, 0.2, pytest.approx(2 / 11), 10)
    with pytest.raises(usd.UsdError, match=r"inner mask outside the reference .* risk of 0.182 .* at least 0.182"):
        mask_thresholds({**patients, "f": [false]}, 0.15)


def test_an_outer_mask_that_cannot_be_is_refused_by_name() -> None:
    lost = mask_volumes([[0.9, 0.0]], [[1, 1]])  # half of each reference has no probability at all
    with pytest.raises(usd.UsdError, match=r"reference outside the outer mask .* risk of 0.550 .* at least 0.55"):
        mask_thresholds({f"p{i}": [lost] for i in range(9)}, 0.1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_default_thresholds_tell_sure_voxels_apart(dtype: type) -> None:
    """A voxel of 0.996 is wrong in each patient, those of 0.9995 are not."""
    sure = mask_volumes(np.array([[0.9995, 0.9995, 0.996]], dtype), [[1, 1, 0]])
    found = mask_thresholds({f"p{i}": [sure] for i in range(9)}, 0.1)
    assert 0.996 < found.inner.threshold <= 0.9995
    assert found.inner.mask(np.array([0.9995, 0.996], dtype)).tolist() == [True, False]


def test_a_lesion_free_patient_counts_for_the_inner_mask_alone() -> None:
    levels = (0.1, 0.5, 0.8)
    sound = mask_volumes([[0.9]], [[1]], thresholds=levels)
    alarm = mask_volumes([[0.6]], [[0]], thresholds=levels)
    found = mask_thresholds({**{f"p{i}": [sound] for i in range(9)}, "free": [alarm]}, 0.1)
    assert (found.inner.threshold, found.inner.num_patients) == (0.8, 10)
    assert (found.outer.threshold, found.outer.num_patients) == (0.8, 9)


def test_the_outer_mask_holds_the_inner_one_where_both_promises_leave_room() -> None:
    perfect = mask_volumes([[0.7, 0.3]], [[1, 0]], thresholds=(0.2, 0.4, 0.6, 0.8))
    found = mask_thresholds({f"p{i}": [perfect] for i in range(9)}, 0.1)
    assert (found.outer.threshold, found.inner.threshold) == (0.4, 0.6)  # either would serve as the other


def test_images_of_a_patient_are_pooled() -> None:
    levels = (0.1, 0.5)
    large = mask_volumes([[0.9, 0.9, 0.9]], [[1, 1, 1]], 2.0, levels)
    small = mask_volumes(
        [[0.2, 0.2, 0.2, 0.2]], [[1, 0, 0, 0]], 2.0, levels
    )  # of all 2 / 8 outside at 0.5, 6 / 14 false
    found = mask_thresholds({"a": [large, small], "b": [large]}, 0.42)
    assert found.outer == RiskThreshold(0.5, 0.42, pytest.approx((0.25 + 1) / 3), 2)
    assert found.inner == RiskThreshold(0.5, 0.42, pytest.approx((0.0 + 1) / 3), 2)


# --------------------------------------------------------------------------------------------------------- refusals


SOUND = mask_volumes([[0.9]], [[1]], thresholds=(0.1, 0.5))
TOO_FEW: dict[str, Callable[[], object]] = {
    "8 held-out patients with a lesion cannot": lambda: lesion_threshold({**single_lesions(*[0.5] * 8), "x": []}, 0.1),
    "0 held-out patients with a lesion cannot": lambda: lesion_threshold({}, 0.1),
    "8 held-out patients cannot": lambda: mask_thresholds({f"p{i}": [SOUND] for i in range(8)}, 0.1),
    r"8 held-out patients cannot .* \(1 - coverage\): at least 9 are needed. Hold out more": (
        lambda: volume_margin({f"p{i}": [([1.0, 2.0], 1.0)] for i in range(8)}, 0.9)
    ),
}


@pytest.mark.parametrize("message", TOO_FEW)
def test_too_few_patients_are_refused_with_the_number_needed(message: str) -> None:
    with pytest.raises(usd.UsdError, match=message):
        TOO_FEW[message]()


def test_one_more_patient_is_enough() -> None:
    assert lesion_threshold(single_lesions(*[0.5] * 9), 0.1).threshold == 0.5
    assert volume_margin({f"p{i}": [([1.0, 2.0], 1.0)] for i in range(9)}, 0.9).margin == 0
    with pytest.raises(usd.UsdError, match=r"or ask for a risk of 0\.112 or more, a coverage of 0\.888 or less"):
        lesion_threshold(single_lesions(*[0.5] * 8), 0.1)
    assert lesion_threshold(single_lesions(*[0.5] * 8), 0.112).threshold == 0.5


def test_a_promise_that_would_mark_every_voxel_is_refused() -> None:
    with pytest.raises(usd.UsdError, match=r"corrected risk of 0.200 on 9 held-out patients"):
        lesion_threshold(single_lesions(0.0, *[0.5] * 8), 0.1)
    with pytest.raises(usd.UsdError, match="every lesion of the held-out patients has probability 0"):
        lesion_threshold(single_lesions(*[0.0] * 9), 0.1)


WRONG: dict[str, Callable[[], object]] = {
    "losses fall": lambda: control_risk([[1, 0]] * 9, 0.1),
    "losses have shape": lambda: control_risk([[0, 2]] * 9, 0.1),
    "a score of a lesion": lambda: lesion_threshold(single_lesions(*[1.5] * 9), 0.1),
    "allowed is the same number": lambda: volume_margin({"a": [([1.0], 1.0), ([1.0, 2.0], 1.0)]}, 0.5),
    "patient 'a' has no image; leave": lambda: volume_margin({"a": []}, 0.5),
    "patient 'a' has no image, or": lambda: mask_thresholds({"a": []}, 0.5),
    "volumes are": lambda: volume_margin({"a": [([-1.0], 1.0)]}, 0.5),
    "coverage is 1": lambda: volume_margin({}, 1.0),
    "19 samples|2 samples are given; allowed are 19": lambda: VolumeMargin(1.0, 0.9, 9, 19).interval([1, 2]),
    "thresholds are": lambda: mask_volumes([[0.5]], [[1]], thresholds=(0.0, 0.5)),
    "voxel_volume is 0": lambda: mask_volumes([[0.5]], [[1]], 0),
    "probability has shape": lambda: lesion_scores([[0.5]], [[1, 0]]),
    "probability is not between": lambda: lesion_scores([[np.nan]], [[1]]),
    "different thresholds": lambda: mask_thresholds(
        {"a": [SOUND], "b": [mask_volumes([[0.9]], [[1]], thresholds=(0.2,))]}, 0.5
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


# -------------------------------------------------------------------------------- kept over random splits of a law


def over_splits(num_pool: int, num_held_out: int, loss: Callable[[Any, Any], float]) -> tuple[float, float]:
    """Mean loss over random splits of a pool of patients in held-out and new ones, and its standard error."""
    rng = np.random.default_rng(1)
    values = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(num_pool).tolist()
        values.append(loss(order[:num_held_out], order[num_held_out:]))
    return float(np.mean(values)), float(np.std(values, ddof=1) / NUM_SPLITS**0.5)


def test_missed_lesions_of_single_lesions_are_as_many_as_theory_says() -> None:
    """None of 10 may be missed, so 1 of 11 is expected; without the correction one might be, and 2 of 11 were."""
    pool = np.random.default_rng(2).beta(2, 1, 300)

    def loss(held_out: list[int], new: list[int]) -> float:
        return float((pool[new] < lesion_threshold(single_lesions(*pool[held_out]), 0.1).threshold).mean())

    mean, error = over_splits(len(pool), 10, loss)
    assert abs(mean - 1 / 11) < 3 * error
    assert error < 0.01


@pytest.mark.parametrize(("num_held_out", "alpha"), [(12, 0.1), (30, 0.1), (30, 0.2)])
def test_missed_lesions_of_patients_that_differ_stay_below_the_promise(num_held_out: int, alpha: float) -> None:
    rng = np.random.default_rng(3)
    pool = [1 / (1 + np.exp(-rng.normal(rng.normal(1, 1), 1, rng.integers(1, 6)))) for _ in range(300)]

    def loss(held_out: list[int], new: list[int]) -> float:
        threshold = lesion_threshold({str(i): pool[i] for i in held_out}, alpha).threshold
        return float(np.mean([(pool[i] < threshold).mean() for i in new]))

    mean, error = over_splits(len(pool), num_held_out, loss)
    assert mean < alpha + 3 * error
    assert mean > alpha - 2 / (num_held_out + 1) - 3 * error  # Theorem 2: no more careful than that


@pytest.mark.parametrize("num_images", [1, 3])
def test_volumes_of_all_images_of_a_patient_are_covered_as_promised(num_images: int) -> None:
    """The 9th of 10 scores covers 9 of 11; without the correction it were the 8th, and 8 of 11 fewer than promised."""
    rng = np.random.default_rng(4)
    pool: list[list[tuple[np.ndarray, float]]] = []
    for _ in range(100):
        shift = rng.normal(0, 3)  # of a patient: its samples err together
        centres = rng.uniform(20, 60, num_images)
        pool.append([(rng.normal(c + shift, 1, 19), float(rng.normal(c, 2))) for c in centres])

    def coverage(held_out: list[int], new: list[int]) -> float:
        margin = volume_margin({str(i): pool[i] for i in held_out}, 0.8)
        ends = [[(*margin.interval(samples), volume) for samples, volume in pool[i]] for i in new[:40]]
        return float(np.mean([all(low <= volume <= high for low, high, volume in own) for own in ends]))

    mean, error = over_splits(len(pool), 10, coverage)
    assert abs(mean - 9 / 11) < 3 * error
    assert error < 0.012


def noisy_patients(num_patients: int) -> list[MaskVolumes]:
    """A line of 60 voxels each with a segment of lesion, or none, and probabilities that err at its borders."""
    rng = np.random.default_rng(5)
    x = np.arange(60)
    patients = []
    for _ in range(num_patients):
        centre, half = rng.uniform(15, 45), rng.uniform(3, 12)
        truth = (abs(x - centre) < half) & (rng.random() < 0.9)
        border = half - abs(x - centre - rng.normal(0, 1)) + rng.normal(0, 1.5) if truth.any() else -4 + 0 * x
        logit = border + rng.normal(0, 0.7, x.shape)
        patients.append(mask_volumes((1 / (1 + np.exp(-logit)))[None], truth[None]))
    return patients


def test_inner_and_outer_masks_enclose_the_reference_as_promised() -> None:
    alpha, pool = 0.1, noisy_patients(150)
    rows = np.arange(len(pool))
    common, mask = (np.array([getattr(v, name) for v in pool]) for name in ("common", "mask"))
    reference = np.array([v.reference for v in pool])
    levels = np.array(pool[0].thresholds)

    def losses(held_out: list[int], new: list[int]) -> tuple[float, float]:
        found = mask_thresholds({str(i): [pool[i]] for i in held_out}, alpha)
        inner, outer = (np.searchsorted(levels, t.threshold) for t in (found.inner, found.outer))
        assert outer <= inner
        false = [1 - common[i, inner] / mask[i, inner] if mask[i, inner] else 0.0 for i in new]
        diseased = [i for i in new if reference[i]]
        return float(np.mean(false)), float(np.mean(1 - common[diseased, outer] / reference[diseased]))

    for which, careful in ((0, 0.05), (1, 0.0)):
        mean, error = over_splits(len(rows), 40, lambda held_out, new, which=which: losses(held_out, new)[which])
        assert mean < alpha + 3 * error
        assert mean > alpha - 2 / 41 - careful - 3 * error  # the running maximum costs something


def test_rounded_sums_of_several_images_are_no_losses_below_0() -> None:
    """100, 200 and 300 voxels of 0.001 ml add up to 1 + 2e-16 of themselves, in one order and another."""
    own = [mask_volumes(np.ones((1, size)), np.ones((1, size)), 0.001) for size in (100, 200, 300)]
    found = mask_thresholds({f"p{i}": own for i in range(12)}, 0.1)
    assert found.outer.corrected_risk == pytest.approx(1 / 13)
