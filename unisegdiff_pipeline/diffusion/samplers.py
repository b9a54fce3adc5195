"""Samplers as functions of (estimate, noise, schedule): from noise to the probabilities of one drawn mask.

`estimate(x_t, lam)` is any callable that says what x_t holds; over a whole volume it tiles, calls the network and
blends, so the same sampler serves a patch and a volume. The state lives in fp32 on the grid of the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import mask_to_x
from unisegdiff_pipeline.diffusion.schedule import (
    PURE_NOISE,
    StageEdges,
    alpha_sigma,
    channel_lam,
    expand_to,
    noise_mask,
)
from unisegdiff_pipeline.diffusion.targets import Estimate, final_probabilities, state_estimate
from unisegdiff_pipeline.io.labels import Coding

EstimateFunction = Callable[[Tensor, float], Estimate]
NoiseFunction = Callable[[int], Tensor]


@dataclass(frozen=True)
class SamplerSettings:
    """How masks are drawn.

    Attributes:
        method: "ddim" moves on deterministically; "renoise" adds fresh noise to the mean; "hard" draws a coherent
            mask between calls and adds fresh noise to it.
        start: "stage_a" makes one call at pure noise and goes on from its answer; "det" goes on from p_det.
        num_calls: network calls from lam_a on; the call of stage A comes on top.
        lam_end: offset of the last call from lam_c.
        correlation_length_mm: of the smooth field that "hard" draws with; 0 draws every voxel on its own.
    """

    method: Literal["ddim", "renoise", "hard"] = "ddim"
    start: Literal["stage_a", "det"] = "stage_a"
    num_calls: int = 4
    lam_end: float = 2.0
    correlation_length_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.num_calls < 0 or (self.num_calls == 0 and self.start == "det"):
            raise ValueError(f"num_calls {self.num_calls} with start {self.start!r} makes no network call; use >= 1")


def lam_schedule(edges: StageEdges, settings: SamplerSettings) -> tuple[float, ...]:
    """The lam of every call, in order; -inf first where a stage A call opens."""
    opening = (PURE_NOISE,) if settings.start == "stage_a" else ()
    last = edges.lam_c + settings.lam_end
    steps = max(settings.num_calls - 1, 1)
    return opening + tuple(edges.lam_a + (last - edges.lam_a) * i / steps for i in range(settings.num_calls))


def sample(
    estimate: EstimateFunction,
    noise: NoiseFunction,
    field: NoiseFunction | None,
    p_det: Tensor,
    edges: StageEdges,
    settings: SamplerSettings,
    coding: Coding,
) -> Tensor:
    """Draw masks; returns the probabilities that the last call ends with, (N, C, *spatial).

    Args:
        estimate: (x_t (N, C, *spatial), lam) => Estimate.
        noise: index of a draw => standard normal (N, C, *spatial); index 0 is the start.
        field: index of a draw => smooth standard normal field (N, C, *spatial), needed by "hard" only.
        p_det: the segmenter's probabilities, broadcastable to (N, C, *spatial).
    """
    lams = lam_schedule(edges, settings)
    x = noise(0)
    if settings.start == "det":
        x = noise_mask(mask_to_x(p_det), channel_lam(_lam_tensor(lams[0], x), edges), x)
    for call, lam in enumerate(lams):
        found = estimate(x, lam)
        lam_t = _lam_tensor(lam, x)
        if call == len(lams) - 1:
            return final_probabilities(lam_t, found, edges, coding)
        lam_next = channel_lam(_lam_tensor(lams[call + 1], x), edges)
        x0 = state_estimate(lam_t, found, edges)
        if settings.method == "ddim":
            x = ddim_step(x, x0, channel_lam(lam_t, edges), lam_next)
        elif settings.method == "renoise":
            x = noise_mask(x0, lam_next, noise(call + 1))
        else:
            if field is None:
                raise ValueError('method "hard" needs a field; pass one or use "ddim"')
            drawn = coherent_draw(final_probabilities(lam_t, found, edges, coding), field(call), coding)
            x = noise_mask(mask_to_x(drawn), lam_next, noise(call + 1))
    raise AssertionError("a schedule has at least one call")


def ddim_step(x_t: Tensor, x0: Tensor, lam: Tensor, lam_next: Tensor) -> Tensor:
    """x_next = a' x_0 + s' e with e = (x_t - a x_0) / s (Song et al. 2021, "DDIM", eq. 12 at eta = 0)."""
    (a, s), (a_next, s_next) = alpha_sigma(lam), alpha_sigma(lam_next)
    kept = expand_to(s_next / s, x_t.ndim)
    moved = expand_to(a_next - a * s_next / s, x_t.ndim)
    return torch.addcmul(kept * x_t, x0, moved)


def coherent_draw(p: Tensor, field: Tensor, coding: Coding) -> Tensor:
    """A hard mask with exact marginals p whose neighbouring voxels agree, {0, 1} (N, C, *spatial).

    Sigmoid channels: [p > u] with u = Phi(field); one field serves all regions of a sample, so that nested regions
    stay nested. Softmax: argmax of log p - log(-log Phi(field_c)), the Gumbel-max trick with correlated fields.

    Args:
        field: standard normal at every voxel, correlated between neighbours, (N, C, *spatial).
    """
    u = torch.special.ndtr(field).clamp(1e-7, 1 - 1e-7)
    if coding != "softmax":
        return (p > u[:, :1]).to(p.dtype)
    gumbel = p.clamp_min(1e-12).log() - torch.log(-torch.log(u))
    return torch.zeros_like(p).scatter_(1, gumbel.argmax(dim=1, keepdim=True), 1.0)


def _lam_tensor(lam: float, like: Tensor) -> Tensor:
    assert not math.isnan(lam)
    return torch.full((like.shape[0],), lam, dtype=torch.float32, device=like.device)

