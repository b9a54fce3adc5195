"""Lesions and volumes of a prediction on the image's own grid, as rows of lesions.csv and volumes.csv."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.lesions import LesionCounter, PredictedLesion
from unisegdiff_pipeline.inference.volumes import ClassVolume, VolumeCounter
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map


@dataclass(frozen=True)
class Measured:
    """What is counted in a prediction: lesions, largest first within a class, and the volume of each class."""

    lesions: tuple[PredictedLesion, ...]
    volumes: tuple[ClassVolume, ...]


def measure(
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    spacing_known: bool,
    mask: np.ndarray,
    samples: Iterable[np.ndarray],
) -> Measured:
    """Count lesions and volumes.

    Args:
        found: the prediction on the plan's grid.
        properties: the way back from there.
        scheme: what label values mean.
        spacing_known: False marks millimetres as nominal.
        mask: label map (Z, Y, X) on the image's grid.
        samples: label maps of the samples there, taken one at a time.
    """
    lesions, volumes = LesionCounter(mask, scheme), VolumeCounter(mask, scheme)
    for sample in samples:
        lesions.add_sample(sample)
        volumes.add_sample(sample)
    for index in lesions.classes_present:
        channel = index + scheme.foreground_offset
        restored = restore_map(found.probabilities[channel : channel + 1], properties, scratch=found.scratch)
        lesions.add_probability(index, restored[0])
        found.scratch.release()
    case_id, geometry = properties.case_id, properties.geometry
    return Measured(
        tuple(lesions.rows(case_id, geometry.spacing_mm, is_2d=geometry.is_2d, spacing_known=spacing_known)),
        tuple(volumes.rows(case_id, geometry.spacing_mm, is_2d=geometry.is_2d, spacing_known=spacing_known)),
    )
