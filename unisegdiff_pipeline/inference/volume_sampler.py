"""Masks drawn over a whole case: the samplers of `diffusion.samplers` with an estimate that tiles and blends.

The segmenter runs once a tile; its answer p_det says where anything can be at all. Only there are samples drawn, in a
box around the tiles that hold such places; elsewhere a sample's probability is p_det. The state of a sample is one
array over the box: at every call all tiles are denoised and blended, then the sampler moves the whole state on, so
overlapping tiles never disagree about a mask.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar, overload

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import mask_to_x, nested_probabilities
from unisegdiff_pipeline.diffusion.drawing import (
    class_in_doubt,
    class_masks,
    class_race,
    draw_foreground,
    keep_certain,
    likeliest_class,
    local_maximum,
    near_certain,
    possible_classes,
)
from unisegdiff_pipeline.diffusion.noise import BlockNoise
from unisegdiff_pipeline.diffusion.samplers import (
    AddNoise,
    Call,
    Draw,
    SamplerSettings,
    SmoothField,
    first_state,
    lam_schedule,
    noised,
    sample_masks,
    sampler_steps,
)
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, NoiseLevel
from unisegdiff_pipeline.diffusion.targets import Estimate
from unisegdiff_pipeline.inference.active_region import (
    BLOCK,
    ActiveRegion,
    active_region,
    active_tiles,
    connected_tiles,
    extent_of_tiles,
)
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.sliding_window import Index, Slices, blend, window_slices
from unisegdiff_pipeline.inference.tiled_case import TiledCase, batches, filled
from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box
from unisegdiff_pipeline.networks.allocator import LARGE_BYTES, return_freed_memory
from unisegdiff_pipeline.networks.denoiser import Guide
from unisegdiff_pipeline.networks.precision import autocast
from unisegdiff_pipeline.networks.staged_model import StagedModel

Item = TypeVar("Item")

LAYER_ARRAYS = 4  # of a sample's layer of tiles alive at once: two sums, and the state and answer of tiles
PIECE_VOXELS = 1 << 15  # of what is computed voxel by voxel at once
SLAB_VOXELS = 1 << 22  # of noise and fields made at once: much more than what they are made of beyond the slab
LEAST_ROWS, LARGEST_SLAB_VOXELS = 16, 1 << 25  # of many classes, too: noise comes in blocks of so many rows
CLASS_BOX = 64  # voxels an axis of the boxes that fields of classes are made in


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


def can_sample(model: StagedModel, settings: InferenceSettings) -> bool:
    """Whether masks can be drawn: by a denoiser, or by draws from the segmenter, which need none."""
    return model.denoiser is not None or settings.sampler.total_calls == 0


@dataclass(frozen=True)
class _Names:
    """What names the noise of a case, and how large its voxels are (Z, Y, X)."""

    seed: int
    case_id: str
    spacing_mm: tuple[float, ...]


@torch.inference_mode()
def sample_case(
    case: TiledCase,
    settings: InferenceSettings,
    *,
    case_id: str,
    seed: int,
    sample_ids: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    keep_samples: bool = True,
    keep_soft: bool = False,
) -> CasePrediction:
    """Predict a case; its tiles may already be computed, as where several settings are tried on it.

    Args:
        settings: how; without a denoiser no sample is drawn.
        case_id, seed: together with a sample's number they name its noise.
        sample_ids: numbers of the samples to draw.
        spacing_mm: of the image (Z, Y, X); turns the correlation length of coherent samples into voxels.
        keep_samples: False keeps their mean only.
        keep_soft: keep the probabilities that masks were drawn from beside the masks.
    """
    start = time.perf_counter()
    p_det = case.det_probabilities(settings.calibration)
    segmented = time.perf_counter()
    if p_det.nbytes > LARGE_BYTES:
        return_freed_memory()  # of the segmenter's activations, for the samplers' states
    drawn = list(sample_ids) if can_sample(case.model, settings) else []
    boxes: list[SampledBox] = []
    num_active = 0
    if drawn:
        samplers = [settings.sampler] if settings.mask_sampler is None else [settings.sampler, settings.mask_sampler]
        lengths = _lengths(case, max(s.correlation_length_mm for s in samplers), spacing_mm)
        block = (BLOCK if case.dims == 3 else 1, BLOCK, BLOCK)
        # One block at least around what is active: a mask may reach a little beyond where p_det is above nothing.
        reach = [0.0 if b == 1 else max(float(BLOCK), 2 * length) for b, length in zip(block, lengths, strict=True)]
        active = active_region(p_det, case.model.coding, block, reach, case.scratch.release)
        tiles = active_tiles(active, case.grid)
        num_active = len(tiles)
        case.forget_except(tiles)
        names = _Names(seed, case_id, tuple(spacing_mm))
        for group in connected_tiles(tiles, case.grid):
            sampler = _BoxSampler(case, settings, group, p_det, active, names)
            boxes.append(sampler.draw(drawn, keep_samples, keep_soft))
    facts = SamplingFacts(
        len(case.grid.starts), num_active, case.num_recomputed, segmented - start, time.perf_counter() - segmented
    )
    inner = p_det[(slice(None), *case.grid.inner)]
    return CasePrediction(inner, tuple(boxes), len(drawn), settings.segmenter_weight, facts)


class _BoxSampler:
    """Draws samples in the box around one group of tiles.

    The state of all samples lives in one array over the box, on disk where it does not fit into memory. A call goes
    through the tiles layer by layer and leaves each slab of rows as soon as no further tile reaches it. What is
    computed voxel by voxel is computed for one sample and in pieces of rows that the box alone decides, so that no
    last digit depends on how many samples or rows are under way at once.
    """

    def __init__(
        self,
        case: TiledCase,
        settings: InferenceSettings,
        tiles: Sequence[int],
        p_det: Tensor,
        active: ActiveRegion,
        names: _Names,
    ) -> None:
        self.case, self.settings, self.names = case, settings, names
        self.tiles = [tile for tile in case.order if tile in set(tiles)]
        self.start, self.extent = extent_of_tiles(tiles, case.grid)
        self.place = window_slices(self.start, self.extent)
        self.p_det = p_det[(slice(None), *self.place)]  # (K, *box)
        self.active = active
        self.inside = self._empty((), np.bool_)
        self._guide: tuple[tuple[int, ...], Guide] | None = None  # of the tiles asked for last
        voxels = self.extent[1] * self.extent[2]
        self.piece = max(1, PIECE_VOXELS // voxels) if case.device.type == "cpu" else self.extent[0]

    def draw(self, sample_ids: Sequence[int], keep_samples: bool, keep_soft: bool = False) -> SampledBox:
        """Draw all samples, as many at a time as the limits allow."""
        keep_soft = keep_soft and self.settings.sampler.draw and self.settings.mask_sampler is None
        hard = self.settings.drawn_by.draw
        size = self._cropped_shape()
        self._find_inside()
        mean = _zeros(self.case, (self.p_det.shape[0], *self.extent))
        samples = _Kept(self.case, len(sample_ids), self.p_det.shape[0], size, hard) if keep_samples else None
        soft = _Kept(self.case, len(sample_ids), self.p_det.shape[0], size, False) if keep_soft else None
        # Two sums over a layer of tiles for each sample, while the next tile is computed.
        layer = self.case.grid.window[0] * self.extent[1] * self.extent[2]
        bytes_each = LAYER_ARRAYS * 4 * self.p_det.shape[0] * layer
        for numbers in batches(range(len(sample_ids)), int(self.case.limits.state_gb * 2**30) // bytes_each):
            ids = [sample_ids[i] for i in numbers]
            self._draw_together(ids, numbers, mean, samples, soft)
        for first, last in self._pieces(0, self.extent[0]):
            mean[:, first:last] /= len(sample_ids)
        low, high = self._bounds()
        place = window_slices(low, [b - a for a, b in zip(low, high, strict=True)])
        return SampledBox(
            place,
            self._cropped(self.inside),
            self._cropped(mean),
            samples.finished() if samples else None,
            soft.finished() if soft else None,
        )

    def _draw_together(
        self, ids: Sequence[int], numbers: Sequence[int], mean: Tensor, samples: _Kept | None, soft: _Kept | None
    ) -> None:
        """Draw some samples and add them to the mean; `numbers` says which places are theirs."""
        sampler, mask_sampler = self.settings.sampler, self.settings.mask_sampler
        if mask_sampler is not None and sampler.total_calls:
            sampler = replace(sampler, draw=False)  # no mask is drawn of the mean's samples
        ways = [sampler] if mask_sampler is None or samples is None else [sampler, mask_sampler]
        of_mean: Tensor | None = None
        for way, p in zip(ways, self._last_probabilities(ids, ways), strict=True):
            of_mean = p if of_mean is None else of_mean
            for i in range(len(ids)):
                for first, last in self._pieces(0, self.extent[0]):
                    values = p[i, :, first:last].to(self.case.device)[None]  # (1, K, rows, Y, X)
                    if way is ways[0]:
                        mean[:, first:last] += values[0].to(mean.device)
                        if soft is not None:
                            soft.put(numbers[i], self._kept_part(values[0], first, last))
                self.case.scratch.release()
            if samples is not None and way is ways[-1]:
                for i, first, masks in self._masks(p, ids, way, of_mean=of_mean):
                    last = first + masks.shape[1]
                    samples.put(numbers[i], self._kept_part(masks, first, last))
                    self.case.scratch.release()

    def _last_probabilities(self, ids: Sequence[int], ways: Sequence[SamplerSettings]) -> Iterator[Tensor]:
        """Probabilities (n, K, *box) that the samples of each way end with.

        Two ways that begin with pure noise begin with the same, whose call is made once.
        """
        edges, labels = self.settings.edges, self.case.model.labels
        loops = [sampler_steps(edges, way, labels) for way in ways]
        first = [loop[0] for loop in loops if loop and isinstance(loop[0], Call)]
        shared = len(first) == 2 and all(call.lam == PURE_NOISE for call in first)
        states = [self._state(len(ids)) if loop else self._nested_p_det(len(ids)) for loop in loops]
        if shared:
            self._begin(states[0], ids, PURE_NOISE)
            self._call(first, states[0], states)
        for way, loop, x in zip(ways, loops, states, strict=True):
            if loop and not shared:
                self._begin(x, ids, lam_schedule(edges, way)[0])
            for step in loop[1:] if shared else loop:
                match step:
                    case Call():
                        self._call([step], x, [x])
                    case Draw():
                        self._draw(step, x, ids, way)
                    case AddNoise():
                        self._add_noise(step, x, ids)
            yield x

    def _state(self, count: int) -> Tensor:
        """An array for some samples; on a GPU where there is room."""
        shape, device = (count, *self.p_det.shape), self.case.device
        if device.type != "cpu" and 8 * math.prod(shape) <= self.case.limits.state_gb * 2**30:
            return torch.empty(shape, device=device)
        return torch.from_numpy(self.case.scratch.empty(shape))

    def _nested_p_det(self, count: int) -> Tensor:
        p = torch.from_numpy(self.case.scratch.empty(self.p_det.shape))
        for first, last in self._pieces(0, self.extent[0]):
            nested = nested_probabilities(self.p_det[None, :, first:last], self.case.model.labels.nesting)
            p[:, first:last] = nested[0]
        self.case.scratch.release()
        return p.expand(count, *p.shape)

    def _begin(self, x: Tensor, ids: Sequence[int], lam: float) -> None:
        slabs = list(self._rows_of_samples(len(ids)))
        noises = _ahead(lambda slab: self._noise(ids[slab[0]], "noise0", *slab[1:]), slabs)
        for (i, first, _), noise in zip(slabs, noises, strict=True):
            for a, b in self._pieces(first, first + noise.shape[1]):
                p_det = self.p_det[None, :, a:b].to(noise.device)
                part = noise[None, :, a - first : b - first]
                x[i, :, a:b] = first_state(part, p_det, lam, self.settings.edges)[0]
            self.case.scratch.release()

    def _call(self, calls: Sequence[Call], x: Tensor, out: Sequence[Tensor]) -> None:
        """One call of the network for all samples; what each of `calls` leaves is written into its array of `out`.

        Args:
            calls: at the same noise level.
            x: the state (n, K, *box), which may be the first array of `out`.
        """
        corrected = any(call.reads_correction for call in calls)
        for first, found in self._estimates(x, calls[0].lam, corrected):  # found (2 or 1, n, K, rows, Y, X)
            for a, b in self._pieces(first, first + found.shape[3]):
                for i in range(len(x)):
                    part = found[:, i : i + 1, :, a - first : b - first]
                    estimate = Estimate(part[0], part[-1])  # without a correction there is no reader of it
                    state = x[i : i + 1, :, a:b].to(found.device)
                    for call, left in reversed(list(zip(calls, out, strict=True))):  # x itself is written last
                        left[i, :, a:b] = call.leave(state, estimate)[0]
            self.case.scratch.release()

    def _draw(self, step: Draw, x: Tensor, ids: Sequence[int], way: SamplerSettings) -> None:
        """Put masks in {-1, +1} in place of the probabilities that a call left."""
        for i, first, masks in self._masks(x, ids, way, step.index):
            x[i, :, first : first + masks.shape[1]] = mask_to_x(masks)
            self.case.scratch.release()

    def _add_noise(self, step: AddNoise, x: Tensor, ids: Sequence[int]) -> None:
        """Bring masks, or the mean of masks, to the state of the next call."""
        for i, first, last in self._rows_of_samples(len(ids)):
            noise = self._noise(ids[i], f"noise{step.index}", first, last)
            for a, b in self._pieces(first, last):
                x0, part = x[i : i + 1, :, a:b].to(noise.device), noise[None, :, a - first : b - first]
                x[i, :, a:b] = noised(x0, part, step.lam, self.settings.edges)[0]
            self.case.scratch.release()

    def _masks(
        self,
        p: Tensor,
        ids: Sequence[int],
        way: SamplerSettings,
        call: int | None = None,
        of_mean: Tensor | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """(sample, first row, mask or probabilities (K, rows, Y, X)) of the draw after a call, or the last one.

        The rows of p that were given out may be overwritten. Where two fields draw, the last draw keeps what is certain
        by w p_det + (1 - w) of_mean, the part of this sample in the reported probability.
        """
        stream = f"field{way.total_calls if call is None else call}"
        slabs = list(self._rows_of_samples(len(ids)))
        if call is None and not way.draw:
            yield from ((i, first, p[i, :, first:last]) for i, first, last in slabs)
            return
        labels = self.case.model.labels
        smooth, of_classes = _apart(way, labels)
        everywhere = [field for field in smooth if not field.near_certain_only]
        drawn_ahead = _ahead(lambda slab: self._fields(ids[slab[0]], stream, *slab[1:], everywhere), slabs)
        nearby = self._near_certain(p, slabs, way) if way.surface_length_mm is not None else itertools.repeat(None)
        for (i, first, last), fields, near in zip(slabs, drawn_ahead, nearby, strict=False):
            if near is not None:
                fields = self._with_surfaces(fields, near, ids[i], stream, first, smooth)
            drawn, classes = [], None
            if of_classes and near is not None:
                of_slab = p[i, :, first:last]
                classes = self._classes(of_slab, near, fields, of_classes, way.certain, (ids[i], stream, first))
            for a, b in self._pieces(first, last):
                piece = slice(a - first, b - first)
                here = p[i : i + 1, :, a:b].to(self.case.device)
                if classes is not None:
                    foreground, winner = (values[None, None, piece] for values in classes)
                    masks = class_masks(foreground, winner, here)
                else:
                    near_here = None if near is None else near[None, :, piece]
                    masks = sample_masks(here, near_here, fields[None, :, piece], way, labels)
                if of_mean is not None and way.surface_length_mm is not None:
                    p_det, mean = (v.to(masks.device) for v in (self.p_det[:, a:b], of_mean[i, :, a:b]))
                    w = self.settings.segmenter_weight
                    masks = keep_certain(masks, (w * p_det + (1 - w) * mean)[None], labels, way.certain)
                drawn.append(masks[0])
            yield i, first, torch.cat(drawn, dim=1)

    def _classes(
        self,
        p: Tensor,
        near: Tensor,
        fields: Tensor,
        of_classes: Sequence[SmoothField],
        certain: float,
        draw: tuple[int, str, int],
    ) -> tuple[Tensor, Tensor]:
        """Where the foreground of a slab is, boolean (rows, Y, X), and of which class (rows, Y, X).

        Fields of classes are as many as these, and those of borders are short: they are made where they decide alone,
        of the classes that may win there.

        Args:
            p: (1 + classes, rows, Y, X); near (2, rows, Y, X).
            fields: of the foreground (2, rows, Y, X).
            of_classes: the fields of classes, far from and near what is certain.
            draw: number of the sample, stream and first row of the slab.
        """
        sample_id, stream, first = draw
        winners = torch.zeros(p.shape[1:], dtype=torch.int16, device=near.device)
        foreground, doubtful = (torch.zeros(p.shape[1:], dtype=torch.bool, device=near.device) for _ in range(2))
        for a, b in self._pieces(0, p.shape[1]):
            here = p[None, :, a:b].to(near.device)
            drawn = foreground[a:b] = draw_foreground(here, near[None, :, a:b], fields[None, :, a:b], certain)[0, 0]
            here = here[:, :, drawn]  # (1, 1 + classes, voxels)
            winners[a:b][drawn] = likeliest_class(here)[0, 0]
            doubtful[a:b][drawn] = class_in_doubt(here, certain)[0, 0]
        for field, where in zip(of_classes, (doubtful & ~near[1], doubtful & near[1]), strict=True):
            for box in _boxes_around(where):
                inside = where[box]
                here = p[(slice(None), *box)].to(near.device)[None, :, inside]
                only = possible_classes(here)[0].any(dim=1).nonzero()[:, 0].tolist()
                start = [a + b.start for a, b in zip(self._rows_of_box(first, first)[0], box, strict=True)]
                extent = [b.stop - b.start for b in box]
                made = self._fields_in(sample_id, stream, [field], start, extent, only)
                values = made.new_zeros((1, field.channels, here.shape[2]))
                values[0, only] = made[:, inside]
                winners[box][inside] = class_race(here, values)[0, 0]
        return foreground, winners

    def _near_certain(self, p: Tensor, slabs: Sequence[tuple[int, int, int]], way: SamplerSettings) -> Iterator[Tensor]:
        """`near_certain` of each slab (sample, first row, last row) in turn, boolean (D, rows, Y, X).

        When the next one is asked for, the rows of p of the former ones may have been overwritten.
        """

        def certain(i: int, first: int, last: int) -> Tensor:
            return near_certain(p[i, :, first:last].to(self.case.device)[None], self.case.model.labels, way.certain)[0]

        reach = [int(voxels) for voxels in _lengths(self.case, way.reach_mm, self.names.spacing_mm)]
        before = certain(0, 0, 0)
        for i, first, last in slabs:
            before = before[:, :0] if first == 0 else before
            behind = certain(i, last, min(last + reach[0], self.extent[0]))
            around = torch.cat([before, certain(i, first, last), behind], dim=1)
            rows = slice(before.shape[1], before.shape[1] + last - first)
            before = around[:, max(0, rows.stop - reach[0]) : rows.stop]
            yield local_maximum(around[None], reach)[0, :, rows] if bool(around.any()) else around[:, rows]

    def _rows_of_samples(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(sample, first row, last row) of slabs that noise and fields are made for at once."""
        voxels = self.p_det.shape[0] * self.extent[1] * self.extent[2]
        rows = max(SLAB_VOXELS // voxels, min(LEAST_ROWS, LARGEST_SLAB_VOXELS // voxels), 1)
        rows = math.ceil(rows / self.piece) * self.piece
        for i in range(count):
            for first in range(0, self.extent[0], rows):
                yield i, first, min(first + rows, self.extent[0])

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows; on the way, what has been touched of arrays on disk leaves memory."""
        slab = max(1, SLAB_VOXELS // (self.piece * self.extent[1] * self.extent[2]))
        for number, a in enumerate(range(first, last, self.piece), start=1):
            yield a, min(a + self.piece, last)
            if number % slab == 0:
                self.case.scratch.release()

    def _noise(self, sample_id: int, stream: str, first: int, last: int) -> Tensor:
        """Noise (K, rows, Y, X) of the rows [first, last)."""
        noise = BlockNoise(self.names.seed, self.names.case_id, sample_id, stream)
        start, extent = self._rows_of_box(first, last)
        whole = noise_in_box(noise, self.p_det.shape[0], start, extent, slices_only=self.case.dims == 2)
        return whole.to(self.case.device)

    def _fields(self, sample_id: int, stream: str, first: int, last: int, which: Sequence[SmoothField]) -> Tensor:
        """Some smooth fields of a draw (F, rows, Y, X), of the rows [first, last)."""
        return self._fields_in(sample_id, stream, which, *self._rows_of_box(first, last))

    def _with_surfaces(
        self, others: Tensor, near: Tensor, sample_id: int, stream: str, first: int, smooth: Sequence[SmoothField]
    ) -> Tensor:
        """All fields of a draw (F, rows, Y, X): `others`, and those of surfaces in the box around what is near.

        Elsewhere the latter are 0 and count for nothing; they are short, and so dear to make.
        """
        fields = others.new_zeros((sum(field.channels for field in smooth), *others.shape[1:]))
        box = [slice(int(v.min()), int(v.max()) + 1) for v in near.any(dim=0).nonzero().unbind(1) if len(v)]
        start = [a + b.start for a, b in zip(self._rows_of_box(first, first)[0], box, strict=False)]
        channel = taken = 0
        for field in smooth:
            part = fields[channel : channel + field.channels]
            channel += field.channels
            if not field.near_certain_only:
                part.copy_(others[taken : taken + field.channels])
                taken += field.channels
            elif box:
                # In as many parts as there are threads, along the longest axis: each needs a margin of its own.
                extent = [b.stop - b.start for b in box]
                axis = extent.index(max(extent))
                parts = _ahead(
                    lambda of: self._fields_in(sample_id, stream, [field], *of),  # noqa: B023 (called in this turn)
                    _split(start, extent, axis, torch.get_num_threads()),
                )
                part[(slice(None), *box)] = torch.cat(list(parts), dim=1 + axis)
        return fields

    def _fields_in(
        self,
        sample_id: int,
        stream: str,
        which: Sequence[SmoothField],
        start: Sequence[int],
        extent: Sequence[int],
        only: Sequence[int] | None = None,
    ) -> Tensor:
        """Some smooth fields of a draw (F, *extent), in a box of the volume; `only` some channels of each."""
        parts = [
            smooth_field_in_box(
                BlockNoise(self.names.seed, self.names.case_id, sample_id, stream + field.name),
                field.channels,
                start,
                extent,
                _lengths(self.case, field.length_mm, self.names.spacing_mm),
                slices_only=self.case.dims == 2,
                only=only,
            )
            for field in which
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.case.device)

    def _rows_of_box(self, first: int, last: int) -> tuple[list[int], list[int]]:
        """Start and extent of some rows of the box in the volume."""
        return [self.start[0] + first, *self.start[1:]], [last - first, *self.extent[1:]]

    def _estimates(self, x: Tensor, lam: float, corrected: bool) -> Iterator[tuple[int, Tensor]]:
        """Denoise every tile of the state x (n, K, *box) and blend: (first row, p and correction (2, n, K, ...)).

        The correction is left out, (1, n, K, ...), where `corrected` is false.
        """
        denoised = self._denoised(x, lam, corrected)
        if len(self.tiles) == 1:
            yield 0, next(denoised)[1]
            return
        for first, found, total in blend(denoised, self.case.weights, self.extent):
            if bool((total == 0).any()):
                # No tile there: the estimate is p_det, so that the state stays a noised mask.
                p_det = self.p_det[:, first : first + total.shape[0]].to(found.device)
                found[0] = torch.where(total == 0, p_det, found[0])
            yield first, found

    def _denoised(self, x: Tensor, lam: float, corrected: bool) -> Iterator[tuple[Index, Tensor]]:
        """(place in the box, p and correction (2 or 1, n, K, *window)) of one tile after the other."""
        n, size = x.shape[0], self.case.call_size
        waiting: list[Tensor] = []
        tile = 0
        for numbers in batches(range(len(self.tiles) * n), size):
            full = filled(numbers, size)
            starts = [self._start_in_box(self.tiles[k // n]) for k in full]
            window = self.case.grid.window
            parts = [
                x[(k % n, slice(None), *window_slices(start, window))] for k, start in zip(full, starts, strict=True)
            ]
            tiles, x_t = [self.tiles[k // n] for k in full], torch.stack(parts).to(self.case.device)
            found = self._denoise(tiles, x_t, lam, corrected)
            waiting.append(found[:, : len(numbers)])
            while sum(part.shape[1] for part in waiting) >= n:
                whole = waiting[0] if len(waiting) == 1 else torch.cat(waiting, dim=1)
                yield self._start_in_box(self.tiles[tile]), whole[:, :n]
                waiting = [whole[:, n:]] if whole.shape[1] > n else []
                tile += 1

    def _start_in_box(self, tile: int) -> Index:
        z, y, x = (a - b for a, b in zip(self.case.grid.starts[tile], self.start, strict=True))
        return z, y, x

    def _denoise(self, tiles: Sequence[int], x_t: Tensor, lam: float, corrected: bool) -> Tensor:
        """Denoise x_t (B, K, *window) of some tiles => p and correction (2 or 1, B, K, *window)."""
        case, flat = self.case, self.case.dims == 2
        different = tuple(dict.fromkeys(tiles))
        guide = self._guide_of(different)
        if len(tiles) > 1:
            which = torch.tensor([different.index(tile) for tile in tiles], device=case.device)
            guide = guide.each(lambda values: values[which])
        level = NoiseLevel.of(torch.full((1,), lam, device=case.device), self.settings.edges)
        x_t = x_t[:, :, 0] if flat else x_t
        with autocast(case.device):
            found = case.model.denoise_guided(x_t, level, guide, corrected)
        values = torch.stack([found.probabilities, found.correction]) if corrected else found.probabilities[None]
        return values[:, :, :, None] if flat else values

    def _guide_of(self, tiles: tuple[int, ...]) -> Guide:
        """What the denoiser takes of these tiles; kept until others are asked for, after all samples of a tile."""
        if self._guide is None or self._guide[0] != tiles:
            condition = self.case.conditions(tiles)
            self._guide = tiles, self.case.model.guide(condition, self.settings.denoiser_calibration)
        return self._guide[1]

    def _find_inside(self) -> None:
        """Fill `inside`: what is active and under a tile."""
        covered = torch.zeros(self.extent[1:], dtype=torch.bool)
        by_layer: dict[int, list[Index]] = {}
        for tile in self.tiles:
            start = self._start_in_box(tile)
            by_layer.setdefault(start[0], []).append(start)
        depth = self.case.grid.window[0]
        for row in self.case.scratch.rows(self.extent[0]):
            covered.fill_(False)
            for layer, starts in by_layer.items():
                if layer <= row < layer + depth:
                    for start in starts:
                        covered[window_slices(start, self.case.grid.window)[1:]] = True
            z, y, x = self.place
            active = self.active.within((slice(z.start + row, z.start + row + 1), y, x))[0]
            self.inside[row] = active.cpu() & covered
        self.case.scratch.release()

    def _empty(self, leading: tuple[int, ...], dtype: DTypeLike = np.float32) -> Tensor:
        return torch.from_numpy(self.case.scratch.empty((*leading, *self.extent), dtype))

    def _kept_part(self, values: Tensor, first: int, last: int) -> tuple[slice, Tensor]:
        """Rows of the box as (rows, values) of the part that lies in the unpadded case."""
        low, _ = self._bounds()
        offset = [a + p - s for a, p, s in zip(low, self.case.grid.pad_before, self.start, strict=True)]
        size = self._cropped_shape()
        a, b = max(first, offset[0]), min(last, offset[0] + size[0])
        rows = slice(a - offset[0], max(a, b) - offset[0])
        z, y, x = slice(a - first, max(a, b) - first), *(slice(offset[i], offset[i] + size[i]) for i in (1, 2))
        return rows, values[:, z, y, x]

    def _cropped_shape(self) -> tuple[int, ...]:
        low, high = self._bounds()
        return tuple(b - a for a, b in zip(low, high, strict=True))

    def _cropped(self, values: Tensor) -> Tensor:
        """The part of (..., *box) that lies in the unpadded case."""
        low, _ = self._bounds()
        offset = [a + p - s for a, p, s in zip(low, self.case.grid.pad_before, self.start, strict=True)]
        return values[(..., *window_slices(offset, self._cropped_shape()))]

    def _bounds(self) -> tuple[list[int], list[int]]:
        """The box in coordinates of the unpadded case, clipped to it."""
        low, high = [], []
        for start, extent, before, size in zip(
            self.start, self.extent, self.case.grid.pad_before, self.case.grid.shape, strict=True
        ):
            low.append(max(0, start - before))
            high.append(min(size, start + extent - before))
        return low, high


class _Kept:
    """Where samples are put row by row: masks as bits, anything else as 16-bit numbers."""

    def __init__(self, case: TiledCase, count: int, channels: int, size: Sequence[int], hard: bool) -> None:
        self._width, self._hard = size[2], hard
        width, dtype = ((size[2] + 7) // 8, np.uint8) if hard else (size[2], np.float16)
        self._values = case.scratch.empty((count, channels, size[0], size[1], width), dtype)

    def put(self, number: int, part: tuple[slice, Tensor]) -> None:
        """Keep some rows (K, rows, Y, X) of a sample."""
        rows, values = part
        here = values.cpu().numpy()
        self._values[number][:, rows] = np.packbits(here > 0, axis=-1) if self._hard else here

    def finished(self) -> Tensor | PackedMasks:
        """All samples."""
        values = torch.from_numpy(self._values)
        return PackedMasks(values, self._width) if self._hard else values


def _apart(way: SamplerSettings, labels: LabelScheme) -> tuple[list[SmoothField], list[SmoothField]]:
    """The smooth fields of a draw: those needed wherever anything is drawn, and those that tell several classes apart.

    With one field for all, every class has its part of it everywhere.
    """
    fields = way.fields(labels)
    apart = way.surface_length_mm is not None and labels.coding == "softmax"
    return (fields[:2], fields[2:]) if apart else (fields, [])


def _boxes_around(where: Tensor) -> Iterator[Slices]:
    """Boxes (rows, Y, X) that hold all true voxels, each as small as it can be and of `CLASS_BOX` voxels at most."""
    for corner in itertools.product(*(range(0, size, CLASS_BOX) for size in where.shape)):
        part = where[tuple(slice(a, a + CLASS_BOX) for a in corner)]
        found = part.nonzero()
        if len(found):
            low, high = found.amin(dim=0).tolist(), found.amax(dim=0).tolist()
            yield window_slices(
                [a + b for a, b in zip(corner, low, strict=True)], [b - a + 1 for a, b in zip(low, high, strict=True)]
            )


def _split(start: Sequence[int], extent: Sequence[int], axis: int, count: int) -> list[tuple[list[int], list[int]]]:
    """(start, extent) of boxes that make up a box, cut along an axis."""
    edges = sorted({extent[axis] * i // count for i in range(count + 1)})
    boxes = []
    for a, b in itertools.pairwise(edges):
        low, size = list(start), list(extent)
        low[axis], size[axis] = start[axis] + a, b - a
        boxes.append((low, size))
    return boxes


def _ahead(function: Callable[[Item], Tensor], items: Sequence[Item]) -> Iterator[Tensor]:
    """The function's results in order, made ahead on threads: numpy draws numbers without the interpreter lock."""
    threads = min(len(items), torch.get_num_threads())
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(function, item) for item in items[:threads]]
        for item in items[threads:]:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(function, item))
        for future in waiting:
            yield future.result()


def _zeros(case: TiledCase, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(case.scratch.zeros(shape))


def _lengths(case: TiledCase, length_mm: float, spacing_mm: Sequence[float]) -> list[float]:
    """A correlation length in voxels along each axis; slices of a 2D network are drawn on their own."""
    lengths = [length_mm / s for s in spacing_mm]
    return [0.0, *lengths[1:]] if case.dims == 2 else lengths
