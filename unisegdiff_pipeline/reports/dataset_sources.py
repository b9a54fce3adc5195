"""The part of a data set report that is about the sources of a unified data set: their cases, images and channels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.units import Units, units_of
from unisegdiff_pipeline.fingerprint import Fingerprint
from unisegdiff_pipeline.planning.plans import Plans, SourcePlan
from unisegdiff_pipeline.reports import figures
from unisegdiff_pipeline.reports.dataset_figures import size_scale
from unisegdiff_pipeline.reports.kept_figures import KeptFigures
from unisegdiff_pipeline.reports.page import Cell, Column, Html, Section, Shown, Table, figure, table
from unisegdiff_pipeline.reports.scales import plain_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unisegdiff_pipeline.io.raw_dataset import RawDataset


def section(fingerprint: Fingerprint, plans: Plans | None, raw: RawDataset | None, kept: KeptFigures) -> Section | None:
    """Sources of a unified data set; None of any other."""
    if not fingerprint.sources:
        return None
    cases = figure(kept.draw(_cases, "", fingerprint), "Cases of each source, on a logarithmic scale.")
    body = [cases, table(_images_table(fingerprint, plans, raw)), table(_channels_table(fingerprint, plans))]
    intro = "Each source is preprocessed by a plan of its own. Sizes are medians over its cases."
    return Section("Sources", body, intro)


def _cases(fingerprint: Fingerprint) -> Html:
    names = list(fingerprint.sources)
    empty = [sum(case.empty for case in facts.cases) for facts in fingerprint.sources.values()]
    full = [len(facts.cases) for facts in fingerprint.sources.values()]
    places = np.arange(len(names))

    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        for offset, values, label in ((-0.19, full, "cases"), (0.19, empty, "of them without foreground")):
            bars = axis.barh(places + offset, np.maximum(values, 0.5), 0.36, label=label)
            axis.bar_label(bars, list(map(str, values)), padding=3, fontsize=8)
        axis.set(xlim=(0.5, 2.5 * max(full)), yticks=places, xlabel="cases")
        axis.set_yticklabels(figures.wrapped(names, figures.NAME_CHARACTERS))
        plain_log(axis, "x")
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        figures.legend_above(drawn)

    return figures.draw(paint, "Cases of each source", height_in=1.1 + 0.42 * len(names))


def _images_table(fingerprint: Fingerprint, plans: Plans | None, raw: RawDataset | None) -> Table:
    columns = [
        Column("source", "text"),
        *([Column("modality", "text")] if plans is not None else []),
        Column("cases"),
        Column("without foreground"),
        Column("images", "text"),
        Column("shape"),
        Column("voxel mm"),
        Column("largest component", hint="median over the cases with foreground; 10 to 90 %"),
        *([Column("target spacing", "text", hint="of each configuration that takes the source")] if plans else []),
    ]
    rows = []
    for name, facts in fingerprint.sources.items():
        units, planned = units_of(facts.is_2d, _knows_spacing(name, plans, raw)), _planned(name, plans)
        row: list[Cell] = [name, *([planned[0][1].modality if planned else ""] if plans is not None else [])]
        row += [len(facts.cases), sum(case.empty for case in facts.cases), "2D" if facts.is_2d else "3D"]
        row += [_medians(facts, [c.shape for c in facts.cases], ".0f"), _spacing(facts, units), _sizes(facts, units)]
        if plans is not None:
            row.append("; ".join(f"{key}: {_target(plan)}" for key, plan in planned) or "left out")
        rows.append(row)
    return Table(columns, rows, "Images of each source")


def _channels_table(fingerprint: Fingerprint, plans: Plans | None) -> Table:
    columns = [
        Column("source", "text"),
        Column("channel", "text"),
        *(Column(title, digits=2) for title in ("mean", "std", "0.5 %", "median", "99.5 %")),
        *([Column("normalisation", "text")] if plans is not None else []),
    ]
    rows = []
    for name, facts in fingerprint.sources.items():
        planned = _planned(name, plans)
        for index, (channel, s) in enumerate(zip(facts.channel_names, facts.intensities, strict=True)):
            values = (s.mean, s.std, s.percentile_00_5, s.median, s.percentile_99_5)
            row: list[Cell] = [name, channel]
            row += [Shown(f"{value:.4g}".replace("-", "\N{MINUS SIGN}"), value) for value in values]
            if plans is not None:
                row.append(planned[0][1].preprocessing.normalization[index] if planned else "")
            rows.append(row)
    return Table(columns, rows, "Channels of each source, inside the foreground")


def _planned(name: str, plans: Plans | None) -> list[tuple[str, SourcePlan]]:
    """The configurations that take a source, and how they do."""
    configurations = {} if plans is None else plans.configurations
    return [(key, c.sources.plans[name]) for key, c in configurations.items() if c.sources and name in c.sources.plans]


def _knows_spacing(name: str, plans: Plans | None, raw: RawDataset | None) -> bool:
    if raw is not None and name in raw.source_descriptions:
        return raw.source_descriptions[name].spacing_known
    return all(plan.spacing_known for _, plan in _planned(name, plans))


def _medians(facts: Fingerprint, values: Sequence[Sequence[float]], form: str) -> Cell:
    medians = [statistics.median(axis) for axis in zip(*values, strict=True)][1 if facts.is_2d else 0 :]
    return Shown(_times(f"{m:{form}}" for m in medians), float(np.prod(medians)))


def _spacing(facts: Fingerprint, units: Units) -> Cell:
    if units.length == "pixels" or units.nominal:
        return "unknown"
    return _medians(facts, [case.spacing_mm for case in facts.cases], ".3g")


def _sizes(facts: Fingerprint, units: Units) -> Cell:
    """Median of each case's largest component, and the 10th and 90th percentile."""
    largest = [max((v for c in case.classes for v in c.volumes_mm3[:1]), default=0.0) for case in facts.cases]
    scale = size_scale(facts, units)
    found = [value * scale for value in largest if value > 0]
    if not found:
        return None
    low, median, high = np.quantile(found, (0.1, 0.5, 0.9)).tolist()
    nominal = ", nominal" if units.nominal else ""
    return Shown(f"{_plain(median)} {units.size_text} ({_plain(low)} to {_plain(high)}{nominal})", median)


def _plain(value: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _target(plan: SourcePlan) -> str:
    kept = [s for s in plan.preprocessing.target_spacing_mm if s is not None]
    return _times(f"{s:.3g}" for s in kept) + ("" if plan.spacing_known else " of the files")


def _times(values: Iterable[str]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(values)
