"""ISLES: Dice, absolute volume difference, lesion count difference and lesion F1; two empty masks are a success."""

from __future__ import annotations

from unisegdiff_pipeline.evaluation.profiles.profile import (
    Profile,
    ProfileCase,
    ProfileScore,
    dice_of,
    nothing_pooled,
)


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    reference, predicted, pairs = case.lesions()
    found, right = len(set(pairs.reference.tolist())), len(set(pairs.predicted.tolist()))
    missed, false = len(reference) - found, len(predicted) - right
    return ProfileScore(
        {
            "dice": dice_of(case.reference, case.predicted, both_empty=1.0),
            "absolute_volume_difference_ml": case.voxel_ml
            * abs(int(reference.voxels.sum()) - int(predicted.voxels.sum())),
            "absolute_lesion_count_difference": abs(len(reference) - len(predicted)),
            "lesion_f1": found / (found + (false + missed) / 2) if found + false + missed else 1.0,
        }
    )


ISLES = Profile(
    name="isles",
    title="ISLES 2022",
    source="utils/eval_utils.py of github.com/ezequieldlrosa/isles22; Hernandez Petzsche et al. 2022, Scientific Data "
    "9:762",
    rule="Components have 26 neighbours (8 in 2D); "
    "a reference lesion is found, and a predicted one right, where it shares a "
    "voxel with the other mask (many-to-many). F1 = TP / (TP + (FP + FN) / 2). Dice and F1 of two empty masks "
    "are 1, and 0 where one of them is empty.",
    columns={
        "dice": "Dice of all voxels",
        "absolute_volume_difference_ml": "absolute difference of the volumes",
        "absolute_lesion_count_difference": "absolute difference of the numbers of components",
        "lesion_f1": "lesion-wise F1",
    },
    score=score,
    pooled=nothing_pooled,
)
