"""Losses per example, so that stages can be weighted apart: Dice, and the three stages' mixtures.

Every function returns one number an example, shape (B,), and leaves voxels with valid = 0 out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import (
    cross_entropy,
    cross_entropy_of_probabilities,
    probabilities_from_logits,
    x_to_probabilities,
)
from unisegdiff_pipeline.diffusion.schedule import expand_to

DICE_SMOOTH = 1e-5
SNR_CUT = 5.0  # min-SNR weighting (Hang et al. 2023, eq. 6) with gamma = 5
LOG_VARIANCE_LIMIT = 3.0


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the voxels with valid = 1, (B, *spatial) => (B,); 0 for an example without any."""
    weights = valid.flatten(1)
    return (values.flatten(1) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def soft_dice(p: Tensor, target: Tensor, valid: Tensor, coding: Coding, batch_dice: bool = False) -> Tensor:
    """Soft Dice averaged over foreground channels => (B,); nnU-Net's form 2 |pt| / (|p| + |t|), smoothed.

    Args:
        p, target: (B, C, *spatial); valid: (B, 1, *spatial).
        batch_dice: sums run over the whole batch, as if it were one image (every example gets the same value).
    """
    first = 1 if coding == "softmax" else 0
    p, t = p[:, first:], target[:, first:]
    p, t = (p * valid).flatten(2), (t * valid).flatten(2)  # (B, C, V)
    overlap, size = (p * t).sum(dim=2), p.sum(dim=2) + t.sum(dim=2)  # (B, C)
    if batch_dice:
        overlap, size = (v.sum(dim=0, keepdim=True).expand_as(v) for v in (overlap, size))
    return ((2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH).clamp_min(1e-8)).mean(dim=1)


def mask_loss(
    logits: Tensor, target: Tensor, valid: Tensor, coding: Coding, dice_weight: float = 0.0, batch_dice: bool = False
) -> Tensor:
    """Cross-entropy + dice_weight * (1 - Dice) => (B,)."""
    loss = masked_mean(cross_entropy(logits, target, coding), valid[:, 0])
    if dice_weight == 0:
        return loss
    dice = soft_dice(probabilities_from_logits(logits, coding), target, valid, coding, batch_dice)
    return loss + dice_weight * (1 - dice)


def noise_loss(error: Tensor, valid: Tensor) -> Tensor:
    """Mean square of the noise's error => (B,)."""
    return masked_mean(error.square().mean(dim=1), valid[:, 0])


def refinement_loss(
    lam: Tensor, error: Tensor, x0_inverted: Tensor, target: Tensor, valid: Tensor, coding: Coding
) -> Tensor:
    """Stage C: noise error weighted by min(SNR, 5) / SNR, plus 0.1 cross-entropy on the inverted x_0 => (B,).

    `lam` is that of the examples (B,) or of their channels (B, C).
    """
    snr = expand_to(lam.exp(), error.ndim)
    weighted = noise_loss(error * (snr.clamp_max(SNR_CUT) / snr).sqrt(), valid)
    p = x_to_probabilities(x0_inverted, coding)
    return weighted + 0.1 * masked_mean(cross_entropy_of_probabilities(p, target, coding), valid[:, 0])


def weight_by_log_variance(losses: Tensor, log_variance: Tensor) -> Tensor:
    """Learned weighting L exp(-u) + u (Kendall et al. 2018; Karras et al. 2024).

    Keep u within +-LOG_VARIANCE_LIMIT by clamping the parameter after each step: clamped here, it would lose its
    gradient at the limit and never come back.
    """
    return losses * torch.exp(-log_variance) + log_variance
