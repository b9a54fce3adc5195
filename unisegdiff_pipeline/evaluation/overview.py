"""An evaluation as text tables for the terminal: the metrics that most readers want, and what they count."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unisegdiff_pipeline.evaluation.aggregate import ClassReport, MetricSummary
from unisegdiff_pipeline.evaluation.evaluate import FolderSummary
from unisegdiff_pipeline.evaluation.summary import format_table, format_value, mean_of_defined

# Metric => heading and form; those that an evaluation lacks are left out.
SHOWN = {
    "median": ("median", ".3f"),
    "hd95_mm": ("HD95 {length}", ".3g"),
    "surface_dice": ("surface Dice", ".3f"),
    "lesion_f1": ("lesion F1", ".3f"),
    "num_false_positive": ("FP lesions", ".2f"),
    "nll": ("NLL", ".3g"),
    "adaptive_ece": ("ECE", ".3f"),
    "energy_score_u": ("energy", ".3f"),
    "ged_u": ("GED", ".3f"),
    "hm_iou": ("HM-IoU", ".3f"),
}


def evaluation_table(report: FolderSummary) -> str:
    """One row a class, a mean below several of them, and a line on what the columns count."""
    names = _defined(report.mean, report)
    shown = [name for name in SHOWN if name in ("median", *names)]
    headings = (SHOWN[name][0].format(length=report.units.length) for name in shown)
    rows = [("class", "Dice", _interval_heading(report), *headings, "n", "empty", "false")]
    for entry in report.classes:
        counts = (entry.outcomes.scored, entry.outcomes.both_empty, entry.outcomes.false_positive)
        rows.append((entry.class_name, *_cells(entry.metrics, shown, report), *map(str, counts)))
    if len(report.classes) > 1:
        rows.append(("mean", *_cells(report.mean, shown, report), "", "", ""))
    return f"{format_table(rows)}\n{_note(report)}"


def source_table(report: FolderSummary) -> str:
    """One row a source of a unified data set, over the classes that it annotates, and the mean over sources below."""
    if report.by_source is None:
        return ""
    macro = report.by_source.macro_mean
    names = _defined(macro, report)
    shown = [name for name in SHOWN if name != "median" and name in names]
    headings = (SHOWN[name][0].format(length=report.units.length) for name in shown)
    rows = [("source", "Dice", _interval_heading(report), *headings, "cases", "empty", "false")]
    for entry in report.by_source.sources:
        empty, false = (
            sum(getattr(c.outcomes, name) for c in entry.classes) for name in ("both_empty", "false_positive")
        )
        counts = (str(entry.num_cases), str(empty), str(false))
        rows.append((entry.source, *_cells(entry.mean, shown, report), *counts))
    rows.append(("mean of sources", *_cells(macro, shown, report), "", "", ""))
    return format_table(rows)


def comparison_table(report: FolderSummary) -> str:
    """The ranking of all runs, and below it the paired differences in Dice of each class, also by source."""
    ranking = [("run", "mean rank", "Dice of cases", "best in")]
    for run in report.ranking:
        ranking.append((run.name, format_value(run.mean_rank, ".2f"), format_value(run.mean_dice), str(run.num_best)))
    rows: list[tuple[str, ...]] = [
        ("scored minus", "class", "Dice", "interval", "p", "p (Holm)", "effect", "better", "equal", "worse")
    ]
    for other in report.against:
        parts = [("", other.classes), *((f"{part.source}: ", part.classes) for part in other.sources)]
        for prefix, row in ((prefix, row) for prefix, classes in parts for row in classes):
            if row.metric == "dice":
                interval = f"{format_value(row.ci_low, '+.3f')} to {format_value(row.ci_high, '+.3f')}"
                chances = (format_value(row.p_wilcoxon, ".2g"), format_value(row.p_holm, ".2g"))
                numbers = (
                    format_value(row.mean_difference, "+.3f"),
                    interval,
                    *chances,
                    format_value(row.effect_size, "+.2f"),
                )
                counts = map(str, (row.wins, row.ties, row.losses))
                rows.append((other.name, f"{prefix}{row.class_name}", *numbers, *counts))
    return f"{format_table(ranking)}\n\n{format_table(rows)}"


def _defined(metrics: Mapping[str, MetricSummary], report: FolderSummary) -> list[str]:
    """Names of the metrics that some case has, "surface_dice" for the one at the first tolerance."""
    return ["surface_dice" if name == report.surface_dice else name for name, metric in metrics.items() if metric.n]


def _cells(metrics: Mapping[str, MetricSummary], shown: list[str], report: FolderSummary) -> list[str]:
    dice = metrics["dice"]
    cells = [format_value(dice.mean), f"{format_value(dice.ci_low)} to {format_value(dice.ci_high)}"]
    for name in shown:
        form = SHOWN[name][1]
        if name == "median":
            cells.append(format_value(dice.median, form))
        else:
            metric = metrics.get(report.surface_dice if name == "surface_dice" else name)
            cells.append("-" if metric is None else format_value(metric.mean, form))
    return cells


def _interval_heading(report: FolderSummary) -> str:
    return f"{100 * report.settings['intervals']['level']:g} % interval"


def _note(report: FolderSummary) -> str:
    note = (
        "n: cases whose reference holds the class, over which overlap and distances are means; empty: both masks are."
    )
    false_positives = sum(entry.outcomes.false_positive for entry in report.classes)
    if false_positives:
        note += f"\nfalse: predictions on an empty reference, {false_positives} here, in no mean; {_by_nnunet(report)}."
    if tolerances := report.settings["surface_dice_tolerances_mm"]:
        rule = _first_upper(report.settings["lesion_matching_in_words"])
        note += f"\nSurface Dice at {report.units.length_text(tolerances[0])}. {rule}."
    if (cases := report.case_probability) is not None:
        note += (
            f"\nProbability of any lesion: AUROC {format_value(cases.auroc)}, Brier score {format_value(cases.brier)} "
            f"({format_value(cases.brier_of_prevalence)} for a constant), {cases.num_with} cases with and "
            f"{cases.num_without} without lesion."
        )
    if report.units.nominal:
        note += "\nVolumes and distances are nominal: the voxel size of some images is not known."
    return note


def _by_nnunet(report: FolderSummary) -> str:
    """Mean Dice by the rule of nnU-Net, where a false positive on an empty reference is a Dice of 0."""
    mean = mean_of_defined(_mean_by_nnunet(entry) for entry in report.classes)
    return f"counted as 0, as nnU-Net does, the mean Dice is {format_value(mean)}"


def _mean_by_nnunet(entry: ClassReport) -> float:
    scored, false_positive = entry.outcomes.scored, entry.outcomes.false_positive
    if not scored:
        return 0.0 if false_positive else math.nan
    return entry.metrics["dice"].mean * scored / (scored + false_positive)


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
