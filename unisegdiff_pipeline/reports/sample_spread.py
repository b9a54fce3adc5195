"""Do samples spread as the truth does? Two curves for each class, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.spread import (
    LEVELS,
    CaseSpread,
    empty_samples,
    fraction_curve,
    interval_coverage,
    mean_distances,
    spread_ratio,
    volume_bias,
)
from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.page import Column, Section, Table, bullets, figure, grid, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Paint = Callable[[Axes, str, Sequence[CaseSpread], str], None]

SURE = 0.95
TOLERANCE = 0.10  # of coverage; and two standard errors, where cases are few
FEWEST_CASES = 5
WIDTH_IN, HEIGHT_IN = 3.45, 3.0


def section(classes: Mapping[str, Sequence[CaseSpread]], units: Units = VOLUMES) -> Section | None:
    """The section of a page; None without samples."""
    drawn = {name: [c for c in cases if len(c.volumes) > 1] for name, cases in classes.items()}
    drawn = {name: cases for name, cases in drawn.items() if cases}
    if not drawn:
        return None
    size, element = units.size_word, units.element
    curves = grid(
        [
            figure(
                figures.draw(
                    lambda f: _paint(f, drawn, _paint_coverage, "level of the interval", "references held"),
                    f"Coverage of the intervals of sampled {size}s",
                    WIDTH_IN,
                    HEIGHT_IN,
                ),
                f"Intervals of the sampled {size}s, and how many references they hold. Above the line samples are too "
                "wide, below it too narrow.",
            ),
            figure(
                figures.draw(
                    lambda f: _paint(f, drawn, _paint_fractions, "fraction of samples", "marked in truth"),
                    f"How often {element}s are marked in truth by the fraction of samples",
                    WIDTH_IN,
                    HEIGHT_IN,
                ),
                f"{element.capitalize()}s by the fraction of samples that mark them, and how often annotators do.",
            ),
        ],
        min_width_px=310,
    )
    said = [sentence for name, cases in drawn.items() for sentence in in_words(name, cases, units)]
    intro = "Samples are draws of how a mask may look. Where they can be believed, both curves follow the diagonal."
    intro += figures.drawn_note(len(drawn))
    return Section("Spread of the samples", [curves, bullets(said), table(_table(drawn, size))], intro)


def in_words(name: str, cases: Sequence[CaseSpread], units: Units = VOLUMES) -> list[str]:
    """What the curves say; few cases say so."""
    if len(cases) < FEWEST_CASES:
        return [
            f"{name}: {counted(len(cases), 'case')} {is_or_are(len(cases))} too few to judge the spread of the samples."
        ]
    said, size = [], units.size_word
    (half, error), (ninety, _) = interval_coverage(cases, 0.5), interval_coverage(cases, 0.9)
    held = f"the 50% interval of the sampled {size}s holds {half:.0%} of the references, the 90% interval {ninety:.0%}"
    if abs(half - 0.5) <= max(TOLERANCE, 2 * error):
        said.append(f"{name}: samples are about as wide as the truth: {held}.")
    elif half > 0.5:
        said.append(f"{name}: samples are too wide: {held}. Intervals of {size}s are wider than need be.")
    else:
        said.append(f"{name}: samples are too narrow, or off: {held}. Intervals of {size}s hold too little.")
    empty, draws = empty_samples(cases, SURE)
    if empty:
        said.append(f"{name}: {empty} of {draws} samples are empty in cases with a probability over {SURE:.0%}.")
    samples, raters = mean_distances(cases)
    if not math.isnan(raters):
        said.append(f"{name}: two samples differ by {samples:.2f} (1 - IoU), two annotators by {raters:.2f}.")
    return said


def _table(classes: Mapping[str, Sequence[CaseSpread]], size: str) -> Table:
    columns = [
        Column("class", "text"),
        Column("cases"),
        Column("50 % interval holds", digits=2),
        Column("90 % interval holds", digits=2),
        Column("spread / error", digits=2, hint=f"standard deviation of sampled {size}s over that of their error"),
        Column(size, digits=2, hint=f"mean sampled {size} over that of the references"),
    ]
    rows: list[list[Any]] = [
        [
            name,
            len(cases),
            interval_coverage(cases, 0.5)[0],
            interval_coverage(cases, 0.9)[0],
            spread_ratio(cases),
            volume_bias(cases),
        ]
        for name, cases in classes.items()
    ]
    return Table(columns, rows, sortable=False)


def _paint(
    drawn: Figure, classes: Mapping[str, Sequence[CaseSpread]], paint: Paint, x_label: str, y_label: str
) -> None:
    axis = drawn.subplots()
    axis.plot([0, 1], [0, 1], color=figures.MUTED, linewidth=1.0, linestyle=":")
    for index, (name, cases) in enumerate(list(classes.items())[: figures.DRAWN_CLASSES]):
        paint(axis, name, cases, figures.series_color(index))
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if len(classes) > 1:
        figures.legend_above(drawn)


def _paint_coverage(axis: Axes, name: str, cases: Sequence[CaseSpread], color: str) -> None:
    found = [interval_coverage(cases, level) for level in LEVELS]
    axis.plot(LEVELS, [value for value, _ in found], "o-", markersize=4, color=color, label=name)
    low, high = ([value + sign * 2 * error for value, error in found] for sign in (-1, 1))
    axis.fill_between(LEVELS, low, high, color=color, alpha=0.15, linewidth=0)


def _paint_fractions(axis: Axes, name: str, cases: Sequence[CaseSpread], color: str) -> None:
    curve = fraction_curve(cases)
    axis.plot([b.fraction for b in curve], [b.marked for b in curve], "o-", markersize=4, color=color, label=name)
