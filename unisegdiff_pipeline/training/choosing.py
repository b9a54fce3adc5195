"""What is chosen on the inner hold-out: temperature, sampler, weight w, and how the mask is cut.

Masks and mean are chosen apart. Masks are drawn by the sampler with the best energy score, a proper score of a set of
masks against each annotator; of those about as good that call the network the one with the fewest calls is taken, and
draws from p_det without any call where they are no worse than that one. The mean is judged by Dice and likelihood:
whose samples enter it, how much of p_det, and whether it is cut at 0.5 or where the drawn masks promise the highest
Dice. A dozen cases say little of a mean, so it departs from the plain segmenter's only where its Dice is not at stake,
case by case, and likelihood decides among what Dice cannot tell apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.diffusion.coding import (
    Temperature,
    cross_entropy,
    cross_entropy_of_probabilities,
    foreground_log_odds,
    probabilities_from_logits,
    temper,
)
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.comparison import mean_gain
from unisegdiff_pipeline.evaluation.diversity import energy_score, pairwise_overlaps
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.settings import DECISIONS, Decision, InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, sample_case
from unisegdiff_pipeline.io.labels import Coding
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.training.validation import score_on_plan_grid

Losses = Mapping[SamplerSettings, Mapping[float, float]]  # by sampler and w

if TYPE_CHECKING:
    from unisegdiff_pipeline.training.trainer import FoldRun

TEMPERATURES = tuple(np.geomspace(0.5, 8.0, 33).tolist())
CEILINGS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the log odds of foreground
CEILING_GAIN = 0.005  # of the loss in voxels that are found; below it there is no ceiling
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS_VOXELS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # of the smooth field of coherent draws, in voxels of the plan
ONE_CALL = SamplerSettings("ddim", "stage_a", 0, 0.0)
TRAJECTORIES = (
    SamplerSettings("hard", "stage_a", 2, 0.0),
    SamplerSettings("ddim", "stage_a", 4, 0.0),
    SamplerSettings("hard", "det", 2, 0.0),
    SamplerSettings("ddim", "det", 4, 2.0),
)
MEAN_GAIN = 0.005  # of the loss, by which another sampler's mean must be likelier to be tried
ENERGY_TOLERANCE = 0.02  # of the best energy score; within it the fewest calls win (one at least), the longest field
DICE_AT_STAKE = 0.01  # loss against the plain segmenter that one standard error has to exclude
VOXELS_PER_CASE = 20_000  # near foreground, and as many elsewhere
NEAR_FOREGROUND = 0.05
MARGIN_VOXELS = 4
FLOOR = 1e-4


@dataclass(frozen=True)
class Search:
    """How far samplers are searched: draws from p_det and after one call always, and these longer trajectories.

    `calls_per_case` is about what choosing takes of a case beside `costs.CHOOSING_PASSES`, in network calls.
    """

    trajectories: tuple[SamplerSettings, ...]
    calls_per_case: float

    @property
    def most_calls(self) -> int:
        """Calls of the longest sampler that may be chosen."""
        return max(t.total_calls for t in (ONE_CALL, *self.trajectories))


FULL_SEARCH = Search(TRAJECTORIES, 26.0)
SHORT_SEARCH = Search(tuple(t for t in TRAJECTORIES if t.total_calls <= 3), 15.0)
QUICK_SEARCH = Search((), 2.0)


@dataclass(frozen=True)
class SamplerTrial:
    """A sampler and its mean energy score over the cases that choose (lower is better)."""

    sampler: SamplerSettings
    energy: float


@dataclass(frozen=True)
class MeanTrial:
    """A way to make the mask, and the Dice and negative log-likelihood that it reached on the hold-out.

    `dice_of_cases` are means over the classes of a case, NaN where none is defined; all trials have the same cases, of
    these groups (patients).
    """

    sampler: SamplerSettings
    w: float
    decision: Decision
    dice_of_cases: tuple[float, ...]
    nll: float
    groups: tuple[str, ...] | None = None

    @property
    def dice(self) -> float:
        """Mean over the cases where Dice is defined; NaN without one."""
        return mean_of_defined(self.dice_of_cases)

    def gain(self, other: MeanTrial) -> tuple[float, float]:
        """Mean difference of Dice to another trial over the same cases, and its standard error."""
        return mean_gain(self.dice_of_cases, other.dice_of_cases, self.groups)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what was tried, best first; other lengths of the field than the one taken stand last."""

    settings: InferenceSettings
    samplers: tuple[SamplerTrial, ...]
    means: tuple[MeanTrial, ...]


@dataclass(frozen=True)
class _Voxels:
    """Some voxels of a case (V,): flat indices, how many voxels each stands for, and its coded label (K, V)."""

    indices: Tensor
    weights: Tensor
    target: Tensor


def choose_temperature(run: FoldRun, model: StagedModel, cases: Sequence[str]) -> Temperature:
    """The temperatures of p_det with the least negative log-likelihood of whole held-out cases.

    Of each case voxels near foreground and voxels elsewhere are drawn, and weighted by how many they stand for. With
    several annotators each counts.
    """
    return fit_temperature(*held_out_logits(run, model, cases), run.plans.labels.coding)


def held_out_logits(
    run: FoldRun, model: StagedModel, cases: Sequence[str], near_only: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of p_det and coded labels (1, K, V) at some voxels of held-out cases, and the weights of the voxels (V,).

    Args:
        run, model: as trained.
        cases: where to look.
        near_only: leave out the voxels far from all foreground.
    """
    logits, targets, weights = [], [], []
    generator = np.random.default_rng(run.request.seed)
    for case_id in cases:
        stored = run.data.open(case_id)
        tiles = _tiled(run, model, stored)
        z = tiles.det_logits()[(slice(None), *tiles.grid.inner)].cpu()
        p = probabilities_from_logits(z[None], run.plans.labels.coding)[0]
        chosen = _voxels(p, run, stored, generator, near_only)
        logits.append(z.flatten(1)[:, chosen.indices])
        targets.append(chosen.target)
        weights.append(chosen.weights)
    return torch.cat(logits, dim=1)[None], torch.cat(targets, dim=1)[None], torch.cat(weights)


def fit_temperature(logits: Tensor, target: Tensor, weights: Tensor, coding: Coding) -> Temperature:
    """The likeliest of TEMPERATURES and CEILINGS; logits and target (1, K, V), weights (V,)."""
    if logits.shape[2] == 0:
        return Temperature()

    # Every voxel is divided by one of the two (of regions each channel), so that each can be fitted alone.
    def loss(temperature: Temperature, z: Tensor, x: Tensor, weight: Tensor) -> float:
        return float((weight * cross_entropy(temper(z, coding, temperature), x, coding)[0]).sum())

    background = min(TEMPERATURES, key=lambda value: loss(Temperature(1.0, value), logits, target, weights))
    found = (foreground_log_odds(logits, coding) > 0).any(dim=1)[0]
    if not found.any():
        return Temperature(background=round(background, 3))
    part = logits[..., found], target[..., found], weights[found]
    losses = {
        (value, ceiling): loss(Temperature(value, background, ceiling), *part)
        for ceiling in (None, *CEILINGS)
        for value in TEMPERATURES
    }
    foreground, ceiling = min(losses, key=lambda key: losses[key] * (1.0 if key[1] else 1.0 - CEILING_GAIN))
    return Temperature(round(foreground, 3), round(background, 3), ceiling)


def choose_settings(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, cases: Sequence[str], search: Search = FULL_SEARCH
) -> Choice:
    """The sampler of the masks and that of the mean, then w and decision, on held-out cases.

    Where another sampler makes a likelier mean it is given its chance beside the masks' own. Together they may take no
    more calls than the longest sampler of the search.
    """
    samplers, losses = _try_samplers(run, model, settings, cases, search)
    first = samplers[0].sampler
    finalists = [first, *_likelier_mean(first, losses, search.most_calls - first.total_calls)]
    candidates = {s: replace(settings, sampler=s, mask_sampler=None if s == first else first) for s in finalists}
    means = rank_means([mean for tried in candidates.values() for mean in try_means(run, model, tried, cases)])
    best = means[0]
    chosen = replace(candidates[best.sampler], w=best.w, decision=best.decision)
    return Choice(chosen, tuple(samplers), tuple(means))


def _likelier_mean(first: SamplerSettings, losses: Losses, most_calls: int) -> list[SamplerSettings]:
    """The sampler whose mean is likelier, at its best w, than p_det and the mean of `first` at any; none or one."""
    own = [loss for s, by_w in losses.items() for w, loss in by_w.items() if w == 1 or _calls_of(s) == _calls_of(first)]
    others = {s: min(by_w.values()) for s, by_w in losses.items() if s.total_calls <= most_calls}
    best = min(others, key=lambda s: others[s], default=None)
    return [best] if best is not None and others[best] <= (1 - MEAN_GAIN) * min(own) else []


def _try_samplers(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, cases: Sequence[str], search: Search
) -> tuple[list[SamplerTrial], Losses]:
    """Draws from p_det with several lengths of the field, then draws and trajectories with the best length.

    All on all cases: the differences between trajectories are smaller than those between a few cases. The best of many
    lengths is mostly the luckiest, so with this length all draw other masks than those that chose it.
    """
    first = run.data.open(cases[0])
    spacing = first.properties.spacing_mm[-run.configuration.network.dims :]
    unit_mm = float(np.prod(spacing)) ** (1 / len(spacing))
    without_calls = [
        SamplerSettings("ddim", "det", 0, 0.0, round(voxels * unit_mm, 3), draw=True) for voxels in LENGTHS_VOXELS
    ]
    by_length, _ = score_samplers(run, model, settings, without_calls, cases)
    best = rank_samplers(_trials(by_length))[0].sampler
    # Pure noise holds no mask to invert, as a network for the noise would have to.
    able = [t for t in (ONE_CALL, *search.trajectories) if settings.target != "epsilon" or t.start == "det"]
    calling = [replace(t, correlation_length_mm=best.correlation_length_mm, draw=True) for t in able]
    found, losses = score_samplers(run, model, settings, [best, *calling], cases, first_sample=settings.num_samples)
    others = [trial for trial in _trials(by_length) if trial.sampler != best]
    return rank_samplers(_trials(found)) + rank_samplers(others), losses


def _calls_of(sampler: SamplerSettings) -> SamplerSettings:
    """What samplers have in common that end with the same probabilities, whether masks are drawn from them or not."""
    return replace(sampler, draw=True, correlation_length_mm=0.0)


def _trajectory(sampler: SamplerSettings) -> SamplerSettings:
    """The sampler up to its end: what is drawn and what is cut there come of the same calls."""
    return replace(sampler, draw=False, correlation_length_mm=0.0)


def _trials(found: Mapping[SamplerSettings, Sequence[float]]) -> list[SamplerTrial]:
    return [SamplerTrial(sampler, float(np.nanmean(values))) for sampler, values in found.items()]


def score_samplers(
    run: FoldRun,
    model: StagedModel,
    settings: InferenceSettings,
    samplers: Sequence[SamplerSettings],
    cases: Sequence[str],
    first_sample: int = 0,
) -> tuple[dict[SamplerSettings, list[float]], Losses]:
    """Energy scores of the masks of samplers that draw at their end, case by case, and the negative log-likelihood of
    the mean of each that calls the network, at every weight w.

    The same calls also give the energy scores of cutting each sample at 0.5 instead of drawing its mask. Samples are
    counted from `first_sample` on: others have other noise.
    """
    energies: dict[SamplerSettings, list[float]] = defaultdict(list)
    means = {sampler: _MeanScores(sampler) for sampler in samplers if sampler.total_calls}
    generator = np.random.default_rng(run.request.seed)
    for case_id in cases:
        run.leave_if_asked()
        stored = run.data.open(case_id)
        tiles = _tiled(run, model, stored)
        raters = _raters(stored)
        voxels: _Voxels | None = None
        for sampler in samplers:
            tried = replace(settings, sampler=sampler, mask_sampler=None)
            prediction = _sampled(run, tiles, tried, stored, keep_soft=True, first_sample=first_sample)
            numbers = range(prediction.num_samples)
            energies[sampler].append(_energy(run, raters, (prediction.sample(i) for i in numbers)))
            if sampler.total_calls and sampler.method != "hard":
                soft = (prediction.soft_sample(i) for i in numbers)
                energies[_trajectory(sampler)].append(_energy(run, raters, soft))
            if sampler in means:
                voxels = voxels or _voxels(prediction.p_det, run, stored, generator)  # of p_det: the same for all
                means[sampler].add(run, stored, prediction, voxels, ())
    return dict(energies), {sampler: scores.mean_losses() for sampler, scores in means.items()}


def _energy(run: FoldRun, raters: np.ndarray, samples: Iterator[Tensor]) -> float:
    """Mean over the classes of the energy score of one case."""
    scheme = run.plans.labels
    masks: dict[str, list[np.ndarray]] = defaultdict(list)
    for sample in samples:
        for name, mask in scheme.class_masks(scheme.decode(sample.numpy())):
            masks[name].append(mask)
    references: dict[str, list[np.ndarray]] = defaultdict(list)
    for row in raters:
        for name, mask in scheme.class_masks(row):
            references[name].append(mask & ~scheme.ignored(row))
    ignored = scheme.ignored(raters[0])
    scores = [
        energy_score(pairwise_overlaps([m & ~ignored for m in masks[name]], references[name])).energy_score_u
        for name in scheme.names
    ]
    return float(np.mean(scores))


def rank_samplers(trials: Sequence[SamplerTrial]) -> list[SamplerTrial]:
    """Trials, best first: of those that call the network and lie within ENERGY_TOLERANCE of the best of them the fewest
    calls; draws without any call, the longest field within that tolerance, where they are no worse than that one.

    A dozen cases tell energy scores apart by a few per cent. A long field draws an object as a whole or not at all; a
    short one leaves pieces of it nearly always, which overlap hardly tells and counting lesions does. Draws without
    calls get no such allowance: they depend most on the temperatures, which were fitted on these very cases.
    """
    calling = _rank_alike([trial for trial in trials if trial.sampler.total_calls])
    draws = _rank_alike([trial for trial in trials if not trial.sampler.total_calls])
    draws_first = not calling or (bool(draws) and draws[0].energy <= calling[0].energy)
    return draws + calling if draws_first else calling + draws


def _rank_alike(trials: Sequence[SamplerTrial]) -> list[SamplerTrial]:
    """Within ENERGY_TOLERANCE of the best by calls and length of the field, the others by energy."""
    limit = min((trial.energy for trial in trials), default=0.0)
    limit += abs(limit) * ENERGY_TOLERANCE

    def order(trial: SamplerTrial) -> tuple[bool, int, float, float]:
        if trial.energy > limit:
            return True, 0, 0.0, trial.energy
        return False, trial.sampler.total_calls, -trial.sampler.correlation_length_mm, trial.energy

    return sorted(trials, key=order)


def try_means(run: FoldRun, model: StagedModel, settings: InferenceSettings, cases: Sequence[str]) -> list[MeanTrial]:
    """Every weight w and every cut of the mean, for the samplers of `settings`, on held-out cases."""
    scores = _MeanScores(settings.sampler)
    generator = np.random.default_rng(run.request.seed)
    for case_id in cases:
        run.leave_if_asked()
        stored = run.data.open(case_id)
        prediction = _sampled(run, _tiled(run, model, stored), settings, stored)
        scores.add(run, stored, prediction, _voxels(prediction.p_det, run, stored, generator), DECISIONS)
    return scores.trials()


class _MeanScores:
    """Dice and likelihood of every weight w of one sampler's mean, gathered case by case."""

    def __init__(self, sampler: SamplerSettings) -> None:
        self.sampler = sampler
        self.weights = WEIGHTS if sampler.total_calls else (1.0,)  # without calls the samples' mean is p_det
        self.dice: dict[tuple[float, Decision], list[float]] = defaultdict(list)
        self.losses: dict[float, list[float]] = defaultdict(list)
        self.groups: list[str] = []

    def add(
        self, run: FoldRun, stored: StoredCase, prediction: CasePrediction, voxels: _Voxels,
        decisions: Sequence[Decision],
    ) -> None:  # fmt: skip
        """Score one case."""
        scheme = run.plans.labels
        self.groups.append(stored.properties.group or stored.case_id)
        masks = []
        if "dice" in decisions:
            masks = [scheme.decode(prediction.sample(i).numpy()) for i in range(prediction.num_samples)]
        for w in self.weights:
            p = prediction.probabilities(w)
            if len(voxels.indices):
                q = p.flatten(1)[:, voxels.indices].clamp(FLOOR, 1 - FLOOR)[None]
                loss = cross_entropy_of_probabilities(q, voxels.target[None], scheme.coding)[0]
                self.losses[w].append(float((loss * voxels.weights).sum() / voxels.weights.sum()))
            for decision in decisions:
                scores = score_on_plan_grid(run, stored, decided_probabilities(p, masks, scheme, decision))
                self.dice[w, decision].append(mean_of_defined(score.dice for score in scores))

    def mean_losses(self) -> dict[float, float]:
        """Mean over the cases for each w; NaN where no voxel counts."""
        return {w: float(np.mean(self.losses.get(w, [np.nan]))) for w in self.weights}

    def trials(self) -> list[MeanTrial]:
        losses = self.mean_losses()
        return [
            MeanTrial(self.sampler, w, decision, tuple(found), losses[w], tuple(self.groups))
            for (w, decision), found in self.dice.items()
        ]


def rank_means(trials: Sequence[MeanTrial]) -> list[MeanTrial]:
    """Trials, best first.

    One standard error of the paired differences decides (Breiman et al. 1984, their rule for trees): masks may not
    lose DICE_AT_STAKE against the plain segmenter's (w = 1, cut at 0.5), nor be worse than the best that is left; of
    those the likeliest comes first. The cut for the highest Dice has to earn its place against the one at 0.5 in the
    same way. Where the hold-out says nothing (no foreground at all), the plain segmenter comes first.
    """
    usual = {(t.sampler, t.w): t for t in trials if t.decision == "half"}
    plain = next(t for t in usual.values() if t.w == 1)

    def may_win(trial: MeanTrial) -> bool:
        gain, error = trial.gain(plain)
        if gain - error < -DICE_AT_STAKE:
            return False
        gain, error = trial.gain(usual[trial.sampler, trial.w])
        return trial.decision == "half" or gain > error

    def order(trial: MeanTrial) -> tuple[float, float, float]:
        nll = np.inf if np.isnan(trial.nll) else trial.nll
        return nll, -np.nan_to_num(trial.dice), -trial.w

    able = [t for t in trials if may_win(t)]
    best = max(able, key=lambda t: np.nan_to_num(t.dice))
    gains = {t: best.gain(t) for t in able}
    near = sorted((t for t in able if gains[t][0] <= gains[t][1]), key=order)
    return near + sorted((t for t in trials if t not in near), key=lambda t: -np.nan_to_num(t.dice))


def _sampled(
    run: FoldRun, tiles: TiledCase, settings: InferenceSettings, stored: StoredCase, keep_soft: bool = False,
    first_sample: int = 0,
) -> CasePrediction:  # fmt: skip
    return sample_case(
        tiles,
        settings,
        case_id=stored.case_id,
        seed=run.request.seed,
        sample_ids=range(first_sample, first_sample + settings.num_samples),
        spacing_mm=stored.properties.spacing_mm,
        keep_soft=keep_soft,
    )


def _tiled(run: FoldRun, model: StagedModel, stored: StoredCase) -> TiledCase:
    model.eval()
    return TiledCase(
        torch.as_tensor(stored.image[...]), model, run.configuration.network.patch_size, find_limits(run.device)
    )


def _raters(stored: StoredCase) -> np.ndarray:
    """Label maps of the annotators (R, Z, Y, X), or the one there is."""
    labels = stored.labels[...]
    return labels[1:] if stored.num_rows > 1 else labels[:1]


def _mean_target(run: FoldRun, stored: StoredCase) -> Tensor:
    """Coded labels (K, Z, Y, X), the mean over the annotators where there are several."""
    rows = [run.plans.labels.encode(row) for row in _raters(stored)]
    return torch.from_numpy(np.stack(rows).astype(np.float32)).mean(dim=0)


def _voxels(
    p: Tensor, run: FoldRun, stored: StoredCase, generator: np.random.Generator, near_only: bool = False
) -> _Voxels:
    """Voxels near foreground that anybody sees, and voxels elsewhere, at most VOXELS_PER_CASE each.

    Ignored voxels are left out.
    """
    target = _mean_target(run, stored)
    first = run.plans.labels.foreground_offset
    seen = (p[first:].amax(dim=0) > NEAR_FOREGROUND) | (target[first:].amax(dim=0) > 0)
    side = [1 if length == 1 else 2 * MARGIN_VOXELS + 1 for length in seen.shape]
    margin = [length // 2 for length in side]
    near = functional.max_pool3d(seen[None, None].float(), side, 1, margin)[0, 0] > 0
    counted = torch.ones_like(near)
    if run.plans.labels.ignore_value is not None:
        counted &= ~torch.from_numpy(run.plans.labels.ignored(stored.labels[0:1][0]))
    indices, weights = [], []
    for part in (near & counted,) if near_only else (near & counted, ~near & counted):
        found = part.flatten().nonzero()[:, 0]
        kept = found
        if len(found) > VOXELS_PER_CASE:
            kept = found[torch.from_numpy(generator.choice(len(found), VOXELS_PER_CASE, replace=False))]
        indices.append(kept)
        weights.append(torch.full((len(kept),), len(found) / max(len(kept), 1)))
    places = torch.cat(indices)
    return _Voxels(places, torch.cat(weights), target.flatten(1)[:, places])
