"""Noise belongs to a voxel, not to the box that asks for it."""

from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.diffusion.noise import BlockNoise
from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box


@pytest.mark.parametrize("slices_only", [False, True])
def test_boxes_agree_where_they_overlap(slices_only: bool) -> None:
    whole = noise_in_box(BlockNoise(0, "c", 1, "n"), 2, (0, 0, 0), (5, 70, 40), slices_only=slices_only)
    part = noise_in_box(BlockNoise(0, "c", 1, "n"), 2, (2, 30, 5), (2, 37, 35), slices_only=slices_only)
    assert torch.equal(part, whole[:, 2:4, 30:67, 5:40])


def test_noise_is_standard_normal_and_keyed_by_every_name() -> None:
    first = noise_in_box(BlockNoise(0, "c", 0, "n"), 1, (0, 0, 0), (32, 64, 64))
    assert abs(float(first.mean())) < 0.01
    assert float(first.std()) == pytest.approx(1, abs=0.01)
    for seed, case, sample, stream in ((1, "c", 0, "n"), (0, "d", 0, "n"), (0, "c", 1, "n"), (0, "c", 0, "m")):
        other = noise_in_box(BlockNoise(seed, case, sample, stream), 1, (0, 0, 0), (32, 64, 64))
        assert abs(float((first * other).mean())) < 0.02
    blocks = first.reshape(32, 2, 32, 2, 32)
    assert abs(float((blocks[:, 0] * blocks[:, 1]).mean())) < 0.02  # neighbouring blocks are independent


def test_smooth_fields_agree_wherever_boxes_overlap() -> None:
    named = {"lengths_voxels": (0.0, 2.0, 2.0), "slices_only": True}
    large = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 1, (0, 0, 0), (1, 70, 70), **named)
    small = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 1, (0, 0, 25), (1, 20, 45), **named)
    assert torch.allclose(small, large[:, :, :20, 25:], atol=1e-5)  # at the volume's border, too
    assert float(large.std()) == pytest.approx(1, abs=0.15)


def test_some_channels_alone_are_those_of_all() -> None:
    named = {"lengths_voxels": (0.0, 2.0, 12.0), "slices_only": True}
    every = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 5, (0, 3, 5), (1, 20, 45), **named)
    some = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 5, (0, 3, 5), (1, 20, 45), **named, only=[1, 3])
    assert torch.equal(some, every[[1, 3]])


def test_long_fields_are_drawn_on_a_coarser_grid_with_the_same_law() -> None:
    """l = 12 voxels: nodes every third voxel; at the nodes and between them variance 1, and exp(-d^2 / (4 l^2))."""
    named = {"lengths_voxels": (0.0, 12.0, 12.0), "slices_only": True}
    noises = [BlockNoise(0, "c", i, "f") for i in range(300)]
    fields = torch.cat([smooth_field_in_box(noise, 1, (0, 4, 7), (1, 60, 60), **named) for noise in noises])
    at_node, between = fields[:, 0, 2, 2], fields[:, 0, 3, 3]  # 4 + 2 and 7 + 2 are multiples of 3
    assert float(at_node.var()) == pytest.approx(1, abs=0.25)
    assert float(between.var() / at_node.var()) == pytest.approx(1, abs=0.05)
    apart = (fields[..., :-12] * fields[..., 12:]).mean() / fields.square().mean()
    assert float(apart) == pytest.approx(0.7788, abs=0.05)
    small = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 1, (0, 20, 31), (1, 11, 9), **named)
    assert torch.allclose(small[0], fields[0][:, 16:27, 24:33], atol=1e-5)


def test_fields_in_three_dimensions_agree_wherever_boxes_overlap() -> None:
    large = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 2, (-3, 5, 0), (20, 18, 26), (3.0, 9.0, 0.0))
    small = smooth_field_in_box(BlockNoise(0, "c", 0, "f"), 2, (2, 9, 11), (6, 10, 9), (3.0, 9.0, 0.0))
    assert large.shape == (2, 20, 18, 26)
    assert torch.allclose(small, large[:, 5:11, 4:14, 11:20], atol=1e-5)
