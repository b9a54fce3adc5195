"""The report of an evaluation: scores with intervals, distributions, lesions, volumes, calibration, pictures of cases.

Everything in it is in summary.json, metrics.csv and lesion_scores.csv beside it, but for the pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.evaluation.aggregate import ClassReport, MetricSummary, case_values
from unisegdiff_pipeline.evaluation.by_source import cases_by_source
from unisegdiff_pipeline.evaluation.case import of_class
from unisegdiff_pipeline.evaluation.evaluate import Evaluation, FolderSummary
from unisegdiff_pipeline.evaluation.inputs import Inputs
from unisegdiff_pipeline.evaluation.tables import metric_row
from unisegdiff_pipeline.reports import evaluation_figures as charts
from unisegdiff_pipeline.reports.calibration_words import calibration_in_words
from unisegdiff_pipeline.reports.case_gallery import Highlight, draw_case, find_images, highlights, write_viewer
from unisegdiff_pipeline.reports.case_probability import case_probability_section
from unisegdiff_pipeline.reports.evaluation_tables import (
    coverage_table,
    difference_table,
    holds_lesions,
    interval_text,
    lesion_table,
    main_table,
    metric_column,
    metric_table,
    outcome_table,
    present,
    probability_table,
    ranking_table,
    source_table,
    strata_table,
)
from unisegdiff_pipeline.reports.figures import DRAWN_CLASSES, NARROW_GROUPS, drawn_note, series_color
from unisegdiff_pipeline.reports.metric_names import MetricName, metric_name
from unisegdiff_pipeline.reports.page import (
    Cell,
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
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
from unisegdiff_pipeline.reports.profile_section import profile_section

T = TypeVar("T")
REPORT_NAME, VIEWERS = "report.html", "viewers"
MOST_ROWS = 5000  # of the table of cases, about; a browser sorts and searches so many
# Opening numbers and columns of the table of cases; those that an evaluation lacks are left out.
KEY_METRICS = ("dice", "surface_dice", "hd95_mm", "lesion_f1", "ged_u", "energy_score_u", "adaptive_ece")
BOX_METRICS = ("dice", "surface_dice", "hd95_mm", "lesion_f1")
CASE_METRICS = (
    "dice",
    "iou",
    "sensitivity",
    "precision",
    "reference_ml",
    "predicted_ml",
    "volume_error_ml",
    "surface_dice",
    "hd95_mm",
    "assd_mm",
    "num_reference_lesions",
    "num_detected",
    "num_false_positive",
    "lesion_f1",
    "mean_lesion_dice",
    "nll",
    "adaptive_ece",
    "energy_score_u",
    "ged_u",
    "hm_iou",
    "case_confidence",
)
OUTCOMES = {"scored": "scored", "both_empty": "both empty", "false_positive": "false positive"}


def write_evaluation_report(folder: Path, evaluation: Evaluation) -> Path:
    """Write report.html, and a viewer in viewers/ for each of the 3D cases that it shows; returns the report's path.

    Images are looked for beside the references (imagesTr for labelsTr); without them the pictures hold masks alone.

    Raises:
        UsdError: a file cannot be read or written.
    """
    chosen = highlights(evaluation.inputs, evaluation.cases)
    images = _images(evaluation.inputs, chosen)
    viewers = _write_viewers(folder, evaluation.report, chosen, images)
    sections = [
        _summary(evaluation),
        _sources(evaluation),
        _comparison(evaluation.report),
        _cases_in_pictures(evaluation.report, chosen, images, viewers),
        _distributions(evaluation),
        _lesions(evaluation),
        _volumes(evaluation),
        _probabilities(evaluation.report),
        case_probability_section(evaluation.report.case_probability),
        profile_section(evaluation.profiles, evaluation.report.units),
        _all_cases(evaluation, {case: target for case, (target, _) in viewers.items()}),
        _settings(evaluation.report),
    ]
    page = Page(
        title=f"Evaluation of {Path(evaluation.report.prediction).resolve().name}",
        subtitle=f"Predictions in {evaluation.report.prediction}, references in {evaluation.report.reference}",
        lead=_lead(evaluation),
        sections=[section for section in sections if section is not None],
        footer=f"Written by unisegdiff_pipeline {__version__}. "
        "All numbers: metrics.csv, lesion_scores.csv and summary.json beside this file.",
    )
    return write_page(folder / REPORT_NAME, page)


# ------------------------------------------------------------------------------------------------------------ opening


def _lead(evaluation: Evaluation) -> list[Html]:
    report = evaluation.report
    several = len(report.classes) > 1
    names = present(KEY_METRICS, report)
    figures = [_key_figure(metric_name(name, report.units), report.mean[name], several) for name in names[:6]]
    parts = [key_figures(figures)]
    if report.units.nominal:
        text = "Volumes and distances are nominal: the voxel size of some images is not known."
        parts.append(notice(text, "warning"))
    elif report.units.length == "pixels":
        parts.append(notice("Areas and distances are in pixels: the pixel size of this data set is not known."))
    if report.not_predicted:
        number = len(report.not_predicted)
        text = f"{counted(number, 'reference case')} {'has' if number == 1 else 'have'} no prediction, left out here."
        parts.append(notice(text))
    if false := sum(entry.outcomes.false_positive for entry in report.classes):
        what = "prediction stands" if false == 1 else "predictions stand"
        text = f"{false} {what} on an empty reference. Overlap is undefined there and in no mean; see Cases by outcome."
        parts.append(notice(text))
    return parts


def _key_figure(shown: MetricName, summary: MetricSummary, several_classes: bool) -> KeyFigure:
    of_classes = "mean of classes, " if several_classes else ""
    interval = interval_text(summary, shown.digits)
    detail = f"{interval}{', ' if interval else ''}{of_classes}n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{summary.n}"
    return KeyFigure(shown.label, format_number(summary.mean, shown.digits), detail)


def _summary(evaluation: Evaluation) -> Section:
    report = evaluation.report
    level = f"{100 * report.settings['intervals']['level']:g} %"
    groups = report.settings["num_groups"]
    unit = "cases" if groups == report.settings["num_cases"] else f"groups ({groups} of them)"
    intro = (
        f"{counted(report.settings['num_cases'], 'case')}. Means over those where a metric is defined, with {level} "
        f"bootstrap intervals over {unit}."
    )
    body = [main_table(report), outcome_table(report), details("All metrics", [metric_table(report)])]
    return Section("Summary", body, intro)


def _sources(evaluation: Evaluation) -> Section | None:
    """Scores by source of a unified data set."""
    report = evaluation.report
    if report.by_source is None:
        return None
    dice = case_values(evaluation.cases, "dice", evaluation.options)
    groups = {source: [dice[case.case_id] for case in own] for source, own in cases_by_source(evaluation.cases).items()}
    several = ", the mean over the classes of a case" if len(report.classes) > 1 else ""
    body = [
        source_table(report),
        figure(
            charts.draw_boxes(groups, "Dice", True, "box plots of Dice by source"),
            f"Dice by source{several}; dots: cases.",
            wide=len(groups) > NARROW_GROUPS,
        ),
    ]
    intro = (
        "Over the classes that a source annotates. In the mean of sources a small source counts as much as a large "
        "one; its interval redraws the cases of each source."
    )
    return Section("Sources", body, intro)


# --------------------------------------------------------------------------------------------------------- comparison


def _comparison(report: FolderSummary) -> Section | None:
    if not report.against:
        return None
    differences = []
    if any(row.metric == "dice" for run in report.against for row in run.classes):  # else every reference is empty
        differences = [
            figure(
                charts.draw_differences(report.against),
                "Mean paired difference in Dice with its bootstrap interval; right of 0 the scored run is better.",
                wide=True,
            )
        ]
    body = [
        ranking_table(report),
        *differences,
        difference_table(report),
        paragraph(
            "p: Wilcoxon signed-rank test over the cases (or groups) where both runs are defined; Holm: corrected for "
            "the number of classes and runs. Effect: matched-pairs rank-biserial correlation.",
            quiet=True,
        ),
    ]
    return Section("Comparison with other runs", body, f"The scored run is {report.prediction}.")


# ----------------------------------------------------------------------------------------------------------- pictures


def _images(inputs: Inputs, chosen: Sequence[Highlight]) -> dict[str, tuple[Path, ...]]:
    """Image files of the chosen cases; those of a unified data set are known."""
    if inputs.folders.unified:
        return {item.inputs.case_id: item.inputs.images for item in chosen}
    return find_images(inputs.folders.reference, [item.inputs.case_id for item in chosen])


def _write_viewers(
    folder: Path, report: FolderSummary, chosen: Sequence[Highlight], images: Mapping[str, tuple[Path, ...]]
) -> dict[str, tuple[str, int]]:
    """Case => (address of its viewer, relative to the report; bytes), of 3D cases."""
    viewers = {}
    settings = report.settings
    for item in chosen:
        case_id = item.inputs.case_id
        target = folder / VIEWERS / f"{case_id}.html"
        known = item.inputs.knows_spacing(report.spacing_known)
        paths, ignored = images.get(case_id, ()), settings["ignore_value"]
        written = write_viewer(target, item, settings["classes"], paths, ignored, known)
        if written is not None:
            viewers[case_id] = (f"{VIEWERS}/{quote(case_id)}.html", written.num_bytes)
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
    body = [paragraph(_case_line(item, report.units, holds_lesions(report)), quiet=True)]
    if case_id in viewers:
        target, size = viewers[case_id]
        body.append(paragraph(Html(f"{link(target, 'Open all slices in the viewer')} ({size / 1e6:.1f} MB)")))
    body += draw_case(item, report.settings["classes"], images, item.inputs.knows_spacing(report.spacing_known))
    return subsection(f"{item.kind}: {case_id}", body)


def _case_line(item: Highlight, units: Units, counted: bool) -> str:
    parts = []
    for entry in item.result.classes:
        score, lesions = entry.overlap, entry.lesion_score
        prefix = f"{score.class_name}: " if len(item.result.classes) > 1 else ""
        if score.outcome == "both_empty":
            continue
        if score.outcome == "false_positive":
            parts.append(f"{prefix}reference empty, {units.size_shown(score.predicted_ml)} predicted")
            continue
        found = ""
        if counted:
            found = f", {lesions.num_detected} of {lesions.num_reference_lesions} lesions found"
            found += f", {lesions.num_false_positive} false" if lesions.num_false_positive else ""
        parts.append(f"{prefix}Dice {score.dice:.3f}, {units.size_shown(score.reference_ml)}{found}")
    return "; ".join(parts) + "."


# ---------------------------------------------------------------------------------------------------------- the parts


def _distributions(evaluation: Evaluation) -> Section:
    report = evaluation.report
    names = [name for name in present(BOX_METRICS, report) if report.mean[name].n]
    values = {name: _values_by_class(evaluation, name) for name in names}
    boxes, wide = [], min(len(report.classes), DRAWN_CLASSES) > NARROW_GROUPS
    for name in names:
        shown = metric_name(name, report.units)
        content = charts.draw_boxes(values[name], shown.label, shown.digits == 3, f"box plots of {shown.label}")
        boxes.append(figure(content, f"{shown.label}: {shown.hint}.", wide))
    text = (
        "Box: median and quartiles; whiskers: to 1.5 interquartile ranges; dots: cases; n: cases where it is defined."
    )
    return Section("Distribution over cases", boxes if wide else [grid(boxes)], text + drawn_note(len(report.classes)))


def _values_by_class(evaluation: Evaluation, name: str) -> dict[str, list[float]]:
    tolerances = evaluation.options.tolerances_mm
    return {
        entry.class_name: [
            metric_row(result, tolerances).get(name, math.nan)
            for result in of_class(evaluation.cases, entry.class_name)
        ]
        for entry in evaluation.report.classes[:DRAWN_CLASSES]
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
            groups = _lesion_dice_by_size(evaluation, entry)
            alt, colors = f"lesion Dice by size, {entry.class_name}", [series_color(index)] * len(groups)
            content = charts.draw_boxes(groups, "Dice of a lesion", True, alt, colors)
            word = report.units.size_word
            text = f"{entry.class_name}: Dice of each reference lesion by its {word}, missed ones as 0."
            figures.append(figure(content, text))
    body = [lesion_table(report), grid(figures), strata_table(report)]
    intro = f"Rule: {report.settings['lesion_matching_in_words']}.{drawn_note(len(report.classes))}"
    if holds_lesions(report):
        return Section("Lesions", body, intro)
    note = (
        "Every reference holds each class in about one piece, as organs do, so there is little to count; metrics of "
        "lesions are left out of the tables above and below."
    )
    counted = [paragraph(intro, quiet=True), *body]
    return Section("Connected components", [details("Counted as lesions all the same", counted)], note)


def _lesion_dice_by_size(evaluation: Evaluation, entry: ClassReport) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {stratum.name: [] for stratum in entry.strata}
    units = evaluation.report.units
    for result in of_class(evaluation.cases, entry.class_name):
        for lesion in result.lesions:
            if lesion.side == "reference":
                name = next(s.name for s in entry.strata if s.low_ml <= lesion.size(units) < s.high_ml)
                groups[name].append(lesion.dice)
    return groups


def _agreement(reference: Sequence[float], predicted: Sequence[float], unit: str) -> str:
    """What a Bland-Altman plot shows, in words after the number of cases; limits take two cases at least."""
    bias, low, high = charts.limits_of_agreement(reference, predicted)
    if not reference:
        return ""
    limits = f", limits of agreement {charts.signed(low)} to {charts.signed(high)}" if len(reference) > 1 else ""
    return f": mean difference {charts.signed(bias)} {unit}{limits}"


def _volumes(evaluation: Evaluation) -> Section:
    report = evaluation.report
    unit, word = report.units.size_text, report.units.size_word
    unit += " (nominal)" if report.units.nominal else ""
    figures = []
    for index, entry in enumerate(report.classes[:DRAWN_CLASSES]):
        overlaps = [result.overlap for result in of_class(evaluation.cases, entry.class_name)]
        volumes = [(o.reference_ml, o.predicted_ml) for o in overlaps if o.reference_ml or o.predicted_ml]
        reference, predicted = [a for a, _ in volumes], [b for _, b in volumes]
        content = charts.draw_bland_altman(reference, predicted, unit, series_color(index), word)
        caption = f"{entry.class_name}, {counted(len(volumes), 'case')}{_agreement(reference, predicted, unit)}."
        figures.append(figure(content, caption))
    for index, entry in enumerate(report.classes[:DRAWN_CLASSES]):
        if entry.rank_histogram:
            content = charts.draw_rank_histogram(entry.rank_histogram, series_color(index))
            caption = f"rank of the reference {word} among the samples; flat where they spread as they should."
            figures.append(figure(content, f"{entry.class_name}: {caption} Grey: 95 % of chance."))
    body = [*map(notice, _coverage_in_words(report)), grid(figures)]
    if any(entry.volume_coverage for entry in report.classes):
        body.append(coverage_table(report))
    intro = (
        "Bland-Altman plots: predicted minus reference over the mean of both, with the mean difference and the limits "
        "that hold 95 % of normal differences. Cases where both masks are empty are left out."
    )
    return Section(f"{word.capitalize()}s", body, intro)


def _coverage_in_words(report: FolderSummary) -> list[str]:
    """How often the widest interval of the sampled sizes holds the reference, a sentence a class."""
    sentences = []
    for entry in report.classes:
        rows = [row for row in entry.volume_coverage or () if row.n]
        if rows:
            widest = max(rows, key=lambda row: row.level)
            prefix = f"{entry.class_name}: the" if len(report.classes) > 1 else "The"
            sentences.append(
                f"{prefix} {widest.level:.0%} interval of the samples holds the reference {report.units.size_word} in "
                f"{round(widest.fraction * widest.n)} of {widest.n} cases; of perfect samples of this number it would "
                f"in {widest.expected:.0%}."
            )
    return sentences


def _probabilities(report: FolderSummary) -> Section | None:
    reliability = _of_classes(report, lambda entry: entry.reliability)
    failure = _of_classes(report, lambda entry: entry.failure_detection)
    failure = failure if any(curve.n > 1 for curve in failure.values()) else {}
    figures, said = [], [notice(text) for text in calibration_in_words(reliability, report.units)]
    if reliability:
        region = report.settings["probability_region"]
        element = report.units.element
        text = f"Reliability over the {element}s of all cases ({region}); on the diagonal probabilities are right."
        figures.append(figure(charts.draw_reliability(reliability, element=element), text))
    if failure:
        score = next(iter(failure.values())).score
        text = f"Risk of the cases that remain where the least confident are set aside. Confidence: {score}."
        figures.append(figure(charts.draw_risk_coverage(failure), text))
    if not figures:
        return None
    body = [*said, grid(figures)]
    if reliability or failure:
        body.append(probability_table(report))
    return Section("Probabilities and confidence", body, drawn_note(len(report.classes)).strip())


def _all_cases(evaluation: Evaluation, viewers: Mapping[str, str]) -> Section:
    report, tolerances = evaluation.report, evaluation.options.tolerances_mm
    names = present(CASE_METRICS, report)
    several = len(report.classes) > 1
    has_groups = report.settings["groups"] is not None
    has_sources = report.by_source is not None
    columns = [Column("Case", "text"), *[Column("Source", "text")] * has_sources]
    columns += [Column("Group", "text")] * has_groups + [Column("Class", "text")] * several
    columns += [Column("Outcome", "text"), *(metric_column(name, report) for name in names)]
    rows: list[list[Cell]] = []
    shown = evaluation.cases[: max(1, MOST_ROWS // max(1, len(report.classes)))]
    for case in shown:
        name: Cell = link(viewers[case.case_id], case.case_id) if case.case_id in viewers else case.case_id
        for result in case.classes:
            row = metric_row(result, tolerances)
            start: list[Cell] = [name, *[case.source] * has_sources, *[case.group] * has_groups]
            start += [result.overlap.class_name] * several
            rows.append([*start, OUTCOMES[result.overlap.outcome], *(_case_cell(row.get(n)) for n in names)])
    intro = "Click on a heading to sort by it; search by case, class or outcome. Linked cases open in the viewer."
    intro = intro if viewers else intro.rpartition(" Linked")[0]
    if len(shown) < len(evaluation.cases):
        intro = f"The first {len(shown)} of {len(evaluation.cases)} cases; metrics.csv holds all. {intro}"
    return Section("All cases", [table(Table(columns, rows, "Cases", searchable=True))], intro)


def _case_cell(value: Any) -> Cell:
    return value if isinstance(value, (int, float)) else None


def _settings(report: FolderSummary) -> Section:
    settings = report.units.named(dict(report.settings), report.names)
    edges = report.units.name("lesion_strata_edges_ml")
    if settings[edges] is None:
        settings[edges] = "thirds of the reference lesions of each class"
    shown = {_spoken(name): _setting(value) for name, value in settings.items() if f"{name}_in_words" not in settings}
    return Section("Settings", [facts(shown)], "Every choice that the numbers depend on.")


def _spoken(name: str) -> str:
    text = name.replace("_", " ").replace("num ", "number of ").removesuffix(" in words")
    return re.sub(r" (mm|ml|mm2|pixels|pixels2)$", lambda unit: f", {unit[1].replace('2', chr(0xB2))}", text)


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_setting(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------------ helpers


def _of_classes(report: FolderSummary, get: Callable[[ClassReport], T | None]) -> dict[str, T]:
    """Class => what `get` finds in its report, for the drawn classes that have it."""
    found = {entry.class_name: get(entry) for entry in report.classes[:DRAWN_CLASSES]}
    return {name: value for name, value in found.items() if value is not None}
