"""Noise belongs to a voxel, not to the box that asks for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.fields import smooth_field
from unisegdiff_pipeline.diffusion.noise import STEPS, NamedNoise
from unisegdiff_pipeline.inference import volume_noise
from unisegdiff_pipeline.inference.volume_noise import noise_in_box, smooth_field_in_box


def noise(sample: int = 0) -> NamedNoise:
    return NamedNoise(0, "c", sample, "f")


@pytest.mark.parametrize("slices_only", [False, True])
def test_boxes_agree_where_they_overlap(slices_only: bool) -> None:
    whole = noise_in_box(noise(), range(3), (0, -20, 0), (5, 70, 40), slices_only=slices_only)
    part = noise_in_box(noise(), [0, 2], (2, 10, 5), (2, 37, 35), slices_only=slices_only)
    assert torch.equal(part, whole[[0, 2], 2:4, 30:67, 5:40])


@pytest.mark.parametrize("slices_only", [False, True])
def test_noise_is_standard_normal_and_keyed_by_every_name(slices_only: bool) -> None:
    named = {"start": (0, 0, 0), "extent": (32, 64, 64), "slices_only": slices_only}
    both = noise_in_box(NamedNoise(0, "c", 0, "n"), range(2), **named)
    first = both[:1]
    assert abs(float(first.mean())) < 0.01
    assert float(first.std()) == pytest.approx(1, abs=0.01)
    for seed, case, sample, stream in ((1, "c", 0, "n"), (0, "d", 0, "n"), (0, "c", 1, "n"), (0, "c", 0, "m")):
        other = noise_in_box(NamedNoise(seed, case, sample, stream), [0], **named)
        assert abs(float((first * other).mean())) < 0.02
    for axis, shift in ((0, 1), (1, 1), (1, 8), (1, 16), (2, 1), (2, 8), (2, 16), (3, 1), (3, 16), (3, 32)):
        assert abs(float((both * both.roll(shift, axis)).mean())) < 0.02  # neighbours, also in other sequences


@pytest.mark.parametrize("chunk", [64, 7])
def test_smooth_fields_are_the_same_to_the_last_digit_in_any_box(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    for slices_only, lengths in ((False, (3.0, 9.0, 0.0)), (False, (0.4, 1.7, 40.0)), (True, (0.0, 2.0, 12.5))):
        large = smooth_field_in_box(noise(), range(2), (-3, 5, 0), (20, 98, 36), lengths, slices_only=slices_only)
        assert large.shape == (2, 20, 98, 36)
        monkeypatch.setattr(volume_noise, "CHUNK", chunk)
        for start, extent in (((2, 9, 11), (6, 10, 9)), ((-3, 40, 1), (1, 63, 35))):
            small = smooth_field_in_box(noise(), [1], start, extent, lengths, slices_only=slices_only)
            inside = tuple(slice(a - b, a - b + n) for a, b, n in zip(start, (-3, 5, 0), extent, strict=True))
            assert torch.equal(small, large[(slice(1, 2), *inside)])


def test_no_order_of_adding_up_changes_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a product of matrices is in fp64: its sums are exact in fp32 already."""
    found = smooth_field_in_box(noise(), [0], (0, 0, 0), (9, 30, 21), (1.0, 3.9, 7.9))
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: product(a.double(), b.double()).float())
    assert torch.equal(found, smooth_field_in_box(noise(), [0], (0, 0, 0), (9, 30, 21), (1.0, 3.9, 7.9)))


def test_no_sum_of_a_field_is_too_large_to_be_exact() -> None:
    """Of the largest values that an axis is given, also where nodes are half a length apart, or more than one."""
    for length in (1e-3, *np.linspace(0.05, 8, 160), np.nextafter(1, 0), np.nextafter(2, 0), 31.99, 1e4):
        weights = volume_noise._weights(-9, volume_noise.CHUNK, float(length))[1].double()
        assert torch.equal(weights, weights.round())
        sums = weights.sum(dim=1) * volume_noise.LARGEST * STEPS
        assert float(sums.max()) <= volume_noise.EXACT
        assert float(sums.min()) > volume_noise.EXACT / 8  # the weights are not coarser than need be


def test_fields_are_the_same_on_threads() -> None:
    """In the inference mode of the caller, which threads do not inherit, and far from the origin."""
    place, boxes = (-9, 2**31 - 20, 2**33), [(-9, 2**31 - 20, 2**33 + 8 * i) for i in range(4)]
    with torch.inference_mode():
        whole = smooth_field_in_box(noise(), range(2), place, (20, 21, 32), (2.3, 5.5, 17.2))
        with ThreadPoolExecutor(4) as pool:
            parts = pool.map(
                lambda start: smooth_field_in_box(noise(), range(2), start, (20, 21, 8), (2.3, 5.5, 17.2)), boxes
            )
        assert torch.equal(torch.cat(list(parts), dim=3), whole)


def test_a_short_field_is_the_convolution_of_its_noise() -> None:
    white = noise_in_box(noise(), [0], (-5, 0, -5), (30, 20, 40)).numpy()
    field = smooth_field_in_box(noise(), [0], (0, 0, 0), (20, 20, 30), (1.4, 0.0, 1.2))
    assert np.abs(field.numpy() - smooth_field(white, (1.4, 0.0, 1.2))).max() < 0.02  # weights are in 512ths


def test_long_fields_are_drawn_on_a_coarser_grid_with_the_same_law() -> None:
    """Variance 1 and correlations exp(-d^2 / (4 l^2)) at nodes and between them, from the weights of one axis."""
    for length in (1.0, 1.9, 2.0, 12.7):
        _, weights, scale = volume_noise._weights(-7, 60, length)
        rows = (weights * scale[:, None]).double()
        apart = torch.arange(60)[:, None] - torch.arange(60)
        expected = torch.exp(-(apart**2).double() / (4 * length**2))
        assert float((rows @ rows.T - expected).abs().max()) < 4e-3
    fields = torch.cat(
        [smooth_field_in_box(noise(i), [0], (0, 4, 7), (1, 60, 60), (0.0, 12.0, 12.0)) for i in range(200)]
    )
    assert float(fields.var()) == pytest.approx(1, abs=0.1)
    apart_by_length = (fields[..., :-12] * fields[..., 12:]).mean() / fields.square().mean()
    assert float(apart_by_length) == pytest.approx(0.7788, abs=0.05)
