"""Calibration of the probability that a case holds any lesion."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.selection.case_probability import fit_case_calibration


def test_it_finds_the_law_that_made_the_cases() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0.0, 2.0, 4000)
    holds = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    found = fit_case_calibration((1 / (1 + np.exp(-odds))).tolist(), holds.tolist(), [str(i) for i in range(4000)])
    assert found is not None
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert found.intercept == pytest.approx(-1, abs=0.1)
    assert found.num_with == holds.sum()


def test_too_few_of_a_kind_are_not_fitted() -> None:
    highest, holds = [0.9] * 20 + [0.1] * 6, [True] * 20 + [False] * 6
    patients = [str(i) for i in range(26)]
    assert fit_case_calibration(highest, holds, patients) is not None
    assert fit_case_calibration(highest[:25], holds[:25], patients[:25]) is None
    assert fit_case_calibration(highest, holds, [*patients[:20], *["one patient"] * 6]) is None


def test_separable_cases_are_not_certain_and_misleading_ones_say_nothing() -> None:
    patients = [str(i) for i in range(20)]
    found = fit_case_calibration([0.99] * 10 + [0.01] * 10, [True] * 10 + [False] * 10, patients)
    assert found is not None
    assert found.probability(0.99) == pytest.approx(11 / 12, abs=0.03)
    misled = fit_case_calibration([0.01] * 10 + [0.99] * 10, [True] * 10 + [False] * 10, patients)
    assert misled is not None
    assert misled.slope == 0
    assert misled.probability(0.99) == pytest.approx(0.5)
