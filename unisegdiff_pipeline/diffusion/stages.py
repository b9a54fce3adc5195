"""Which noise levels training sees: stratified over the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges
from unisegdiff_pipeline.diffusion.targets import STAGE_A, STAGE_B, stage_of

STAGE_MARGIN = 4.0  # nats that stages A and C reach beyond the edges
TRUNCATED_START_FRACTION = 0.25  # fraction of stage B that trains the start from the segmenter's mean at lam_a


@dataclass(frozen=True)
class StageDraw:
    """Noise levels of one training batch, each of shape (B,).

    Attributes:
        lam: log signal-to-noise ratio, -inf for pure noise.
        stage: 0 = A, 1 = B, 2 = C.
        from_mean: True where x_t is made from the segmenter's mean 2 p_det - 1 instead of the true mask.
    """

    lam: Tensor
    stage: Tensor
    from_mean: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> StageDraw:
        """The draw with every tensor changed in the same way."""
        return StageDraw(change(self.lam), change(self.stage), change(self.from_mean))


def draw_unstaged(num_patches: int, levels_per_patch: int, edges: StageEdges, generator: torch.Generator) -> StageDraw:
    """As `draw_stages` without stages: lam uniform over the range of all of them, but pure noise as often as there.

    The levels of a patch fall into equal parts of [lam_a - 4, lam_c + 4], one each; a sixth is pure noise instead.
    """
    count = num_patches * levels_per_patch
    u, v = torch.rand(2, count, generator=generator)
    low, high = edges.lam_a - STAGE_MARGIN, edges.lam_c + STAGE_MARGIN
    lam = low + (high - low) * (torch.arange(count) % levels_per_patch + u) / levels_per_patch
    lam = torch.where(v < 1 / 6, torch.full_like(u, PURE_NOISE), lam)
    return StageDraw(lam, stage_of(lam, edges), torch.zeros(count, dtype=torch.bool))


def draw_stages(num_patches: int, levels_per_patch: int, edges: StageEdges, generator: torch.Generator) -> StageDraw:
    """Draw `levels_per_patch` noise levels for each patch, a third of them in each stage; order: patch-major.

    A: half pure noise, half uniform in [lam_a - 4, lam_a]. B: uniform in [lam_a, lam_c], a quarter exactly at lam_a
    from the segmenter's mean. C: uniform in [lam_c, lam_c + 4].
    """
    if levels_per_patch % 3:
        raise ValueError(f"levels_per_patch {levels_per_patch} must be a multiple of 3, one third for each stage")
    count = num_patches * levels_per_patch
    stage = torch.arange(count) % 3
    u, v = torch.rand(2, count, generator=generator)
    lam_a_draw = torch.where(v < 0.5, torch.full_like(u, PURE_NOISE), edges.lam_a - STAGE_MARGIN * u)
    from_mean = (stage == STAGE_B) & (v < TRUNCATED_START_FRACTION)
    lam_b_draw = torch.where(from_mean, torch.full_like(u, edges.lam_a), edges.lam_a + (edges.lam_c - edges.lam_a) * u)
    lam_c_draw = edges.lam_c + STAGE_MARGIN * u
    lam = torch.where(stage == STAGE_A, lam_a_draw, torch.where(stage == STAGE_B, lam_b_draw, lam_c_draw))
    return StageDraw(lam, stage, from_mean)
