"""Lengths of the smooth field of coherent sampling, and the one planned from the annotated objects."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from unisegdiff_pipeline.diffusion.samplers import LENGTH_PER_REACH
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.hold_out import HoldOut, sources_of_cases
from unisegdiff_pipeline.selection.objects import radii_mm

LENGTHS_VOXELS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # of the smooth field of coherent samples, in voxels of the plan
# A shorter field draws pieces of objects; with a longer one all objects that are in doubt come and go together.
RADII_PER_LENGTH = LENGTH_PER_REACH
FALLBACK_LENGTH_VOXELS = 16.0  # where nothing is annotated
MOST_MEASURED_CASES = 200


def planned_length_mm(held_out: HoldOut) -> float:
    """Of the smooth field: what is nearest to RADII_PER_LENGTH median radii of the annotated objects trained on.

    Radii are those of discs or, in volumes, balls of the same size; each annotator's objects count. In a unified data
    set the median radius is the mean of its sources' medians.
    """
    step = -(-len(held_out.train_cases) // MOST_MEASURED_CASES)
    cases = held_out.train_cases[::step]
    opened = [held_out.data.open(case_id) for case_id in cases]
    radii: dict[str, list[np.ndarray]] = {}
    sources = sources_of_cases(held_out.configuration.sources, cases) or ("",) * len(cases)
    for stored, source in zip(opened, sources, strict=True):
        radii.setdefault(source, []).append(radii_mm(stored, held_out.configuration))
    lengths = field_lengths_mm(held_out, opened[0])
    medians = [float(np.median(found)) for own in radii.values() if len(found := np.concatenate(own))]
    if not medians:
        return fallback_length_mm(held_out, opened[0])
    aim = RADII_PER_LENGTH * fmean(medians)
    return min(lengths, key=lambda length: abs(np.log(length / aim)))


def field_lengths_mm(held_out: HoldOut, stored: StoredCase) -> list[float]:
    """LENGTHS_VOXELS on the grid of a case."""
    configuration = held_out.configuration
    spacing_mm = configuration.field_spacing_mm(stored.properties.spacing_mm)[-configuration.network.dims :]
    unit_mm = float(np.prod(spacing_mm)) ** (1 / len(spacing_mm))
    return [rounded_mm(voxels * unit_mm) for voxels in LENGTHS_VOXELS]


def rounded_mm(length_mm: float) -> float:
    """To a thousandth; a length below 1 mm to four digits, since pixels of a microscope have less than a thousandth."""
    return round(length_mm, 3) if length_mm >= 1 else float(f"{length_mm:.4g}")


def fallback_length_mm(held_out: HoldOut, stored: StoredCase) -> float:
    """The length where no object tells one, on the grid of a case."""
    return field_lengths_mm(held_out, stored)[LENGTHS_VOXELS.index(FALLBACK_LENGTH_VOXELS)]
