"""What is counted in a prediction on the image's own grid: rows of lesions.csv, volumes.csv and cases.csv."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.inference.cases import CaseCounter, CaseSummary, highest_probability
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.guarantees import Promises
from unisegdiff_pipeline.inference.lesions import LesionCounter, PredictedLesion
from unisegdiff_pipeline.inference.restoring import restore_samples
from unisegdiff_pipeline.inference.volumes import ClassVolume, VolumeCounter
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_labels, restore_map

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What is counted in a prediction: lesions, largest first within a class, volumes of the classes, and the case."""

    lesions: tuple[PredictedLesion, ...]
    volumes: tuple[ClassVolume, ...]
    case: CaseSummary


def measure(
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    spacing_known: bool,
    mask: np.ndarray,
    samples: Iterable[np.ndarray],
    promises: Promises | None = None,
) -> Measured:
    """Count lesions and volumes, after those that the prediction's filter does not keep are taken out of the mask.

    Args:
        found: the prediction on the plan's grid.
        properties: the way back from there.
        scheme: what label values mean.
        spacing_known: False marks millimetres as nominal.
        mask: label map (Z, Y, X) on the image's grid; changed in place where lesions are taken out of it.
        samples: label maps of the samples there, taken one at a time.
        promises: what is written because guarantees were asked for.
    """
    volumes, cases = VolumeCounter(scheme), CaseCounter(scheme)

    def counted() -> Iterator[np.ndarray]:
        for sample in samples:
            volumes.add_sample(sample)
            cases.add_sample(sample)
            yield sample

    lesions = find_lesions(found, properties, scheme, spacing_known, mask, counted())
    case_id, geometry = properties.case_id, properties.geometry
    sizes = volumes.rows(
        case_id,
        mask,
        geometry.spacing_mm,
        is_2d=geometry.is_2d,
        spacing_known=spacing_known,
        promises=promises,
    )
    row = cases.row(
        case_id,
        mask,
        highest_probability(found.probabilities, scheme),
        found.case_calibration,
        geometry.spacing_mm,
        is_2d=geometry.is_2d,
        spacing_known=spacing_known,
    )
    return Measured(
        tuple(lesions.rows(case_id, geometry.spacing_mm, is_2d=geometry.is_2d, spacing_known=spacing_known)),
        tuple(sizes),
        replace(row, missing_channels=", ".join(properties.missing_channels)),
    )


def final_mask(
    found: EnsemblePrediction, properties: CaseProperties, scheme: LabelScheme, spacing_known: bool
) -> np.ndarray:
    """The mask of a prediction as a label map (Z, Y, X) on the image's grid, without lesions that its filter takes."""
    mask = restore_labels(found.decided(scheme.coding), properties, scheme, scratch=found.scratch)
    if not found.lesion_filter.keeps_all:
        samples = restore_samples(found, properties, scheme)
        find_lesions(found, properties, scheme, spacing_known, mask, samples)
    return mask


def find_lesions(
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    spacing_known: bool,
    mask: np.ndarray,
    samples: Iterable[np.ndarray],
) -> LesionCounter:
    """The lesions of a mask, from which those that the prediction's filter does not keep are taken, as in `measure`."""
    lesions = LesionCounter(mask, scheme)
    for sample in samples:
        lesions.add_sample(sample)
    for index in lesions.classes_present:
        channel = index + scheme.foreground_offset
        restored = restore_map(found.probabilities[channel : channel + 1], properties, scratch=found.scratch)
        lesions.add_probability(index, restored[0], found.scratch.release)
        found.scratch.release()
    if not found.lesion_filter.keeps_all:
        geometry = properties.geometry
        if void := found.lesion_filter.void_in(units_of(geometry.is_2d, spacing_known).size):
            LOGGER.warning("%s: %s", properties.case_id, void)
        lesions.keep_only(
            found.lesion_filter, mask, geometry.spacing_mm, is_2d=geometry.is_2d, spacing_known=spacing_known
        )
    return lesions
