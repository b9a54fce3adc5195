"""Does a method know where it fails: risk against confidence over cases, and sampled volumes against the true one.

Undefined values are left out and counted: a case takes part where its numbers are all defined.

Sources: Geifman & El-Yaniv 2017, arXiv:1705.08500 (risk and coverage); Geifman et al. 2019, arXiv:1805.08206 (AURC,
E-AURC); Cattelan & Silva 2023, arXiv:2305.15508 (normalised AURC); Zenk et al. 2025, doi:10.1016/j.media.2024.103392
(failure detection in segmentation); Hamill 2001 (rank histogram); Hyndman & Fan 1996 (quantiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.evaluation.comparison import mean_ranks

LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True)
class FailureDetection:
    """How well a confidence sorts cases by their risk; all scores are NaN without cases.

    With the n cases sorted by falling confidence, the selective risk at coverage k/n is the mean risk of the first k.
    Cases of equal confidence are given their common mean risk, which is the expectation over all their orders.

    Attributes:
        n: cases with a defined risk and confidence.
        n_undefined: cases left out.
        aurc: mean selective risk over the coverages 1/n, 2/n, ..., 1, in the unit of the risk; smaller is better.
        eaurc: AURC minus that of the best possible order, sorted by the risk itself; 0 is perfect.
        naurc: E-AURC over its value for a confidence that says nothing (selective risk = mean risk at every coverage):
            0 perfect, 1 chance, above 1 misleading; NaN where all risks are equal.
        spearman: rank correlation of confidence and minus the risk (ties get mean ranks), 1 perfect, 0 chance; NaN
            where either is constant.
        coverage: 1/n, 2/n, ..., 1.
        risk: selective risk at each coverage.
    """

    n: int
    n_undefined: int
    aurc: float
    eaurc: float
    naurc: float
    spearman: float
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class IntervalCoverage:
    """How often the reference volume lies in the central interval of the sampled volumes.

    Attributes:
        level: nominal fraction, 0 to 1.
        fraction: of the cases whose reference volume lies in the interval, ends included; NaN without cases.
        expected: fraction that perfect samples reach: the level, or (N - 1) / (N + 1) where N samples reach no further
            (8 samples span at most 78 %). Compare `fraction` with this, not with the level; NaN without cases.
        n: cases that count.
        n_undefined: cases left out; see `coverage_of_intervals`.
    """

    level: float
    fraction: float
    expected: float
    n: int
    n_undefined: int


@dataclass(frozen=True)
class RankHistogram:
    """Place of the reference volume among the sampled volumes; flat where samples spread as the truth does.

    U-shaped: too little spread; a hump: too much; a slope: volumes are biased (high counts on the left: too large).

    Attributes:
        counts: cases with 0, 1, ..., N samples below the reference; empty without cases.
        n: cases that count.
        n_undefined: cases left out; see `rank_histogram`.
    """

    counts: tuple[int, ...]
    n: int
    n_undefined: int


def failure_detection(risk: Sequence[float], confidence: Sequence[float]) -> FailureDetection:
    """Risk-coverage curve and its area: does low confidence point at the cases that failed?

    Args:
        risk: per case, such as 1 - Dice; NaN is undefined.
        confidence: per case, such as the mean Dice between samples or minus the mean entropy; only its order counts.

    Raises:
        ValueError: where the lengths differ.
    """
    if len(risk) != len(confidence):
        raise ValueError(f"{len(risk)} risks and {len(confidence)} confidences; each case needs both")
    r, c = np.asarray(risk, float), np.asarray(confidence, float)
    defined = ~(np.isnan(r) | np.isnan(c))
    r, c = r[defined], c[defined]
    n, n_undefined = len(r), int(np.count_nonzero(~defined))
    if n == 0:
        return FailureDetection(0, n_undefined, math.nan, math.nan, math.nan, math.nan, (), ())
    selective = _selective_risk(r, c)
    aurc, best, chance = float(selective.mean()), float(_selective_risk(r, -r).mean()), float(r.mean())
    return FailureDetection(
        n=n,
        n_undefined=n_undefined,
        aurc=aurc,
        eaurc=aurc - best,
        naurc=(aurc - best) / (chance - best) if np.ptp(r) > 0 else math.nan,
        spearman=_spearman(c, -r),
        coverage=tuple(((np.arange(n) + 1) / n).tolist()),
        risk=tuple(selective.tolist()),
    )


def coverage_of_intervals(
    volume_samples: Sequence[Sequence[float]], volumes: Sequence[float], levels: Sequence[float] = LEVELS
) -> tuple[IntervalCoverage, ...]:
    """Coverage of the central intervals of sampled volumes, one entry per level.

    The interval of level l runs from the quantile (1 - l) / 2 to the quantile (1 + l) / 2 of the N samples, at the
    positions q (N + 1) among the ordered samples (type 6 of Hyndman & Fan, clipped to the extremes). With it perfect
    samples cover the reference at the nominal rate for any N that reaches so far; numpy's default is too narrow.

    Left out and counted are cases with fewer than two samples, with an undefined volume, and those where the reference
    and all samples are empty: nothing is there to be uncertain about, and they would be covered at every level.

    Args:
        volume_samples: sampled volumes of each case; their number may vary.
        volumes: reference volume of each case, same unit.
        levels: nominal shares, each above 0 and below 1.

    Raises:
        ValueError: where the numbers of cases differ or a level is out of range.
    """
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels {tuple(levels)} must lie between 0 and 1")
    cases = _defined_cases(volume_samples, volumes)
    return tuple(_interval_coverage(level, cases, len(volumes) - len(cases)) for level in levels)


def rank_histogram(volume_samples: Sequence[Sequence[float]], volumes: Sequence[float], seed: int = 0) -> RankHistogram:
    """Rank of each reference volume among its sampled volumes, counted over cases.

    Equal volumes are put in random order, so that perfect samples give a flat histogram even where many volumes are 0.
    Where the numbers of samples differ, every case keeps as many, drawn at random, as the case with the fewest. Both
    draws depend on the seed and the place of the case in the list. Left out and counted are the same cases as in
    `coverage_of_intervals`.

    Args:
        volume_samples: sampled volumes of each case.
        volumes: reference volume of each case, same unit.

    Raises:
        ValueError: where the numbers of cases differ.
    """
    cases = _defined_cases(volume_samples, volumes)
    if not cases:
        return RankHistogram((), 0, len(volumes))
    num_samples = min(len(samples) for _, samples, _ in cases)
    counts = np.zeros(num_samples + 1, int)
    for index, samples, volume in cases:
        generator = np.random.default_rng([seed, index])
        kept = generator.permutation(samples)[:num_samples]
        below, ties = np.count_nonzero(kept < volume), np.count_nonzero(kept == volume)
        counts[below + generator.integers(ties + 1)] += 1
    return RankHistogram(tuple(counts.tolist()), len(cases), len(volumes) - len(cases))


def _defined_cases(
    volume_samples: Sequence[Sequence[float]], volumes: Sequence[float]
) -> list[tuple[int, np.ndarray, float]]:
    """Index, samples and reference of the cases that count."""
    if len(volume_samples) != len(volumes):
        raise ValueError(f"{len(volume_samples)} cases have samples and {len(volumes)} a volume; each case needs both")
    cases = [(i, np.asarray(s, float), float(v)) for i, (s, v) in enumerate(zip(volume_samples, volumes, strict=True))]
    return [
        (index, samples, volume)
        for index, samples, volume in cases
        if len(samples) > 1 and not math.isnan(volume) and not np.isnan(samples).any() and (volume or samples.any())
    ]


def _interval_coverage(
    level: float, cases: Sequence[tuple[int, np.ndarray, float]], n_undefined: int
) -> IntervalCoverage:
    tails = (1 - level) / 2, (1 + level) / 2
    covered, expected = [], []
    for _, samples, volume in cases:
        low, high = np.quantile(samples, tails, method="weibull")
        covered.append(bool(low <= volume <= high))
        expected.append(min(level, (len(samples) - 1) / (len(samples) + 1)))
    fraction = float(np.mean(covered)) if cases else math.nan
    return IntervalCoverage(level, fraction, float(np.mean(expected)) if cases else math.nan, len(cases), n_undefined)


def _selective_risk(risk: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Mean risk of the 1, 2, ..., n most confident cases."""
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean_of_group = np.bincount(group, risk) / sizes
    ordered = np.repeat(mean_of_group, sizes)
    return np.cumsum(ordered) / (np.arange(len(risk)) + 1)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (ranks - ranks.mean() for ranks in (mean_ranks(a), mean_ranks(b)))
    scale = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale else math.nan
