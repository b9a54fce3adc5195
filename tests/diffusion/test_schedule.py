"""Amplitudes against their closed form, and the ends of the range."""

from __future__ import annotations

import math

import pytest
import torch

from unisegdiff_pipeline.diffusion.schedule import (
    PURE_NOISE,
    StageEdges,
    alpha_sigma,
    channel_lam,
    expand_to,
    noise_mask,
)


def test_amplitudes_follow_their_definition() -> None:
    lam = torch.tensor([-4.0, 0.0, 3.0], dtype=torch.float64)
    a, s = alpha_sigma(lam)
    assert torch.allclose(a**2 + s**2, torch.ones_like(a))
    assert torch.allclose(2 * torch.log(a / s), lam)


def test_equal_amplitudes_at_lam_zero() -> None:
    a, s = alpha_sigma(torch.tensor([0.0]))
    assert a.item() == pytest.approx(math.sqrt(0.5)) == s.item()


def test_pure_noise_is_the_noise_exactly() -> None:
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x_t = noise_mask(torch.ones_like(noise), torch.full((2,), PURE_NOISE), noise)
    assert torch.equal(x_t, noise)


def test_noise_level_belongs_to_its_example() -> None:
    x = torch.ones(2, 1, 2, 2)
    x_t = noise_mask(x, torch.tensor([PURE_NOISE, 100.0]), torch.zeros_like(x))
    assert x_t[0].abs().max() == 0
    assert torch.allclose(x_t[1], x[1])


def test_input_scale_is_a_shift_of_lam() -> None:
    """x_t / s of a channel scaled by b at lam is b a / s x_0 + e."""
    lam = torch.tensor([-1.0, 2.0])
    scaled = channel_lam(lam, StageEdges(-3.0, 1.0, (1.0, 4.0)))
    a, s = alpha_sigma(lam)
    a_scaled, s_scaled = alpha_sigma(scaled)
    assert torch.allclose((a_scaled / s_scaled)[:, 0], a / s)
    assert torch.allclose((a_scaled / s_scaled)[:, 1], 4 * a / s)
    assert channel_lam(lam, StageEdges(-3.0, 1.0, (1.0, 1.0))) is lam


def test_what_cannot_be_expanded_is_refused() -> None:
    assert expand_to(torch.ones(2, 3), 4).shape == (2, 3, 1, 1)
    assert expand_to(torch.ones(2, 3), 2).shape == (2, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), which is more than 1 axes"):
        expand_to(torch.ones(2, 3), 1)


def test_edges_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="must lie below"):
        StageEdges(1.0, -1.0)
