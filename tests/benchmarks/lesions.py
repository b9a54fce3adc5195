"""What the lesion filter changes: chosen on the inner hold-out of finished folds, scored on their validation cases.

python tests/benchmarks/lesions.py FOLD [FOLD ...] --preprocessed DIR [--json FILE] [--tables DIR]

FOLD is a fold's folder in RESULTS. Lesions are compared on the plan's grid. The hold-out is predicted with the fold's
calibration (training predicts each of its patients with that of the others). Written are, for each fold, the filter in
words and, before and after it, Dice over the cases with a lesion, F1 of all lesions, false alarms per lesion-free case
and lesion-free cases with any, with the paired difference and Wilcoxon's signed-rank test over patients; and how well
the probability of a case tells cases with and without lesion apart. `--tables` keeps the tables of lesions, so that
another choice needs no prediction.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.sample_spread import open_run
from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter
from unisegdiff_pipeline.selection.found_lesions import HeldOutCase, choose_of, held_out_case
from unisegdiff_pipeline.selection.hold_out import sample_tiles, tiled
from unisegdiff_pipeline.selection.lesion_filter import LesionCase
from unisegdiff_pipeline.training.fold import finished_model


def tables(folder: Path, preprocessed: Path, kept: Path | None) -> dict[str, list[HeldOutCase]]:
    """What is found in the held-out cases and in the validation cases of a fold."""
    path = None if kept is None else kept / f"{folder.parent.parent.name}_{folder.parent.name}_{folder.name}.pkl"
    if path is not None and path.is_file():
        return pickle.loads(path.read_bytes())  # type: ignore[no-any-return]
    run = open_run(folder, preprocessed, None)
    model, settings = finished_model(run)
    found: dict[str, list[HeldOutCase]] = {}
    for name, cases in (("holdout", run.holdout_cases), ("validation", run.validation_cases)):
        found[name] = []
        for case_id in cases:
            stored = run.data.open(case_id)
            prediction = sample_tiles(run.held_out, tiled(run.held_out, model, stored), settings, stored)
            found[name].append(held_out_case(run.held_out, settings, stored, prediction))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(found))
    return found


def scores(case: LesionCase, lesion_filter: LesionFilter, unit: Any) -> dict[str, float]:
    """Of one class of a case after the filter; NaN where undefined."""
    outcome = case.outcome(lesion_filter.rule(case.class_name, unit))
    detected, false = outcome.detected, outcome.false
    has_lesion = case.num_reference > 0
    return {
        "dice": outcome.dice,
        "f1_of_case": 2 * detected / (detected + false + case.num_reference) if has_lesion else math.nan,
        "alarms": math.nan if has_lesion else float(false),
        "any_alarm": math.nan if has_lesion else float(false > 0),
        "detected": detected,
        "false": false,
        "reference": case.num_reference,
    }


def describe(found: dict[str, list[HeldOutCase]], classes: tuple[str, ...]) -> dict[str, Any]:
    """What is chosen, and what it does in the validation cases."""
    choice = choose_of(found["holdout"], classes)
    assert choice is not None
    lesion_filter = choice.choice.lesion_filter
    cases = [(case, own) for case in found["validation"] for own in case.classes]
    groups = [case.group for case, _ in cases]
    result: dict[str, Any] = {
        "filter": dataclasses.asdict(lesion_filter),
        "words": choice.choice.describe(choice.units),
        "num_held_out": len(found["holdout"]),
        "held_out_lesion_free": sum(not case.holds_lesion for case in found["holdout"]),
        "num_validation": len(found["validation"]),
        "validation_lesion_free": sum(not case.holds_lesion for case in found["validation"]),
        "plain_alarms": _mean([own.plain_false_alarms for _, own in cases if own.num_reference == 0]),
    }
    before = [scores(own, LesionFilter(), case.units.size) for case, own in cases]
    after = [scores(own, lesion_filter, case.units.size) for case, own in cases]
    for name in ("dice", "f1_of_case", "alarms", "any_alarm"):
        a, b = [s[name] for s in after], [s[name] for s in before]
        pairs = paired_comparison(a, b, groups)
        result[name] = {
            "before": _mean(b),
            "after": _mean(a),
            "difference": pairs.mean_difference,
            "ci": [pairs.ci_low, pairs.ci_high],
            "p": pairs.p_wilcoxon,
        }
    result["lesion_f1"] = {"before": _f1(before), "after": _f1(after)}
    result["sensitivity"] = {
        name: sum(s["detected"] for s in own) / sum(s["reference"] for s in own)
        for name, own in (("before", before), ("after", after))
    }
    holds = [case.holds_lesion for case in found["validation"]]
    highest = [case.highest for case in found["validation"]]
    result["case_auroc"] = auroc(highest, holds)
    if choice.case_calibration is not None:
        p = np.array([choice.case_calibration.probability(value) for value in highest])
        result["case_brier"] = {
            "calibrated": float(((p - np.array(holds)) ** 2).mean()),
            "highest_probability": float(((np.array(highest) - np.array(holds)) ** 2).mean()),
            "prevalence": float(np.mean(holds) * (1 - np.mean(holds))),
        }
    return result


def auroc(values: list[float], positive: list[bool]) -> float:
    """Chance that a value of a positive case lies above that of a negative one, ties half; NaN without both kinds."""
    v, y = np.asarray(values), np.asarray(positive)
    if not y.any() or y.all():
        return math.nan
    difference = v[y][:, None] - v[~y][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def _mean(values: list[Any]) -> float:
    defined = [float(v) for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def _f1(found: list[dict[str, float]]) -> float:
    detected, false, reference = (sum(s[name] for s in found) for name in ("detected", "false", "reference"))
    return 2 * detected / (detected + false + reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--preprocessed", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tables", type=Path)
    args = parser.parse_args()
    result = {}
    for folder in args.folds:
        found = tables(folder.absolute(), args.preprocessed, args.tables)
        classes = tuple(own.class_name for own in found["holdout"][0].classes)
        name = f"{folder.absolute().parent.parent.name} {folder.absolute().parent.name} {folder.name}"
        result[name] = describe(found, classes)
        print(name, json.dumps(result[name], indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
