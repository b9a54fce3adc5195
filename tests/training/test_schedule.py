from __future__ import annotations

import pytest

from unisegdiff_pipeline.training import schedule
from unisegdiff_pipeline.training.schedule import WARMUP_ITERATIONS, Allowance, PhaseBudget, learning_rate


def test_progress_by_iterations_or_seconds() -> None:
    assert PhaseBudget(iterations=200).progress(50, 1e9) == 0.25
    assert PhaseBudget(seconds=60).progress(10**6, 45) == 0.75
    assert PhaseBudget(seconds=60).progress(0, 90) == 1.0
    assert PhaseBudget(iterations=0).progress(0, 0) == 1.0


def test_a_budget_is_one_of_the_two() -> None:
    with pytest.raises(ValueError, match="one of them"):
        PhaseBudget()
    with pytest.raises(ValueError, match="one of them"):
        PhaseBudget(iterations=1, seconds=1.0)


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    assert learning_rate(1e-2, 0, 0.0) == pytest.approx(1e-2 / WARMUP_ITERATIONS)
    assert learning_rate(1e-2, 1000, 0.5) == pytest.approx(1e-2 * 0.5**0.9)
    assert learning_rate(1e-2, 1000, 1.0) == 0.0


def test_an_allowance_is_earned_before_it_is_spent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now)
    allowance = Allowance(0.01)
    assert allowance.is_due
    with allowance.spent():
        now += 2
    assert not allowance.is_due
    now += 199
    assert not allowance.is_due
    now += 1
    assert allowance.is_due
