"""A few hundred damaged files a run; `python -m tests.robustness.fuzz` tries any number."""

from __future__ import annotations

import numpy as np

from tests.robustness.fuzz import FAULTS, fuzz
from tests.robustness.mutations import MUTATIONS, mutate
from tests.robustness.parsers import PARSERS


def test_damaged_files_are_read_or_refused() -> None:
    outcomes = list(fuzz(trials=20 * len(PARSERS), seed=0))
    faults = [outcome for outcome in outcomes if outcome.kind in FAULTS]
    assert not faults, "\n".join(map(str, faults))
    refused = sum(outcome.kind == "refused" for outcome in outcomes)
    assert refused > len(outcomes) / 2  # the damage is real


def test_mutations_depend_on_the_seed_alone_and_always_change_something() -> None:
    content = b'{"version": 1, "values": [1.5, -2]}' * 20
    first, second = ([mutate(content, np.random.default_rng([seed, i])) for i in range(200)] for seed in (0, 0))
    assert first == second
    assert content not in first
    assert len(set(first)) > 190


def test_every_mutation_takes_empty_and_short_files() -> None:
    for mutation in MUTATIONS:
        for content in (b"", b"7"):
            assert isinstance(mutation(content, np.random.default_rng(0)), bytes)
