"""The report of an evaluation: scores with intervals, distributions, lesions, volumes, calibration, pictures of cases.

Everything in it is in summary.json, metrics.csv and lesions.csv beside it, but for the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import unisegdiff_pipeline
from unisegdiff_pipeline.evaluation.aggregate import ClassReport, MetricSummary
from unisegdiff_pipeline.evaluation.evaluate import Evaluation, FolderSummary
from unisegdiff_pipeline.evaluation.tables import metric_row
from unisegdiff_pipeline.reports import evaluation_figures as charts
from unisegdiff_pipeline.reports.case_gallery import Highlight, draw_case, find_images, highlights, write_viewer
from unisegdiff_pipeline.reports.figures import series_color
from unisegdiff_pipeline.reports.metric_names import metric_name
from unisegdiff_pipeline.reports.page import (
    Cell,
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
    Shown,
    Table,
    details,
    facts,
    figure,
    format_number,
    grid,
    key_figures,
    link,
    notice,
    paragraph,
    subsection,
    table,
    write_page,
)

T = TypeVar("T")
REPORT_NAME, VIEWERS = "report.html", "viewers"
DRAWN_CLASSES = 10  # of a data set with more, figures show the first; tables and files hold all
# Opening numbers, main table and columns of the table of cases; those that an evaluation lacks are left out.
KEY_METRICS = ("dice", "surface_dice", "hd95_mm", "lesion_f1", "ged_u", "energy_score_u", "adaptive_ece")
MAIN_METRICS = (
    "dice", "surface_dice", "hd95_mm", "assd_mm", "volume_error_ml", "lesion_sensitivity", "lesion_precision",
    "lesion_f1", "nll", "adaptive_ece", "energy_score_u", "ged_u", "hm_iou",
)  # fmt: skip
BOX_METRICS = ("dice", "surface_dice", "hd95_mm", "lesion_f1")
CASE_METRICS = (
    "dice", "iou", "sensitivity", "precision", "reference_ml", "predicted_ml", "volume_error_ml", "surface_dice",
    "hd95_mm", "assd_mm", "num_reference_lesions", "num_detected", "num_false_positive", "lesion_f1",
    "mean_lesion_dice", "nll", "adaptive_ece", "energy_score_u", "ged_u", "hm_iou", "case_confidence",
)  # fmt: skip
OUTCOMES = {"scored": "scored", "both_empty": "both empty", "false_positive": "false positive"}


def write_evaluation_report(folder: Path, evaluation: Evaluation) -> Path:
    """Write report.html, and a viewer in viewers/ for each of the 3D cases that it shows; returns the report's path.

    Images are looked for beside the references (imagesTr for labelsTr); without them the pictures hold masks alone.

    Raises:
        UsdError: a file cannot be read or written.
    """
    chosen = highlights(evaluation.inputs, evaluation.cases)
    images = find_images(evaluation.inputs.folders.reference, [item.inputs.case_id for item in chosen])
    viewers = _write_viewers(folder, evaluation.report, chosen, images)
    sections = [
        _summary(evaluation),
        _comparison(evaluation.report),
        _cases_in_pictures(evaluation.report, chosen, images, viewers),
        _distributions(evaluation),
        _lesions(evaluation),
        _volumes(evaluation),
        _probabilities(evaluation.report),
        _all_cases(evaluation, {case: target for case, (target, _) in viewers.items()}),
        _settings(evaluation.report),
    ]
    page = Page(
        title="Evaluation report",
        subtitle=f"{evaluation.report.prediction} against {evaluation.report.reference}",
        lead=_lead(evaluation),
        sections=[section for section in sections if section is not None],
        footer=f"Written by unisegdiff_pipeline {unisegdiff_pipeline.__version__}. "
        "All numbers: metrics.csv, lesions.csv and summary.json beside this file.",
    )
    return write_page(folder / REPORT_NAME, page)


# ------------------------------------------------------------------------------------------------------------ opening


def _lead(evaluation: Evaluation) -> list[Html]:
    report = evaluation.report
    several = len(report.classes) > 1
    names = _present(KEY_METRICS, report.mean, report)
    figures = [_key_figure(name, report.mean[name], several) for name in names[:6]]
    parts = [key_figures(figures)]
    if not report.spacing_known:
        text = "Volumes and distances are nominal: the voxel size of this data set is not known."
        parts.append(notice(text, "warning"))
    if report.not_predicted:
        parts.append(notice(f"{len(report.not_predicted)} reference cases have no prediction and are left out."))
    if false := sum(entry.outcomes.false_positive for entry in report.classes):
        what = "prediction stands" if false == 1 else "predictions stand"
        parts.append(
            notice(f"{false} {what} on an empty reference. Overlap is undefined there and in no mean; see Lesions.")
        )
    return parts


def _key_figure(name: str, summary: MetricSummary, several_classes: bool) -> KeyFigure:
    shown = metric_name(name)
    of_classes = "mean of classes, " if several_classes else ""
    interval = "" if math.isnan(summary.ci_low) else f"{_range(summary, shown.digits)}, "
    return KeyFigure(shown.label, format_number(summary.mean, shown.digits), f"{interval}{of_classes}n = {summary.n}")


def _summary(evaluation: Evaluation) -> Section:
    report = evaluation.report
    level = f"{100 * report.settings['intervals']['level']:g} %"
    groups = report.settings["num_groups"]
    unit = "cases" if groups == report.settings["num_cases"] else f"groups ({groups} of them)"
    intro = (
        f"{report.settings['num_cases']} cases. Means over those where a metric is defined, with {level} bootstrap "
        f"intervals over {unit}."
    )
    body = [_main_table(report), _outcome_table(report), details("All metrics", [_metric_table(report)])]
    return Section("Summary", body, intro)


def _main_table(report: FolderSummary) -> Html:
    """A row a metric, a column a class; as the other way round where there are many classes."""
    names = _present(MAIN_METRICS, report.mean, report)
    entries: dict[str, Mapping[str, MetricSummary]] = {entry.class_name: entry.metrics for entry in report.classes}
    if len(entries) > 1:
        entries["mean of classes"] = report.mean
    if len(entries) <= 5:
        columns = [Column("Metric", "text"), *(Column(name) for name in entries)]
        rows = [[metric_name(name).label, *(_mean_cell(name, e.get(name)) for e in entries.values())] for name in names]
        return table(Table(columns, rows, sortable=False))
    columns = [Column("Class", "text"), *(_column(name) for name in names)]
    return table(Table(columns, [[c, *(_mean_cell(n, e.get(n)) for n in names)] for c, e in entries.items()]))


def _mean_cell(name: str, summary: MetricSummary | None) -> Cell:
    if summary is None or summary.n == 0:
        return None
    digits = metric_name(name).digits
    mean = format_number(summary.mean, digits)
    text = mean if math.isnan(summary.ci_low) else f"{mean} ({_range(summary, digits)})"
    return Shown(text, summary.mean)


def _range(summary: MetricSummary, digits: int) -> str:
    return f"{format_number(summary.ci_low, digits)} to {format_number(summary.ci_high, digits)}"


def _outcome_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"),
        Column("Scored", hint="cases whose reference holds the class"),
        Column("Both empty", hint="cases where neither mask holds the class: undefined, in no mean"),
        Column("False positive", hint="cases whose reference is empty and whose prediction is not"),
        Column("Specificity", hint="share of the cases with an empty reference whose prediction is empty, too"),
        Column("False positive, ml", digits=2, hint="volume predicted on empty references, all cases"),
        Column("Dice of all voxels", hint="all cases as one image"),
    ]
    rows: list[list[Cell]] = [
        [
            entry.class_name, entry.outcomes.scored, entry.outcomes.both_empty, entry.outcomes.false_positive,
            entry.case_specificity, entry.pooled.false_positive_ml, entry.pooled.dice,
        ]
        for entry in report.classes
    ]  # fmt: skip
    return table(Table(columns, rows, "Cases by outcome", sortable=len(rows) > 1))


def _metric_table(report: FolderSummary) -> Html:
    columns = [
        Column("Metric", "text"), Column("Class", "text"), Column("Mean"), Column("Interval", "number"),
        Column("Deviation"), Column("Median"), Column("n"), Column("Undefined"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for entry in report.classes:
        for name, summary in entry.metrics.items():
            digits = metric_name(name).digits
            interval = Shown("–" if math.isnan(summary.ci_low) else _range(summary, digits), summary.ci_low)  # noqa: RUF001
            numbers = [
                Shown(format_number(value, digits), value) for value in (summary.mean, summary.std, summary.median)
            ]
            rows.append(
                [
                    metric_name(name).label,
                    entry.class_name,
                    numbers[0],
                    interval,
                    *numbers[1:],
                    summary.n,
                    summary.n_undefined,
                ]
            )
    return table(Table(columns, rows, "All metrics", searchable=True))


# --------------------------------------------------------------------------------------------------------- comparison


def _comparison(report: FolderSummary) -> Section | None:
    if not report.against:
        return None
    ranking: list[list[Cell]] = [
        [run.name, run.mean_rank, run.mean_dice, run.num_best, run.num_cases] for run in report.ranking
    ]
    columns = [
        Column("Run", "text"), Column("Mean rank", digits=2, hint="mean over cases of the rank by Dice"),
        Column("Dice"), Column("Best in", hint="cases where no run is better"), Column("Cases"),
    ]  # fmt: skip
    body = [
        table(Table(columns, ranking, "Ranking by Dice")),
        figure(
            charts.draw_differences(report.against, "dice", "Dice"),
            "Mean paired difference in Dice with its bootstrap interval; right of 0 the scored run is better.",
            wide=True,
        ),
        table(Table(_difference_columns(), _difference_rows(report), "Paired differences", searchable=True)),
        paragraph(
            "p: Wilcoxon signed-rank test over the cases (or groups) where both runs are defined; Holm: corrected for "
            "the number of classes and runs. Effect: matched-pairs rank-biserial correlation.",
            quiet=True,
        ),
    ]
    return Section("Comparison with other runs", body, f"The scored run is {report.prediction}.")


def _difference_columns() -> list[Column]:
    return [
        Column("Other run", "text"), Column("Class", "text"), Column("Metric", "text"),
        Column("Difference", hint="scored run minus the other"), Column("Interval"), Column("p"), Column("p, Holm"),
        Column("Effect", digits=2), Column("Better"), Column("Equal"), Column("Worse"), Column("n"),
    ]  # fmt: skip


def _difference_rows(report: FolderSummary) -> list[list[Cell]]:
    return [
        [
            run.name, row.class_name, metric_name(row.metric).label, row.mean_difference,
            Shown(f"{format_number(row.ci_low)} to {format_number(row.ci_high)}", row.ci_low),
            _p_value(row.p_wilcoxon), _p_value(row.p_holm), row.effect_size, row.wins, row.ties, row.losses, row.n,
        ]
        for run in report.against
        for row in run.classes
    ]  # fmt: skip


def _p_value(p: float) -> Cell:
    return Shown("< 0.001", p) if p < 0.001 else p


# ----------------------------------------------------------------------------------------------------------- pictures


def _write_viewers(
    folder: Path, report: FolderSummary, chosen: Sequence[Highlight], images: Mapping[str, tuple[Path, ...]]
) -> dict[str, tuple[str, int]]:
    """Case => (address of its viewer, relative to the report; bytes), of 3D cases."""
    viewers = {}
    for item in chosen:
        case_id = item.inputs.case_id
        target = folder / VIEWERS / f"{case_id}.html"
        written = write_viewer(target, item, report.settings["classes"], images.get(case_id, ()))
        if written is not None:
            viewers[case_id] = (f"{VIEWERS}/{case_id}.html", written.num_bytes)
    return viewers


def _cases_in_pictures(
    report: FolderSummary,
    chosen: Sequence[Highlight],
    images: Mapping[str, tuple[Path, ...]],
    viewers: Mapping[str, tuple[str, int]],
) -> Section | None:
    if not chosen:
        return None
    parts = [_case_part(report, item, images.get(item.inputs.case_id, ()), viewers) for item in chosen]
    intro = "Chosen by Dice, the mean over classes where there are several; the slice with the largest reference area."
    return Section("Best, median and worst cases", parts, intro)


def _case_part(
    report: FolderSummary, item: Highlight, images: Sequence[Path], viewers: Mapping[str, tuple[str, int]]
) -> Html:
    case_id = item.inputs.case_id
    body = [paragraph(_case_line(item), quiet=True)]
    if case_id in viewers:
        target, size = viewers[case_id]
        body.append(paragraph(Html(f"{link(target, 'Open all slices in the viewer')} ({size / 1e6:.1f} MB)")))
    body += draw_case(item, report.settings["classes"], images, report.spacing_known)
    return subsection(f"{item.kind}: {case_id}", body)


def _case_line(item: Highlight) -> str:
    parts = []
    for entry in item.result.classes:
        score, lesions = entry.overlap, entry.lesion_score
        prefix = f"{score.class_name}: " if len(item.result.classes) > 1 else ""
        if score.outcome == "both_empty":
            continue
        if score.outcome == "false_positive":
            parts.append(f"{prefix}reference empty, {score.predicted_ml:.3g} ml predicted")
            continue
        found = f"{lesions.num_detected} of {lesions.num_reference_lesions} lesions found"
        false = f", {lesions.num_false_positive} false" if lesions.num_false_positive else ""
        parts.append(f"{prefix}Dice {score.dice:.3f}, {score.reference_ml:.3g} ml, {found}{false}")
    return "; ".join(parts) + "."


# ---------------------------------------------------------------------------------------------------------- the parts


def _distributions(evaluation: Evaluation) -> Section:
    report = evaluation.report
    names = [name for name in _present(BOX_METRICS, report.mean, report) if report.mean[name].n]
    values = {name: _values_by_class(evaluation, name) for name in names}
    boxes = []
    for name in names:
        shown = metric_name(name)
        content = charts.draw_boxes(values[name], shown.label, shown.digits == 3, f"box plots of {shown.label}")
        boxes.append(figure(content, f"{shown.label} of each case."))
    text = (
        "Box: median and quartiles; whiskers: to 1.5 interquartile ranges; dots: cases; n: cases where it is defined."
    )
    return Section("Distribution over cases", [grid(boxes)], text + _drawn_note(report))


def _values_by_class(evaluation: Evaluation, name: str) -> dict[str, list[float]]:
    tolerances = evaluation.options.tolerances_mm
    rows = [[metric_row(result, tolerances) for result in case.classes[:DRAWN_CLASSES]] for case in evaluation.cases]
    return {
        entry.class_name: [row[index].get(name, math.nan) for row in rows]
        for index, entry in enumerate(evaluation.report.classes[:DRAWN_CLASSES])
    }


def _lesions(evaluation: Evaluation) -> Section:
    report = evaluation.report
    figures = []
    curves = _of_classes(report, lambda entry: entry.froc)
    if curves:
        text = "FROC over the confidence of predicted lesions, {}; in brackets the mean sensitivity at the seven rates."
        figures.append(figure(charts.draw_froc(curves), text.format(report.settings["lesion_confidence"])))
    for index, entry in enumerate(report.classes[:DRAWN_CLASSES]):
        if entry.pooled.num_reference_lesions:
            groups = _lesion_dice_by_size(evaluation, index, entry)
            content = charts.draw_boxes(groups, "Dice of a lesion", True, f"lesion Dice by size, {entry.class_name}")
            figures.append(
                figure(content, f"{entry.class_name}: Dice of each reference lesion by its volume; missed: 0.")
            )
    body = [_lesion_table(report), grid(figures), _strata_table(report)]
    return Section("Lesions", body, f"Rule: {report.settings['lesion_matching_in_words']}.{_drawn_note(report)}")


def _lesion_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"), Column("Reference"), Column("Predicted"), Column("Detected"), Column("False positive"),
        Column("Sensitivity"), Column("Precision"), Column("F1"), Column("Lesion Dice", hint="missed lesions as 0"),
        Column("False positives a case", digits=2),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            entry.class_name, entry.pooled.num_reference_lesions, entry.pooled.num_predicted_lesions,
            entry.pooled.num_detected, entry.pooled.num_false_positive, entry.pooled.lesion_sensitivity,
            entry.pooled.lesion_precision, entry.pooled.lesion_f1, entry.pooled.mean_lesion_dice,
            entry.pooled.false_positives_per_case,
        ]
        for entry in report.classes
    ]  # fmt: skip
    return table(Table(columns, rows, "Lesions of all cases together", sortable=len(rows) > 1))


def _strata_table(report: FolderSummary) -> Html:
    columns = [
        Column("Volume", "text"), Column("Class", "text"), Column("Reference"), Column("Detected"),
        Column("False positive"), Column("Sensitivity"), Column("Lesion Dice"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [
            stratum.name, entry.class_name, stratum.num_reference, stratum.num_detected, stratum.num_false_positive,
            stratum.sensitivity, stratum.mean_dice,
        ]
        for entry in report.classes
        for stratum in entry.strata
    ]  # fmt: skip
    return table(Table(columns, rows, "Lesions by size"))


def _lesion_dice_by_size(evaluation: Evaluation, index: int, entry: ClassReport) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {stratum.name: [] for stratum in entry.strata}
    for case in evaluation.cases:
        for lesion in case.classes[index].lesions:
            if lesion.side == "reference":
                name = next(s.name for s in entry.strata if s.low_ml <= lesion.volume_ml < s.high_ml)
                groups[name].append(lesion.dice)
    return groups


def _volumes(evaluation: Evaluation) -> Section:
    report = evaluation.report
    unit = "ml" if report.spacing_known else "ml (nominal)"
    figures = []
    for index, entry in enumerate(report.classes[:DRAWN_CLASSES]):
        overlaps = [case.classes[index].overlap for case in evaluation.cases]
        volumes = [(o.reference_ml, o.predicted_ml) for o in overlaps if o.reference_ml or o.predicted_ml]
        reference, predicted = [a for a, _ in volumes], [b for _, b in volumes]
        bias, low, high = charts.limits_of_agreement(reference, predicted)
        content = charts.draw_bland_altman(reference, predicted, unit, series_color(index))
        caption = (
            f"{entry.class_name}, {len(volumes)} cases: mean difference {bias:+.3g} {unit}, limits of agreement "
            f"{low:+.3g} to {high:+.3g}. Cases where both masks are empty are left out."
        )
        figures.append(figure(content, caption))
    for index, entry in enumerate(report.classes[:DRAWN_CLASSES]):
        if entry.rank_histogram:
            content = charts.draw_rank_histogram(entry.rank_histogram, series_color(index))
            caption = "rank of the reference volume among the samples; flat where they spread as they should."
            figures.append(figure(content, f"{entry.class_name}: {caption} Grey: 95 % of chance."))
    body = [grid(figures)]
    if any(entry.volume_coverage for entry in report.classes):
        body.append(_coverage_table(report))
    return Section("Volumes", body, "Bland-Altman plots: predicted minus reference over the mean of both.")


def _coverage_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"), Column("Interval", digits=2, hint="central share of the sampled volumes"),
        Column("Holds the reference", hint="share of cases"),
        Column("Perfect samples", hint="share that perfect samples of this number reach"), Column("n"),
        Column("Undefined"),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [entry.class_name, row.level, row.share, row.expected, row.n, row.n_undefined]
        for entry in report.classes
        for row in entry.volume_coverage or ()
    ]
    return table(Table(columns, rows, "Volume intervals from the samples"))


def _probabilities(report: FolderSummary) -> Section | None:
    reliability = _of_classes(report, lambda entry: entry.reliability)
    failure = _of_classes(report, lambda entry: entry.failure_detection)
    failure = {name: curve for name, curve in failure.items() if curve.n > 1}
    figures = []
    if reliability:
        region = report.settings["probability_region"]
        text = f"Reliability over the voxels of all cases ({region}); on the diagonal probabilities are right."
        figures.append(figure(charts.draw_reliability(reliability), text))
    if failure:
        score = next(iter(failure.values())).score
        text = f"Risk of the cases that remain where the least confident are set aside. Confidence: {score}."
        figures.append(figure(charts.draw_risk_coverage(failure), text))
    if not figures:
        return None
    body = [grid(figures)]
    if reliability or failure:
        body.append(_probability_table(report))
    return Section("Probabilities and confidence", body, _drawn_note(report).strip())


def _probability_table(report: FolderSummary) -> Html:
    columns = [
        Column("Class", "text"), Column("ECE"), Column("Adaptive ECE"), Column("NLL", digits=4),
        Column("Brier", digits=4), Column("AURC", hint="area under the risk-coverage curve"),
        Column("Excess AURC", hint="above that of a perfect order of the cases"),
        Column("Spearman", digits=2, hint="of confidence and Dice"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for entry in report.classes:
        curve, failure = entry.reliability, entry.failure_detection
        means = [entry.metrics[name].mean if name in entry.metrics else None for name in ("nll", "brier")]
        errors = [curve.ece, curve.adaptive_ece] if curve else [None, None]
        areas = [failure.aurc, failure.eaurc, failure.spearman] if failure else [None, None, None]
        rows.append([entry.class_name, *errors, *means, *areas])
    return table(Table(columns, rows, "Calibration and failure detection", sortable=len(rows) > 1))


def _all_cases(evaluation: Evaluation, viewers: Mapping[str, str]) -> Section:
    report, tolerances = evaluation.report, evaluation.options.tolerances_mm
    names = _present(CASE_METRICS, report.mean, report)
    several = len(report.classes) > 1
    has_groups = report.settings["groups"] is not None
    columns = [Column("Case", "text")]
    columns += [Column("Group", "text")] * has_groups + [Column("Class", "text")] * several
    columns += [Column("Outcome", "text"), *(_column(name) for name in names)]
    rows: list[list[Cell]] = []
    for case in evaluation.cases:
        name: Cell = link(viewers[case.case_id], case.case_id) if case.case_id in viewers else case.case_id
        for result in case.classes:
            row = metric_row(result, tolerances)
            start: list[Cell] = [name, *[case.group] * has_groups, *[result.overlap.class_name] * several]
            rows.append([*start, OUTCOMES[result.overlap.outcome], *(_case_cell(row.get(n)) for n in names)])
    intro = "Click on a heading to sort by it; search by case, class or outcome. Linked cases open in the viewer."
    content = Table(columns, rows, "Cases", searchable=True)
    return Section("All cases", [table(content)], intro if viewers else intro.rpartition(" Linked")[0])


def _case_cell(value: Any) -> Cell:
    return value if isinstance(value, (int, float)) else None


def _settings(report: FolderSummary) -> Section:
    shown = {name.replace("_", " "): _setting(value) for name, value in report.settings.items()}
    return Section("Settings", [facts(shown)], "Every choice that the numbers depend on.")


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if hasattr(value, "describe"):
        return str(value.describe())
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_setting(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------ helpers


def _present(names: Iterable[str], metrics: Mapping[str, MetricSummary], report: FolderSummary) -> list[str]:
    """Those metrics that the evaluation has; "surface_dice" stands for the first tolerance."""
    tolerances = report.settings["surface_dice_tolerances_mm"]
    surface_dice = f"surface_dice_{tolerances[0]:g}mm" if tolerances else ""
    full = [surface_dice if name == "surface_dice" else name for name in names]
    return [name for name in full if name in metrics and metrics[name].n]


def _column(name: str) -> Column:
    shown = metric_name(name)
    return Column(shown.label, "number", shown.digits, shown.hint)


def _of_classes(report: FolderSummary, get: Callable[[ClassReport], T | None]) -> dict[str, T]:
    """Class => what `get` finds in its report, for the drawn classes that have it."""
    found = {entry.class_name: get(entry) for entry in report.classes[:DRAWN_CLASSES]}
    return {name: value for name, value in found.items() if value is not None}


def _drawn_note(report: FolderSummary) -> str:
    if len(report.classes) <= DRAWN_CLASSES:
        return ""
    return f" Figures show the first {DRAWN_CLASSES} of {len(report.classes)} classes."
