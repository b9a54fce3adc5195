"""Scores of a unified data set by source, and the mean over sources, in which a small one counts as a large one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.aggregate import (
    ClassReport,
    MetricSummary,
    drawn_means,
    interval_of_draws,
    mean_over_classes,
    report_classes,
    summarise_metric,
    values_by_class,
)
from unisegdiff_pipeline.evaluation.case import CaseResult
from unisegdiff_pipeline.evaluation.options import CaseConfidence, EvaluationOptions


@dataclass(frozen=True)
class SourceReport:
    """The cases of one source.

    Attributes:
        source: its name.
        num_cases: that are scored.
        mean: each metric over the classes that the source annotates, as of the whole data set.
        classes: these classes.
    """

    source: str
    num_cases: int
    mean: dict[str, MetricSummary]
    classes: tuple[ClassReport, ...]


@dataclass(frozen=True)
class SourcesReport:
    """All sources, and the mean over them.

    Attributes:
        macro_mean: each metric over sources. The mean is that of the sources' means, its interval redraws the groups
            within each source (undefined where one has a single group); std, median, n and n_undefined are those of
            the sources.
        sources: by name.
    """

    macro_mean: dict[str, MetricSummary]
    sources: tuple[SourceReport, ...]


def report_sources(
    cases: Sequence[CaseResult],
    names: Sequence[str],
    options: EvaluationOptions,
    confidence: CaseConfidence | None,
    units: Units = VOLUMES,
) -> SourcesReport | None:
    """Scores by source; None of cases without sources. `names` are the classes in their order."""
    parts = cases_by_source(cases)
    if not parts:
        return None
    sources = []
    draws: dict[str, list[np.ndarray]] = {}
    for index, (source, own) in enumerate(parts.items()):
        classes = report_classes(own, names, options, confidence, units)
        mean = mean_over_classes(own, classes, options)
        sources.append(SourceReport(source, len(own), mean, classes))
        groups, values = [case.group for case in own], values_by_class(own, classes, options)
        rng = np.random.default_rng([options.seed, index])
        for metric, means in drawn_means(values, groups, options, rng).items():
            draws.setdefault(metric, []).append(means)
    macro = {metric: _macro(metric, sources, draws[metric], options) for metric in draws}
    return SourcesReport(macro, tuple(sources))


def cases_by_source(cases: Sequence[CaseResult]) -> dict[str, list[CaseResult]]:
    """Source => its cases; empty where cases have none."""
    found: dict[str, list[CaseResult]] = {}
    for case in cases:
        if case.source is not None:
            found.setdefault(case.source, []).append(case)
    return found


def _macro(
    metric: str, sources: Sequence[SourceReport], draws: Sequence[np.ndarray], options: EvaluationOptions
) -> MetricSummary:
    means = {source.source: source.mean[metric].mean for source in sources if metric in source.mean}
    found = summarise_metric(list(means.values()), list(means), replace(options, resamples=0))
    of_sources = [drawn for drawn, mean in zip(draws, means.values(), strict=True) if not math.isnan(mean)]
    if not of_sources or any(len(drawn) == 0 for drawn in of_sources):
        return found
    low, high = interval_of_draws(np.mean(of_sources, axis=0), options.level)
    return replace(found, ci_low=low, ci_high=high)
