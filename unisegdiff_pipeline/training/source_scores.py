"""Scores of a unified data set by source, and without the classes that a source does not annotate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.metrics import ClassScore
from unisegdiff_pipeline.evaluation.summary import CaseScores, format_value, mean_of_defined, summarise
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.planning.plans import SourcesPlan


@dataclass(frozen=True)
class SourceScores:
    """Means over the cases of one source, as in `Summary`."""

    source: str
    num_cases: int
    mean_dice: float
    mean_iou: float


@dataclass(frozen=True)
class ScoresBySource:
    """All sources, and the mean over them, in which a small source counts as much as a large one."""

    macro_mean_dice: float
    macro_mean_iou: float
    sources: tuple[SourceScores, ...]

    def describe(self) -> str:
        """In words, for logs."""
        each = "  ".join(f"{s.source} {format_value(s.mean_dice)} ({s.num_cases})" for s in self.sources)
        return f"Dice by source (cases): {each}  mean over sources {format_value(self.macro_mean_dice)}"


def by_source(sources: SourcesPlan | None, cases: Sequence[CaseScores]) -> ScoresBySource | None:
    """Scores of cases by their sources; None for an ordinary data set or without cases."""
    if sources is None or not cases:
        return None
    found = []
    for name in sources.plans:
        if own := [case for case in cases if source_of_case(case.case_id) == name]:
            summary = summarise(own)
            found.append(SourceScores(name, len(own), summary.mean_dice, summary.mean_iou))
    return ScoresBySource(
        mean_of_defined(s.mean_dice for s in found), mean_of_defined(s.mean_iou for s in found), tuple(found)
    )


def annotated_scores(
    sources: SourcesPlan | None, source: str | None, labels: LabelScheme, scores: Sequence[ClassScore]
) -> tuple[ClassScore, ...]:
    """The scores of the classes that the source of a case annotates: all, unless its plan says otherwise."""
    if sources is None:
        return tuple(scores)
    annotated = sources.annotated_classes(source, labels)
    return tuple(score for score in scores if score.class_name in annotated)
