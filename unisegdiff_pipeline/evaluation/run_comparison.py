"""Runs against each other on the same cases: paired differences per class and metric, and a ranking by Dice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.evaluation.aggregate import case_values
from unisegdiff_pipeline.evaluation.by_source import cases_by_source
from unisegdiff_pipeline.evaluation.case import CaseResult, class_names, groups_of_class, of_class
from unisegdiff_pipeline.evaluation.comparison import PairedComparison, holm, paired_comparison, rank_table
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.tables import metric_values

# Whether a larger value is better, for the metrics that runs are compared by; surface Dice is added per tolerance.
COMPARED = {
    "dice": True,
    "hd95_mm": False,
    "assd_mm": False,
    "lesion_f1": True,
    "mean_lesion_dice": True,
    "nll": False,
    "brier": False,
    "adaptive_ece": False,
    "energy_score_u": False,
    "ged_u": False,
    "hm_iou": True,
}


@dataclass(frozen=True)
class ClassComparison:
    """The scored run against another one by one class and metric; differences are scored minus other.

    Attributes:
        n, n_undefined: cases where both runs have a value, and the others.
        num_groups: independent units of the test: groups of cases, or the cases.
        mean_difference, ci_low, ci_high, p_wilcoxon, effect_size, wins, ties, losses: see
            `comparison.PairedComparison`; a win is a case where the scored run is better.
        p_holm: p corrected for the number of classes and other runs, metric by metric (Holm 1979).
    """

    class_name: str
    metric: str
    n: int
    n_undefined: int
    num_groups: int
    mean_difference: float
    ci_low: float
    ci_high: float
    p_wilcoxon: float
    p_holm: float
    effect_size: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class SourceComparison:
    """The cases of one source; p is corrected for the number of sources, too."""

    source: str
    classes: tuple[ClassComparison, ...]


@dataclass(frozen=True)
class RunComparison:
    """The scored run against the run of this name; of a unified data set also by source."""

    name: str
    classes: tuple[ClassComparison, ...]
    sources: tuple[SourceComparison, ...] = ()


@dataclass(frozen=True)
class RankedRun:
    """A row of the ranking, best first.

    Attributes:
        mean_rank: mean over cases of the rank by Dice (mean over the classes of the case), ties averaged.
        mean_dice: mean of these values.
        num_best: cases where no run is better.
        num_cases: cases that are ranked.
    """

    name: str
    mean_rank: float
    mean_dice: float
    num_best: int
    num_cases: int


def compare_runs(
    scored: Sequence[CaseResult], others: Mapping[str, Sequence[CaseResult]], options: EvaluationOptions
) -> tuple[RunComparison, ...]:
    """Compare the scored run with each of the others; all hold the same cases in the same order."""
    found = _corrected([_compare(scored, other, options) for other in others.values()])
    parts = cases_by_source(scored)
    by_source = _corrected(
        [
            _compare(own, other[source], options)
            for other in map(cases_by_source, others.values())
            for source, own in parts.items()
        ]
    )
    rows = iter(by_source)
    return tuple(
        RunComparison(name, classes, tuple(SourceComparison(source, next(rows)) for source in parts))
        for name, classes in zip(others, found, strict=True)
    )


def _corrected(tables: Sequence[Sequence[ClassComparison]]) -> list[tuple[ClassComparison, ...]]:
    """The tables with p corrected for the number of rows of all of them, metric by metric."""
    corrected = {
        metric: iter(holm([row.p_wilcoxon for rows in tables for row in rows if row.metric == metric]))
        for metric in {row.metric for rows in tables for row in rows}
    }
    return [tuple(dataclasses.replace(row, p_holm=next(corrected[row.metric])) for row in rows) for rows in tables]


def rank_runs(runs: Mapping[str, Sequence[CaseResult]], options: EvaluationOptions) -> tuple[RankedRun, ...]:
    """Rank all runs, the scored one among them, by Dice."""
    table = rank_table({name: case_values(cases, "dice", options) for name, cases in runs.items()})
    return tuple(RankedRun(row.name, row.mean_rank, row.mean, row.num_best, row.num_cases) for row in table)


def _compare(
    scored: Sequence[CaseResult], other: Sequence[CaseResult], options: EvaluationOptions
) -> list[ClassComparison]:
    higher_is_better = COMPARED | {f"surface_dice_{t:g}mm": True for t in options.tolerances_mm}
    rows = []
    for name in class_names(scored):
        groups = groups_of_class(scored, name)
        ours, theirs = (
            [metric_values(result, options.tolerances_mm) for result in of_class(run, name)] for run in (scored, other)
        )
        for metric, higher in higher_is_better.items():
            a, b = [row[metric] for row in ours], [row[metric] for row in theirs]
            if all(map(math.isnan, a)) or all(map(math.isnan, b)):
                continue
            pairs = paired_comparison(
                a,
                b,
                groups,
                higher_is_better=higher,
                level=options.level,
                resamples=options.resamples,
                seed=options.seed,
            )
            rows.append(_class_comparison(name, metric, pairs))
    return rows


def _class_comparison(class_name: str, metric: str, pairs: PairedComparison) -> ClassComparison:
    return ClassComparison(class_name=class_name, metric=metric, p_holm=math.nan, **dataclasses.asdict(pairs))
