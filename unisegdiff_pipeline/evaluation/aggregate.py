"""Scores of all cases put together: what summary.json holds.

Undefined values are in no mean and are counted beside it. A class that a case lacks in both masks is such a value; see
`metrics`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.calibration import ReliabilityBin, calibration_error, merge, reliability_bins
from unisegdiff_pipeline.evaluation.case import CaseResult, ClassResult, groups_of_class, of_class
from unisegdiff_pipeline.evaluation.comparison import DRAWN_AT_ONCE, bootstrap_interval, drawn_blocks
from unisegdiff_pipeline.evaluation.failure import (
    IntervalCoverage,
    coverage_of_intervals,
    failure_detection,
    rank_histogram,
)
from unisegdiff_pipeline.evaluation.froc import froc
from unisegdiff_pipeline.evaluation.lesions import ScoredLesion, StratumScore, count_lesions, strata_edges_ml, stratify
from unisegdiff_pipeline.evaluation.options import CASE_CONFIDENCE, CaseConfidence, EvaluationOptions
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.evaluation.tables import metric_names, metric_values


@dataclass(frozen=True)
class MetricSummary:
    """One metric over cases.

    Attributes:
        mean, std, median: over the defined values; std with n - 1.
        ci_low, ci_high: bootstrap interval of the mean; NaN with fewer than two cases (or groups).
        n, n_undefined: cases with and without a value.
    """

    mean: float
    std: float
    median: float
    ci_low: float
    ci_high: float
    n: int
    n_undefined: int


@dataclass(frozen=True)
class Outcomes:
    """How many cases fall under each rule of `metrics`."""

    scored: int
    both_empty: int
    false_positive: int


@dataclass(frozen=True)
class Pooled:
    """Counts over all cases together, and the ratios that follow from them; NaN where undefined.

    Attributes:
        tp, fp, fn: voxels.
        dice: of all voxels as if they were one image.
        false_positive_ml: volume predicted in cases with an empty reference.
        num_reference_lesions, num_predicted_lesions, num_detected, num_false_positive: lesions, all cases.
        lesion_sensitivity, lesion_precision, lesion_f1, mean_lesion_dice: of these lesions, by `lesions`.
        false_positives_per_case: false-positive lesions over all cases.
    """

    tp: int
    fp: int
    fn: int
    dice: float
    false_positive_ml: float
    num_reference_lesions: int
    num_predicted_lesions: int
    num_detected: int
    num_false_positive: int
    lesion_sensitivity: float
    lesion_precision: float
    lesion_f1: float
    mean_lesion_dice: float
    false_positives_per_case: float


@dataclass(frozen=True)
class FrocSummary:
    """See `froc.Froc`."""

    thresholds: tuple[float, ...]
    sensitivity: tuple[float, ...]
    false_positives_per_case: tuple[float, ...]
    mean_sensitivity: float
    rates: tuple[float, ...]
    sensitivity_at_rates: tuple[float, ...]


@dataclass(frozen=True)
class ReliabilitySummary:
    """Reliability over the voxels of all cases: bins of equal width, and both calibration errors."""

    bins: tuple[ReliabilityBin, ...]
    equal_mass_bins: tuple[ReliabilityBin, ...]
    ece: float
    adaptive_ece: float


@dataclass(frozen=True)
class FailureSummary:
    """See `failure.FailureDetection`; the risk is 1 - Dice, `score` says what the confidence is."""

    aurc: float
    eaurc: float
    naurc: float
    spearman: float
    n: int
    n_undefined: int
    risk: tuple[float, ...]
    coverage: tuple[float, ...]
    score: str


@dataclass(frozen=True)
class ClassReport:
    """One class over all cases; None where the files allow no such score.

    Attributes:
        case_specificity: fraction of the cases with an empty reference whose prediction is empty, too; NaN without
            such a case.
        metrics: by name of the column of metrics.csv.
        strata: lesions by size.
        volume_coverage, rank_histogram: of the volumes of the samples.
    """

    class_name: str
    outcomes: Outcomes
    case_specificity: float
    metrics: Mapping[str, MetricSummary]
    pooled: Pooled
    strata: tuple[StratumScore, ...]
    froc: FrocSummary | None
    reliability: ReliabilitySummary | None
    volume_coverage: tuple[IntervalCoverage, ...] | None
    rank_histogram: tuple[int, ...] | None
    failure_detection: FailureSummary | None


def report_classes(
    cases: Sequence[CaseResult],
    names: Sequence[str],
    options: EvaluationOptions,
    confidence: CaseConfidence | None,
    units: Units = VOLUMES,
) -> tuple[ClassReport, ...]:
    """Each class over the cases in which it is scored; classes that are scored in none are left out."""
    reports = []
    for name in names:
        if results := of_class(cases, name):
            reports.append(_report_class(results, groups_of_class(cases, name), options, confidence, units))
    return tuple(reports)


def _report_class(
    results: Sequence[ClassResult],
    groups: Sequence[str],
    options: EvaluationOptions,
    confidence: CaseConfidence | None,
    units: Units,
) -> ClassReport:
    """Put the results of one class over all cases together; `groups` names the group of each case."""
    overlaps = [result.overlap for result in results]
    outcomes = Outcomes(
        *(sum(o.outcome == name for o in overlaps) for name in ("scored", "both_empty", "false_positive"))
    )
    empty = outcomes.both_empty + outcomes.false_positive
    rows = [metric_values(result, options.tolerances_mm) for result in results]
    lesions = [lesion for result in results for lesion in result.lesions]
    return ClassReport(
        class_name=overlaps[0].class_name,
        outcomes=outcomes,
        case_specificity=outcomes.both_empty / empty if empty else math.nan,
        metrics={
            name: summarise_metric([row[name] for row in rows], groups, options)
            for name in metric_names(results, options.tolerances_mm)
        },
        pooled=_pooled(results, lesions),
        strata=stratify(lesions, _edges_ml(lesions, options, units), units),
        froc=_froc([result.lesions for result in results]),
        reliability=_reliability(results),
        volume_coverage=_volume_coverage(results),
        rank_histogram=_rank_histogram(results, options.seed),
        failure_detection=_failure(results, confidence),
    )


def summarise_metric(values: Sequence[float], groups: Sequence[str], options: EvaluationOptions) -> MetricSummary:
    """Mean, spread and interval of one metric over cases; NaN values are counted and left out."""
    defined = [value for value in values if not math.isnan(value)]
    low, high = bootstrap_interval(values, groups, level=options.level, resamples=options.resamples, seed=options.seed)
    return MetricSummary(
        mean=statistics.fmean(defined) if defined else math.nan,
        std=statistics.stdev(defined) if len(defined) > 1 else math.nan,
        median=statistics.median(defined) if defined else math.nan,
        ci_low=low,
        ci_high=high,
        n=len(defined),
        n_undefined=len(values) - len(defined),
    )


def mean_over_classes(
    cases: Sequence[CaseResult], reports: Sequence[ClassReport], options: EvaluationOptions
) -> dict[str, MetricSummary]:
    """Each metric over all classes.

    The mean is that of the class means, so that rare classes weigh as much as frequent ones (as nnU-Net's
    foreground_mean), and its interval is that of this mean over redrawn cases. Deviation, median and n are those of the
    cases, the value of a case being the mean over its classes where they are defined. With one class all are its own.
    """
    if len(reports) == 1:
        return dict(reports[0].metrics)
    groups = [case.group for case in cases]
    draws = _group_draws(groups, options, np.random.default_rng(options.seed))
    found = {}
    for name, values in values_by_class(cases, reports, options).items():
        of_cases = summarise_metric(
            [mean_of_defined(row) for row in values.tolist()], groups, _without_samples(options)
        )
        low, high = _macro_interval(values, groups, draws, options)
        found[name] = MetricSummary(
            mean=mean_of_defined(report.metrics[name].mean for report in reports if name in report.metrics),
            std=of_cases.std,
            median=of_cases.median,
            ci_low=low,
            ci_high=high,
            n=of_cases.n,
            n_undefined=of_cases.n_undefined,
        )
    return found


def values_by_class(
    cases: Sequence[CaseResult], reports: Sequence[ClassReport], options: EvaluationOptions
) -> dict[str, np.ndarray]:
    """Metric => values (cases, classes), NaN where a case has none."""
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    found = [[case.of_class(report.class_name) for report in reports] for case in cases]
    tables = [[{} if r is None else metric_values(r, options.tolerances_mm) for r in row] for row in found]
    return {name: np.array([[row.get(name, math.nan) for row in table] for table in tables]) for name in names}


def case_values(cases: Sequence[CaseResult], name: str, options: EvaluationOptions) -> dict[str, float]:
    """Case => value of a metric, the mean over the classes of the case where it is defined."""
    return {
        case.case_id: mean_of_defined(
            metric_values(result, options.tolerances_mm).get(name, math.nan) for result in case.classes
        )
        for case in cases
    }


def _without_samples(options: EvaluationOptions) -> EvaluationOptions:
    return dataclasses.replace(options, resamples=0)


def drawn_means(
    values: Mapping[str, np.ndarray], groups: Sequence[str], options: EvaluationOptions, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Mean of the class means of each metric in each bootstrap draw of groups, (resamples,); see `mean_over_classes`.

    Args:
        values: of each metric (cases, classes), NaN where undefined.
        groups: group of each case.
        options: number of draws.
        rng: of the draws.

    Returns:
        NaN in draws where no class has a value; nothing, (0,), where fewer than two groups have one.
    """
    draws = _group_draws(groups, options, rng)
    return {metric: _means_of_draws(of_metric, groups, draws) for metric, of_metric in values.items()}


def _group_draws(groups: Sequence[str], options: EvaluationOptions, rng: np.random.Generator) -> np.ndarray:
    """How often each group is drawn, (resamples, groups)."""
    num_groups = len(set(groups))
    parts = []
    for drawn in drawn_blocks(rng, options.resamples, num_groups):
        of_draw = drawn + num_groups * np.arange(len(drawn))[:, None]
        counts = np.bincount(of_draw.ravel(), minlength=drawn.size)
        parts.append(counts.reshape(drawn.shape).astype(np.uint16))  # no group is drawn 65536 times
    return np.concatenate(parts) if parts else np.zeros((0, num_groups), np.uint16)


def _macro_interval(
    values: np.ndarray, groups: Sequence[str], draws: np.ndarray, options: EvaluationOptions
) -> tuple[float, float]:
    """Interval of the mean of class means; draws in which no class has a value are left out."""
    return interval_of_draws(_means_of_draws(values, groups, draws), options.level)


def interval_of_draws(means: np.ndarray, level: float) -> tuple[float, float]:
    """Central interval of drawn means, (resamples,); NaN without a defined one."""
    defined = means[~np.isnan(means)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _means_of_draws(values: np.ndarray, groups: Sequence[str], draws: np.ndarray) -> np.ndarray:
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    of_group = np.array([number[group] for group in groups])
    defined = ~np.isnan(values)
    if len(number) < 2 or len(draws) == 0 or len(set(of_group[defined.any(axis=1)].tolist())) < 2:
        return np.empty(0)
    totals, counts = np.zeros((2, len(number), values.shape[1]))
    np.add.at(totals, of_group, np.where(defined, values, 0.0))
    np.add.at(counts, of_group, defined)
    parts = np.array_split(draws, math.ceil(draws.size / DRAWN_AT_ONCE))
    drawn = np.concatenate([part.astype(float) @ counts for part in parts])
    sums = np.concatenate([part.astype(float) @ totals for part in parts])
    class_means = sums / np.where(drawn > 0, drawn, np.nan)
    has_value = (drawn > 0).any(axis=1)
    means = np.full(len(draws), np.nan)
    means[has_value] = np.nanmean(class_means[has_value], axis=1)
    return means


def _pooled(results: Sequence[ClassResult], lesions: Sequence[ScoredLesion]) -> Pooled:
    overlaps = [result.overlap for result in results]
    tp, fp, fn = (sum(getattr(overlap, name) for overlap in overlaps) for name in ("tp", "fp", "fn"))
    score = count_lesions(lesions)
    return Pooled(
        tp=tp,
        fp=fp,
        fn=fn,
        dice=2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        false_positive_ml=math.fsum(o.false_positive_ml for o in overlaps if o.outcome == "false_positive"),
        num_reference_lesions=score.num_reference_lesions,
        num_predicted_lesions=score.num_predicted_lesions,
        num_detected=score.num_detected,
        num_false_positive=score.num_false_positive,
        lesion_sensitivity=score.lesion_sensitivity,
        lesion_precision=score.lesion_precision,
        lesion_f1=score.lesion_f1,
        mean_lesion_dice=score.mean_lesion_dice,
        false_positives_per_case=score.num_false_positive / len(results),
    )


def _edges_ml(lesions: Sequence[ScoredLesion], options: EvaluationOptions, units: Units) -> tuple[float, ...]:
    if options.strata_edges_ml is not None:
        return options.strata_edges_ml
    return strata_edges_ml(lesion.size(units) for lesion in lesions if lesion.side == "reference")


def _froc(cases: Sequence[Sequence[ScoredLesion]]) -> FrocSummary | None:
    curve = froc(cases)
    if curve is None:
        return None
    return FrocSummary(
        thresholds=curve.confidence_thresholds,
        sensitivity=curve.sensitivity,
        false_positives_per_case=curve.false_positives_per_case,
        mean_sensitivity=curve.mean_sensitivity,
        rates=curve.rates,
        sensitivity_at_rates=curve.sensitivity_at_rates,
    )


def _reliability(results: Sequence[ClassResult]) -> ReliabilitySummary | None:
    counts = [result.calibration.counts for result in results if result.calibration is not None]
    if not counts:
        return None
    total = merge(counts)
    return ReliabilitySummary(
        bins=reliability_bins(total),
        equal_mass_bins=reliability_bins(total, equal_mass=True),
        ece=calibration_error(total),
        adaptive_ece=calibration_error(total, equal_mass=True),
    )


def _volume_coverage(results: Sequence[ClassResult]) -> tuple[IntervalCoverage, ...] | None:
    samples = [result.sample_volumes_ml for result in results]
    if not any(samples):
        return None
    return coverage_of_intervals(samples, [result.overlap.reference_ml for result in results])


def _rank_histogram(results: Sequence[ClassResult], seed: int) -> tuple[int, ...] | None:
    samples = [result.sample_volumes_ml for result in results]
    if not any(samples):
        return None
    return rank_histogram(samples, [result.overlap.reference_ml for result in results], seed).counts


def _failure(results: Sequence[ClassResult], confidence: CaseConfidence | None) -> FailureSummary | None:
    if confidence is None:
        return None
    found = failure_detection([1 - r.overlap.dice for r in results], [r.confidence for r in results])
    return FailureSummary(**dataclasses.asdict(found), score=CASE_CONFIDENCE[confidence])
