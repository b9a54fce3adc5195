"""The denoiser: a small U-Net at half resolution that reads a noised mask with the segmenter's features beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel, alpha_sigma, expand_to
from unisegdiff_pipeline.networks.blocks import (
    CONV,
    TRANSPOSED_CONV,
    FilmConv,
    LamEmbedding,
    depth_to_space,
    space_to_depth,
)
from unisegdiff_pipeline.networks.layout import channels_innermost
from unisegdiff_pipeline.networks.sources import SourceConditioning, SourceTable
from unisegdiff_pipeline.networks.unet import condition_levels
from unisegdiff_pipeline.planning.plans import DenoiserPlan, NetworkPlan

EMBEDDING_WIDTH = 64
NOISE_LIMIT = 8.0  # implied noise beyond this many standard deviations says no more than that p_det is wrong there
# Sixty-four weights that move together would carry g and k past their aim within twenty steps of Adam.
GAIN_RATE = 0.125
EVIDENCE_LIMIT = 20.0  # log odds beyond which a voxel's noised value says no more


@dataclass(frozen=True)
class Condition:
    """What a patch says, whatever the noise.

    Attributes:
        det_logits: the segmenter's (B, C, *patch), fp32; batch size 1 serves any number of masks.
        features: `Denoiser.project_features` of the patch, a tensor a level; empty for a model without a denoiser.
        source: of the patches (B,) int64, or (1,) for all, 0 for an unknown one; None where that is all.
    """

    det_logits: Tensor
    features: tuple[Tensor, ...]
    source: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same function of the logits, of the features of all levels and of sources that are not one for all."""
        source = self.source if self.source is None or len(self.source) == 1 else function(self.source)
        features = tuple(function(f) for f in self.features)
        return replace(self, det_logits=function(self.det_logits), features=features, source=source)


@dataclass(frozen=True)
class Guide(Condition):
    """A condition as the denoiser takes it, the same at every noise level: made once a patch.

    Its logits are bounded, and zero for examples that must do without them.

    Attributes:
        x_det: the segmenter's mask by these logits, in [-1, 1] and in their shape.
    """

    x_det: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, condition: Condition, bounded: Tensor, coding: Coding) -> Guide:
        """The guide of a condition whose logits are bounded to these."""
        x_det = mask_to_x(probabilities_from_logits(bounded, coding))
        return cls(bounded, condition.features, condition.source, x_det=x_det)

    def each(self, function: Callable[[Tensor], Tensor]) -> Self:
        """As of a condition; of `x_det`, too."""
        return replace(super().each(function), x_det=function(self.x_det))

    def hidden(self, keep: Tensor, coding: Coding) -> Guide:
        """Without the logits of the examples whose `keep` (B,) is 0; the others have 1."""
        kept = expand_to(keep, self.x_det.ndim)
        unknown = 2 / self.x_det.shape[1] - 1 if coding == "softmax" else 0.0
        return replace(self, det_logits=self.det_logits * kept, x_det=torch.where(kept > 0, self.x_det, unknown))


class DenoiserOutput(NamedTuple):
    """Logits of the clean mask and what is added to the implied noise, both (B, C, *patch), fp32.

    The latter is 0 where it was not asked for.
    """

    x0_logits: Tensor
    noise_correction: Tensor


class Denoiser(nn.Module):
    """x_0 logits = g(lam) logit(p_det) + k(lam) E + h, and a correction h_e of the noise; k, h and h_e start at zero.

    At the first step every estimate of x_0 therefore equals the segmenter's; see `StagedModel.denoise`.

    E = 2 a x_t / s^2 is what the noised mask says of a voxel by itself, in log odds: were the voxels independent, the
    posterior would be logit(p_det) + E by Bayes' rule (k = 1). Its size runs over orders of magnitude with lam, which
    a network with norms cannot follow; here a number for each lam does it, and h is left with what neighbours say.

    Beside the noised mask the network sees what the segmenter says of each voxel, x_det = 2 p_det - 1, and the noise
    that this implies, (x_t - a x_det) / s: where p_det is wrong it stands out as an outlier, and both corrections are
    functions of it. Without these inputs h would have to guess p_det from features of half the resolution.

    Args:
        plan: the segmenter's plan; its first stride is the space-to-depth, the next ones lead down.
        denoiser: widths a level.
        num_channels: coded label channels C.
        conditioning: of a unified data set; the source's embedding is added to that of lam.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        denoiser: DenoiserPlan,
        num_channels: int,
        conditioning: SourceConditioning | None = None,
    ) -> None:
        super().__init__()
        levels = condition_levels(plan)[: len(denoiser.features)]
        widths, dims = denoiser.features[: len(levels)], plan.dims
        ones = (1,) * dims
        self.stride = levels[0].stride
        packed = num_channels * math.prod(self.stride)
        self.embedding = LamEmbedding(EMBEDDING_WIDTH)
        self.project = nn.ModuleList(
            CONV[dims](level.features, width, ones) for level, width in zip(levels, widths, strict=True)
        )
        self.stem = CONV[dims](3 * packed, widths[0], ones)
        self.down, self.encode, self.up, self.decode = (nn.ModuleList() for _ in range(4))
        for i, (level, width) in enumerate(zip(levels, widths, strict=True)):
            if i > 0:
                self.down.append(CONV[dims](widths[i - 1], width, level.stride, level.stride))
            self.encode.append(FilmConv(dims, width, width, level.kernel, ones, EMBEDDING_WIDTH))
        for (fine, width), (coarse, below) in itertools.pairwise(zip(levels, widths, strict=True)):
            self.up.append(TRANSPOSED_CONV[dims](below, width, coarse.stride, coarse.stride))
            self.decode.append(FilmConv(dims, width, width, fine.kernel, ones, EMBEDDING_WIDTH))
        self.head = CONV[dims](widths[0], 2 * packed, ones)
        self.gain = nn.Linear(EMBEDDING_WIDTH, 2)  # g(lam) = 1 + rate * gain[0], k(lam) = rate * gain[1]
        for layer in (self.head, self.gain):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.source_embedding: SourceTable | None = None
        if conditioning is not None and conditioning.film:
            self.source_embedding = SourceTable(conditioning.num_sources, EMBEDDING_WIDTH)

    def project_features(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Bring the segmenter's features to the denoiser's widths; once a patch, whatever the number of calls."""
        return tuple(project(f) for project, f in zip(self.project, features, strict=False))

    def blocks(self, values: Tensor) -> Tensor:
        """(B, C, *patch) => (B, C, voxels of a block, *blocks): as the network packs masks, with the channels apart.

        What goes voxel by voxel may be computed so, and `forward` then has nothing to pack or unpack.
        """
        return space_to_depth(values, self.stride).unflatten(1, (values.shape[1], -1))

    def whole(self, blocks: Tensor) -> Tensor:
        """The inverse of `blocks`."""
        return depth_to_space(blocks.flatten(1, 2), self.stride)

    def forward(self, x_t: Tensor, level: NoiseLevel, guide: Guide, corrected: bool = True) -> DenoiserOutput:
        """Denoise once; the output has the shape of x_t.

        Args:
            x_t: noised mask (B, C, *patch), or the `blocks` of it if those of the guide are `blocks`, too.
            level: of x_t.
            guide: of the patch.
            corrected: False leaves the correction of the noise at 0, for those who do not read it.
        """
        projected, mask_lam = guide.features, level.mask_lam
        embedded = self.embedding(level.lam)
        if self.source_embedding is not None and guide.source is not None:
            embedded = embedded + self.source_embedding(guide.source).to(embedded.dtype)
        inputs, in_blocks = self.inputs(x_t, mask_lam, guide.x_det), x_t.ndim > 2 + len(self.stride)
        packed = inputs.flatten(1, 2) if in_blocks else space_to_depth(inputs, self.stride)
        x = self.stem(channels_innermost(packed)) + projected[0]
        skips = []
        for i, encode in enumerate(self.encode):
            if i > 0:
                x = self.down[i - 1](x) + projected[i]
            x = encode(x, embedded)
            skips.append(x)
        for i in reversed(range(len(self.decode))):
            x = self.decode[i](self.up[i](x) + skips[i], embedded)
        packed = self.head(x)
        if not corrected:
            packed = packed.chunk(2, dim=1)[0]
        if in_blocks:
            found = packed.contiguous().float().unflatten(1, (-1, math.prod(self.stride)))
        else:
            found = depth_to_space(packed.float(), self.stride)
        if corrected:
            logits, noise = found.chunk(2, dim=1)
        else:
            logits, noise = found, torch.zeros_like(found[:1, :1]).expand_as(found)
        gain, weight = (expand_to(v, x_t.ndim) for v in (GAIN_RATE * self.gain(embedded).float()).split(1, dim=1))
        logits = torch.addcmul(logits, 1 + gain, guide.det_logits)
        return DenoiserOutput(torch.addcmul(logits, weight, voxel_evidence(x_t, mask_lam)), noise)

    def inputs(self, x_t: Tensor, lam: Tensor, x_det: Tensor) -> Tensor:
        """(B, 3 C, *patch): the noised mask, the segmenter's x and the noise it implies."""
        a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(lam))
        x_det = x_det.expand_as(x_t)
        noise = torch.addcmul(x_t, x_det, -a).div_(s).clamp_(-NOISE_LIMIT, NOISE_LIMIT)
        # Already in the format that the convolution will take: joining and packing full resolution is half the traffic.
        kind = x_t.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_t.dtype
        return torch.cat([v.to(dtype) for v in (x_t, x_det, noise)], dim=1)


def voxel_evidence(x_t: Tensor, lam: Tensor) -> Tensor:
    """E = 2 a x_t / s^2, the log odds that a noised voxel (B, C, *spatial) adds by itself; bounded. lam (B,) or (B, C).

    log N(x_t; a, s^2) - log N(x_t; -a, s^2) for a sigmoid channel. For one-hot channels log N(x_t; a x_0, s^2) of the
    classes differ by the same numbers.
    """
    a, s = alpha_sigma(lam)
    return (x_t * expand_to(2 * a / s.square(), x_t.ndim)).clamp_(-EVIDENCE_LIMIT, EVIDENCE_LIMIT)


def repeat_examples(values: Tensor, times: int) -> Tensor:
    """(B, ...) => (B * times, ...), each example `times` times in a row."""
    return values if times == 1 else torch.repeat_interleave(values, times, dim=0)
