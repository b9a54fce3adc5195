"""How reports call the metrics: a name, a unit, decimals and a sentence for each column of metrics.csv."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from unisegdiff_pipeline.core.units import VOLUMES, Units

VOLUME_DIGITS, PIXEL_DIGITS = 2, 1  # decimals of volumes of a millilitre and more, and of means of whole pixels


@dataclass(frozen=True)
class MetricName:
    """How a metric is shown.

    Attributes:
        label: name with its unit.
        digits: decimals.
        hint: what it is, in a sentence.
    """

    label: str
    digits: int = 3
    hint: str = ""


_NAMES = {
    "dice": MetricName("Dice", 3, "2 TP / (2 TP + FP + FN), in voxels"),
    "iou": MetricName("IoU", 3, "TP / (TP + FP + FN), in voxels"),
    "sensitivity": MetricName("Sensitivity", 3, "fraction of the reference that is predicted"),
    "precision": MetricName("Precision", 3, "fraction of the prediction that is in the reference"),
    "reference_ml": MetricName("Reference, ml", 2, "volume of the reference"),
    "predicted_ml": MetricName("Predicted, ml", 2, "volume of the prediction"),
    "volume_error_ml": MetricName("Volume error, ml", 2, "predicted minus reference volume"),
    "volume_error_percent": MetricName("Volume error, %", 1, "volume error over reference volume, in percent"),
    "false_positive_ml": MetricName("False positive, ml", 2, "volume predicted outside the reference"),
    "hd_mm": MetricName("HD, mm", 1, "Hausdorff distance"),
    "hd95_mm": MetricName("HD95, mm", 1, "Hausdorff distance, 95th percentile"),
    "assd_mm": MetricName("ASSD, mm", 2, "average symmetric surface distance"),
    "surface_dice_rater": MetricName("Surface Dice, raters", 3, "surface Dice at the distance between raters"),
    "num_reference_lesions": MetricName("Reference lesions", 1, "connected components of the reference"),
    "num_predicted_lesions": MetricName("Predicted lesions", 1, "connected components of the prediction"),
    "num_detected": MetricName("Detected lesions", 1, "reference lesions with a matched prediction"),
    "num_false_positive": MetricName("False-positive lesions", 1, "predicted lesions without a match"),
    "lesion_sensitivity": MetricName("Lesion sensitivity", 3, "detected over reference lesions"),
    "lesion_precision": MetricName("Lesion precision", 3, "matched over predicted lesions"),
    "lesion_f1": MetricName("Lesion F1", 3, "2 TP / (2 TP + FP + FN), in lesions"),
    "mean_lesion_dice": MetricName("Lesion Dice", 3, "mean over reference lesions, missed ones as 0"),
    "mean_detected_dice": MetricName("Dice of detected lesions", 3, "mean over detected lesions"),
    "nll": MetricName("NLL", 3, "negative log-likelihood a voxel, around the masks"),
    "brier": MetricName("Brier score", 4, "mean squared error of the probability, around the masks"),
    "ece": MetricName("ECE", 3, "expected calibration error, bins of equal width"),
    "adaptive_ece": MetricName("Adaptive ECE", 3, "expected calibration error, bins of equal mass"),
    "ged_u": MetricName("GED", 3, "generalised energy distance between samples and raters, unbiased"),
    "ged_v": MetricName("GED (V)", 3, "generalised energy distance over all pairs"),
    "energy_score_u": MetricName("Energy score", 3, "samples against one reference, unbiased"),
    "energy_score_v": MetricName("Energy score (V)", 3, "samples against one reference, over all pairs"),
    "hm_iou": MetricName("HM-IoU", 3, "IoU of samples and raters matched one to one"),
    "d_max": MetricName("D max", 3, "mean over raters of the Dice of the best sample"),
    "single_sample_dice": MetricName("Dice of one sample", 3, "mean over samples and raters"),
    "sample_diversity": MetricName("Sample diversity", 3, "mean 1 - IoU between samples"),
    "sample_agreement": MetricName("Sample agreement", 3, "mean Dice between samples"),
    "rater_diversity": MetricName("Rater diversity", 3, "mean 1 - IoU between raters"),
    "ncc": MetricName("NCC, map", 3, "correlation of the uncertainty map with the variance of the raters"),
    "ncc_samples": MetricName("NCC, samples", 3, "correlation of the samples' variance with that of the raters"),
    "case_confidence": MetricName("Confidence", 3, "how sure the prediction is of the case, without its reference"),
}


def size_digits(size: float, units: Units) -> int:
    """Decimals of sizes around this one: three significant digits, two decimals at least; of pixels one."""
    if units.size == "pixels2":
        return PIXEL_DIGITS
    return VOLUME_DIGITS - min(0, math.floor(math.log10(size))) if size > 0 else VOLUME_DIGITS


def metric_name(name: str, units: Units = VOLUMES) -> MetricName:
    """How a metric is shown in these units, by its name inside the package; unknown ones by their own name."""
    if match := re.fullmatch(r"surface_dice_(.+)mm", name):
        tolerance = units.length_text(float(match[1]))
        return MetricName(f"Surface Dice, {tolerance}", 3, f"surface within {tolerance} of the other one")
    found = _NAMES.get(name) or MetricName(name.replace("_", " ").capitalize())
    label, hint = found.label, found.hint.replace("voxel", units.element)
    if name.endswith("_mm"):
        label = label.replace(", mm", f", {units.length}")
    elif name.endswith(("_ml", "volume_error_percent")):
        word = units.size_word
        label = label.replace(", ml", f", {units.size_text}").replace("Volume", word.capitalize())
        hint = hint.replace("volume", word)
    return replace(found, label=label, hint=hint)
