"""Segmenter weight and decision, by Dice and likelihood written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.selection.by_hand import EIGHT, NONE, TWO
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.diffusion.schedule import Target
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.selection.sampler import STAGE_A_CALL
from unisegdiff_pipeline.selection.segmenter_weight import (
    DEFAULT_SEGMENTER_WEIGHT,
    MeanTrial,
    rank_means,
    with_samplers,
)


def mean_trial(
    w: float,
    decision: Decision,
    dice: Sequence[float],
    nll: float | Sequence[float],
    sources: Sequence[str] = (),
) -> MeanTrial:
    losses = (nll,) * len(dice) if isinstance(nll, float) else tuple(nll)
    return MeanTrial(TWO, w, decision, tuple(dice), losses, sources=tuple(sources))


PLAIN = mean_trial(1.0, "half", (0.9, 0.7, 0.8, 0.6), 0.9)


@pytest.mark.parametrize(
    ("masks", "w", "target", "expected"),
    [
        (TWO, 0.25, "staged", (STAGE_A_CALL, TWO)),
        (NONE, 0.0, "v", (STAGE_A_CALL, NONE)),
        (TWO, 1.0, "staged", (TWO, None)),  # p_det alone: no mean is needed
        (TWO, 0.25, "epsilon", (TWO, None)),
        (replace(STAGE_A_CALL, draw=True, correlation_length_mm=4.0), 0.25, "staged", None),
    ],
)
def test_stage_a_makes_the_mean(
    masks: SamplerSettings, w: float, target: Target, expected: tuple[SamplerSettings, SamplerSettings | None] | None
) -> None:
    before = InferenceSettings(lam_a=-3.0, lam_c=0.5, target=target, mask_sampler=EIGHT)  # of an earlier choice
    found = with_samplers(before, masks, w)
    assert (found.sampler, found.mask_sampler) == (expected or (masks, None))
    assert found.segmenter_weight == w


def test_gain_is_the_mean_difference_case_by_case_with_its_standard_error() -> None:
    other = mean_trial(0.5, "half", (0.92, 0.70, 0.81, math.nan), 0.5)
    gain, error = other.gain(PLAIN)
    assert gain == pytest.approx(0.01)
    assert error == pytest.approx(0.01 / 3**0.5)  # differences 0.02, 0, 0.01: standard deviation 0.01


def test_a_large_source_does_not_choose_weight_and_threshold_of_small_ones() -> None:
    """Weight 0.5 gains 0.05 in twenty cases, and loses 0.09 and 0.03 in the two cases of two small sources."""
    sources = ["large"] * 20 + ["small"] * 2 + ["third"] * 2
    plain, mixed = [0.6] * 24, [0.65, 0.651] * 10 + [0.51, 0.512] + [0.57, 0.572]
    whole = mean_trial(1.0, "half", plain, 0.5), mean_trial(0.5, "half", mixed, [0.4] * 20 + [0.9] * 4)
    assert rank_means(whole)[0].segmenter_weight == 0.5
    by_source = (
        mean_trial(1.0, "half", plain, 0.5, sources),
        mean_trial(0.5, "half", mixed, [0.4] * 20 + [0.9] * 4, sources),
    )
    assert by_source[1].dice == pytest.approx((0.6505 + 0.511 + 0.571) / 3)
    assert by_source[1].nll == pytest.approx((0.4 + 0.9 + 0.9) / 3)
    assert by_source[1].gain(by_source[0])[0] == pytest.approx((0.0505 - 0.089 - 0.029) / 3)
    assert rank_means(by_source)[0].segmenter_weight == 1.0


def test_among_equal_dice_the_likeliest_wins() -> None:
    likelier = mean_trial(0.5, "half", (0.89, 0.71, 0.79, 0.61), 0.5)
    assert rank_means([PLAIN, likelier]) == [likelier, PLAIN]


def test_likelihood_does_not_buy_a_loss_of_dice() -> None:
    likelier = mean_trial(0.0, "half", (0.87, 0.67, 0.77, 0.57), 0.1)  # three points lower in every case
    assert rank_means([likelier, PLAIN])[0] == PLAIN


def test_a_loss_of_dice_that_the_cases_leave_open_is_not_risked() -> None:
    likelier = mean_trial(0.0, "half", (0.99, 0.60, 0.90, 0.50), 0.1)  # 0.0 on average, 0.06 the standard error
    assert rank_means([likelier, PLAIN])[0] == PLAIN


def test_a_gain_of_dice_in_every_case_wins_against_likelihood() -> None:
    better = mean_trial(0.5, "half", (0.93, 0.72, 0.83, 0.63), 0.95)
    assert rank_means([PLAIN, better])[0] == better


def test_what_the_luckiest_of_the_thresholds_gains_rules_out_no_default_weight() -> None:
    default = mean_trial(DEFAULT_SEGMENTER_WEIGHT, "half", (0.90, 0.68, 0.80, 0.60), 0.5)
    lucky = mean_trial(0.75, "half", (0.91, 0.72, 0.80, 0.61), 0.8)  # by 0.015, 1.7 standard errors
    assert rank_means([PLAIN, lucky, default])[0] == default


def test_a_tenth_of_a_point_of_dice_buys_no_likelihood_however_sure_it_is() -> None:
    likelier = mean_trial(0.5, "half", tuple(d - 0.001 for d in PLAIN.dice_of_cases), 0.5)
    lower = mean_trial(0.5, "half", tuple(d - 0.003 for d in PLAIN.dice_of_cases), 0.5)
    assert rank_means([PLAIN, likelier])[0] == likelier
    assert rank_means([PLAIN, lower])[0] == PLAIN


def test_the_threshold_for_dice_has_to_earn_its_place() -> None:
    lucky = mean_trial(1.0, "dice", (0.99, 0.69, 0.79, 0.59), 0.9)  # one case makes all of its gain
    earned = mean_trial(1.0, "dice", (0.92, 0.73, 0.82, 0.62), 0.9)
    assert rank_means([lucky, PLAIN])[0] == PLAIN
    assert rank_means([PLAIN, earned])[0] == earned


def test_the_default_weight_stays_where_another_is_hardly_likelier() -> None:
    default = mean_trial(DEFAULT_SEGMENTER_WEIGHT, "half", PLAIN.dice_of_cases, (0.5, 0.6, 0.7, 0.6))
    hardly = mean_trial(0.5, "half", PLAIN.dice_of_cases, (0.3, 0.7, 0.7, 0.6))  # 0.025 likelier, 0.06 the error
    likelier = mean_trial(0.0, "half", PLAIN.dice_of_cases, (0.4, 0.5, 0.65, 0.5))
    assert rank_means([PLAIN, hardly, default])[:2] == [default, hardly]
    assert rank_means([PLAIN, hardly, default, likelier])[0] == likelier


def test_without_any_defined_dice_the_likelihood_decides() -> None:
    nothing = (math.nan, math.nan)
    first, second = mean_trial(1.0, "half", nothing, 0.2), mean_trial(0.5, "half", nothing, 0.1)
    assert rank_means([first, second])[0] == second


def test_an_empty_hold_out_leaves_the_plain_segmenter() -> None:
    nothing = [mean_trial(w, d, (math.nan,), math.nan) for w in (0.0, 0.5, 1.0) for d in ("half", "dice")]
    assert rank_means(nothing)[0] == nothing[4]
