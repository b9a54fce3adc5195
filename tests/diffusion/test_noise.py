"""Noise by name and place, and fields smoothed from it."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.diffusion.noise import BlockNoise, kernel_radius, smooth_field


def test_equal_names_and_places_give_equal_noise_and_others_another() -> None:
    base = BlockNoise(0, "case", 1, "start").block((0, 2), (2, 8, 8))
    noise = BlockNoise(0, "case", 1, "start")
    first, second = noise.block((5, 2), (2, 8, 8)), noise.block((0, 2), (2, 8, 8))
    assert np.array_equal(base, second)  # whatever was drawn before
    assert not np.array_equal(first, second)
    for other in ((1, "case", 1, "start"), (0, "other", 1, "start"), (0, "case", 2, "start"), (0, "case", 1, "call")):
        assert not np.array_equal(base, BlockNoise(*other).block((0, 2), (2, 8, 8)))


def test_a_fresh_generator_of_the_same_key_draws_the_same() -> None:
    """Setting the state anew must leave nothing of the block before, also where that used half a buffer."""
    noise = BlockNoise(0, "c", 0, "s")
    noise.block((9, 9), (3,))
    assert np.array_equal(noise.block((1, 1), (5,)), BlockNoise(0, "c", 0, "s").block((1, 1), (5,)))


def test_noise_is_standard_normal() -> None:
    values = BlockNoise(0, "c", 0, "s").block((0, 0, 0), (64, 64, 64))
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)


def test_smooth_field_keeps_unit_variance_and_has_the_asked_correlation() -> None:
    rng = np.random.default_rng(0)
    fields = np.stack([smooth_field(rng.standard_normal((1, 86, 86), np.float32), (3.0, 3.0)) for _ in range(60)])
    radius = kernel_radius(3.0)
    assert radius == 11
    assert fields.shape == (60, 1, 86 - 2 * radius, 86 - 2 * radius)
    assert fields.var() == pytest.approx(1, abs=0.1)
    assert fields[..., 0].var() == pytest.approx(1, abs=0.15)  # at the border as inside
    at_three = (fields[..., :-3] * fields[..., 3:]).mean()
    assert at_three == pytest.approx(0.7788 * fields.var(), abs=0.08)  # exp(-d^2 / (4 l^2)) at d = l


def test_axes_of_length_zero_are_left_alone() -> None:
    white = np.random.default_rng(0).standard_normal((2, 3, 40), np.float32)
    smooth = smooth_field(white, (0.0, 2.0))
    assert smooth.shape == (2, 3, 40 - 2 * kernel_radius(2.0))
    by_hand = smooth_field(white[1:, 2:], (0.0, 2.0))
    assert np.allclose(smooth[1:, 2:], by_hand)
    assert np.array_equal(smooth_field(white, (0.0, 0.0)), white)


def test_smooth_fields_are_the_same_to_the_last_digit_in_any_box() -> None:
    """Large values on both sides of the middle cancel, so that any other order of adding them up would show."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((1, 60, 51), np.float32)
    white[..., :25] *= 1e8
    white[..., 26:] = -white[..., 24::-1]
    for volume, lengths in ((white, (0.0, 3.0)), (np.swapaxes(white, 1, 2), (3.0, 0.0))):
        whole = smooth_field(volume, lengths)
        for axis, low, high in ((1, 14, 37), (1, 13, 40), (2, 14, 37), (2, 13, 40)):
            margin = kernel_radius(lengths[axis - 1])
            part = smooth_field(volume.take(range(low, high), axis), lengths)
            assert np.array_equal(part, whole.take(range(low, high - 2 * margin), axis))


def test_voxels_twice_the_length_apart_correlate_by_one_over_e() -> None:
    """The length is the standard deviation of the kernel, which an impulse shows; at that distance it is e^(-1/4)."""
    impulse = np.zeros((1, 57), np.float32)
    impulse[0, 28] = 1
    kernel = smooth_field(impulse, (4.0,))[0].astype(float)
    assert (kernel**2).sum() == pytest.approx(1, abs=1e-5)
    assert (kernel[8:] * kernel[:-8]).sum() == pytest.approx(np.exp(-1), abs=1e-3)
    assert (kernel[4:] * kernel[:-4]).sum() == pytest.approx(np.exp(-0.25), abs=1e-3)
