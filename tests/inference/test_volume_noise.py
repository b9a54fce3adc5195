"""Noise belongs to a voxel, not to the box that asks for it."""

from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box


@pytest.mark.parametrize("slices_only", [False, True])
def test_boxes_agree_where_they_overlap(slices_only: bool) -> None:
    whole = noise_in_box(0, "c", 1, "n", 2, (0, 0, 0), (5, 70, 40), slices_only=slices_only)
    part = noise_in_box(0, "c", 1, "n", 2, (2, 30, 5), (2, 37, 35), slices_only=slices_only)
    assert torch.equal(part, whole[:, 2:4, 30:67, 5:40])


def test_noise_is_standard_normal_and_keyed_by_every_name() -> None:
    first = noise_in_box(0, "c", 0, "n", 1, (0, 0, 0), (32, 64, 64))
    assert abs(float(first.mean())) < 0.01
    assert float(first.std()) == pytest.approx(1, abs=0.01)
    for seed, case, sample, stream in ((1, "c", 0, "n"), (0, "d", 0, "n"), (0, "c", 1, "n"), (0, "c", 0, "m")):
        other = noise_in_box(seed, case, sample, stream, 1, (0, 0, 0), (32, 64, 64))
        assert abs(float((first * other).mean())) < 0.02
    blocks = first.reshape(32, 2, 32, 2, 32)
    assert abs(float((blocks[:, 0] * blocks[:, 1]).mean())) < 0.02  # neighbouring blocks are independent


def test_smooth_fields_agree_wherever_boxes_overlap() -> None:
    named = {"lengths_voxels": (0.0, 2.0, 2.0), "slices_only": True}
    large = smooth_field_in_box(0, "c", 0, "f", 1, (0, 0, 0), (1, 70, 70), **named)
    small = smooth_field_in_box(0, "c", 0, "f", 1, (0, 0, 25), (1, 20, 45), **named)
    assert torch.allclose(small, large[:, :, :20, 25:], atol=1e-5)  # at the volume's border, too
    assert float(large.std()) == pytest.approx(1, abs=0.15)
