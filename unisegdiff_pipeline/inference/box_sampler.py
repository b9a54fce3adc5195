"""The samples of one box: its states, taken by the steps of a sampler from noise to masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import mask_to_x, nested_probabilities
from unisegdiff_pipeline.diffusion.samplers import (
    AddNoise,
    Call,
    Draw,
    SamplerSettings,
    first_state,
    noised,
    sampler_steps,
)
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE
from unisegdiff_pipeline.diffusion.targets import Estimate
from unisegdiff_pipeline.inference.active_region import ActiveRegion
from unisegdiff_pipeline.inference.box_denoiser import BoxDenoiser
from unisegdiff_pipeline.inference.box_fields import BoxFields, NoiseNames, ahead
from unisegdiff_pipeline.inference.box_masks import BoxMasks
from unisegdiff_pipeline.inference.case_prediction import PackedMasks, SampledBox
from unisegdiff_pipeline.inference.sampling_box import SamplingBox
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.sliding_window import window_slices
from unisegdiff_pipeline.inference.tiled_case import TiledCase, batches

OF_ALL_SAMPLES = -1  # names the noise that samples share; their own numbers begin at 0
LAYER_ARRAYS = 4  # of a sample's layer of tiles alive at once: two sums, and the state and answer of tiles


class BoxSampler:
    """Draws samples in a box.

    The state of all samples lives in one array over the box, on disk where it does not fit into memory. A call goes
    through the tiles layer by layer and leaves each slab of rows as soon as no further tile reaches it.
    """

    def __init__(self, box: SamplingBox, settings: InferenceSettings, active: ActiveRegion, names: NoiseNames) -> None:
        self.box, self.settings, self.active = box, settings, active
        self.fields = BoxFields(box, names)
        self.denoiser = BoxDenoiser(box, settings)
        self.masks = BoxMasks(self.fields, settings)

    def draw(self, sample_ids: Sequence[int], keep_samples: bool, keep_soft: bool = False) -> SampledBox:
        """Draw all samples, as many at a time as the limits allow."""
        keep_soft = keep_soft and self.settings.sampler.draw and self.settings.mask_sampler is None
        hard = self.settings.drawn_by.draw
        size = self.box.cropped_shape()
        mean = torch.from_numpy(self.box.case.scratch.zeros((self.box.p_det.shape[0], *self.box.extent)))
        samples = _Kept(self.box.case, len(sample_ids), self.box.p_det.shape[0], size, hard) if keep_samples else None
        soft = _Kept(self.box.case, len(sample_ids), self.box.p_det.shape[0], size, False) if keep_soft else None
        # Two sums over a layer of tiles for each sample, while the next tile is computed.
        layer = self.box.case.grid.window[0] * self.box.extent[1] * self.box.extent[2]
        bytes_each = LAYER_ARRAYS * 4 * self.box.p_det.shape[0] * layer
        is_sum = True
        for numbers in batches(range(len(sample_ids)), int(self.box.case.limits.state_gb * 2**30) // bytes_each):
            ids = [sample_ids[i] for i in numbers]
            is_sum = self._draw_together(ids, numbers, mean, samples, soft)
        for first, last in self.box.pieces(0, self.box.extent[0]) if is_sum else ():
            mean[:, first:last] /= len(sample_ids)
        low, high = self.box.bounds()
        place = window_slices(low, [b - a for a, b in zip(low, high, strict=True)])
        return SampledBox(
            place,
            self.box.cropped(self.box.inside(self.active)),
            self.box.cropped(mean),
            samples.finished() if samples else None,
            soft.finished() if soft else None,
        )

    def _draw_together(
        self, ids: Sequence[int], numbers: Sequence[int], mean: Tensor, samples: _Kept | None, soft: _Kept | None
    ) -> bool:
        """Draw some samples and add them to the mean; `numbers` says which places are theirs.

        Returns False where all samples share one probability, which the mean then is: a sum of equal numbers would be
        rounded, each number of samples in another way.
        """
        sampler, mask_sampler = self.settings.sampler, self.settings.mask_sampler
        if mask_sampler is not None and sampler.total_calls:
            sampler = replace(sampler, draw=False)  # no mask is drawn of the mean's samples
        ways = [sampler] if mask_sampler is None or samples is None else [sampler, mask_sampler]
        of_mean: Tensor | None = None
        is_sum = True
        for way, (p, is_shared) in zip(ways, self._last_probabilities(ids, ways), strict=True):
            if of_mean is None:
                of_mean, is_sum = p, not is_shared
            for i in range(len(ids)):
                for first, last in self.box.pieces(0, self.box.extent[0]):
                    values = p[i, :, first:last].to(self.box.case.device)[None]  # (1, K, rows, Y, X)
                    if way is ways[0]:
                        part, found = mean[:, first:last], values[0].to(mean.device)
                        part.add_(found) if is_sum else part.copy_(found)
                        if soft is not None:
                            soft.put(numbers[i], self.box.kept_part(values[0], first, last))
                self.box.case.scratch.release()
            if samples is not None and way is ways[-1]:
                for i, first, masks in self.masks.masks(p, ids, way, of_mean=of_mean):
                    last = first + masks.shape[1]
                    samples.put(numbers[i], self.box.kept_part(masks, first, last))
                    self.box.case.scratch.release()
        return is_sum

    def _last_probabilities(self, ids: Sequence[int], ways: Sequence[SamplerSettings]) -> Iterator[tuple[Tensor, bool]]:
        """Probabilities (n, K, *box) that the samples of each way end with, and whether all share one.

        A first call at pure noise is made once for all samples and ways, with noise of the case: there is nothing of a
        mask in it, so that the network answers with what the image says alone.
        """
        edges, labels, count = self.settings.edges, self.box.case.model.labels, len(ids)
        states, loops, opening = [], [], []
        shared = []
        for way in ways:
            loop = sampler_steps(edges, way, labels)
            first = loop[0] if loop else None
            if isinstance(first, Call):
                opens = first.lam == PURE_NOISE
                has_own = first.reads_state or not opens
                shared.append(not has_own)
                x = self._state(count if has_own else 1)
                if has_own:
                    self._begin(x, ids, first.lam)
                if opens:
                    opening.append((first, x))
                    loop = loop[1:]
            else:
                shared.append(True)
                x = self._nested_p_det(count)
            states.append(x)
            loops.append(loop)
        if opening:
            noise = self._state(1)
            self._begin(noise, [OF_ALL_SAMPLES], PURE_NOISE)
            self._call([call for call, _ in opening], noise, [x for _, x in opening])
        for way, loop, x, is_shared in zip(ways, loops, states, shared, strict=True):
            x = x.expand(count, *x.shape[1:])
            for step in loop:
                match step:
                    case Call():
                        self._call([step], x, [x])
                    case Draw():
                        x = self._draw(step, x, ids, way)
                    case AddNoise():
                        x = self._add_noise(step, x, ids)
            yield x, is_shared and all(isinstance(step, Call) for step in loop)

    def _state(self, count: int) -> Tensor:
        """An array for some samples; on a GPU where there is room."""
        shape, device = (count, *self.box.p_det.shape), self.box.case.device
        if device.type != "cpu" and 8 * math.prod(shape) <= self.box.case.limits.state_gb * 2**30:
            return torch.empty(shape, device=device)
        return torch.from_numpy(self.box.case.scratch.empty(shape))

    def _nested_p_det(self, count: int) -> Tensor:
        p = torch.from_numpy(self.box.case.scratch.empty(self.box.p_det.shape))
        for first, last in self.box.pieces(0, self.box.extent[0]):
            nested = nested_probabilities(self.box.p_det[None, :, first:last], self.box.case.model.labels.nesting)
            p[:, first:last] = nested[0]
        self.box.case.scratch.release()
        return p.expand(count, *p.shape)

    def _begin(self, x: Tensor, ids: Sequence[int], lam: float) -> None:
        slabs = list(self.box.rows_of_samples(len(ids)))
        noises = ahead(lambda slab: self.fields.noise(ids[slab[0]], "noise0", *slab[1:]), slabs)
        for (i, first, _), noise in zip(slabs, noises, strict=True):
            for a, b in self.box.pieces(first, first + noise.shape[1]):
                p_det = self.box.p_det[None, :, a:b].to(noise.device)
                part = noise[None, :, a - first : b - first]
                x[i, :, a:b] = first_state(part, p_det, lam, self.settings.edges)[0]
            self.box.case.scratch.release()

    def _call(self, calls: Sequence[Call], x: Tensor, out: Sequence[Tensor]) -> None:
        """One call of the network; what each of `calls` leaves of the states in its array of `out` is written there.

        Args:
            calls: at the same noise level.
            x: what the network sees (n, K, *box), or (1, K, *box) for all samples; may be one of `out`.
        """
        corrected = any(call.reads_correction for call in calls)
        for first, found in self.denoiser.estimates(x, calls[0].lam, corrected):  # found (2 or 1, n, K, rows, Y, X)
            for a, b in self.box.pieces(first, first + found.shape[3]):
                for call, states in zip(calls, out, strict=True):
                    for i in range(len(states)):
                        of_sample = i if len(x) > 1 else 0
                        part = found[:, of_sample : of_sample + 1, :, a - first : b - first]
                        estimate = Estimate(part[0], part[-1])  # without a correction there is no reader of it
                        state = states[i : i + 1, :, a:b].to(found.device)
                        states[i, :, a:b] = call.leave(state, estimate)[0]
            self.box.case.scratch.release()

    def _draw(self, step: Draw, p: Tensor, ids: Sequence[int], way: SamplerSettings) -> Tensor:
        """Masks in {-1, +1} of the probabilities that a call left, in their place where each sample has its own."""
        x = self._own(p)
        for i, first, masks in self.masks.masks(p, ids, way, step.index):
            x[i, :, first : first + masks.shape[1]] = mask_to_x(masks)
            self.box.case.scratch.release()
        return x

    def _add_noise(self, step: AddNoise, x0: Tensor, ids: Sequence[int]) -> Tensor:
        """The states of the next call, of masks or the mean of masks; in their place where each sample has its own."""
        x = self._own(x0)
        for i, first, last in self.box.rows_of_samples(len(ids)):
            noise = self.fields.noise(ids[i], f"noise{step.index}", first, last)
            for a, b in self.box.pieces(first, last):
                before, part = x0[i : i + 1, :, a:b].to(noise.device), noise[None, :, a - first : b - first]
                x[i, :, a:b] = noised(before, part, step.lam, self.settings.edges)[0]
            self.box.case.scratch.release()
        return x

    def _own(self, x: Tensor) -> Tensor:
        """An array for states of which each sample has its own: this one, or a new one where all share this one."""
        return x if x.stride(0) > 0 else self._state(len(x))


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
