"""What `Predictor.predict` returns: arrays on the image's own grid, restored when they are first asked for."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.measuring import Measured, measure
from unisegdiff_pipeline.inference.restoring import (
    restore_masks,
    restore_probabilities,
    restore_samples,
    restore_uncertainty,
)
from unisegdiff_pipeline.inference.uncertainty_parts import PARTS
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map

if TYPE_CHECKING:
    from unisegdiff_pipeline.core.geometry import Geometry
    from unisegdiff_pipeline.inference.cases import CaseSummary
    from unisegdiff_pipeline.inference.lesions import PredictedLesion
    from unisegdiff_pipeline.inference.origin import Origin
    from unisegdiff_pipeline.inference.volumes import ClassVolume


class Prediction:
    """A prediction on the grid of its image; Z is missing from all arrays where the image had none.

    Arrays are (Z, Y, X) whatever the image was; `mask.T` of an image from nibabel is (X, Y, Z). Each is made when it is
    first asked for, and kept; it is read-only, so copy it to change it.

    Example:
        >>> prediction = model.predict(image, spacing_mm=(1.0, 1.0), num_samples=2, case_id="patient_7")
        >>> prediction.mask.shape, prediction.samples.shape, prediction.probabilities.shape
        ((64, 64), (2, 64, 64), (1, 64, 64))
        >>> float(prediction.uncertainty.max()) <= 1
        True

    Args:
        found: of all folds, on the plan's grid.
        properties: the way back from there.
        labels: what label values mean.
        origin: where it comes from.
        with_parts: whether the parts of the uncertainty were asked for.
    """

    def __init__(
        self,
        found: EnsemblePrediction,
        properties: CaseProperties,
        labels: LabelScheme,
        origin: Origin,
        with_parts: bool = False,
    ) -> None:
        self._found, self._properties, self._origin, self._with_parts = found, properties, origin, with_parts
        self.labels = labels

    @property
    def case_id(self) -> str:
        """Name of the case; files are named after it, and the noise of samples is keyed by it."""
        return self._properties.case_id

    @property
    def geometry(self) -> Geometry:
        """Spacing, origin and direction of the arrays."""
        return self._properties.geometry

    @property
    def mask(self) -> np.ndarray:
        """Label map (Z, Y, X), integers."""
        return self._flat(self._mask)

    @cached_property
    def samples(self) -> np.ndarray:
        """Label map of each sampled mask (N, Z, Y, X); N is 0 for a model without denoiser."""
        drawn = list(restore_samples(self._found, self._properties, self.labels))
        empty = np.empty((0, *self._properties.shape_original), np.uint8)
        return self._flat(np.stack(drawn) if drawn else empty)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probability of each channel (K, Z, Y, X), 0 to 1 in half precision; channels as in `LabelScheme`."""
        return self._flat(restore_probabilities(self._found.probabilities, self._properties, self.labels))

    @cached_property
    def uncertainty(self) -> np.ndarray:
        """Normalised entropy of the probability (Z, Y, X), 0 (sure) to 1."""
        return self._flat(restore_uncertainty(self._found, self._properties, self.labels.coding))

    @property
    def between_folds(self) -> np.ndarray | None:
        """Uncertainty that lies between folds (Z, Y, X); None where it was not asked for or cannot be told."""
        return self._parts.get("between_folds")

    @property
    def within_samples(self) -> np.ndarray | None:
        """Uncertainty between the samples of a fold (Z, Y, X); None as for `between_folds`."""
        return self._parts.get("within_samples")

    @property
    def single_samples(self) -> np.ndarray | None:
        """Uncertainty within single samples (Z, Y, X); None as for `between_folds`."""
        return self._parts.get("single_samples")

    @property
    def lesions(self) -> tuple[PredictedLesion, ...]:
        """One row for each lesion of the mask, as in lesions.csv: class, size, box, mean probability, confidence."""
        return self._measured.lesions

    @property
    def volumes(self) -> tuple[ClassVolume, ...]:
        """One row for each class, as in volumes.csv: its size, and mean and interval over the samples."""
        return self._measured.volumes

    @property
    def case(self) -> CaseSummary:
        """The row of cases.csv: probability of any lesion, and expected number and volume with intervals."""
        return self._measured.case

    def save(self, folder: Path | str, *, samples: bool = False, probabilities: bool = False) -> Path:
        """Write the files that usd_predict writes; returns the folder.

        The mask and, beside it, uncertainty/, lesions.csv, volumes.csv, cases.csv, manifest.json. The folder may hold
        other cases of the same model and settings; a case of the same name is replaced.

        Args:
            folder: made if missing.
            samples: also write every sampled mask.
            probabilities: also write the probability of each class.

        Raises:
            UsdError: the folder holds predictions of another model or settings, or cannot be written into.
        """
        from unisegdiff_pipeline.inference.export import OutputOptions
        from unisegdiff_pipeline.inference.saving import save_case

        origin = self._origin
        options = OutputOptions(
            origin.file_ending, origin.spacing_known, samples, probabilities, self._with_parts, origin.combine
        )
        output = Path(folder)
        save_case(output, self._found, self._properties, self.labels, origin, options)
        return output

    def __repr__(self) -> str:
        grid = self.geometry.describe(self._properties.shape_original)
        classes, samples = ", ".join(self.labels.names), len(self._found.sample_places)
        folds = " ".join(self._origin.folds)
        return f"Prediction({self.case_id!r}, {grid}, classes: {classes}, {samples} samples, folds {folds})"

    @cached_property
    def _mask(self) -> np.ndarray:
        if not self._found.lesion_filter.keeps_all:
            _ = self._measured  # takes lesions out of it
        return self._decided

    @cached_property
    def _decided(self) -> np.ndarray:
        return restore_masks(self._found, self._properties, self.labels, self._origin.combine)[0]

    @cached_property
    def _parts(self) -> dict[str, np.ndarray]:
        if not self._with_parts:
            return {}
        parts = self._found.uncertainty_parts(self.labels.coding)
        return {name: self._flat(restore_map(parts[name], self._properties)) for name in PARTS if name in parts}

    @cached_property
    def _measured(self) -> Measured:
        samples = restore_samples(self._found, self._properties, self.labels)
        return measure(self._found, self._properties, self.labels, self._origin.spacing_known, self._decided, samples)

    def _flat(self, array: np.ndarray) -> np.ndarray:
        """The array without the Z axis that a 2D image does not have, read-only: `save` would not see a change."""
        flat = array[..., 0, :, :] if self.geometry.is_2d else array
        flat.flags.writeable = False
        return flat
