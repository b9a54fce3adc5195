"""The lesion table: one row a connected component of the predicted mask, with its size, place and support.

Confidence of a lesion is the fraction of samples that have at least one voxel of the same class inside it. It is
empty where no samples were drawn (a plain segmenter).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.components import Components, connect_runs, find_runs_in, slabs
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import ROWS_BETWEEN
from unisegdiff_pipeline.core.units import size_of_voxel, units_of
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, value_without


@dataclass(frozen=True)
class PredictedLesion:
    """A row of lesions.csv. Boxes are voxel indices of the written mask, the upper end excluded.

    Attributes:
        lesion: number within case and class, largest first, from 1.
        area_mm2: area of a lesion in a 2D image whose pixel size is known, else None; where it is not, `voxels` is the
            area in pixels. `volume_mm3` and `volume_ml` are those of a volume, else None.
        spacing_known: False marks millimetres as nominal.
        mean_probability: of the class over the lesion's voxels; None where probabilities were not at hand.
        confidence: fraction of samples that overlap it; None without samples.
        longest_diameter_mm: largest distance between two of its voxel centres, in the plane for a 2D image; 0 for a
            single voxel, None in a 2D image whose pixel size is not known and in tables of earlier versions.
    """

    case: str
    class_name: str
    lesion: int
    voxels: int
    area_mm2: float | None
    volume_mm3: float | None
    volume_ml: float | None
    spacing_known: bool
    z_min: int
    z_max: int
    y_min: int
    y_max: int
    x_min: int
    x_max: int
    mean_probability: float | None
    confidence: float | None
    longest_diameter_mm: float | None = None


@dataclass
class _ClassComponents:
    """Components of one class.

    Attributes:
        found: in the mask.
        boxes: of each component, (n, 3, 2).
        support: samples that overlap, (n,).
        kept: those that are still in the mask, (n,).
        mean_probability: (n,).
    """

    name: str
    found: Components
    boxes: np.ndarray
    support: np.ndarray
    kept: np.ndarray
    mean_probability: np.ndarray | None = None


class LesionCounter:
    """Finds the lesions of one mask, then is shown the samples one at a time, so that none need be kept.

    Args:
        labels: the predicted label map (Z, Y, X).
        scheme: what the label values mean.
    """

    def __init__(self, labels: np.ndarray, scheme: LabelScheme) -> None:
        self._scheme = scheme
        self._classes = [_components_of_class(name, index, labels, scheme) for index, name in enumerate(scheme.names)]
        self._num_samples = 0

    @property
    def classes_present(self) -> list[int]:
        """Indices of the classes that have at least one lesion."""
        return [i for i, own in enumerate(self._classes) if len(own.found)]

    def add_sample(self, labels: np.ndarray) -> None:
        """Count which lesions the label map (Z, Y, X) of one sample overlaps."""
        self._num_samples += 1
        for index in self.classes_present:
            self._classes[index].support += self._overlapped(index, labels)

    def add_probability(
        self, class_index: int, probability: np.ndarray, release: Callable[[], None] | None = None
    ) -> None:
        """Take one class's probability (Z, Y, X) for the mean over each of its lesions.

        `release` is called when slices have been looked at and need not be in memory any more.
        """
        own = self._classes[class_index]
        sums = np.zeros(len(own.found) + 1)
        for z, places, numbers in own.found.slices():
            sums += np.bincount(numbers, weights=probability[z].ravel()[places], minlength=len(sums))
            if release is not None and z % ROWS_BETWEEN == 0:
                release()
        own.mean_probability = sums[1:] / own.found.voxels

    def keep_only(
        self,
        lesion_filter: LesionFilter,
        labels: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        is_2d: bool = False,
        spacing_known: bool = True,
    ) -> int:
        """Take the lesions that a filter does not keep out of the label map, in place; returns how many.

        Args:
            lesion_filter: asked after all samples and probabilities have been added.
            labels: the label map (Z, Y, X) that the lesions were found in.
            spacing_mm, is_2d, spacing_known: as for `rows`.
        """
        units = units_of(is_2d, spacing_known)
        per_voxel = size_of_voxel(spacing_mm, units)
        for own in self._classes:
            unknown = np.full(len(own.found), np.nan)
            kept = lesion_filter.rule(own.name, units.size).kept(
                own.found.voxels * per_voxel,
                own.support / self._num_samples if self._num_samples else unknown,
                unknown if own.mean_probability is None else own.mean_probability,
            )
            gone = np.append(False, ~kept)
            for z, places, numbers in own.found.slices():
                places = places[gone[numbers]]
                values = labels[z].flat[places]
                for value in np.unique(values).tolist():
                    labels[z].flat[places[values == value]] = value_without(value, own.name, self._scheme)
        for index, own in enumerate(self._classes):  # with a region go those inside it
            own.kept[:] = self._overlapped(index, labels)
        return sum(int(np.count_nonzero(~own.kept)) for own in self._classes)

    def _overlapped(self, class_index: int, labels: np.ndarray) -> np.ndarray:
        """Which lesions of a class share a voxel with it in a label map (Z, Y, X), boolean (n,)."""
        found = self._classes[class_index].found
        overlapped = np.zeros(len(found) + 1, bool)
        for z, places, numbers in found.slices():
            overlapped[numbers[self._scheme.class_mask(class_index, labels[z].ravel()[places])]] = True
        return overlapped[1:]

    def rows(
        self, case: str, spacing_mm: Sequence[float], *, is_2d: bool = False, spacing_known: bool = True
    ) -> list[PredictedLesion]:
        """The lesions of all classes; `spacing_mm` is (Z, Y, X) of the written mask."""
        area_mm2 = float(spacing_mm[1] * spacing_mm[2])
        voxel_mm3 = area_mm2 * float(spacing_mm[0])
        rows = []
        in_mm = spacing_known or not is_2d
        z_mm, y_mm, x_mm = map(float, spacing_mm)
        for own in self._classes:
            diameters = own.found.longest_diameters_mm((z_mm, y_mm, x_mm)) if in_mm and len(own.found) else None
            for number, i in enumerate(np.flatnonzero(own.kept).tolist(), start=1):
                voxels = int(own.found.voxels[i])
                box = own.boxes[i].ravel().tolist()
                volume_mm3 = voxels * voxel_mm3
                rows.append(
                    PredictedLesion(
                        case=case,
                        class_name=own.name,
                        lesion=number,
                        voxels=voxels,
                        area_mm2=voxels * area_mm2 if is_2d and spacing_known else None,
                        volume_mm3=None if is_2d else volume_mm3,
                        volume_ml=None if is_2d else volume_mm3 / 1000,
                        spacing_known=spacing_known,
                        z_min=box[0],
                        z_max=box[1],
                        y_min=box[2],
                        y_max=box[3],
                        x_min=box[4],
                        x_max=box[5],
                        mean_probability=None if own.mean_probability is None else float(own.mean_probability[i]),
                        confidence=float(own.support[i] / self._num_samples) if self._num_samples else None,
                        longest_diameter_mm=None if diameters is None else float(diameters[i]),
                    )
                )
        return rows


def _components_of_class(name: str, index: int, labels: np.ndarray, scheme: LabelScheme) -> _ClassComponents:
    runs = find_runs_in(scheme.class_mask(index, labels[first:last]) for first, last in slabs(labels.shape))
    found = connect_runs(runs, labels.shape)
    return _ClassComponents(name, found, found.boxes(), np.zeros(len(found), np.int64), np.ones(len(found), bool))
