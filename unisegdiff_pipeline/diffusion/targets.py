"""What the two heads mean in each stage, and the state that a sampler moves on.

Stage A reads x_0 from the segmentation head alone: inverting the noise there divides by a -> 0. Stage C reads it from
the noise head: the mask is nearly known and x_0 = (x_t - s e) / a is stable. Stage B blends both with the weights of
Salimans & Ho 2022, "Progressive Distillation", eq. 10: x = s^2 x_0 + a (x_t - s e), exact at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import mask_to_x, x_to_probabilities
from unisegdiff_pipeline.diffusion.schedule import StageEdges, alpha_sigma, expand_to
from unisegdiff_pipeline.io.labels import Coding

STAGE_A, STAGE_B, STAGE_C = 0, 1, 2
STAGE_NAMES = ("A", "B", "C")


@dataclass(frozen=True)
class Estimate:
    """What a denoiser says of x_t: probabilities of the clean mask and the noise, both (B, C, *spatial), fp32."""

    probabilities: Tensor
    noise: Tensor


def stage_of(lam: Tensor, edges: StageEdges) -> Tensor:
    """Stage index (0 = A, 1 = B, 2 = C) of each lam; lam_a itself belongs to B, lam_c to C."""
    return (lam >= edges.lam_a).long() + (lam >= edges.lam_c).long()


def implied_noise(x_t: Tensor, x0: Tensor, lam: Tensor) -> Tensor:
    """The noise that x_t holds if the clean mask is x0: e = (x_t - a x0) / s."""
    a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(lam))
    return (x_t - a * x0) / s


def inverted_x0(x_t: Tensor, noise: Tensor, lam: Tensor) -> Tensor:
    """The clean mask if x_t holds this noise: x_0 = (x_t - s e) / a; only where a is well above zero."""
    a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(lam))
    return (x_t - s * noise) / a


def state_estimate(x_t: Tensor, lam: Tensor, estimate: Estimate, edges: StageEdges) -> Tensor:
    """The x_0 that the sampler's state moves towards, by stage (see the module's docstring); in [-1, 1]."""
    a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(lam))
    stage = expand_to(stage_of(lam, edges), x_t.ndim)
    x0 = mask_to_x(estimate.probabilities)
    denoised = x_t - s * estimate.noise
    blended = s**2 * x0 + a * denoised
    inverted = denoised / a.clamp_min(1e-3)
    chosen = torch.where(stage == STAGE_A, x0, torch.where(stage == STAGE_B, blended, inverted))
    return chosen.clamp(-1, 1)


def final_probabilities(x_t: Tensor, lam: Tensor, estimate: Estimate, edges: StageEdges, coding: Coding) -> Tensor:
    """Probabilities that a sample ends with: the segmentation head's below lam_c, the inverted noise's above."""
    stage = expand_to(stage_of(lam, edges), x_t.ndim)
    inverted = x_to_probabilities(state_estimate(x_t, lam, estimate, edges), coding)
    return torch.where(stage == STAGE_C, inverted, estimate.probabilities)
