"""Between label channels, logits, probabilities and the diffusion's x in [-1, +1].

A binary task has one sigmoid channel, integer classes one softmax channel each (background included), regions one
sigmoid channel each (`LabelScheme.coding`). The channel axis is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Temperature:
    """What divides a segmenter's logits (Guo et al. 2017), one number where it says foreground, one where background.

    A segmenter trained with Dice is too sure of the objects that it finds, and right about the background far from any.
    One temperature for both would have to lie: high enough for objects, it lifts all of the background.
    """

    foreground: float = 1.0
    background: float = 1.0

    def __post_init__(self) -> None:
        for name in ("foreground", "background"):
            if not getattr(self, name) > 0:
                raise ValueError(f"the temperature of the {name} is {getattr(self, name)}; it must be above 0")


NO_TEMPERATURE = Temperature()


def temper(logits: Tensor, coding: Coding, temperature: Temperature) -> Tensor:
    """Logits (B, C, *spatial) in fp32 divided by the temperature of what they decide for; no decision changes."""
    z = logits.float()
    if temperature.foreground == temperature.background:
        return z / temperature.foreground
    found = z[:, 1:].amax(dim=1, keepdim=True) > z[:, :1] if coding == "softmax" else z > 0
    return z / torch.where(found, temperature.foreground, temperature.background)


def probabilities_from_logits(logits: Tensor, coding: Coding, temperature: Temperature = NO_TEMPERATURE) -> Tensor:
    """Probabilities (B, C, *spatial) in fp32 from tempered logits."""
    scaled = temper(logits, coding, temperature)
    return scaled.softmax(dim=1) if coding == "softmax" else scaled.sigmoid()


def bounded_logits(logits: Tensor, coding: Coding, temperature: Temperature = NO_TEMPERATURE) -> Tensor:
    """Logits in fp32 that the denoiser may add to: detached, tempered, limited to +-10 so that it can overrule them.

    Softmax logits are centred first, since only differences between channels count.
    """
    scaled = temper(logits.detach(), coding, temperature)
    if coding == "softmax":
        scaled = scaled - scaled.mean(dim=1, keepdim=True)
    return scaled.clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)


def nested_probabilities(p: Tensor, nesting: Sequence[tuple[int, int]]) -> Tensor:
    """Probabilities (N, C, *spatial) in which no region is likelier than one that it lies within.

    One random number per voxel then draws all regions of a mask without any leaving those around it.

    Args:
        nesting: `LabelScheme.nesting`, outer regions settled before those within them.
    """
    if not nesting:
        return p
    channels = list(p.unbind(dim=1))
    for inner, outer in nesting:
        channels[inner] = torch.minimum(channels[inner], channels[outer])
    return torch.stack(channels, dim=1)


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
