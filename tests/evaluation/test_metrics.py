"""Scores worked out by hand, and the rule for empty masks."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.metrics import ClassScore, score_case

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
TWO = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
IGNORING = LabelScheme(("lesion",), ((1,),), "binary", (1,), ignore_value=2)


def picture(*rows: str) -> np.ndarray:
    return np.array([[[int(c) for c in row] for row in rows]])


def test_overlap_and_volume_by_hand() -> None:
    reference = picture("1100", "1100", "0000", "0000")
    predicted = picture("0110", "0110", "0010", "0000")
    (score,) = score_case(reference, predicted, BINARY, (2.0, 5.0, 10.0))  # 100 mm3 = 0.1 ml a voxel
    assert (score.tp, score.fp, score.fn, score.tn) == (2, 3, 2, 9)
    assert score.dice == pytest.approx(4 / 9)
    assert score.iou == pytest.approx(2 / 7)
    assert score.reference_ml == pytest.approx(0.4)
    assert score.predicted_ml == pytest.approx(0.5)
    assert score.volume_error_ml == pytest.approx(0.1)
    assert score.sensitivity == pytest.approx(2 / 4)
    assert score.precision == pytest.approx(2 / 5)
    assert score.volume_error_percent == pytest.approx(25)
    assert score.false_positive_ml == pytest.approx(0.3)
    assert score.outcome == "scored"
    assert not score.volumes_nominal


def test_both_empty_is_undefined() -> None:
    empty = picture("00", "00")
    (score,) = score_case(empty, empty, BINARY, (1, 1, 1))
    assert score.outcome == "both_empty"
    assert math.isnan(score.dice)
    assert math.isnan(score.iou)
    assert math.isnan(score.sensitivity)
    assert math.isnan(score.precision)
    assert math.isnan(score.volume_error_percent)
    assert score.false_positive_ml == 0
    assert score.tn == 4


def test_prediction_on_an_empty_reference_is_a_false_positive_volume() -> None:
    (score,) = score_case(picture("00", "00"), picture("01", "00"), BINARY, (1, 1, 1))
    assert score.outcome == "false_positive"
    assert math.isnan(score.dice)
    assert math.isnan(score.precision)
    assert score.false_positive_ml == pytest.approx(0.001)


def test_missed_object_has_dice_zero() -> None:
    (score,) = score_case(picture("01", "00"), picture("00", "00"), BINARY, (1, 1, 1))
    assert (score.outcome, score.dice, score.iou) == ("scored", 0.0, 0.0)
    assert (score.sensitivity, score.precision) == (0.0, 0.0)
    assert score.volume_error_percent == -100.0


def test_classes_are_scored_apart() -> None:
    a, b = score_case(picture("1122"), picture("1222"), TWO, (1, 1, 1))
    assert a.dice == pytest.approx(2 / 3)
    assert b.dice == pytest.approx(4 / 5)


def test_a_region_is_the_union_of_its_values() -> None:
    whole, core = score_case(picture("1122"), picture("2222"), REGIONS, (1, 1, 1))
    assert whole.dice == 1.0
    assert core.dice == pytest.approx(4 / 6)


def test_ignored_voxels_are_left_out() -> None:
    (score,) = score_case(picture("1022"), picture("1110"), IGNORING, (1, 1, 1))
    assert (score.tp, score.fp, score.fn, score.tn) == (1, 1, 0, 0)
    assert score.predicted_ml == pytest.approx(0.002)


def test_nominal_volumes_are_marked() -> None:
    (score,) = score_case(picture("1"), picture("1"), BINARY, (1, 1, 1), spacing_known=False)
    assert score.volumes_nominal


def test_exchanging_the_masks_exchanges_sensitivity_and_precision() -> None:
    rng = np.random.default_rng(0)
    reference, predicted = rng.integers(0, 2, (2, 3, 7, 5))
    (there,) = score_case(reference, predicted, BINARY, (1, 1, 1))
    (back,) = score_case(predicted, reference, BINARY, (1, 1, 1))
    (mirrored,) = score_case(reference[:, ::-1], predicted[:, ::-1], BINARY, (1, 1, 1))
    assert (there.sensitivity, there.precision) == (back.precision, back.sensitivity)
    assert (there.dice, there.iou, there.volume_error_ml) == (back.dice, back.iou, -back.volume_error_ml)
    assert there == mirrored


def adversarial(shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Masks at which overlaps go wrong most easily."""
    one, corner, face, apart, empty = np.zeros((5, *shape), np.uint8)
    one[tuple(n // 2 for n in shape)] = 1
    corner[-1, -1, -1] = 1
    face[:, :, 0] = 1
    apart[0, 0, 0] = apart[-1, -1, -1] = apart[-1, 0, 0] = 1
    noise = np.random.default_rng(sum(shape)).integers(0, 2, shape).astype(np.uint8)
    found = {"one voxel": one, "corner": corner, "face": face, "disconnected": apart, "empty": empty}
    return found | {"everything": 1 - empty, "noise": noise, "opposite of noise": 1 - noise}


NAMES = tuple(adversarial((1, 1, 6)))


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 9, 8), (4, 6, 5)])
@pytest.mark.parametrize("one", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_overlap_equals_that_of_scikit_learn(shape: tuple[int, int, int], one: str, other: str) -> None:
    masks = adversarial(shape)
    reference, predicted = masks[one], masks[other]
    (score,) = score_case(reference, predicted, BINARY, (5, 0.7, 1.3))
    a, b = reference.ravel(), predicted.ravel()
    (tn, fp), (fn, tp) = confusion_matrix(a, b, labels=[0, 1])
    assert (score.tp, score.fp, score.fn, score.tn) == (tp, fp, fn, tn)
    assert score.volume_error_ml == pytest.approx((b.sum() - float(a.sum())) * 4.55 / 1000)
    if one == "empty":
        assert math.isnan(score.dice)
        return
    assert score.dice == pytest.approx(f1_score(a, b))
    assert score.iou == pytest.approx(jaccard_score(a, b))
    assert score.sensitivity == pytest.approx(recall_score(a, b))
    assert score.precision == pytest.approx(precision_score(a, b, zero_division=0))


@pytest.mark.parametrize("name", NAMES)
def test_flips_and_transpositions_change_nothing(name: str) -> None:
    masks = adversarial((4, 6, 5))
    spacing = (5.0, 0.7, 1.3)
    expected = score_case(masks["noise"], masks[name], BINARY, spacing)
    for order in itertools.permutations(range(3)):
        pair = [np.flip(mask.transpose(order), order[0]) for mask in (masks["noise"], masks[name])]
        turned = score_case(*pair, BINARY, [spacing[axis] for axis in order])
        assert [approximate(score) for score in turned] == [approximate(score) for score in expected]


def approximate(score: ClassScore) -> dict[str, object]:
    values = dataclasses.asdict(score)
    return {key: f"{value:.12g}" if isinstance(value, float) else value for key, value in values.items()}


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 2\)"):
        score_case(picture("11"), picture("1"), BINARY, (1, 1, 1))
