"""FROC curves by hand, against counting at every threshold, and in the undefined cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.evaluation.froc import LUNA16_RATES, froc
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.lesions import ScoredLesion, score_lesions


def reference(number: int, *matched: int) -> ScoredLesion:
    return ScoredLesion("reference", number, 1, 0.001, None, 0.0, (0, 0, 0), matched, 0.5, 0.5, math.nan)


def predicted(number: int, confidence: float, *matched: int) -> ScoredLesion:
    return ScoredLesion("prediction", number, 1, 0.001, None, 0.0, (0, 0, 0), matched, 0.5, 0.5, confidence)


# Two lesions in the first case, one of them found twice; one in the second, missed; nothing in the third and fourth.
CASES = [
    [reference(1, 1, 2), reference(2, 3), predicted(1, 0.5, 1), predicted(2, 1.0, 1), predicted(3, 0.5, 2)],
    [reference(1), predicted(1, 0.75), predicted(2, 0.25)],
    [predicted(1, 0.25), predicted(2, 0.25)],
    [],
]


def test_curve_by_hand() -> None:
    curve = froc(CASES)
    assert curve is not None
    assert curve.confidence_thresholds == (1.0, 0.75, 0.5, 0.25)
    assert curve.sensitivity == pytest.approx((1 / 3, 1 / 3, 2 / 3, 2 / 3))
    assert curve.false_positives_per_case == (0.0, 0.25, 0.25, 1.0)
    # 1/8 lies between the first two points, 1/4 on the second and third, of which the higher counts.
    assert curve.rates == LUNA16_RATES == (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
    assert curve.sensitivity_at_rates == pytest.approx((1 / 3, *[2 / 3] * 6))
    assert curve.mean_sensitivity == pytest.approx(13 / 21)
    assert (curve.num_cases, curve.num_reference_lesions) == (4, 3)


def test_between_points_the_curve_is_a_line() -> None:
    cases = [[reference(1, 2), predicted(1, 0.9), predicted(2, 0.8, 1)]] + [[reference(1)]] * 3
    # (0, 0), then (1/4, 0) and (1/4, 1/4): a vertical step.
    curve = froc(cases, rates=(0.0, 0.2, 0.25, 3.0))
    assert curve is not None
    assert curve.sensitivity_at_rates == (0.0, 0.0, 0.25, 0.25)
    # Both at one confidence: a line from (0, 0) to (1/4, 1/4).
    cases[0][1] = predicted(1, 0.8)
    curve = froc(cases, rates=(0.0, 0.1, 0.25, 3.0))
    assert curve is not None
    assert curve.confidence_thresholds == (0.8,)
    assert curve.sensitivity_at_rates == pytest.approx((0.0, 0.1, 0.25, 0.25))
    assert curve.mean_sensitivity == pytest.approx(0.15)


def test_a_perfect_and_a_silent_prediction() -> None:
    perfect = froc([[reference(1, 1), predicted(1, 0.3, 1)]])
    assert perfect is not None
    assert (perfect.sensitivity, perfect.false_positives_per_case, perfect.mean_sensitivity) == ((1.0,), (0.0,), 1.0)
    silent = froc([[reference(1)], []])
    assert silent is not None
    assert (silent.confidence_thresholds, silent.sensitivity, silent.mean_sensitivity) == ((), (), 0.0)


def test_undefined_curves() -> None:
    assert froc([]) is None
    assert froc([[]]) is None
    assert froc([[predicted(1, 0.5)]]) is None  # no lesion to find
    assert froc([[reference(1, 1), predicted(1, math.nan, 1)]]) is None  # no confidence


def random_cases(seed: int) -> list[tuple[ScoredLesion, ...]]:
    """Scored random masks; confidence is the fraction of four samples that overlap a lesion."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(6):
        a, b, *samples = (rng.random((3, 12, 12)) < density for density in (0.03, 0.05, 0.2, 0.3, 0.4, 0.5))
        _, lesions = score_lesions(a, b, Geometry(), MatchingRule("dilated", dilation_mm=2.0), samples)
        cases.append(lesions)
    return cases


@pytest.mark.parametrize("seed", range(4))
def test_curve_is_that_of_counting_at_every_threshold(seed: int) -> None:
    cases = random_cases(seed)
    with np.errstate(all="raise"):
        curve = froc(cases)
    assert curve is not None
    assert len(curve.confidence_thresholds) > 2
    for threshold, sensitivity, rate in zip(
        curve.confidence_thresholds, curve.sensitivity, curve.false_positives_per_case, strict=True
    ):
        found = lesions = false = 0
        for case in cases:
            kept = {le.lesion_id for le in case if le.side == "prediction" and le.confidence >= threshold}
            false += sum(le.side == "prediction" and le.lesion_id in kept and not le.matched_ids for le in case)
            lesions += sum(le.side == "reference" for le in case)
            found += sum(le.side == "reference" and bool(kept & set(le.matched_ids)) for le in case)
        assert (sensitivity, rate) == (pytest.approx(found / lesions), pytest.approx(false / len(cases)))
    assert list(curve.confidence_thresholds) == sorted(curve.confidence_thresholds, reverse=True)
    assert list(curve.sensitivity) == sorted(curve.sensitivity)


def test_only_the_order_of_confidences_counts() -> None:
    cases = random_cases(9)
    squared = [[ScoredLesion(**(vars(le) | {"confidence": le.confidence**2})) for le in case] for case in cases]
    first, second = froc(cases), froc(squared[::-1])
    assert first is not None
    assert second is not None
    assert first.sensitivity == second.sensitivity
    assert first.false_positives_per_case == second.false_positives_per_case
    assert first.mean_sensitivity == second.mean_sensitivity
