"""The mask of another network as input of a cascade: brought to the cascade's grid, one channel for each class.

In training it is what the other network predicted of a case that it was not trained on, in prediction what it says of
the image; both come as label maps on the image's own grid, and go the same way from there.
"""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.preprocessing.label_resampling import resample_labels
from unisegdiff_pipeline.preprocessing.properties import CaseProperties


def mask_on_grid(mask: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """A label map (Z, Y, X) of the image's grid on the plan grid (*properties.shape), slab by slab."""
    cropped = properties.reorientation.apply(mask[None])[0][box_slices(properties.crop_box)]
    return resample_labels(cropped, properties.shape, properties.separate_axis, keep_volumes=False)


def mask_channels(mask: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """A predicted label map (...) as boolean channels (classes, ...), true where the class was written.

    Regions are told apart by the value that is written for each, so that channels never overlap.
    """
    return np.stack([mask == value for value in scheme.write_values])


def with_mask(image: np.ndarray, mask: np.ndarray, scheme: LabelScheme, scratch: Scratch | None = None) -> np.ndarray:
    """The image (C, Z, Y, X) with a channel of 0 and 1 for each class of the mask (Z, Y, X) after its own, float32."""
    scratch = scratch or Scratch()
    result = scratch.empty((len(image) + len(scheme.write_values), *mask.shape))
    for row in range(mask.shape[0]):
        result[: len(image), row] = image[:, row]
        result[len(image) :, row] = mask_channels(mask[row], scheme)
        scratch.release()
    return result
