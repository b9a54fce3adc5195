"""The table of cases: how likely a case holds any lesion, how many and how large in all, with intervals over samples.

A lesion is here a connected component of the foreground, whatever its classes. The probability is the fraction of the
samples that hold any voxel of foreground; where training had enough held-out cases with and without lesion, it is
calibrated instead: a logistic function (Platt 1999) of the highest foreground probability of the case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.bounds import Count, Finite, NotNegative
from unisegdiff_pipeline.core.components import connect_runs, find_runs_in, slabs
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import size_of_voxel, units_of
from unisegdiff_pipeline.inference.volumes import TAILS
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows

FLOOR = 1e-4  # of a probability, before its log-odds are taken


@dataclass(frozen=True)
class PresenceCalibration:
    """Probability of any lesion = 1 / (1 + exp(-(intercept + slope * log-odds of the highest probability))).

    Attributes:
        num_with, num_without: held-out cases that it was fitted to.
    """

    intercept: Finite
    slope: NotNegative
    num_with: Count
    num_without: Count

    def probability(self, highest: float) -> float:
        """Of any lesion in a case whose highest foreground probability this is."""
        return 1 / (1 + math.exp(-min(max(self.intercept + self.slope * log_odds(highest), -30.0), 30.0)))


@dataclass(frozen=True)
class CaseSummary:
    """A row of cases.csv; intervals are the central 90 % over the samples, as in volumes.csv.

    Attributes:
        probability: of any lesion; without samples or calibration the highest foreground probability.
        calibrated: whether it was calibrated on held-out cases.
        highest_probability: of foreground in any voxel.
        num_lesions: of the mask.
        expected_number, number_05, number_95: lesions over the samples; None where there are too few samples.
        unit: of volumes; see `ClassVolume`.
        volume: of the mask.
        expected_volume, volume_05, volume_95: over the samples.
        missing_channels: names of those that the image lacked.
    """

    case: str
    probability: float
    calibrated: bool
    highest_probability: float
    num_samples: int
    num_lesions: int
    expected_number: float | None
    number_05: float | None
    number_95: float | None
    unit: Literal["ml", "mm2", "pixels2"]
    spacing_known: bool
    volume: float
    expected_volume: float | None
    volume_05: float | None
    volume_95: float | None
    missing_channels: str = ""


class CaseCounter:
    """Counts lesions and voxels of foreground in sampled masks, shown one at a time."""

    def __init__(self, scheme: LabelScheme) -> None:
        self._scheme = scheme
        self._lesions: list[int] = []
        self._voxels: list[int] = []

    def add_sample(self, labels: np.ndarray) -> None:
        """Count the label map (Z, Y, X) of one sample."""
        lesions, voxels = self._count(labels)
        self._lesions.append(lesions)
        self._voxels.append(voxels)

    def row(
        self,
        case: str,
        mask: np.ndarray,
        highest_probability: float,
        calibration: PresenceCalibration | None,
        spacing_mm: tuple[float, float, float],
        *,
        is_2d: bool = False,
        spacing_known: bool = True,
    ) -> CaseSummary:
        """The case's row; `mask` is its label map (Z, Y, X), of voxels of this spacing (Z, Y, X)."""
        units = units_of(is_2d, spacing_known)
        per_voxel = size_of_voxel(spacing_mm, units)
        lesions, voxels = self._count(mask)
        probability = highest_probability
        if calibration is not None:
            probability = calibration.probability(highest_probability)
        elif self._lesions:
            probability = float(np.mean(np.asarray(self._lesions) > 0))
        expected_number, number_05, number_95 = _spread(np.asarray(self._lesions, float))
        expected_volume, volume_05, volume_95 = _spread(np.asarray(self._voxels) * per_voxel)
        return CaseSummary(
            case=case,
            probability=probability,
            calibrated=calibration is not None,
            highest_probability=highest_probability,
            num_samples=len(self._lesions),
            num_lesions=lesions,
            expected_number=expected_number,
            number_05=number_05,
            number_95=number_95,
            unit=units.size,
            spacing_known=spacing_known,
            volume=voxels * per_voxel,
            expected_volume=expected_volume,
            volume_05=volume_05,
            volume_95=volume_95,
        )

    def _count(self, labels: np.ndarray) -> tuple[int, int]:
        """Lesions and voxels of the foreground."""
        parts = (labels[first:last] for first, last in slabs(labels.shape))
        runs = find_runs_in(self._scheme.foreground(part) for part in parts)
        found = connect_runs(runs, labels.shape)
        return len(found), int(found.voxels.sum())


def highest_probability(probabilities: LazyRows, scheme: LabelScheme) -> float:
    """Of foreground in any voxel of probabilities (K, Z, Y, X), taken slab by slab."""
    highest = 0.0
    for first, last in probabilities.slabs():
        p = probabilities.rows(first, last)
        foreground = 1 - p[0] if scheme.coding == "softmax" else p.amax(dim=0)
        highest = max(highest, float(foreground.max()))
    return min(highest, 1.0)


def log_odds(probability: float) -> float:
    """ln(p / (1 - p)), finite for 0 and 1 too."""
    p = min(max(probability, FLOOR), 1 - FLOOR)
    return math.log(p / (1 - p))


def _spread(values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Mean and ends of the central 90 % interval; None for what too few values tell."""
    if len(values) < 2:
        return (float(values.mean()) if len(values) else None), None, None
    low, high = np.quantile(values, TAILS, method="weibull").tolist()
    return float(values.mean()), low, high
