"""Arrays whose rows are made when they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.lazy_rows import LazyRows
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.restore import restore_map

WHOLE = torch.arange(4 * 3 * 2 * 2, dtype=torch.float32).reshape(4, 3, 2, 2)


def lazy() -> LazyRows:
    return LazyRows(tuple(WHOLE.shape), lambda first, last: WHOLE[:, first:last])


def test_a_part_of_a_part_is_the_part_that_was_taken() -> None:
    array = lazy()
    assert torch.equal(array[:, 1:3], WHOLE[:, 1:3])
    assert array[1:4].shape == (3, 3, 2, 2)
    assert torch.equal(array[1:4][1:3][:, 0:2], WHOLE[2:4, 0:2])
    assert torch.equal(array[3:4][0:1].rows(0, 3), WHOLE[3:4])


@pytest.mark.parametrize("channel", range(4))
def test_each_channel_is_restored_as_itself(channel: int) -> None:
    plan = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), ())
    _, properties = preprocess_image(Volume(np.ones((1, 3, 2, 2), np.float32), Geometry()), plan)
    np.testing.assert_array_equal(restore_map(lazy()[channel : channel + 1], properties)[0], WHOLE[channel])
