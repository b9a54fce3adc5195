from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.diffusion.noise import gaussian_noise, smooth_field


def test_equal_names_give_equal_noise_and_any_other_name_gives_another() -> None:
    base = gaussian_noise(0, "case", 1, "start", 2, (5, 40, 37))
    assert torch.equal(base, gaussian_noise(0, "case", 1, "start", 2, (5, 40, 37)))
    for other in ((1, "case", 1, "start"), (0, "other", 1, "start"), (0, "case", 2, "start"), (0, "case", 1, "call 1")):
        assert not torch.equal(base, gaussian_noise(*other, 2, (5, 40, 37)))


def test_a_part_is_the_same_alone() -> None:
    whole = gaussian_noise(3, "c", 0, "s", 1, (40, 70, 33))
    assert torch.equal(gaussian_noise(3, "c", 0, "s", 1, (40, 50, 33)), whole[:, :, :50])


def test_noise_is_standard_normal() -> None:
    noise = gaussian_noise(0, "c", 0, "s", 1, (64, 64, 64))
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_smooth_field_keeps_unit_variance_and_has_the_asked_correlation() -> None:
    fields = torch.stack([smooth_field(gaussian_noise(i, "c", 0, "f", 1, (64, 64)), (3.0, 3.0)) for i in range(60)])
    assert fields.var().item() == pytest.approx(1, abs=0.1)
    at_three = (fields[..., :-3] * fields[..., 3:]).mean().item()
    assert at_three == pytest.approx(0.7788 * fields.var().item(), abs=0.08)  # exp(-d^2 / (4 l^2)) at d = l


def test_smooth_field_on_axes_shorter_than_the_kernel() -> None:
    white = [gaussian_noise(i, "c", 0, "f", 1, (1, 6, 48)) for i in range(200)]
    fields = torch.stack([smooth_field(noise, (5.0, 5.0, 5.0)) for noise in white])
    assert fields.var().item() == pytest.approx(1, abs=0.15)
