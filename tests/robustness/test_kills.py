"""One kill of each command; `python -m tests.robustness.kills` tries any number."""

from __future__ import annotations

import numpy as np
import pytest

from tests.robustness.kills import STEPS, Bench, Step


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.command)
def test_a_killed_command_ends_with_the_same_files(step: Step, bench: Bench) -> None:
    result = bench.trial(step, np.random.default_rng(7))
    assert not result.problem
