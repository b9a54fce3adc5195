"""Charts of the evaluation: the numbers behind them, and that odd input is drawn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from unisegdiff_pipeline.evaluation.aggregate import FailureSummary, FrocSummary, ReliabilitySummary
from unisegdiff_pipeline.evaluation.calibration import ReliabilityBin
from unisegdiff_pipeline.reports.evaluation_figures import (
    draw_bland_altman,
    draw_boxes,
    draw_froc,
    draw_rank_histogram,
    draw_reliability,
    draw_risk_coverage,
    limits_of_agreement,
    signed,
)

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def test_limits_of_agreement_by_hand() -> None:
    bias, low, high = limits_of_agreement([1.0, 2.0, 3.0], [2.0, 2.0, 5.0])  # differences 1, 0, 2
    assert bias == 1.0
    assert low == pytest.approx(1 - 1.96)
    assert high == pytest.approx(1 + 1.96)
    assert all(map(math.isnan, limits_of_agreement([], [])))
    bias, low, high = limits_of_agreement([1.0], [3.0])
    assert bias == 2.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_differences_are_signed() -> None:
    assert signed(0.5) == "+0.5"
    assert signed(-1.23456) == "\N{MINUS SIGN}1.23"


@pytest.mark.parametrize("volumes", [[], [1.0], [0.01, 0.5, 100.0], [0.0, 2.0, 3.0]])
def test_bland_altman_of_any_number_of_cases(volumes: list[float]) -> None:
    svg = draw_bland_altman(volumes, [v * 1.1 for v in volumes], "ml", "#0072b2")
    assert f"Bland-Altman plot of {len(volumes)} volumes" in svg
    assert ("no case with a volume" in svg) == (not volumes)


def test_boxes_turn_logarithmic_for_far_values_alone() -> None:
    near = draw_boxes({"a": [1.0, 2.0, 3.0]}, "HD95, mm", False, "x")
    far = draw_boxes({"a": [1.0] * 9 + [300.0], "b": [math.nan]}, "HD95, mm", False, "x")
    assert "logarithmic" not in near
    assert "logarithmic from 1" in far
    assert ">none<" in draw_boxes({"a": []}, "Dice", True, "x")


def test_froc_without_a_predicted_lesion_is_drawn() -> None:
    empty = FrocSummary((), (), (), 0.0, RATES, (0.0,) * 7)
    full = FrocSummary((0.9, 0.5), (0.5, 1.0), (0.0, 2.0), 0.8, RATES, (0.5, 0.6, 0.7, 0.8, 1.0, 1.0, 1.0))
    svg = draw_froc({"a": empty, "b": full})
    assert "a (0.000)" in svg
    assert "b (0.800)" in svg


def test_reliability_leaves_empty_bins_out() -> None:
    bins = (ReliabilityBin(10, 0.1, 0.2), ReliabilityBin(0, math.nan, math.nan), ReliabilityBin(5, 0.9, 0.8))
    svg = draw_reliability({"lesion": ReliabilitySummary(bins, bins, 0.1, 0.1)})
    assert "lesion (ECE 0.100)" in svg
    assert "nan" not in svg.lower()


def test_risk_coverage_and_rank_histogram() -> None:
    risk = tuple(np.linspace(0.1, 0.3, 5).tolist())
    curve = FailureSummary(0.2, 0.1, 0.5, 0.9, 5, 0, risk, (0.2, 0.4, 0.6, 0.8, 1.0), "agreement")
    assert "lesion (AURC 0.200)" in draw_risk_coverage({"lesion": curve})
    both = draw_risk_coverage({"rare": dataclasses.replace(curve, n=1), "lesion": curve})
    assert "rare" not in both.partition("</title>")[2]
    assert "--series-2" in both
    assert "--series-1)" not in both  # that of the class that is left out
    assert "rank histogram of 6 cases" in draw_rank_histogram((1, 2, 3), "#0072b2")
