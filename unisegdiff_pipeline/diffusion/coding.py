"""Between label channels, logits, probabilities and the diffusion's x in [-1, +1].

A binary task has one sigmoid channel, integer classes one softmax channel each (background included), regions one
sigmoid channel each (`LabelScheme.coding`). The channel axis is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.io.labels import Coding

LOG_ODDS_LIMIT = 10.0


def mask_to_x(mask: Tensor) -> Tensor:
    """{0, 1} channels, or probabilities, to x in [-1, +1]."""
    return 2 * mask - 1


def x_to_probabilities(x: Tensor, coding: Coding, floor: float = 5e-4) -> Tensor:
    """An estimate of x_0 to probabilities: clamp((x + 1) / 2, floor, 1 - floor), renormalised for softmax coding."""
    p = ((x + 1) / 2).clamp(floor, 1 - floor)
    return p / p.sum(dim=1, keepdim=True) if coding == "softmax" else p


def probabilities_from_logits(logits: Tensor, coding: Coding, temperature: float = 1.0) -> Tensor:
    """Probabilities (B, C, *spatial) in fp32 from logits divided by `temperature`."""
    scaled = logits.float() / temperature
    return scaled.softmax(dim=1) if coding == "softmax" else scaled.sigmoid()


def bounded_logits(logits: Tensor, coding: Coding, temperature: float = 1.0) -> Tensor:
    """Logits in fp32 that the denoiser may add to: detached, tempered, limited to +-10 so that it can overrule them.

    Softmax logits are centred first, since only differences between channels count.
    """
    scaled = logits.detach().float() / temperature
    if coding == "softmax":
        scaled = scaled - scaled.mean(dim=1, keepdim=True)
    return scaled.clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)


def cross_entropy(logits: Tensor, target: Tensor, coding: Coding) -> Tensor:
    """Cross-entropy per voxel, fp32, => (B, *spatial); sigmoid channels are averaged.

    Args:
        logits: (B, C, *spatial).
        target: {0, 1} channels or probabilities, (B, C, *spatial).
    """
    if coding == "softmax":
        return -(target * logits.float().log_softmax(dim=1)).sum(dim=1)
    return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)


def cross_entropy_of_probabilities(p: Tensor, target: Tensor, coding: Coding) -> Tensor:
    """As `cross_entropy`, from probabilities that are bounded away from 0 and 1."""
    if coding == "softmax":
        return -(target * p.log()).sum(dim=1)
    return -(target * p.log() + (1 - target) * torch.log1p(-p)).mean(dim=1)
