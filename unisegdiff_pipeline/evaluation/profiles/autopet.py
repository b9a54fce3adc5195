"""autoPET: Dice, and the volumes of components that the other mask does not touch at all.

`false_positive_ml` of metrics.csv is another number: every voxel outside of the reference, also at the rim of a lesion
that is found.
"""

from __future__ import annotations

import math

import numpy as np

from unisegdiff_pipeline.core.components import Connectivity
from unisegdiff_pipeline.evaluation.profiles.lesion_masks import numbered, sizes_of
from unisegdiff_pipeline.evaluation.profiles.profile import (
    Profile,
    ProfileCase,
    ProfileScore,
    dice_of,
    nothing_pooled,
)

CONNECTIVITY: Connectivity = 18


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case; the head of the profile says which are undefined where the reference is empty."""
    has_lesion = bool(case.reference.any())
    missed = _untouched_voxels(case.reference, case.predicted)
    return ProfileScore(
        {
            "dice": dice_of(case.reference, case.predicted) if has_lesion else math.nan,
            "false_positive_component_ml": case.voxel_ml * _untouched_voxels(case.predicted, case.reference),
            "false_negative_component_ml": case.voxel_ml * missed if has_lesion else math.nan,
        }
    )


def _untouched_voxels(mask: np.ndarray, other: np.ndarray) -> int:
    """Voxels of the components of `mask` that share none with `other`."""
    numbers = numbered(mask, CONNECTIVITY)
    sizes = sizes_of(numbers)
    sizes[np.unique(numbers[mask & other]) - 1] = 0
    return int(sizes.sum())


AUTOPET = Profile(
    name="autopet",
    title="autoPET (2022 to 2024)",
    source="evaluation_metrics.py of github.com/ClinicalDataScience/autoPETIII; autopet-iii.grand-challenge.org",
    rule="Components have 18 neighbours (8 in 2D). "
    "False positive volume: predicted components without any voxel of the "
    "reference; false negative volume: reference components without any voxel of the prediction. Dice and "
    "false negative volume are undefined where the reference is empty.",
    columns={
        "dice": "Dice of all voxels",
        "false_positive_component_ml": "volume of predicted components that no reference voxel touches",
        "false_negative_component_ml": "volume of reference components that no predicted voxel touches",
    },
    score=score,
    pooled=nothing_pooled,
)
