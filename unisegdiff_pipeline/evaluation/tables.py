"""metrics.csv and lesion_scores.csv: one row a case and class, one row a lesion; undefined values are empty cells."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.csv_tables import write_csv
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.case import CaseResult, ClassResult
from unisegdiff_pipeline.evaluation.diversity import DiversityScore
from unisegdiff_pipeline.evaluation.lesions import LesionScore, ScoredLesion
from unisegdiff_pipeline.evaluation.metrics import ClassScore

DIGITS = 9  # significant ones of a number
CALIBRATION_METRICS = ("nll", "brier", "ece", "adaptive_ece")
# Columns that are counts or names, of which a mean says nothing.
NOT_AVERAGED = frozenset(
    ("class_name", "outcome", "tp", "fp", "fn", "tn", "volumes_nominal", "num_samples", "num_raters")
)
LESION_COLUMNS = (
    "case",
    "source",
    "class_name",
    "side",
    "lesion_id",
    "voxels",
    "volume_ml",
    "area_mm2",
    "longest_diameter_mm",
    "centroid_x_mm",
    "centroid_y_mm",
    "centroid_z_mm",
    "matched_id",
    "dice",
    "iou",
    "confidence",
)


def metric_row(result: ClassResult, tolerances_mm: Sequence[float]) -> dict[str, Any]:
    """All values of one class in one case by the name of their column; only those that its files allow."""
    row = _fields(result.overlap)
    row |= {name: getattr(result.boundary, name) for name in ("hd_mm", "hd95_mm", "assd_mm")}
    names = [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances_mm]
    row |= dict(zip(names, result.boundary.surface_dice, strict=True))
    row["surface_dice_rater"] = result.surface_dice_rater
    row |= _fields(result.lesion_score)
    if result.calibration is not None:
        row |= {name: getattr(result.calibration, name) for name in CALIBRATION_METRICS}
    if result.diversity is not None:
        row |= _fields(result.diversity)
    row["case_confidence"] = result.confidence
    return row


def metric_values(result: ClassResult, tolerances_mm: Sequence[float]) -> dict[str, float]:
    """The values that are averaged over cases; NaN where undefined, and for scores that the files do not allow."""
    row = metric_row(result, tolerances_mm)
    names = (*row, *CALIBRATION_METRICS, *_names(DiversityScore))
    return {name: float(row.get(name, math.nan)) for name in names if name not in NOT_AVERAGED}


def metric_names(results: Iterable[ClassResult], tolerances_mm: Sequence[float]) -> list[str]:
    """Columns that are averaged over cases, in the order of the CSV."""
    return [name for name in _columns(list(results), tolerances_mm) if name not in NOT_AVERAGED]


def write_metrics(
    path: Path, cases: Sequence[CaseResult], tolerances_mm: Sequence[float], units: Units = VOLUMES
) -> None:
    """Write metrics.csv atomically; numbers with nine significant digits, columns named by their units.

    Cases of a unified data set have their source in a column of its own.
    """
    columns = _columns([result for case in cases for result in case.classes], tolerances_mm)
    has_sources = have_sources(cases)
    rows = (
        [case.case_id, *[case.source] * has_sources, case.group, *(row.get(column) for column in columns)]
        for case in cases
        for row in (metric_row(result, tolerances_mm) for result in case.classes)
    )
    write_csv(path, ["case", *["source"] * has_sources, "group", *map(units.name, columns)], rows, DIGITS)


def write_lesions(path: Path, cases: Sequence[CaseResult], units: Units = VOLUMES) -> None:
    """Write lesion_scores.csv atomically: the lesions of the reference and of the prediction.

    matched_id is joined by ";"; lesions of 2D images have an area and no volume; sources are those of a unified data
    set.
    """
    left_out = {*(() if have_sources(cases) else ("source",)), *(() if units.size == "ml" else ("volume_ml",))}
    shown = [column not in left_out for column in LESION_COLUMNS]
    rows = (
        list(itertools.compress((case.case_id, case.source, result.overlap.class_name, *_lesion_cells(lesion)), shown))
        for case in cases
        for result in case.classes
        for lesion in result.lesions
    )
    write_csv(path, [units.name(column) for column in itertools.compress(LESION_COLUMNS, shown)], rows, DIGITS)


def have_sources(cases: Sequence[CaseResult]) -> bool:
    """Whether cases are of a unified data set, so that tables have a column for their source."""
    return any(case.source is not None for case in cases)


def _columns(results: Sequence[ClassResult], tolerances_mm: Sequence[float]) -> list[str]:
    """Columns in a fixed order; those of probabilities, samples and raters only where some case has them."""
    columns = [*_names(ClassScore), "hd_mm", "hd95_mm", "assd_mm"]
    columns += [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances_mm]
    if not all(math.isnan(result.surface_dice_rater) for result in results):
        columns.append("surface_dice_rater")
    columns += _names(LesionScore)
    if any(result.calibration is not None for result in results):
        columns += CALIBRATION_METRICS
    if any(result.diversity is not None for result in results):
        columns += _names(DiversityScore)
    if not all(math.isnan(result.confidence) for result in results):
        columns.append("case_confidence")
    return columns


def _lesion_cells(lesion: ScoredLesion) -> list[object]:
    return [
        lesion.side,
        lesion.lesion_id,
        lesion.voxels,
        lesion.volume_ml,
        lesion.area_mm2,
        lesion.longest_diameter_mm,
        *lesion.centroid_mm,
        ";".join(map(str, lesion.matched_ids)),
        lesion.dice,
        lesion.iou,
        lesion.confidence,
    ]


def _fields(score: Any) -> dict[str, Any]:
    return {name: getattr(score, name) for name in _names(type(score))}


def _names(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
