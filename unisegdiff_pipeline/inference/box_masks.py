"""Masks of a box from the probabilities of its samples, by smooth fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.drawing import (
    class_in_doubt,
    class_masks,
    class_race,
    draw_foreground,
    keep_certain,
    likeliest_class,
    local_maximum,
    may_be_drawn,
    near_certain,
    nothing_drawn,
    possible_classes,
)
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings, SmoothField, sample_masks
from unisegdiff_pipeline.inference.box_fields import BoxFields, ahead, lengths_voxels
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.sliding_window import Slices, window_slices

CLASS_BOX = 64  # voxels an axis of the boxes that fields of classes are made in


class BoxMasks:
    """Draws the masks of the samples of a box, slab by slab."""

    def __init__(self, fields: BoxFields, settings: InferenceSettings) -> None:
        self.box, self.fields, self.settings = fields.box, fields, settings

    def masks(
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
        slabs = list(self.box.rows_of_samples(len(ids)))
        if call is None and not way.draw:
            yield from ((i, first, p[i, :, first:last]) for i, first, last in slabs)
            return
        labels = self.box.case.model.labels
        smooth, of_classes = _apart(way, labels)
        everywhere = [field for field in smooth if not field.near_certain_only]
        drawn_ahead = ahead(lambda slab: self.fields.fields(ids[slab[0]], stream, *slab[1:], everywhere), slabs)
        nearby = self._near_certain(p, slabs, way) if way.surface_length_mm is not None else itertools.repeat(None)
        for (i, first, last), fields, near in zip(slabs, drawn_ahead, nearby, strict=False):
            if near is not None:
                fields = self.fields.with_surfaces(fields, near, ids[i], stream, first, smooth)
            of_slab = p[i, :, first:last]
            box = window_slices((0, 0, 0), of_slab.shape[1:])
            if near is not None:  # in the box around what can be marked at all with these fields
                possible = may_be_drawn(of_slab[None].to(near.device), fields, labels, way.certain)
                box = _box_around(possible) or window_slices((0, 0, 0), (0, 0, 0))
                near = near[(slice(None), *box)].contiguous()
            here, fields = (v[(slice(None), *box)].to(fields.device).contiguous() for v in (of_slab, fields))
            classes = None
            if of_classes and near is not None:
                corner = [a + b.start for a, b in zip(self.box.rows_of_box(first, first)[0], box, strict=True)]
                classes = self._classes(here, near, fields, of_classes, way.certain, (ids[i], stream, corner))
            drawn = nothing_drawn(of_slab.to(here.device), labels)
            for a, b in self.box.pieces(0, here.shape[1]):
                piece = slice(a, b)
                if classes is not None:
                    foreground, winner = (values[None, None, piece] for values in classes)
                    masks = class_masks(foreground, winner, here[None, :, piece])
                else:
                    near_here = None if near is None else near[None, :, piece]
                    masks = sample_masks(here[None, :, piece], near_here, fields[None, :, piece], way, labels)
                drawn[(slice(None), *box)][:, piece] = masks[0]
            if of_mean is not None and way.surface_length_mm is not None:
                for a, b in self.box.pieces(first, last):
                    p_det, mean = (v.to(drawn.device) for v in (self.box.p_det[:, a:b], of_mean[i, :, a:b]))
                    w = self.settings.segmenter_weight
                    rows = drawn[None, :, a - first : b - first]
                    rows.copy_(keep_certain(rows, (w * p_det + (1 - w) * mean)[None], labels, way.certain))
            yield i, first, drawn

    def _classes(
        self,
        p: Tensor,
        near: Tensor,
        fields: Tensor,
        of_classes: Sequence[SmoothField],
        certain: float,
        draw: tuple[int, str, Sequence[int]],
    ) -> tuple[Tensor, Tensor]:
        """Where the foreground of a box is, boolean (rows, Y, X), and of which class (rows, Y, X).

        Fields of classes are as many as these, and those of borders are short: they are made where they decide alone,
        of the classes that may win there.

        Args:
            p: (1 + classes, rows, Y, X); near (2, rows, Y, X).
            fields: of the foreground (2, rows, Y, X).
            of_classes: the fields of classes, far from and near what is certain.
            draw: number of the sample, stream and place of the box in the volume.
        """
        sample_id, stream, corner = draw
        winners = torch.zeros(p.shape[1:], dtype=torch.int32, device=near.device)
        foreground, doubtful = (torch.zeros(p.shape[1:], dtype=torch.bool, device=near.device) for _ in range(2))
        for a, b in self.box.pieces(0, p.shape[1]):
            here = p[None, :, a:b].to(near.device)
            drawn = foreground[a:b] = draw_foreground(here, near[None, :, a:b], fields[None, :, a:b], certain)[0, 0]
            winners[a:b] = likeliest_class(here)[0, 0]
            doubtful[a:b] = drawn & class_in_doubt(here, certain)[0, 0]
        for field, where in zip(of_classes, (doubtful & ~near[1], doubtful & near[1]), strict=True):
            for box in _boxes_around(where):
                inside = where[box]
                here = p[(slice(None), *box)].to(near.device)[None, :, inside]
                only = possible_classes(here)[0].any(dim=1).nonzero()[:, 0].tolist()
                start = [a + b.start for a, b in zip(corner, box, strict=True)]
                extent = [b.stop - b.start for b in box]
                made = self.fields.fields_in(sample_id, stream, [field], start, extent, only)
                values = made.new_zeros((1, field.channels, here.shape[2]))
                values[0, only] = made[:, inside]
                winners[box][inside] = class_race(here, values)[0, 0]
        return foreground, winners

    def _near_certain(self, p: Tensor, slabs: Sequence[tuple[int, int, int]], way: SamplerSettings) -> Iterator[Tensor]:
        """`near_certain` of each slab (sample, first row, last row) in turn, boolean (D, rows, Y, X).

        When the next one is asked for, the rows of p of the former ones may have been overwritten.
        """

        def certain(i: int, first: int, last: int) -> Tensor:
            return near_certain(
                p[i, :, first:last].to(self.box.case.device)[None], self.box.case.model.labels, way.certain
            )[0]

        reach = [int(voxels) for voxels in lengths_voxels(self.box.case, way.reach_mm, self.fields.names.spacing_mm)]
        before = certain(0, 0, 0)
        shared, near = p.stride(0) == 0, before
        for i, first, last in slabs:
            if shared and i > 0 and near.shape[1] == self.box.extent[0]:  # of a slab that is all of the box
                yield near
                continue
            before = before[:, :0] if first == 0 else before
            behind = certain(i, last, min(last + reach[0], self.box.extent[0]))
            around = torch.cat([before, certain(i, first, last), behind], dim=1)
            rows = slice(before.shape[1], before.shape[1] + last - first)
            before = around[:, max(0, rows.stop - reach[0]) : rows.stop]
            near = local_maximum(around[None], reach)[0, :, rows] if _box_around(around) else around[:, rows]
            yield near


def _apart(way: SamplerSettings, labels: LabelScheme) -> tuple[list[SmoothField], list[SmoothField]]:
    """The smooth fields of a draw: those needed wherever anything is drawn, and those that tell several classes apart.

    With one field for all, every class has its part of it everywhere.
    """
    fields = way.fields(labels)
    apart = way.surface_length_mm is not None and labels.coding == "softmax"
    return (fields[:2], fields[2:]) if apart else (fields, [])


def _box_around(where: Tensor) -> Slices | None:
    """The smallest box that holds all voxels true in any channel (D, rows, Y, X); None where there are none."""
    box = nonzero_box(*where.cpu().numpy())
    if box is None:
        return None
    z, y, x = box_slices(box)
    return z, y, x


def _boxes_around(where: Tensor) -> Iterator[Slices]:
    """Boxes (rows, Y, X) that hold all true voxels, each as small as it can be and of `CLASS_BOX` voxels at most."""
    for corner in itertools.product(*(range(0, size, CLASS_BOX) for size in where.shape)):
        part = where[tuple(slice(a, a + CLASS_BOX) for a in corner)]
        box = _box_around(part[None])
        if box is not None:
            z, y, x = (slice(a + b.start, a + b.stop) for a, b in zip(corner, box, strict=True))
            yield z, y, x
