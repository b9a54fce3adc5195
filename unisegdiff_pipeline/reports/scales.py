"""Scales of axes that figures of several reports need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_DECADES = 1.5
LEAST_MARGIN = 0.02


def fit_unit_interval(axes: Axes, values: Iterable[float]) -> None:
    """Let the y axis of values from 0 to 1, such as Dice, hold them with a margin, and nothing beyond 0 and 1."""
    known = [v for v in values if math.isfinite(v)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = max(LEAST_MARGIN, 0.08 * (high - low))
    axes.set_ylim(max(0.0, low - margin), min(1.0, high + margin))


def plain_log(axes: Axes, which: Literal["x", "y"], kind: Literal["log", "symlog"] = "log") -> None:
    """A logarithmic scale whose ticks are plain numbers; over few decades there are ticks at 1, 2 and 5, of
    counts (symlog) at whole numbers.

    Call when all data are drawn.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(**{f"{which}scale": kind})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if kind == "log" and low > 0 and math.log10(high / low) < FEW_DECADES:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if kind == "symlog" and high < 10**FEW_DECADES:  # else the only ticks are 0, 1 and 10
        axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
