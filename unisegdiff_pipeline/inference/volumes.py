"""The table of volumes: for each class what the mask measures, what the samples measure, and how they spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.components import slabs
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import size_of_voxel, units_of
from unisegdiff_pipeline.inference.guarantees import Promises

TAILS = (0.05, 0.95)


@dataclass(frozen=True)
class ClassVolume:
    """A row of volumes.csv; all sizes in `unit`.

    Attributes:
        unit: "ml"; of a 2D image "mm2", or "pixels2" where the pixel size is not known.
        spacing_known: False marks millimetres as nominal.
        volume: of the mask.
        num_samples: sampled masks that the following is taken over.
        expected_volume: mean over the sampled masks; None without any.
        std: standard deviation over them (divisor N - 1); None, like the quantiles, with fewer than two.
        quantile_05, quantile_95: ends of the central 90 % interval, at the positions q (N + 1) of the ordered volumes,
            clipped to the extremes, as evaluation takes them: with fewer than 19 samples the smallest and the largest.
        guaranteed_low, guaranteed_high: interval of a stated coverage, where that guarantee was asked for.
    """

    case: str
    class_name: str
    unit: Literal["ml", "mm2", "pixels2"]
    spacing_known: bool
    volume: float
    num_samples: int
    expected_volume: float | None
    std: float | None
    quantile_05: float | None
    quantile_95: float | None
    guaranteed_low: float | None = None
    guaranteed_high: float | None = None


class VolumeCounter:
    """Counts the voxels of sampled masks one at a time, so that none need be kept, then those of the mask."""

    def __init__(self, scheme: LabelScheme) -> None:
        self._scheme = scheme
        self._samples: list[list[int]] = []

    def add_sample(self, labels: np.ndarray) -> None:
        """Count the label map (Z, Y, X) of one sample."""
        self._samples.append(self._count(labels))

    def rows(
        self,
        case: str,
        mask: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        is_2d: bool = False,
        spacing_known: bool = True,
        promises: Promises | None = None,
    ) -> list[ClassVolume]:
        """One row for each class or region; `mask` is the written label map, of voxels of this spacing (Z, Y, X)."""
        of_mask = self._count(mask)
        units = units_of(is_2d, spacing_known)
        per_voxel = size_of_voxel(spacing_mm, units)
        rows = []
        for index, name in enumerate(self._scheme.names):
            volumes = np.array([counts[index] for counts in self._samples]) * per_voxel
            spread = len(volumes) > 1
            low, high = np.quantile(volumes, TAILS, method="weibull").tolist() if spread else (None, None)
            interval = None if promises is None else promises.interval(name, volumes.tolist(), units)
            rows.append(
                ClassVolume(
                    case=case,
                    class_name=name,
                    unit=units.size,
                    spacing_known=spacing_known,
                    volume=of_mask[index] * per_voxel,
                    num_samples=len(volumes),
                    expected_volume=float(volumes.mean()) if len(volumes) else None,
                    std=float(volumes.std(ddof=1)) if spread else None,
                    quantile_05=low,
                    quantile_95=high,
                    guaranteed_low=None if interval is None else interval[0],
                    guaranteed_high=None if interval is None else interval[1],
                )
            )
        return rows

    def _count(self, labels: np.ndarray) -> list[int]:
        parts = [labels[first:last] for first, last in slabs(labels.shape)]
        return [
            sum(int(np.count_nonzero(self._scheme.class_mask(index, part))) for part in parts)
            for index in range(len(self._scheme.names))
        ]
