"""The probability that a case holds any lesion, as a section of the evaluation report."""

from __future__ import annotations

import math

from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.evaluation.case_probability import CaseProbabilityReport
from unisegdiff_pipeline.reports.page import Section, Table, facts, format_number, numbers, table


def case_probability_section(report: CaseProbabilityReport | None) -> Section | None:
    """AUROC, Brier score and calibration of the probability; None where it was not scored."""
    if report is None:
        return None
    shown = {
        "cases": f"{report.num_with} with a lesion, {report.num_without} without",
        "AUROC": "-" if math.isnan(report.auroc) else format_number(report.auroc),
        "Brier score": f"{format_number(report.brier)}; {format_number(report.brier_of_prevalence)} for a constant",
    }
    if report.num_unknown:
        shown["not in the table"] = counted(report.num_unknown, "case")
    rows = [[b.mean_probability, b.fraction_with_lesion, b.num_cases] for b in report.bins]
    columns = numbers("mean probability", "fraction with a lesion", "cases")
    intro = "How well the probability of any lesion (cases.csv) tells cases apart. Calibrated where the columns agree."
    return Section("Does a case hold any lesion", [facts(shown), table(Table(columns, rows))], intro)
