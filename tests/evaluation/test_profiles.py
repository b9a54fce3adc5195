"""Scores by the rules of challenges, on masks whose values one can do by hand."""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.commands.evaluate import PROFILE_NAMES
from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import VOLUMES
from unisegdiff_pipeline.evaluation.evaluate import evaluate_arrays, evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning, scheme_of_values
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.profiles.picai import auroc, average_precision
from unisegdiff_pipeline.evaluation.profiles.profile import ProfileCase, ProfileScore
from unisegdiff_pipeline.evaluation.profiles.registry import PROFILES, find_profile
from unisegdiff_pipeline.evaluation.profiles.ulds import axes_of
from unisegdiff_pipeline.io.images import write_labels

NAN = math.nan
UNIT = Geometry((1.0, 1.0, 1.0))
SHAPE = (9, 20, 20)


def mask(*boxes: tuple[int, int, int, int, int, int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Boxes (z, y, x of the first voxel, and lengths along Z, Y, X)."""
    result = np.zeros(shape, bool)
    for z, y, x, dz, dy, dx in boxes:
        result[z : z + dz, y : y + dy, x : x + dx] = True
    return result


def score(
    name: str, reference: np.ndarray, predicted: np.ndarray, geometry: Geometry = UNIT, **more: object
) -> ProfileScore:
    return PROFILES[name].score(ProfileCase(reference, predicted, geometry, **more))  # type: ignore[arg-type]


def assert_values(found: ProfileScore | Mapping[str, float], **expected: float) -> None:
    values = found.values if isinstance(found, ProfileScore) else found
    assert {name: values[name] for name in expected} == pytest.approx(expected, nan_ok=True)


EMPTY = mask()


def test_autopet_counts_whole_components_that_nothing_touches() -> None:
    # 8 voxels found with 4 more around, 3 voxels missed, 5 voxels made up; 0.2 ml a voxel.
    reference = mask((0, 0, 0, 2, 2, 2), (5, 10, 10, 1, 1, 3))
    predicted = mask((0, 0, 0, 2, 2, 3), (8, 15, 0, 1, 1, 5))
    found = score("autopet", reference, predicted, Geometry((2.0, 10.0, 10.0)))
    assert_values(
        found, dice=2 * 8 / (11 + 17), false_positive_component_ml=5 * 0.2, false_negative_component_ml=3 * 0.2
    )


def test_autopet_joins_over_edges_and_not_over_corners() -> None:
    edge, corner = mask((0, 0, 0, 1, 1, 1), (0, 1, 1, 1, 1, 1)), mask((0, 0, 0, 1, 1, 1), (1, 1, 1, 1, 1, 1))
    touched = mask((0, 0, 0, 1, 1, 1))
    assert score("autopet", touched, edge).values["false_positive_component_ml"] == 0
    assert score("autopet", touched, corner).values["false_positive_component_ml"] == pytest.approx(0.001)


def test_autopet_without_a_reference_is_the_false_volume_alone() -> None:
    found = score("autopet", EMPTY, mask((0, 0, 0, 1, 1, 4)))
    assert_values(found, dice=NAN, false_positive_component_ml=0.004, false_negative_component_ml=NAN)


def test_isles_by_hand() -> None:
    # Three lesions of which two are found, one of them in two pieces; one false: F1 = 2 / (2 + (1 + 1) / 2).
    reference = mask((0, 0, 0, 1, 1, 6), (3, 0, 0, 1, 2, 2), (6, 0, 0, 1, 1, 1))
    predicted = mask((0, 0, 0, 1, 1, 2), (0, 0, 4, 1, 1, 2), (3, 0, 0, 1, 2, 2), (8, 10, 10, 1, 1, 2))
    found = score("isles", reference, predicted, Geometry((2.0, 10.0, 10.0)))
    assert_values(
        found,
        dice=2 * 8 / (11 + 10),
        absolute_volume_difference_ml=0.2,
        absolute_lesion_count_difference=1,
        lesion_f1=2 / 3,
    )


@pytest.mark.parametrize(("one", "other", "value"), [(EMPTY, EMPTY, 1.0), (EMPTY, ~EMPTY, 0.0), (~EMPTY, EMPTY, 0.0)])
def test_isles_of_empty_masks(one: np.ndarray, other: np.ndarray, value: float) -> None:
    assert_values(score("isles", one, other), dice=value, lesion_f1=value)


def test_brats_missed_and_false_lesions_are_penalised() -> None:
    # 64 voxels (4 x 4 x 4) found, shifted by one: Dice 48 * 2 / 128 = 0.75, HD95 1. 60 voxels missed. One voxel false.
    reference = mask((0, 0, 0, 4, 4, 4), (5, 0, 12, 4, 5, 3))
    predicted = mask((0, 0, 1, 4, 4, 4), (8, 18, 0, 1, 1, 1))
    found = score("brats", reference, predicted)
    assert_values(
        found,
        num_tp=1,
        num_fp=1,
        num_fn=1,
        lesionwise_dice=0.75 / 3,
        lesionwise_hd95_mm=(1 + 374 + 374) / 3,
        dice=2 * 48 / (124 + 65),
    )
    assert found.values["lesionwise_nsd_1.0"] == pytest.approx(1 / 3)


def test_brats_surface_distance_within_half_a_millimetre_by_hand() -> None:
    # Planes of 8 x 8 x 1 voxels, all surface; shifted by one voxel along X 56 of 64 surface voxels meet on each side.
    reference, predicted = mask((4, 0, 0, 1, 8, 8)), mask((4, 0, 1, 1, 8, 8))
    assert score("brats", reference, predicted).values["lesionwise_nsd_0.5"] == pytest.approx(7 / 8)


def test_brats_merges_reference_lesions_that_meet_when_grown() -> None:
    # Two bars of 60 voxels six voxels apart: grown by 3 they meet, and the prediction of one finds the merged lesion.
    def bars(gap: int) -> np.ndarray:
        return mask((0, 0, 0, 3, 10, 2), (0, 0, 2 + gap, 3, 10, 2))

    one = mask((0, 0, 0, 3, 10, 2))
    assert_values(score("brats", bars(6), one), num_tp=1, num_fn=0, lesionwise_dice=2 * 60 / 180)
    assert_values(score("brats", bars(7), one), num_tp=1, num_fn=1, lesionwise_dice=1 / 2)
    assert_values(score("brats-men", bars(2), one), num_tp=1, num_fn=0)
    assert_values(score("brats-men", bars(3), one), num_tp=1, num_fn=1)


def test_brats_leaves_out_small_lesions_and_what_touches_them() -> None:
    reference, predicted = mask((0, 0, 0, 2, 5, 5)), mask((0, 0, 0, 1, 5, 5))  # 50 mm3: too small
    nothing = {"num_tp": 0.0, "num_fp": 0.0, "num_fn": 0.0, "lesionwise_dice": 1.0, "lesionwise_hd95_mm": 0.0}
    assert_values(score("brats", reference, predicted), **nothing)
    assert_values(score("brats-met", reference, predicted), num_tp=1, lesionwise_dice=2 * 25 / 75)
    assert_values(score("brats", reference, predicted, Geometry((2.0, 1.0, 1.0))), num_tp=1)  # 100 mm3


@pytest.mark.parametrize(
    ("reference", "predicted", "dice", "hd95_mm"),
    [(EMPTY, EMPTY, 1.0, 0.0), (EMPTY, ~EMPTY, 0.0, 374.0), (~EMPTY, EMPTY, 0.0, 374.0)],
)
def test_brats_of_empty_masks(reference: np.ndarray, predicted: np.ndarray, dice: float, hd95_mm: float) -> None:
    found = score("brats", reference, predicted)
    assert_values(found, lesionwise_dice=dice, lesionwise_hd95_mm=hd95_mm, dice=dice, hd95_mm=hd95_mm)


def test_lits_detects_above_half_and_measures_what_it_detects() -> None:
    # 4 of 6 voxels shared (IoU 4 / 6): detected; 1 of 9 shared: only with any overlap.
    reference = mask((0, 0, 0, 1, 1, 6), (4, 0, 0, 1, 1, 5))
    predicted = mask((0, 0, 0, 1, 1, 4), (4, 0, 4, 1, 1, 5), (8, 0, 0, 1, 1, 1))
    found = score("lits", reference, predicted)
    assert_values(found, num_tp=1, num_fp=2, num_fn=1, num_tp_any_overlap=2, num_fp_any_overlap=1, num_fn_any_overlap=0)
    # Surface distances: 4 + 4 voxels agree, two of the reference lie 1 and 2 mm off.
    assert_values(
        found,
        lesion_dice=0.8,
        lesion_voe=1 / 3,
        lesion_rvd=(6 - 4) / 4,
        lesion_assd_mm=3 / 10,
        lesion_rmsd_mm=math.sqrt(5 / 10),
        lesion_msd_mm=2,
    )
    pooled = PROFILES["lits"].pooled(
        [found, score("lits", EMPTY, EMPTY), score("lits", EMPTY, mask((0, 0, 0, 1, 1, 1)))]
    )
    assert_values(
        pooled,
        dice_per_case=(2 * 5 / 21 + 1 + 0) / 3,
        dice_global=2 * 5 / 22,
        precision=1 / 4,
        recall=1 / 2,
        precision_any_overlap=2 / 4,
        recall_any_overlap=1,
        lesion_voe=1 / 3,
    )


def test_lits_merges_the_pieces_of_a_lesion() -> None:
    whole, pieces = mask((0, 0, 0, 1, 1, 10)), mask((0, 0, 0, 1, 1, 4), (0, 0, 6, 1, 1, 4))
    assert_values(score("lits", whole, pieces), num_tp=1, num_fp=1, num_fn=0, lesion_dice=2 * 8 / 18)
    assert_values(score("lits", pieces, whole), num_tp=1, num_fp=0, num_fn=1, lesion_dice=2 * 8 / 18)


def test_picai_by_hand() -> None:
    # Lesions of 10 voxels: hit by 9 voxels (IoU 9 / 10), hit by one voxel of 10 (IoU 1 / 19, too little), missed.
    reference = mask((0, 0, 0, 1, 1, 10), (3, 0, 0, 1, 1, 10), (6, 0, 0, 1, 1, 10))
    predicted = mask((0, 0, 0, 1, 1, 9), (3, 0, 9, 1, 1, 10))
    probability = np.where(mask((0, 0, 0, 1, 1, 9)), 0.9, 0.4)
    found = score("picai", reference, predicted, probability=probability)
    assert_values(found, num_tp=1, num_fp=1, num_fn=2, case_confidence=0.9, holds_lesion=1)
    clean = score("picai", EMPTY, mask((0, 0, 0, 1, 1, 2)), probability=np.full(SHAPE, 0.5))
    # Candidates by confidence: right 0.9, wrong 0.5, wrong 0.4; one of three lesions: AP = 1 * 1 / 3.
    assert_values(PROFILES["picai"].pooled([found, clean]), average_precision=1 / 3, case_auroc=1, picai_score=2 / 3)


def test_picai_does_not_count_the_second_candidate_of_a_lesion() -> None:
    found = score("picai", mask((0, 0, 0, 1, 1, 10)), mask((0, 0, 0, 1, 1, 6), (0, 0, 7, 1, 1, 3)))
    assert_values(found, num_tp=1, num_fp=0, num_fn=0, case_confidence=1)


def test_average_precision_and_auroc_by_hand() -> None:
    # At 0.9: 1 of 1 right, recall 1/3; at 0.8: 1 of 2; at 0.7: 2 of 3, recall 2/3; one lesion is never found.
    assert average_precision([(0.9, True), (0.8, False), (0.7, True), (0.0, True)]) == pytest.approx(1 / 3 + 2 / 9)
    assert math.isnan(average_precision([(0.9, False)]))
    assert auroc([(0.9, True), (0.4, True), (0.4, False), (0.1, False)]) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert math.isnan(auroc([(0.5, True)]))


def test_ulds_axes_by_hand() -> None:
    # A cross of 9 x 1 and 1 x 5 pixels: 8 pixels from end to end, and 4 across. The slice of 2 x 2 is smaller.
    cross = mask((1, 5, 2, 1, 1, 9), (1, 3, 6, 1, 5, 1), (4, 0, 0, 1, 2, 2))
    assert axes_of(cross) == pytest.approx((8, 4))
    assert axes_of(mask((0, 0, 0, 1, 1, 1))) == axes_of(EMPTY) == (0, 0)
    assert axes_of(mask((0, 0, 0, 1, 1, 6))) == pytest.approx((5, 5))  # no line across: the nearest to it is the line
    # Of a slice only the largest component counts: 3 and not 19 pixels.
    assert axes_of(mask((0, 0, 0, 1, 1, 4), (0, 19, 19, 1, 1, 1)))[0] == pytest.approx(3)


def test_ulds_score_by_hand() -> None:
    cross, longer = mask((1, 5, 2, 1, 1, 9), (1, 3, 6, 1, 5, 1)), mask((1, 5, 2, 1, 1, 13), (1, 3, 6, 1, 5, 1))
    found = score("ulds", cross, longer)
    dice = 2 * 13 / (13 + 17)
    assert_values(found, dice=dice, long_axis_error=4 / 20, short_axis_error=0)
    pooled = PROFILES["ulds"].pooled([found, score("ulds", cross, EMPTY)])
    assert_values(pooled, score_without_consistency=0.8 * dice / 2 + 0.05 * (1 - 1.2 / 2) + 0.05 * (1 - 1 / 2))


def test_panoptic_quality_by_hand() -> None:
    # IoU 48 / 80 = 0.6 counts, IoU 2 / 6 does not: TP 1, FP 1, FN 1, RQ 1 / 2, PQ 0.3.
    reference = mask((0, 0, 0, 4, 4, 4), (6, 10, 0, 1, 1, 4))
    predicted = mask((0, 0, 1, 4, 4, 4), (6, 10, 2, 1, 1, 4))
    found = score("panoptic", reference, predicted, tolerance_mm=1.0)
    assert_values(found, num_reference=2, num_tp=1, num_fp=1, num_fn=1, rq=0.5, sq=0.6, pq=0.3)
    assert_values(found, tp_dice=0.75, tp_nsd=1, tp_hd95_mm=1)
    # In their regions the lesions have Dice 0.75 and 2 * 2 / 8; of the line 3 of 4 voxels lie within 1 mm, twice.
    assert_values(found, component_dice=(0.75 + 0.5) / 2, component_nsd=(1 + 0.75) / 2)
    pooled = PROFILES["panoptic"].pooled([found, score("panoptic", EMPTY, mask((0, 0, 0, 1, 1, 1)))])
    assert_values(pooled, rq=1 / (1 + 3 / 2), sq=0.6, pq=0.6 / 2.5)


def test_panoptic_splits_a_prediction_between_the_lesions_that_it_joins() -> None:
    # One prediction over two lesions of 3 voxels and the 4 between them: 2 of these go to either lesion.
    reference, predicted = mask((0, 0, 0, 1, 1, 3), (0, 0, 7, 1, 1, 3)), mask((0, 0, 0, 1, 1, 10))
    assert_values(score("panoptic", reference, predicted), num_tp=0, rq=0, sq=NAN, pq=0, component_dice=2 * 3 / 8)


def test_panoptic_regions_go_by_voxels_as_in_the_published_programs() -> None:
    # A line of 7 voxels from the one lesion to below the other, two slices or 10 mm away. In voxels the fourth is
    # nearer to the one (3 against 3.6) and the fifth to the other (4 against 2.8); in mm all 7 are nearer to the one.
    reference = mask((0, 0, 0, 1, 1, 1), (2, 0, 6, 1, 1, 1))
    predicted = mask((0, 0, 0, 1, 1, 7))
    found = score("panoptic", reference, predicted, Geometry((5.0, 1.0, 1.0)))
    assert_values(found, component_dice=(2 / (1 + 4) + 0) / 2)


def test_panoptic_without_lesions_and_with_missed_ones() -> None:
    assert_values(score("panoptic", EMPTY, EMPTY), rq=NAN, pq=NAN, num_fp=0, component_dice=NAN)
    assert_values(score("panoptic", EMPTY, mask((0, 0, 0, 1, 1, 2))), rq=NAN, pq=NAN, num_fp=1)
    missed = score("panoptic", mask((0, 0, 0, 1, 1, 2)), EMPTY)
    assert_values(missed, rq=0, pq=0, num_fn=1, component_dice=0, component_nsd=0, component_hd95_mm=NAN)


def test_panoptic_leaves_out_small_lesions_and_what_touches_them() -> None:
    reference = mask((0, 0, 0, 1, 1, 10), (4, 0, 0, 1, 1, 2))
    predicted = mask((0, 0, 0, 1, 1, 10), (4, 0, 1, 1, 1, 4), (8, 0, 0, 1, 1, 2), (8, 10, 0, 1, 1, 3))
    assert_values(score("panoptic", reference, predicted), num_reference=2, num_tp=1, num_fp=3, num_fn=1)
    found = score("panoptic", reference, predicted, min_lesion_ml=0.003)  # 3 voxels
    assert_values(found, num_reference=1, num_tp=1, num_fp=1, num_fn=0, component_dice=1)


@pytest.mark.parametrize(
    ("reference", "predicted", "expected"),
    [
        (
            [(0, 0, 0, 4, 4, 4), (5, 10, 10, 3, 6, 6)],
            [(0, 0, 0, 4, 4, 3), (5, 10, 11, 3, 6, 6), (8, 0, 19, 1, 1, 1)],
            {
                "rq": 0.8,
                "sq": 0.732143,
                "pq": 0.585714,
                "tp_dice": 0.845238,
                "tp_hd95_mm": 1,
                "component_dice": 0.843318,
            },
        ),
        (
            [(0, 0, 0, 4, 4, 4), (5, 10, 10, 3, 6, 6)],
            [(0, 0, 2, 4, 4, 4), (5, 10, 10, 3, 6, 4)],
            {
                "rq": 0.5,
                "sq": 2 / 3,
                "pq": 1 / 3,
                "tp_dice": 0.8,
                "tp_nsd": 0.902174,
                "tp_hd95_mm": 2,
                "component_dice": 0.65,
            },
        ),
    ],
)
def test_values_of_panoptica(
    reference: list[tuple[int, int, int, int, int, int]],
    predicted: list[tuple[int, int, int, int, int, int]],
    expected: dict[str, float],
) -> None:
    """panoptica 2.1.7: NaiveThresholdMatching at IoU 0.5, and its evaluation by Voronoi region for components."""
    found = score("panoptic", mask(*reference), mask(*predicted)).values
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_recommended_scores_answer_their_questions() -> None:
    # Lesions of 10 voxels: one found with 9, one missed; a false one of 2 in a case without a lesion.
    reference = mask((0, 0, 0, 1, 1, 10), (3, 0, 0, 1, 1, 10))
    probability = np.full(SHAPE, 0.5)
    scores = [
        score("recommended", reference, mask((0, 0, 0, 1, 1, 9)), probability=probability),
        score("recommended", EMPTY, mask((0, 0, 0, 1, 1, 2)), probability=0.8 * probability),
        score("recommended", EMPTY, EMPTY, probability=probability),
    ]
    assert_values(scores[0], dice=18 / 29, lesion_f1=2 / 3, pq=2 / 3 * 0.9, component_dice=(18 / 19 + 0) / 2)
    assert_values(scores[0], absolute_volume_error_ml=0.011, small_lesions=2, case_confidence=0.5)
    assert_values(scores[1], dice=NAN, nsd=NAN, lesion_f1=NAN, pq=NAN, num_fp=1)
    assert_values(
        PROFILES["recommended"].pooled(scores),
        case_auroc=1,
        case_specificity=1 / 2,
        lesion_average_precision=1 / 2,
        lesion_f1=1 / 2,
        lesion_sensitivity=1 / 2,
        false_positives_per_case=1 / 3,
        false_positives_per_lesion_free_case=1 / 2,
    )
    small, empty, several, few = PROFILES["recommended"].notes(scores)
    assert "rank by NSD" in small
    assert empty.startswith("2 of 3 references are empty")
    assert "component Dice and PQ" in several
    assert few.startswith("With 3 cases")


def test_values_of_the_challenges_own_code() -> None:
    """What the published scripts of the challenges print for these two masks, voxels of 1 mm."""
    reference = mask(
        (0, 0, 0, 4, 5, 6), (0, 0, 9, 3, 4, 5), (6, 12, 12, 3, 6, 5), (5, 2, 1, 2, 3, 1), (8, 19, 0, 1, 1, 3)
    )
    predicted = mask(
        (1, 1, 0, 4, 5, 5), (0, 1, 10, 3, 4, 7), (6, 12, 15, 2, 5, 5), (0, 17, 17, 2, 2, 3), (5, 1, 5, 1, 1, 1)
    )
    dice = 0.44106463878
    expected = {
        "autopet": {"dice": dice, "false_positive_component_ml": 0.012, "false_negative_component_ml": 0.009},
        "isles": {
            "dice": dice,
            "absolute_volume_difference_ml": 0.032,
            "absolute_lesion_count_difference": 1,
            "lesion_f1": 2 / 3,
        },
        "ulds": {"dice": dice, "long_axis_error": 0.0232684051, "short_axis_error": 0.3819660113},
        "brats": {"lesionwise_dice": 0.2677448338, "lesionwise_hd95_mm": 126.7207592201, "num_tp": 2, "num_fp": 1},
        "brats-men": {"lesionwise_dice": 0.3285871617, "lesionwise_hd95_mm": 95.3941228056, "num_tp": 3, "num_fp": 1},
        "brats-met": {"lesionwise_dice": 0.2628697294, "lesionwise_hd95_mm": 151.1152982445, "num_tp": 3, "num_fp": 1},
    }
    for name, values in expected.items():
        assert_values(score(name, reference, predicted), **values)
    false = mask((0, 0, 0, 1, 1, 3))
    scores = [
        score("picai", reference, predicted, probability=np.full(SHAPE, 0.5)),
        score("picai", reference, EMPTY),
        score("picai", EMPTY, false, probability=np.full(SHAPE, 0.7)),
    ]
    assert_values(PROFILES["picai"].pooled(scores), average_precision=0.18, case_auroc=0, picai_score=0.09)


@pytest.mark.parametrize("name", PROFILES)
def test_columns_are_those_of_the_profile_and_a_perfect_mask_in_2d_and_3d_has_no_error(name: str) -> None:
    for shape, is_2d in (((1, 20, 20), True), (SHAPE, False)):
        blob = mask((0, 3, 3, 1, 9, 9), shape=shape)
        found = score(name, blob, blob, Geometry((1.0, 2.0, 2.0), is_2d=is_2d))
        assert list(found.values) == list(PROFILES[name].columns)
        errors = [value for column, value in found.values.items() if column.endswith(("error", "hd95_mm", "fp", "fn"))]
        assert all(value == 0 for value in errors)
        assert found.values.get("dice", 1) == 1


def test_names_are_those_of_the_flag() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES
    with pytest.raises(ValueError, match=r"profile is 'medal'; choose one of autopet, brats"):
        find_profile("medal")


def test_arrays_are_scored_by_profiles_too() -> None:
    reference = np.array([[1, 1, 0, 2]])
    options = EvaluationOptions(profiles=("isles",))
    one, two = evaluate_arrays(reference, np.array([[1, 0, 0, 2]]), options=options).classes
    assert_values(one.profiles["isles"], dice=2 / 3, absolute_volume_difference_ml=1)
    assert_values(two.profiles["isles"], dice=1)


def test_surface_dice_of_a_profile_is_that_of_the_smallest_tolerance() -> None:
    reference, predicted = np.array([[1, 0, 0]]), np.array([[0, 0, 1]])  # 2 pixels apart
    for tolerances, value in (((2.0, 1.0), 0), ((3.0, 2.0), 1)):
        options = EvaluationOptions(tolerances_mm=tolerances, profiles=("recommended",))
        (found,) = evaluate_arrays(reference, predicted, options=options).classes
        assert found.profiles["recommended"].values["nsd"] == value


def test_rules_speak_in_the_units_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    for folder, row in ((reference, [1, 1, 0, 0]), (prediction, [0, 1, 1, 0])):
        folder.mkdir()
        Image.fromarray(np.array([row], np.uint8)).save(folder / "a.png")
    assert usd_evaluate([str(reference), str(prediction), "--labels", "1", "--profile", "brats", "brats-met"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "lesions of 50 pixels² and less do not count" in shown
    assert "HD95 374 pixels" in shown
    (met,) = json.loads((prediction / "evaluation" / "summary.json").read_text())["profiles"]["brats-met"]["classes"]
    assert met["over_cases"]["hd95_pixels"]["mean"] == pytest.approx(0.95)  # of distances 0 and 1
    report = (prediction / "evaluation" / "report.html").read_text()
    assert "mean normalised surface Dice at 0.5 pixels" in report
    assert PROFILES["brats"].rule_in(VOLUMES).count("50 mm3 and less") == 1


def test_an_unknown_profile_is_named_before_anything_is_scored(tmp_path: Path) -> None:
    options = EvaluationOptions(profiles=("medal",))
    with pytest.raises(ValueError, match="profile is 'medal'"):
        evaluate_arrays(np.ones((2, 2), int), np.ones((2, 2), int), options=options)
    with pytest.raises(ValueError, match="profile is 'medal'"):
        evaluate_folders(*folders(tmp_path), Meaning(scheme_of_values([1])), options)


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases: 3 of 4 voxels found in one; two false ones of 0.2 ml in the other."""
    reference, prediction = tmp_path / "labelsTs", tmp_path / "pred"
    geometry = Geometry((4.0, 5.0, 10.0))
    for case, of_reference, predicted in (
        ("a", [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]),
        ("b", [0] * 6, [0] * 4 + [1] * 2),
    ):
        for folder, values in ((reference, of_reference), (prediction, predicted)):
            folder.mkdir(exist_ok=True)
            write_labels(folder / f"{case}.nii.gz", np.array(values, np.uint8).reshape(1, 1, 6), geometry)
    return reference, prediction


def test_command_writes_tables_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, prediction = folders(tmp_path)
    out = tmp_path / "out"
    words = [str(reference), str(prediction), "--labels", "1", "-o", str(out), "--profile", "autopet", "picai"]
    assert usd_evaluate([*words, "--no-report"]) == 0
    with open(out / "profile_autopet.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["false_positive_component_ml"] for row in rows] == ["0", "0.4"]
    assert [row["dice"] for row in rows] == ["0.857142857", ""]
    stored = json.loads((out / "summary.json").read_text())["profiles"]
    assert set(stored) == {"autopet", "picai"}
    (lesion,) = stored["autopet"]["classes"]
    assert lesion["over_cases"]["false_positive_component_ml"]["mean"] == pytest.approx(0.2)
    assert stored["picai"]["classes"][0]["pooled"]["average_precision"] == pytest.approx(0.5)
    shown = capsys.readouterr().out
    assert "autoPET (2022 to 2024). Components have 18 neighbours (8 in 2D)." in shown
    assert "Source: evaluation_metrics.py of github.com/ClinicalDataScience/autoPETIII" in shown
    assert f"Scores by the rule of picai: {out / 'profile_picai.csv'}" in shown


def test_confidences_of_all_cases_come_from_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, prediction = folders(tmp_path)
    write = functools.partial(write_labels, geometry=Geometry((4.0, 5.0, 10.0)))
    for number, values in enumerate(([1, 0, 0, 0, 0, 0], [0] * 6)):  # one of two samples holds the lesion of a
        (prediction / "samples").mkdir(exist_ok=True)
        write(prediction / "samples" / f"a_sample{number}.nii.gz", np.array(values, np.uint8).reshape(1, 1, 6))
    words = [str(reference), str(prediction), "--labels", "1", "--no-report", "--profile", "picai"]
    assert usd_evaluate(words) == 0
    (lesion,) = json.loads((prediction / "evaluation" / "summary.json").read_text())["profiles"]["picai"]["classes"]
    assert [lesion["pooled"][name] for name in ("average_precision", "case_auroc", "picai_score")] == [None] * 3
    assert "1 of 2 cases have lesions without a confidence" in " ".join(capsys.readouterr().out.split())
    (prediction / "probabilities").mkdir()  # which both cases have
    for case, value in (("a", 0.8), ("b", 0.9)):
        np.savez(prediction / "probabilities" / f"{case}.npz", probabilities=np.full((1, 1, 1, 6), value))
    assert usd_evaluate(words) == 0
    with open(prediction / "evaluation" / "lesion_scores.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["side"] == "prediction"]
    assert {row["case"]: float(row["confidence"]) for row in rows} == pytest.approx({"a": 0.8, "b": 0.9})
    (lesion,) = json.loads((prediction / "evaluation" / "summary.json").read_text())["profiles"]["picai"]["classes"]
    assert lesion["pooled"]["average_precision"] == 1 / 2  # at 0.8: one of two candidates is right


def test_a_size_without_its_profile_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, prediction = folders(tmp_path)
    words = [str(reference), str(prediction), "--labels", "1", "--min-lesion-ml", "0.5"]
    assert usd_evaluate([*words, "--profile", "brats"]) == 1
    assert "--min-lesion-ml 0.5 goes with --profile panoptic" in " ".join(capsys.readouterr().err.split())
    assert not (prediction / "evaluation").exists()
    assert usd_evaluate([*words, "--profile", "panoptic", "--no-report"]) == 0
    with open(prediction / "evaluation" / "profile_panoptic.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))  # 0.8 ml found with an IoU of 3 / 4; 0.4 ml are too little to be false
    assert [(row["num_tp"], row["num_fp"], row["sq"]) for row in rows] == [("1", "0", "0.75"), ("0", "0", "")]


def test_other_files_are_the_same_bytes_with_and_without_profiles(tmp_path: Path) -> None:
    reference, prediction = folders(tmp_path)
    written = []
    for more in ([], ["--profile", *PROFILE_NAMES]):
        out = tmp_path / f"out{len(more)}"
        assert usd_evaluate([str(reference), str(prediction), "--labels", "1", "-o", str(out), *more]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert ("profiles" in summary) == bool(more)
        summary.pop("profiles", None)
        written.append([summary, *((out / name).read_bytes() for name in ("metrics.csv", "lesion_scores.csv"))])
    assert written[0] == written[1]
