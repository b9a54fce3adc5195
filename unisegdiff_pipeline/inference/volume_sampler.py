"""Masks drawn over a whole case: the samplers of `diffusion.samplers` with an estimate that tiles and blends.

The segmenter runs once a tile; its answer p_det says where anything can be at all. Only there are samples drawn, in a
box around the tiles that hold such places; elsewhere a sample's probability is p_det. The state of a sample is one
array over the box: at every call all tiles are denoised and blended, then the sampler moves the whole state on, so
overlapping tiles never disagree about a mask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from unisegdiff_pipeline.inference.active_region import BLOCK, active_region, active_tiles, connected_tiles
from unisegdiff_pipeline.inference.box_fields import NoiseNames, lengths_voxels
from unisegdiff_pipeline.inference.box_sampler import BoxSampler
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.sampling_box import SamplingBox
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.networks.allocator import LARGE_BYTES, return_freed_memory
from unisegdiff_pipeline.networks.staged_model import StagedModel


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
        lengths = lengths_voxels(case, max(s.correlation_length_mm for s in samplers), spacing_mm)
        block = (BLOCK if case.dims == 3 else 1, BLOCK, BLOCK)
        # One block at least around what is active: a mask may reach a little beyond where p_det is above nothing.
        reach = [0.0 if b == 1 else max(float(BLOCK), 2 * length) for b, length in zip(block, lengths, strict=True)]
        active = active_region(p_det, case.model.coding, block, reach, case.scratch.release)
        tiles = active_tiles(active, case.grid)
        num_active = len(tiles)
        case.forget_except(tiles)
        names = NoiseNames(seed, case_id, tuple(spacing_mm))
        for group in connected_tiles(tiles, case.grid):
            sampler = BoxSampler(SamplingBox(case, group, p_det), settings, active, names)
            boxes.append(sampler.draw(drawn, keep_samples, keep_soft))
    facts = SamplingFacts(
        len(case.grid.starts), num_active, case.num_recomputed, segmented - start, time.perf_counter() - segmented
    )
    inner = p_det[(slice(None), *case.grid.inner)]
    return CasePrediction(inner, tuple(boxes), len(drawn), settings.segmenter_weight, facts)
