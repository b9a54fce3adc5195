"""Masks grown by a distance, against scipy's Euclidean distance transform and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unisegdiff_pipeline.evaluation.dilation import dilated


def by_distance(mask: np.ndarray, radius: float, spacing: tuple[float, float, float]) -> np.ndarray:
    if not mask.any():
        return np.zeros_like(mask)
    return ndimage.distance_transform_edt(~mask, sampling=spacing) <= radius * (1 + 1e-6)


def one_voxel(shape: tuple[int, int, int], at: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[at] = True
    return mask


def test_a_voxel_grows_into_a_disc_in_the_plane() -> None:
    grown = dilated(one_voxel((1, 5, 7), (0, 2, 3)), 2.0, (1.0, 1.0, 1.0))
    rows = ["".join("#" if v else "." for v in row) for row in grown[0]]
    assert rows == ["...#...", "..###..", ".#####.", "..###..", "...#..."]


def test_the_ball_follows_the_spacing() -> None:
    grown = dilated(one_voxel((3, 5, 9), (1, 2, 4)), 4.0, (5.0, 3.0, 1.0))
    assert not grown[0].any()
    assert not grown[2].any()
    assert grown[1].sum(axis=1).tolist() == [0, 5, 9, 5, 0]  # half-widths sqrt(16 - 9) = 2.6 and 4


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.3), (0.4, 2.5, 0.4)])
@pytest.mark.parametrize("radius", [0.0, 1.0, 2.6, 5.0])
@pytest.mark.parametrize("fraction", [0.0005, 0.02, 0.6])
@pytest.mark.parametrize("shape", [(9, 17, 23), (1, 31, 20), (13, 1, 9), (5, 8, 1)])
def test_random_masks_against_the_distance_transform(
    spacing: tuple[float, float, float], radius: float, fraction: float, shape: tuple[int, int, int]
) -> None:
    mask = np.random.default_rng(3).random(shape) < fraction
    assert np.array_equal(dilated(mask, radius, spacing), by_distance(mask, radius, spacing))


@pytest.mark.parametrize("at", [(0, 0, 0), (5, 8, 10), (0, 8, 4), (3, 0, 10)])
def test_the_mask_may_touch_the_border(at: tuple[int, int, int]) -> None:
    mask, spacing = one_voxel((6, 9, 11), at), (2.0, 1.0, 1.5)
    assert np.array_equal(dilated(mask, 4.0, spacing), by_distance(mask, 4.0, spacing))


def test_a_radius_beyond_the_image_fills_it() -> None:
    assert dilated(one_voxel((3, 4, 5), (2, 0, 1)), 1000.0, (1.0, 1.0, 1.0)).all()


def test_parts_far_from_each_other_grow_apart() -> None:
    mask = one_voxel((3, 40, 40), (1, 2, 2)) | one_voxel((3, 40, 40), (1, 37, 37))
    grown = dilated(mask, 5.0, (5.0, 1.0, 1.0))
    assert ndimage.label(grown, np.ones((3, 3, 3)))[1] == 2
    assert np.array_equal(grown, by_distance(mask, 5.0, (5.0, 1.0, 1.0)))


def test_the_radius_belongs_to_the_ball_for_spacings_from_single_precision() -> None:
    step = float(np.float32(0.1))  # a little more than 0.1
    grown = dilated(one_voxel((1, 1, 201), (0, 0, 100)), 5.0, (1.0, 1.0, step))
    assert grown.sum() == 101


def test_flips_and_transposes_commute_with_growing() -> None:
    mask = np.random.default_rng(8).random((6, 9, 12)) < 0.01
    grown = dilated(mask, 3.0, (2.0, 1.0, 0.8))
    assert np.array_equal(dilated(mask[::-1, :, ::-1], 3.0, (2.0, 1.0, 0.8)), grown[::-1, :, ::-1])
    assert np.array_equal(dilated(mask.transpose(2, 0, 1), 3.0, (0.8, 2.0, 1.0)), grown.transpose(2, 0, 1))


def test_an_empty_mask_stays_empty() -> None:
    empty = np.zeros((2, 3, 4), bool)
    assert not dilated(empty, 5.0, (1.0, 1.0, 1.0)).any()


def test_the_mask_handed_in_is_left_alone() -> None:
    mask = one_voxel((2, 3, 4), (0, 1, 1))
    dilated(mask, 2.0, (1.0, 1.0, 1.0))
    assert mask.sum() == 1


@pytest.mark.parametrize(("radius", "spacing"), [(-1.0, (1.0, 1.0, 1.0)), (1.0, (1.0, 0.0, 1.0))])
def test_impossible_sizes_are_refused(radius: float, spacing: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        dilated(np.ones((2, 2, 2), bool), radius, spacing)
