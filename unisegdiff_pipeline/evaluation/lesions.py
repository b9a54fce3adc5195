"""Lesion-wise scores: which reference lesions are found, which predicted lesions are false, and how well they agree.

A lesion is a connected component of a mask. Reference and predicted lesions are matched by an explicit rule, because
the same masks give other counts under another rule (Maier-Hein et al. 2024, "Metrics reloaded", Nature Methods 21).

What is counted, for R reference and P predicted lesions:

- detected: reference lesions with at least one matched predicted lesion, TP; missed: the others, FN = R - TP.
- false positive: predicted lesions without any matched reference lesion, FP.
- sensitivity = TP / R and precision = (P - FP) / P, the lesion-wise true-positive rate and one minus the lesion-wise
  false-positive rate of Carass et al. 2017 (NeuroImage 148). With many-to-many matching P - FP may differ from TP.
- F1 = 2 TP / (2 TP + FP + FN), as ISLES 2022 counts it (Hernandez Petzsche et al. 2022, Scientific Data 9:762).
- mean lesion Dice: over all reference lesions, a missed one counting as 0. The Dice of a lesion is taken with the union
  of the lesions matched to it. False positives are not in this mean (BraTS 2023 counts them as further zeros).

Empty masks: without a reference lesion every ratio is undefined (NaN) and only the false positives count; without a
predicted lesion sensitivity, F1 and mean lesion Dice are 0, while the precision and the Dice of detected lesions are
undefined, being fractions of nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, box_slices, nonzero_box, whole_box
from unisegdiff_pipeline.core.components import Components, find_components
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import MM3_PER_ML, VOLUMES, Units
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule, Pairs, find_overlaps, match_lesions

Side = Literal["reference", "prediction"]


@dataclass(frozen=True)
class ScoredLesion:
    """One lesion of one class in one case; a row of lesion_scores.csv.

    Attributes:
        side: the mask it belongs to.
        lesion_id: number within case, class and side, from 1, largest first; of equal ones the first in Z, Y, X.
        voxels: its size.
        volume_ml: its volume; a 2D image counts as a slice of 1 mm.
        area_mm2: its area in a 2D image (Z = 1), in pixels where `core.units` says so, else None.
        longest_diameter_mm: largest distance between two of its voxel centres, in the plane for a 2D image; 0 for a
            single voxel.
        centroid_mm: mean of its voxel centres (x, y, z) in the physical coordinates of the file (LPS).
        matched_ids: lesion_id of the matched lesions of the other side, ascending; empty for a missed reference
            lesion and for a false positive.
        dice, iou: with the union of the matched lesions; 0 without a match, and possibly with one that only comes
            near ("dilated").
        confidence: of a predicted lesion, 0 to 1; see `score_lesions`. NaN where unknown and for reference lesions.
    """

    side: Side
    lesion_id: int
    voxels: int
    volume_ml: float
    area_mm2: float | None
    longest_diameter_mm: float
    centroid_mm: tuple[float, float, float]
    matched_ids: tuple[int, ...]
    dice: float
    iou: float
    confidence: float

    def size(self, units: Units) -> float:
        """Its volume, or its area where sizes are areas."""
        return self.volume_ml if units.size == "ml" or self.area_mm2 is None else self.area_mm2


@dataclass(frozen=True)
class LesionScore:
    """Lesion counts and ratios of one class; the head of this module defines them and the empty cases.

    Attributes:
        num_reference_lesions, num_predicted_lesions: components of the two masks.
        num_detected: reference lesions with a match.
        num_false_positive: predicted lesions without a match.
        lesion_sensitivity, lesion_precision, lesion_f1: 0 to 1, NaN where undefined.
        mean_lesion_dice: over all reference lesions, missed ones as 0; NaN without a reference lesion.
        mean_detected_dice: over the detected reference lesions; NaN without one.
    """

    num_reference_lesions: int
    num_predicted_lesions: int
    num_detected: int
    num_false_positive: int
    lesion_sensitivity: float
    lesion_precision: float
    lesion_f1: float
    mean_lesion_dice: float
    mean_detected_dice: float


@dataclass(frozen=True)
class StratumScore:
    """Lesions of one range of volumes, over all cases.

    Attributes:
        name: the range in words, e.g. "0.1 to 1 ml".
        low_ml, high_ml: low_ml <= volume < high_ml; 0 and infinity at the ends.
        num_reference, num_detected: reference lesions of this volume, and those with a match.
        num_false_positive: predicted lesions of this volume without a match.
        sensitivity: num_detected / num_reference; NaN without a reference lesion.
        mean_dice: over the reference lesions, missed ones as 0; NaN without a reference lesion.
    """

    name: str
    low_ml: float
    high_ml: float
    num_reference: int
    num_detected: int
    num_false_positive: int
    sensitivity: float
    mean_dice: float


def score_lesions(
    reference: np.ndarray,
    predicted: np.ndarray,
    geometry: Geometry,
    rule: MatchingRule,
    samples: Sequence[np.ndarray] | None = None,
    probability: np.ndarray | None = None,
) -> tuple[LesionScore, tuple[ScoredLesion, ...]]:
    """Find, match and measure the lesions of one class in one case.

    The confidence of a predicted lesion is the fraction of `samples` that hold at least one of its voxels; without
    samples the mean of `probability` over its voxels; without either it is unknown (NaN).

    Args:
        reference, predicted: boolean masks (Z, Y, X), ignored voxels False in both.
        geometry: spacing, origin and direction of the masks.
        rule: when two lesions match.
        samples: masks of the samples behind the prediction, each (Z, Y, X); looked at one at a time.
        probability: of the class, (Z, Y, X).

    Returns:
        The score, and all lesions: those of the reference first, each side by lesion_id.

    Raises:
        ValueError: where shapes differ.
    """
    _check_shapes(reference, predicted, samples, probability)
    is_planar, box = reference.shape[0] == 1, nonzero_box(reference, predicted) or whole_box(reference.shape)
    reference, predicted = reference[box_slices(box)], predicted[box_slices(box)]
    in_reference = find_components(reference, rule.connectivity)
    in_prediction = find_components(predicted, rule.connectivity)
    overlaps = find_overlaps(reference & predicted, in_reference, in_prediction)
    matches = match_lesions(overlaps, in_reference, in_prediction, rule, geometry.spacing_mm)
    unknown = np.full(len(in_reference), math.nan)
    where = box_slices(box)
    confidence = component_confidence(
        in_prediction,
        predicted,
        [sample[where] for sample in samples or ()],
        None if probability is None else probability[where],
    )
    lesions = (
        *_describe("reference", in_reference, in_prediction, matches, unknown, box, geometry, is_planar),
        *_describe("prediction", in_prediction, in_reference, matches.swapped(), confidence, box, geometry, is_planar),
    )
    return count_lesions(lesions), lesions


def count_lesions(lesions: Iterable[ScoredLesion]) -> LesionScore:
    """The score of any set of lesions, of one case or pooled over many, by the definitions of this module."""
    num_reference = num_predicted = num_false_positive = 0
    detected_dice = []
    for lesion in lesions:
        if lesion.side == "reference":
            num_reference += 1
            if lesion.matched_ids:
                detected_dice.append(lesion.dice)
        else:
            num_predicted += 1
            num_false_positive += not lesion.matched_ids
    num_detected = len(detected_dice)
    num_errors = num_false_positive + num_reference - num_detected
    exists = num_reference > 0
    return LesionScore(
        num_reference_lesions=num_reference,
        num_predicted_lesions=num_predicted,
        num_detected=num_detected,
        num_false_positive=num_false_positive,
        lesion_sensitivity=_ratio(num_detected, num_reference),
        lesion_precision=_ratio(num_predicted - num_false_positive, num_predicted) if exists else math.nan,
        lesion_f1=2 * num_detected / (2 * num_detected + num_errors) if exists else math.nan,
        mean_lesion_dice=_ratio(math.fsum(detected_dice), num_reference),
        mean_detected_dice=_ratio(math.fsum(detected_dice), num_detected),
    )


def strata_edges_ml(volumes_ml: Iterable[float], num_strata: int = 3) -> tuple[float, ...]:
    """Inner edges that split lesion volumes into strata of about equal numbers, rounded to two significant digits.

    Returns fewer edges where volumes are too few or too alike to give every stratum a lesion, and none for no volumes.

    Raises:
        ValueError: for a number of strata below 1.
    """
    if num_strata < 1:
        raise ValueError(f"num_strata is {num_strata}; give 1 or more")
    volumes = np.sort(np.fromiter(volumes_ml, np.float64))
    if not len(volumes):
        return ()
    edges: list[float] = []
    below = 0
    for quantile in np.quantile(volumes, np.arange(1, num_strata) / num_strata).tolist():
        edge = float(f"{quantile:.2g}")
        position = int(np.searchsorted(volumes, edge))
        if below < position < len(volumes):  # no stratum is empty
            edges.append(edge)
            below = position
    return tuple(edges)


def stratify(
    lesions: Iterable[ScoredLesion], edges_ml: Sequence[float], units: Units = VOLUMES
) -> tuple[StratumScore, ...]:
    """Score lesions (of all cases) by their size; `edges_ml` are the ascending inner edges, giving one more stratum.

    Sizes are volumes in ml, of 2D images areas; `units` names them.

    Raises:
        ValueError: where the edges do not ascend or one is not positive.
    """
    bounds = [0.0, *edges_ml, math.inf]
    if not all(low < high for low, high in itertools.pairwise(bounds)):  # also for an edge that is not a number
        raise ValueError(f"edges_ml is {tuple(edges_ml)}; give positive volumes in ascending order")
    lesions = tuple(lesions)
    return tuple(_stratum(lesions, low, high, units) for low, high in itertools.pairwise(bounds))


def _describe(
    side: Side,
    own: Components,
    other: Components,
    matches: Pairs,
    confidence: np.ndarray,
    box: Box,
    geometry: Geometry,
    is_planar: bool,
) -> list[ScoredLesion]:
    """Lesions of one side; `matches.reference` numbers that side, `matches.predicted` the other one."""
    shared = np.bincount(matches.reference - 1, weights=matches.voxels, minlength=len(own))
    others = np.bincount(matches.reference - 1, weights=other.voxels[matches.predicted - 1], minlength=len(own))
    dice = 2 * shared / (own.voxels + others)
    iou = shared / (own.voxels + others - shared)
    starts = np.searchsorted(matches.reference, np.arange(2, len(own) + 1))
    partners = np.split(matches.predicted, starts)
    centroids = _physical_points(own.centroids() + [low for low, _ in box], geometry)
    diameters = own.longest_diameters_mm(geometry.spacing_mm)
    area_mm2 = geometry.spacing_mm[1] * geometry.spacing_mm[2]
    return [
        ScoredLesion(
            side=side,
            lesion_id=i + 1,
            voxels=voxels,
            volume_ml=voxels * geometry.voxel_volume_mm3 / MM3_PER_ML,
            area_mm2=voxels * area_mm2 if is_planar else None,
            longest_diameter_mm=float(diameters[i]),
            centroid_mm=centroids[i],
            matched_ids=tuple(partners[i].tolist()),
            dice=float(dice[i]),
            iou=float(iou[i]),
            confidence=float(confidence[i]),
        )
        for i, voxels in enumerate(own.voxels.tolist())
    ]


def _physical_points(indices: np.ndarray, geometry: Geometry) -> list[tuple[float, float, float]]:
    """Physical (x, y, z) in mm of voxel indices (n, 3) along Z, Y, X."""
    offsets = indices[:, ::-1] * np.asarray(geometry.spacing_mm)[::-1]
    points = offsets @ np.asarray(geometry.direction).reshape(3, 3).T + np.asarray(geometry.origin_mm)
    return [(x, y, z) for x, y, z in points.tolist()]


def component_confidence(
    predicted: Components, mask: np.ndarray, samples: Sequence[np.ndarray], probability: np.ndarray | None
) -> np.ndarray:
    """Confidence of each predicted lesion, (n,); see `score_lesions`. All arrays are (Z, Y, X) of one shape.

    Args:
        predicted: components of `mask`.
        mask: the predicted mask.
        samples, probability: what the confidence is taken from; without either it is NaN.
    """
    if len(predicted) and samples:
        support = np.zeros(len(predicted))
        for sample in samples:
            support += predicted.sums(_per_run(predicted, sample[mask])) > 0
        return support / len(samples)
    if len(predicted) and probability is not None:
        return predicted.sums(_per_run(predicted, probability[mask])) / predicted.voxels
    return np.full(len(predicted), math.nan)


def _per_run(components: Components, values: np.ndarray) -> np.ndarray:
    """Sums over each run of the values of all voxels of the mask, in the order of the array."""
    length = components.runs.length
    return np.add.reduceat(values, np.cumsum(length) - length, dtype=np.float64)


def _stratum(lesions: Sequence[ScoredLesion], low_ml: float, high_ml: float, units: Units) -> StratumScore:
    score = count_lesions(lesion for lesion in lesions if low_ml <= lesion.size(units) < high_ml)
    return StratumScore(
        name=_range_name(low_ml, high_ml, units.size_text),
        low_ml=low_ml,
        high_ml=high_ml,
        num_reference=score.num_reference_lesions,
        num_detected=score.num_detected,
        num_false_positive=score.num_false_positive,
        sensitivity=score.lesion_sensitivity,
        mean_dice=score.mean_lesion_dice,
    )


def _range_name(low_ml: float, high_ml: float, unit: str) -> str:
    if low_ml == 0 and high_ml == math.inf:
        return "all"
    if low_ml == 0:
        return f"below {high_ml:g} {unit}"
    return f"{low_ml:g} {unit} and more" if high_ml == math.inf else f"{low_ml:g} to {high_ml:g} {unit}"


def _check_shapes(
    reference: np.ndarray,
    predicted: np.ndarray,
    samples: Sequence[np.ndarray] | None,
    probability: np.ndarray | None,
) -> None:
    others = {"prediction": predicted} | {f"sample {i}": sample for i, sample in enumerate(samples or (), start=1)}
    if probability is not None:
        others["probability"] = probability
    for name, array in others.items():
        if reference.ndim != 3 or array.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {array.shape} and reference {reference.shape}; both must be the same (Z, Y, X)"
            )


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
