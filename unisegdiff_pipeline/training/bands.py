"""Attention over timesteps: what training does at each band of lam, measured at negligible cost.

Three numbers a band: the UNWEIGHTED loss, the norm of its gradient, and the Dice of the mask that the network
estimates from one noised mask. They are means over examples and go into the run log as entries of kind "bands".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges
from unisegdiff_pipeline.diffusion.stages import STAGE_MARGIN, StageDraw
from unisegdiff_pipeline.diffusion.targets import stage_of

BAND_WIDTH = 1.5  # nats, about
MAX_BANDS_OF_B = 6
BANDS_OF_A = BANDS_OF_C = 2


@dataclass(frozen=True)
class LamBands:
    """Intervals of lam that do not cross the edges of the stages, between two bands of their own.

    Band 0 is pure noise; bands 1 to N are the intervals [limits[i - 1], limits[i]), the outer ones without end; band
    N + 1 holds the masks that are made from the segmenter's mean instead of the reference, at lam_a.

    Attributes:
        edges: planned edges of the stages.
        limits: N + 1 ascending limits, from lam_a - 4 to lam_c + 4.
    """

    edges: StageEdges
    limits: tuple[float, ...]

    @classmethod
    def of_edges(cls, edges: StageEdges) -> LamBands:
        """Two bands in A, two in C, and bands of about BAND_WIDTH in B, two to MAX_BANDS_OF_B of them."""
        in_b = min(MAX_BANDS_OF_B, max(2, round((edges.lam_c - edges.lam_a) / BAND_WIDTH)))
        spans = (
            (edges.lam_a - STAGE_MARGIN, edges.lam_a, BANDS_OF_A),
            (edges.lam_a, edges.lam_c, in_b),
            (edges.lam_c, edges.lam_c + STAGE_MARGIN, BANDS_OF_C),
        )
        lows = [low + (high - low) * i / count for low, high, count in spans for i in range(count)]
        return cls(edges, (*lows, edges.lam_c + STAGE_MARGIN))

    def __len__(self) -> int:
        return len(self.limits) + 1

    def index(self, lam: Tensor, from_mean: Tensor) -> Tensor:
        """Band of each example, (B,) => (B,)."""
        inner = torch.tensor(self.limits[1:-1], device=lam.device)
        index = torch.bucketize(lam, inner, right=True) + 1  # a limit belongs to the band above it, as in `stage_of`
        index = torch.where(lam == PURE_NOISE, 0, index)
        return torch.where(from_mean, len(self) - 1, index)

    def grid(self, num_patches: int) -> StageDraw:
        """One noise level in the middle of every band for each patch; order: patch-major."""
        middles = [(low + high) / 2 for low, high in zip(self.limits, self.limits[1:], strict=False)]
        lam = torch.tensor([PURE_NOISE, *middles, self.edges.lam_a]).repeat(num_patches)
        from_mean = (torch.arange(len(self)) == len(self) - 1).repeat(num_patches)
        return StageDraw(lam, stage_of(lam, self.edges), from_mean)

    def describe(self) -> dict[str, Any]:
        """What the run log needs to say which bands these are."""
        return {"lam_a": self.edges.lam_a, "lam_c": self.edges.lam_c, "limits": self.limits}


class BandMeter:
    """Means over the examples of each band since they were last taken.

    Args:
        bands: the bands.
        device: where examples are; sums stay there until they are taken, so that no step waits for them.

    Attributes:
        sums: of values and of examples, (columns, 2, bands) float64.
    """

    def __init__(self, bands: LamBands, device: torch.device) -> None:
        self.bands = bands
        self.sums = torch.zeros(len(_COLUMNS), 2, len(bands), dtype=torch.float64, device=device)

    def add(self, band: Tensor, loss: Tensor, dice: Tensor, gradient_norm: Tensor | None = None) -> None:
        """Count examples, all (B,); NaN is left out of the mean of its column."""
        norm = torch.full_like(loss, float("nan")) if gradient_norm is None else gradient_norm
        for sums, values in zip(self.sums, (loss, norm, dice), strict=True):
            known = torch.isfinite(values)
            sums[0].index_add_(0, band, torch.where(known, values, 0).double())
            sums[1].index_add_(0, band, known.double())

    def take(self) -> dict[str, Any]:
        """Means of each band, None where nothing was seen, with the number of examples; counting begins again."""
        sums = self.sums.tolist()
        self.sums.zero_()
        means = {
            name: [total / count if count else None for total, count in zip(totals, counts, strict=True)]
            for name, (totals, counts) in zip(_COLUMNS, sums, strict=True)
        }
        return {**self.bands.describe(), "num_examples": [int(count) for count in sums[0][1]], **means}


_COLUMNS = ("loss", "gradient_norm", "dice")


class LastLayerGradients:
    """Norm of each example's gradient with respect to the weights of a last layer, at no extra backward pass.

    The last layer stands for the network, as in GradNorm (Chen et al. 2018, section 3.1): the gradient of a
    convolution of one voxel is the product of the layer's input and the gradient of its output, summed over voxels, and
    both are there.

    Use as a context around the forward pass, then ask with `then` before the backward pass.

    Args:
        layer: the last one.
        compiled: whether it is part of a compiled network, which would not call the hook that keeps input and output:
            in the context it then computes step by step.
    """

    def __init__(self, layer: nn.Module, compiled: bool = False) -> None:
        self._layer, self._compiled = layer, compiled
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def __enter__(self) -> LastLayerGradients:
        # Not where nothing is compiled: it imports the compiler, which takes seconds.
        self._stance = torch.compiler.set_stance("force_eager") if self._compiled else contextlib.nullcontext()
        self._stance.__enter__()
        self._handle = self._layer.register_forward_hook(self._keep)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._handle.remove()
        self._stance.__exit__(kind, error, at)

    def then(self, use: Callable[[Tensor], None]) -> None:
        """Call `use` with the norms (B,) of the backward pass's loss, as soon as it has come to the layer."""
        assert self._input is not None
        assert self._output is not None
        layer_input = self._input.detach()
        self._output.register_hook(lambda gradient: use(example_gradient_norms(layer_input, gradient)))
        self._input = self._output = None

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._input, self._output = inputs[0], output


def example_gradient_norms(layer_input: Tensor, gradient: Tensor) -> Tensor:
    """Norm of each example's weight gradient of a convolution of one voxel => (B,).

    Args:
        layer_input: (B, I, *spatial).
        gradient: of the loss by the layer's output, (B, O, *spatial).
    """
    x, g = layer_input.flatten(2).float(), gradient.flatten(2).float()
    return torch.bmm(g, x.transpose(1, 2)).flatten(1).norm(dim=1)


def mask_dice(p: Tensor, target: Tensor, valid: Tensor, coding: Coding) -> Tensor:
    """Dice of the mask that probabilities say, averaged over the classes an example holds => (B,).

    NaN for an example without foreground: an empty patch says nothing of how a mask is read.

    Args:
        p, target: (B, C, *spatial).
        valid: (B, 1 or C, *spatial), 0 leaves a voxel out.
    """
    first = 1 if coding == "softmax" else 0
    mask = p == p.amax(dim=1, keepdim=True) if coding == "softmax" else p > 0.5  # argmax is ten times slower on a CPU
    m, t, v = (x[:, start:].flatten(2).float() for x, start in ((mask, first), (target, first), (valid, 0)))
    m, t = m * v, t * v
    size = t.sum(dim=2)  # (B, C)
    dice = 2 * (m * t).sum(dim=2) / (m.sum(dim=2) + size)
    return torch.where(size > 0, dice, torch.nan).nanmean(dim=1)
