"""Noise and smooth fields of a box, by the names of seed, case and sample."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box
from unisegdiff_pipeline.diffusion.noise import NamedNoise
from unisegdiff_pipeline.diffusion.samplers import SmoothField
from unisegdiff_pipeline.inference.sampling_box import SamplingBox
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box

Item = TypeVar("Item")


@dataclass(frozen=True)
class NoiseNames:
    """What names the noise of a case, and how large its voxels are (Z, Y, X)."""

    seed: int
    case_id: str
    spacing_mm: tuple[float, ...]


class BoxFields:
    """Makes noise and fields of some rows of a box."""

    def __init__(self, box: SamplingBox, names: NoiseNames) -> None:
        self.box, self.names = box, names

    def noise(self, sample_id: int, stream: str, first: int, last: int) -> Tensor:
        """Noise (K, rows, Y, X) of the rows [first, last)."""
        noise = NamedNoise(self.names.seed, self.names.case_id, sample_id, stream)
        start, extent = self.box.rows_of_box(first, last)
        channels = range(self.box.p_det.shape[0])
        whole = noise_in_box(noise, channels, start, extent, slices_only=self.box.case.dims == 2)
        return whole.to(self.box.case.device)

    def fields(self, sample_id: int, stream: str, first: int, last: int, which: Sequence[SmoothField]) -> Tensor:
        """Some smooth fields of a draw (F, rows, Y, X), of the rows [first, last)."""
        return self.fields_in(sample_id, stream, which, *self.box.rows_of_box(first, last))

    def with_surfaces(
        self, others: Tensor, near: Tensor, sample_id: int, stream: str, first: int, smooth: Sequence[SmoothField]
    ) -> Tensor:
        """All fields of a draw (F, rows, Y, X): `others`, and those of surfaces in the box around what is near.

        Elsewhere the latter are 0 and count for nothing; they are short, and so expensive to make.
        """
        fields = others.new_zeros((sum(field.channels for field in smooth), *others.shape[1:]))
        box = nonzero_box(*near.cpu().numpy())
        channel = taken = 0
        for field in smooth:
            part = fields[channel : channel + field.channels]
            channel += field.channels
            if not field.near_certain_only:
                part.copy_(others[taken : taken + field.channels])
                taken += field.channels
            elif box is not None:
                # In as many parts as there are threads, along the longest axis: each needs a margin of its own.
                start = [a + low for a, (low, _) in zip(self.box.rows_of_box(first, first)[0], box, strict=True)]
                extent = [high - low for low, high in box]
                axis = extent.index(max(extent))
                parts = ahead(
                    lambda of: self.fields_in(sample_id, stream, [field], *of),  # noqa: B023 (called in this turn)
                    _split(start, extent, axis, torch.get_num_threads()),
                )
                part[(slice(None), *box_slices(box))] = torch.cat(list(parts), dim=1 + axis)
        return fields

    def fields_in(
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
                NamedNoise(self.names.seed, self.names.case_id, sample_id, stream + field.name),
                range(field.channels) if only is None else only,
                start,
                extent,
                lengths_voxels(self.box.case, field.length_mm, self.names.spacing_mm),
                slices_only=self.box.case.dims == 2,
            )
            for field in which
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.box.case.device)


def ahead(function: Callable[[Item], Tensor], items: Sequence[Item]) -> Iterator[Tensor]:
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


def lengths_voxels(case: TiledCase, length_mm: float, spacing_mm: Sequence[float]) -> list[float]:
    """A correlation length in voxels along each axis; slices of a 2D network are drawn on their own."""
    lengths = [length_mm / s for s in spacing_mm]
    return [0.0, *lengths[1:]] if case.dims == 2 else lengths


def _split(start: Sequence[int], extent: Sequence[int], axis: int, count: int) -> list[tuple[list[int], list[int]]]:
    """(start, extent) of boxes that make up a box, cut along an axis."""
    edges = sorted({extent[axis] * i // count for i in range(count + 1)})
    boxes = []
    for a, b in itertools.pairwise(edges):
        low, size = list(start), list(extent)
        low[axis], size[axis] = start[axis] + a, b - a
        boxes.append((low, size))
    return boxes
