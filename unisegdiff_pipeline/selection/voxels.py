"""Voxels of a held-out case that calibration and likelihood are judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.hold_out import HoldOut
from unisegdiff_pipeline.selection.spread import annotators

VOXELS_PER_CASE = 20_000  # near foreground, and as many elsewhere
NEAR_FOREGROUND = 0.05
MARGIN_VOXELS = 4


@dataclass(frozen=True)
class ScoredVoxels:
    """Some voxels of a case (V,): flat indices, how many voxels each stands for, and its coded label (K, V)."""

    indices: Tensor
    weights: Tensor
    target: Tensor


def scored_voxels(
    p: Tensor, held_out: HoldOut, stored: StoredCase, generator: np.random.Generator, near_only: bool = False
) -> ScoredVoxels:
    """Voxels near foreground that anybody sees, and voxels elsewhere, at most VOXELS_PER_CASE each.

    Ignored voxels are left out.
    """
    target = _mean_target(held_out, stored)
    first = held_out.labels.foreground_offset
    seen = (p[first:].amax(dim=0) > NEAR_FOREGROUND) | (target[first:].amax(dim=0) > 0)
    side = [1 if length == 1 else 2 * MARGIN_VOXELS + 1 for length in seen.shape]
    margin = [length // 2 for length in side]
    near = functional.max_pool3d(seen[None, None].float(), side, 1, margin)[0, 0] > 0
    counted = torch.ones_like(near)
    if held_out.labels.ignore_value is not None:
        counted &= ~torch.from_numpy(held_out.labels.ignored(stored.labels[0:1][0]))
    indices, weights = [], []
    for part in (near & counted,) if near_only else (near & counted, ~near & counted):
        found = part.flatten().nonzero()[:, 0]
        kept = found
        if len(found) > VOXELS_PER_CASE:
            kept = found[torch.from_numpy(generator.choice(len(found), VOXELS_PER_CASE, replace=False))]
        indices.append(kept)
        weights.append(torch.full((len(kept),), len(found) / max(len(kept), 1)))
    places = torch.cat(indices)
    return ScoredVoxels(places, torch.cat(weights), target.flatten(1)[:, places])


def _mean_target(held_out: HoldOut, stored: StoredCase) -> Tensor:
    """Coded labels (K, Z, Y, X), the mean over the annotators where there are several."""
    rows = [held_out.labels.encode(row) for row in annotators(stored)]
    return torch.from_numpy(np.stack(rows).astype(np.float32)).mean(dim=0)
