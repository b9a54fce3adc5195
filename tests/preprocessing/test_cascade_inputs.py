"""The mask of another network on the grid of a cascade: by hand, through orientation, crop box and resampling."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.cascade_inputs import mask_channels, mask_on_grid, with_mask
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

TWO = LabelScheme(("organ", "tumour"), ((1,), (2, 5)), "softmax", (1, 5))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def properties(shape: tuple[int, int, int], **fields: object) -> CaseProperties:
    """Of an image of 4 x 6 x 8 voxels whose rows 2..5 of Y and columns 2..7 of X are kept."""
    cropped = (4, 4, 6)
    known = {"axis_order": (0, 1, 2), "crop_box": ((0, 4), (2, 6), (2, 8)), "shape_cropped": cropped}
    return CaseProperties(
        "a", None, Geometry(), (4, 6, 8), shape=shape, spacing_mm=(1.0, 1.0, 1.0), **{**known, **fields}
    )


def test_a_mask_on_the_grid_of_its_image_is_cropped() -> None:
    mask = np.random.default_rng(0).choice([0, 1, 5], (4, 6, 8)).astype(np.uint8)
    assert (mask_on_grid(mask, properties((4, 4, 6))) == mask[:, 2:6, 2:8]).all()


def test_turned_and_flipped_axes() -> None:
    mask = np.random.default_rng(0).choice([0, 1, 5], (4, 6, 8)).astype(np.uint8)
    turned = properties(
        (6, 4, 8),
        axis_order=(1, 0, 2),
        flipped=(False, True, False),
        crop_box=((0, 6), (0, 4), (0, 8)),
        shape_cropped=(6, 4, 8),
    )
    assert (mask_on_grid(mask, turned) == mask.transpose(1, 0, 2)[:, ::-1]).all()


def test_a_finer_grid_repeats_and_a_coarser_one_takes_what_covers_most() -> None:
    mask = np.zeros((4, 6, 8), np.uint8)
    mask[:, 2:4, 2:5], mask[:, 4:6, 5:8] = 1, 5
    fine = mask_on_grid(mask, properties((8, 8, 12)))
    assert (fine == mask[:, 2:6, 2:8].repeat(2, 0).repeat(2, 1).repeat(2, 2)).all()
    coarse = mask_on_grid(mask, properties((2, 2, 2)))
    assert coarse.tolist() == [[[1, 0], [0, 5]]] * 2


@pytest.mark.parametrize("scheme", [TWO, REGIONS], ids=["classes", "regions"])
def test_channels_stand_behind_the_image_and_do_not_overlap(scheme: LabelScheme) -> None:
    first, second = scheme.write_values
    mask = np.array([0, first, second, 0]).reshape(1, 2, 2)
    assert mask_channels(mask, scheme).reshape(2, 4).astype(int).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]
    image = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    found = with_mask(image, mask, scheme)
    assert found.dtype == np.float32
    assert found.reshape(3, 4).tolist() == [[0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 1, 0]]
