"""Panoptic quality of lesions, and Dice and surface distances of every reference lesion within its own surroundings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import Box
from unisegdiff_pipeline.core.components import Components
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule, match_lesions
from unisegdiff_pipeline.evaluation.profiles.lesion_masks import DirectedDistances, box_around
from unisegdiff_pipeline.evaluation.profiles.profile import Profile, ProfileCase, ProfileScore, dice_of, ratio, total
from unisegdiff_pipeline.evaluation.summary import mean_of_defined

HALF = MatchingRule("iou", threshold=0.5, one_to_one=True)


@dataclass(frozen=True)
class Quality:
    """Recognition, segmentation and panoptic quality; NaN where undefined.

    Attributes:
        rq: F1 of lesions, TP / (TP + (FP + FN) / 2).
        sq: mean IoU of the pairs.
        pq: rq times sq; 0 where lesions are there and none is matched.
    """

    rq: float
    sq: float
    pq: float

    @classmethod
    def of(cls, ious: Sequence[float], num_false: float, num_missed: float) -> Quality:
        """From the IoU of each pair (TP) and the numbers of FP and FN."""
        rq = ratio(len(ious), len(ious) + (num_false + num_missed) / 2)
        return cls(rq, mean_of_defined(ious), rq * math.fsum(ious) / len(ious) if ious else rq)


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    reference, predicted, overlaps = case.lesions()
    large, large_predicted = (
        sizes.voxels * case.voxel_ml >= case.min_lesion_ml * (1 - 1e-9) for sizes in (reference, predicted)
    )
    pairs = match_lesions(overlaps, reference, predicted, HALF, case.geometry.spacing_mm)
    pairs = pairs.kept(large[pairs.reference - 1])
    # What touches a lesion too small to count is neither right nor wrong.
    beside_small = overlaps.predicted[~large[overlaps.reference - 1]]
    wrong = np.setdiff1d(np.flatnonzero(large_predicted) + 1, np.concatenate([pairs.predicted, beside_small]))
    num_reference = int(large.sum())
    union = reference.voxels[pairs.reference - 1] + predicted.voxels[pairs.predicted - 1] - pairs.voxels
    ious = (pairs.voxels / union).tolist()
    boxes, predicted_boxes = _boxes(reference), _boxes(predicted)
    matched = []
    for i, j in zip(pairs.reference.tolist(), pairs.predicted.tolist(), strict=True):
        box = box_around([boxes[i - 1], predicted_boxes[j - 1]], reference.shape)
        matched.append(_compared(reference.within(box) == i, predicted.within(box) == j, case))
    components = _components(reference, boxes, np.flatnonzero(large) + 1, case)
    exists = num_reference > 0
    quality = Quality.of(ious, len(wrong), num_reference - len(ious))
    return ProfileScore(
        {
            "rq": quality.rq if exists else math.nan,
            "sq": quality.sq,
            "pq": quality.pq if exists else math.nan,
            "num_reference": num_reference,
            "num_tp": len(ious),
            "num_fp": len(wrong),
            "num_fn": num_reference - len(ious),
            "tp_dice": mean_of_defined(item.dice for item in matched),
            "tp_nsd": mean_of_defined(item.nsd for item in matched),
            "tp_hd95_mm": mean_of_defined(item.hd95_mm for item in matched),
            "component_dice": mean_of_defined(item.dice for item in components),
            "component_nsd": mean_of_defined(item.nsd for item in components),
            "component_hd95_mm": mean_of_defined(item.hd95_mm for item in components),
        },
        tuple({"iou": iou} for iou in ious),
    )


def pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """Quality over the lesions of all cases, also those without a reference lesion."""
    ious = [lesion["iou"] for score in scores for lesion in score.lesions]
    quality = Quality.of(ious, total(scores, "num_fp"), total(scores, "num_fn"))
    return {"rq": quality.rq, "sq": quality.sq, "pq": quality.pq}


@dataclass(frozen=True)
class _Compared:
    dice: float
    nsd: float
    hd95_mm: float


def _boxes(components: Components) -> list[Box]:
    return [tuple((low, high) for low, high in box) for box in components.boxes().tolist()]


def _components(lesions: Components, boxes: Sequence[Box], counted: np.ndarray, case: ProfileCase) -> list[_Compared]:
    """Each counted reference lesion against all predicted voxels that lie nearer to it than to any other lesion."""
    from scipy.ndimage import distance_transform_edt

    if not len(counted):
        return []
    predicted = np.flatnonzero(case.predicted)
    # Nearest by numbers of voxels and not by mm, as both published programs count.
    nearest = distance_transform_edt(~case.reference, return_distances=False, return_indices=True)
    places = np.ravel_multi_index([index.ravel()[predicted] for index in nearest], lesions.shape)
    del nearest  # the largest array by far
    owner = lesions.numbers_at(places)
    order = np.argsort(owner, kind="stable")
    owned = np.split(predicted[order], np.searchsorted(owner[order], np.arange(2, len(lesions) + 1)))
    result = []
    for number in counted.tolist():
        indices = np.unravel_index(owned[number - 1], lesions.shape)
        places = [boxes[number - 1]]
        if len(indices[0]):
            places.append(tuple((int(index.min()), int(index.max()) + 1) for index in indices))
        box = box_around(places, lesions.shape)
        partner = np.zeros([high - low for low, high in box], bool)
        partner[tuple(index - low for index, (low, _) in zip(indices, box, strict=True))] = True
        result.append(_compared(lesions.within(box) == number, partner, case))
    return result


def _compared(lesion: np.ndarray, partner: np.ndarray, case: ProfileCase) -> _Compared:
    distances = DirectedDistances.between(lesion, partner, case.geometry.spacing_mm)
    return _Compared(dice_of(lesion, partner), distances.mean_surface_dice(case.tolerance_mm), distances.hd95_mm)


PANOPTIC = Profile(
    name="panoptic",
    title="Panoptic quality, and lesions one by one",
    source="Kirillov et al. 2019, arXiv:1801.00868; Jaus et al. 2024, arXiv:2410.18684 (components); compared with "
    "panoptica 2.1 (github.com/BrainLesion/panoptica), which takes 4 neighbours in 2D",
    rule="Components have 26 neighbours (8 in 2D). "
    "Lesions match one to one at an IoU of at least 0.5. RQ = TP / (TP + (FP + "
    "FN) / 2), SQ = mean IoU of the matched pairs, PQ = RQ SQ; undefined without a reference lesion. Every "
    "reference lesion is also compared with all predicted voxels that lie nearer to it than to any other, counted "
    "in voxels (its Voronoi region; one as near to several belongs to one of them); a lesion without any has Dice and "
    "NSD 0 and no HD95. Lesions below --min-lesion-ml do not count, nor do smaller unmatched predictions and "
    "predictions that touch such a lesion. NSD is the mean of both directed fractions of surface voxels within the "
    "smallest --tolerance-mm; HD95 is the larger of both directed percentiles, where panoptica pools the directions.",
    columns={
        "rq": "recognition quality: lesion F1 at IoU 0.5",
        "sq": "segmentation quality: mean IoU of the matched pairs",
        "pq": "panoptic quality",
        "num_reference": "reference lesions that count",
        "num_tp": "matched pairs",
        "num_fp": "predicted lesions without a partner",
        "num_fn": "reference lesions without a partner",
        "tp_dice": "mean Dice of the matched pairs",
        "tp_nsd": "mean normalised surface Dice of the matched pairs",
        "tp_hd95_mm": "mean HD95 of the matched pairs",
        "component_dice": "mean Dice of reference lesions in their Voronoi regions",
        "component_nsd": "mean normalised surface Dice there",
        "component_hd95_mm": "mean HD95 there, of lesions that hold a predicted voxel",
    },
    score=score,
    pooled=pooled,
)
