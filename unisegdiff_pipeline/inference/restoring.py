"""What a prediction says on the image's own grid, as arrays; no file is read or written here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from unisegdiff_pipeline.core.boxes import CroppedLabels
from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.label_fusion import Combination, combine_masks
from unisegdiff_pipeline.inference.uncertainty import normalised_entropy
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_derived, restore_labels, restore_map


def restore_masks(
    found: EnsemblePrediction, properties: CaseProperties, scheme: LabelScheme, combine: Combination
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The mask and, one at a time, the sampled masks as label maps (Z, Y, X) on the image's grid."""
    scratch, drawn = found.scratch, restore_samples(found, properties, scheme)
    if combine == "mean":
        return restore_labels(found.decided(scheme.coding), properties, scheme, scratch=scratch), drawn
    kept = [CroppedLabels.of(labels) for labels in drawn]
    return combine_masks(kept, scheme, combine), (mask.whole() for mask in kept)


def restore_samples(found: EnsemblePrediction, properties: CaseProperties, scheme: LabelScheme) -> Iterator[np.ndarray]:
    """The sampled masks as label maps (Z, Y, X) on the image's grid, one at a time."""
    for sample in found.samples():
        yield restore_labels(sample, properties, scheme, scratch=found.scratch)


def restore_uncertainty(found: EnsemblePrediction, properties: CaseProperties, coding: Coding) -> np.ndarray:
    """Normalised entropy (Z, Y, X) of the probabilities on the image's grid.

    Entropies are not interpolated: between two certain voxels of another class a voxel is in doubt.
    """

    def entropy(rows: np.ndarray) -> np.ndarray:
        return normalised_entropy(torch.from_numpy(rows), coding).numpy()

    return restore_derived(found.probabilities, properties, entropy, found.scratch)


def restore_probabilities(probabilities: LazyRows, properties: CaseProperties, scheme: LabelScheme) -> np.ndarray:
    """Probabilities (K, Z, Y, X) on the image's grid, half precision, one channel at a time.

    Outside the crop box there is background: 1 in its channel where there is one, 0 in all others.
    """
    channels = restored_channels(probabilities, properties, scheme, Scratch())
    return np.stack([channel.astype(np.float16) for channel in channels])


def restored_channels(
    probabilities: LazyRows, properties: CaseProperties, scheme: LabelScheme, scratch: Scratch
) -> Iterator[np.ndarray]:
    """Each channel of `restore_probabilities` (Z, Y, X), single precision, one after the other."""
    for channel in range(probabilities.shape[0]):
        fill = float(channel < scheme.foreground_offset)
        yield restore_map(probabilities[channel : channel + 1], properties, fill, scratch=scratch)[0]
