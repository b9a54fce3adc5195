"""The lesion filter over all folds: scores on folds that it was not chosen on, and when it is taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER
from unisegdiff_pipeline.selection.lesion_filter import FoundLesion, LesionCase
from unisegdiff_pipeline.training.filter_over_folds import rechoose_filter


def true(confidence: float = 1.0) -> FoundLesion:
    return FoundLesion(10.0, confidence, 0.9, 10, 10, (1,))


def false(voxels: int, confidence: float = 0.25) -> FoundLesion:
    return FoundLesion(float(voxels), confidence, 0.9, voxels, 0, ())


def case(name: str, *lesions: FoundLesion, free: bool = False) -> LesionCase:
    size, number = (0, 0) if free else (10, 1)
    return LesionCase(name, "lesion", lesions, size, number, 0, name)


def dice(voxels: int) -> float:
    return 2 * 10 / (10 + voxels + 10)


def test_what_all_folds_agree_on_is_taken_with_scores_by_hand() -> None:
    folds = {str(fold): [case(f"{fold}-{i}", true(), false(2 + i)) for i in range(4)] for fold in range(3)}
    for fold, cases in folds.items():
        cases.append(case(f"free {fold}", false(3), free=True))
    found = rechoose_filter(folds, ("lesion",), "ml")
    assert found is not None
    assert 0.25 < found.lesion_filter.rules["lesion"].min_confidence <= 1
    evidence = found.evidence
    assert evidence.is_taken
    assert (evidence.num_folds, evidence.num_groups, evidence.num_with, evidence.num_without) == (3, 15, 12, 3)
    assert evidence.dice == pytest.approx(sum(map(dice, (2, 3, 4, 5))) / 4)
    assert evidence.dice_filtered == 1
    assert evidence.difference == pytest.approx(1 - evidence.dice)
    assert evidence.lesion_f1 == pytest.approx(2 * 12 / (12 + 15 + 12))
    assert evidence.lesion_f1_filtered == 1
    assert (evidence.false_alarms, evidence.false_alarms_filtered) == (1, 0)


def test_scores_over_folds_of_a_unified_data_set_are_means_over_its_sources() -> None:
    folds = {str(fold): [case(f"{fold}-{i}", true(), false(2 + i)) for i in range(4)] for fold in range(3)}
    folds = {fold: [replace(c, source="large") for c in cases] for fold, cases in folds.items()}
    for fold, cases in folds.items():
        cases.append(replace(case(f"small {fold}", true(), false(10)), source="small"))
        cases.append(replace(case(f"free {fold}", false(3), free=True), source="small"))
    found = rechoose_filter(folds, ("lesion",), "ml")
    assert found is not None
    evidence, large = found.evidence, sum(map(dice, (2, 3, 4, 5))) / 4
    assert evidence.is_taken
    assert evidence.dice == pytest.approx((large + dice(10)) / 2)
    assert evidence.difference == pytest.approx(1 - (large + dice(10)) / 2)
    assert evidence.lesion_f1 == pytest.approx((2 * 12 / (12 + 12 + 12) + 2 * 3 / (3 + 6 + 3)) / 2)
    assert (evidence.false_alarms, evidence.false_alarms_filtered) == (1, 0)
    assert evidence.low < evidence.difference < evidence.high


def test_what_harms_the_fold_that_it_was_not_chosen_on_is_not_taken() -> None:
    """In the first fold lesions are as unsure as false ones, which are larger: what the second chooses takes all."""
    unsure = [case(f"a{i}", false(11 + i), true(0.25)) for i in range(6)]
    sure = [case(f"b{i}", false(11 + i), true()) for i in range(20)]
    found = rechoose_filter({"0": unsure, "1": sure}, ("lesion",), "ml")
    assert found is not None
    assert found.evidence.dice_filtered == pytest.approx(sum(dice(11 + i) for i in range(20)) / 26)
    assert found.evidence.dice_filtered < found.evidence.dice
    assert not found.evidence.is_taken
    assert found.lesion_filter == NO_FILTER


def test_nothing_to_choose_keeps_every_lesion() -> None:
    folds = {str(fold): [case(f"{fold}-{i}", true()) for i in range(4)] for fold in range(3)}
    found = rechoose_filter(folds, ("lesion",), "ml")
    assert found is not None
    assert found.lesion_filter == NO_FILTER
    assert not found.evidence.is_taken
    assert "every lesion stays" in found.evidence.in_words[-1]
    assert math.isnan(found.evidence.false_alarms)


def test_one_fold_or_no_lesion_tells_nothing() -> None:
    assert rechoose_filter({"0": [case("a", true())]}, ("lesion",), "ml") is None
    empty = {str(fold): [case(str(fold), free=True)] for fold in range(2)}
    assert rechoose_filter(empty, ("lesion",), "ml") is None
