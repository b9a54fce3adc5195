"""Identities of the heads, and which head counts in which stage."""

from __future__ import annotations

import torch

from unisegdiff_pipeline.diffusion.coding import mask_to_x
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges, noise_mask
from unisegdiff_pipeline.diffusion.targets import (
    Estimate,
    final_probabilities,
    implied_noise,
    inverted_x0,
    stage_of,
    state_estimate,
)

EDGES = StageEdges(-3.0, 1.0)


def test_stage_of_each_level() -> None:
    lam = torch.tensor([PURE_NOISE, -3.1, -3.0, 0.9, 1.0, 5.0])
    assert stage_of(lam, EDGES).tolist() == [0, 0, 1, 1, 2, 2]


def test_noise_and_mask_are_recovered_from_the_noised_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 1, 8, 8, generator=generator).sign()
    noise = torch.randn(3, 1, 8, 8, generator=generator)
    lam = torch.tensor([-3.0, 0.0, 4.0])
    x_t = noise_mask(x0, lam, noise)
    assert torch.allclose(implied_noise(x_t, x0, lam), noise, atol=1e-4)
    assert torch.allclose(inverted_x0(x_t, noise, lam), x0, atol=1e-4)


def test_every_stage_gives_the_truth_back_for_a_perfect_estimate() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, 1, 6, 6, generator=generator) > 0.5).float()
    noise = torch.randn(4, 1, 6, 6, generator=generator)
    lam = torch.tensor([PURE_NOISE, -5.0, -1.0, 3.0])
    x_t = noise_mask(mask_to_x(mask), lam, noise)
    state = state_estimate(x_t, lam, Estimate(mask, noise), EDGES)
    assert torch.allclose(state, mask_to_x(mask), atol=1e-4)


def test_head_of_each_stage() -> None:
    """The mask head says 1 everywhere, the noise head implies a mask of -1: A follows the first, C the second."""
    x_t = torch.zeros(3, 1, 2, 2)
    lam = torch.tensor([-10.0, 0.0, 2.0])
    a = torch.sigmoid(lam).sqrt().reshape(3, 1, 1, 1)
    s = torch.sigmoid(-lam).sqrt().reshape(3, 1, 1, 1)
    estimate = Estimate(torch.ones(3, 1, 2, 2), (x_t + a) / s)  # so that (x_t - s e) / a = -1
    state = state_estimate(x_t, lam, estimate, EDGES)
    assert torch.allclose(state[0], torch.ones(1, 2, 2))
    assert torch.allclose(state[1], torch.zeros(1, 2, 2), atol=1e-6)  # s^2 - a^2 at lam = 0
    assert torch.allclose(state[2], -torch.ones(1, 2, 2))
    p = final_probabilities(x_t, lam, estimate, EDGES, "binary")
    assert p[1].min() == 1
    assert p[2].max() < 1e-3
