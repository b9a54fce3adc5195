"""How sure a mean over cases is, and whether one run is better than another on the same cases.

Cases of one patient are not independent: wherever `groups` is given, whole groups are drawn and tested. NaN means
undefined; what is left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Up to this many differences the distribution of the signed ranks is computed exactly.
EXACT_UP_TO = 100
# Differences closer than this fraction of the values are ties: 0.9 - 0.8 and 0.8 - 0.7 differ in their last bits.
TIE_DIGITS = 12
NORMAL_95 = 1.96  # standard errors to either side of a mean
DRAWN_AT_ONCE = 1_000_000  # numbers of groups in memory; 2000 draws of 500 groups
SIGN_DRAWS = 10_000


@dataclass(frozen=True)
class PairedComparison:
    """Run a against run b on the same cases; differences are a - b.

    Attributes:
        n: pairs where both values are defined.
        n_undefined: pairs left out.
        num_groups: independent units: groups, or n without groups.
        mean_difference: mean of a - b over the pairs; NaN for n = 0.
        ci_low, ci_high: `bootstrap_interval` of the mean difference.
        p_wilcoxon: two-sided p of `signed_rank_test`, over the mean differences of groups where groups are given.
        effect_size: matched-pairs rank-biserial correlation (Kerby 2014) of the same differences,
            r = (W+ - W-) / (W+ + W-) with the rank sums W+ of positive and W- of negative differences: +1 = a is
            larger in every case, 0 = no preference (or no difference at all), -1 = b is.
        wins, ties, losses: pairs where a is better, equal, worse.
    """

    n: int
    n_undefined: int
    num_groups: int
    mean_difference: float
    ci_low: float
    ci_high: float
    p_wilcoxon: float
    effect_size: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class SignedRankTest:
    """Wilcoxon's signed-rank test; both NaN without any value.

    Attributes:
        p: two-sided.
        effect_size: rank-biserial correlation, see `PairedComparison`.
    """

    p: float
    effect_size: float


@dataclass(frozen=True)
class RunRank:
    """One run of a ranking table.

    Attributes:
        name: of the run.
        mean_rank: over the ranked cases, 1 = best; NaN without cases.
        mean: of the defined values of the run.
        num_best: ranked cases where no run is better; runs that tie for best all count.
        num_cases: ranked cases: those where at least one run is defined; the same for all runs.
        num_undefined: ranked cases where this run is undefined or lacks the case.
    """

    name: str
    mean_rank: float
    mean: float
    num_best: int
    num_cases: int
    num_undefined: int


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one a case; NaN is left out.
        groups: group (patient) of each value; whole groups are drawn, as many as there are, and the mean is over all
            values drawn. None = each value by itself.
        level: fraction of the interval, between 0 and 1.
        resamples: bootstrap draws; 0 = no interval.
        seed: of the draws; equal seeds, values and order give equal intervals.

    Returns:
        (low, high); NaN for fewer than two cases or groups, which say nothing about the spread.

    Raises:
        ValueError: for a level outside (0, 1), negative resamples or groups of another length.
    """
    if not 0 < level < 1 or resamples < 0:
        raise ValueError(f"level is {level} and must lie between 0 and 1; resamples is {resamples} and must be >= 0")
    kept, unit = _defined(np.asarray(values, dtype=float), groups)
    totals, counts = np.bincount(unit, weights=kept), np.bincount(unit)
    if len(counts) < 2 or resamples == 0:
        return math.nan, math.nan
    blocks = drawn_blocks(np.random.default_rng(seed), resamples, len(counts))
    means = np.concatenate([totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1) for drawn in blocks])
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def drawn_blocks(rng: np.random.Generator, resamples: int, num_groups: int) -> Iterator[np.ndarray]:
    """Numbers of the groups of each bootstrap draw, (draws, num_groups), a part of the draws after the other.

    All draws of many cases at once would take gigabytes; the parts are those that drawing all at once gives.
    """
    at_once = max(1, DRAWN_AT_ONCE // num_groups)
    for first in range(0, resamples, at_once):
        yield rng.integers(0, num_groups, (min(at_once, resamples - first), num_groups))


def mean_gain(a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None = None) -> tuple[float, float]:
    """Mean of a - b over the cases where both are defined, and its standard error; 0 for what too few cases tell.

    With the group (patient) of each case the error is that of a mean over groups of unequal size (Cochran 1977,
    "Sampling techniques", chapter 9A); one group alone says nothing of others, and its cases count instead.
    """
    found, unit = _defined(np.subtract(a, b), groups)
    if len(found) < 2:
        return (float(found.mean()) if len(found) else 0.0), 0.0
    mean = float(found.mean())
    if unit.max() == 0:
        unit = np.arange(len(found))
    totals = np.bincount(unit, weights=found - mean)
    units = len(totals)
    return mean, float(np.sqrt(units / (units - 1) * np.square(totals).sum()) / len(found))


def macro_gain(
    a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None, parts: Sequence[str]
) -> tuple[float, float]:
    """As `mean_gain` of each part (the sources of a unified data set), then the mean over parts and its standard error.

    Parts are independent. One with a single case, which tells no error, is given the largest of the others; where they
    tell none either, the error is that of the mean over all cases.

    Args:
        a, b: values of the same cases.
        groups: group (patient) of each case; None = each case by itself.
        parts: the part that each case belongs to; groups lie within parts. Without any, as `mean_gain`.
    """
    if not parts:
        return mean_gain(a, b, groups)
    gains, errors = [], []
    for part in dict.fromkeys(parts):
        own = [i for i, of_case in enumerate(parts) if of_case == part and not math.isnan(a[i] - b[i])]
        if own:
            of_own = None if groups is None else [groups[i] for i in own]
            of_part, error = mean_gain([a[i] for i in own], [b[i] for i in own], of_own)
            gains.append(of_part)
            errors.append(error if len(own) > 1 else math.nan)
    if not gains:
        return 0.0, 0.0
    gain = sum(gains) / len(gains)
    largest = max((error for error in errors if not math.isnan(error)), default=0.0)
    if largest == 0 and any(map(math.isnan, errors)):
        return gain, mean_gain(a, b, groups)[1]
    known = [largest if math.isnan(error) else error for error in errors]
    return gain, math.hypot(*known) / len(gains)


def macro_interval(
    a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None, parts: Sequence[str]
) -> tuple[float, float, float]:
    """The mean of `macro_gain` and its 95 % interval, of normal shape: (mean, low, high).

    Without any pair all are NaN; of a single one, which says nothing about the spread, the interval is.
    """
    pairs = int(np.isfinite(np.subtract(a, b)).sum())
    if pairs == 0:
        return math.nan, math.nan, math.nan
    mean, error = macro_gain(a, b, groups, parts)
    error = error if pairs > 1 else math.nan
    return mean, mean - NORMAL_95 * error, mean + NORMAL_95 * error


def paired_comparison(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence[str] | None = None,
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two runs case by case.

    Args:
        a, b: values of the same cases in the same order; a pair with a NaN is left out and counted.
        groups: group (patient) of each pair; see `bootstrap_interval`.
        higher_is_better: False for distances and errors; decides what a win is, not the sign of the differences.
        level, resamples, seed: see `bootstrap_interval`.

    Raises:
        ValueError: for lengths that differ.
    """
    if len(a) != len(b):
        raise ValueError(f"a holds {len(a)} values and b {len(b)}; both need one value for each case")
    differences = _differences(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    kept, unit = _defined(differences, groups)
    test = signed_rank_test(np.bincount(unit, weights=kept) / np.bincount(unit))
    low, high = bootstrap_interval(differences.tolist(), groups, level=level, resamples=resamples, seed=seed)
    larger, smaller = int((kept > 0).sum()), int((kept < 0).sum())
    return PairedComparison(
        n=len(kept),
        n_undefined=len(differences) - len(kept),
        num_groups=len(np.bincount(unit)),
        mean_difference=float(kept.mean()) if len(kept) else math.nan,
        ci_low=low,
        ci_high=high,
        p_wilcoxon=test.p,
        effect_size=test.effect_size,
        wins=larger if higher_is_better else smaller,
        ties=len(kept) - larger - smaller,
        losses=smaller if higher_is_better else larger,
    )


def signed_rank_test(differences: Sequence[float] | np.ndarray) -> SignedRankTest:
    """Wilcoxon's signed-rank test (Wilcoxon 1945) of differences that are symmetric about 0 under the hypothesis.

    Zeros are dropped and tied ranks averaged. Up to 100 differences p is exact given the ranks, with ties too (the
    distribution of W+ over all 2^n signs); above, normal with variance sum(rank^2) / 4 and no continuity correction.
    Only zeros: p = 1, effect 0.
    """
    values = np.asarray(differences, dtype=float)
    if not len(values):
        return SignedRankTest(math.nan, math.nan)
    values = values[values != 0]
    if not len(values):
        return SignedRankTest(1.0, 0.0)
    ranks = _ranks(np.abs(values))
    total, positive = float(ranks.sum()), float(ranks[values > 0].sum())
    p = _exact_p(ranks, positive) if len(values) <= EXACT_UP_TO else _normal_p(ranks, positive)
    return SignedRankTest(p, (2 * positive - total) / total)


def macro_signed_rank_test(
    a: Sequence[float],
    b: Sequence[float],
    groups: Sequence[str] | None,
    parts: Sequence[str],
) -> SignedRankTest:
    """`signed_rank_test` of the groups' mean differences a - b in each part, of which each part counts the same.

    The effect size is the mean over parts. p is the fraction of random signs of the groups' differences for which it is
    as far from 0; the signs as they are count as one of the draws.

    Args:
        a, b: values of the same cases; a pair with a NaN is left out.
        groups, parts: of each case, as of `macro_gain`.
    """
    differences = _differences(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    rng = np.random.default_rng(0)
    effects, drawn = [], np.zeros(SIGN_DRAWS)
    for part in dict.fromkeys(parts):
        own = [i for i, of_case in enumerate(parts) if of_case == part and not math.isnan(differences[i])]
        if not own:
            continue
        kept, unit = _defined(differences[own], groups and [groups[i] for i in own])
        means = np.bincount(unit, weights=kept) / np.bincount(unit)
        means = means[means != 0]
        weights = _ranks(np.abs(means)) if len(means) else means
        weights = weights / max(weights.sum(), 1.0)
        effects.append(float(np.sign(means) @ weights))
        for weight in weights:  # one by one, because all signs at once would take gigabytes
            drawn += np.where(rng.random(SIGN_DRAWS) < 0.5, weight, -weight)
    if not effects:
        return SignedRankTest(math.nan, math.nan)
    as_far = np.abs(drawn) >= abs(sum(effects)) - 1e-9
    return SignedRankTest(float((1 + as_far.sum()) / (1 + SIGN_DRAWS)), sum(effects) / len(effects))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down correction (Holm 1979) of the p values of one family; NaN stays NaN and is no comparison.

    p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)), with the m values in ascending order.
    """
    adjusted = np.array(p_values, dtype=float)
    defined = np.flatnonzero(~np.isnan(adjusted))
    order = defined[np.argsort(adjusted[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * adjusted[order]))
    return tuple(adjusted.tolist())


def rank_table(runs: Mapping[str, Mapping[str, float]], *, higher_is_better: bool = True) -> tuple[RunRank, ...]:
    """Rank runs in each case, then average the ranks (rank, then aggregate: Maier-Hein et al. 2018).

    A case counts where at least one run is defined. In it, runs that are undefined (NaN, or the case is missing) share
    the worst rank: leaving the case out would reward a run for predicting nothing where a distance is scored.

    Args:
        runs: name => case => value.
        higher_is_better: False for distances and errors.

    Returns:
        Best mean rank first; runs of equal rank stay in the order given.
    """
    cases = list(dict.fromkeys(case for values in runs.values() for case in values))
    table = np.array([[values.get(case, math.nan) for case in cases] for values in runs.values()], dtype=float)
    table = table.reshape(len(runs), len(cases))
    table = table[:, ~np.isnan(table).all(axis=0)] if len(runs) else table
    # Cost: lower is better and undefined is worst.
    cost = np.where(np.isnan(table), np.inf, -table if higher_is_better else table)
    better = (cost[None] < cost[:, None]).sum(axis=1)  # (runs, runs, cases) => (runs, cases)
    equal = (cost[None] == cost[:, None]).sum(axis=1)
    ranks = better + (equal + 1) / 2
    rows = zip(runs, table, ranks, better, strict=True)
    found = [_run_rank(name, values, rank, num_better) for name, values, rank, num_better in rows]
    return tuple(sorted(found, key=lambda run: run.mean_rank))


def _run_rank(name: str, values: np.ndarray, ranks: np.ndarray, num_better: np.ndarray) -> RunRank:
    defined = values[~np.isnan(values)]
    return RunRank(
        name=name,
        mean_rank=float(ranks.mean()) if len(ranks) else math.nan,
        mean=float(defined.mean()) if len(defined) else math.nan,
        num_best=int((num_better == 0).sum()),
        num_cases=len(values),
        num_undefined=len(values) - len(defined),
    )


def _defined(values: np.ndarray, groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Values that are not NaN, and the number of the group of each, 0, 1, ... in order of appearance."""
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"there are {len(values)} values and {len(groups)} groups; each value needs its group")
    keep = ~np.isnan(values)
    if groups is None:
        return values[keep], np.arange(keep.sum())
    kept = [group for group, defined in zip(groups, keep, strict=True) if defined]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(kept))}
    return values[keep], np.array([numbers[group] for group in kept], dtype=np.intp)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, exactly 0 where the two differ by rounding only."""
    differences = a - b
    rounding = 10.0**-TIE_DIGITS * np.maximum(np.abs(a), np.abs(b))
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def _ranks(sizes: np.ndarray) -> np.ndarray:
    """Ranks 1, 2, ... of positive numbers, ties averaged."""
    return mean_ranks(np.round(sizes / sizes.max(), TIE_DIGITS))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1, 2, ... of any numbers; equal ones share the mean of theirs."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def _exact_p(ranks: np.ndarray, positive: float) -> float:
    """Two-sided p of the sum of the ranks with a positive sign, each sign a fair coin."""
    doubled = np.rint(2 * ranks).astype(int)  # averaged ranks are halves
    chances = np.zeros(int(doubled.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled:
        chances[rank:] = (chances[rank:] + chances[: len(chances) - rank]) / 2
        chances[:rank] /= 2
    smaller = min(round(2 * positive), int(doubled.sum()) - round(2 * positive))
    return min(1.0, 2 * float(chances[: smaller + 1].sum()))


def _normal_p(ranks: np.ndarray, positive: float) -> float:
    deviation = math.sqrt(float((ranks**2).sum()) / 4)
    return math.erfc(abs(positive - float(ranks.sum()) / 2) / deviation / math.sqrt(2))


def is_significantly_above(
    a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None, parts: Sequence[str], errors: float
) -> bool:
    """Whether a lies above b by more than so many standard errors of `macro_gain`; never where too few cases tell."""
    difference, error = macro_gain(a, b, groups, parts)
    return 0 < errors * error < difference
