"""Losses per example, so that stages can be weighted apart: Dice, and the three stages' mixtures.

Every function returns one number an example, shape (B,), and leaves voxels with valid = 0 out. `valid` has one channel,
or one for each sigmoid channel where not every example says something of every class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import (
    channel_cross_entropy,
    cross_entropy,
    cross_entropy_of_probabilities,
    probabilities_from_logits,
    x_to_probabilities,
)
from unisegdiff_pipeline.diffusion.schedule import expand_to

DICE_SMOOTH = 1e-5
SNR_CUT = 5.0  # min-SNR weighting (Hang et al. 2023, eq. 6) with gamma = 5
LOG_VARIANCE_LIMIT = 3.0

# Takes sums over the voxels of each example (..., B, C) to the sums that its Dice is made of.
Pooling = Callable[[Tensor], Tensor]


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the values with valid = 1, both (B, ...) => (B,); 0 for an example without any."""
    weights = valid.flatten(1)
    return (values.flatten(1) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)


def over_batch(sums: Tensor) -> Tensor:
    """Batch Dice: the whole batch is as one image, so that every example gets the same value."""
    return sums.sum(dim=-2, keepdim=True).expand_as(sums)


def over_groups(group: Tensor) -> Pooling:
    """Batch Dice of each group (B,) by itself; of one group alone it is `over_batch`."""
    same = (group[:, None] == group[None])[..., None]  # (B, B, 1)
    return lambda sums: (same * sums.unsqueeze(-3)).sum(dim=-2)  # no matmul, which autocast would round


def soft_dice(p: Tensor, target: Tensor, valid: Tensor, coding: Coding, pooling: Pooling | None = None) -> Tensor:
    """Soft Dice averaged over foreground channels => (B,); nnU-Net's form 2 |pt| / (|p| + |t|), smoothed.

    Args:
        p, target: (B, C, *spatial); valid: (B, 1, *spatial), or (B, C, *spatial) of sigmoid channels: those without
            a valid voxel are left out of the average.
        pooling: over which examples the sums run; None: over each by itself.
    """
    first = 1 if coding == "softmax" else 0
    p, t = p[:, first:], target[:, first:]
    p, t = (p * valid).flatten(2), (t * valid).flatten(2)  # (B, C, V)
    overlap, size = (p * t).sum(dim=2), p.sum(dim=2) + t.sum(dim=2)  # (B, C)
    if pooling is not None:
        overlap, size = pooling(torch.stack([overlap, size]))
    dice = (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH).clamp_min(1e-8)
    if valid.shape[1] == 1:
        return dice.mean(dim=1)
    known = (valid.flatten(2).amax(dim=2) > 0).to(dice.dtype)
    # 1 for an example of which nothing is known: no loss
    return torch.where(known.any(dim=1), (dice * known).sum(dim=1) / known.sum(dim=1).clamp_min(1), 1.0)


def mask_loss(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    coding: Coding,
    dice_weight: float = 0.0,
    pooling: Pooling | None = None,
) -> Tensor:
    """Cross-entropy + dice_weight * (1 - Dice) => (B,); `pooling` as for `soft_dice`."""
    loss = _masked_cross_entropy(logits, target, valid, coding)
    if dice_weight == 0:
        return loss
    dice = soft_dice(probabilities_from_logits(logits, coding), target, valid, coding, pooling)
    return loss + dice_weight * (1 - dice)


def noise_loss(error: Tensor, valid: Tensor) -> Tensor:
    """Mean square of the noise's error => (B,)."""
    if valid.shape[1] > 1:
        return masked_mean(error.square(), valid)
    return masked_mean(error.square().mean(dim=1), valid[:, 0])


def _masked_cross_entropy(logits: Tensor, target: Tensor, valid: Tensor, coding: Coding) -> Tensor:
    """Mean cross-entropy => (B,), over voxels, or over the valid channels of each where these differ."""
    if valid.shape[1] > 1:
        return masked_mean(channel_cross_entropy(logits, target), valid)
    return masked_mean(cross_entropy(logits, target, coding), valid[:, 0])


def refinement_loss(
    lam: Tensor, error: Tensor, x0_inverted: Tensor, target: Tensor, valid: Tensor, coding: Coding
) -> Tensor:
    """Stage C: noise error weighted by min(SNR, 5) / SNR, plus 0.1 cross-entropy on the inverted x_0 => (B,).

    `lam` is that of the examples (B,) or of their channels (B, C).
    """
    snr = expand_to(lam.exp(), error.ndim)
    weighted = noise_loss(error * (snr.clamp_max(SNR_CUT) / snr).sqrt(), valid)
    p = x_to_probabilities(x0_inverted, coding)
    if valid.shape[1] > 1:
        return weighted + 0.1 * masked_mean(channel_cross_entropy(p.logit(), target), valid)
    return weighted + 0.1 * masked_mean(cross_entropy_of_probabilities(p, target, coding), valid[:, 0])


def weight_by_log_variance(losses: Tensor, log_variance: Tensor) -> Tensor:
    """Learned weighting L exp(-u) + u (Kendall et al. 2018; Karras et al. 2024).

    Keep u within +-LOG_VARIANCE_LIMIT by clamping the parameter after each step: clamped here, it would lose its
    gradient at the limit and never come back.
    """
    return losses * torch.exp(-log_variance) + log_variance
