"""What went wrong is said in words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from unisegdiff_pipeline.evaluation.spread import CaseSpread, Spread
from unisegdiff_pipeline.reports.training_findings import findings


def validated(dice: float | None, fp: int = 0, fn: int = 0, tp: int = 100) -> dict[str, Any]:
    return {"scores": [{"class_name": "lesion", "dice": dice, "tp": tp, "fp": fp, "fn": fn}]}


def said(
    *cases: dict[str, Any], dice: tuple[float, ...] = (), chosen_on: str = "9 cases", spread: Spread | None = None
) -> list[str]:
    entries = [{"kind": "validation", "phase": 2, "iteration": i, "dice_mean": v} for i, v in enumerate(dice)]
    numbered = [{"case_id": str(i), **case} for i, case in enumerate(cases)]
    return findings(entries, {"chosen_on": chosen_on}, numbered, spread or Spread())


def test_a_training_that_went_well_needs_no_words() -> None:
    assert said(*[validated(0.8, 5, 5)] * 6, dice=(0.5, 0.6, 0.59)) == []
    assert findings([], None, [], Spread()) == []


def test_dice_of_0_is_not_left_to_a_table() -> None:
    (text,) = said(*[validated(0.0, tp=0)] * 3, validated(None, tp=0))
    assert "Dice of lesion is 0 in all 3 cases" in text


def test_held_out_dice_that_falls_is_said() -> None:
    (text,) = said(dice=(0.608, 0.55, 0.498))
    assert "fell from 0.608 to 0.498 within phase 2" in text


@pytest.mark.parametrize(("fp", "fn", "expected"), [(14, 0, "14% too large"), (0, 13, "12% too small"), (9, 0, None)])
def test_a_bias_of_volumes_is_said(fp: int, fn: int, expected: str | None) -> None:
    found = said(*[validated(0.85, fp, fn)] * 20)
    assert found == [] if expected is None else expected in found[0]


def spreads(agreement: list[float], volumes: tuple[int, ...] = (8, 9, 11, 12)) -> Spread:
    zeros = (0,) * (len(volumes) + 1)
    return Spread(
        tuple(
            CaseSpread(
                str(i), "lesion", volumes, (7 + i % 7,), 1 - a, math.nan, 0.5, 0.9, zeros, tuple(map(float, zeros))
            )
            for i, a in enumerate(agreement)
        )
    )


def test_confidence_that_points_the_wrong_way_is_said() -> None:
    dice = [0.5 + 0.04 * i for i in range(10)]
    (text,) = said(*map(validated, dice), spread=spreads([0.9 - 0.05 * i for i in range(10)]))
    assert "inverted" in text
    assert "-1.00 over 10 cases" in text
    assert said(*map(validated, dice), spread=spreads([0.4 + 0.05 * i for i in range(10)])) == []
    assert said(*map(validated, dice[:9]), spread=spreads([0.9 - 0.05 * i for i in range(9)])) == []  # too few


def test_samples_that_are_too_wide_or_too_narrow_are_said() -> None:
    wide = spreads([0.5] * 24, volumes=(1, 2, 3, 30, 40, 50))
    (text,) = said(spread=wide)
    assert "too wide" in text
    assert "50% interval of the sampled volumes holds" in text
    (text,) = said(spread=spreads([0.5] * 24, volumes=(20, 20, 21, 21)))
    assert "too narrow" in text


@pytest.mark.parametrize(
    ("chosen_on", "expected"),
    [
        ("nothing: temperature and sampler are the defaults", "Temperature and sampler are the defaults."),
        ("temperature on 4 cases of the inner hold-out: a; sampler is the default", "Sampler is the default."),
        ("nothing, for lack of time: all settings are the defaults", "All settings are the defaults."),
        ("nothing, for lack of time; defaults", "All settings are the defaults."),  # of earlier trainings
    ],
)
def test_choices_that_were_not_made_are_said(chosen_on: str, expected: str) -> None:
    assert said(chosen_on=chosen_on) == [expected]


def test_choices_on_enough_cases_are_no_finding() -> None:
    assert said(chosen_on="9 cases of the inner hold-out: a, b") == []
