"""How much memory prediction may use, and how large a network call is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

FRACTION_OF_FREE_MEMORY = 0.5  # that a prediction takes unless it is told otherwise; others work here too
# Of what it may take; the rest is for networks and steps.
FEATURE_FRACTION, STATE_FRACTION, ARRAY_FRACTION = 0.2, 0.2, 0.3
CALL_ITEMS = 8
CALL_VOXELS = {"cpu": 1 << 15}  # other devices: see call_size


@dataclass(frozen=True)
class Limits:
    """Bounds of one case's prediction. No result depends on the first two.

    Attributes:
        feature_gb: conditions of tiles in memory; those beyond it are on disk, or computed again at every call where
            there is no folder for temporary files, and on a GPU.
        state_gb: masks being drawn; more samples than fit are drawn in turns.
        step: distance of tiles as a fraction of the window.
    """

    feature_gb: float = 1.0
    state_gb: float = 1.0
    step: float = 0.5


def find_limits(device: torch.device, memory_gb: float | None = None) -> Limits:
    """Limits for `device`; without `memory_gb` from the memory that is free now."""
    if device.type == "cuda":
        # What torch has reserved and does not use is free too: after training that is nearly everything.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        memory_gb = (torch.cuda.mem_get_info(device)[0] + cached) / 1e9
    elif memory_gb is None:
        from unisegdiff_pipeline.core.parallel import available_memory_gb

        memory_gb = FRACTION_OF_FREE_MEMORY * available_memory_gb()
    return Limits(FEATURE_FRACTION * memory_gb, STATE_FRACTION * memory_gb)


def call_size(device: torch.device, window_voxels: int) -> int:
    """Tiles (or samples of tiles) of every network call; a call with fewer is filled up.

    Kernels round otherwise in batches of another size, and a mask that is drawn changes where a probability moves in
    its last digit. So the size goes by the window alone, never by the memory, the number of samples or the case, and
    the same seed gives the same masks. On a CPU only small tiles gain by company; large ones leave the caches.
    """
    return max(1, min(CALL_ITEMS, CALL_VOXELS.get(device.type, 4_000_000) // window_voxels))
