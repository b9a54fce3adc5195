"""Lesions as an array of numbers, and the distances between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, grow_box, join_boxes
from unisegdiff_pipeline.core.components import Connectivity, find_components
from unisegdiff_pipeline.evaluation.boundary import directed_distances_mm
from unisegdiff_pipeline.evaluation.dilation import SPACING_ROUNDING


def numbered(mask: np.ndarray, connectivity: Connectivity) -> np.ndarray:
    """Connected components of a boolean mask (Z, Y, X), numbered from 1, largest first; 0 outside, int32."""
    return find_components(mask, connectivity).numbers()


def sizes_of(numbers: np.ndarray) -> np.ndarray:
    """Voxels of each number from 1 on."""
    return np.bincount(numbers.ravel())[1:]


def boxes_of(numbers: np.ndarray) -> list[Box]:
    """Bounding box of each number from 1 on."""
    from scipy.ndimage import find_objects

    return [tuple((side.start, side.stop) for side in place) for place in find_objects(numbers)]


def box_around(boxes: Sequence[Box], shape: Sequence[int], margin: int = 1) -> Box:
    """Box around some boxes with a margin, so that a lesion in one slice of a volume is not taken for a 2D image."""
    joined = join_boxes(boxes)
    assert joined is not None, "there is no box to look into"
    return grow_box(joined, (margin,) * len(shape), shape)


@dataclass(frozen=True, eq=False)
class DirectedDistances:
    """D(A, B) and D(B, A) of two masks, in mm (`evaluation.boundary`); empty where either mask is."""

    there: np.ndarray
    back: np.ndarray

    @classmethod
    def between(cls, one: np.ndarray, other: np.ndarray, spacing_mm: Sequence[float]) -> DirectedDistances:
        """Of two boolean masks (Z, Y, X)."""
        if not (one.any() and other.any()):
            return cls(np.empty(0), np.empty(0))
        return cls(*directed_distances_mm(one, other, spacing_mm))

    @property
    def hd_mm(self) -> float:
        """The largest distance; NaN for an empty mask."""
        return max(float(self.there.max()), float(self.back.max())) if self.there.size else math.nan

    @property
    def hd95_mm(self) -> float:
        """The larger of both 95th percentiles; NaN for an empty mask."""
        sides = (self.there, self.back)
        return max(float(np.percentile(side, 95)) for side in sides) if self.there.size else math.nan

    @property
    def assd_mm(self) -> float:
        """Mean of all distances of both directions together; NaN for an empty mask."""
        return float(np.concatenate([self.there, self.back]).mean()) if self.there.size else math.nan

    @property
    def rmsd_mm(self) -> float:
        """Root of the mean square of all distances of both directions together; NaN for an empty mask."""
        both = np.concatenate([self.there, self.back])
        return float(np.sqrt((both**2).mean())) if self.there.size else math.nan

    def mean_surface_dice(self, tolerance_mm: float) -> float:
        """Mean of the fractions of both directions, as nnU-Net and panoptica average them; 0 for an empty mask."""
        if not self.there.size:
            return 0.0
        limit = tolerance_mm * (1 + SPACING_ROUNDING)
        return float((self.there <= limit).mean() + (self.back <= limit).mean()) / 2
