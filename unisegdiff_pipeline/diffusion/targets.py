"""What the two heads mean in each stage, and the state that a sampler moves on.

The network says p, the probability of the clean mask, and h, a correction of the noise that p implies:

    x_0 = 2 p - 1                    e = (x_t - a x_0) / s + h

Stage A reads the clean mask from x_0 alone: inverting the noise there divides by a -> 0. Stage C reads it from the
noise, (x_t - s e) / a: the mask is nearly known and the inversion is stable. Stage B blends both with the weights of
Salimans & Ho 2022, "Progressive Distillation", eq. 10: s^2 x_0 + a (x_t - s e). Put e in and x_t drops out:

    A: x_0        B: x_0 - a s h        C: x_0 - (s / a) h

so that everything a sampler needs of a call is p and h, and h = 0 gives x_0 in every stage.

One target for all noise levels, to compare with: "x0" reads the mask as stage A does, "epsilon" as stage C, and "v"
(Salimans & Ho 2022, section 4: v = a e - s x_0, so that x_0 = a x_t - s v) as x_0 - s h, where h corrects the v that p
implies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import mask_to_x, x_to_probabilities
from unisegdiff_pipeline.diffusion.schedule import StageEdges, alpha_sigma, channel_lam, expand_to

STAGE_A, STAGE_B, STAGE_C = 0, 1, 2
STAGE_NAMES = ("A", "B", "C")


@dataclass(frozen=True)
class Estimate:
    """What a denoiser says of x_t: p of the clean mask and h, the correction of the noise; (B, C, *spatial), fp32."""

    probabilities: Tensor
    correction: Tensor


def stage_of(lam: Tensor, edges: StageEdges) -> Tensor:
    """Stage index (0 = A, 1 = B, 2 = C) of each lam; lam_a itself belongs to B, lam_c to C."""
    return (lam >= edges.lam_a).long() + (lam >= edges.lam_c).long()


def correction_weight(lam: Tensor, edges: StageEdges, mask_lam: Tensor | None = None) -> Tensor:
    """How much of h enters the state (see above): in stages 0, a s or s / a; in the shape of `channel_lam`.

    `mask_lam` is that of the channels (see `NoiseLevel`) where examples are scaled otherwise than `edges` says.
    """
    a, s = alpha_sigma(channel_lam(lam, edges) if mask_lam is None else mask_lam)
    inverted = s / a.clamp_min(1e-3)
    if edges.target != "staged":
        return {"x0": torch.zeros_like(s), "v": s, "epsilon": inverted}[edges.target]
    stage = expand_to(stage_of(lam, edges), a.ndim)
    return torch.where(stage == STAGE_A, 0.0, torch.where(stage == STAGE_B, a * s, inverted))


def state_estimate(lam: Tensor, estimate: Estimate, edges: StageEdges, mask_lam: Tensor | None = None) -> Tensor:
    """The clean mask that the sampler's state moves towards, in [-1, 1]; `mask_lam` as in `correction_weight`."""
    x0 = mask_to_x(estimate.probabilities)
    weight = correction_weight(lam, edges, mask_lam)
    if not bool(weight.any()):
        return x0
    return torch.addcmul(x0, estimate.correction, -expand_to(weight, x0.ndim)).clamp_(-1, 1)


def takes_state(lam: Tensor, edges: StageEdges) -> Tensor:
    """Whether `final_probabilities` takes them from `state_estimate`, boolean (B,)."""
    if edges.target == "staged":
        return stage_of(lam, edges) == STAGE_C
    return torch.full_like(lam, edges.target != "x0", dtype=torch.bool)


def final_probabilities(
    lam: Tensor, estimate: Estimate, edges: StageEdges, coding: Coding, mask_lam: Tensor | None = None
) -> Tensor:
    """Probabilities that a sample ends with: the segmentation head's below lam_c, the inverted noise's above.

    Without stages: those of the head that is trained. `mask_lam` as in `correction_weight`.
    """
    from_state = takes_state(lam, edges)
    if not bool(from_state.any()):
        return estimate.probabilities
    inverted = x_to_probabilities(state_estimate(lam, estimate, edges, mask_lam), coding)
    return torch.where(expand_to(from_state, inverted.ndim), inverted, estimate.probabilities)


def v_error(lam: Tensor, x0_predicted: Tensor, correction: Tensor, x0: Tensor) -> Tensor:
    """Predicted minus true v, h - (x_0 predicted - x_0) / s (v = (a x_t - x_0) / s); `lam` as in `noise_error`."""
    _, s = alpha_sigma(lam)
    return torch.addcmul(correction, x0_predicted - x0, -expand_to(1 / s, x0.ndim))


def noise_error(lam: Tensor, x0_predicted: Tensor, correction: Tensor, x0: Tensor) -> Tensor:
    """Predicted minus true noise, h - (a / s) (x_0 predicted - x_0), without x_t (put both definitions of e in).

    `lam` is that of the channels, (B,) or (B, C).
    """
    a, s = alpha_sigma(lam)
    return torch.addcmul(correction, x0_predicted - x0, -expand_to(a / s, x0.ndim))
