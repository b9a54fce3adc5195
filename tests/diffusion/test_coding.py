from __future__ import annotations

import math

import pytest
import torch

from unisegdiff_pipeline.diffusion.coding import (
    LOG_ODDS_LIMIT,
    LogitCalibration,
    bounded_logits,
    calibrate,
    cross_entropy,
    cross_entropy_of_probabilities,
    probabilities_from_logits,
    x_to_probabilities,
)


def test_softmax_probabilities_by_hand() -> None:
    logits = torch.tensor([[[math.log(3.0)], [0.0]]])  # (1, 2, 1): odds 3 : 1
    p = probabilities_from_logits(logits, "softmax")
    assert p[0, :, 0].tolist() == pytest.approx([0.75, 0.25])


def test_temperature_halves_the_log_odds() -> None:
    p = probabilities_from_logits(torch.tensor([[[2.0]]]), "binary", LogitCalibration(2.0, 2.0))
    assert p.item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_bounded_logits_are_limited_and_detached() -> None:
    logits = torch.tensor([[[100.0], [-100.0]]], requires_grad=True)
    bounded = bounded_logits(logits, "softmax")
    assert bounded.flatten().tolist() == [LOG_ODDS_LIMIT, -LOG_ODDS_LIMIT]
    assert not bounded.requires_grad


def test_x_to_probabilities_keeps_the_floor_and_sums_to_one() -> None:
    x = torch.tensor([[[1.0], [-1.0], [-3.0]]])
    p = x_to_probabilities(x, "softmax")
    assert p.sum().item() == pytest.approx(1)
    assert p.min() > 0
    assert x_to_probabilities(torch.zeros(1, 1, 1), "binary").item() == 0.5


@pytest.mark.parametrize("coding", ["binary", "regions", "softmax"])
def test_cross_entropy_is_the_same_from_logits_and_probabilities(coding: str) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    target = torch.zeros(2, 3, 5).scatter_(1, torch.randint(0, 3, (2, 1, 5)), 1.0)
    p = probabilities_from_logits(logits, coding)  # type: ignore[arg-type]
    a = cross_entropy(logits, target, coding)  # type: ignore[arg-type]
    b = cross_entropy_of_probabilities(p, target, coding)  # type: ignore[arg-type]
    assert torch.allclose(a, b, atol=1e-5)


def test_a_ceiling_levels_what_is_sure_and_keeps_what_is_not() -> None:
    z = torch.tensor([[[40.0, 8.0, 0.01, -3.0]]])
    levelled = calibrate(z, "binary", LogitCalibration(2.0, 1.0, soft_cap=0.85)).flatten().tolist()
    assert levelled[0] == pytest.approx(0.85)
    assert levelled[1] == pytest.approx(0.85 * math.tanh(4 / 0.85))
    assert levelled[2] == pytest.approx(0.005, rel=1e-3)
    assert levelled[3] == -3
    logits = torch.tensor([[[0.0, 2.0, 0.0], [9.0, 0.0, 0.0], [-3.0, 1.0, 0.0]]])
    levelled_logits = calibrate(logits, "softmax", LogitCalibration(1.0, 1.0, soft_cap=0.85))
    assert levelled_logits[0, :, 0].tolist() == pytest.approx([9 - 0.85, 9, -3], rel=1e-3)  # which class stays sure
    assert levelled_logits[0, :, 1].tolist() == [2.0, 0.0, 1.0]
    regions = calibrate(logits, "regions", LogitCalibration(1.0, 1.0, soft_cap=0.85))[0, :, 0]
    assert regions.tolist() == pytest.approx([0.0, 0.85, -3.0], rel=1e-3)  # each region on its own
    with pytest.raises(ValueError, match="soft_cap"):
        LogitCalibration(soft_cap=0.0)


def test_two_temperatures_change_no_decision_and_leave_the_background_alone() -> None:
    z = torch.tensor([[[4.0, 0.5, -0.5, -6.0]]])
    assert calibrate(z, "binary", LogitCalibration(4.0, 1.0)).flatten().tolist() == [1.0, 0.125, -0.5, -6.0]
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    tempered = calibrate(logits, "softmax", LogitCalibration(5.0, 0.8))
    assert torch.equal(tempered.argmax(1), logits.argmax(1))
    background = logits.argmax(1) == 0
    assert torch.allclose(tempered.movedim(1, 2)[background], logits.movedim(1, 2)[background] / 0.8)
