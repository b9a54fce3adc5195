"""Annotated objects of cases: their radii and numbers, and how many patients have any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.preprocessing.components import ANNOTATED
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.hold_out import HoldOut


def radii_mm(stored: StoredCase, configuration: ConfigurationPlan) -> np.ndarray:
    """Of the objects that annotators drew in a case (N,)."""
    table, spacing_mm = stored.components, configuration.field_spacing_mm(stored.properties.spacing_mm)
    counted = (table.class_index != ANNOTATED) & ((table.row > 0) | (stored.num_rows == 1))
    num_voxels = table.num_voxels[counted].astype(np.float64)
    if stored.image.shape[1] == 1:
        return np.sqrt(num_voxels * np.prod(spacing_mm[1:]) / np.pi)
    return np.cbrt(num_voxels * np.prod(spacing_mm) * 3 / (4 * np.pi))


def numbers_of_objects(held_out: HoldOut) -> dict[str, list[int]]:
    """How many objects of each class the labels of every case trained on hold, of those that hold any."""
    numbers: dict[str, list[int]] = {name: [] for name in held_out.labels.names}
    for case_id in held_out.train_cases:
        table = held_out.data.open(case_id).components
        for index, name in enumerate(held_out.labels.names):
            if number := int(np.count_nonzero((table.row == 0) & (table.class_index == index))):
                numbers[name].append(number)
    return numbers


def num_informative(held_out: HoldOut, cases: Sequence[str]) -> int:
    """Patients (groups) among the cases for whom anything is annotated: an empty case tells nothing of objects."""
    opened = map(held_out.data.open, cases)
    return len({stored.group for stored in opened if len(radii_mm(stored, held_out.configuration))})
