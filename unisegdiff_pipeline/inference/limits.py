"""How much memory and how large a network call prediction may use."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHARE_OF_FREE_MEMORY = 0.2  # each of features and state; the rest is for the network, the images and others


@dataclass(frozen=True)
class Limits:
    """Bounds of one case's prediction; results do not depend on them beyond rounding.

    Attributes:
        feature_gb: cached conditions of tiles; tiles beyond it are computed again at every call.
        state_gb: masks being drawn; more samples than fit are drawn in turns.
        segmenter_voxels: voxels of one call of the segmenter, at least one tile.
        denoiser_voxels: voxels of one call of the denoiser, at least one tile of one sample.
        step: distance of tiles as a share of the window.
    """

    feature_gb: float = 1.0
    state_gb: float = 1.0
    segmenter_voxels: int = 100_000
    denoiser_voxels: int = 250_000
    step: float = 0.5


def find_limits(device: torch.device) -> Limits:
    """Limits for `device` from the memory that is free now.

    On a CPU calls of this size keep activations near the caches: larger ones were no faster, and with calls of the
    denoiser four times as large five classes took 1.5 times as long. A GPU needs larger calls to be busy.
    """
    if device.type == "cuda":
        # What torch has reserved and does not use is free too: after training that is nearly everything.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free_gb = (torch.cuda.mem_get_info(device)[0] + cached) / 2**30
        per_gb = 250_000  # voxels of a segmenter call for each GB free: about 32 features at 4 bytes, several maps
        segmenter = int(min(4e6, max(1e5, per_gb * free_gb)))
        return Limits(SHARE_OF_FREE_MEMORY * free_gb, SHARE_OF_FREE_MEMORY * free_gb, segmenter, 2 * segmenter)
    from unisegdiff_pipeline.io.parallel import available_memory_gb

    free_gb = available_memory_gb()
    return Limits(SHARE_OF_FREE_MEMORY * free_gb, SHARE_OF_FREE_MEMORY * free_gb)
