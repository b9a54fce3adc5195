"""Predictions as arrays on the image's grid."""

from __future__ import annotations

import numpy as np

from tests.inference.by_hand import SOFTMAX, case_by_hand, prediction_by_hand
from unisegdiff_pipeline.inference.restoring import restore_masks, restore_probabilities


def test_probabilities_are_background_outside_of_the_crop_box() -> None:
    p = restore_probabilities(prediction_by_hand().probabilities, case_by_hand(), SOFTMAX)
    assert p.dtype == np.float16
    lesion = np.zeros((2, 3, 4))
    lesion[0, 1, 2:] = 0.75, 0.5
    np.testing.assert_array_equal(p, np.stack([1 - lesion, lesion]))


def test_the_mask_is_that_of_the_mean_or_of_the_samples() -> None:
    found, properties = prediction_by_hand(), case_by_hand()
    mask, drawn = restore_masks(found, properties, SOFTMAX, "mean")
    assert np.argwhere(mask == 7).tolist() == [[0, 1, 2]]  # 1/2 is not above the threshold
    assert [np.argwhere(sample == 7).tolist() for sample in drawn] == [[[0, 1, 2], [0, 1, 3]], [[0, 1, 2]]]
    mask, drawn = restore_masks(found, properties, SOFTMAX, "majority")
    assert np.argwhere(mask == 7).tolist() == [[0, 1, 2]]  # a tie goes to the background
    assert [np.count_nonzero(sample) for sample in drawn] == [2, 1]
