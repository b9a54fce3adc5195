"""Between label channels, logits, probabilities and the diffusion's x in [-1, +1].

A binary task has one sigmoid channel, integer classes one softmax channel each (background included), regions one
sigmoid channel each (`LabelScheme.coding`). The channel axis is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from unisegdiff_pipeline.core.bounds import Range
from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.core.serialization import formerly

Divisor = Annotated[float, Range(1e-3, 1e3)]
LOG_ODDS_LIMIT = 10.0
LEAST_PROBABILITY = 5e-4  # of an estimate of x_0


def mask_to_x(mask: Tensor) -> Tensor:
    """{0, 1} channels, or probabilities, to x in [-1, +1]."""
    return 2 * mask - 1


def x_to_probabilities(x: Tensor, coding: Coding) -> Tensor:
    """An estimate of x_0 to probabilities (x + 1) / 2, kept off 0 and 1 and renormalised for softmax coding."""
    p = ((x + 1) / 2).clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return p / p.sum(dim=1, keepdim=True) if coding == "softmax" else p


@dataclass(frozen=True)
class LogitCalibration:
    """What calibrates a segmenter's logits: they are divided (Guo et al. 2017), and those of foreground levelled.

    One number divides where it says foreground, another where it says background.

    A segmenter trained with Dice is too sure of the objects that it finds, and right about the background far from any.
    One temperature for both would have to lie: high enough for objects, it lifts all of the background.

    Where it is the object as a whole that is in doubt, as where annotators disagree on whether there is any, its middle
    is no surer than its parts near the edge. Divided logits keep the middle the surest; a soft cap makes it level.

    Attributes:
        foreground, background: above 0.
        soft_cap: of the log odds of foreground, above 0; they approach it as L tanh(z / L). None: there is none. Odds
            between classes stay: that there is anything may be in doubt where it is sure what it would be.
    """

    foreground: Divisor = 1.0
    background: Divisor = 1.0
    soft_cap: Divisor | None = field(default=None, metadata=formerly("ceiling"))

    def __post_init__(self) -> None:
        for name in ("foreground", "background", "soft_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of the calibration is {value}; it must be above 0")

    def describe(self) -> str:
        """In words, for logs."""
        soft_cap = "" if self.soft_cap is None else f" (log odds below {self.soft_cap:g})"
        return f"{self.foreground:g} for foreground{soft_cap} and {self.background:g} for background"


NO_CALIBRATION = LogitCalibration()


def calibrate(logits: Tensor, coding: Coding, calibration: LogitCalibration) -> Tensor:
    """Logits (B, C, *spatial) in fp32 at the temperature of what they decide for; no decision changes."""
    z = logits.float()
    if calibration.foreground == calibration.background and calibration.soft_cap is None:
        return z / calibration.foreground
    odds = foreground_log_odds(z, coding)
    found = odds > 0
    z = z / torch.where(found, calibration.foreground, calibration.background)
    if calibration.soft_cap is None:
        return z
    odds = odds / calibration.foreground
    excess = torch.where(found, odds - calibration.soft_cap * torch.tanh(odds / calibration.soft_cap), 0.0)
    return torch.cat([z[:, :1] + excess, z[:, 1:]], dim=1) if coding == "softmax" else z - excess


def foreground_log_odds(logits: Tensor, coding: Coding) -> Tensor:
    """By how much logits (B, C, *spatial) say foreground: of each sigmoid channel, or of the likeliest class.

    Returns (B, C, *spatial), or (B, 1, *spatial) for softmax coding.
    """
    return logits[:, 1:].amax(dim=1, keepdim=True) - logits[:, :1] if coding == "softmax" else logits


def probabilities_from_logits(logits: Tensor, coding: Coding, calibration: LogitCalibration = NO_CALIBRATION) -> Tensor:
    """Probabilities (B, C, *spatial) in fp32 from tempered logits."""
    scaled = calibrate(logits, coding, calibration)
    return scaled.softmax(dim=1) if coding == "softmax" else scaled.sigmoid()


def bounded_logits(logits: Tensor, coding: Coding, calibration: LogitCalibration = NO_CALIBRATION) -> Tensor:
    """Logits in fp32 that the denoiser may add to: detached, tempered, limited to +-10 so that it can overrule them.

    Softmax logits are centred first, since only differences between channels count.
    """
    scaled = calibrate(logits.detach(), coding, calibration)
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
    return channel_cross_entropy(logits, target).mean(dim=1)


def channel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sigmoid channel of each voxel, fp32, (B, C, *spatial)."""
    return functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")


def cross_entropy_of_probabilities(p: Tensor, target: Tensor, coding: Coding) -> Tensor:
    """As `cross_entropy`, from probabilities that are bounded away from 0 and 1."""
    if coding == "softmax":
        return -(target * p.log()).sum(dim=1)
    return -(target * p.log() + (1 - target) * torch.log1p(-p)).mean(dim=1)
