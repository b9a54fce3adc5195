"""Values that can be done by hand, and laws in which the references are draws of what the samples are drawn from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.evaluation.spread import (
    PLACE_IN_TRUTH,
    CaseSpread,
    Spread,
    case_spread,
    empty_samples,
    fraction_curve,
    interval_coverage,
    mean_distances,
    mean_place,
    size_score,
    spread_ratio,
    volume_bias,
)


def case(volumes: tuple[int, ...], *references: int, confidence: float = 0.5, apart: float = math.nan) -> CaseSpread:
    n = len(volumes)
    return CaseSpread("a", "lesion", volumes, references, 0.4, apart, 0.7, confidence, (0,) * (n + 1), (0.0,) * (n + 1))


def drawn(sample_sd: float, truth_sd: float, num_cases: int = 4000, num_samples: int = 8) -> list[CaseSpread]:
    rng = np.random.default_rng(0)
    samples = np.rint(rng.normal(1000, sample_sd, (num_cases, num_samples))).astype(int)
    truth = np.rint(rng.normal(1000, truth_sd, num_cases)).astype(int)
    return [case(tuple(s.tolist()), int(t)) for s, t in zip(samples, truth, strict=True)]


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_hold_what_they_promise_where_the_reference_is_one_more_draw(level: float) -> None:
    """Also the 90 % interval of 8 samples, which span 78 % only."""
    assert interval_coverage(drawn(100, 100), level)[0] == pytest.approx(level, abs=0.02)
    assert interval_coverage(drawn(250, 100), level)[0] > level + 0.04
    assert interval_coverage(drawn(40, 100), level)[0] < level - 0.15


def test_ties_of_empty_masks_promise_neither_more_nor_less() -> None:
    """All samples and the reference are empty: the reference is anywhere among them."""
    assert interval_coverage([case((0, 0, 0, 0), 0)], 0.5)[0] == pytest.approx(0.5)
    assert interval_coverage([case((1, 2, 3), 9)], 0.5)[0] == 0
    # One of three below: the place is uniform from 1/4 to 1/2, of which the middle half holds all.
    assert interval_coverage([case((1, 5, 6), 3)], 0.5)[0] == pytest.approx(1.0)


def test_annotators_of_a_case_count_as_one() -> None:
    value, error = interval_coverage([case((1, 5, 6), 3, 9)], 0.5)
    assert value == pytest.approx(0.5)
    assert error == pytest.approx(0.5)
    assert math.isnan(interval_coverage([], 0.5)[0])


def test_spread_is_compared_with_the_error_without_its_bias() -> None:
    assert spread_ratio(drawn(100, 100)) == pytest.approx(1, abs=0.03)
    assert spread_ratio(drawn(300, 100)) == pytest.approx(300 / 100 / np.sqrt(1 + 9 / 8) * np.sqrt(9 / 8), rel=0.05)
    # variances 8 * (1 + 1/2) = 12, errors 2 and -2 once their mean is taken out: sqrt(12) / sqrt(8)
    assert spread_ratio([case((8, 12), 22), case((8, 12), 18)]) == pytest.approx(math.sqrt(12 / 8))


def test_the_score_of_sizes_is_lowest_for_the_true_spread() -> None:
    scores = [np.mean([size_score(c, 1) for c in drawn(sd, 100)]) for sd in (20, 100, 400)]
    assert scores[1] == min(scores)
    assert size_score(case((4, 16), 9), 2) == pytest.approx((1 + 1) / 2 - 2 / 2)  # sizes 2 and 4 beside 3
    assert math.isnan(size_score(case((4,), 9), 2))


def test_the_mean_place_says_whether_samples_are_too_wide_or_too_narrow() -> None:
    wide, true, narrow = (np.mean([mean_place(c) for c in drawn(sd, 100)]) for sd in (150, 100, 70))
    assert true == pytest.approx(PLACE_IN_TRUTH, abs=0.015)
    assert wide < PLACE_IN_TRUTH - 0.08
    assert narrow > PLACE_IN_TRUTH + 0.08


def test_the_mean_place_by_hand() -> None:
    # Two of four below: u from 2/5 to 3/5, 2 u - 1 from -0.2 to 0.2, whose square is 0.04 / 3 on average.
    assert mean_place(case((1, 2, 4, 5), 3)) == pytest.approx(0.04 / 3)
    # All below: 2 u - 1 from 0.6 to 1. The annotators of a case count together.
    assert mean_place(case((1, 2, 4, 5), 9)) == pytest.approx((1 - 0.6**3) / (3 * 0.4))
    assert mean_place(case((1, 2, 4, 5), 3, 9)) == pytest.approx((0.04 / 3 + (1 - 0.6**3) / 1.2) / 2)
    assert mean_place(case((0, 0, 0), 0)) == pytest.approx(PLACE_IN_TRUTH)  # empty as the truth says nothing
    assert math.isnan(mean_place(case((4,), 9)))


def test_bias_and_empty_draws_by_hand() -> None:
    cases = [case((8, 12), 20, confidence=0.99), case((0, 10), 10, confidence=0.96), case((0, 0), 5, confidence=0.9)]
    assert volume_bias(cases) == pytest.approx((10 + 5 + 0) / 35)
    assert empty_samples(cases, 0.95) == (1, 4)
    assert mean_distances([case((1, 2), 1, 2, apart=0.3), case((1, 2), 1)]) == pytest.approx((0.4, 0.3))


def test_voxels_are_binned_by_the_samples_that_mark_them() -> None:
    one = CaseSpread("a", "lesion", (1, 1), (1,), 0.4, 0.3, 0.7, 0.5, (90, 6, 4), (9.0, 3.0, 4.0))
    curve = [(b.fraction, b.marked, b.voxels) for b in fraction_curve([one, one])]
    assert curve == [(0.0, pytest.approx(0.1), 180), (0.5, pytest.approx(0.5), 12), (1.0, pytest.approx(1.0), 8)]


def test_spread_of_one_annotator_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The distance of annotators is undefined then: NaN here, null in the file."""
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1:3, 1:3] = True
    written = case_spread("a", "lesion", [mask, ~mask], [mask], confidence=0.9)
    write_json(tmp_path / "spread.json", Spread((written,)))
    (read,) = read_dataclass(Spread, tmp_path / "spread.json").cases
    assert read.volumes == written.volumes == (4, 12)
    assert read.sample_distance == 1.0
    assert math.isnan(read.rater_distance)
