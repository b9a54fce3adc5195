"""The part of a training report that is about the sources of a unified data set: Dice by source, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.page import Cell, Column, Html, Section, Table, figure, table
from unisegdiff_pipeline.reports.scales import fit_unit_interval
from unisegdiff_pipeline.reports.training_log import Entry, dice_by_source, held_out_dice, of_kind, thinned, value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 9.6, 3.4
LEGEND_COLUMNS = 5


def section(entries: Sequence[Entry], validation: Mapping[str, Any] | None, unit_s: float, unit: str) -> Section | None:
    """Dice by source over training and in the final validation; None of an ordinary data set.

    Args:
        entries: of the log.
        validation: summary.json of the final validation, None before it is there.
        unit_s, unit: seconds of a unit of the time axis, and its name.
    """
    scored = [entry for entry in of_kind(entries, "validation") if dice_by_source(entry.get("by_source"))]
    final = (validation or {}).get("by_source")
    if not scored and not dice_by_source(final):
        return None
    body = [_curves(scored, unit_s, unit)] if scored else []
    intro = (
        "The mean over sources counts a small source as much as a large one; by it the best weights are chosen. "
        "Classes that a source does not annotate are not scored there."
    )
    return Section("Sources", [*body, _table(scored, final)], intro)


def _curves(scored: Sequence[Entry], unit_s: float, unit: str) -> Html:
    names = list(dict.fromkeys(name for entry in scored for name in dice_by_source(entry["by_source"])))

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        for phase in dict.fromkeys(entry["phase"] for entry in scored):
            mine = thinned([entry for entry in scored if entry["phase"] == phase])
            times = [value(entry, "seconds") / unit_s for entry in mine]
            first = phase == scored[0]["phase"]
            for index, name in enumerate(names):
                dice = [dice_by_source(entry["by_source"]).get(name, math.nan) for entry in mine]
                # Colours repeat after eight sources; dashes tell those of one colour apart.
                line = ".-" if index < len(figures.SERIES) else ".--"
                axis.plot(times, dice, line, lw=1, color=figures.series_color(index), label=name if first else None)
            macro = [held_out_dice(entry) for entry in mine]
            axis.plot(times, macro, "o-", lw=2, color=figures.INK, label="mean of sources" if first else None)
        fit_unit_interval(axis, [v for entry in scored for v in dice_by_source(entry["by_source"]).values()])
        axis.set(xlabel=f"{unit} of training", ylabel="Dice")
        figures.legend_above(drawn, LEGEND_COLUMNS)

    drawn = figures.draw(paint, "Dice on held-out cases by source", WIDTH_IN, HEIGHT_IN)
    return figure(drawn, "Dice on held-out cases by source; the line breaks between the phases.", wide=True)


def _table(scored: Sequence[Entry], final: Mapping[str, Any] | None) -> Html:
    """Last look at held-out cases and final validation, a row a source."""
    columns = [Column("source", "text")]
    found: list[tuple[Any, str]] = [(entry["by_source"], "held-out") for entry in scored[-1:]]
    parts = [(part, name) for part, name in (*found, (final, "validation")) if dice_by_source(part)]
    for _, name in parts:
        columns += [Column(f"{name} cases"), Column(f"{name} Dice")]
    names = list(dict.fromkeys(name for part, _ in parts for name in dice_by_source(part)))
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name]
        for part, _ in parts:
            counts = {entry["source"]: entry["num_cases"] for entry in part["sources"]}
            row += [counts.get(name), dice_by_source(part).get(name)]
        rows.append(row)
    mean: list[Cell] = ["mean of sources"]
    for part, _ in parts:
        mean += [None, value(part, "macro_mean_dice")]
    return table(Table(columns, [*rows, mean], sortable=False))
