from __future__ import annotations

import math

import pytest
import torch

from unisegdiff_pipeline.diffusion.losses import (
    mask_loss,
    masked_mean,
    noise_loss,
    over_batch,
    over_groups,
    refinement_loss,
    soft_dice,
    weight_by_log_variance,
)


def test_soft_dice_by_hand() -> None:
    p = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])  # two predicted, one of them right, two in the reference
    t = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])
    valid = torch.ones(1, 1, 4)
    assert soft_dice(p, t, valid, "binary").item() == pytest.approx(0.5, abs=1e-4)
    valid[0, 0, 1] = 0  # without the false positive: 2 * 1 / (1 + 2)
    assert soft_dice(p, t, valid, "binary").item() == pytest.approx(2 / 3, abs=1e-4)


def test_softmax_dice_leaves_the_background_out() -> None:
    p = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    t = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    wrong_background = p.clone()
    wrong_background[:, 0] = 0
    valid = torch.ones(1, 1, 2)
    assert soft_dice(p, t, valid, "softmax").item() == soft_dice(wrong_background, t, valid, "softmax").item()


def test_batch_dice_joins_examples() -> None:
    p = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    t = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]])
    joined = soft_dice(p, t, torch.ones(2, 1, 2), "binary", pooling=over_batch)
    assert joined.tolist() == pytest.approx([2 / 3, 2 / 3], abs=1e-4)


def test_dice_of_a_group_knows_nothing_of_the_others() -> None:
    p = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]])
    t = torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]])
    valid = torch.ones(3, 1, 3)
    joined = soft_dice(p, t, valid, "binary", over_groups(torch.tensor([4, 4, 0])))
    assert joined.tolist() == pytest.approx([2 / 3, 2 / 3, 4 / 5], abs=1e-4)
    one_group = soft_dice(p, t, valid, "binary", over_groups(torch.zeros(3)))
    assert one_group.tolist() == pytest.approx(soft_dice(p, t, valid, "binary", over_batch).tolist())


def test_masked_mean_ignores_and_survives_nothing_valid() -> None:
    values = torch.tensor([[1.0, 100.0], [3.0, 5.0]])
    assert masked_mean(values, torch.tensor([[1.0, 0.0], [0.0, 0.0]])).tolist() == [1.0, 0.0]


def test_mask_loss_of_a_coin_toss_and_what_dice_adds() -> None:
    logits, target, valid = torch.zeros(1, 1, 8), torch.ones(1, 1, 8), torch.ones(1, 1, 8)
    assert mask_loss(logits, target, valid, "binary").item() == pytest.approx(math.log(2))
    # soft Dice of p = 0.5 everywhere against a full mask: 2 * 4 / (4 + 8)
    expected = math.log(2) + 1 - 2 / 3
    assert mask_loss(logits, target, valid, "binary", dice_weight=1.0).item() == pytest.approx(expected, abs=1e-5)


def test_refinement_weight_is_one_below_the_cut_and_falls_above() -> None:
    ones, valid = torch.ones(1, 1, 4), torch.ones(1, 1, 4)

    def at(snr: float) -> float:  # noise wrong by 1, mask right, so that the cross-entropy vanishes
        lam = torch.tensor([math.log(snr)])
        return refinement_loss(lam, ones, ones, ones, valid, "binary").item()

    assert at(2.0) == pytest.approx(1.0, abs=1e-3)
    assert at(50.0) == pytest.approx(0.1, abs=1e-3)  # 5 / 50


def test_learned_weight_is_least_where_u_is_the_log_of_the_loss() -> None:
    loss = torch.tensor(0.2)
    u = torch.linspace(-3, 3, 601)
    best = u[weight_by_log_variance(loss, u).argmin()].item()
    assert best == pytest.approx(math.log(0.2), abs=0.01)


def test_noise_loss_counts_valid_voxels_only() -> None:
    valid = torch.tensor([[[1.0, 0.0]]])
    assert noise_loss(torch.tensor([[[2.0, 9.0]]]), valid).item() == 4.0
