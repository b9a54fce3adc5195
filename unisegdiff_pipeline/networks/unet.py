"""The planned U-Net: segmenter of phase 1 and condition network of phase 2."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.networks.blocks import CONV, TRANSPOSED_CONV, ConvNorm, ResidualBlock
from unisegdiff_pipeline.networks.layout import channels_innermost
from unisegdiff_pipeline.networks.sources import ChannelAdapter, SourceConditioning, SourceFilm
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan

NUM_CONDITION_LEVELS = 3
LEAST_FRACTION = 1e-3  # that an untrained network gives to an output, however rare
START_SCALE = 0.1  # of the heads' random weights, so that they do not drown the prior

_BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "plain": ConvNorm,
    "residual": ResidualBlock,
    "resenc": functools.partial(ResidualBlock, norm_skip=True),
}


class SegmenterOutput(NamedTuple):
    """Logits from full resolution downwards (one in eval mode), and features of the first three downsampled levels."""

    logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class SegmentationUNet(nn.Module):
    """U-Net after nnU-Net (Isensee et al. 2021): strided convolutions down, transposed convolutions up.

    Args:
        plan: levels with features, strides and kernels, and the kind of encoder.
        num_outputs: channels of the logits.
        deep_supervision: in training mode, also return logits of every decoder level but the coarsest.
        conditioning: of a unified data set, what tells the network where an image comes from.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        num_outputs: int,
        deep_supervision: bool = True,
        conditioning: SourceConditioning | None = None,
    ) -> None:
        if len(plan.levels) < 2:
            raise UsdError(
                f"the plan's network has {len(plan.levels)} level for patches of {plan.patch_size} voxels, but a U-Net "
                f"needs two: the images are too small at the plan's spacing. Plan with a finer spacing, or pad them."
            )
        super().__init__()
        self.deep_supervision = deep_supervision
        dims, levels = plan.dims, plan.levels
        self.divisor = tuple(math.prod(level.stride[axis] for level in levels) for axis in range(dims))
        inputs = (plan.num_input_channels, *(level.features for level in levels[:-1]))
        self.encoder = nn.ModuleList(
            _encoder_level(dims, count, level, plan.encoder, first=i == 0)
            for i, (count, level) in enumerate(zip(inputs, levels, strict=True))
        )
        self.up, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for fine, coarse in itertools.pairwise(levels):  # index i leads from level i + 1 up to level i
            self.up.append(TRANSPOSED_CONV[dims](coarse.features, fine.features, coarse.stride, coarse.stride))
            ones = (1,) * dims
            convs = plan.decoder_convs(fine)
            self.decoder.append(
                nn.Sequential(
                    *(
                        ConvNorm(dims, fine.features * (2 if i == 0 else 1), fine.features, fine.kernel, ones)
                        for i in range(convs)
                    )
                )
            )
            self.heads.append(CONV[dims](fine.features, num_outputs, ones))
        self.apply(_initialise)
        if plan.encoder == "resenc":
            self.encoder.apply(_start_as_identity)
        self.adapter: ChannelAdapter | None = None
        self.encoder_film, self.decoder_film = nn.ModuleList(), nn.ModuleList()
        if conditioning is not None:
            count = conditioning.num_sources
            if conditioning.adapter:
                self.adapter = ChannelAdapter(count, plan.num_input_channels)
            if conditioning.film:
                self.encoder_film.extend(SourceFilm(count, level.features) for level in levels)
                self.decoder_film.extend(SourceFilm(count, level.features) for level in levels[:-1])

    @torch.no_grad()
    def start_from(self, fractions: Tensor, coding: Coding) -> None:
        """Let the untrained network answer with about the fraction of voxels that each output covers (num_outputs,).

        Lin et al. 2017 (RetinaNet, section 4.1) start at such a prior, since rare foreground is otherwise unlearned
        first: on small nodules the Dice of the first hundreds of iterations is 0 without it.
        """
        p = fractions.float().clamp(LEAST_FRACTION, 1 - LEAST_FRACTION)
        bias = p.log() if coding == "softmax" else p.logit()
        for parameter in self.heads.parameters():
            if parameter.ndim == 1:
                parameter.copy_(bias)
            else:
                parameter.mul_(START_SCALE)

    def forward(self, image: Tensor, source: Tensor | None = None) -> SegmenterOutput:
        """Segment a batch of patches.

        Args:
            image: (B, C, *patch); the patch must divide by `divisor`, the product of strides.
            source: (B,) int64, or (1,) for all, 0 for an unknown one; None where that is all.
        """
        skips = []
        x = channels_innermost(image if source is None or self.adapter is None else self.adapter(image, source))
        for i, level in enumerate(self.encoder):
            x = _film(self.encoder_film, i, level(x), source)
            skips.append(x)
        decoded = {len(skips) - 1: x}
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat([self.up[i](x), skips[i]], dim=1))
            x = _film(self.decoder_film, i, x, source)
            decoded[i] = x
        count = len(self.heads) if self.training and self.deep_supervision else 1
        logits = tuple(self.heads[i](decoded[i]) for i in range(count))
        last = min(NUM_CONDITION_LEVELS, len(skips) - 1)
        return SegmenterOutput(logits, tuple(decoded[i] for i in range(1, last + 1)))


def condition_levels(plan: NetworkPlan) -> tuple[LevelPlan, ...]:
    """The levels whose decoder features condition the denoiser, finest first."""
    return plan.levels[1 : NUM_CONDITION_LEVELS + 1]


def _film(films: nn.ModuleList, level: int, x: Tensor, source: Tensor | None) -> Tensor:
    """Features of a level, scaled and shifted where the network has tables and the source is known."""
    if source is None or not len(films):
        return x
    conditioned: Tensor = films[level](x, source)
    return conditioned


def _encoder_level(dims: int, inputs: int, level: LevelPlan, encoder: str, first: bool) -> nn.Sequential:
    """Blocks of a level; the first of "resenc" begins with a stem, so that images enter all kinds at `encoder.0.0`."""
    ones = (1,) * dims
    has_stem = encoder == "resenc" and first
    stem = (ConvNorm(dims, inputs, level.features, level.kernel, ones),) if has_stem else ()
    entering = (level.features if has_stem else inputs, *(level.features,) * (level.num_convs - 1))
    blocks = (
        _BLOCKS[encoder](dims, count, level.features, level.kernel, level.stride if i == 0 else ones)
        for i, count in enumerate(entering)
    )
    return nn.Sequential(*stem, *blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _start_as_identity(module: nn.Module) -> None:
    """A residual block that adds nothing yet to its skip, as in nnU-Net (Goyal et al. 2017, section 5.1)."""
    if isinstance(module, ResidualBlock) and module.norm.weight is not None:
        nn.init.zeros_(module.norm.weight)
