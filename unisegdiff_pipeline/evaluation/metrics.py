"""Overlap and volume of one predicted label map against its reference.

What an empty mask means, said once for the whole package:

- both masks empty: overlap is undefined (NaN in memory, null in JSON); the case is counted as `both_empty`.
- reference empty, prediction not: overlap is undefined; the score of the case is its false-positive volume.
- reference not empty: overlap is defined, and 0 for an empty prediction.

Overlap means Dice, IoU, sensitivity and precision, so that all four are averaged over the same cases. The precision of
an empty prediction is 0 over 0; it is counted as 0 here, lest predicting nothing in hard cases raise its mean.

Volumes are nominal where the voxel size of a data set is not known (spacing_known = false); 2D images have areas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import MM3_PER_ML

Outcome = Literal["scored", "both_empty", "false_positive"]


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class (or region) in one case; every field becomes a column of the CSV.

    Attributes:
        class_name: name of the class or region.
        outcome: which of the three rules of this module applies.
        dice: 2 TP / (2 TP + FP + FN), as all overlap from 0 to 1, and NaN unless the outcome is "scored".
        iou: TP / (TP + FP + FN).
        sensitivity: TP / (TP + FN).
        precision: TP / (TP + FP); 0 for an empty prediction.
        reference_ml, predicted_ml: volumes; of 2D images areas in mm2, or in pixels of unknown size (`core.units`).
        volume_error_ml: predicted minus reference.
        volume_error_percent: 100 times the volume error over the reference volume; NaN for an empty reference.
        false_positive_ml: volume predicted outside the reference.
        tp, fp, fn, tn: voxel counts; ignored voxels are in none of them.
        volumes_nominal: True where the voxel size is not known.
    """

    class_name: str
    outcome: Outcome
    dice: float
    iou: float
    sensitivity: float
    precision: float
    reference_ml: float
    predicted_ml: float
    volume_error_ml: float
    volume_error_percent: float
    false_positive_ml: float
    tp: int
    fp: int
    fn: int
    tn: int
    volumes_nominal: bool


def score_case(
    reference: np.ndarray,
    predicted: np.ndarray,
    scheme: LabelScheme,
    spacing_mm: Sequence[float],
    spacing_known: bool = True,
    is_2d: bool = False,
) -> list[ClassScore]:
    """Score every class or region of one case.

    Args:
        reference: integer label map, any shape, axes in the order of `spacing_mm`.
        predicted: integer label map of the same shape.
        scheme: classes, regions and the ignore label; voxels ignored in the reference are left out.
        spacing_mm: voxel size, one value per axis.
        spacing_known: False marks the volumes as nominal.
        is_2d: sizes are areas in the unit of `spacing_mm`, not volumes.

    Raises:
        ValueError: where the two shapes differ.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"reference has shape {reference.shape} and prediction {predicted.shape}; they must be equal")
    valid = None if scheme.ignore_value is None else ~scheme.ignored(reference)
    voxel_ml = math.prod(spacing_mm) / (1.0 if is_2d else MM3_PER_ML)
    pairs = zip(scheme.class_masks(reference), scheme.class_masks(predicted), strict=True)
    return [
        score_masks(name, in_reference, in_prediction, valid, voxel_ml, volumes_nominal=not spacing_known)
        for (name, in_reference), (_, in_prediction) in pairs
    ]


def score_masks(
    class_name: str,
    reference: np.ndarray,
    predicted: np.ndarray,
    valid: np.ndarray | None,
    voxel_ml: float,
    volumes_nominal: bool = False,
) -> ClassScore:
    """Score one class from boolean masks of equal shape; `valid` (None = everywhere) says which voxels count."""
    if valid is not None:
        reference, predicted = reference[valid], predicted[valid]
    tp = int(np.count_nonzero(reference & predicted))
    num_reference, num_predicted = int(np.count_nonzero(reference)), int(np.count_nonzero(predicted))
    fp, fn = num_predicted - tp, num_reference - tp
    outcome = _outcome(num_reference, num_predicted)
    scored = outcome == "scored"
    return ClassScore(
        class_name=class_name,
        outcome=outcome,
        dice=2 * tp / (num_reference + num_predicted) if scored else math.nan,
        iou=tp / (tp + fp + fn) if scored else math.nan,
        sensitivity=tp / num_reference if scored else math.nan,
        precision=tp / max(num_predicted, 1) if scored else math.nan,
        reference_ml=num_reference * voxel_ml,
        predicted_ml=num_predicted * voxel_ml,
        volume_error_ml=(num_predicted - num_reference) * voxel_ml,
        volume_error_percent=100 * (num_predicted - num_reference) / num_reference if scored else math.nan,
        false_positive_ml=fp * voxel_ml,
        tp=tp,
        fp=fp,
        fn=fn,
        tn=reference.size - tp - fp - fn,
        volumes_nominal=volumes_nominal,
    )


def _outcome(num_reference: int, num_predicted: int) -> Outcome:
    if num_reference > 0:
        return "scored"
    return "false_positive" if num_predicted > 0 else "both_empty"
