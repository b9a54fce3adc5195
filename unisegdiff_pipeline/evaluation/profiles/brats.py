"""BraTS 2023: every lesion counts alike, and a lesion that is missed or made up counts as a bad one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, grow_box
from unisegdiff_pipeline.evaluation.profiles.lesion_masks import (
    DirectedDistances,
    box_around,
    boxes_of,
    numbered,
)
from unisegdiff_pipeline.evaluation.profiles.profile import (
    Profile,
    ProfileCase,
    ProfileScore,
    dice_of,
    nothing_pooled,
)

PENALTY_MM = 374.0  # HD95 of a lesion that is missed or made up: about the diagonal of the BraTS volumes
NSD_TOLERANCES_MM = (0.5, 1.0)


@dataclass(frozen=True)
class BratsOptions:
    """What the tasks of BraTS 2023 set differently.

    Attributes:
        dilation_steps: voxels by which the reference is grown before its components are merged.
        min_lesion_mm3: reference lesions of this volume and less do not count.
    """

    dilation_steps: int
    min_lesion_mm3: float


@dataclass(frozen=True)
class _LesionScores:
    dice: float
    hd95_mm: float
    nsd: tuple[float, ...]


_MISSED = _LesionScores(0.0, PENALTY_MM, (0.0,) * len(NSD_TOLERANCES_MM))


def score(case: ProfileCase, options: BratsOptions) -> ProfileScore:
    """Scores of one case."""
    lesions = _merged_lesions(case.reference, options.dilation_steps)
    predicted = numbered(case.predicted, 26)
    predicted_boxes = boxes_of(predicted)
    counted: list[_LesionScores] = []
    num_found, touched = 0, set[int]()
    for number, box in enumerate(boxes_of(lesions), start=1):
        around = box_slices(grow_box(box, (options.dilation_steps,) * 3, lesions.shape))
        lesion = lesions[around] == number
        partners = np.unique(predicted[around][_grown(lesion, options.dilation_steps)])
        partners = partners[partners > 0]
        touched.update(partners.tolist())
        if np.count_nonzero(lesion) * case.geometry.voxel_volume_mm3 <= options.min_lesion_mm3:
            continue
        if not len(partners):
            counted.append(_MISSED)
            continue
        num_found += 1
        both = box_slices(box_around([box, *(predicted_boxes[i - 1] for i in partners)], lesions.shape))
        counted.append(_compared(lesions[both] == number, np.isin(predicted[both], partners), case))
    num_false = len(predicted_boxes) - len(touched)
    whole = DirectedDistances.between(case.reference, case.predicted, case.geometry.spacing_mm)
    is_empty = not (case.reference.any() or case.predicted.any())
    return ProfileScore(
        {
            "lesionwise_dice": _mean([s.dice for s in counted], num_false, 0.0, nothing=1.0),
            "lesionwise_hd95_mm": _mean([s.hd95_mm for s in counted], num_false, PENALTY_MM, nothing=0.0),
            **{
                f"lesionwise_nsd_{tolerance}": _mean([s.nsd[i] for s in counted], num_false, 0.0, nothing=1.0)
                for i, tolerance in enumerate(NSD_TOLERANCES_MM)
            },
            "num_tp": num_found,
            "num_fp": num_false,
            "num_fn": len(counted) - num_found,
            "dice": dice_of(case.reference, case.predicted, both_empty=1.0),
            "hd95_mm": 0.0 if is_empty else _or_penalty(whole.hd95_mm),
        }
    )


def _merged_lesions(reference: np.ndarray, steps: int) -> np.ndarray:
    """Numbers of the reference lesions: components whose dilated masks meet are one lesion."""
    return np.where(reference, numbered(_grown(reference, steps), 26), 0)


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """The mask grown so many times by the voxels that share a face or an edge with it."""
    from scipy.ndimage import binary_dilation, generate_binary_structure

    if not mask.any():
        return mask
    return np.asarray(binary_dilation(mask, generate_binary_structure(3, 2), iterations=steps))


def _compared(lesion: np.ndarray, predicted: np.ndarray, case: ProfileCase) -> _LesionScores:
    distances = DirectedDistances.between(lesion, predicted, case.geometry.spacing_mm)
    nsd = tuple(distances.mean_surface_dice(tolerance) for tolerance in NSD_TOLERANCES_MM)
    return _LesionScores(dice_of(lesion, predicted), distances.hd95_mm, nsd)


def _mean(values: list[float], num_false: int, penalty: float, *, nothing: float) -> float:
    """Mean over the counted reference lesions and the false positives; `nothing` where there is neither."""
    count = len(values) + num_false
    return (math.fsum(values) + num_false * penalty) / count if count else nothing


def _or_penalty(value: float) -> float:
    return PENALTY_MM if math.isnan(value) else value


def _profile(name: str, tasks: str, options: BratsOptions) -> Profile:
    return Profile(
        name=name,
        title=f"BraTS 2023, lesion-wise ({tasks})",
        source="github.com/rachitsaluja/BraTS-2023-Metrics (metrics.py); NSD as in "
        "github.com/rachitsaluja/BraTS-2024-Metrics",
        rule=f"Components have 26 neighbours (8 in 2D); reference components that meet after growing by "
        f"{options.dilation_steps} voxel(s) (faces and edges) are one lesion. All predicted components that "
        "touch the grown lesion are matched to it (many-to-many) and compared with it whole. Reference "
        f"lesions of {options.min_lesion_mm3:g} {{size}} and less do not count, nor do predictions that touch them. "
        "The mean is over reference lesions and unmatched predicted components of any size: a missed or false "
        f"one has Dice 0, NSD 0 and HD95 {PENALTY_MM:g} {{length}}. Nothing to count: Dice and NSD 1, HD95 0. HD95 "
        "is taken between voxel centres; the code of the challenge measures between triangulated surfaces, which "
        "differs by about a voxel. BraTS 2024 has other rules: sizes of its own (GLI 20 mm3, PED 10 mm3) and lesions "
        "that are numbered over several tissues.",
        columns={
            "lesionwise_dice": "mean Dice over lesions and false positives",
            "lesionwise_hd95_mm": "mean HD95 over lesions and false positives",
            "lesionwise_nsd_0.5": "mean normalised surface Dice at 0.5 {length}",
            "lesionwise_nsd_1.0": "mean normalised surface Dice at 1 {length}",
            "num_tp": "counted reference lesions that are found",
            "num_fp": "predicted components that touch no grown reference lesion",
            "num_fn": "counted reference lesions that are missed",
            "dice": "Dice of all voxels; 1 for two empty masks",
            "hd95_mm": f"HD95 of the whole masks; 0 for two empty masks, {PENALTY_MM:g} {{length}} where one is",
        },
        score=lambda case: score(case, options),
        pooled=nothing_pooled,
    )


BRATS = (
    _profile("brats", "GLI, SSA, PED", BratsOptions(dilation_steps=3, min_lesion_mm3=50.0)),
    _profile("brats-men", "MEN", BratsOptions(dilation_steps=1, min_lesion_mm3=50.0)),
    _profile("brats-met", "MET", BratsOptions(dilation_steps=1, min_lesion_mm3=2.0)),
)
