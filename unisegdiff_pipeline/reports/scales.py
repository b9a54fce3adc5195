"""Scales of axes that figures of several reports need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_DECADES = 1.5


def plain_log(axes: Axes, which: Literal["x", "y"], kind: Literal["log", "symlog"] = "log") -> None:
    """A logarithmic scale whose ticks are plain numbers; over few decades there are ticks at 1, 2 and 5.

    Call when all data are drawn.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": kind})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if kind == "log" and low > 0 and math.log10(high / low) < FEW_DECADES:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
