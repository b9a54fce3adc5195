"""Identities of the heads, and which head counts in which stage."""

from __future__ import annotations

import torch

from unisegdiff_pipeline.diffusion.coding import mask_to_x
from unisegdiff_pipeline.diffusion.schedule import (
    PURE_NOISE,
    StageEdges,
    alpha_sigma,
    channel_lam,
    expand_to,
    noise_mask,
)
from unisegdiff_pipeline.diffusion.targets import (
    Estimate,
    final_probabilities,
    noise_error,
    stage_of,
    state_estimate,
    v_error,
)

EDGES = StageEdges(-3.0, 1.0)


def test_stage_of_each_level() -> None:
    lam = torch.tensor([PURE_NOISE, -3.1, -3.0, 0.9, 1.0, 5.0])
    assert stage_of(lam, EDGES).tolist() == [0, 0, 1, 1, 2, 2]


def heads(x_t: torch.Tensor, lam: torch.Tensor, p: torch.Tensor, noise: torch.Tensor) -> Estimate:
    """The estimate of a network whose two heads say p and this noise: h = e - (x_t - a x_0) / s."""
    a, s = (expand_to(v, x_t.ndim) for v in alpha_sigma(lam))
    return Estimate(p, noise - (x_t - a * mask_to_x(p)) / s)


def test_every_stage_gives_the_truth_back_for_a_perfect_estimate() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(4, 1, 6, 6, generator=generator) > 0.5).float()
    noise = torch.randn(4, 1, 6, 6, generator=generator)
    lam = torch.tensor([PURE_NOISE, -5.0, -1.0, 3.0])
    x_t = noise_mask(mask_to_x(mask), lam, noise)
    state = state_estimate(lam, heads(x_t, lam, mask, noise), EDGES)
    assert torch.allclose(state, mask_to_x(mask), atol=1e-4)


def test_states_are_those_of_the_papers() -> None:
    """Against the formulas with x_t: x_0, s^2 x_0 + a (x_t - s e), (x_t - s e) / a."""
    generator = torch.Generator().manual_seed(2)
    p = 0.5 + 0.05 * torch.randn(3, 1, 5, 5, generator=generator)
    lam = torch.tensor([-10.0, 0.5, 4.0])
    a, s = (expand_to(v, 4) for v in alpha_sigma(lam))
    x_t = torch.randn(3, 1, 5, 5, generator=generator)
    noise = (x_t - a * mask_to_x(p)) / s + 0.1 * torch.randn(3, 1, 5, 5, generator=generator)
    state = state_estimate(lam, heads(x_t, lam, p, noise), EDGES)
    blended = s**2 * mask_to_x(p) + a * (x_t - s * noise)
    inverted = (x_t - s * noise) / a
    assert torch.allclose(state[0], mask_to_x(p)[0])
    assert torch.allclose(state[1], blended[1], atol=1e-5)
    assert torch.allclose(state[2], inverted[2], atol=1e-5)


def test_scaled_channels_are_treated_at_their_own_noise_level() -> None:
    edges = StageEdges(-3.0, 1.0, (1.0, 3.0))
    generator = torch.Generator().manual_seed(4)
    mask = (torch.rand(3, 2, 4, 4, generator=generator) > 0.5).float()
    noise = torch.randn(3, 2, 4, 4, generator=generator)
    lam = torch.tensor([-5.0, 0.0, 3.0])
    level = channel_lam(lam, edges)
    x_t = noise_mask(mask_to_x(mask), level, noise)
    wrong = 0.6 * mask + 0.2  # B and C must be set right by the noise head, fully in C
    state = state_estimate(lam, heads(x_t, level, wrong, noise), edges)
    assert torch.allclose(state[2], mask_to_x(mask)[2], atol=1e-4)
    a, s = (expand_to(v, 4) for v in alpha_sigma(level))
    assert torch.allclose(state[1], (s**2 * mask_to_x(wrong) + a * (x_t - s * noise))[1], atol=1e-5)


def test_head_of_each_stage() -> None:
    """The mask head says 1 everywhere, the noise head implies a mask of -1: A follows the first, C the second."""
    x_t = torch.zeros(3, 1, 2, 2)
    lam = torch.tensor([-10.0, 0.0, 2.0])
    a, s = (expand_to(v, 4) for v in alpha_sigma(lam))
    estimate = heads(x_t, lam, torch.ones(3, 1, 2, 2), (x_t + a) / s)  # so that (x_t - s e) / a = -1
    state = state_estimate(lam, estimate, EDGES)
    assert torch.allclose(state[0], torch.ones(1, 2, 2))
    assert torch.allclose(state[1], torch.zeros(1, 2, 2), atol=1e-6)  # s^2 - a^2 at lam = 0
    assert torch.allclose(state[2], -torch.ones(1, 2, 2))
    p = final_probabilities(lam, estimate, EDGES, "binary")
    assert p[1].min() == 1
    assert p[2].max() < 1e-3


def test_noise_error_is_predicted_minus_true_noise() -> None:
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(2, 1, 4, 4, generator=generator).sign()
    noise = torch.randn(2, 1, 4, 4, generator=generator)
    lam = torch.tensor([-2.0, 1.5])
    a, s = (expand_to(v, 4) for v in alpha_sigma(lam))
    x_t = noise_mask(x0, lam, noise)
    p, h = torch.rand(2, 1, 4, 4, generator=generator), torch.randn(2, 1, 4, 4, generator=generator)
    predicted = (x_t - a * mask_to_x(p)) / s + h
    assert torch.allclose(noise_error(lam, mask_to_x(p), h, x0), predicted - noise, atol=1e-5)


def test_single_targets_read_the_mask_as_their_papers_do() -> None:
    """x_0 itself, a x_t - s v, and (x_t - s e) / a, at every noise level."""
    generator = torch.Generator().manual_seed(5)
    p = 0.5 + 0.05 * torch.randn(3, 1, 5, 5, generator=generator)
    lam = torch.tensor([-2.5, 0.5, 4.0])
    a, s = (expand_to(v, 4) for v in alpha_sigma(lam))
    x_t = torch.randn(3, 1, 5, 5, generator=generator)
    h = 0.05 * torch.randn(3, 1, 5, 5, generator=generator)
    x0 = mask_to_x(p)
    v, e = (a * x_t - x0) / s + h, (x_t - a * x0) / s + h
    expected = {"x0": x0, "v": a * x_t - s * v, "epsilon": (x_t - s * e) / a}
    for target, state in expected.items():
        edges = StageEdges(-3.0, 1.0, target=target)  # type: ignore[arg-type]
        assert torch.allclose(state_estimate(lam, Estimate(p, h), edges), state.clamp(-1, 1), atol=1e-5)
        final = final_probabilities(lam, Estimate(p, h), edges, "binary")
        assert torch.allclose(mask_to_x(final), state.clamp(-0.999, 0.999), atol=1e-5)


def test_v_error_is_the_difference_of_both_vs() -> None:
    generator = torch.Generator().manual_seed(6)
    x0, wrong, e, h = torch.randn(4, 2, 1, 3, generator=generator)
    lam = torch.tensor([-1.0, 2.0])
    a, s = (expand_to(v, 3) for v in alpha_sigma(lam))
    x_t = a * x0 + s * e
    predicted = (a * x_t - wrong) / s + h
    assert torch.allclose(v_error(lam, wrong, h, x0), predicted - (a * e - s * x0), atol=1e-5)
