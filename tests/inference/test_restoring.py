"""Predictions as arrays on the image's grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.inference.by_hand import SOFTMAX, case_by_hand, prediction_by_hand
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SamplingFacts
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.restoring import restore_masks, restore_probabilities, restore_uncertainty
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image


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


def test_uncertainty_is_that_of_the_probability_on_the_images_grid() -> None:
    """Two certain voxels of the plan become four of the image, of which those between are in doubt."""
    spacing_mm = (1.0, 1.0, 1.0)
    plan = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 2.0), ("nonorm",), (False,), ())
    _, properties = preprocess_image(Volume(np.ones((1, 2, 1, 4), np.float32), Geometry(spacing_mm)), plan, "a")
    assert properties.shape == (2, 1, 2)
    p_det = torch.zeros(2, 2, 1, 2)
    p_det[1, ..., 1] = 1
    p_det[0] = 1 - p_det[1]
    facts = SamplingFacts(1, 1, 0, 0.0, 0.0)
    found = EnsemblePrediction((CasePrediction(p_det, (), 0, 1.0, facts),), (), facts)
    p = restore_probabilities(found.probabilities, properties, SOFTMAX)
    assert p[1, 0, 0].tolist() == [0, 0.25, 0.75, 1]
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    uncertainty = restore_uncertainty(found, properties, "softmax")
    assert uncertainty[0, 0].tolist() == pytest.approx([0, quarter, quarter, 0])
