"""Images of several sources as inputs of one network: whose plan treats an image, and how its channels are filled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.planning.plans import (
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    PreprocessingPlan,
    SourcePlan,
    SourcesPlan,
    TrainingPlan,
)
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.source_inputs import preprocessing_of, to_network_channels

UNKNOWN = PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",) * 3, (False,) * 3, ())
ULTRASOUND = PreprocessingPlan((0, 1, 2), (None, 2.0, 2.0), ("zscore",), (False,), ())
PLANE = Geometry(spacing_mm=(1.0, 0.5, 0.5), is_2d=True)


def configuration(grid: str = "relative") -> ConfigurationPlan:
    """A 2D network of three channels for images of 32 x 32 pixels, with one source."""
    source = SourcePlan("US", ("US",), ".png", False, ULTRASOUND, (True,), 10)
    sources = SourcesPlan({"BUSI": source}, grid=grid)  # type: ignore[arg-type]
    network = NetworkPlan(2, (32, 32), 3, (LevelPlan(8, (1, 1), (3, 3), 2),))
    return ConfigurationPlan("2d", UNKNOWN, (1, 32, 32), network, DenoiserPlan(), TrainingPlan(2), sources=sources)


def picture(channels: int, height: int, width: int) -> Volume:
    return Volume(np.ones((channels, 1, height, width), np.float32), PLANE)


@pytest.mark.parametrize(("channels", "expected"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (3, [0, 1, 2])])
def test_channels_are_repeated_in_their_order(channels: int, expected: list[int]) -> None:
    image = np.arange(channels, dtype=np.float32).reshape(channels, 1, 1, 1)
    assert to_network_channels(image, 3).ravel().tolist() == expected


def test_more_channels_than_the_network_takes_are_refused() -> None:
    with pytest.raises(UsdError, match="case 'a' has 4 channels, the network takes 1 to 3"):
        to_network_channels(np.zeros((4, 1, 2, 2)), 3, "a")
    with pytest.raises(UsdError, match="case 'a' has 4 channels"):
        preprocessing_of(configuration(), None, picture(4, 8, 8), "a")


def test_an_image_of_a_source_is_treated_by_its_plan() -> None:
    assert preprocessing_of(configuration(), "BUSI", picture(1, 8, 8)) == ULTRASOUND
    with pytest.raises(UsdError, match="'CT' is not one of configuration 2d; allowed are BUSI"):
        preprocessing_of(configuration(), "CT", picture(1, 8, 8))


def test_an_ordinary_data_set_has_one_plan_and_no_sources() -> None:
    ordinary = replace(configuration(), sources=None)
    assert preprocessing_of(ordinary, None, picture(3, 8, 8)) == UNKNOWN
    with pytest.raises(UsdError, match="'BUSI' was named, but"):
        preprocessing_of(ordinary, "BUSI", picture(3, 8, 8))


def test_an_image_of_no_source_is_brought_to_the_size_of_the_median_image() -> None:
    """64 x 16 pixels have the area of 32 x 32, 128 x 32 four times that of it: only the second is made smaller."""
    plan = preprocessing_of(configuration(), None, picture(2, 64, 16))
    assert (plan.target_spacing_mm, plan.normalization) == ((None, 0.5, 0.5), ("zscore",) * 2)
    assert preprocessing_of(configuration(), None, picture(1, 128, 32)).target_spacing_mm == (None, 1.0, 1.0)
    large = Volume(np.random.default_rng(0).random((1, 1, 3200, 800), np.float32), PLANE)
    image, _ = preprocess_image(large, preprocessing_of(configuration(), None, large))
    assert image.shape == (1, 1, 64, 16)


def test_the_empty_surroundings_of_an_image_are_no_part_of_its_size() -> None:
    volume = picture(1, 128, 128)
    volume.array[..., 32:, :] = 0
    volume.array[..., 32:] = 0
    assert preprocessing_of(configuration(), None, volume).target_spacing_mm == (None, 0.5, 0.5)


def test_on_a_physical_grid_an_image_of_no_source_gets_the_common_spacing() -> None:
    plan = preprocessing_of(configuration("physical"), None, picture(1, 128, 32))
    assert (plan.target_spacing_mm, plan.normalization) == ((None, 1.0, 1.0), ("zscore",))


def test_slices_of_an_unknown_volume_are_scaled_in_their_plane() -> None:
    """A volume stored with its slices along X: the plan turns it before planes are measured."""
    direction = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
    volume = Volume(np.ones((1, 64, 64, 4), np.float32), Geometry((1.0, 1.0, 5.0), direction=direction))
    plan = replace(configuration(), preprocessing=replace(UNKNOWN, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)))
    assert preprocessing_of(plan, None, volume).target_spacing_mm == (None, 2.0, 2.0)
