"""The edges of the stages, once it is known on held-out cases what the segmenter does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from unisegdiff_pipeline.core.boxes import box_slices, centred_box, nonzero_box
from unisegdiff_pipeline.evaluation.metrics import ClassScore
from unisegdiff_pipeline.evaluation.summary import macro_mean
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import StagePlan
from unisegdiff_pipeline.planning.stages import refine_stages
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.hold_out import HoldOut, predict_stored, score_on_plan_grid, sources_of_cases


def refined_stages(
    held_out: HoldOut, model: StagedModel, settings: InferenceSettings, cases: Sequence[str]
) -> tuple[StagePlan, dict[str, float]]:
    """Plan the edges again with the segmenter's Dice and uncertainty on held-out cases.

    Returns the stages, and the Dice of each class that they were refined with. A class that no case holds keeps what
    was planned for it. Of a unified data set means are those over its sources.
    """
    stages = held_out.configuration.stages
    assert stages is not None
    dice: dict[str, list[float]] = defaultdict(list)
    uncertainty: dict[str, list[float]] = defaultdict(list)
    holding: dict[str, list[str]] = defaultdict(list)
    first = held_out.labels.foreground_offset
    for case_id in cases:
        stored = held_out.data.open(case_id)
        p = predict_stored(held_out, model, stored, settings, num_samples=0).p_det
        scores: list[ClassScore] = score_on_plan_grid(held_out, stored, p)
        masks = held_out.labels.class_masks(stored.labels[0:1][0])
        for index, (score, (name, mask)) in enumerate(zip(scores, masks, strict=True)):
            if mask.any():
                dice[name].append(score.dice)
                holding[name].append(case_id)
                uncertainty[name].append(_uncertainty_of_patch(held_out, stored, p[first + index], mask))
    sources = {name: sources_of_cases(held_out.configuration.sources, own) for name, own in holding.items()}
    reached = {name: macro_mean(values, sources[name]) for name, values in dice.items()}
    unsure = {name: macro_mean(values, sources[name]) for name, values in uncertainty.items()}
    return refine_stages(stages, reached, unsure, held_out.labels), reached


def _uncertainty_of_patch(held_out: HoldOut, stored: StoredCase, p: Tensor, mask: np.ndarray) -> float:
    """Sum of p (1 - p) over the patch around the middle of a class's mask; p and mask are (Z, Y, X)."""
    patch = held_out.configuration.network.patch_size
    window = (1,) * (3 - len(patch)) + tuple(patch)
    around = nonzero_box(mask)
    assert around is not None, "only classes that the case holds are asked for"
    part = p[box_slices(centred_box(around, window, mask.shape))]
    return float((part * (1 - part)).sum())
