"""Scores of a profile over all cases: what summary.json, profile_NAME.csv, the terminal and the report hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.csv_tables import write_csv
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.aggregate import MetricSummary, summarise_metric
from unisegdiff_pipeline.evaluation.case import CaseResult, class_names, groups_of_class, of_class
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.profiles.registry import find_profile
from unisegdiff_pipeline.evaluation.summary import format_table, format_value
from unisegdiff_pipeline.evaluation.tables import DIGITS, have_sources


@dataclass(frozen=True)
class ClassProfile:
    """One class over all cases.

    Attributes:
        over_cases: each column of profile_NAME.csv.
        pooled: scores over the lesions or voxels of all cases together; NaN where undefined.
        notes: how to read them on these cases.
    """

    class_name: str
    over_cases: Mapping[str, MetricSummary]
    pooled: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ProfileReport:
    """What a profile says of all cases.

    Attributes:
        title, source, rule: see `profile.Profile`.
    """

    name: str
    title: str
    source: str
    rule: str
    classes: tuple[ClassProfile, ...]


def report_profile(
    name: str, cases: Sequence[CaseResult], options: EvaluationOptions, units: Units = VOLUMES
) -> ProfileReport:
    """Put the scores of all cases together."""
    profile = find_profile(name)
    classes = []
    for class_name in class_names(cases):
        groups = groups_of_class(cases, class_name)
        scores = [result.profiles[name] for result in of_class(cases, class_name)]
        over_cases = {
            column: summarise_metric([score.values[column] for score in scores], groups, options)
            for column in profile.columns
        }
        classes.append(ClassProfile(class_name, over_cases, profile.pooled(scores), profile.notes(scores)))
    return ProfileReport(name, profile.title, profile.source, profile.rule_in(units), tuple(classes))


def profile_file(name: str) -> str:
    """Name of the table of a profile."""
    return f"profile_{name}.csv"


def write_profile(path: Path, name: str, cases: Sequence[CaseResult], units: Units = VOLUMES) -> None:
    """Write profile_NAME.csv atomically: a row a case and class."""
    columns, has_sources = list(find_profile(name).columns), have_sources(cases)
    rows = (
        [
            case.case_id,
            *[case.source] * has_sources,
            case.group,
            result.overlap.class_name,
            *(result.profiles[name].values[c] for c in columns),
        ]
        for case in cases
        for result in case.classes
    )
    headings = ["case", *["source"] * has_sources, "group", "class_name", *map(units.name, columns)]
    write_csv(path, headings, rows, DIGITS)


def profile_table(report: ProfileReport, units: Units = VOLUMES) -> str:
    """A line a score and a column a class, and the rule and its source below."""
    rows = [(report.name, *(entry.class_name for entry in report.classes))]
    for name in report.classes[0].over_cases:
        means = (entry.over_cases[name].mean for entry in report.classes)
        rows.append((f"mean {units.name(name)}", *(format_value(mean, ".4g") for mean in means)))
    for name in report.classes[0].pooled:
        values = (entry.pooled[name] for entry in report.classes)
        rows.append((f"all cases: {units.name(name)}", *(format_value(value, ".4g") for value in values)))
    notes = [note for entry in report.classes for note in entry.notes]
    below = "".join(f"\n{note}" for note in dict.fromkeys(notes))
    return f"{format_table(rows)}{below}\n{report.title}. {report.rule}\nSource: {report.source}."
