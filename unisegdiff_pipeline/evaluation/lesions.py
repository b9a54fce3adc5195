"""Lesion-wise scores: which reference lesions are found, which predicted lesions are false, and how well they agree.

A lesion is a connected component of a mask. Reference and predicted lesions are matched by an explicit rule, because
the same masks give other counts under another rule (Maier-Hein et al. 2024, "Metrics reloaded", Nature Methods 21).

What is counted, for R reference and P predicted lesions:

- detected: reference lesions with at least one matched predicted lesion, TP; missed: the others, FN = R - TP.
- false positive: predicted lesions without any matched reference lesion, FP.
- sensitivity = TP / R and precision = (P - FP) / P, the lesion-wise true-positive rate and one minus the lesion-wise
  false-positive rate of Carass et al. 2017 (NeuroImage 148). With many-to-one matching P - FP may differ from TP.
- F1 = 2 TP / (2 TP + FP + FN), as ISLES 2022 counts it (Hernandez Petzsche et al. 2022, Scientific Data 9:762).
- mean lesion Dice: over all reference lesions, a missed one counting as 0. The Dice of a lesion is taken with the union
  of the lesions matched to it. False positives are not in this mean (BraTS 2023 counts them as further zeros).

Empty masks: without a reference lesion every ratio is undefined (NaN) and only the false positives count; without a
predicted lesion sensitivity, F1 and mean lesion Dice are 0, while the precision and the Dice of detected lesions are
undefined, being shares of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.io.geometry import Geometry

Side = Literal["reference", "prediction"]
Criterion = Literal["overlap", "iou", "dilated"]


@dataclass(frozen=True)
class MatchingRule:
    """When a predicted lesion counts as matched to a reference lesion.

    Attributes:
        criterion: "overlap": they share at least one voxel. "iou": they share at least one voxel and their
            intersection over union, pair by pair, is at least `threshold`. "dilated": a voxel centre of one lies
            within `dilation_mm` of a voxel centre of the other, as if one of them had been dilated by a ball.
            Dilating decides on matching only; lesions are not joined by it and overlaps are not changed by it.
        threshold: smallest IoU, 0 to 1; used by "iou" alone.
        dilation_mm: largest distance in mm; used by "dilated" alone.
        one_to_one: False: every pair that meets the criterion is matched, so that several predicted lesions may
            share a reference lesion and the other way round. True: each lesion has at most one partner, chosen so
            that as many pairs as possible are matched and, among those choices, the sum of their IoU is largest.
        connectivity: voxels that share a face (6), also an edge (18), or also a corner (26) are one lesion; in a 2D
            image 6 means 4 neighbours, and 18 and 26 mean 8.

    Raises:
        ValueError: for a value outside what is allowed.
    """

    criterion: Criterion = "overlap"
    threshold: float = 0.0
    dilation_mm: float = 3.0
    one_to_one: bool = False
    connectivity: Literal[6, 18, 26] = 26

    def describe(self) -> str:
        """The rule in words, for settings and reports."""
        raise NotImplementedError


@dataclass(frozen=True)
class Lesion:
    """One lesion of one class in one case; a row of lesions.csv.

    Attributes:
        side: the mask it belongs to.
        lesion_id: number within case, class and side, from 1, largest first; of equal ones the first in Z, Y, X.
        voxels: its size.
        volume_ml: its volume; a 2D image counts as a slice of 1 mm.
        area_mm2: its area in a 2D image (Z = 1), else None.
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
) -> tuple[LesionScore, tuple[Lesion, ...]]:
    """Find, match and measure the lesions of one class in one case.

    The confidence of a predicted lesion is the share of `samples` that hold at least one of its voxels; without
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
    raise NotImplementedError


def count_lesions(lesions: Iterable[Lesion]) -> LesionScore:
    """The score of any set of lesions, of one case or pooled over many, by the definitions of this module."""
    raise NotImplementedError


def strata_edges_ml(volumes_ml: Iterable[float], num_strata: int = 3) -> tuple[float, ...]:
    """Inner edges that split lesion volumes into strata of about equal numbers, rounded to two significant digits.

    Returns fewer edges where volumes are too few or too alike to be told apart, and none for no volumes.
    """
    raise NotImplementedError


def stratify(lesions: Iterable[Lesion], edges_ml: Sequence[float]) -> tuple[StratumScore, ...]:
    """Score lesions (of all cases) by their volume; `edges_ml` are the ascending inner edges, giving one more stratum.

    Raises:
        ValueError: where the edges do not ascend or one is not positive.
    """
    raise NotImplementedError
