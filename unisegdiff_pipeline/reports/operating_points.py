"""The trade that other lesion filters offer, found lesions against false ones, as a figure and a table of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.page import Column, Html, Table, details, figure, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 6.4, 3.6
CAPTION = (
    "What other lesion filters give on the held-out cases: lesions found against false positives; the line joins those "
    "that no other filter beats. usd_predict --utility sensitivity=0.9 or fp_per_case=0.5 takes the point that "
    "serves best, --no-filter keeps all lesions."
)


def operating_points(chosen: Mapping[str, Any]) -> list[Html]:
    """Curve and table of the operating points in an inference.json; nothing where it holds none."""
    points = {name: own for name, own in (chosen.get("operating_points") or {}).items() if own}
    if not points:
        return []
    unit = str((chosen.get("lesion_filter") or {}).get("unit", "ml")).replace("2", "\N{SUPERSCRIPT TWO}")
    columns = [Column("class", "text"), Column("confidence", digits=2), Column("probability", digits=2)]
    columns += [Column(f"size, {unit}", digits=3), Column("lesions"), Column("sensitivity", digits=3)]
    columns += [Column("false positives a case", digits=2), Column("of a lesion-free case", digits=2)]
    columns += [Column("lesion F1", digits=3), Column("Dice", digits=3)]
    rows = [[name, *_cells(point)] for name, own in points.items() for point in own]
    drawn = figures.draw(
        lambda empty: _paint(empty, points), f"operating points of {', '.join(points)}", WIDTH_IN, HEIGHT_IN
    )
    title = f"All {len(rows)} operating points: the least confidence, probability and size that a lesion must have"
    return [figure(drawn, CAPTION + figures.drawn_note(len(points))), details(title, [table(Table(columns, rows))])]


def _cells(point: Mapping[str, Any]) -> list[float | None]:
    rule = point.get("rule", {})
    least = [rule.get(name) for name in ("min_confidence", "min_probability", "min_size", "max_lesions")]
    return least + [point.get(name) for name in ("sensitivity", "fp_per_case", "false_alarms", "lesion_f1", "dice")]


def best_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (false positives, sensitivity) those that no other one beats in either without losing in the other."""
    best: list[tuple[float, float]] = []
    for fp, sensitivity in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or sensitivity > best[-1][1]:
            best.append((fp, sensitivity))
    return best


def _paint(drawn: Figure, points: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    axis = drawn.subplots()
    for index, (name, own) in enumerate(list(points.items())[: figures.DRAWN_CLASSES]):
        color = figures.series_color(index)
        each = [(float(point["fp_per_case"]), float(point["sensitivity"])) for point in own]
        axis.plot(*zip(*each, strict=True), "o", color=color, alpha=0.35, markersize=4)
        axis.plot(*zip(*best_points(each), strict=True), "o-", color=color, label=name, drawstyle="steps-post")
    axis.set(xlabel="false positives a case", ylabel="lesion sensitivity", ylim=(-0.03, 1.03))
    axis.set_xlim(left=-0.01)
    figures.legend_above(drawn)
