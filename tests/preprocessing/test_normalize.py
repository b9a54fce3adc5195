"""Normalisation schemes on a handful of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.plans import IntensityStatistics, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.normalize import mean_and_std, normalize_channel, normalize_image

STATISTICS = IntensityStatistics(
    mean=40, std=20, minimum=-900, median=42, maximum=3000, percentile_00_5=-20, percentile_99_5=100
)


def channel(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, -1)


def plan(*schemes: str, mask: bool = False) -> PreprocessingPlan:
    count = len(schemes)
    return PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), schemes, (mask,) * count, (STATISTICS,) * count)


def test_zscore() -> None:
    values = channel(1, 3, 5, 7)  # mean 4, variance 5
    normalize_channel(values, "zscore")
    np.testing.assert_allclose(values.ravel(), np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)


def test_zscore_inside_a_mask_leaves_the_rest() -> None:
    values = channel(0, 2, 4, 0)
    normalize_channel(values, "zscore", mask=values != 0)
    np.testing.assert_allclose(values.ravel(), [0, -1, 1, 0])


def test_constant_image_becomes_zero() -> None:
    values = channel(5, 5)
    normalize_channel(values, "zscore")
    np.testing.assert_array_equal(values.ravel(), [0, 0])


def test_ct_clips_and_scales_by_the_data_set() -> None:
    values = channel(-1000, -20, 40, 100, 900)
    normalize_channel(values, "ct", STATISTICS)
    np.testing.assert_allclose(values.ravel(), [-3, -3, 0, 3, 3])


def test_other_schemes() -> None:
    values = channel(10, 20, 30)
    normalize_channel(values, "rescale_to_0_1")
    np.testing.assert_allclose(values.ravel(), [0, 0.5, 1])
    values = channel(0, 51, 255)
    normalize_channel(values, "rgb_to_0_1")
    np.testing.assert_allclose(values.ravel(), [0, 0.2, 1])
    values = channel(-3, 8)
    normalize_channel(values, "nonorm")
    np.testing.assert_array_equal(values.ravel(), [-3, 8])


def test_sixteen_bit_rgb_is_an_error_with_the_remedy() -> None:
    image = np.full((1, 1, 2, 2), 4000, np.float32)
    with pytest.raises(UsdError, match=r"'polyp7', channel 0: values run from 4000 to 4000.*rescale_to_0_1"):
        normalize_image(image, plan("rgb_to_0_1"), "polyp7")


def test_wrong_number_of_channels() -> None:
    with pytest.raises(UsdError, match="has 1 channels, the plan was made for 2"):
        normalize_image(np.zeros((1, 1, 2, 2), np.float32), plan("ct", "zscore"), "a")


def test_mask_is_used_only_where_the_plan_says_so() -> None:
    image = np.array([0, 0, 2, 4], np.float32).reshape(1, 1, 1, 4)
    masked = image.copy()
    normalize_image(image, plan("zscore"))
    normalize_image(masked, plan("zscore", mask=True))
    np.testing.assert_allclose(masked.ravel(), [0, 0, -1, 1])
    assert image.ravel()[0] < -0.8


def test_moments_over_several_blocks() -> None:
    values = np.full(3_000_000, 1000.0, np.float32)  # a float32 sum would lose its last digits
    values[::2] += 2
    assert mean_and_std(values) == (1001.0, 1.0)
