"""The prediction of one case: p_det, and the samples in the boxes that they were drawn in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.sliding_window import Slices


@dataclass(frozen=True)
class PackedMasks:
    """Masks (N, K, Z, Y, X) of zeros and ones, eight voxels a byte.

    Attributes:
        bits: (N, K, Z, Y, bytes), uint8.
        width: X.
    """

    bits: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.bits)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: tuple[slice, ...]) -> PackedMasks: ...
    def __getitem__(self, index: int | tuple[slice, ...]) -> Tensor | PackedMasks:
        """One mask (K, Z, Y, X), fp16; or a part of all of them, whole along X."""
        if isinstance(index, tuple):
            return PackedMasks(self.bits[index], self.width)
        if index >= len(self.bits):
            raise IndexError(f"mask {index} of {len(self.bits)}")
        return torch.from_numpy(np.unpackbits(self.bits[index].numpy(), axis=-1, count=self.width)).half()


@dataclass(frozen=True)
class SampledBox:
    """The part of a case that samples were drawn in.

    Attributes:
        slices: of the box in the case (Z, Y, X).
        inside: boolean (*box), the voxels that samples may differ in; elsewhere p_det holds. Boxes of scattered
            lesions may overlap, their inner voxels do not.
        mean: mean probability over the samples of the settings' `sampler` (K, *box), fp32, CPU.
        samples: each sample's mask as bits, or its probabilities where no mask is drawn, (N, K, *box), fp16, CPU; of
            the settings' `mask_sampler` where there is one; None where they were not kept.
        soft: each sample's probabilities before its mask was drawn, as `samples`; None where they were not kept, no
            mask was drawn, or another sampler samples the masks.
    """

    slices: Slices
    inside: Tensor
    mean: Tensor
    samples: Tensor | PackedMasks | None
    soft: Tensor | PackedMasks | None = None

    def rows(self, first: int, last: int) -> SampledBox | None:
        """What lies in the rows [first, last) of the case, its place counted from there; None for nothing."""
        z, y, x = self.slices
        a, b = max(first, z.start), min(last, z.stop)
        if a >= b:
            return None
        part = slice(a - z.start, b - z.start)
        return SampledBox(
            (slice(a - first, b - first), y, x),
            self.inside[part],
            self.mean[:, part],
            None if self.samples is None else self.samples[:, :, part],
            None if self.soft is None else self.soft[:, :, part],
        )


@dataclass(frozen=True)
class SamplingFacts:
    """What a prediction cost."""

    num_tiles: int
    num_active_tiles: int
    num_recomputed: int
    seconds_segmenter: float
    seconds_samples: float


@dataclass(frozen=True)
class CasePrediction:
    """Prediction of one case by one model, on the plan's grid.

    Samples are kept for the boxes they were drawn in only; the methods below put whole arrays together when asked.

    Attributes:
        p_det: the segmenter's probabilities (K, Z, Y, X), fp32, CPU.
        boxes: where samples were drawn; empty without samples or without any foreground in p_det.
        num_samples: masks drawn; 0 for a plain segmenter.
        segmenter_weight: w, of p_det in the final probability.
    """

    p_det: Tensor
    boxes: tuple[SampledBox, ...]
    num_samples: int
    segmenter_weight: float
    facts: SamplingFacts

    def probabilities(self, segmenter_weight: float | None = None) -> Tensor:
        """w * p_det + (1 - w) * mean of the samples, (K, Z, Y, X); p_det where nothing was drawn."""
        w = self.segmenter_weight if segmenter_weight is None else segmenter_weight
        out = self.p_det.clone()
        for box in self.boxes:
            part = out[(slice(None), *box.slices)]
            part.copy_(torch.where(box.inside, w * part + (1 - w) * box.mean, part))
        return out

    def rows(self, first: int, last: int) -> CasePrediction:
        """The rows [first, last) of the case alone; nothing is copied."""
        boxes = tuple(part for box in self.boxes if (part := box.rows(first, last)) is not None)
        return replace(self, p_det=self.p_det[:, first:last], boxes=boxes)

    @property
    def mean(self) -> Tensor:
        """Mean of the samples (K, Z, Y, X)."""
        return self.probabilities(segmenter_weight=0.0)

    def sample(self, index: int) -> Tensor:
        """Probabilities of one sample (K, Z, Y, X), fp32; 0 and 1 where its mask was drawn."""
        return self._put_together(index, [box.samples for box in self.boxes])

    def masks(self, scheme: LabelScheme) -> Iterator[np.ndarray]:
        """Label map of each sample (Z, Y, X), one after the other."""
        return (scheme.decode(self.sample(index).numpy()) for index in range(self.num_samples))

    def soft_sample(self, index: int) -> Tensor:
        """As `sample`, but the probabilities that its mask was drawn from."""
        return self._put_together(index, [box.samples if box.soft is None else box.soft for box in self.boxes])

    def _put_together(self, index: int, parts: Sequence[Tensor | PackedMasks | None]) -> Tensor:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} was asked for, {self.num_samples} were drawn")
        out = self.p_det.clone()
        for box, values in zip(self.boxes, parts, strict=True):
            if values is None:
                raise ValueError("samples were not kept; predict with keep_samples=True")
            part = out[(slice(None), *box.slices)]
            part.copy_(torch.where(box.inside, values[index].float(), part))
        return out
