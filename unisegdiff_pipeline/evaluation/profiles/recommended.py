"""What Metrics Reloaded recommends for lesions: a score for each question, and how to read them on these data."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.evaluation.profiles import panoptic, picai
from unisegdiff_pipeline.evaluation.profiles.lesion_masks import DirectedDistances
from unisegdiff_pipeline.evaluation.profiles.profile import Profile, ProfileCase, ProfileScore, dice_of, ratio, total

# Below about five voxels across, one voxel at the rim moves Dice by more than raters differ.
SMALL_VOXELS, SMALL_PIXELS = 65, 20
FEW_CASES = 20


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    detection, quality = picai.score(case), panoptic.score(dataclasses.replace(case, min_lesion_ml=0.0))
    has_lesion = bool(case.reference.any())
    found, missed, false = (detection.values[f"num_{name}"] for name in ("tp", "fn", "fp"))
    distances = DirectedDistances.between(case.reference, case.predicted, case.geometry.spacing_mm)
    sizes = find_components(case.reference).voxels.tolist()
    small = SMALL_PIXELS if case.reference.shape[0] == 1 else SMALL_VOXELS
    return ProfileScore(
        {
            "dice": dice_of(case.reference, case.predicted) if has_lesion else math.nan,
            "nsd": distances.mean_surface_dice(case.tolerance_mm) if has_lesion else math.nan,
            "lesion_f1": found / (found + (false + missed) / 2) if has_lesion else math.nan,
            "pq": quality.values["pq"],
            "component_dice": quality.values["component_dice"],
            "component_nsd": quality.values["component_nsd"],
            "absolute_volume_error_ml": case.voxel_ml * abs(int(case.reference.sum()) - int(case.predicted.sum())),
            "num_tp": found,
            "num_fp": false,
            "num_fn": missed,
            "case_confidence": detection.values["case_confidence"],
            "holds_lesion": detection.values["holds_lesion"],
            "small_lesions": sum(size < small for size in sizes),
        },
        detection.lesions,
    )


def pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """Scores over all cases together."""
    found, missed, false = (total(scores, f"num_{name}") for name in ("tp", "fn", "fp"))
    clean = [score.values["num_fp"] for score in scores if not score.values["holds_lesion"]]
    curve = picai.pooled(scores)
    return {
        "case_auroc": curve["case_auroc"],
        "case_specificity": ratio(sum(count == 0 for count in clean), len(clean)),
        "lesion_average_precision": curve["average_precision"],
        "lesion_f1": ratio(found, found + (false + missed) / 2),
        "lesion_sensitivity": ratio(found, found + missed),
        "false_positives_per_case": ratio(false, len(scores)),
        "false_positives_per_lesion_free_case": ratio(math.fsum(clean), len(clean)),
    }


def notes(scores: Sequence[ProfileScore]) -> tuple[str, ...]:
    """What these data say about how to read the scores."""
    lesions = [score.values["num_tp"] + score.values["num_fn"] for score in scores]
    num_lesions, empty = sum(lesions), sum(count == 0 for count in lesions)
    found = list(picai.notes(scores))
    if num_lesions and total(scores, "small_lesions") > num_lesions / 2:
        found.append(
            "Most lesions are less than about five voxels across: one voxel at the rim moves Dice a lot, so rank by "
            "NSD and lesion F1."
        )
    if empty:
        found.append(
            f"{empty} of {len(scores)} references are empty, where Dice and NSD are undefined: read case AUROC, case "
            f"specificity and false positives beside them."
        )
    if num_lesions and statistics.median(count for count in lesions if count) > 1:
        found.append("Most cases hold several lesions: Dice follows the largest, so read component Dice and PQ too.")
    elif num_lesions:
        found.append("Most cases hold a single lesion: PQ and component Dice say little beyond Dice and lesion F1.")
    if all(lesion["confidence"] in (0.0, 1.0) for score in scores for lesion in score.lesions):
        found.append(
            "No lesion has a confidence between 0 and 1 (no samples or probabilities?): AUROC and average precision "
            "are those of the bare mask."
        )
    if len(scores) < FEW_CASES:
        found.append(f"With {counted(len(scores), 'case')} intervals are wide: do not rank methods by the means alone.")
    return tuple(found)


RECOMMENDED = Profile(
    name="recommended",
    title="Recommended for lesions, after Metrics Reloaded",
    source="Maier-Hein et al. 2024, Nature Methods 21:195; Reinke et al. 2024, Nature Methods 21:182; "
    "documentation/explanation/which-metric.md",
    rule="Does the case hold a lesion: AUROC and specificity of cases. Are lesions found: F1, average precision "
    "and false positives at an IoU of at least 0.1, one to one, as for picai. How well does the mask agree: "
    "Dice and NSD, undefined for an empty reference. How well is each lesion outlined: PQ, and Dice and NSD "
    "of components, as for panoptic. How much: absolute volume error. NSD is taken at the smallest "
    "--tolerance-mm, to be set to the distance between raters.",
    columns={
        "dice": "how well does the mask agree: overlap",
        "nsd": "how well does the mask agree: outline within the tolerance",
        "lesion_f1": "are lesions found: F1 at IoU 0.1",
        "pq": "how well is each lesion outlined: panoptic quality",
        "component_dice": "how well is each lesion outlined: overlap, every lesion alike",
        "component_nsd": "how well is each lesion outlined: outline, every lesion alike",
        "absolute_volume_error_ml": "how much is there",
        "num_tp": "lesions found at IoU 0.1",
        "num_fp": "predicted lesions that hit none",
        "num_fn": "lesions missed",
        "case_confidence": "does the case hold a lesion: largest confidence of a predicted lesion",
        "holds_lesion": "1 where the reference holds a lesion",
        "small_lesions": "reference lesions of less than 65 voxels, in 2D 20 pixels",
    },
    score=score,
    pooled=pooled,
    notes=notes,
)
