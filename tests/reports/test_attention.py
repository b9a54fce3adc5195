"""Bands of lam in the training report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.reports import attention

LIMITS = [-10.0, -8.0, -6.0, -3.0, 0.0, 2.0, 4.0]
NUM_BANDS = len(LIMITS) + 1


def entry(iteration: int, cases: str = "training", **columns: list[float | None]) -> dict[str, Any]:
    constant: dict[str, Any] = {"loss": [0.5] * NUM_BANDS, "dice": [0.5] * NUM_BANDS}
    constant |= {"gradient_norm": [1.0 if cases == "training" else None] * NUM_BANDS, "num_examples": [4] * NUM_BANDS}
    facts = {"kind": "bands", "phase": 2, "iteration": iteration, "seconds": 1.0 * iteration, "cases": cases}
    return {**facts, "lam_a": -6.0, "lam_c": 0.0, "limits": LIMITS, **constant, **columns}


def test_entries_are_merged_by_their_numbers_of_examples() -> None:
    none: list[float | None] = [None] * NUM_BANDS
    first = entry(1, loss=[2.0] * NUM_BANDS, num_examples=[1] * NUM_BANDS)
    second = entry(2, loss=[4.0] * NUM_BANDS, dice=none, num_examples=[3] * NUM_BANDS)
    bands = attention.merge([first, second])
    assert bands is not None
    assert bands.means["loss"] == (3.5,) * NUM_BANDS
    assert bands.means["dice"] == (0.5,) * NUM_BANDS  # the second entry does not know
    assert bands.examples == (4,) * NUM_BANDS
    assert bands.middles == [-9.0, -7.0, -4.5, -1.5, 1.0, 3.0]


def test_bands_without_examples_are_undefined() -> None:
    bands = attention.merge([entry(1, loss=[None] * NUM_BANDS, num_examples=[0] * NUM_BANDS)])
    assert bands is not None
    assert all(math.isnan(v) for v in bands.means["loss"])
    assert attention.merge([]) is None


def test_entries_of_another_plan_are_left_out() -> None:
    former = {**entry(1, loss=[9.0] * NUM_BANDS), "limits": [-1.0, *LIMITS[1:]]}
    bands = attention.merge([former, entry(2)])
    assert bands is not None
    assert bands.means["loss"] == (0.5,) * NUM_BANDS


@pytest.mark.parametrize(
    ("iterations", "sizes"), [((1, 2, 3), (1, 1, 1)), ((30, 60, 90, 91), (1, 1, 2)), ((5,), (0, 0, 1))]
)
def test_thirds_go_by_iteration(iterations: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    parts = attention.bands_of_thirds([entry(i) for i in iterations])
    assert tuple(0 if part is None else part.examples[0] // 4 for part in parts) == sizes


def test_short_trainings_are_not_cut_into_thirds() -> None:
    entries = [entry(i, num_examples=[9] * NUM_BANDS) for i in (1, 2, 3)]
    assert set(attention.bands_of_parts(entries)) == {attention.WHOLE}
    entries = [entry(i, num_examples=[10] * NUM_BANDS) for i in (1, 2, 3)]
    assert set(attention.bands_of_parts(entries)) == set(attention.PARTS)


def test_a_training_without_bands_has_no_section(tmp_path: Path) -> None:
    assert attention.section(tmp_path, [{"kind": "train", "phase": 1}]) is None


def test_other_trainers_of_the_same_fold_are_compared(tmp_path: Path) -> None:
    models = {"StagedDiffusionTrainer__2d": 0.5, "X0DiffusionTrainer__2d": 0.75, "Other__3d_fullres": 1.0}
    for name, loss in models.items():
        folder = tmp_path / name / "fold_0"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(json.dumps(entry(3, loss=[loss] * NUM_BANDS)) + "\n")
    own = tmp_path / "StagedDiffusionTrainer__2d" / "fold_0"
    others = attention.other_trainers(own)
    assert set(others) == {"X0DiffusionTrainer"}
    assert others["X0DiffusionTrainer"].means["loss"][0] == 0.75
    section = attention.section(own, [entry(3), entry(3, "held_out")])
    assert section is not None
    text = "".join(section.body)
    assert text.count("<svg") == 2
    assert "X0DiffusionTrainer" in text
    assert attention.HELD_OUT in text
