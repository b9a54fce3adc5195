"""Charts of the evaluation report; each takes what summary.json holds and gives markup for `page.figure`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.reports.figures import (
    GRID,
    HALF_HEIGHT_IN,
    HALF_WIDTH_IN,
    INK,
    MUTED,
    NAME_CHARACTERS,
    box_and_points,
    draw,
    legend_above,
    say_nothing_to_show,
    series_color,
    wrapped,
)
from unisegdiff_pipeline.reports.page import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unisegdiff_pipeline.evaluation.aggregate import FailureSummary, FrocSummary, ReliabilitySummary
    from unisegdiff_pipeline.evaluation.run_comparison import RunComparison

FROC_RANGE = (1 / 16, 16)
LIMITS_OF_AGREEMENT = 1.96  # standard deviations on either side of the mean difference (Bland and Altman 1986)
OUTLIERS_FROM = 8.0  # ratio of the largest value to the upper quartile
LOGARITHMIC_FROM = 30.0  # ratio of the largest to the smallest volume


def draw_boxes(
    groups: Mapping[str, Sequence[float]],
    label: str,
    unit_interval: bool,
    alt: str,
    colors: Sequence[str] | None = None,
) -> Html:
    """Box plot of a metric, one box a group.

    The axis goes from 0 to 1 for `unit_interval`; else from 0 up, logarithmic above the upper quartile where single
    values lie so far out that nothing else could be seen.
    """
    defined = [v for values in groups.values() for v in values if not math.isnan(v)]
    quartile = float(np.quantile(defined, 0.75)) if defined else 1.0

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        box_and_points(axis, groups, colors)
        axis.set_ylabel(label)
        if unit_interval:
            axis.set_ylim(-0.03, 1.03)
        else:
            if defined and max(defined) > OUTLIERS_FROM * quartile > 0:
                axis.set_yscale("symlog", linthresh=quartile)
                axis.yaxis.set_major_formatter("{x:g}")
                axis.set_ylabel(f"{label} (logarithmic from {quartile:.2g})")
            axis.set_ylim(bottom=0)

    return draw(paint, alt, *_size(len(groups)))


def draw_bland_altman(
    reference_ml: Sequence[float], predicted_ml: Sequence[float], unit: str, color: str, word: str = "volume"
) -> Html:
    """Difference of two sizes, called by `word`, over their mean, with the mean difference and limits of agreement."""
    a, b = np.asarray(reference_ml, float), np.asarray(predicted_ml, float)
    mean, difference = (a + b) / 2, b - a
    bias, low, high = limits_of_agreement(reference_ml, predicted_ml)

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        if not len(mean):
            say_nothing_to_show(axis, f"no case with a {word}")
            return
        axis.axhline(0, color=MUTED, linewidth=0.8)
        axis.scatter(mean, difference, s=14, color=color, alpha=0.7, linewidths=0, zorder=3)
        for value, style in ((bias, "-"), (low, "--"), (high, "--")):
            if not math.isnan(value):
                axis.axhline(value, color=INK, linewidth=1, linestyle=style)
                axis.annotate(
                    signed(value),
                    (1, value),
                    xycoords=("axes fraction", "data"),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        positive = mean[mean > 0]
        if len(positive) == len(mean) and positive.max() > LOGARITHMIC_FROM * positive.min():
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel=f"mean of both {word}s, {unit}", ylabel=f"predicted \N{MINUS SIGN} reference, {unit}")

    return draw(paint, f"Bland-Altman plot of {len(mean)} {word}s; mean difference {bias:.3g} {unit}")


def signed(value: float) -> str:
    """A difference with its sign and three significant digits."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def limits_of_agreement(reference: Sequence[float], predicted: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference (predicted minus reference) and the limits that hold 95 % of normal differences.

    NaN without a value; limits are NaN with fewer than two.
    """
    difference = np.asarray(predicted, float) - np.asarray(reference, float)
    if not len(difference):
        return math.nan, math.nan, math.nan
    bias = float(difference.mean())
    spread = LIMITS_OF_AGREEMENT * float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    return bias, bias - spread, bias + spread


def draw_froc(curves: Mapping[str, FrocSummary]) -> Html:
    """Lesion sensitivity over false positives a case, a line a class; dots are where the mean is taken."""

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for index, (name, curve) in enumerate(curves.items()):
            color = series_color(index)
            x, y = _with_origin(curve)
            rates = np.geomspace(*FROC_RANGE, 200)
            reached = rates <= max(x[-1], FROC_RANGE[0])
            values = np.interp(rates, x, y)
            axis.plot(rates[reached], values[reached], color=color, label=f"{name} ({curve.mean_sensitivity:.3f})")
            axis.plot(rates[~reached], values[~reached], color=color, linewidth=1, linestyle=(0, (1, 2)))
            axis.plot(curve.rates, curve.sensitivity_at_rates, "o", color=color)
        ticks = [2.0**k for k in range(-3, 4)]
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axis.minorticks_off()
        axis.set(xlabel="false positives a case", ylabel="lesion sensitivity", xlim=FROC_RANGE, ylim=(-0.03, 1.03))
        legend_above(figure)

    return draw(paint, f"FROC curves of {', '.join(curves)}")


def _with_origin(curve: FrocSummary) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve with (0, 0) before them; of points at the same place the highest."""
    x, y = np.array([0.0, *curve.false_positives_per_case]), np.array([0.0, *curve.sensitivity])
    last = np.append(np.diff(x) > 0, True)
    return x[last], y[last]


def draw_reliability(
    curves: Mapping[str, ReliabilitySummary], label: str = "fraction with the class", element: str = "voxel"
) -> Html:
    """Fraction of voxels (`Units.element`) that hold the class over the predicted probability, and their number."""

    def paint(figure: Figure) -> None:
        axis, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        axis.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle="--")
        for index, (name, curve) in enumerate(curves.items()):
            bins = [b for b in curve.bins if b.count > 0]
            color, shown = series_color(index), f"{name} (ECE {curve.ece:.3f})"
            axis.plot([b.mean_confidence for b in bins], [b.frequency for b in bins], "o-", color=color, label=shown)
            edges = np.linspace(0, 1, len(curve.bins) + 1)
            counts.stairs([max(b.count, 0.5) for b in curve.bins], edges, color=color, linewidth=1.2)
        axis.set(ylabel=label, ylim=(-0.03, 1.03), xlim=(-0.02, 1.02))
        legend_above(figure)
        counts.set(xlabel="predicted probability", ylabel=f"{element}s", yscale="log")

    return draw(paint, f"reliability curves of {', '.join(curves)}", HALF_WIDTH_IN, HALF_HEIGHT_IN + 0.7)


def draw_risk_coverage(curves: Mapping[str, FailureSummary]) -> Html:
    """Mean risk of the most confident cases over the fraction of cases that they are."""

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for index, (name, curve) in enumerate(curves.items()):
            if curve.n < 2:  # its colour is left out, too
                continue
            label = f"{name} (AURC {curve.aurc:.3f})"
            axis.plot(curve.coverage, curve.risk, color=series_color(index), label=label)
        axis.set(
            xlabel="fraction of cases kept, most confident first",
            ylabel="mean 1 \N{MINUS SIGN} Dice of them",
            xlim=(0, 1.02),
        )
        axis.set_ylim(bottom=0)
        legend_above(figure)

    return draw(paint, f"risk-coverage curves of {', '.join(curves)}")


def draw_rank_histogram(counts: Sequence[int], color: str) -> Html:
    """How many samples are smaller than the reference, over cases; the band holds 95 % of chance."""
    from matplotlib.ticker import MaxNLocator

    expected = sum(counts) / len(counts)
    band = LIMITS_OF_AGREEMENT * math.sqrt(expected * (1 - 1 / len(counts)))

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axhspan(max(expected - band, 0), expected + band, color=GRID, alpha=0.6, linewidth=0)
        axis.axhline(expected, color=MUTED, linewidth=0.9, linestyle="--")
        axis.bar(range(len(counts)), counts, color=color, width=0.8, alpha=0.8)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="samples smaller than the reference", ylabel="cases")
        axis.set_xticks(range(0, len(counts), 1 + len(counts) // 12))
        axis.grid(axis="x", visible=False)

    return draw(paint, f"rank histogram of {sum(counts)} cases")


def draw_differences(runs: Sequence[RunComparison]) -> Html:
    """Mean paired difference in Dice of the scored run from each other run with its interval, a row a class."""
    rows = [(run.name, row) for run in runs for row in run.classes if row.metric == "dice"]
    several = len({row.class_name for _, row in rows}) > 1

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        axis.axvline(0, color=MUTED, linewidth=0.9)
        for place, (_, row) in enumerate(rows):
            axis.plot([row.ci_low, row.ci_high], [place, place], color=series_color(0), linewidth=2.2)
            axis.plot(row.mean_difference, place, "o", color=series_color(0), markersize=6)
        names = [f"{name}: {row.class_name}" if several else name for name, row in rows]
        axis.set_yticks(range(len(rows)), wrapped(names, 2 * NAME_CHARACTERS))
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel="Dice: scored run minus the other")
        axis.grid(axis="y", visible=False)

    return draw(paint, "differences in Dice", 7.0, 1.0 + 0.28 * len(rows))


def _size(groups: int) -> tuple[float, float]:
    return max(HALF_WIDTH_IN, 0.9 * groups + 0.7), HALF_HEIGHT_IN
