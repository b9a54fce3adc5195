"""Risk and coverage, intervals and ranks of volumes: by hand, by brute force, against scikit-learn and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_curve

from unisegdiff_pipeline.evaluation.failure import (
    IntervalCoverage,
    RankHistogram,
    coverage_of_intervals,
    failure_detection,
    rank_histogram,
)

# Risk and coverage


def test_perfect_order_by_hand() -> None:
    found = failure_detection([0.1, 0.5, 0.3], [3.0, 1.0, 2.0])
    assert found.n == 3
    assert found.coverage == pytest.approx((1 / 3, 2 / 3, 1))
    assert found.risk == pytest.approx((0.1, 0.2, 0.3))
    assert found.aurc == pytest.approx(0.2)
    assert found.eaurc == pytest.approx(0)
    assert found.naurc == pytest.approx(0)
    assert found.spearman == pytest.approx(1)


def test_worst_order_by_hand() -> None:
    found = failure_detection([0.1, 0.5, 0.3], [1.0, 3.0, 2.0])
    assert found.risk == pytest.approx((0.5, 0.4, 0.3))
    assert found.aurc == pytest.approx(0.4)
    assert found.eaurc == pytest.approx(0.2)
    assert found.naurc == pytest.approx(2)  # 0.2 over 0.3 - 0.2
    assert found.spearman == pytest.approx(-1)


def test_a_constant_confidence_is_chance() -> None:
    found = failure_detection([0.1, 0.5, 0.3], [7.0] * 3)
    assert found.risk == pytest.approx((0.3, 0.3, 0.3))
    assert found.naurc == pytest.approx(1)
    assert math.isnan(found.spearman)


def test_ties_are_the_mean_over_all_orders() -> None:
    risk, confidence = [0.9, 0.1, 0.4, 0.2, 0.7], [2.0, 1.0, 2.0, 1.0, 2.0]
    curves = [
        np.cumsum([risk[i] for i in order]) / np.arange(1, 6)
        for order in itertools.permutations(range(5))
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order))
    ]
    assert len(curves) == math.factorial(3) * math.factorial(2)
    assert failure_detection(risk, confidence).risk == pytest.approx(np.mean(curves, axis=0))


@pytest.mark.parametrize("seed", range(3))
def test_risk_of_failures_is_one_minus_the_precision_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    failed, confidence = rng.random(60) < 0.3, rng.random(60)
    precision, _, _ = precision_recall_curve(~failed, confidence)
    found = failure_detection(failed.astype(float).tolist(), confidence.tolist())
    assert found.risk[::-1] == pytest.approx(1 - precision[:-1])
    assert found.aurc == pytest.approx(np.mean(1 - precision[:-1]))


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    risk, confidence = rng.integers(0, 9, 50) / 10, rng.integers(0, 9, 50) / 10  # many ties
    found = failure_detection(risk.tolist(), confidence.tolist())
    assert found.spearman == pytest.approx(stats.spearmanr(confidence, -risk).statistic)


def test_only_the_order_of_the_confidence_counts_and_cases_may_come_in_any_order() -> None:
    rng = np.random.default_rng(1)
    risk, confidence = rng.random(30), rng.integers(1, 9, 30).astype(float)
    found = failure_detection(risk.tolist(), confidence.tolist())
    assert failure_detection(risk.tolist(), np.exp(confidence).tolist()) == found
    order = rng.permutation(30)
    turned = failure_detection(risk[order].tolist(), confidence[order].tolist())
    assert turned.aurc == pytest.approx(found.aurc)
    assert turned.spearman == pytest.approx(found.spearman)


def test_no_order_beats_sorting_by_risk() -> None:
    rng = np.random.default_rng(2)
    risk = rng.random(12)
    assert all(failure_detection(risk.tolist(), rng.random(12).tolist()).eaurc >= 0 for _ in range(50))


def test_undefined_cases_are_left_out_and_counted() -> None:
    found = failure_detection([0.1, math.nan, 0.5, 0.3], [3.0, 9.0, 1.0, math.nan])
    assert (found.n, found.n_undefined) == (2, 2)
    assert found.risk == pytest.approx((0.1, 0.3))


def test_without_cases_nothing_is_defined() -> None:
    found = failure_detection([math.nan], [1.0])
    assert (found.n, found.n_undefined, found.coverage, found.risk) == (0, 1, (), ())
    assert all(math.isnan(v) for v in (found.aurc, found.eaurc, found.naurc, found.spearman))


def test_one_case_has_a_risk_and_no_order() -> None:
    found = failure_detection([0.2], [1.0])
    assert (found.aurc, found.eaurc) == (0.2, 0.0)
    assert math.isnan(found.naurc)
    assert math.isnan(found.spearman)


def test_each_case_needs_both_numbers() -> None:
    with pytest.raises(ValueError, match="needs both"):
        failure_detection([0.1], [0.1, 0.2])


# Intervals


def test_intervals_by_hand() -> None:
    samples = list(range(10, 100, 10))  # nine: quantile 0.1 is the first, 0.9 the last, 0.25 halfway from 2nd to 3rd
    volumes = [9.0, 10.0, 24.0, 25.0, 75.0, 76.0, 90.0, 91.0]
    half, most = coverage_of_intervals([samples] * 8, volumes, (0.5, 0.8))
    assert half == IntervalCoverage(0.5, 2 / 8, 0.5, 8, 0)
    assert most == IntervalCoverage(0.8, 6 / 8, 0.8, 8, 0)


def test_few_samples_cannot_reach_a_high_level() -> None:
    (found,) = coverage_of_intervals([[1.0, 2.0, 3.0]] * 2, [2.0, 3.5], (0.9,))
    assert found.fraction == 0.5
    assert found.expected == pytest.approx(2 / 4)


@pytest.mark.parametrize("num_samples", [5, 8, 20, 64])
def test_perfect_samples_cover_at_the_expected_rate(num_samples: int) -> None:
    drawn = np.random.default_rng(1).uniform(1, 9, (4000, num_samples + 1))
    for found in coverage_of_intervals(drawn[:, 1:].tolist(), drawn[:, 0].tolist()):
        assert found.fraction == pytest.approx(found.expected, abs=0.03)


def test_samples_too_close_to_each_other_cover_too_little() -> None:
    rng = np.random.default_rng(1)
    samples, volumes = rng.normal(50, 1, (500, 20)), rng.normal(50, 5, 500)
    assert all(c.fraction < c.expected / 2 for c in coverage_of_intervals(samples.tolist(), volumes.tolist()))


def test_empty_and_undefined_cases_are_left_out_and_counted() -> None:
    samples = [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [1.0, 2.0, 3.0], [1.0], [1.0, math.nan], [], [1.0, 2.0, 3.0]]
    volumes = [0.0, 0.0, 2.0, 1.0, 1.0, 1.0, math.nan]
    (found,) = coverage_of_intervals(samples, volumes, (0.5,))
    assert (found.n, found.n_undefined, found.fraction) == (2, 5, 1.0)
    histogram = rank_histogram(samples, volumes)
    assert (histogram.n, histogram.n_undefined, sum(histogram.counts)) == (2, 5, 2)


def test_a_missed_or_imagined_object_counts() -> None:
    (found,) = coverage_of_intervals([[0.0, 0.0], [3.0, 4.0]], [5.0, 0.0], (0.5,))
    assert (found.n, found.fraction) == (2, 0.0)


def test_without_cases_coverage_is_undefined() -> None:
    (found,) = coverage_of_intervals([[0.0, 0.0]], [0.0], (0.5,))
    assert (found.n, found.n_undefined) == (0, 1)
    assert math.isnan(found.fraction)
    assert math.isnan(found.expected)


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0])
def test_levels_are_shares(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        coverage_of_intervals([[1.0, 2.0]], [1.0], (level,))


def test_each_case_needs_samples_and_a_volume() -> None:
    with pytest.raises(ValueError, match="needs both"):
        coverage_of_intervals([[1.0, 2.0]], [])
    with pytest.raises(ValueError, match="needs both"):
        rank_histogram([[1.0, 2.0]], [])


# Ranks


def test_ranks_by_hand() -> None:
    samples = [[3.0, 1.0, 2.0]] * 5
    assert rank_histogram(samples, [0.5, 1.5, 2.5, 3.5, 9.0]) == RankHistogram((1, 1, 1, 2), 5, 0)


def test_equal_volumes_are_spread_over_their_ranks() -> None:
    histogram = rank_histogram([[0.0, 0.0, 0.0, 5.0]] * 4000, [0.0] * 4000)
    assert histogram.counts[4] == 0
    assert np.array(histogram.counts[:4]) == pytest.approx(np.full(4, 1000), abs=120)


def test_perfect_samples_give_a_flat_histogram_even_with_many_empty_masks() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.uniform(1, 2, (9000, 6)) * (rng.random((9000, 6)) < 0.4)
    histogram = rank_histogram(drawn[:, 1:].tolist(), drawn[:, 0].tolist())
    assert histogram.n_undefined == np.count_nonzero(~drawn.any(axis=1)) > 0
    assert stats.chisquare(histogram.counts).pvalue > 0.01


def test_too_little_spread_is_u_shaped_and_too_large_volumes_lean_to_the_left() -> None:
    rng = np.random.default_rng(4)
    volumes = rng.normal(50, 5, 600).tolist()
    narrow = rank_histogram(rng.normal(50, 1, (600, 8)).tolist(), volumes).counts
    large = rank_histogram(rng.normal(60, 5, (600, 8)).tolist(), volumes).counts
    assert min(narrow[0], narrow[-1]) > 3 * max(narrow[2:7])
    assert large[0] > sum(large[1:])


def test_different_numbers_of_samples_are_thinned_to_the_smallest() -> None:
    rng = np.random.default_rng(5)
    drawn = [rng.random(3 + i % 4) for i in range(6000)]  # two to five samples
    histogram = rank_histogram([d[1:].tolist() for d in drawn], [float(d[0]) for d in drawn])
    assert histogram.counts == pytest.approx([2000] * 3, abs=146)  # four standard deviations


def test_the_seed_decides_the_draws_and_cases_do_not_disturb_each_other() -> None:
    samples, volumes = [[0.0, 0.0, 1.0]] * 40, [0.0] * 40
    assert rank_histogram(samples, volumes, seed=1) == rank_histogram(samples, volumes, seed=1)
    assert rank_histogram(samples, volumes, seed=1) != rank_histogram(samples, volumes, seed=2)
    longer = rank_histogram([*samples, [1.0, 2.0, 3.0]], [*volumes, 9.0], seed=1)
    assert longer.counts[:3] == rank_histogram(samples, volumes, seed=1).counts[:3]
    assert longer.counts[3] == 1


def test_without_cases_there_is_no_histogram() -> None:
    assert rank_histogram([[0.0, 0.0]], [0.0]) == RankHistogram((), 0, 1)
