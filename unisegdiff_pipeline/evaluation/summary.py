"""Scores of many cases, put together per class, with the empty ones counted and never hidden in a mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.metrics import ClassScore


@dataclass(frozen=True)
class CaseScores:
    """All scores of one case."""

    case_id: str
    scores: tuple[ClassScore, ...]


@dataclass(frozen=True)
class ClassSummary:
    """One class over all cases.

    Attributes:
        class_name: name of the class or region.
        num_cases: cases looked at.
        num_scored: cases whose reference holds the class; the means are over these.
        num_both_empty: cases where neither mask holds the class (undefined, in no mean).
        num_false_positive: cases whose reference is empty and whose prediction is not.
        mean_dice, std_dice, median_dice, mean_iou: over the scored cases; NaN without any.
        mean_dice_nnunet: the same mean as nnU-Net counts it, where a false positive on an empty case is a Dice of 0.
        mean_volume_error_ml, mean_absolute_volume_error_ml: over the scored cases.
        mean_false_positive_ml: over the cases with an empty reference, correct ones as 0.
        tp, fp, fn: voxels summed over all cases.
    """

    class_name: str
    num_cases: int
    num_scored: int
    num_both_empty: int
    num_false_positive: int
    mean_dice: float
    std_dice: float
    median_dice: float
    mean_iou: float
    mean_dice_nnunet: float
    mean_volume_error_ml: float
    mean_absolute_volume_error_ml: float
    mean_false_positive_ml: float
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class Summary:
    """All classes, and the mean of their means (`mean_dice`: mean foreground Dice)."""

    mean_dice: float
    mean_iou: float
    mean_dice_nnunet: float
    classes: tuple[ClassSummary, ...]


def summarise(cases: Sequence[CaseScores]) -> Summary:
    """Put the scores of all cases together; classes in the order in which the cases hold them."""
    names = list(dict.fromkeys(score.class_name for case in cases for score in case.scores))
    classes = tuple(
        _summarise_class(name, [s for case in cases for s in case.scores if s.class_name == name]) for name in names
    )
    return Summary(
        mean_dice=mean_of_defined(c.mean_dice for c in classes),
        mean_iou=mean_of_defined(c.mean_iou for c in classes),
        mean_dice_nnunet=mean_of_defined(c.mean_dice_nnunet for c in classes),
        classes=classes,
    )


def mean_of_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN where there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else math.nan


def macro_mean(values: Sequence[float], parts: Sequence[str]) -> float:
    """Mean over parts (the sources of a unified data set) of `mean_of_defined` of each; over all values without parts.

    A part without a defined value does not count.
    """
    if not parts:
        return mean_of_defined(values)
    of_parts: dict[str, list[float]] = {}
    for value, part in zip(values, parts, strict=True):
        of_parts.setdefault(part, []).append(value)
    return mean_of_defined(map(mean_of_defined, of_parts.values()))


def _summarise_class(name: str, scores: Sequence[ClassScore]) -> ClassSummary:
    scored = [s for s in scores if s.outcome == "scored"]
    empty = [s for s in scores if s.outcome != "scored"]
    false_positive = [s for s in empty if s.outcome == "false_positive"]
    dice = [s.dice for s in scored]
    return ClassSummary(
        class_name=name,
        num_cases=len(scores),
        num_scored=len(scored),
        num_both_empty=len(empty) - len(false_positive),
        num_false_positive=len(false_positive),
        mean_dice=mean_of_defined(dice),
        std_dice=statistics.stdev(dice) if len(dice) > 1 else math.nan,
        median_dice=statistics.median(dice) if dice else math.nan,
        mean_iou=mean_of_defined(s.iou for s in scored),
        mean_dice_nnunet=mean_of_defined(dice + [0.0] * len(false_positive)),
        mean_volume_error_ml=mean_of_defined(s.volume_error_ml for s in scored),
        mean_absolute_volume_error_ml=mean_of_defined(abs(s.volume_error_ml) for s in scored),
        mean_false_positive_ml=mean_of_defined(s.false_positive_ml for s in empty),
        tp=sum(s.tp for s in scores),
        fp=sum(s.fp for s in scores),
        fn=sum(s.fn for s in scores),
    )


def summary_table(summary: Summary, units: Units = VOLUMES) -> str:
    """The summary as a text table of one row a class, followed by a line on what its columns count."""
    return f"{format_table(summary_rows(summary, units))}\n{summary_note(summary, units)}"


def summary_rows(summary: Summary, units: Units = VOLUMES) -> list[tuple[str, ...]]:
    """Headings, a row a class, and the means of several classes; every row has as many cells."""
    error = f"{units.size_word} error {units.size_text}"
    header = ("class", "Dice", "sd", "median", "IoU", error, "scored", "both empty", "false positive")
    rows = [header, *(_row(c) for c in summary.classes)]
    if len(summary.classes) > 1:
        rows.append(("mean", format_value(summary.mean_dice), "", "", format_value(summary.mean_iou), "", "", "", ""))
    return rows


def summary_note(summary: Summary, units: Units = VOLUMES) -> str:
    """What the columns of `summary_rows` count."""
    note = "Dice and IoU are means over the cases whose reference holds the class (scored)."
    if any(c.num_false_positive for c in summary.classes):
        note += (
            f" {sum(c.num_false_positive for c in summary.classes)} prediction(s) on empty references are not in"
            f" them; counted as 0, as nnU-Net does, the mean Dice is {format_value(summary.mean_dice_nnunet)}."
        )
    if units.nominal:
        note += " Volumes are nominal: the voxel size of some images is not known."
    return note


def fold_table(folds: Mapping[str, Mapping[str, float | None]]) -> str:
    """Dice per fold (rows) and class (columns), with mean and standard deviation over the folds below.

    Args:
        folds: fold => class => mean Dice, None or NaN where undefined.
    """
    names = list(dict.fromkeys(name for values in folds.values() for name in values))
    table = [[_defined(values.get(name)) for name in names] for values in folds.values()]
    columns = list(zip(*table, strict=True))
    rows: list[tuple[str, ...]] = [("fold", *names)]
    rows += [(fold, *map(format_value, values)) for fold, values in zip(folds, table, strict=True)]
    rows.append(("mean", *(format_value(mean_of_defined(column)) for column in columns)))
    rows.append(("sd", *(format_value(_deviation(column)) for column in columns)))
    return format_table(rows)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the first is a name on the left, the others are numbers on the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def format_value(value: float, form: str = ".3f") -> str:
    """A number of a table by a format of Python, "-" where it is not defined (NaN)."""
    return "-" if math.isnan(value) else format(value, form)


def _row(c: ClassSummary) -> tuple[str, ...]:
    numbers = (c.mean_dice, c.std_dice, c.median_dice, c.mean_iou)
    counts = (c.num_scored, c.num_both_empty, c.num_false_positive)
    return (c.class_name, *map(format_value, numbers), format_value(c.mean_volume_error_ml, ".3g"), *map(str, counts))


def _defined(value: float | None) -> float:
    return math.nan if value is None else value


def _deviation(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.stdev(defined) if len(defined) > 1 else math.nan
