"""Random bits by name and place, and normal numbers of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.diffusion.noise import STEPS, NamedNoise, standard_normal


def test_equal_names_and_places_give_equal_noise_and_others_another() -> None:
    base = NamedNoise(0, "case", 1, "start").bits((0, 2, 0), 0, 64)
    noise = NamedNoise(0, "case", 1, "start")
    others = [noise.bits(place, 0, 64) for place in ((5, 2, 0), (0, 3, 0), (0, 2, -1), (-1, 2, 0))]
    assert np.array_equal(base, noise.bits((0, 2, 0), 0, 64))  # whatever was drawn before
    for name in ((1, "case", 1, "start"), (0, "other", 1, "start"), (0, "case", 2, "start"), (0, "case", 1, "call")):
        others.append(NamedNoise(*name).bits((0, 2, 0), 0, 64))
    assert all(not np.array_equal(base, other) for other in others)


def test_a_part_of_a_sequence_is_that_of_the_whole() -> None:
    """Also before its number 0, and after a draw that left half of a generator's buffer."""
    whole = NamedNoise(0, "c", 0, "s").bits((9, 0, 0), -64, 192)
    noise = NamedNoise(0, "c", 0, "s")
    noise.bits((1, 1, 1), 0, 16)
    assert np.array_equal(noise.bits((9, 0, 0), -16, 48), whole[48:96])


def test_numbers_are_standard_normal_as_far_as_their_65536_values_reach() -> None:
    every = standard_normal(np.arange(1 << 16, dtype=np.uint16)).double()
    assert float(every.mean()) == pytest.approx(0, abs=1e-6)
    assert float(every.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(every.pow(4).mean()) == pytest.approx(3, abs=0.01)
    assert 4.3 < float(every.max()) < 4.33
    for z in (-3.0, -1.0, 0.5, 2.0):
        assert float((every < z).double().mean()) == pytest.approx(float(torch.special.ndtr(torch.tensor(z))), abs=1e-3)
    assert torch.equal(every * STEPS, (every * STEPS).round())


def test_noise_is_standard_normal() -> None:
    values = standard_normal(NamedNoise(0, "c", 0, "s").bits((0, 0, 0), 0, 1 << 18))
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert abs(float((values[1:] * values[:-1]).mean())) < 0.01
