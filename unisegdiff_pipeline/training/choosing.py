"""What is chosen on the inner hold-out: temperature, number of calls, weight w, best against last weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.diffusion.coding import cross_entropy, cross_entropy_of_probabilities
from unisegdiff_pipeline.evaluation.summary import CaseScores, summarise
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import sample_case
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.training.validation import score_on_plan_grid

if TYPE_CHECKING:
    from unisegdiff_pipeline.training.trainer import FoldRun

TEMPERATURES = tuple(np.geomspace(0.5, 4.0, 25).tolist())
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
CALLS = (2, 4, 8)
DICE_TOLERANCE = 0.003  # settings within this of the best Dice are told apart by their likelihood
NLL_TOLERANCE = 0.02  # of the best negative log-likelihood
VOXELS_PER_CASE = 20_000
NEAR_FOREGROUND = 0.05
MARGIN_VOXELS = 4
FLOOR = 1e-4


@dataclass(frozen=True)
class Candidate:
    """One setting and what it reached on the hold-out."""

    num_calls: int
    w: float
    dice: float
    nll: float


def choose_temperature(run: FoldRun, model: StagedModel, cases: Sequence[str]) -> float:
    """The temperature of p_det with the least negative log-likelihood on held-out voxels near foreground.

    Only voxels where the segmenter or an annotator sees foreground count, at most VOXELS_PER_CASE a case: elsewhere
    both are sure and right, and would drown the rest. With several annotators each counts.
    """
    logits, targets = [], []
    generator = np.random.default_rng(run.request.seed)
    for case_id in cases:
        stored = run.data.open(case_id)
        p = _det_probabilities(run, model, stored)
        odds = p.clamp(1e-6, 1 - 1e-6)
        z = odds.log() if run.plans.labels.coding == "softmax" else odds.logit()
        target = _mean_target(run, stored)
        chosen = _voxels(p, target, run, stored, generator)
        logits.append(z.flatten(1)[:, chosen])
        targets.append(target.flatten(1)[:, chosen])
    z, t = torch.cat(logits, dim=1)[None], torch.cat(targets, dim=1)[None]  # (1, K, V)
    if z.shape[2] == 0:
        return 1.0
    losses = [float(cross_entropy(z / temperature, t, run.plans.labels.coding).mean()) for temperature in TEMPERATURES]
    return round(TEMPERATURES[int(np.argmin(losses))], 3)


def choose_settings(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, cases: Sequence[str], calls: Sequence[int] = CALLS
) -> tuple[InferenceSettings, list[Candidate]]:
    """Number of calls and w by Dice on held-out cases; among settings within 0.3 points the likeliest one.

    Returns the settings and all candidates, best first.
    """
    scores: dict[tuple[int, float], list[CaseScores]] = {}
    nll: dict[tuple[int, float], list[float]] = {}
    generator = np.random.default_rng(run.request.seed)
    for case_id in cases:
        run.leave_if_asked()
        stored = run.data.open(case_id)
        tiles = _tiled(run, model, stored)
        target = _mean_target(run, stored)
        chosen: Tensor | None = None
        for num_calls in calls:
            trial = replace(settings, sampler=replace(settings.sampler, num_calls=num_calls))
            prediction = sample_case(
                tiles,
                trial,
                case_id=case_id,
                seed=run.request.seed,
                sample_ids=range(settings.num_samples),
                spacing_mm=stored.properties.spacing_mm,
                keep_samples=False,
            )
            if chosen is None:
                chosen = _voxels(prediction.p_det, target, run, stored, generator)
            for w in WEIGHTS:
                p = prediction.probabilities(w)
                key = (num_calls, w)
                scores.setdefault(key, []).append(CaseScores(case_id, tuple(score_on_plan_grid(run, stored, p))))
                if len(chosen):
                    q = p.flatten(1)[:, chosen].clamp(FLOOR, 1 - FLOOR)[None]
                    t = target.flatten(1)[:, chosen][None]
                    loss = cross_entropy_of_probabilities(q, t, run.plans.labels.coding)
                    nll.setdefault(key, []).append(float(loss.mean()))
    candidates = [
        Candidate(key[0], key[1], summarise(found).mean_dice, float(np.mean(nll.get(key, [np.nan]))))
        for key, found in scores.items()
    ]
    ranked = rank(candidates)
    best = ranked[0]
    chosen_settings = replace(settings, w=best.w, sampler=replace(settings.sampler, num_calls=best.num_calls))
    return chosen_settings, ranked


def rank(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates, best first: of those within DICE_TOLERANCE of the best Dice the likeliest, then the others by Dice.

    Likelihoods within NLL_TOLERANCE of the best count as equal, and the fewer calls win: a call that does not show on
    held-out cases is not worth its seconds.

    Where the hold-out says nothing (no foreground at all), the plain segmenter, w = 1, comes first.
    """
    if all(np.isnan(c.dice) and np.isnan(c.nll) for c in candidates):
        return sorted(candidates, key=lambda c: (-c.w, c.num_calls))
    top = max((c.dice for c in candidates if not np.isnan(c.dice)), default=float("nan"))
    near = [c for c in candidates if np.isnan(top) or c.dice >= top - DICE_TOLERANCE]
    rest = [c for c in candidates if c not in near]
    limit = min((c.nll for c in near if not np.isnan(c.nll)), default=0.0) * (1 + NLL_TOLERANCE)

    def order(c: Candidate) -> tuple[bool, bool, int, float]:
        worse = bool(np.isnan(c.nll) or c.nll > limit)
        return bool(np.isnan(c.nll)), worse, 0 if worse else c.num_calls, c.nll

    return sorted(near, key=order) + sorted(rest, key=lambda c: -c.dice)


def _tiled(run: FoldRun, model: StagedModel, stored: StoredCase) -> TiledCase:
    model.eval()
    return TiledCase(
        torch.as_tensor(stored.image[...]), model, run.configuration.network.patch_size, find_limits(run.device)
    )


def _det_probabilities(run: FoldRun, model: StagedModel, stored: StoredCase) -> Tensor:
    tiles = _tiled(run, model, stored)
    return tiles.det_probabilities()[(slice(None), *tiles.grid.inner)].float().cpu()


def _mean_target(run: FoldRun, stored: StoredCase) -> Tensor:
    """Coded labels (K, Z, Y, X), the mean over the annotators where there are several."""
    labels = stored.labels[...]
    rows = labels[1:] if stored.num_rows > 1 else labels[:1]
    return torch.from_numpy(np.stack([run.plans.labels.encode(row) for row in rows]).astype(np.float32)).mean(dim=0)


def _voxels(p: Tensor, target: Tensor, run: FoldRun, stored: StoredCase, generator: np.random.Generator) -> Tensor:
    """Indices of voxels near foreground that anybody sees, without ignored ones, at most VOXELS_PER_CASE.

    The margin makes the choice of voxels fair to flat and to sharp probabilities.
    """
    first = run.plans.labels.foreground_offset
    seen = (p[first:].amax(dim=0) > NEAR_FOREGROUND) | (target[first:].amax(dim=0) > 0)
    side = [1 if length == 1 else 2 * MARGIN_VOXELS + 1 for length in seen.shape]
    margin = [length // 2 for length in side]
    near = functional.max_pool3d(seen[None, None].float(), side, 1, margin)[0, 0] > 0
    if run.plans.labels.ignore_value is not None:
        near &= ~torch.from_numpy(run.plans.labels.ignored(stored.labels[0:1][0]))
    found = near.flatten().nonzero()[:, 0]
    if len(found) > VOXELS_PER_CASE:
        found = found[torch.from_numpy(generator.choice(len(found), VOXELS_PER_CASE, replace=False))]
    return found
