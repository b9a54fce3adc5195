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


def test_one_patient_of_a_kind_is_too_few() -> None:
    highest, holds = [0.9] * 6 + [0.1] * 2, [True] * 6 + [False] * 2
    patients = [str(i) for i in range(8)]
    assert fit_case_calibration(highest, holds, patients) is not None
    assert fit_case_calibration(highest[:7], holds[:7], patients[:7]) is None
    assert fit_case_calibration(highest, holds, [*patients[:6], *["one patient"] * 2]) is None
    assert fit_case_calibration(highest, [not value for value in holds], [*patients[:6], "6", "6"]) is None


def test_where_the_network_tells_nothing_it_is_the_frequency_of_lesions() -> None:
    found = fit_case_calibration([0.7] * 8, [True] * 6 + [False] * 2, [str(i) for i in range(8)])
    assert found is not None
    assert found.slope == pytest.approx(0, abs=1e-6)
    # Platt's targets: 7/8 for each of the six with a lesion, 1/4 for the two without.
    assert found.probability(0.7) == pytest.approx((6 * 7 / 8 + 2 / 4) / 8, abs=1e-4)


def test_few_cases_move_less_from_the_frequency_than_many_alike() -> None:
    slopes = []
    for number in (2, 20):
        highest, holds = [0.9] * number + [0.1] * number, [True] * number + [False] * number
        found = fit_case_calibration(highest, holds, [str(i) for i in range(2 * number)])
        assert found is not None
        assert found.probability(0.5) == pytest.approx(0.5)
        slopes.append(found.slope)
    assert 0 < slopes[0] < 0.5 < slopes[1] < 2


def test_cases_of_one_patient_count_as_the_root_of_their_number() -> None:
    # Four cases of a patient and one of each of two others with a lesion; two patients without.
    found = fit_case_calibration([0.7] * 8, [True] * 6 + [False] * 2, ["a"] * 4 + ["b", "c", "d", "e"])
    assert found is not None
    # Targets 7/8 and 1/4 as above; the patient of four cases counts 4 / sqrt(4) = 2.
    assert found.probability(0.7) == pytest.approx((4 * 7 / 8 + 2 / 4) / 6, abs=1e-4)


def test_separable_cases_are_not_certain_and_misleading_ones_say_nothing() -> None:
    patients = [str(i) for i in range(20)]
    found = fit_case_calibration([0.99] * 10 + [0.01] * 10, [True] * 10 + [False] * 10, patients)
    assert found is not None
    assert found.probability(0.99) == pytest.approx(11 / 12, abs=0.03)
    misled = fit_case_calibration([0.01] * 10 + [0.99] * 10, [True] * 10 + [False] * 10, patients)
    assert misled is not None
    assert misled.slope == 0
    assert misled.probability(0.99) == pytest.approx(0.5)
