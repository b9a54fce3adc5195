"""Means over cases, with empty cases counted apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.summary import CaseScores, fold_table, macro_mean, summarise, summary_table

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))


def case(case_id: str, reference: str, predicted: str) -> CaseScores:
    arrays = [np.array([[[int(c) for c in text]]]) for text in (reference, predicted)]
    return CaseScores(case_id, tuple(score_case(arrays[0], arrays[1], BINARY, (10.0, 10.0, 10.0))))


CASES = [
    case("perfect", "1100", "1100"),  # Dice 1, error 0
    case("half", "1100", "0110"),  # Dice 0.5, error 0
    case("larger", "1000", "1110"),  # Dice 0.5, error +2 ml
    case("nothing", "0000", "0000"),
    case("alarm", "0000", "0011"),  # 2 ml false positive
]


def test_means_are_over_scored_cases_and_empties_are_counted() -> None:
    (lesion,) = summarise(CASES).classes
    assert (lesion.num_cases, lesion.num_scored, lesion.num_both_empty, lesion.num_false_positive) == (5, 3, 1, 1)
    assert lesion.mean_dice == pytest.approx(2 / 3)
    assert lesion.median_dice == 0.5
    assert lesion.mean_dice_nnunet == pytest.approx(2 / 4)
    assert lesion.mean_volume_error_ml == pytest.approx(2 / 3)
    assert lesion.mean_false_positive_ml == pytest.approx(1.0)
    assert (lesion.tp, lesion.fp, lesion.fn) == (4, 5, 1)


def test_a_class_that_never_occurs_stays_undefined() -> None:
    summary = summarise([case("nothing", "00", "00")])
    assert math.isnan(summary.mean_dice)
    assert summary.classes[0].num_both_empty == 1


def test_table_tells_false_positives_and_nominal_volumes() -> None:
    text = summary_table(summarise(CASES), units_of(is_2d=False, spacing_known=False))
    assert "0.667" in text.splitlines()[2]
    assert "the mean Dice is 0.500" in text
    assert "nominal" in text


def test_fold_table_ends_with_mean_and_deviation() -> None:
    lines = fold_table({"0": {"lesion": 1.0, "other": None}, "1": {"lesion": 0.5, "other": 0.25}}).splitlines()
    assert lines[0].split() == ["fold", "lesion", "other"]
    assert lines[2].split() == ["0", "1.000", "-"]
    assert lines[-2].split() == ["mean", "0.750", "0.250"]
    assert lines[-1].split() == ["sd", "0.354", "-"]


def test_a_mean_over_parts_counts_a_large_one_as_a_small_one() -> None:
    values, parts = [0.9, 0.9, 0.9, 0.3, math.nan, math.nan], ["a", "a", "a", "b", "b", "c"]
    assert macro_mean(values, parts) == pytest.approx((0.9 + 0.3) / 2)  # c has no value that is defined
    assert macro_mean(values, ()) == pytest.approx(3.0 / 4)
    assert math.isnan(macro_mean([math.nan], ["a"]))
