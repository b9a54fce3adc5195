from __future__ import annotations

import math

from unisegdiff_pipeline.training.choosing import Candidate, rank


def test_among_equal_dice_the_likeliest_wins() -> None:
    sharp, honest, poor = Candidate(8, 1.0, 0.801, 0.9), Candidate(4, 0.5, 0.800, 0.5), Candidate(2, 0.0, 0.70, 0.1)
    assert rank([sharp, honest, poor]) == [honest, sharp, poor]


def test_a_dice_clearly_lower_does_not_win_by_its_likelihood() -> None:
    better, likelier = Candidate(4, 0.5, 0.81, 0.9), Candidate(4, 0.0, 0.80, 0.1)
    assert rank([likelier, better])[0] == better


def test_without_any_defined_dice_the_likelihood_decides() -> None:
    first, second = Candidate(4, 0.5, math.nan, 0.2), Candidate(2, 0.5, math.nan, 0.1)
    assert rank([first, second])[0] == second


def test_of_about_equal_settings_the_cheaper_one_wins() -> None:
    assert rank([Candidate(8, 0.5, 0.8, 0.300), Candidate(2, 0.5, 0.8, 0.304)])[0].num_calls == 2
    assert rank([Candidate(8, 0.5, 0.8, 0.300), Candidate(2, 0.5, 0.8, 0.330)])[0].num_calls == 8


def test_an_empty_hold_out_leaves_the_plain_segmenter() -> None:
    nothing = [Candidate(calls, w, math.nan, math.nan) for calls in (2, 4) for w in (0.0, 0.5, 1.0)]
    assert rank(nothing)[0].w == 1.0
