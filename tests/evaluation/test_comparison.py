"""Intervals, paired tests and ranks: by hand, against SciPy, and by simulation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from unisegdiff_pipeline.evaluation import aggregate, comparison
from unisegdiff_pipeline.evaluation.comparison import (
    bootstrap_interval,
    holm,
    macro_gain,
    macro_interval,
    macro_signed_rank_test,
    mean_gain,
    paired_comparison,
    rank_table,
    signed_rank_test,
)
from unisegdiff_pipeline.evaluation.options import EvaluationOptions

NAN = math.nan


# Standard errors


def test_gain_over_cases_equals_scipy() -> None:
    a, b = np.random.default_rng(0).uniform(size=(2, 12))
    assert mean_gain([*a, NAN], [*b, 0.5]) == pytest.approx((np.mean(a - b), stats.sem(a - b)))


def test_cases_of_one_patient_count_as_one() -> None:
    of_patients = [0.1, 0.3, -0.2]
    once = mean_gain(of_patients, [0.0] * 3)
    thrice = mean_gain(np.repeat(of_patients, 3).tolist(), [0.0] * 9, list("aaabbbccc"))
    assert thrice == pytest.approx(once)


def test_patients_of_unequal_size_by_hand() -> None:
    # mean 0.1; sums of deviations 0.2 + 0.2 - 0.1 = 0.3 and -0.3; sqrt(2 * 0.18) / 4
    gain = mean_gain([0.3, 0.3, 0.0, -0.2], [0.0] * 4, ["a", "a", "a", "b"])
    assert gain == pytest.approx((0.1, math.sqrt(2 * 0.18) / 4))


def test_one_patient_alone_is_judged_by_the_cases() -> None:
    assert mean_gain([0.1, 0.3], [0.0, 0.0], ["a", "a"]) == mean_gain([0.1, 0.3], [0.0, 0.0])


def test_too_few_cases_for_an_error() -> None:
    assert mean_gain([0.5], [0.25]) == (0.25, 0.0)
    assert mean_gain([NAN], [0.25]) == (0.0, 0.0)


def test_gain_over_parts_by_hand() -> None:
    # Part u: gains 0.1 and 0.3, mean 0.2, error 0.1; part v: its one case says 0 and no error, so that it takes u's.
    found = macro_gain([0.1, 0.3, 0.5, NAN], [0.0, 0.0, 0.5, 0.0], ["a", "b", "c", "d"], ["u", "u", "v", "w"])
    assert found == pytest.approx((0.1, math.sqrt(2 * 0.1**2) / 2))
    assert macro_gain([NAN], [0.0], ["a"], ["u"]) == (0.0, 0.0)


def test_parts_of_one_case_each_have_the_error_of_the_mean_over_them() -> None:
    # mean 0.1; deviations of 0.3 (twice) and 0.1 (four times): squares 0.22; sqrt(0.22 / (6 * 5))
    gains = [0.4, -0.2, 0.2, 0.0, 0.2, 0.0]
    expected = pytest.approx((0.1, math.sqrt(0.22 / 30)))
    assert macro_gain(gains, [0.0] * 6, None, list("uvwxyz")) == expected
    assert macro_gain(gains, [0.0] * 6, list("abcdef"), list("uvwxyz")) == expected
    # Two cases that say the same tell no error of the others either.
    assert macro_gain([0.1, 0.1, 0.7], [0.0] * 3, None, list("uuv")) == pytest.approx((0.4, 0.2))


# Bootstrap


def test_the_interval_of_a_mean_over_parts_by_hand() -> None:
    # Of u 0.2 with a standard error of 0.1, of v 0.7; the error of v, of one case, is taken to be 0.1, too.
    error = np.hypot(0.1, 0.1) / 2
    found = macro_interval([0.1, 0.3, 0.7], [0.0] * 3, None, list("uuv"))
    assert found == pytest.approx((0.45, 0.45 - 1.96 * error, 0.45 + 1.96 * error))
    assert np.isnan(macro_interval([NAN], [0.0], None, ["u"])).all()
    assert macro_interval([0.3, NAN], [0.0] * 2, None, ["u", "v"]) == pytest.approx((0.3, NAN, NAN), nan_ok=True)


def test_a_part_counts_the_same_in_signed_ranks_however_many_groups_it_has() -> None:
    large, small = [0.01 * i for i in range(1, 101)], [-0.02, -0.03, -0.05, -0.01, -0.06, -0.07]
    parts = ["large"] * 100 + ["small"] * 6
    found = macro_signed_rank_test([*large, *small], [0.0] * 106, None, parts)
    assert found.effect_size == pytest.approx(0)
    assert found.p > 0.9
    assert signed_rank_test([*large, *small]).p < 1e-15
    both = macro_signed_rank_test([*large, *np.negative(small)], [0.0] * 106, None, parts)
    assert both.effect_size == 1
    assert both.p < 0.001


def test_signed_ranks_of_one_part_are_those_of_the_whole() -> None:
    values = [0.3, -0.1, 0.2, 0.5, 0.4, 0.0, 0.6, -0.05, NAN]
    groups = list("aabcdefgh")
    means = [0.1, 0.2, 0.5, 0.4, 0.0, 0.6, -0.05]
    found, expected = macro_signed_rank_test(values, [0.0] * 9, groups, ["u"] * 9), signed_rank_test(means)
    assert found.effect_size == pytest.approx(expected.effect_size)
    assert found.p == pytest.approx(expected.p, abs=0.01)  # 10000 draws
    one = macro_signed_rank_test([0.3], [0.0], None, ["u"])
    assert (one.p, one.effect_size) == (1, 1)
    assert macro_signed_rank_test([0.1 + 0.2, 0.5], [0.3, 0.5], None, ["u", "v"]).p == 1  # rounding is no difference
    assert np.isnan(macro_signed_rank_test([NAN], [0.0], None, ["u"]).p)


def test_interval_equals_the_quantiles_of_all_resamples() -> None:
    values = [0.0, 0.3, 0.9]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    expected = np.quantile(means, (0.05, 0.95), method="inverted_cdf")
    assert bootstrap_interval(values, level=0.9, resamples=20000) == pytest.approx(expected)


def test_interval_equals_scipy() -> None:
    values = np.random.default_rng(0).beta(5, 2, 30)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert bootstrap_interval(values.tolist(), resamples=5000, seed=1) == pytest.approx(tuple(expected), abs=2e-3)


def test_groups_are_drawn_whole() -> None:
    # Two patients: all draws are aa, ab, ba or bb, with means 0, 0.75, 0.75 and 1.
    values, groups = [0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"]
    assert bootstrap_interval(values, groups, level=0.4) == pytest.approx((0.75, 0.75))
    assert bootstrap_interval(values, groups) == (0, 1)


def test_groups_of_equal_cases_widen_the_interval() -> None:
    values = np.random.default_rng(2).random(20)
    single = bootstrap_interval(values.tolist(), seed=3)
    groups = [str(i) for i in range(20)]
    assert bootstrap_interval(values.tolist(), groups, seed=3) == single
    assert bootstrap_interval(values.repeat(5).tolist(), np.repeat(groups, 5).tolist(), seed=3) == pytest.approx(single)
    low, high = bootstrap_interval(values.repeat(5).tolist(), seed=3)
    assert high - low < 0.6 * (single[1] - single[0])


def test_undefined_values_are_left_out() -> None:
    values, groups = [0.1, NAN, 0.5, 0.7, NAN], ["a", "a", "b", "c", "d"]
    assert bootstrap_interval(values) == bootstrap_interval([0.1, 0.5, 0.7])
    assert bootstrap_interval(values, groups) == bootstrap_interval([0.1, 0.5, 0.7])


@pytest.mark.parametrize("values", [[], [NAN], [0.5], [0.5, NAN]])
def test_fewer_than_two_cases_have_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, bootstrap_interval(values)))


def test_one_group_has_no_interval() -> None:
    assert all(map(math.isnan, bootstrap_interval([0.1, 0.2], ["a", "a"])))


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_the_seed_decides_and_no_draws_mean_no_interval() -> None:
    values = np.random.default_rng(4).random(10).tolist()
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    assert all(map(math.isnan, bootstrap_interval(values, resamples=0)))


def test_the_interval_moves_and_scales_with_the_values() -> None:
    values = np.random.default_rng(7).random(15)
    low, high = bootstrap_interval(values.tolist())
    assert bootstrap_interval((10 * values + 3).tolist()) == pytest.approx((10 * low + 3, 10 * high + 3))


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(rng.normal(size=40).tolist(), level=0.9, resamples=300)
        hits += low <= 0 <= high
    assert 0.84 < hits / 300 < 0.95


@pytest.mark.parametrize("arguments", [{"level": 0}, {"level": 1}, {"level": 95}, {"resamples": -1}])
def test_wrong_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="level is"):
        bootstrap_interval([0.1, 0.2], **arguments)


def test_every_value_needs_its_group() -> None:
    with pytest.raises(ValueError, match="2 values and 1 groups"):
        bootstrap_interval([0.1, 0.2], ["a"])


# Signed ranks


def test_signed_ranks_by_hand() -> None:
    # Ranks 1 to 4, W- = 1 (of the smallest): sums of at most 1 arise from {} and {1}, p = 2 * 2 / 16.
    test = signed_rank_test([-0.1, 0.2, 0.3, 0.4])
    assert test.p == pytest.approx(0.25)
    assert test.effect_size == pytest.approx((9 - 1) / 10)


def test_tied_ranks_by_hand() -> None:
    # Sizes 1, 1, 2: ranks 1.5, 1.5, 3; W- = 1.5 or less in {}, {1.5}, {1.5'}: p = 2 * 3 / 8. The zero is dropped.
    test = signed_rank_test([-1, 0, 1, 2])
    assert test.p == pytest.approx(0.75)
    assert test.effect_size == pytest.approx((4.5 - 1.5) / 6)


@pytest.mark.parametrize("count", [1, 2, 5, 12, 30, 50])
def test_signed_ranks_equal_scipys_exact_test(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    assert signed_rank_test(values).p == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)


@pytest.mark.parametrize("seed", range(5))
def test_tied_ranks_equal_all_signs(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-3, 5, 10).astype(float)
    test = signed_rank_test(values)
    values = values[values != 0]
    ranks = stats.rankdata(np.abs(values))
    signs = np.array(list(itertools.product((0, 1), repeat=len(values))))
    deviation = np.abs(signs @ ranks - ranks.sum() / 2)
    assert test.p == pytest.approx(np.mean(deviation >= abs(ranks[values > 0].sum() - ranks.sum() / 2) - 1e-9))


@pytest.mark.parametrize("ties", [False, True])
def test_many_differences_equal_scipys_approximation(ties: bool) -> None:
    values = np.random.default_rng(9).normal(0.1, 1, 300)
    values = np.round(values, 1) if ties else values
    expected = stats.wilcoxon(values, method="approx", correction=False).pvalue
    assert signed_rank_test(values).p == pytest.approx(expected)


def test_exact_and_approximate_p_meet() -> None:
    values = np.random.default_rng(10).normal(0.2, 1, 101)
    assert signed_rank_test(values[:100]).p == pytest.approx(stats.wilcoxon(values[:100]).pvalue, rel=0.05)
    assert signed_rank_test(values).p == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=0.05)


def test_no_difference_is_no_evidence() -> None:
    assert dataclasses.astuple(signed_rank_test([0.0, 0.0])) == (1, 0)
    assert all(map(math.isnan, dataclasses.astuple(signed_rank_test([]))))


def test_p_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(11)
    p = [signed_rank_test(rng.normal(size=15)).p for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.05)


# Pairs


def test_comparison_by_hand() -> None:
    found = paired_comparison([0.9, 0.8, 0.6, NAN, 0.5], [0.7, 0.7, 0.6, 0.1, 0.9])
    assert (found.n, found.n_undefined, found.num_groups) == (4, 1, 4)
    assert found.mean_difference == pytest.approx((0.2 + 0.1 + 0 - 0.4) / 4)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.effect_size == pytest.approx((1 + 2 - 3) / 6)
    assert found.p_wilcoxon == 1
    assert (found.ci_low, found.ci_high) == pytest.approx(bootstrap_interval([0.2, 0.1, 0, -0.4]))


def test_swapping_the_runs_swaps_the_signs() -> None:
    rng = np.random.default_rng(12)
    a, b = rng.random(20).tolist(), rng.random(20).tolist()
    one, other = paired_comparison(a, b), paired_comparison(b, a)
    assert one.mean_difference == pytest.approx(-other.mean_difference)
    assert (one.ci_low, one.ci_high) == pytest.approx((-other.ci_high, -other.ci_low))
    assert one.p_wilcoxon == pytest.approx(other.p_wilcoxon)
    assert one.effect_size == pytest.approx(-other.effect_size)
    assert (one.wins, one.losses) == (other.losses, other.wins)


def test_lower_may_be_better() -> None:
    high = paired_comparison([1.0, 2.0, 3.0], [2.0, 3.0, 1.0])
    low = paired_comparison([1.0, 2.0, 3.0], [2.0, 3.0, 1.0], higher_is_better=False)
    assert (high.wins, high.losses) == (1, 2)
    assert dataclasses.replace(high, wins=2, losses=1) == low


def test_rounding_makes_no_difference() -> None:
    assert 0.1 + 0.2 != 0.3
    assert 0.9 - 0.8 != 0.8 - 0.7
    found = paired_comparison([0.1 + 0.2, 0.9, 0.7], [0.3, 0.8, 0.8])
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert found.effect_size == 0  # both differences share rank 1.5


def test_patients_are_tested_once() -> None:
    a, b = [0.9, 0.9, 0.9, 0.2, 0.5], [0.5, 0.6, 0.7, 0.4, 0.4]
    groups = ["p", "p", "p", "q", "r"]
    found = paired_comparison(a, b, groups)
    # Mean differences of the patients: 0.3, -0.2 and 0.1; ranks 3, 2, 1.
    assert (found.n, found.num_groups, found.wins, found.losses) == (5, 3, 4, 1)
    assert found.effect_size == pytest.approx((3 + 1 - 2) / 6)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon([0.3, -0.2, 0.1], method="exact").pvalue)
    assert found.mean_difference == pytest.approx((0.4 + 0.3 + 0.2 - 0.2 + 0.1) / 5)
    assert (found.ci_low, found.ci_high) == pytest.approx(bootstrap_interval([0.4, 0.3, 0.2, -0.2, 0.1], groups))


def test_no_pair_is_undefined_and_counted() -> None:
    found = paired_comparison([NAN, 0.3], [0.5, NAN])
    assert (found.n, found.n_undefined, found.wins, found.ties, found.losses) == (0, 2, 0, 0, 0)
    assert all(map(math.isnan, (found.mean_difference, found.ci_low, found.p_wilcoxon, found.effect_size)))


def test_equal_runs_tie() -> None:
    found = paired_comparison([0.5, 0.6], [0.5, 0.6])
    assert (found.ties, found.mean_difference, found.p_wilcoxon, found.effect_size) == (2, 0, 1, 0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="a holds 2 values and b 1"):
        paired_comparison([0.1, 0.2], [0.1])


# Several runs


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1, 1)
    assert holm([]) == ()


def test_holm_counts_no_undefined_comparison() -> None:
    first, second, third = holm([0.02, NAN, 0.04])
    assert (first, third) == pytest.approx((0.04, 0.04))
    assert math.isnan(second)


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(13)
    wrong = np.mean([min(holm(rng.random(6).tolist())) <= 0.1 for _ in range(2000)])
    assert wrong == pytest.approx(0.1, abs=0.025)


def test_ranks_by_hand() -> None:
    runs = {
        "a": {"1": 0.9, "2": 0.5, "3": 0.4},
        "b": {"1": 0.8, "2": 0.5, "3": 0.6},
        "c": {"1": 0.7, "2": 0.1, "3": 0.5},
    }
    b, a, c = rank_table(runs)
    assert (a.name, a.mean_rank, a.num_best, a.num_cases) == ("a", pytest.approx((1 + 1.5 + 3) / 3), 2, 3)
    assert (b.name, b.mean_rank, b.num_best, b.mean) == (
        "b",
        pytest.approx((2 + 1.5 + 1) / 3),
        2,
        pytest.approx(1.9 / 3),
    )
    assert (c.name, c.mean_rank, c.num_best) == ("c", pytest.approx((3 + 3 + 2) / 3), 0)
    assert [run.name for run in rank_table(runs, higher_is_better=False)] == ["c", "a", "b"]


def test_ranks_equal_scipy() -> None:
    table = np.random.default_rng(14).integers(0, 4, (5, 12)).astype(float)
    runs = {str(i): {str(j): value for j, value in enumerate(row)} for i, row in enumerate(table)}
    found = {run.name: run.mean_rank for run in rank_table(runs, higher_is_better=False)}
    assert list(found.values()) == sorted(found.values())
    expected = stats.rankdata(table, axis=0).mean(axis=1)
    assert [found[str(i)] for i in range(5)] == pytest.approx(expected)


def test_undefined_is_worst_and_undefined_for_all_is_no_case() -> None:
    runs = {"a": {"1": NAN, "2": 3.0, "3": NAN}, "b": {"1": 9.0, "2": 2.0, "3": NAN}, "c": {"2": 4.0}}
    b, a, c = rank_table(runs, higher_is_better=False)
    assert (b.name, b.mean_rank, b.num_cases, b.num_undefined, b.num_best, b.mean) == ("b", 1, 2, 0, 2, 5.5)
    assert (a.name, a.mean_rank, a.num_cases, a.num_undefined, a.num_best, a.mean) == ("a", 2.25, 2, 1, 0, 3)
    assert (c.name, c.mean_rank, c.num_undefined) == ("c", 2.75, 1)


def test_runs_that_tie_stay_in_order() -> None:
    assert [run.name for run in rank_table({"z": {"1": 0.5}, "a": {"1": 0.5}})] == ["z", "a"]


def test_a_ranking_of_nothing() -> None:
    assert rank_table({}) == ()
    (run,) = rank_table({"a": {}})
    assert (run.num_cases, run.num_best) == (0, 0)
    assert math.isnan(run.mean_rank)
    assert math.isnan(run.mean)


@pytest.mark.parametrize("at_once", [1, 7, 20])
def test_parts_of_the_draws_are_those_of_all_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three groups, one draw, two, or six at a time; how often each is drawn, and the interval."""
    values, groups, options = [0.1, 0.5, 0.6, 0.9], list("abca"), EvaluationOptions(resamples=50)

    def found() -> tuple[tuple[float, float], np.ndarray]:
        draws = aggregate._group_draws(groups, options, np.random.default_rng(3))
        return bootstrap_interval(values, groups, resamples=50), draws

    interval, draws = found()
    assert draws.sum(axis=1).tolist() == [3] * 50
    monkeypatch.setattr(comparison, "DRAWN_AT_ONCE", at_once)
    monkeypatch.setattr(aggregate, "DRAWN_AT_ONCE", at_once)
    again, drawn = found()
    assert again == interval
    assert np.array_equal(drawn, draws)
    of_class = np.array(values)[:, None]
    by_hand = [row @ [1.0, 0.5, 0.6] / (row @ [2, 1, 1]) for row in draws]
    assert aggregate._means_of_draws(of_class, groups, draws) == pytest.approx(by_hand)
