"""Inputs of a network that is told which channels there are."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.presence import drop_channels, for_channels, with_presence

PLAN = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore", "nonorm", "rescale_to_0_1"), (True, False, False), ())


def test_the_plan_of_an_image_that_lacks_channels() -> None:
    assert for_channels(PLAN, (0, 2)).normalization == ("zscore", "rescale_to_0_1")
    assert for_channels(PLAN, (2,)).use_nonzero_mask == (False,)
    assert for_channels(PLAN, None) is PLAN


def test_presence_stands_behind_the_channels() -> None:
    image = np.array([[5.0], [7.0]], np.float32)
    assert with_presence(image, (0, 2), 3).ravel().tolist() == [5, 0, 7, 1, 0, 1]
    assert with_presence(image, None, 2).ravel().tolist() == [5, 7, 1, 1]


def test_dropped_channels_are_zero_with_their_presence_and_one_stays() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(600):
        patch = with_presence(np.full((3, 2, 2), 4.0, np.float32), None, 3)
        drop_channels(patch, 0.3, rng)
        there = patch[3:, 0, 0]
        assert there.any()
        assert np.array_equal(patch[:3], np.broadcast_to(4 * there[:, None, None], (3, 2, 2)))
        counts += there
    # kept with 0.7, and a third of 0.3^3 more for the one that stays where all would go
    assert np.allclose(counts / 600, 0.7 + 0.3**3 / 3, atol=0.05)


def test_missing_channels_stay_zero_whatever_augmentation_made_of_them() -> None:
    patch = np.array([[3.0], [0.4], [1.0], [0.0]], np.float32)
    drop_channels(patch, 0.9999, np.random.default_rng(0))
    assert patch.ravel().tolist() == [3, 0, 1, 0]
