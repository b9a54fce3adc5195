"""How much the segmenter counts in the mean, and the threshold of the mask, chosen on the inner hold-out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unisegdiff_pipeline.diffusion.coding import (
    LogitCalibration,
    cross_entropy_of_probabilities,
)
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.comparison import is_significantly_above, macro_gain
from unisegdiff_pipeline.evaluation.summary import macro_mean, mean_of_defined
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.settings import DECISIONS, Decision, InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.selection.hold_out import (
    HoldOut,
    annotated_classes,
    open_channels,
    sample_tiles,
    score_on_plan_grid,
    sources_of_cases,
    tiled,
)
from unisegdiff_pipeline.selection.sampler import STAGE_A_CALL, trajectory
from unisegdiff_pipeline.selection.voxels import scored_voxels

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_SEGMENTER_WEIGHT = 0.25
LIKELIHOOD_ERRORS = 1.0  # standard errors by which another segmenter weight must be likelier
DICE_AT_STAKE = 0.01  # loss against the plain segmenter that one standard error has to exclude
DICE_ERRORS = 2.0  # standard errors by which Dice must be below the best to rule out a way to make the mask
DICE_TOLERANCE = 0.002  # so much less Dice than the best has nobody sees, however small the standard error
FLOOR = 1e-4


@dataclass(frozen=True)
class MeanTrial:
    """A way to make the mask, and the Dice and negative log-likelihood that it reached on the hold-out.

    Both are given case by case, Dice as the mean over the classes of a case, NaN where none is defined; all trials have
    the same cases, of these groups (patients) and, in a unified data set, sources, over which means are taken: a large
    source counts as much as a small one.
    """

    sampler: SamplerSettings
    segmenter_weight: float
    decision: Decision
    dice_of_cases: tuple[float, ...]
    nll_of_cases: tuple[float, ...]
    groups: tuple[str, ...] | None = None
    sources: tuple[str, ...] = ()

    @property
    def dice(self) -> float:
        """Mean over the cases where Dice is defined; NaN without one."""
        return macro_mean(self.dice_of_cases, self.sources)

    @property
    def nll(self) -> float:
        """Mean over the cases that have voxels which count; NaN without one."""
        return macro_mean(self.nll_of_cases, self.sources)

    def gain(self, other: MeanTrial) -> tuple[float, float]:
        """Mean difference of Dice to another trial over the same cases, and its standard error."""
        return macro_gain(self.dice_of_cases, other.dice_of_cases, self.groups, self.sources)

    def significantly_above(self, other: MeanTrial) -> bool:
        """Whether its likelihood loss is higher than the other's beyond what chance may do."""
        return is_significantly_above(
            self.nll_of_cases, other.nll_of_cases, self.groups, self.sources, LIKELIHOOD_ERRORS
        )


def with_samplers(
    settings: InferenceSettings, masks: SamplerSettings, segmenter_weight: float = DEFAULT_SEGMENTER_WEIGHT
) -> InferenceSettings:
    """The settings with a sampler of the masks, and stage A for the mean where there is one and anything of it counts.

    A network for the noise has no stage A: the masks' own sampler makes the mean.
    """
    own = segmenter_weight == 1 or settings.target == "epsilon" or trajectory(masks) == STAGE_A_CALL
    return replace(
        settings,
        segmenter_weight=segmenter_weight,
        sampler=masks if own else STAGE_A_CALL,
        mask_sampler=None if own else masks,
    )


def try_means(
    held_out: HoldOut, model: StagedModel, settings: InferenceSettings, cases: Mapping[str, LogitCalibration]
) -> list[MeanTrial]:
    """Every segmenter weight and every threshold of the mean, for the samplers of `settings`, on held-out cases.

    `cases` says with which calibration each is predicted.
    """
    scheme, sampler = held_out.labels, settings.sampler
    weights = WEIGHTS if sampler.total_calls else (1.0,)  # without calls the samples' mean is p_det
    dice: dict[tuple[float, Decision], list[float]] = defaultdict(list)
    losses: dict[float, list[float]] = defaultdict(list)
    groups: list[str] = []
    generator = np.random.default_rng(held_out.seed)
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        groups.append(stored.group)
        tried = settings.calibrated(calibration)
        prediction = sample_tiles(held_out, tiled(held_out, model, stored), tried, stored)
        unknown, annotated = open_channels(held_out, stored), annotated_classes(held_out, stored)
        voxels = scored_voxels(prediction.p_det, held_out, stored, generator)
        masks = list(prediction.masks(scheme))
        for w in weights:
            p = prediction.probabilities(w)
            q = p.flatten(1)[:, voxels.indices].clamp(FLOOR, 1 - FLOOR)[None]
            q[:, unknown] = 0.5  # one loss for all ways to make the mask
            loss = cross_entropy_of_probabilities(q, voxels.target[None], scheme.coding)[0]
            losses[w].append(float((loss * voxels.weights).sum() / voxels.weights.sum()))  # NaN without a voxel
            for decision in DECISIONS:
                scores = score_on_plan_grid(held_out, stored, decided_probabilities(p, masks, scheme, decision))
                known = (score.dice for score in scores if score.class_name in annotated)
                dice[w, decision].append(mean_of_defined(known))
    sources = sources_of_cases(held_out.configuration.sources, cases)
    return [
        MeanTrial(sampler, w, decision, tuple(found), tuple(losses[w]), tuple(groups), sources)
        for (w, decision), found in dice.items()
    ]


def rank_means(trials: Sequence[MeanTrial], dice_errors: float = DICE_ERRORS) -> list[MeanTrial]:
    """Trials, best first.

    Standard errors of the paired differences decide (Breiman et al. 1984, their rule for trees): by one of them masks
    may not lose DICE_AT_STAKE against the plain segmenter's (weight 1, threshold 0.5), nor by `dice_errors` and by
    DICE_TOLERANCE be worse than the best that is left, which of ten ways is mostly the luckiest. Of those the one with
    DEFAULT_SEGMENTER_WEIGHT comes first, unless another is likelier by LIKELIHOOD_ERRORS. The threshold for the highest
    Dice has to gain one standard error against 0.5. Where the hold-out tells neither Dice nor likelihood, the plain
    segmenter comes first.
    """
    halves = {trial.segmenter_weight: trial for trial in trials if trial.decision == "half"}

    def may_win(trial: MeanTrial) -> bool:
        gain, error = trial.gain(halves[1.0])
        if gain - error < -DICE_AT_STAKE:
            return False
        gain, error = trial.gain(halves[trial.segmenter_weight])
        return trial.decision == "half" or gain > error

    def loss(trial: MeanTrial) -> float:
        return np.inf if np.isnan(trial.nll) else trial.nll

    able = [t for t in trials if may_win(t)]
    best = max(able, key=lambda t: np.nan_to_num(t.dice))
    gains = {t: best.gain(t) for t in able}
    near = [t for t in able if gains[t][0] <= max(dice_errors * gains[t][1], DICE_TOLERANCE)]
    likeliest = min(near, key=loss)

    def is_default(trial: MeanTrial) -> bool:
        return (
            trial.segmenter_weight == DEFAULT_SEGMENTER_WEIGHT
            and not np.isnan(trial.nll)
            and not trial.significantly_above(likeliest)
        )

    def order(trial: MeanTrial) -> tuple[bool, float, float, float]:
        return not is_default(trial), loss(trial), -np.nan_to_num(trial.dice), -trial.segmenter_weight

    near.sort(key=order)
    return near + sorted((t for t in trials if t not in near), key=lambda t: -np.nan_to_num(t.dice))
