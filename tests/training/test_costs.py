"""How a time budget is shared: choosing and the final validation lie inside it, however long they take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.training import costs as module
from unisegdiff_pipeline.training.choosing import FULL_SEARCH, QUICK_SEARCH, SHORT_SEARCH, Search
from unisegdiff_pipeline.training.costs import Costs, affordable_cases, phase_1_budget, phase_2_budget, within_budget


class Log:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.report_s = 0.0

    def say(self, line: str) -> None:
        self.said.append(line)


def run_of(max_time_s: float, seconds: float = 0.0, num_cases: int = 10) -> Any:
    cases = tuple("abcdefghijklmnopqrstuvwxyz"[:num_cases])
    return SimpleNamespace(
        request=SimpleNamespace(max_time_s=max_time_s, iterations=None, epochs=None),
        plans=SimpleNamespace(labels=SimpleNamespace(coding="binary", num_channels=1)),
        configuration=None,
        holdout_cases=("h", "i", "j"),
        validation_cases=cases,
        monitored_cases=(),
        watch=SimpleNamespace(seconds=seconds),
        device=torch.device("cpu"),
        log=Log(),
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what one case costs with untrained weights, without a network."""

    def measure(costs: Costs) -> None:
        monkeypatch.setattr(module, "build_model", lambda *_: nn.Identity())
        monkeypatch.setattr(module, "measure_costs", lambda run, model: costs)

    return measure


def test_by_hand() -> None:
    costs = Costs(segment_s=1.0)
    # 10 cases segmented and restored, 3 monitored ones scored once more, 5 s and 2 % for what is unforeseen
    assert costs.final_s(run_of(100)) == 10 * 2 + 3 + 5 + 2
    assert costs.final_s(run_of(100), largest_share=0.1) == 10 + 5 + 2


def test_phase_2_leaves_the_time_that_validation_takes() -> None:
    run, costs = run_of(200, seconds=30), Costs(segment_s=1.0, sample_s=0.75)
    budget = phase_2_budget(run, 0.75, costs, start_s=30)
    assert budget.seconds is not None
    assert costs.final_s(run) > 35
    assert 30 + budget.seconds + costs.final_s(run) == pytest.approx(200)
    assert run.log.said == []


@pytest.mark.parametrize(
    ("max_time_s", "search", "left_out"),
    [(700, FULL_SEARCH, ()), (480, SHORT_SEARCH, (5,)), (100, QUICK_SEARCH, (5, 3))],
)
def test_where_time_is_short_choosing_and_validation_give_way(
    max_time_s: float, search: Search, left_out: tuple[int, ...]
) -> None:
    run, costs = run_of(max_time_s, seconds=40), Costs(segment_s=0.2, sample_s=2.0)
    found = within_budget(run, costs, 40)
    assert found == Costs(0.2, 2.0, search)
    assert run.log.said == [f"time is short: samplers of {calls} calls are not tried" for calls in left_out]


def test_seconds_of_a_search_by_hand() -> None:
    # 3 held-out cases with 14 passes and 5 calls, 10 validated with 2 calls, 3 monitored: 4 calls take 2 s
    quick = Costs(segment_s=0.2, sample_s=2.0, search=QUICK_SEARCH)
    assert quick.final_s(run_of(100)) == pytest.approx(3 * (2.8 + 2.5) + 10 * (0.4 + 1.0) + 3 * (0.2 + 0.5) + 5 + 2)


def test_settings_are_chosen_on_fewer_cases_where_a_case_takes_longer_by_then(measured: Any) -> None:
    search = Search((), calls_per_case=4.0)
    run = run_of(100, seconds=40, num_cases=5)
    run.holdout_cases = tuple(map(str, range(30)))
    planned = Costs(segment_s=0.05, sample_s=0.1, search=search)
    assert len(planned.choosing_cases(run)) == 12  # 0.7 + 0.1 s each, in a tenth of 100 s
    measured(planned)
    assert affordable_cases(run, nn.Identity(), planned) == planned.choosing_cases(run)  # type: ignore[arg-type]
    measured(Costs(segment_s=0.3, sample_s=0.5))
    # 60 s are left; 5 for what is unforeseen, 5 cases of 0.6 + 0.125 s to validate, 4.7 s a case to choose on
    assert affordable_cases(run, nn.Identity(), planned) == run.holdout_cases[:10]  # type: ignore[arg-type]
    measured(Costs(segment_s=10.0, sample_s=2.0))
    assert affordable_cases(run, nn.Identity(), planned) == run.holdout_cases[:6]  # type: ignore[arg-type]


def test_it_says_so_where_the_time_is_exceeded() -> None:
    run = run_of(100, seconds=60)
    budget = phase_2_budget(run, 0.75, Costs(segment_s=1.0, sample_s=0.75), start_s=60)
    assert budget.seconds == 1.0
    (line,) = run.log.said
    assert "--max-time is exceeded" in line


@pytest.mark.parametrize(
    ("max_time_s", "sample_s", "kept"),
    [
        (100, 0.0, 18.5),  # as measured: 10 cases validated, 3 monitored, 7 s for what is unforeseen
        (300, 0.5, 56.0),  # a full search would take more: 0.15 of the time, and 11 s
        (100, 0.5, 44.25),  # even the shortest search takes more, and is kept
        (100, 50.0, 47.0),  # as far as 0.4 of the time
        (15, 50.0, 9.0),  # and never more than 0.6 of what is left
    ],
)
def test_phase_1_keeps_what_untrained_weights_take(
    measured: Any, max_time_s: float, sample_s: float, kept: float
) -> None:
    measured(Costs(segment_s=0.5, sample_s=sample_s))
    assert phase_1_budget(run_of(max_time_s), 0.75).seconds == pytest.approx(0.75 * (max_time_s - kept))


def test_phase_1_is_as_long_in_a_later_sitting(measured: Any) -> None:
    measured(Costs(segment_s=0.5))
    began, continued = run_of(100, seconds=2), run_of(100, seconds=40)
    assert phase_1_budget(continued, 0.75, start_s=2) == phase_1_budget(began, 0.75)


def test_a_budget_that_the_validation_fills_is_an_error(measured: Any) -> None:
    measured(Costs(segment_s=4.0))
    with pytest.raises(UsdError, match=r"--max-time 50 s is too short: the validation of 10 cases needs about 43 s"):
        phase_1_budget(run_of(50, seconds=3), 0.75)
