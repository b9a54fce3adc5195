"""Masks of a box from the probabilities of its samples, by smooth fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
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
            drawn, classes = [], None
            if of_classes and near is not None:
                of_slab = p[i, :, first:last]
                classes = self._classes(of_slab, near, fields, of_classes, way.certain, (ids[i], stream, first))
            for a, b in self.box.pieces(first, last):
                piece = slice(a - first, b - first)
                here = p[i : i + 1, :, a:b].to(self.box.case.device)
                if classes is not None:
                    foreground, winner = (values[None, None, piece] for values in classes)
                    masks = class_masks(foreground, winner, here)
                else:
                    near_here = None if near is None else near[None, :, piece]
                    masks = sample_masks(here, near_here, fields[None, :, piece], way, labels)
                if of_mean is not None and way.surface_length_mm is not None:
                    p_det, mean = (v.to(masks.device) for v in (self.box.p_det[:, a:b], of_mean[i, :, a:b]))
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
        winners = torch.zeros(p.shape[1:], dtype=torch.int32, device=near.device)
        foreground, doubtful = (torch.zeros(p.shape[1:], dtype=torch.bool, device=near.device) for _ in range(2))
        for a, b in self.box.pieces(0, p.shape[1]):
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
                start = [a + b.start for a, b in zip(self.box.rows_of_box(first, first)[0], box, strict=True)]
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
        for i, first, last in slabs:
            before = before[:, :0] if first == 0 else before
            behind = certain(i, last, min(last + reach[0], self.box.extent[0]))
            around = torch.cat([before, certain(i, first, last), behind], dim=1)
            rows = slice(before.shape[1], before.shape[1] + last - first)
            before = around[:, max(0, rows.stop - reach[0]) : rows.stop]
            yield local_maximum(around[None], reach)[0, :, rows] if bool(around.any()) else around[:, rows]


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
