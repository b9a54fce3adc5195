"""Tables of the evaluation report; each takes what summary.json holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from unisegdiff_pipeline.evaluation.aggregate import MetricSummary
from unisegdiff_pipeline.evaluation.evaluate import FolderSummary
from unisegdiff_pipeline.reports.metric_names import MetricName, metric_name, size_digits
from unisegdiff_pipeline.reports.page import UNDEFINED, Cell, Column, Html, Shown, Table, format_number, numbers, table

# Those that an evaluation lacks are left out.
MAIN_METRICS = (
    "dice",
    "surface_dice",
    "surface_dice_rater",
    "hd95_mm",
    "assd_mm",
    "volume_error_ml",
    "lesion_sensitivity",
    "lesion_precision",
    "lesion_f1",
    "nll",
    "adaptive_ece",
    "energy_score_u",
    "ged_u",
    "hm_iou",
)
CLASSES_AS_COLUMNS = 7
ONE_PIECE = 1.1  # objects a case, at most, of an organ whose labels hold a stray voxel now and then
LESION_METRICS = frozenset(
    (
        "num_reference_lesions",
        "num_predicted_lesions",
        "num_detected",
        "num_false_positive",
        "lesion_sensitivity",
        "lesion_precision",
        "lesion_f1",
        "mean_lesion_dice",
        "mean_detected_dice",
    )
)
SUMMARY_COLUMNS = (
    Column("Mean"),
    Column("Interval", hint="bootstrap interval of the mean"),
    *numbers("Deviation", "Median"),
    Column("n", hint="cases with a value"),
    Column("Undefined", hint="cases without one"),
)


def main_table(report: FolderSummary) -> Html:
    """A row a metric: of one class all that is known, of several a column a class; of many classes a row a class."""
    names = present(MAIN_METRICS, report)
    entries: dict[str, Mapping[str, MetricSummary]] = {entry.class_name: entry.metrics for entry in report.classes}
    if len(entries) == 1:
        rows = [[shown_as(name, report).label, *_summary_cells(name, report, report.mean[name])] for name in names]
        return table(Table([Column("Metric", "text"), *SUMMARY_COLUMNS], rows, sortable=False))
    entries["mean of classes"] = report.mean
    if len(entries) <= CLASSES_AS_COLUMNS:
        columns = [Column("Metric", "text"), *(Column(name) for name in entries)]
        rows = [
            [shown_as(name, report).label, *(_mean_cell(shown_as(name, report), e.get(name)) for e in entries.values())]
            for name in names
        ]
        return table(Table(columns, rows, sortable=False))
    columns = [Column("Class", "text"), *(metric_column(name, report) for name in names)]
    rows = [[c, *(_mean_cell(shown_as(name, report), e.get(name)) for name in names)] for c, e in entries.items()]
    return table(Table(columns, rows))


def outcome_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"),
        Column("Scored", hint="cases whose reference holds the class"),
        Column("Both empty", hint="cases where neither mask holds the class: undefined, in no mean"),
        Column("False positive", hint="cases whose reference is empty and whose prediction is not"),
        Column("Specificity", hint="fraction of the cases with an empty reference whose prediction is empty, too"),
        Column(
            f"False positive, {report.units.size_text}",
            digits=volume_digits(report),
            hint=f"{report.units.size_word} predicted on empty references",
        ),
        Column(f"Dice of all {report.units.element}s", hint="all cases as one image"),
    ]
    rows: list[list[Cell]] = [
        [
            entry.class_name,
            entry.outcomes.scored,
            entry.outcomes.both_empty,
            entry.outcomes.false_positive,
            entry.case_specificity,
            entry.pooled.false_positive_ml,
            entry.pooled.dice,
        ]
        for entry in report.classes
    ]
    return table(Table(columns, rows, "Cases by outcome", sortable=len(rows) > 1))


def source_table(report: FolderSummary) -> Html:
    """A row a source of a unified data set, over the classes that it annotates, and the mean over sources."""
    assert report.by_source is not None
    names = present(MAIN_METRICS, report)
    columns = [
        Column("Source", "text"),
        Column("Cases"),
        *(metric_column(name, report) for name in names),
        Column("Both empty", hint="classes of cases that neither mask holds: undefined, in no mean"),
        Column("False positive", hint="classes of cases whose reference is empty and whose prediction is not"),
    ]
    rows: list[list[Cell]] = []
    for entry in report.by_source.sources:
        counts = [sum(getattr(c.outcomes, name) for c in entry.classes) for name in ("both_empty", "false_positive")]
        cells = [_mean_cell(_shown_of(name, report, entry.mean), entry.mean.get(name)) for name in names]
        rows.append([entry.source, entry.num_cases, *cells, *counts])
    macro = report.by_source.macro_mean
    means = [_mean_cell(_shown_of(name, report, macro), macro.get(name)) for name in names]
    rows.append(["mean of sources", None, *means, None, None])
    return table(Table(columns, rows, sortable=len(rows) > 2))


def metric_table(report: FolderSummary) -> Html:
    """A row a metric and class, of a unified data set also of each source."""
    sources = () if report.by_source is None else report.by_source.sources
    parts = [("all", report.classes), *((entry.source, entry.classes) for entry in sources)]
    columns = [Column("Metric", "text"), *[Column("Source", "text")] * bool(sources), Column("Class", "text")]
    columns += SUMMARY_COLUMNS
    rows: list[list[Cell]] = [
        [
            shown_as(name, report).label,
            *[source] * bool(sources),
            entry.class_name,
            *_summary_cells(name, report, summary),
        ]
        for source, classes in parts
        for entry in classes
        for name, summary in entry.metrics.items()
    ]
    return table(Table(columns, rows, "All metrics", searchable=True))


def ranking_table(report: FolderSummary) -> Html:
    """All runs, best first."""
    columns = [
        Column("Run", "text"),
        Column("Mean rank", digits=2, hint="mean over cases of the rank by Dice"),
        Column("Dice", hint="mean over cases, each the mean of its classes"),
        Column("Best in", hint="cases where no run is better"),
        Column("Cases"),
    ]
    rows: list[list[Cell]] = [
        [run.name, run.mean_rank, run.mean_dice, run.num_best, run.num_cases] for run in report.ranking
    ]
    return table(Table(columns, rows, "Ranking by Dice"))


def difference_table(report: FolderSummary) -> Html:
    """The scored run against the others, a row a run, class and metric."""
    columns = _difference_columns(by_source=report.by_source is not None)
    return table(Table(columns, _difference_rows(report), "Paired differences", searchable=True))


def _difference_columns(by_source: bool) -> list[Column]:
    return [
        Column("Other run", "text"),
        *[Column("Source", "text")] * by_source,
        Column("Class", "text"),
        Column("Metric", "text"),
        Column("Difference", hint="scored run minus the other"),
        *numbers("Interval", "p", "p, Holm"),
        Column("Effect", digits=2),
        *numbers("Better", "Equal", "Worse", "n"),
    ]


def lesion_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"),
        *numbers("Reference", "Predicted", "Detected", "False positive", "Sensitivity", "Precision", "F1"),
        Column("Lesion Dice", hint="missed lesions as 0"),
        Column("FP a case", digits=2, hint="false-positive lesions a case"),
    ]
    rows: list[list[Cell]] = [
        [
            entry.class_name,
            entry.pooled.num_reference_lesions,
            entry.pooled.num_predicted_lesions,
            entry.pooled.num_detected,
            entry.pooled.num_false_positive,
            entry.pooled.lesion_sensitivity,
            entry.pooled.lesion_precision,
            entry.pooled.lesion_f1,
            entry.pooled.mean_lesion_dice,
            entry.pooled.false_positives_per_case,
        ]
        for entry in report.classes
    ]
    return table(Table(columns, rows, "Lesions of all cases together", sortable=len(rows) > 1))


def strata_table(report: FolderSummary) -> Html:
    columns = [
        Column(report.units.size_word.capitalize(), "text"),
        Column("Class", "text"),
        *numbers("Reference", "Detected", "False positive", "Sensitivity", "Lesion Dice"),
    ]
    rows: list[list[Cell]] = [
        [
            stratum.name,
            entry.class_name,
            stratum.num_reference,
            stratum.num_detected,
            stratum.num_false_positive,
            stratum.sensitivity,
            stratum.mean_dice,
        ]
        for entry in report.classes
        for stratum in entry.strata
    ]
    return table(Table(columns, rows, "Lesions by size"))


def coverage_table(report: FolderSummary) -> Html:
    word = report.units.size_word
    columns = [
        Column("Class", "text"),
        Column("Interval", digits=2, hint=f"central fraction of the sampled {word}s"),
        Column("Holds the reference", hint="fraction of cases"),
        Column("Perfect samples", hint="fraction that perfect samples of this number reach"),
        *numbers("n", "Undefined"),
    ]
    rows: list[list[Cell]] = [
        [entry.class_name, row.level, row.fraction, row.expected, row.n, row.n_undefined]
        for entry in report.classes
        for row in entry.volume_coverage or ()
    ]
    return table(Table(columns, rows, f"{word.capitalize()} intervals from the samples"))


def probability_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"),
        *numbers("ECE", "Adaptive ECE", "NLL"),
        Column("Brier", digits=4),
        Column("AURC", hint="area under the risk-coverage curve"),
        Column("Excess AURC", hint="above that of a perfect order of the cases"),
        Column("Spearman", digits=2, hint="of confidence and Dice"),
    ]
    rows: list[list[Cell]] = []
    for entry in report.classes:
        curve, failure = entry.reliability, entry.failure_detection
        means = [entry.metrics[name].mean if name in entry.metrics else None for name in ("nll", "brier")]
        errors = [curve.ece, curve.adaptive_ece] if curve else [None, None]
        areas = [failure.aurc, failure.eaurc, failure.spearman] if failure else [None, None, None]
        rows.append([entry.class_name, *errors, *means, *areas])
    return table(Table(columns, rows, "Calibration and failure detection", sortable=len(rows) > 1))


def present(names: Iterable[str], report: FolderSummary) -> list[str]:
    """Those metrics that some case has and that say something; "surface_dice" stands for the first tolerance."""
    full = [report.surface_dice if name == "surface_dice" else name for name in names]
    shown = [name for name in full if name in report.mean and report.mean[name].n]
    return shown if holds_lesions(report) else [name for name in shown if name not in LESION_METRICS]


def holds_lesions(report: FolderSummary) -> bool:
    """Whether there is something to find and to count: cases without the class, or with several objects of it.

    An organ lies in every case and in one piece; counting it says nothing.
    """
    return any(
        entry.outcomes.both_empty + entry.outcomes.false_positive > 0
        or entry.pooled.num_reference_lesions > ONE_PIECE * entry.outcomes.scored
        for entry in report.classes
    )


def metric_column(name: str, report: FolderSummary) -> Column:
    shown = shown_as(name, report)
    return Column(shown.label, "number", shown.digits, shown.hint)


def shown_as(name: str, report: FolderSummary) -> MetricName:
    """How a metric is shown in this report: volumes with as many decimals as small lesions need."""
    return _shown_of(name, report, report.mean)


def _shown_of(name: str, report: FolderSummary, means: Mapping[str, MetricSummary]) -> MetricName:
    """The same of a part of the cases, whose lesions may be of another size."""
    shown = metric_name(name, report.units)
    return dataclasses.replace(shown, digits=volume_digits(report, means)) if name.endswith("_ml") else shown


def volume_digits(report: FolderSummary, means: Mapping[str, MetricSummary] | None = None) -> int:
    """Decimals of sizes, by the mean reference."""
    reference = (report.mean if means is None else means).get("reference_ml")
    return size_digits(math.nan if reference is None else reference.mean, report.units)  # NaN: no class is scored


def interval_text(summary: MetricSummary, digits: int) -> str:
    """The interval of a mean in words; empty where it is undefined."""
    if math.isnan(summary.ci_low):
        return ""
    return f"{format_number(summary.ci_low, digits)} to {format_number(summary.ci_high, digits)}"


def _summary_cells(name: str, report: FolderSummary, summary: MetricSummary) -> list[Cell]:
    """Cells of SUMMARY_COLUMNS."""
    shown = shown_as(name, report)
    mean, deviation, median = (
        Shown(format_number(value, shown.digits), value) for value in (summary.mean, summary.std, summary.median)
    )
    interval = Shown(interval_text(summary, shown.digits) or UNDEFINED, summary.ci_low)
    return [mean, interval, deviation, median, summary.n, summary.n_undefined]


def _mean_cell(shown: MetricName, summary: MetricSummary | None) -> Cell:
    """Mean with its interval below."""
    if summary is None or summary.n == 0:
        return None
    mean = format_number(summary.mean, shown.digits)
    interval = interval_text(summary, shown.digits)
    return Shown(Html(f"{mean}<small>{interval}</small>") if interval else mean, summary.mean)


def _difference_rows(report: FolderSummary) -> list[list[Cell]]:
    return [
        [
            run.name,
            *[source] * (report.by_source is not None),
            row.class_name,
            metric_name(row.metric, report.units).label,
            row.mean_difference,
            Shown(f"{format_number(row.ci_low)} to {format_number(row.ci_high)}", row.ci_low),
            _p_value(row.p_wilcoxon),
            _p_value(row.p_holm),
            row.effect_size,
            row.wins,
            row.ties,
            row.losses,
            row.n,
        ]
        for run in report.against
        for source, classes in (("all", run.classes), *((part.source, part.classes) for part in run.sources))
        for row in classes
    ]


def _p_value(p: float) -> Cell:
    return Shown("< 0.001", p) if p < 0.001 else p
