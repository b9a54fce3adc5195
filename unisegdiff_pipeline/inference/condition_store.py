"""What the segmenter says of tiles, kept for the calls of the denoiser: in memory while there is room, else on disk.

A condition costs a pass of the segmenter, many times a call of the denoiser and much more than reading it from a disk.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.networks.denoiser import Condition

DISK_FRACTION = 0.5  # of what is free there; arrays and masks need the rest, and have no other place
BLOCK_BYTES = 1 << 26  # allocated at once, for many tiles: single ones would leave holes between what else is computed
ALIGNMENT = 64


class ConditionStore:
    """Conditions of single tiles, which all have the same shapes and types.

    Args:
        memory_bytes: that those in memory may take, on the device that they are computed on.
        scratch: of the files for others, as far as the disk has room to spare; None, or one without a folder, keeps no
            more than memory holds.
    """

    def __init__(self, memory_bytes: float, scratch: Scratch | None) -> None:
        self._free_bytes = memory_bytes
        self._scratch = scratch if scratch is not None and scratch.has_folder else None
        self._free_disk_bytes = 0.0 if self._scratch is None else DISK_FRACTION * self._scratch.free_disk_bytes()
        self._kept: dict[int, tuple[Condition, Tensor]] = {}  # with its place
        self._free_places: list[Tensor] = []

    def __contains__(self, tile: int) -> bool:
        return tile in self._kept

    def __getitem__(self, tile: int) -> Condition:
        """The condition of a tile that is kept; its tensors must not be written to."""
        return self._kept[tile][0]

    def keep(self, tile: int, condition: Condition) -> bool:
        """Keep a copy where there is room for it; returns whether there was."""
        if tile in self._kept:
            return True
        if not self._free_places:
            self._free_places = self._new_places(condition)
        if not self._free_places:
            return False
        place = self._free_places.pop()
        self._kept[tile] = _copied(condition, place), place
        return True

    def forget_except(self, tiles: Collection[int]) -> None:
        """Drop all other tiles, to make room for tiles that are needed."""
        for tile in self._kept.keys() - set(tiles):
            self._free_places.append(self._kept.pop(tile)[1])

    def _new_places(self, condition: Condition) -> list[Tensor]:
        """Room for some conditions, bytes each; empty where there is none."""
        size = sum(map(_padded, _sizes(condition)))
        count = int(min(max(BLOCK_BYTES, size), self._free_bytes) // size)
        if count:
            self._free_bytes -= count * size
            return [*torch.empty((count, size), dtype=torch.uint8, device=condition.det_logits.device)]
        count = max(1, BLOCK_BYTES // size)
        if self._scratch is None or count * size > self._free_disk_bytes:
            return []
        self._free_disk_bytes -= count * size
        try:
            return [*torch.from_numpy(self._scratch.on_disk((count, size), np.uint8))]
        except UsdError:  # others have filled the disk: what cannot be kept is computed again
            self._scratch = None
            return []


def _sizes(condition: Condition) -> list[int]:
    return [t.numel() * t.element_size() for t in (condition.det_logits, *condition.features)]


def _padded(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _copied(condition: Condition, place: Tensor) -> Condition:
    """Copy a condition into a place of bytes."""
    copies, start = [], 0
    for values, size in zip((condition.det_logits, *condition.features), _sizes(condition), strict=True):
        copies.append(place[start : start + size].view(values.dtype).reshape(values.shape).copy_(values))
        start += _padded(size)
    return Condition(copies[0], tuple(copies[1:]), condition.source)
