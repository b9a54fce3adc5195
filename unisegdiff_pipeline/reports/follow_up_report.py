"""The report of two time points: lesions by status with their probabilities, and both masks over the images."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume, on_grid_of
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.evaluation.follow_up import STATUSES, ClassChange, Interval, LesionChange, percent
from unisegdiff_pipeline.evaluation.follow_up_folders import FollowUp, PatientChange, rules_in_words
from unisegdiff_pipeline.evaluation.unified import in_scored_values
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.reports.case_gallery import find_images
from unisegdiff_pipeline.reports.case_pictures import (
    PREDICTION_COLOR,
    REFERENCE_COLOR,
    Marks,
    Outline,
    Plane,
    Region,
    choose_plane,
    draw_panel,
    region_of_interest,
    window,
)
from unisegdiff_pipeline.reports.metric_names import size_digits
from unisegdiff_pipeline.reports.page import (
    UNDEFINED,
    Cell,
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
    Shown,
    Table,
    facts,
    format_number,
    key_figures,
    legend,
    notice,
    panels,
    paragraph,
    subsection,
    table,
    write_page,
)

REPORT_NAME = "follow_up.html"
DRAWN_PATIENTS = 12
BASELINE_COLOR, FOLLOW_UP_COLOR = REFERENCE_COLOR, PREDICTION_COLOR


def write_follow_up_report(folder: Path, result: FollowUp) -> Path:
    """Write follow_up.html; returns its path.

    Images are looked for beside the masks (imagesTr for labelsTr); without them the outlines stand on black.

    Raises:
        UsdError: a file cannot be read or written.
    """
    page = Page(
        title="Follow-up of lesions",
        subtitle=f"Baseline in {result.baseline}, follow-up in {result.follow_up}",
        lead=_lead(result),
        sections=[_patients(result), _pictures(result), _lesions(result), _settings(result)],
        footer=f"Written by unisegdiff_pipeline {__version__}. All numbers: follow_up.csv and follow_up.json here.",
    )
    return write_page(folder / REPORT_NAME, page)


def _lead(result: FollowUp) -> list[Html]:
    totals = dict.fromkeys(STATUSES, 0)
    for name in result.classes:
        for status, count in result.counts(name).items():
            totals[status] += count
    both = totals["growing"] + totals["shrinking"] + totals["stable"]
    figures = [KeyFigure("Matched lesions", str(both), "at both time points")]
    figures += [KeyFigure(status.capitalize(), str(totals[status])) for status in STATUSES]
    parts = [key_figures(figures)]
    if result.units.nominal:
        parts.append(notice("Volumes and distances are nominal: the voxel size is not known.", "warning"))
    elif result.units.length == "pixels":
        parts.append(notice("Areas and distances are in pixels: the pixel size is not known."))
    if result.not_paired:
        parts.append(notice(f"{len(result.not_paired)} case(s) without a partner are left out."))
    return parts


def _patients(result: FollowUp) -> Section:
    unit, digits = result.units.size_text, _digits(result)
    columns = [
        Column("Patient", "text"),
        *_class_column(result),
        Column(f"Baseline {unit}", digits=digits),
        Column(f"Follow-up {unit}", digits=digits),
        Column("Change %", digits=0),
        Column(f"Change {unit}, 90 %", "text", hint="of all lesions together, over pairs of samples"),
        *(Column(status.capitalize()) for status in STATUSES),
    ]
    rows: list[list[Cell]] = [
        [
            patient.files.case_id,
            *[entry.class_name] * len(_class_column(result)),
            entry.baseline_ml,
            entry.follow_up_ml,
            percent(entry.baseline_ml, entry.follow_up_ml),
            _interval(entry.change_ml, digits),
            *entry.counts.values(),
        ]
        for patient in result.patients
        for entry in patient.classes
    ]
    shown = table(Table(columns, rows, "All patients", searchable=len(rows) > 10))
    return Section("Patients", [shown], "Sizes of all lesions of a patient, and lesions by status.")


def _lesions(result: FollowUp) -> Section:
    unit, digits = result.units.size_text, _digits(result)
    columns = [
        Column("Patient", "text"),
        *_class_column(result),
        Column("Lesion"),
        Column("Status", "text"),
        Column("Probability", digits=2, hint="fraction of the pairs of samples with this status"),
        Column(f"Baseline {unit}", digits=digits),
        Column(f"Follow-up {unit}", digits=digits),
        Column("Change %", digits=0),
        Column(f"Change {unit}, 90 %", "text"),
        Column(f"Diameter {result.units.length}", "text", hint="longest, baseline and follow-up; parts are summed"),
        Column("Parts", "text", hint="components at baseline and at follow-up"),
        Column("Otherwise", "text", hint="other statuses with at least 5 % of the pairs"),
    ]
    rows = [
        _lesion_row(patient, [entry.class_name] * len(_class_column(result)), lesion, digits)
        for patient in result.patients
        for entry in patient.classes
        for lesion in entry.lesions
    ]
    shown = table(Table(columns, rows, "All lesions", searchable=len(rows) > 10))
    intro = "A lesion that merges or breaks up is one row. What only samples show is no row."
    return Section("Lesions", [shown], intro)


def _class_column(result: FollowUp) -> list[Column]:
    """The column of classes, where there are several."""
    return [Column("Class", "text")] if len(result.classes) > 1 else []


def _lesion_row(patient: PatientChange, class_cells: Sequence[str], lesion: LesionChange, digits: int) -> list[Cell]:
    chances = lesion.probability or {}
    others = sorted(((p, s) for s, p in chances.items() if s != lesion.status and p >= 0.05), reverse=True)
    return [
        patient.files.case_id,
        *class_cells,
        lesion.lesion_id,
        lesion.status,
        chances.get(lesion.status),
        lesion.baseline_ml,
        lesion.follow_up_ml,
        lesion.change_percent,
        _interval(lesion.change_ml, digits),
        f"{lesion.baseline_diameter_mm:.1f} to {lesion.follow_up_diameter_mm:.1f}",
        f"{len(lesion.baseline_ids)} to {len(lesion.follow_up_ids)}",
        ", ".join(f"{status} {chance:.2f}" for chance, status in others),
    ]


def _digits(result: FollowUp) -> int:
    """Decimals of sizes that the median lesion needs."""
    lesions = [lesion for patient in result.patients for entry in patient.classes for lesion in entry.lesions]
    sizes = [size for lesion in lesions for size in (lesion.baseline_ml, lesion.follow_up_ml) if size > 0]
    return size_digits(statistics.median(sizes) if sizes else math.nan, result.units)


def _interval(interval: Interval, digits: int) -> Shown:
    if math.isnan(interval.low):
        return Shown(UNDEFINED, None)
    return Shown(f"{format_number(interval.low, digits)} to {format_number(interval.high, digits)}", interval.low)


# ----------------------------------------------------------------------------------------------------------- pictures


def _pictures(result: FollowUp) -> Section:
    ranked = sorted(result.patients, key=lambda patient: (-_unrest(patient), patient.files.case_id))
    shown = ranked[:DRAWN_PATIENTS]
    images = [
        find_images(folder, [_name(path) for path in paths])
        for folder, paths in (
            (result.baseline, [patient.files.baseline for patient in shown]),
            (result.follow_up, [patient.files.follow_up for patient in shown]),
        )
    ]
    parts = []
    for patient in shown:
        files = patient.files
        channels = [
            found.get(_name(path), ()) for found, path in zip(images, (files.baseline, files.follow_up), strict=True)
        ]
        parts.append(_picture(patient, channels, result))
    colors = legend({"baseline": BASELINE_COLOR, "follow-up": FOLLOW_UP_COLOR})
    intro = "The slice in which the two masks differ most; where they are equal, that with the largest area."
    if len(ranked) > len(shown):
        intro = f"The {len(shown)} of {len(ranked)} patients with the most changes. {intro}"
    return Section("Both time points in pictures", [colors, *parts], intro)


def _unrest(patient: PatientChange) -> int:
    """Lesions that are not stable."""
    return sum(lesion.status != "stable" for entry in patient.classes for lesion in entry.lesions)


def _name(path: Path) -> str:
    from unisegdiff_pipeline.io.images import split_ending

    return split_ending(path.name)[0]


def _picture(patient: PatientChange, channels: Sequence[Sequence[Path]], result: FollowUp) -> Html:
    files = patient.files
    before = in_scored_values(read_labels(files.baseline), result.source)
    after = on_grid_of(read_labels(files.follow_up), before)
    values = sorted({value for members in result.classes.values() for value in members})
    masks = [np.isin(volume.array[0], values) for volume in (before, after)]
    plane = choose_plane([masks[0] ^ masks[1], masks[0] | masks[1]], before.geometry, result.spacing_known)
    cut = [plane.cut(mask) for mask in masks]
    region = region_of_interest(cut, plane.pixel_mm)
    backgrounds = [_background(paths, before, plane) for paths in channels]
    lines = [Outline(cut[0], BASELINE_COLOR), Outline(cut[1], FOLLOW_UP_COLOR)]
    # The wider line beneath stays visible where both agree.
    both = [Outline(cut[0], BASELINE_COLOR, 2.8), Outline(cut[1], FOLLOW_UP_COLOR, 1.3)]
    pictures = [
        (_panel(backgrounds[0], plane, region, f"{files.case_id}: baseline", lines[:1]), "Baseline"),
        (_panel(backgrounds[1], plane, region, f"{files.case_id}: follow-up", lines[1:]), "Follow-up"),
        (_panel(backgrounds[1], plane, region, f"{files.case_id}: both masks at follow-up", both), "Both"),
    ]
    text = "; ".join(_in_words(entry, len(patient.classes) > 1, result.units) for entry in patient.classes)
    return subsection(files.case_id, [paragraph(f"{text}.", quiet=True), panels(pictures)])


def _background(paths: Sequence[Path], grid: Volume, plane: Plane) -> np.ndarray:
    """The slice of an image for display; black where it is missing, unreadable or on another grid."""
    blank = np.zeros(plane.cut(grid.array[0]).shape, np.uint8)
    if not paths:
        return blank
    try:
        array = on_grid_of(read_image(paths), grid).array
    except UsdError:
        return blank
    if array.shape[1:] != grid.array.shape[1:]:
        return blank
    return window(plane.cut(array), grid.geometry.is_2d)


def _panel(background: np.ndarray, plane: Plane, region: Region | None, alt: str, outlines: Sequence[Outline]) -> Html:
    note = "" if any(outline.mask.any() for outline in outlines) else "empty"
    marks = Marks(outlines, letters=plane.letters, note=note)
    return draw_panel(background, plane.pixel_mm, alt, marks, region=region)


def _in_words(entry: ClassChange, with_name: bool, units: Units) -> str:
    counts = ", ".join(f"{count} {status}" for status, count in entry.counts.items() if count)
    sizes = f"{units.size_shown(entry.baseline_ml)} to {units.size_shown(entry.follow_up_ml)}"
    return f"{entry.class_name + ': ' if with_name else ''}{sizes}, {counts or 'no lesion'}"


def _settings(result: FollowUp) -> Section:
    known = result.num_with_samples
    items = {
        "Rule": rules_in_words(result),
        "Classes": ", ".join(f"{name} ({', '.join(map(str, values))})" for name, values in result.classes.items()),
        "Samples": f"{known} of {len(result.patients)} patients have them at both time points",
        "Thresholds": "volume: van Klaveren et al. 2009, NEJM 361:2221; diameter: RECIST 1.1, Eisenhauer et al. 2009, "
        "European Journal of Cancer 45:228",
    }
    return Section("Settings", [facts(items)])
