"""What a reader of a training report has to know, in words: what went wrong, and what it means for the masks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.failure import failure_detection
from unisegdiff_pipeline.evaluation.spread import Spread
from unisegdiff_pipeline.reports import sample_spread
from unisegdiff_pipeline.reports.training_log import Entry, held_out_dice, of_kind, value

FALL = 0.03  # of Dice on held-out cases
BIAS = 0.10  # of the volume of all cases together
FEWEST_CASES = 5
FEWEST_FOR_ORDER = 10  # to say anything of a rank correlation
INVERTED = -0.2


def findings(
    entries: Sequence[Entry],
    chosen: Mapping[str, Any] | None,
    cases: Sequence[dict[str, Any]],
    spread: Spread,
    units: Units = VOLUMES,
) -> list[str]:
    """Warnings, the gravest first; empty where nothing is to be said.

    Args:
        entries: of the log.
        chosen: of inference.json; None before it is there.
        cases: of validation/summary.json.
        spread: of validation/spread.json.
        units: of the data set.
    """
    names = list(dict.fromkeys(score["class_name"] for case in cases for score in case["scores"]))
    of_class = {name: [_of(case, name) for case in cases] for name in names}
    found = [sentence for name in names for sentence in _dice_zero(name, of_class[name])]
    found += _ended_early(entries)
    found += _fall(entries)
    found += [sentence for name in names for sentence in _bias(name, of_class[name], units)]
    dice = {(c["case_id"], name): value(_of(c, name), "dice") for c in cases for name in names}
    for name, spreads in spread.by_class().items():
        agreement = [1 - s.sample_distance for s in spreads]
        found += _inverted(name, [dice.get((s.case_id, name), math.nan) for s in spreads], agreement)
        found += [s for s in sample_spread.in_words(name, spreads, units) if "too wide" in s or "too narrow" in s]
    return [*found, *_not_chosen(str((chosen or {}).get("chosen_on", "")))]


def _not_chosen(chosen_on: str) -> list[str]:
    """What `chosen_on` of inference.json says of settings that were left at their defaults."""
    said = re.search("(?:^nothing[^:;]*[:;] |; )(.+)", chosen_on)
    if said is None:
        return []
    text = "all settings are the defaults" if said[1] == "defaults" else said[1]  # as version 0.1 began
    return [f"{text[0].upper()}{text[1:]}."]


def _of(case: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next((score for score in case["scores"] if score["class_name"] == name), {})


def _dice_zero(name: str, scores: Sequence[dict[str, Any]]) -> list[str]:
    dice = [v for v in (value(score, "dice") for score in scores) if not math.isnan(v)]
    if not dice or max(dice) > 0:
        return []
    return [
        f"Validation Dice of {name} is 0 in all {len(dice)} cases that hold it: it has not been learned. Train longer, "
        f"and look at the first pages of the data set report for labels that do not fit."
    ]


def _ended_early(entries: Sequence[Entry]) -> list[str]:
    """Phases that ended before their length was over, by patience or on request."""
    return [
        f"Phase {e['phase']} ended at {value(e, 'progress'):.0%} of its length, before its learning rate had fallen to "
        f"its end: {e.get('reason', 'on request')}."
        for e in of_kind(entries, "ended_early")
    ]


def _fall(entries: Sequence[Entry]) -> list[str]:
    """Dice on held-out cases that ends below what it was in the same phase."""
    result = []
    for phase in sorted({e["phase"] for e in of_kind(entries, "validation")}):
        dice = [held_out_dice(e) for e in of_kind(entries, "validation", phase)]
        dice = [v for v in dice if not math.isnan(v)]
        if dice and max(dice) - dice[-1] > FALL:
            result.append(
                f"Dice on held-out cases fell from {max(dice):.3f} to {dice[-1]:.3f} within phase {phase}: the "
                f"training may be too long for so few cases, or its learning rate too high."
            )
    return result


def _bias(name: str, scores: Sequence[dict[str, Any]], units: Units) -> list[str]:
    counts = [(value(s, "tp"), value(s, "fp"), value(s, "fn")) for s in scores]
    counts = [c for c in counts if not any(map(math.isnan, c))]
    reference = sum(tp + fn for tp, _, fn in counts)
    if len(counts) < FEWEST_CASES or not reference:
        return []
    bias = sum(fp - fn for _, fp, fn in counts) / reference
    if abs(bias) <= BIAS:
        return []
    kind = "large" if bias > 0 else "small"
    return [
        f"Masks of {name} are {abs(bias):.0%} too {kind}, over the {units.size_word}s of all {len(counts)} validation "
        f"cases."
    ]


def _inverted(name: str, dice: Sequence[float], agreement: Sequence[float]) -> list[str]:
    order = failure_detection([1 - v for v in dice], agreement)
    if order.n < FEWEST_FOR_ORDER or math.isnan(order.spearman) or order.spearman >= INVERTED:
        return []
    return [
        f"Confidence of {name} is inverted: the more the samples of a case agree, the worse its mask (rank correlation "
        f"{order.spearman:.2f} over {order.n} cases). Do not sort cases by it."
    ]
