"""LiTS: Dice per case and over all voxels, detection by overlap, and the shape of the lesions that are detected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices
from unisegdiff_pipeline.evaluation.profiles.lesion_masks import (
    DirectedDistances,
    box_around,
    boxes_of,
    numbered,
    sizes_of,
)
from unisegdiff_pipeline.evaluation.profiles.profile import (
    Profile,
    ProfileCase,
    ProfileScore,
    dice_of,
    mean_of,
    ratio,
    total,
)
from unisegdiff_pipeline.evaluation.summary import mean_of_defined

MIN_OVERLAPS = {"": 0.5, "_any_overlap": 0.0}  # suffix of the columns => IoU that a detected lesion exceeds
LESION_METRICS = ("dice", "voe", "rvd", "assd_mm", "rmsd_mm", "msd_mm")


@dataclass(frozen=True)
class _Group:
    """Reference lesions and predicted lesions that belong together, by number, and their IoU."""

    reference: tuple[int, ...]
    predicted: tuple[int, ...]
    iou: float


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    reference, predicted = numbered(case.reference, 6), numbered(case.predicted, 6)
    num_reference, num_predicted = int(reference.max(initial=0)), int(predicted.max(initial=0))
    groups = _corresponding(reference, predicted)
    values = {"dice": dice_of(case.reference, case.predicted, both_empty=1.0)}
    for suffix, least in MIN_OVERLAPS.items():
        num_detected = sum(group.iou > least for group in groups)
        values[f"num_tp{suffix}"] = num_detected
        values[f"num_fp{suffix}"] = num_predicted - num_detected
        values[f"num_fn{suffix}"] = num_reference - num_detected
    detected = [group for group in groups if group.iou > MIN_OVERLAPS[""]]
    boxes = (boxes_of(reference), boxes_of(predicted)) if detected else ([], [])
    lesions = tuple(_shape_scores(group, reference, predicted, boxes, case) for group in detected)
    values |= {f"lesion_{name}": mean_of_defined(lesion[name] for lesion in lesions) for name in LESION_METRICS}
    values["intersection_voxels"] = int(np.count_nonzero(case.reference & case.predicted))
    values["sum_voxels"] = int(np.count_nonzero(case.reference)) + int(np.count_nonzero(case.predicted))
    return ProfileScore(values, lesions)


def pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """Scores over all cases."""
    found = {
        "dice_per_case": mean_of(scores, "dice"),
        "dice_global": ratio(2 * total(scores, "intersection_voxels"), total(scores, "sum_voxels")),
    }
    for suffix in MIN_OVERLAPS:
        tp, fp, fn = (total(scores, f"num_{name}{suffix}") for name in ("tp", "fp", "fn"))
        found |= {
            f"precision{suffix}": ratio(tp, tp + fp) if tp else 0.0,
            f"recall{suffix}": ratio(tp, tp + fn) if tp else 0.0,
        }
    lesions = [lesion for score in scores for lesion in score.lesions]
    return found | {f"lesion_{name}": mean_of_defined(lesion[name] for lesion in lesions) for name in LESION_METRICS}


def _corresponding(reference: np.ndarray, predicted: np.ndarray) -> list[_Group]:
    """Merge what one lesion of the other mask connects, so that pieces of a lesion are compared with the whole.

    Each reference lesion goes to the predicted lesion that shares most voxels with it, and those of one predicted
    lesion are merged; each predicted lesion goes to the merged reference lesion that shares most with it, and those of
    one merged reference lesion are merged in turn.
    """
    both = (reference > 0) & (predicted > 0)
    shared = np.zeros((int(reference.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1), np.int64)
    np.add.at(shared, (reference[both], predicted[both]), 1)
    touched = np.flatnonzero(shared.sum(axis=1))
    owner = shared.argmax(axis=1)
    merged = {int(p): [int(r) for r in touched if owner[r] == p] for p in sorted(set(owner[touched].tolist()))}
    members: dict[int, list[int]] = {key: [] for key in merged}
    for number in np.flatnonzero(shared.sum(axis=0)).tolist():
        members[max(merged, key=lambda key: int(shared[merged[key], number].sum()))].append(number)
    sizes, predicted_sizes = sizes_of(reference), sizes_of(predicted)
    groups = []
    for key, lesions in merged.items():
        pieces = members[key]
        common = int(shared[np.ix_(lesions, pieces)].sum())
        union = int(sizes[np.array(lesions) - 1].sum() + predicted_sizes[np.array(pieces, int) - 1].sum()) - common
        groups.append(_Group(tuple(lesions), tuple(pieces), common / union))
    return groups


def _shape_scores(
    group: _Group,
    reference: np.ndarray,
    predicted: np.ndarray,
    boxes: tuple[Sequence[Box], Sequence[Box]],
    case: ProfileCase,
) -> dict[str, float]:
    """Of one pair; `boxes` are those of the numbers of both masks."""
    places = [*(boxes[0][i - 1] for i in group.reference), *(boxes[1][i - 1] for i in group.predicted)]
    where = box_slices(box_around(places, reference.shape))
    lesion, found = np.isin(reference[where], group.reference), np.isin(predicted[where], group.predicted)
    distances = DirectedDistances.between(lesion, found, case.geometry.spacing_mm)
    size, predicted_size = int(np.count_nonzero(lesion)), int(np.count_nonzero(found))
    return {
        "dice": dice_of(lesion, found),
        "voe": 1 - group.iou,
        "rvd": (size - predicted_size) / predicted_size,
        "assd_mm": distances.assd_mm,
        "rmsd_mm": distances.rmsd_mm,
        "msd_mm": distances.hd_mm,
    }


LITS = Profile(
    name="lits",
    title="LiTS (2017)",
    source="github.com/PatrickChrist/lits-challenge-scoring; Bilic et al. 2023, Medical Image Analysis 84:102680",
    rule="Components have 6 neighbours (4 in 2D). "
    "Reference lesions that share most voxels with the same predicted lesion "
    "are merged, then predicted lesions that share most with the same merged reference lesion; such a pair is "
    "detected where its IoU exceeds 0.5 (and, for the columns any_overlap, 0). TP are detected pairs, FP and "
    "FN the other components of each mask. The shape is that of detected pairs: VOE = 1 - IoU, RVD = "
    "(reference - prediction) / prediction, undefined where nothing is detected (the challenge sets 9001). "
    "Dice of two empty masks is 1. The liver is scored as the region of liver and tumour; tumour burden is "
    "left out.",
    columns={
        "dice": "Dice of all voxels of the case",
        "num_tp": "detected pairs at IoU above 0.5",
        "num_fp": "predicted components less detected pairs",
        "num_fn": "reference components less detected pairs",
        "num_tp_any_overlap": "pairs with any overlap",
        "num_fp_any_overlap": "predicted components less these",
        "num_fn_any_overlap": "reference components less these",
        "lesion_dice": "mean Dice of detected lesions",
        "lesion_voe": "volumetric overlap error of detected lesions",
        "lesion_rvd": "relative volume difference of detected lesions",
        "lesion_assd_mm": "average symmetric surface distance of detected lesions",
        "lesion_rmsd_mm": "root mean square surface distance of detected lesions",
        "lesion_msd_mm": "largest surface distance of detected lesions",
        "intersection_voxels": "voxels of both masks, for the Dice over all cases",
        "sum_voxels": "voxels of the one and of the other mask",
    },
    score=score,
    pooled=pooled,
)
