"""The threshold with the highest expected Dice, and whether folds take it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.decision import NEUTRAL, THRESHOLDS, best_threshold, shift_threshold
from unisegdiff_pipeline.inference.settings import Decision, decision_of_folds

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOFTMAX = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def test_an_unsure_object_is_taken_where_it_is_there_at_all() -> None:
    """Ten voxels that are foreground in 3 of 10 masks: no voxel reaches 0.5, and Dice is 1 for every cut below 0.3."""
    p = torch.zeros(1, 1, 1, 20)
    p[..., :10] = 0.3
    there, empty = np.zeros((1, 1, 20), np.uint8), np.zeros((1, 1, 20), np.uint8)
    there[..., :10] = 1
    threshold = best_threshold(p, [there] * 3 + [empty] * 7, BINARY)
    assert threshold == 0.25  # of all that are as good the one nearest to 0.5
    assert BINARY.decode(shift_threshold(p, threshold, "binary").numpy()).sum() == 10


def test_expected_dice_by_hand() -> None:
    """4 sure voxels and 4 of probability 0.4; samples: with them in 2 of 5 masks.

    Large cut (4): Dice 1 in 3 masks and 2 * 4 / 12 in 2, mean 0.867. Small cut (8): 2 * 4 / 12 in 3 and 1 in 2: 0.8.
    """
    p = torch.zeros(1, 1, 1, 12)
    p[..., :4], p[..., 4:8] = 0.95, 0.4
    small, large = np.zeros((1, 1, 12), np.uint8), np.zeros((1, 1, 12), np.uint8)
    small[..., :4], large[..., :8] = 1, 1
    assert best_threshold(p, [small] * 3 + [large] * 2, BINARY) == 0.5
    assert best_threshold(p, [small] * 2 + [large] * 3, BINARY) == 0.35


def test_nothing_in_any_sample_leaves_the_usual_cut() -> None:
    assert best_threshold(torch.rand(1, 1, 4, 4), [np.zeros((1, 4, 4), np.uint8)] * 3, BINARY) == NEUTRAL
    assert best_threshold(torch.rand(1, 1, 4, 4), [], BINARY) == NEUTRAL


@pytest.mark.parametrize("scheme", [BINARY, SOFTMAX, REGIONS])
def test_agrees_with_trying_every_cut(scheme: LabelScheme) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(scheme.num_channels, 3, 9, 8, generator=generator)
    p = logits.softmax(0) if scheme.coding == "softmax" else logits.sigmoid()
    if scheme.coding == "regions":
        p[1] = torch.minimum(p[0], p[1])  # nested, as regions are: else decoding would overwrite one with the other
    samples = [scheme.decode((p + 0.4 * torch.rand(p.shape, generator=generator) - 0.3).numpy()) for _ in range(4)]

    def expected(threshold: float) -> float:
        cut = dict(scheme.class_masks(scheme.decode(shift_threshold(p, threshold, scheme.coding).numpy())))
        dice = []
        for labels in samples:
            for name, mask in scheme.class_masks(labels):
                if mask.any():
                    dice.append(2 * (mask & cut[name]).sum() / (mask.sum() + cut[name].sum()))
        return float(np.mean(dice))

    found = best_threshold(p, samples, scheme)
    assert expected(found) == pytest.approx(max(expected(t) for t in THRESHOLDS))


@pytest.mark.parametrize("scheme", [BINARY, SOFTMAX, REGIONS])
def test_shifting_moves_the_threshold_to_a_half_and_keeps_probabilities(scheme: LabelScheme) -> None:
    p = torch.rand(scheme.num_channels, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    p = p / p.sum(0, keepdim=True) if scheme.coding == "softmax" else p
    shifted = shift_threshold(p, 0.3, scheme.coding)
    assert (shifted >= 0).all()
    assert (shifted <= 1).all()
    if scheme.coding == "softmax":
        assert torch.allclose(shifted.sum(0), torch.ones(2, 5, 5))
        assert torch.equal(shifted[1] > shifted[0], p[1] / (p[0] + p[1]) > 0.3)
    else:
        assert torch.equal(shifted > 0.5, p > 0.3)
    assert shift_threshold(p, NEUTRAL, scheme.coding) is p


@pytest.mark.parametrize(
    ("decisions", "chosen"),
    [
        (["dice"], "dice"),
        (["half"], "half"),
        (["dice", "half"], "half"),
        (["half", "dice", "dice"], "dice"),
        ([], "half"),
    ],
)
def test_folds_decide_by_their_majority(decisions: list[Decision], chosen: Decision) -> None:
    assert decision_of_folds(decisions) == chosen
