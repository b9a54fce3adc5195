"""Hard masks from probabilities: every voxel keeps its probability, and what belongs together is drawn together.

A voxel is marked where Phi(f) < p, with a smooth standard normal field f, so that it is marked with probability p. The
length of the field decides what belongs together. Two things may be in doubt, over different lengths: whether an object
is there at all, and where its surface runs. A single field is either too short for the first and draws pieces of
objects, or too long for the second and makes a whole organ grow and shrink at once. So there are two: where something
is certain within reach, the field of surfaces decides, elsewhere that of objects. Which of them decides at a voxel
depends on the probabilities alone, so that each voxel keeps its own.

What is certain is in every draw, so that none leaves out a clear object because a field happens to be high there.

Classes are drawn in the order of what they depend on: first whether there is any foreground, then of which class it is;
regions within others given that these were drawn. So a doubt about the class breaks no object in two.

Regions that overlap, neither within the other, are drawn as if each combination of regions that a label value has were
a class: drawn one by one, they would meet where no label value has both, or miss the region of what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme

TINY = 1e-12
FOREGROUND = 0.5  # the class is looked at where there is anything
RULED_OUT = 1e-3  # a class that is so much less likely than the likeliest one is not drawn


class FieldPart(NamedTuple):
    """Smooth fields that a draw needs: as many as `channels`, all of the length of whole objects or of surfaces."""

    name: str
    length: Literal["whole", "surface"]
    channels: int


def field_parts(labels: LabelScheme) -> tuple[FieldPart, ...]:
    """The fields of `draw_objects`, in the order of its channels: two for each level of nesting, or two and two more
    for each of several classes, or combinations of regions."""
    if not _as_classes(labels):
        levels = 1 + max(map(len, _outer_channels(labels).values()), default=0)
        return tuple(
            FieldPart(f"{length}{level or ''}", length, 1) for level in range(levels) for length in ("whole", "surface")
        )
    count = len(labels.combinations if labels.overlap else labels.names)
    both = (FieldPart("whole", "whole", 1), FieldPart("surface", "surface", 1))
    return both if count == 1 else (*both, FieldPart("class", "whole", count), FieldPart("border", "surface", count))


def doubts(p: Tensor, labels: LabelScheme, certain: float) -> Tensor:
    """What counts in the neighbourhood of a voxel (N, D, *spatial): whether it is certain; see `near_certain`.

    Of sigmoid channels the probability of each, and where there is a region around it, given that; of classes, or
    combinations of regions, that of foreground, and where there is any that of the likeliest one.
    """
    if labels.overlap:
        p = combination_probabilities(p, labels, certain)
    elif labels.coding != "softmax":
        given, around = _given_outer(p, labels), _outer_channels(labels)
        for inner, outer in around.items():
            given[:, inner] = torch.where(p[:, outer[-1]] >= FOREGROUND, given[:, inner], 0.0)
        return given
    foreground = 1 - p[:, :1]
    likeliest = p[:, 1:].amax(dim=1, keepdim=True) / foreground.clamp_min(TINY)
    return torch.cat([foreground, torch.where(foreground >= FOREGROUND, likeliest, 0.0)], dim=1)


def near_certain(p: Tensor, labels: LabelScheme, certain: float, reach: Sequence[int] = ()) -> Tensor:
    """Where something certain lies within `reach` voxels along each axis (() for none), boolean (N, D, *spatial)."""
    return local_maximum(doubts(p, labels, certain) >= certain, reach)


def draw_objects(p: Tensor, near: Tensor, fields: Tensor, labels: LabelScheme, certain: float) -> Tensor:
    """A mask of each sample, {0, 1} (N, C, *spatial), with the marginals p but for what counts as certain or ruled out.

    Of regions that overlap, neither within the other, only combinations are drawn that a label value has. They keep
    their marginals where p is that of any such combinations; see `combination_probabilities`. Regions that share no
    value are drawn each on its own and may meet; of these, the last one is written.

    Args:
        p: probabilities (N or 1, C, *spatial); of regions nested ones (`coding.nested_probabilities`).
        near: their `near_certain` (N or 1, D, *spatial).
        fields: standard normal and smooth, those of `field_parts` (N, F, *spatial); those of surfaces count only where
            any channel of `near` is true.
        labels: what the channels are.
        certain: probabilities from here on count as 1.
    """
    if labels.coding == "softmax":
        return _draw_classes(p, near, fields, certain)
    if labels.overlap:
        drawn = _draw_classes(combination_probabilities(p, labels, certain), near, fields, certain)
        return _regions_of(drawn[:, 1:], labels)
    masks: dict[int, Tensor] = {}
    around = _outer_channels(labels)
    given = _given_outer(p, labels)
    for channel in sorted(range(p.shape[1]), key=lambda c: len(around.get(c, ()))):
        outer = around.get(channel, [])
        one, level = slice(channel, channel + 1), 2 * len(outer)
        mask = _draw_binary(given[:, one], near[:, one], fields[:, level : level + 2], certain)
        for other in outer:
            mask = mask & masks[other]
        masks[channel] = mask
    return torch.cat([masks[channel] for channel in range(p.shape[1])], dim=1).to(p.dtype)


def may_be_drawn(p: Tensor, fields: Tensor, labels: LabelScheme, certain: float) -> Tensor:
    """Where `draw_objects` can mark anything with fields that are nowhere lower than these, boolean (N, *spatial)."""
    foreground = 1 - p[:, 0] if labels.coding == "softmax" else p.sum(dim=1)  # at most, where regions overlap
    least = 0.999 * torch.special.ndtr(fields.amin())  # a last digit of it may be another in the box of all fields
    return foreground >= least.clamp_max(certain)


def nothing_drawn(like: Tensor, labels: LabelScheme) -> Tensor:
    """The mask in which nothing is marked (C, *spatial)."""
    mask = torch.zeros_like(like)
    if labels.coding == "softmax":
        mask[0] = 1
    return mask


def keep_certain(masks: Tensor, reported: Tensor, labels: LabelScheme, certain: float) -> Tensor:
    """The masks with all that the reported probabilities are certain of (both (N or 1, C, *spatial)).

    What is drawn last comes of a call that has seen a mask drawn before, and may doubt what the mean does not.
    """
    sure = reported >= certain
    if labels.overlap:  # the regions that are sure may meet those drawn where no label value has both
        likeliest = likeliest_class(combination_probabilities(reported, labels, certain))
        lacking = (sure & (masks == 0)).any(dim=1, keepdim=True)
        of_regions = _regions_of(is_channel(likeliest, len(labels.combinations)).to(masks.dtype), labels)
        return torch.where(lacking, of_regions, masks)
    if labels.coding != "softmax":
        return torch.maximum(masks, sure.to(masks.dtype))
    of_class = torch.cat([torch.zeros_like(sure[:, :1]), sure[:, 1:]], dim=1)
    return torch.where(of_class.any(dim=1, keepdim=True), of_class.to(masks.dtype), masks)


def combination_probabilities(p: Tensor, labels: LabelScheme, certain: float) -> Tensor:
    """Probabilities of background and each of `LabelScheme.combinations` (N, 1 + combinations, *spatial).

    A combination is as likely as the least likely of its regions, less what combinations of more regions take of them.
    With a region for what others share, as `LabelScheme.order_problem` asks for, that gives each region the
    probability that it has, but

    - combinations that lack a certain region are impossible, and one of the others is drawn;
    - where they add up to more than 1, because p(a) + p(b) - p(both) does, all are scaled down;
    - a region that is likelier than its combinations can be is drawn as often as they are.

    Args:
        p: of regions (N, C, *spatial).
        labels: of regions that overlap.
        certain: probabilities from here on count as 1.
    """
    sure = p >= certain
    left, found, possible = list(p.unbind(dim=1)), [], []
    for regions in labels.combinations:
        least = torch.stack([left[i] for i in regions]).amin(dim=0)
        for i in regions:
            left[i] = left[i] - least
        found.append(least)
        others = [i for i in range(p.shape[1]) if i not in regions]
        possible.append(~sure[:, others].any(dim=1) if others else torch.ones_like(sure[:, 0]))
    of_these = torch.stack(possible, dim=1)
    of_these = of_these | ~of_these.any(dim=1, keepdim=True)  # no label value has all the regions that are certain
    likely = torch.where(of_these, torch.stack(found, dim=1).clamp_min(TINY), 0.0)
    total = likely.sum(dim=1, keepdim=True)
    likely = likely / torch.where(sure.any(dim=1, keepdim=True), total, total.clamp_min(1.0))
    return torch.cat([(1 - likely.sum(dim=1, keepdim=True)).clamp_min(0.0), likely], dim=1)


def _regions_of(drawn: Tensor, labels: LabelScheme) -> Tensor:
    """Masks of regions (N, C, *spatial) from those of their combinations (N, combinations, *spatial)."""
    held = [[i for i, regions in enumerate(labels.combinations) if c in regions] for c in range(len(labels.names))]
    return torch.stack([drawn[:, of_region].amax(dim=1) for of_region in held], dim=1)


def _as_classes(labels: LabelScheme) -> bool:
    return labels.coding == "softmax" or labels.overlap


def _outer_channels(labels: LabelScheme) -> dict[int, list[int]]:
    """The regions around each that lies in any, from the largest to the smallest."""
    result: dict[int, list[int]] = {}
    for inner, around in labels.nesting:
        result.setdefault(inner, []).append(around)
    return result


def _given_outer(p: Tensor, labels: LabelScheme) -> Tensor:
    """Probability of each region, given that the smallest around it is there (N, C, *spatial)."""
    given = p.clone()
    for inner, outer in _outer_channels(labels).items():
        given[:, inner] = p[:, inner] / p[:, outer[-1]].clamp_min(TINY)
    return given


def _draw_binary(p: Tensor, near: Tensor, fields: Tensor, certain: float) -> Tensor:
    """Where there is something, boolean (N, 1, *spatial); fields (N, 2, *spatial)."""
    field = torch.where(near, fields[:, 1:], fields[:, :1])
    return (p >= certain) | (torch.special.ndtr(field) < p)


def _draw_classes(p: Tensor, near: Tensor, fields: Tensor, certain: float) -> Tensor:
    """Foreground first, then its class.

    Where some class is certain nearby, what is in doubt is where it ends; elsewhere it is the class of an object.
    """
    count = p.shape[1] - 1
    drawn = draw_foreground(p, near, fields[:, :2], certain)
    if count == 1:
        return torch.cat([~drawn, drawn], dim=1).to(p.dtype)
    field = torch.where(near[:, 1:], fields[:, 2 + count :], fields[:, 2 : 2 + count])
    winner = torch.where(class_in_doubt(p, certain), class_race(p, field), likeliest_class(p))
    return class_masks(drawn, winner, p)


def draw_foreground(p: Tensor, near: Tensor, fields: Tensor, certain: float) -> Tensor:
    """Where there is any class, boolean (N, 1, *spatial); fields (N, 2, *spatial)."""
    return _draw_binary(1 - p[:, :1], near[:, :1], fields, certain)


def class_in_doubt(p: Tensor, certain: float) -> Tensor:
    """Where fields decide of which class the foreground is, boolean (N, 1, *spatial)."""
    return _given_foreground(p).amax(dim=1, keepdim=True) < certain


def possible_classes(p: Tensor) -> Tensor:
    """The classes that may win the race, boolean (N, classes, *spatial)."""
    return p[:, 1:] >= RULED_OUT * p[:, 1:].amax(dim=1, keepdim=True)


def class_race(p: Tensor, field: Tensor) -> Tensor:
    """Which class the foreground is, (N, 1, *spatial): exponential clocks (the Gumbel-max trick) of smooth fields.

    Args:
        p: probabilities of background and classes (N, 1 + classes, *spatial).
        field: (N, classes, *spatial); what it is of a class that is not possible does not matter.
    """
    clocks = torch.special.ndtr(field).clamp(1e-7, 1 - 1e-7).log_().neg_() / _given_foreground(p).clamp_min(TINY)
    return first_smallest(torch.where(possible_classes(p), clocks, torch.inf))


def likeliest_class(p: Tensor) -> Tensor:
    """(N, 1, *spatial)"""
    return first_smallest(-p[:, 1:])


def class_masks(drawn: Tensor, winner: Tensor, p: Tensor) -> Tensor:
    """Masks like p (N, 1 + classes, *spatial) of where there is foreground and its class, (N, 1, *spatial) each."""
    return torch.cat([~drawn, drawn & is_channel(winner, p.shape[1] - 1)], dim=1).to(p.dtype)


def first_smallest(values: Tensor) -> Tensor:
    """The first channel with the smallest value, (N, C, *spatial) -> int32 (N, 1, *spatial).

    argmin over so few channels takes ten times as long on a CPU; onnxruntime chooses between no numbers of 16 bits.
    """
    least, winner = values[:, :1], torch.zeros_like(values[:, :1], dtype=torch.int32)
    for channel in range(1, values.shape[1]):
        value = values[:, channel : channel + 1]
        winner = torch.where(value < least, channel, winner)
        least = torch.minimum(least, value)
    return winner


def is_channel(winner: Tensor, count: int) -> Tensor:
    """Whether each of `count` channels is the one of the number, (N, 1, *spatial) -> boolean (N, count, *spatial)."""
    numbers = torch.arange(count, dtype=winner.dtype, device=winner.device)
    return winner == numbers.reshape(-1, *(1,) * (winner.ndim - 2))


def _given_foreground(p: Tensor) -> Tensor:
    return p[:, 1:] / (1 - p[:, :1]).clamp_min(TINY)


def local_maximum(values: Tensor, reach: Sequence[int]) -> Tensor:
    """The largest of (N, C, *spatial) within `reach` voxels along each axis, in a box; of booleans whether any is."""
    for axis, radius in enumerate(reach, start=2):
        covered, size = 0, values.shape[axis]
        while covered < radius:  # windows of windows: each doubles what is covered
            step = min(max(1, covered), radius - covered)
            covered += step
            if step >= size:
                continue
            grown = values.clone()
            low, high = (slice(None),) * axis + (slice(size - step),), (slice(None),) * axis + (slice(step, None),)
            grown[high] = torch.maximum(grown[high], values[low])
            grown[low] = torch.maximum(grown[low], values[high])
            values = grown
    return values
