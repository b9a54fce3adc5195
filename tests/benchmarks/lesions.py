"""What the lesion filter changes: as training chose it on the inner hold-out, scored on the fold's validation cases.

    python -m tests.benchmarks.lesions train --work FOLDER --raw ROOT --seconds 300
    python -m tests.benchmarks.lesions table --work FOLDER --raw ROOT --seconds 300

`train` is that of `synthetic_start`: fold 0 of every data set, from random weights and from the start that was trained
on generated lesions. `table` prints, of every training that is finished, the scores of these masks: that of the plain
segmenter at 0.5, the model's before any filter, what the filter of its inference.json leaves of it, and where that is
another one what the filter leaves that the whole hold-out chooses, however short the training's time was; the
differences over the seeds, with Wilcoxon's signed-rank test over patients; and the filters in words. Lesions are
compared on the plan's grid. Of several classes each counts: Dice is the mean over classes and cases that hold them, a
lesion-free case is one without the class. What is found of lesions in held-out and validation cases is kept in
FOLDER/lesions, so that another choice needs no prediction.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import synthetic_start
from tests.benchmarks.sample_spread import open_run
from tests.benchmarks.unified import parser_of, run_benchmark
from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings
from unisegdiff_pipeline.io.paths import find_dataset
from unisegdiff_pipeline.selection.found_lesions import HeldOutCase, choose_lesions, held_out_case
from unisegdiff_pipeline.selection.hold_out import sample_tiles, tiled
from unisegdiff_pipeline.selection.lesion_filter import LesionCase
from unisegdiff_pipeline.selection.objects import numbers_of_objects
from unisegdiff_pipeline.training.fold import finished_model

DATASETS = ("101", "108", "004", "102", "105", "106")  # BUSI, LIDC4R, Hippocampus, Polyp, EBHI, EMIDEC
STARTS = {"alone": "random weights", "synthetic": "generated lesions"}
PLAIN, UNFILTERED, FILTERED, RECHOSEN = "plain segmenter", "without filter", "with filter", "filter of whole hold-out"
DIFFERENCES = ((FILTERED, UNFILTERED), (FILTERED, PLAIN), (RECHOSEN, UNFILTERED))
SCORES = {"dice": "Dice", "f1_of_case": "lesion F1 of a case", "alarms": "false alarms of a lesion-free case"}


@dataclass(frozen=True)
class FoundLesions:
    """Lesions of the masks of a fold without filter; `plain` are those of the plain segmenter in validation cases.

    `trained` is how many lesions of each class annotators drew in each case trained on that has any.
    """

    holdout: list[HeldOutCase]
    validation: list[HeldOutCase]
    plain: list[HeldOutCase]
    trained: dict[str, list[int]]


@dataclass(frozen=True)
class Training:
    """A finished fold: its name in the table, what it chose, and what is found of lesions."""

    dataset: str
    arm: str
    seed: int
    settings: InferenceSettings
    found: FoundLesions

    @property
    def masks(self) -> list[str]:
        """Those that are scored; the filter of the whole hold-out where it is another one than the training's."""
        is_same = self.rechosen.lesion_filter == self.settings.lesion_filter
        return [PLAIN, UNFILTERED, FILTERED] + [RECHOSEN] * (not is_same)

    @cached_property
    def rechosen(self) -> InferenceSettings:
        """The settings with what the whole hold-out chooses of lesions."""
        names = tuple(own.class_name for own in self.found.holdout[0].classes)
        choice = choose_lesions(self.found.holdout, names, self.found.trained)
        assert choice is not None
        return choice.settings(self.settings)

    @property
    def groups(self) -> list[str]:
        """Patient of each entry of `scores`."""
        return [case.group for case in self.found.validation for _ in case.classes]

    def scores(self, mask: str) -> list[dict[str, float]]:
        """Scores of every validation case and class."""
        filters = {FILTERED: self.settings.lesion_filter, RECHOSEN: self.rechosen.lesion_filter}
        lesion_filter = filters.get(mask, NO_FILTER)
        cases = self.found.plain if mask == PLAIN else self.found.validation
        return [scores(own, lesion_filter, case.units.size) for case in cases for own in case.classes]

    def auroc(self, mask: str) -> float:
        """Of the probability that a case holds any lesion, as cases.csv has it; NaN where it is not calibrated."""
        calibration = (self.rechosen if mask == RECHOSEN else self.settings).case_calibration
        if calibration is None:
            return math.nan
        cases = self.found.validation
        return auroc([calibration.probability(c.highest) for c in cases], [c.holds_lesion for c in cases])


def found_lesions(folder: Path, preprocessed: Path, kept: Path) -> FoundLesions:
    """What is found in held-out and validation cases of a fold; each has the calibration of all held-out cases."""
    if kept.is_file():
        return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]
    run = open_run(folder, preprocessed, None)
    model, settings = finished_model(run)
    found = FoundLesions([], [], [], numbers_of_objects(run.held_out))
    for cases, of_mask in ((run.holdout_cases, found.holdout), (run.validation_cases, found.validation)):
        for case_id in cases:
            stored = run.data.open(case_id)
            prediction = sample_tiles(run.held_out, tiled(run.held_out, model, stored), settings, stored)
            of_mask.append(held_out_case(run.held_out, settings, stored, prediction))
            if of_mask is found.validation:
                plain = replace(prediction, boxes=(), num_samples=0)
                found.plain.append(held_out_case(run.held_out, replace(settings, decision="half"), stored, plain))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps(found))
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


def auroc(values: list[float], positive: list[bool]) -> float:
    """Chance that a value of a positive case lies above that of a negative one, ties half; NaN without both kinds."""
    v, y = np.asarray(values), np.asarray(positive)
    if not y.any() or y.all():
        return math.nan
    difference = v[y][:, None] - v[~y][None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def finished(args: argparse.Namespace) -> list[Training]:
    """Every training that has ended."""
    result = []
    for dataset in args.datasets:
        for arm in args.arms:
            for seed in args.seeds:
                folder = synthetic_start.fold_folder(args, dataset, arm, seed)
                if not (folder / "validation" / "summary.json").is_file():
                    continue
                name = find_dataset(args.raw, dataset).split("_", 1)[1]
                kept = args.work / "lesions" / f"{name}_{folder.parent.name}.pkl"
                found = found_lesions(folder, args.work / "preprocessed", kept)
                result.append(Training(name, arm, seed, read_settings(folder), found))
    return result


def table(args: argparse.Namespace) -> list[str]:
    """Lines of three Markdown tables."""
    trainings = finished(args)
    return [*score_lines(trainings), "", *difference_lines(trainings), "", *filter_lines(trainings)]


def score_lines(trainings: Sequence[Training]) -> list[str]:
    """Scores of each mask of each training."""
    lines = [
        "| set | start | seed | mask | Dice | lesion F1 | sensitivity | false alarms per lesion-free case | "
        "lesion-free cases with a mask | AUROC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in trainings:
        for mask in one.masks:
            rows = one.scores(mask)
            detected, false, reference = (sum(row[name] for row in rows) for name in ("detected", "false", "reference"))
            alarmed = [row["any_alarm"] for row in rows if not math.isnan(row["any_alarm"])]
            cells = [
                *(one.dataset, STARTS[one.arm], str(one.seed), mask),
                _number(_mean([row["dice"] for row in rows])),
                _number(2 * detected / (detected + false + reference)),
                _number(detected / reference),
                _number(_mean([row["alarms"] for row in rows]), 2),
                f"{sum(alarmed):.0f} of {len(alarmed)}" if alarmed else "-",
                _number(one.auroc(mask), 2) if mask in (FILTERED, RECHOSEN) else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def difference_lines(trainings: Sequence[Training]) -> list[str]:
    """Paired differences of masks, of all seeds of a set and start together."""
    lines = [
        "| set | start | seeds | masks | per case | difference [95 %] | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset, arm in dict.fromkeys((one.dataset, one.arm) for one in trainings):
        of_both = [one for one in trainings if (one.dataset, one.arm) == (dataset, arm)]
        for first, second in DIFFERENCES:
            own = [one for one in of_both if first in one.masks]
            groups = [group for one in own for group in one.groups]
            for name, words in SCORES.items():
                pair = [[row[name] for one in own for row in one.scores(mask)] for mask in (first, second)]
                found = paired_comparison(pair[0], pair[1], groups, resamples=10_000)
                if found.wins or found.losses:  # else the filter took nothing
                    seeds = ", ".join(str(one.seed) for one in own)
                    interval = f"{found.mean_difference:+.3f} [{found.ci_low:+.3f}, {found.ci_high:+.3f}]"
                    what = f"{dataset} | {STARTS[arm]} | {seeds} | {first} - {second} | {words}"
                    lines.append(f"| {what} | {interval} | {found.p_wilcoxon:.2g} |")
    return lines


def filter_lines(trainings: Sequence[Training]) -> list[str]:
    """What each training chose."""
    lines = ["| set | start | seed | mask | held-out cases | filter |", "|---|---|---|---|---|---|"]
    for one in trainings:
        units = one.found.holdout[0].units
        for mask, settings in ((FILTERED, one.settings), (RECHOSEN, one.rechosen)):
            if mask in one.masks:
                cases = re.search(r"\d+ held-out case", " ".join(settings.filter_in_words))
                number = "none, the time was over" if cases is None else cases[0].split()[0]
                rules = settings.lesion_filter.rules.items()
                words = "; ".join(f"{name}: {rule.describe(units)}" for name, rule in rules) or "every lesion stays"
                lines.append(f"| {one.dataset} | {STARTS[one.arm]} | {one.seed} | {mask} | {number} | {words} |")
    return lines


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _mean(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def main() -> None:
    parser = parser_of(__doc__)
    synthetic_start.add_trainings(parser, DATASETS)
    run_benchmark(parser.parse_args(), train=synthetic_start.train, table=table)


if __name__ == "__main__":
    main()
