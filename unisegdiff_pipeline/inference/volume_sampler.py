"""Masks drawn over a whole case: the samplers of `diffusion.samplers` with an estimate that tiles and blends.

The segmenter runs once a tile; its answer p_det says where anything can be at all. Only there are samples drawn, in a
box around the tiles that hold such places; elsewhere a sample's probability is p_det. The state of a sample is one
array over the box: at every call all tiles are denoised and blended, then the sampler moves the whole state on, so
overlapping tiles never disagree about a mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.samplers import Drawn, EstimateFunction, SamplerSettings, sample
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, channel_lam
from unisegdiff_pipeline.diffusion.targets import Estimate
from unisegdiff_pipeline.inference.active_region import (
    BLOCK,
    active_region,
    active_tiles,
    bounding_box,
    connected_tiles,
    foreground,
)
from unisegdiff_pipeline.inference.limits import Limits, find_limits
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.sliding_window import Slices, box_slices, weight_sum
from unisegdiff_pipeline.inference.tiled_case import TiledCase, batches
from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box
from unisegdiff_pipeline.networks.precision import autocast
from unisegdiff_pipeline.networks.staged_model import Condition, StagedModel

STATE_ARRAYS = 12  # arrays of the state's size alive at once: 10 in a sampler's step, measured, and the opening call's


@dataclass(frozen=True)
class SampledBox:
    """The part of a case that samples were drawn in.

    Attributes:
        slices: of the box in the case (Z, Y, X).
        inside: boolean (*box), the voxels that samples may differ in; elsewhere p_det holds. Boxes of scattered
            lesions may overlap, their inner voxels do not.
        mean: mean probability over the samples of the settings' `sampler` (K, *box), fp32, CPU.
        samples: each sample's mask, or probabilities where it is not drawn, (N, K, *box), fp16, CPU; of the settings'
            `mask_sampler` where there is one; None where they were not kept.
        soft: each sample's probabilities before its mask was drawn, as `samples`; None where they were not kept, no
            mask was drawn, or another sampler draws the masks.
    """

    slices: Slices
    inside: Tensor
    mean: Tensor
    samples: Tensor | None
    soft: Tensor | None = None


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
        w: weight of p_det in the final probability.
    """

    p_det: Tensor
    boxes: tuple[SampledBox, ...]
    num_samples: int
    w: float
    facts: SamplingFacts

    def probabilities(self, w: float | None = None) -> Tensor:
        """w * p_det + (1 - w) * mean of the samples, (K, Z, Y, X); p_det where nothing was drawn."""
        w = self.w if w is None else w
        out = self.p_det.clone()
        for box in self.boxes:
            part = out[(slice(None), *box.slices)]
            part.copy_(torch.where(box.inside, w * part + (1 - w) * box.mean, part))
        return out

    @property
    def mean(self) -> Tensor:
        """Mean of the samples (K, Z, Y, X)."""
        return self.probabilities(w=0.0)

    def sample(self, index: int) -> Tensor:
        """Probabilities of one sample (K, Z, Y, X), fp32; 0 and 1 where its mask was drawn."""
        return self._put_together(index, [box.samples for box in self.boxes])

    def soft_sample(self, index: int) -> Tensor:
        """As `sample`, but the probabilities that its mask was drawn from."""
        return self._put_together(index, [box.samples if box.soft is None else box.soft for box in self.boxes])

    def _put_together(self, index: int, parts: Sequence[Tensor | None]) -> Tensor:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} was asked for, {self.num_samples} were drawn")
        out = self.p_det.clone()
        for box, values in zip(self.boxes, parts, strict=True):
            if values is None:
                raise ValueError("samples were not kept; predict with keep_samples=True")
            part = out[(slice(None), *box.slices)]
            part.copy_(torch.where(box.inside, values[index].float(), part))
        return out


def predict_case(
    image: np.ndarray | Tensor,
    model: StagedModel,
    settings: InferenceSettings,
    *,
    patch_size: Sequence[int],
    case_id: str,
    seed: int = 0,
    num_samples: int | None = None,
    sample_ids: Sequence[int] | None = None,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    limits: Limits | None = None,
    mirror_axes: Sequence[int] = (),
    keep_samples: bool = True,
) -> CasePrediction:
    """Predict one preprocessed case.

    Args:
        image: (C, Z, Y, X), fp32; Z = 1 for a 2D image. A 2D network takes a volume slice by slice.
        model: on the device to compute on.
        patch_size: of the plan, (Y, X) or (Z, Y, X).
        case_id, seed: together with a sample's number they name its noise.
        num_samples: None takes the settings' number; ignored where the model has no denoiser.
        sample_ids: numbers of the samples to draw instead of 0 .. num_samples - 1.
        spacing_mm: of the image (Z, Y, X); turns the correlation length of coherent draws into voxels.
        mirror_axes: axes of the patch over whose flips p_det is averaged.
        keep_samples: False keeps their mean only.
    """
    if sample_ids is None:
        sample_ids = range(settings.num_samples if num_samples is None else num_samples)
    limits = limits or find_limits(next(model.parameters()).device)
    training = model.training
    model.eval()
    try:
        case = TiledCase(torch.as_tensor(image), model, patch_size, limits, mirror_axes)
        return sample_case(
            case, settings, case_id=case_id, seed=seed, sample_ids=sample_ids, spacing_mm=spacing_mm,
            keep_samples=keep_samples,
        )  # fmt: skip
    finally:
        model.train(training)


def can_sample(model: StagedModel, settings: InferenceSettings) -> bool:
    """Whether masks can be drawn: by a denoiser, or by draws from the segmenter, which need none."""
    return model.denoiser is not None or settings.sampler.total_calls == 0


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
    """As `predict_case`, on a case whose tiles may already be computed (several settings on one case).

    Args:
        keep_soft: keep the probabilities that masks were drawn from beside the masks.
    """
    start = time.perf_counter()
    p_det = case.det_probabilities(settings.temperature)
    segmented = time.perf_counter()
    drawn = list(sample_ids) if can_sample(case.model, settings) else []
    boxes: list[SampledBox] = []
    num_active = 0
    if drawn:
        samplers = [settings.sampler] if settings.mask_sampler is None else [settings.sampler, settings.mask_sampler]
        lengths = [max(values) for values in zip(*(_lengths(case, s, spacing_mm) for s in samplers), strict=True)]
        block = (BLOCK if case.dims == 3 else 1, BLOCK, BLOCK)
        # One block at least around what is active: a mask may reach a little beyond where p_det is above nothing.
        reach = [0.0 if b == 1 else max(float(BLOCK), 2 * length) for b, length in zip(block, lengths, strict=True)]
        active = active_region(foreground(p_det, case.model.coding), block, reach)
        tiles = active_tiles(active, case.grid)
        num_active = len(tiles)
        case.forget_except(tiles)
        for group in _groups(tiles, case, p_det.shape[0]):
            sampler = _BoxSampler(case, settings, group, p_det, active, spacing_mm, seed, case_id)
            boxes.append(sampler.draw(drawn, keep_samples, keep_soft))
    facts = SamplingFacts(
        len(case.grid.starts), num_active, case.num_recomputed, segmented - start, time.perf_counter() - segmented
    )
    inner = p_det[(slice(None), *case.grid.inner)].cpu()
    return CasePrediction(inner, tuple(boxes), len(drawn), settings.w, facts)


class _BoxSampler:
    """Draws samples in the box around one group of tiles."""

    def __init__(
        self, case: TiledCase, settings: InferenceSettings, tiles: Sequence[int], p_det: Tensor, active: Tensor,
        spacing_mm: Sequence[float], seed: int, case_id: str,
    ) -> None:  # fmt: skip
        self.case, self.settings, self.tiles = case, settings, list(tiles)
        self.seed, self.case_id, self.spacing_mm = seed, case_id, spacing_mm
        self.start, self.extent = bounding_box(tiles, case.grid)
        box = box_slices(self.start, self.extent)
        self.p_det = p_det[(slice(None), *box)].to(case.device)  # (K, *box)
        self.tile_starts = {
            t: tuple(a - b for a, b in zip(case.grid.starts[t], self.start, strict=True)) for t in tiles
        }
        self.total = weight_sum(self.tile_starts.values(), case.weights, self.extent)
        uncovered = self.total == 0
        self.inside = active[box].to(case.device) & ~uncovered
        self.uncovered = uncovered if bool(uncovered.any()) else None

    def draw(self, sample_ids: Sequence[int], keep_samples: bool, keep_soft: bool = False) -> SampledBox:
        """Draw all samples, as many at a time as the limits allow."""
        bytes_each = STATE_ARRAYS * 4 * self.p_det.numel()
        kept: list[Tensor] = []
        soft: list[Tensor] = []
        mean = torch.zeros_like(self.p_det)
        for ids in batches(list(sample_ids), int(self.case.limits.state_gb * 2**30) // bytes_each):
            drawn = self._draw_together(ids, keep_samples)  # (n, K, *box) each
            mean += drawn.probabilities.sum(dim=0)
            if keep_samples:
                kept.append(self._cropped(drawn.masks).half().cpu())
            if keep_soft and self.settings.sampler.draw and self.settings.mask_sampler is None:
                soft.append(self._cropped(drawn.probabilities).half().cpu())
        samples = torch.cat(kept) if keep_samples else None
        mean = self._cropped(mean / len(sample_ids)).cpu()
        inside = self._cropped(self.inside).cpu()
        return SampledBox(self._slices_in_case(), inside, mean, samples, torch.cat(soft) if soft else None)

    def _draw_together(self, ids: Sequence[int], with_masks: bool) -> Drawn:
        sampler, mask_sampler = self.settings.sampler, self.settings.mask_sampler
        if mask_sampler is None:
            return self._drawn(ids, sampler, self._estimate)
        opening: list[Estimate] = []

        def estimate(x_t: Tensor, lam: float) -> Estimate:
            """Both samplers may begin with pure noise, and then with the same."""
            if lam != PURE_NOISE:
                return self._estimate(x_t, lam)
            if not opening:
                opening.append(self._estimate(x_t, lam))
            return opening[0]

        # No mask is drawn of the mean's samples; without any call they are nothing but draws.
        p = self._drawn(ids, replace(sampler, draw=False) if sampler.total_calls else sampler, estimate).probabilities
        return Drawn(p, self._drawn(ids, mask_sampler, estimate).masks if with_masks else p)

    def _drawn(self, ids: Sequence[int], sampler: SamplerSettings, estimate: EstimateFunction) -> Drawn:
        lengths = _lengths(self.case, sampler, self.spacing_mm)

        def noise(draw: int) -> Tensor:
            return _on_threads(lambda i: self._noise(i, f"noise{draw}"), ids).to(self.case.device)

        def field(draw: int) -> Tensor:
            return _on_threads(lambda i: self._field(i, f"field{draw}", lengths), ids).to(self.case.device)

        return sample(estimate, noise, field, self.p_det[None], self.settings.edges, sampler, self.case.model.labels)

    def _noise(self, sample_id: int, stream: str) -> Tensor:
        return noise_in_box(
            self.seed, self.case_id, sample_id, stream, self.p_det.shape[0], self.start, self.extent,
            slices_only=self.case.dims == 2,
        )  # fmt: skip

    def _field(self, sample_id: int, stream: str, lengths_voxels: Sequence[float]) -> Tensor:
        return smooth_field_in_box(
            self.seed, self.case_id, sample_id, stream, self.p_det.shape[0], self.start, self.extent,
            lengths_voxels, slices_only=self.case.dims == 2,
        )  # fmt: skip

    def _estimate(self, x_t: Tensor, lam: float) -> Estimate:
        """Denoise every tile of the state (n, K, *box) and blend."""
        if len(self.tiles) == 1:
            return self._denoise_tiles(self.tiles, x_t, lam)
        p, correction = torch.zeros_like(x_t), torch.zeros_like(x_t)
        per_call = self.case.limits.denoiser_voxels // (self.case.window_voxels * x_t.shape[0])
        window, weights, n = self.case.grid.window, self.case.weights, x_t.shape[0]
        for tiles in batches(self.tiles, per_call):
            places = [box_slices(self.tile_starts[t], window) for t in tiles]
            found = self._denoise_tiles(tiles, torch.cat([x_t[(..., *place)] for place in places]), lam)
            for i, place in enumerate(places):
                p[(..., *place)] += found.probabilities[i * n : (i + 1) * n] * weights
                correction[(..., *place)] += found.correction[i * n : (i + 1) * n] * weights
        total = self.total.clamp_min(torch.finfo(torch.float32).tiny)
        p, correction = p.div_(total), correction.div_(total)
        if self.uncovered is not None:  # no tile there: the estimate is p_det, so that the state stays a noised mask
            p = torch.where(self.uncovered, self.p_det, p)
        return Estimate(p, correction)

    def _denoise_tiles(self, tiles: Sequence[int], x_t: Tensor, lam: float) -> Estimate:
        """Denoise some tiles; x_t (len(tiles) * n, K, *window), tile-major, => Estimate of the same shape."""
        condition = self.case.conditions(tiles)
        n = x_t.shape[0] // len(tiles)
        at_once = max(1, self.case.limits.denoiser_voxels // (self.case.window_voxels * len(tiles)))
        if at_once < n:  # only where one tile of all samples is too much for a call, so there is one tile
            assert len(tiles) == 1
            parts = [self._denoise(x_t[ids[0] : ids[-1] + 1], lam, condition) for ids in batches(range(n), at_once)]
            return Estimate(torch.cat([p.probabilities for p in parts]), torch.cat([p.correction for p in parts]))
        return self._denoise(x_t, lam, condition)

    def _denoise(self, x_t: Tensor, lam: float, condition: Condition) -> Estimate:
        case = self.case
        tiles = condition.det_logits.shape[0]
        n = x_t.shape[0] // tiles
        if tiles > 1 and n > 1:  # one tile's condition broadcasts over its samples without a copy
            features = tuple(f.repeat_interleave(n, dim=0) for f in condition.features)
            condition = Condition(condition.det_logits.repeat_interleave(n, dim=0), features)
        flat = case.dims == 2
        x = x_t[:, :, 0] if flat else x_t
        level = torch.full((1,), lam, device=x.device)
        with autocast(case.device):
            found = case.model.denoise(
                x, level, condition.det_logits, condition.features, self.settings.denoiser_temperature,
                channel_lam(level, self.settings.edges),
            )  # fmt: skip
        return Estimate(found.probabilities[:, :, None], found.correction[:, :, None]) if flat else found

    def _slices_in_case(self) -> Slices:
        low, high = self._bounds()
        return box_slices(low, [b - a for a, b in zip(low, high, strict=True)])

    def _cropped(self, values: Tensor) -> Tensor:
        """The part of (..., *box) that lies in the unpadded case."""
        low, high = self._bounds()
        offset = [a + p - s for a, p, s in zip(low, self.case.grid.pad_before, self.start, strict=True)]
        return values[(..., *box_slices(offset, [b - a for a, b in zip(low, high, strict=True)]))]

    def _bounds(self) -> tuple[list[int], list[int]]:
        """The box in coordinates of the unpadded case, clipped to it."""
        low, high = [], []
        for start, extent, before, size in zip(
            self.start, self.extent, self.case.grid.pad_before, self.case.grid.shape, strict=True
        ):
            low.append(max(0, start - before))
            high.append(min(size, start + extent - before))
        return low, high


def _on_threads(function: Callable[[int], Tensor], ids: Sequence[int]) -> Tensor:
    """Stack function(id) of all ids; numpy draws numbers without the interpreter lock, so threads share the work."""
    threads = min(len(ids), torch.get_num_threads())
    if threads == 1:
        return torch.stack([function(i) for i in ids])
    with ThreadPoolExecutor(threads) as pool:
        return torch.stack(list(pool.map(function, ids)))


def _groups(tiles: Sequence[int], case: TiledCase, channels: int) -> list[list[int]]:
    """All tiles as one group where one sample of their box fits the limits, else groups that do not overlap.

    One group keeps the network's batches full; the groups' boxes of scattered lesions may be far smaller in sum.
    """
    if not tiles:
        return []
    _, extent = bounding_box(tiles, case.grid)
    bytes_each = STATE_ARRAYS * 4 * channels * extent[0] * extent[1] * extent[2]
    if bytes_each <= case.limits.state_gb * 2**30:
        return [list(tiles)]
    return connected_tiles(tiles, case.grid)


def _lengths(case: TiledCase, sampler: SamplerSettings, spacing_mm: Sequence[float]) -> list[float]:
    """Correlation length in voxels along each axis; slices of a 2D network are drawn on their own."""
    lengths = [sampler.correlation_length_mm / s for s in spacing_mm]
    return [0.0, *lengths[1:]] if case.dims == 2 else lengths
