"""The section on the probability of any lesion."""

from __future__ import annotations

from unisegdiff_pipeline.evaluation.case_probability import CaseProbabilityReport, ProbabilityBin
from unisegdiff_pipeline.reports.case_probability import case_probability_section


def test_it_shows_scores_and_bins() -> None:
    bins = (ProbabilityBin(0.25, 0.125, 8), ProbabilityBin(0.75, 0.875, 9))
    section = case_probability_section(CaseProbabilityReport("cases.csv", 9, 8, 2, 0.875, 0.125, 0.249, bins))
    assert section is not None
    shown = "".join(section.body)
    for text in ("9 with a lesion, 8 without", "0.875", "0.249 for a constant", "2 cases", "0.750"):
        assert text in shown


def test_without_scores_there_is_none() -> None:
    assert case_probability_section(None) is None
