"""The section of the evaluation report that holds scores by the rules of challenges."""

from __future__ import annotations

from collections.abc import Sequence

from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.evaluation.profiles.registry import find_profile
from unisegdiff_pipeline.evaluation.profiles.report import ClassProfile, ProfileReport, profile_file
from unisegdiff_pipeline.reports.evaluation_tables import interval_text
from unisegdiff_pipeline.reports.page import (
    UNDEFINED,
    Cell,
    Column,
    Html,
    Section,
    Shown,
    Table,
    format_number,
    notice,
    paragraph,
    subsection,
    table,
)

_COLUMNS = (
    Column("Score", "text"),
    Column("Mean"),
    Column("Interval", "text"),
    Column("Median"),
    Column("n", hint="cases where it is defined"),
    Column("Meaning", "text"),
)


def profile_section(profiles: Sequence[ProfileReport], units: Units) -> Section | None:
    """One part a profile, with its rule and where it is published; None without profiles."""
    if not profiles:
        return None
    intro = "The same masks by the published rules of challenges. Names alike may mean different things elsewhere."
    return Section("As challenges score", [_part(profile, units) for profile in profiles], intro)


def _part(profile: ProfileReport, units: Units) -> Html:
    body = [
        paragraph(profile.rule),
        paragraph(f"Source: {profile.source}. By case: {profile_file(profile.name)}.", True),
    ]
    for entry in profile.classes:
        body += [notice(note) for note in entry.notes]
        caption = f"{profile.name}: {entry.class_name}"
        if entry.pooled:
            rows: list[list[Cell]] = [[units.name(name), value] for name, value in entry.pooled.items()]
            columns = (Column("Over all cases", "text"), Column("Value"))
            body.append(table(Table(columns, rows, f"{caption}, lesions and voxels of all cases together", False)))
        body.append(table(Table(_COLUMNS, _rows(profile.name, entry, units), f"{caption}, means over cases", False)))
    return subsection(profile.title, body)


def _rows(name: str, entry: ClassProfile, units: Units) -> list[list[Cell]]:
    profile = find_profile(name)
    rows: list[list[Cell]] = []
    for column, summary in entry.over_cases.items():
        digits = 1 if column.startswith("num_") or column.endswith("_voxels") else 3  # one for means of counts
        interval = interval_text(summary, digits) or UNDEFINED
        rows.append(
            [
                units.name(column),
                Shown(format_number(summary.mean, digits), summary.mean),
                Shown(interval, summary.ci_low),
                Shown(format_number(summary.median, digits), summary.median),
                summary.n,
                profile.meaning(column, units),
            ]
        )
    return rows
