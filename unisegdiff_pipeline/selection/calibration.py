"""The calibration of the segmenter's logits, fitted on the inner hold-out.

It is fitted on the very cases that then compare p_det with what the denoiser makes of them, which nothing was fitted
on. So each of them is predicted with the calibration that the other patients' cases give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import (
    NO_CALIBRATION,
    LogitCalibration,
    calibrate,
    channel_cross_entropy,
    cross_entropy,
    foreground_log_odds,
    probabilities_from_logits,
)
from unisegdiff_pipeline.io.sources import cases_by_source
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.selection.hold_out import HoldOut, open_channels, sources_of_cases, tiled
from unisegdiff_pipeline.selection.objects import num_informative
from unisegdiff_pipeline.selection.voxels import scored_voxels

DIVISORS = tuple(np.geomspace(0.5, 8.0, 33).tolist())
SOFT_CAPS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of the log odds of foreground
SOFT_CAP_GAIN = 0.005  # of the loss in voxels that are found; below it there is no soft cap
# Patients with annotated objects that a choice needs; fewer leave the default. (A single case gave a temperature of 8
# and probabilities that never reached 0.57.)
FEWEST_FOR_CALIBRATION = 4


@dataclass(frozen=True)
class FittedCalibration:
    """The calibration of p_det, and for each held-out case the one that cases of all other groups (patients) give.

    The latter make p_det on a held-out case what it will be on a new one.
    """

    of_all: LogitCalibration
    of_others: Mapping[str, LogitCalibration]


def choose_calibration(held_out: HoldOut, model: StagedModel, cases: Sequence[str]) -> FittedCalibration:
    """The calibrations of p_det with the least negative log-likelihood of whole held-out cases.

    Of each case voxels near foreground and voxels elsewhere are drawn, and weighted by how many they stand for. With
    several annotators each counts, and in a unified data set each source as much as another. Fewer than
    FEWEST_FOR_CALIBRATION patients with objects leave it at 1.
    """
    if num_informative(held_out, cases) < FEWEST_FOR_CALIBRATION:
        return FittedCalibration(NO_CALIBRATION, dict.fromkeys(cases, NO_CALIBRATION))
    logits, target, weights, lengths = held_out_logits(held_out, model, cases)
    groups = [held_out.data.open(case_id).group for case_id in cases]
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    owners = torch.tensor([numbers[group] for group in groups]).repeat_interleave(torch.tensor(lengths))
    sources = dict(zip(groups, sources_of_cases(held_out.configuration.sources, cases), strict=False))
    parts = [sources[group] for group in numbers if sources]
    of_all, without = fit_calibrations(logits, target, weights, held_out.labels.coding, owners, len(numbers), parts)
    of_others = {case_id: without[numbers[group]] for case_id, group in zip(cases, groups, strict=True)}
    return FittedCalibration(of_all, of_others)


def choose_source_calibrations(
    held_out: HoldOut, model: StagedModel, cases: Sequence[str]
) -> dict[str, FittedCalibration]:
    """`choose_calibration` for each source of a unified data set that has patients with objects enough."""
    result = {}
    for source, own in cases_by_source(cases).items():
        held_out.leave_if_asked()
        # Without those of one patient the others have to suffice, too.
        if num_informative(held_out, own) > FEWEST_FOR_CALIBRATION:
            result[source] = choose_calibration(held_out, model, own)
    return result


def held_out_logits(
    held_out: HoldOut, model: StagedModel, cases: Sequence[str], near_only: bool = False
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Logits of p_det and coded labels (1, K, V) at some voxels of held-out cases, the weights of the voxels (V,), and
    how many voxels are of each case.

    Args:
        held_out, model: as trained.
        cases: where to look.
        near_only: leave out the voxels far from all foreground.
    """
    logits, targets, weights = [], [], []
    generator = np.random.default_rng(held_out.seed)
    for case_id in cases:
        stored = held_out.data.open(case_id)
        tiles = tiled(held_out, model, stored)
        z = tiles.det_logits()[(slice(None), *tiles.grid.inner)].cpu()
        p = probabilities_from_logits(z[None], held_out.labels.coding)[0]
        chosen = scored_voxels(p, held_out, stored, generator, near_only)
        found = z.flatten(1)[:, chosen.indices]
        found[open_channels(held_out, stored)] = 0.0  # which `fit_calibrations` leaves out
        logits.append(found)
        targets.append(chosen.target)
        weights.append(chosen.weights)
    counts = [len(w) for w in weights]
    return torch.cat(logits, dim=1)[None], torch.cat(targets, dim=1)[None], torch.cat(weights), counts


def fit_calibrations(
    logits: Tensor,
    target: Tensor,
    weights: Tensor,
    coding: Coding,
    owners: Tensor,
    num_groups: int,
    parts: Sequence[str] = (),
) -> tuple[LogitCalibration, list[LogitCalibration]]:
    """The likeliest of DIVISORS and SOFT_CAPS for all voxels, and for those of all groups but each.

    Losses are sums over voxels, so one pass over them gives every group's part. A single group has no others, and
    gets the calibration of all.

    Args:
        logits, target: (1, K, V). A sigmoid channel counts where its logit is not 0, which no calibration changes: so
            are channels that are not annotated.
        weights: (V,).
        owners: (V,), the number of the group that a voxel belongs to, from 0 to `num_groups` - 1.
        parts: the source that each group is of, in a unified data set: the mean over sources counts.
    """

    def losses(tried: Sequence[LogitCalibration], part: Tensor | slice) -> Tensor:
        """(len(tried), num_groups), of some voxels."""
        z, x, weight, owner = logits[..., part], target[..., part], weights[part].double(), owners[part]
        table = torch.zeros(len(tried), num_groups, dtype=torch.float64)
        for row, calibration in zip(table, tried, strict=True):
            row.index_add_(0, owner, weight * _loss(z, x, coding, calibration)[0])
        return table

    # Every voxel is divided by one of the two (of regions each channel), so that each can be fitted alone.
    found = (foreground_log_odds(logits, coding) > 0).any(dim=1)[0]
    backgrounds = [LogitCalibration(1.0, value) for value in DIVISORS]
    foregrounds = [LogitCalibration(value, 1.0, soft_cap) for soft_cap in (None, *SOFT_CAPS) for value in DIVISORS]
    of_background, of_foreground = losses(backgrounds, slice(None)), losses(foregrounds, found)
    handicap = torch.tensor([1.0 if t.soft_cap else 1.0 - SOFT_CAP_GAIN for t in foregrounds], dtype=torch.float64)
    counts, counts_found = (torch.bincount(v, minlength=num_groups) for v in (owners, owners[found]))

    sizes = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, owners, weights.double())

    def scales(groups: Tensor) -> Tensor:
        """(num_groups,), by which sums over voxels become the mean over the parts of these groups."""
        found = torch.ones(num_groups, dtype=torch.float64)
        for part in dict.fromkeys(parts):
            own = torch.tensor([one == part for one in parts])
            found[own] = 1 / sizes[own & groups].sum().clamp_min(1.0)
        return found

    def best(groups: Tensor) -> LogitCalibration:
        """Of the voxels of some groups (num_groups,)."""
        scale = scales(groups)
        if not counts[groups].any():
            return LogitCalibration()
        background = backgrounds[int((of_background * scale)[:, groups].sum(dim=1).argmin())].background
        if not counts_found[groups].any():
            return LogitCalibration(background=round(background, 3))
        chosen = foregrounds[int(((of_foreground * scale)[:, groups].sum(dim=1) * handicap).argmin())]
        return LogitCalibration(round(chosen.foreground, 3), round(background, 3), chosen.soft_cap)

    of_all = best(torch.ones(num_groups, dtype=torch.bool))
    if num_groups < 2:
        return of_all, [of_all] * num_groups
    return of_all, [best(torch.arange(num_groups) != group) for group in range(num_groups)]


def _loss(logits: Tensor, target: Tensor, coding: Coding, calibration: LogitCalibration) -> Tensor:
    """Cross-entropy of each voxel (1, V), sigmoid channels averaged over those with a logit.

    A channel without one would add a constant log 2, of which SOFT_CAP_GAIN would be a fraction, too.
    """
    calibrated = calibrate(logits, coding, calibration)
    if coding == "softmax":
        return cross_entropy(calibrated, target, coding)
    counts = logits != 0
    return (channel_cross_entropy(calibrated, target) * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)
