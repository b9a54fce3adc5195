"""Laws that are known by hand: what is drawn must have their marginals, and hang together as they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import nested_probabilities
from unisegdiff_pipeline.diffusion.drawing import (
    class_race,
    draw_objects,
    field_parts,
    keep_certain,
    local_maximum,
    may_be_drawn,
    near_certain,
    nothing_drawn,
)
from unisegdiff_pipeline.diffusion.noise import NamedNoise
from unisegdiff_pipeline.diffusion.samplers import coherent_sample
from unisegdiff_pipeline.inference.volume_noise import smooth_field_in_box

SIZE, NUM_SAMPLES, RADIUS = 48, 300, 8.0
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
CLASSES = LabelScheme(("front", "back"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("core", "whole", "edge"), ((2,), (1, 2), (1,)), "regions", (2, 1, 1))
OVERLAP = LabelScheme(("a", "b", "both"), ((1, 2), (2, 3), (2,)), "regions", (1, 3, 2))


def draw(
    p: Tensor, labels: LabelScheme, surface_mm: float, whole_mm: float = 32.0, certain: float = 0.95, seed: int = 0
) -> Tensor:
    """Masks (NUM_SAMPLES, C, 1, SIZE, SIZE) with fields as prediction has them, pixels of 1 mm."""
    lengths = {"whole": whole_mm, "surface": surface_mm}
    fields = torch.cat([field(part.name, lengths[part.length], part.channels, seed) for part in field_parts(labels)], 1)
    near = near_certain(p, labels, certain, (0, int(RADIUS), int(RADIUS)))
    return draw_objects(p, near, fields, labels, certain)


def field(name: str, length_mm: float, channels: int = 1, seed: int = 0) -> Tensor:
    """A smooth field of each sample."""
    lengths = [0.0, length_mm, length_mm]
    drawn = [
        smooth_field_in_box(noise, range(channels), (0, 0, 0), (1, SIZE, SIZE), lengths, slices_only=True)
        for noise in (NamedNoise(seed, "case", i, name) for i in range(NUM_SAMPLES))
    ]
    return torch.stack(drawn)


def disc(inside: float, softness: float = 1.5) -> Tensor:
    """Probabilities (1, 1, 1, SIZE, SIZE) of a disc that is there with probability `inside`, with a soft edge."""
    grid = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    distance = torch.from_numpy(np.hypot(*grid) - RADIUS).float()
    return (inside * torch.special.ndtr(-distance / softness))[None, None, None]


def volumes(masks: Tensor) -> Tensor:
    """Of channel 0 of each sample (N,)."""
    return masks[:, 0].flatten(1).sum(dim=1)


@pytest.mark.parametrize("inside", [0.3, 0.7, 0.9])
def test_voxels_are_drawn_with_their_probability(inside: float) -> None:
    p = disc(inside)
    drawn = draw(p, BINARY, 4.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    error = (drawn.mean(dim=0) - p[0]).abs()
    assert error.max() < 4 * 0.5 / NUM_SAMPLES**0.5
    for low, high in ((0.05, 0.2), (0.2, 0.5), (0.5, 0.91)):
        of_bin = (p[0] >= low) & (p[0] < high)
        if of_bin.any():
            assert drawn.mean(dim=0)[of_bin].mean() == pytest.approx(float(p[0][of_bin].mean()), abs=0.06)


def test_an_object_in_doubt_comes_and_goes_as_a_whole_however_short_the_surface_field() -> None:
    """One short field for both mostly draws pieces of the disc."""
    p = disc(0.7)
    middle = (p[0, 0] > 0.69).expand(NUM_SAMPLES, -1, -1, -1)

    def pieces(masks: Tensor) -> float:
        """Share of the draws that hold a part of the middle, and not all."""
        held = torch.stack([mask[inside].mean() for mask, inside in zip(masks[:, 0], middle, strict=True)])
        return float(((held > 0.05) & (held < 0.95)).float().mean())

    drawn = draw(p, BINARY, 2.0)
    one_field = coherent_sample(p, field("whole", 2.0), "binary")
    assert (volumes(drawn) > 0).float().mean() == pytest.approx(0.7, abs=0.08)
    assert pieces(one_field) > 0.6
    assert pieces(drawn) < 0.15  # where the long field crosses within the disc


def test_the_volume_of_an_organ_varies_by_as_much_as_its_surface_hangs_together() -> None:
    """The variance of a sum of voxels is the sum of their covariances, which a short field makes small."""
    p = disc(1.0)
    deviations = [float(volumes(draw(p, BINARY, mm)).std()) for mm in (2.0, 8.0, 32.0)]
    ring = float((p * (1 - p)).sum())
    assert deviations[0] < 0.5 * deviations[2]
    assert deviations[0] < deviations[1] < deviations[2]
    assert deviations[0] > ring**0.5  # voxels of a surface that hang together at all vary more than such that do not


def test_no_draw_leaves_out_what_is_certain() -> None:
    """A disc that is there with probability 0.96 was empty in one draw of 25."""
    p = disc(0.96)
    assert (volumes(coherent_sample(p, field("whole", 32.0), "binary")) == 0).any()
    drawn = draw(p, BINARY, 32.0)
    assert volumes(drawn).min() >= (p >= 0.95).sum()
    assert (volumes(draw(p, BINARY, 32.0, certain=1.0)) == 0).any()


def test_a_doubt_about_the_class_breaks_no_object_in_two() -> None:
    """An object that is surely there is of one class or the other, as a whole."""
    whole = disc(0.999, softness=0.2)
    p = torch.cat([1 - whole, 0.5 * whole, 0.5 * whole], dim=1)
    drawn = draw(p, CLASSES, 4.0, whole_mm=64.0)
    assert torch.equal(drawn.sum(dim=1), torch.ones_like(drawn[:, 0]))
    size = drawn[:, 1:].flatten(2).sum(dim=2)  # (N, 2)
    larger = size.amax(dim=1) / size.sum(dim=1)
    assert larger.median() == 1
    assert (size[:, 0] / size.sum(dim=1)).mean() == pytest.approx(0.5, abs=0.08)


def test_a_class_that_is_certain_is_never_taken_for_another() -> None:
    whole = disc(0.999, softness=0.2)
    p = torch.cat([1 - whole, 0.96 * whole, 0.04 * whole], dim=1)
    drawn = draw(p, CLASSES, 4.0)
    assert drawn[:, 2].sum() == 0


def test_where_two_sure_classes_meet_the_border_is_a_surface() -> None:
    """The front half is one class and the back half another, unsure over three pixels between them: with a long field
    the whole border moves at once, and so does the volume of both; with a short one it does not."""
    whole = disc(0.999, softness=0.2)
    fraction = torch.special.ndtr((torch.arange(SIZE) - (SIZE - 1) / 2) / 3.0)
    p = torch.cat([1 - whole, fraction * whole, (1 - fraction) * whole], dim=1)
    short, long = (draw(p, CLASSES, mm)[:, 1].flatten(1).sum(dim=1).std() for mm in (2.0, 32.0))
    assert short < 0.65 * long


def test_marginals_of_classes_are_kept() -> None:
    p = torch.tensor([0.3, 0.5, 0.2]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, SIZE, SIZE)
    drawn = draw(p, CLASSES, 2.0, whole_mm=2.0)
    assert drawn.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.02)


def test_regions_are_drawn_within_those_around_them() -> None:
    p = torch.tensor([0.4, 0.8, 0.6]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, SIZE, SIZE)
    drawn = draw(p, REGIONS, 2.0, whole_mm=2.0)
    assert (drawn[:, 0] <= drawn[:, 1]).all()
    assert (drawn[:, 2] <= drawn[:, 1]).all()
    assert drawn.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx([0.4, 0.8, 0.6], abs=0.02)


def of_voxels(*probabilities: float) -> Tensor:
    """The same probabilities of channels everywhere (1, C, 1, SIZE, SIZE)."""
    return torch.tensor(probabilities).reshape(1, -1, 1, 1, 1).expand(1, -1, 1, SIZE, SIZE)


def combinations_drawn(masks: Tensor) -> set[tuple[int, ...]]:
    """All combinations of channels that any voxel of masks (N, C, *spatial) has."""
    return {tuple(map(int, row)) for row in masks.movedim(1, -1).flatten(0, -2).unique(dim=0)}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_regions_that_overlap_keep_their_probabilities_and_what_they_share(order: tuple[int, ...]) -> None:
    """`both` given only the last of the regions around it came half as often, and voxels of a and b were not of it."""
    names, members = zip(*((OVERLAP.names[i], OVERLAP.members[i]) for i in order), strict=True)
    scheme = LabelScheme(names, members, "regions", tuple(OVERLAP.write_values[i] for i in order))
    p = of_voxels(0.4, 0.8, 0.35)
    drawn = draw(p[:, list(order)], scheme, 2.0, whole_mm=2.0)
    of_listed = drawn[:, [order.index(i) for i in range(3)]]
    assert of_listed.mean(dim=(0, 2, 3, 4)).tolist() == pytest.approx([0.4, 0.8, 0.35], abs=0.02)
    assert combinations_drawn(of_listed) == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1)}


def test_samples_of_regions_that_overlap_are_written_as_they_were_drawn() -> None:
    drawn = draw(of_voxels(0.5, 0.6, 0.3), OVERLAP, 2.0, whole_mm=2.0)[0].numpy()
    assert (OVERLAP.encode(OVERLAP.decode(drawn)) == drawn).all()


def test_regions_whose_probabilities_contradict_one_another_are_drawn_as_labels_that_exist() -> None:
    """a and b of 0.8 share 0.6 at least; what is certain is drawn for all that."""
    contradicting = draw(of_voxels(0.8, 0.8, 0.3), OVERLAP, 2.0, whole_mm=2.0)
    assert combinations_drawn(contradicting) == {(1, 0, 0), (0, 1, 0), (1, 1, 1)}
    a_certain = draw(of_voxels(0.96, 0.5, 0.4), OVERLAP, 2.0, whole_mm=2.0)
    assert combinations_drawn(a_certain) == {(1, 0, 0), (1, 1, 1)}
    assert combinations_drawn(draw(of_voxels(0.96, 0.96, 0.5), OVERLAP, 2.0)) == {(1, 1, 1)}


def test_what_the_mean_is_certain_of_makes_no_label_that_does_not_exist() -> None:
    of_b = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1, 1)
    for reported, kept in (
        ((0.96, 0.2, 0.1), [1, 0, 0]),
        ((0.96, 0.97, 0.6), [1, 1, 1]),
        ((0.2, 0.97, 0.1), [0, 1, 0]),
    ):
        p = torch.tensor(reported).reshape(1, 3, 1, 1, 1)
        assert keep_certain(of_b, p, OVERLAP, 0.95).flatten().tolist() == kept
    of_both = torch.ones(1, 3, 1, 1, 1)
    assert keep_certain(of_both, torch.tensor([0.96, 0.2, 0.1]).reshape(1, 3, 1, 1, 1), OVERLAP, 0.95).equal(of_both)


@pytest.mark.parametrize("reach", [(0, 0, 0), (0, 1, 2), (0, 5, 13), (0, 60, 3)])
def test_the_local_maximum_is_that_of_the_box_around_a_voxel(reach: tuple[int, int, int]) -> None:
    from scipy.ndimage import maximum_filter

    values = torch.rand(2, 1, 3, 21, 30, generator=torch.Generator().manual_seed(1))
    size = (1, 1, *(2 * r + 1 for r in reach))
    expected = maximum_filter(values.numpy(), size=size, mode="constant")
    assert torch.equal(local_maximum(values, reach), torch.from_numpy(expected))
    assert torch.equal(local_maximum(values > 0.95, reach), torch.from_numpy(expected > 0.95))


def test_what_the_mean_is_certain_of_is_kept() -> None:
    p = torch.tensor([0.97, 0.96, 0.94]).reshape(1, 1, 1, 1, 3)
    empty = torch.zeros(2, 1, 1, 1, 3)
    assert keep_certain(empty, p, BINARY, 0.95).flatten(1).tolist() == [[1, 1, 0]] * 2
    of_classes = torch.tensor([[0.97, 0.02, 0.01], [0.02, 0.97, 0.01], [0.04, 0.02, 0.94]]).T.reshape(1, 3, 1, 1, 3)
    front = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 3)
    assert keep_certain(front, 1 - of_classes * 0, CLASSES, 2.0).equal(front)  # nothing is certain
    kept = keep_certain(1 - front, of_classes, CLASSES, 0.95)
    assert kept[0, :, 0, 0, 1].tolist() == [0, 1, 0]
    assert kept[0, :, 0, 0, 0].equal((1 - front)[0, :, 0, 0, 0])  # background is never forced


@pytest.mark.parametrize("labels", [BINARY, CLASSES, REGIONS, OVERLAP])
def test_nothing_is_drawn_where_nothing_may_be(labels: LabelScheme) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(200, labels.num_channels, 1, 8, 8, generator=generator) - 3
    p = logits.softmax(dim=1) if labels.coding == "softmax" else nested_probabilities(logits.sigmoid(), labels.nesting)
    near = near_certain(p, labels, 0.9)
    fields = torch.randn(200, sum(part.channels for part in field_parts(labels)), 1, 8, 8, generator=generator)
    for level in (-1.0, 1.5):  # of a smooth field, which may be low or high everywhere
        raised = 0.2 * fields + level
        drawn = draw_objects(p, near, raised, labels, 0.9)
        possible = may_be_drawn(p, raised, labels, 0.9)
        empty = nothing_drawn(p[0], labels)
        assert 0 < possible.sum() < possible.numel()
        assert torch.equal(torch.where(possible[:, None], drawn, empty), drawn)
        assert (drawn != empty).any()


def test_the_race_of_classes_is_won_as_often_as_they_are_likely() -> None:
    p = torch.tensor([0.2, 0.48, 0.32, 0.0])[None, :, None]  # of the foreground 0.6, 0.4 and nothing
    field = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 40_000)))
    won = torch.bincount(class_race(p.double(), field).flatten(), minlength=3) / 40_000
    assert won.tolist() == pytest.approx([0.6, 0.4, 0.0], abs=0.01)


def test_a_class_a_thousand_times_less_likely_than_another_never_wins() -> None:
    """Even where its field is as good as can be: of a hundred such classes one would win somewhere."""
    field = torch.tensor([0.0, 9.0])[None, :, None]
    for of_second, winner in ((0.0005, 0), (0.002, 1)):
        p = torch.tensor([0.0, 1 - of_second, of_second])[None, :, None]
        assert int(class_race(p, field)) == winner
