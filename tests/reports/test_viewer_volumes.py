"""Volumes of the case viewer: turned and reduced as the page says, grey values and labels as they were."""

from __future__ import annotations

import gzip
import itertools

import nibabel
import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.viewer_volumes import (
    ViewerGrid,
    box_around,
    fraction_volume,
    grey_scale,
    image_volume,
    label_volume,
)

SHAPE = (3, 4, 5)
TILT = 0.2  # radians; oblique, but nearer to its own axis than to any other
PERMUTATIONS = list(itertools.permutations(range(3)))
WHOLE = 10**9


def read(content: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


def turned_geometry(permutation: tuple[int, ...], signs: tuple[int, ...], tilt: float = 0.0) -> Geometry:
    """Axis i of the file points along signs[i] of the physical axis permutation[i], then all is tilted about z."""
    direction = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(permutation, signs, strict=True)):
        direction[target, axis] = sign
    c, s = np.cos(tilt), np.sin(tilt)
    tilted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ direction
    return Geometry((2.0, 0.7, 0.5), (10.0, -20.0, 30.0), tuple(tilted.ravel()))


def lps_of(geometry: Geometry, voxel_xyz: np.ndarray) -> np.ndarray:
    """ITK's own formula: origin + direction (spacing * index)."""
    matrix = np.reshape(geometry.direction, (3, 3))
    return np.array(geometry.origin_mm) + matrix @ (np.array(geometry.spacing_mm[::-1]) * voxel_xyz)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("tilt", [0.0, TILT])
def test_every_voxel_keeps_its_place(permutation: tuple[int, ...], signs: tuple[int, ...], tilt: float) -> None:
    geometry = turned_geometry(permutation, signs, tilt)
    grid = ViewerGrid.of(geometry, SHAPE, WHOLE)
    labels = np.arange(60, dtype=np.uint8).reshape(SHAPE)
    shown = np.asarray(read(label_volume(grid, labels)).dataobj)
    assert shown.shape == grid.shape
    for page in np.ndindex(*grid.shape):
        x, y, z = np.rint((grid.to_file @ [*page, 1])[:3]).astype(int)
        assert shown[page] == labels[z, y, x]
        np.testing.assert_allclose((grid.affine @ [*page, 1])[:3] * [-1, -1, 1], lps_of(geometry, np.array([x, y, z])))
        along = page[grid.file_axes.index(0)]  # the axis of the page that is the file's x
        assert x in (along, SHAPE[2] - 1 - along)


@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_axes_of_the_page_point_right_forward_and_up(permutation: tuple[int, ...]) -> None:
    grid = ViewerGrid.of(turned_geometry(permutation, (1, -1, 1), TILT), SHAPE, WHOLE)
    columns = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    assert np.all(np.diag(columns) > 0.9)


def test_large_images_are_reduced_along_the_finest_axes_first() -> None:
    grid = ViewerGrid.of(Geometry((3.0, 1.0, 1.0)), (10, 9, 8), max_voxels=250)
    assert grid.factors_zyx == (1, 2, 2)
    assert grid.shape == (4, 5, 10)
    # LPS files are turned about z: the page's first block holds the file's last two columns (6, 7) and rows (7, 8).
    np.testing.assert_allclose(grid.to_file @ [0, 0, 0, 1], [6.5, 7.5, 0, 1])
    np.testing.assert_allclose(np.diag(grid.to_file)[:3], [-2, -2, 1])


def test_reduction_averages_grey_values_and_keeps_the_largest_label() -> None:
    grid = ViewerGrid.of(Geometry(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), (1, 2, 5), max_voxels=3)
    assert grid.factors_zyx == (1, 2, 2)
    image = np.array([[[0, 10, 2, 4, 7], [20, 30, 6, 8, 9]]], np.float32)
    labels = np.array([[[0, 0, 0, 1, 0], [2, 0, 0, 0, 3]]], np.uint8)
    # The last block covers one column only: its mean is (7 + 9) / 2.
    np.testing.assert_allclose(grid.mean(image)[:, 0, 0], [15, 5, 8])
    assert np.asarray(read(label_volume(grid, labels)).dataobj)[:, 0, 0].tolist() == [2, 1, 3]


def test_whole_grey_values_come_back_exactly() -> None:
    values = np.arange(-100, 140, dtype=np.int16).reshape(4, 6, 10)
    scale = grey_scale(values, None)
    grid = ViewerGrid.of(Geometry(), values.shape, WHOLE)
    stored = read(image_volume(grid, values, scale, scale.dtype))
    kept = np.clip(values, scale.low, scale.high)
    assert scale.step == 1
    assert stored.get_data_dtype() == np.uint8
    assert np.abs(np.sort(np.asarray(stored.dataobj).ravel()) - np.sort(kept.ravel())).max() <= 0.5


def test_window_is_that_around_the_masks_and_its_steps_need_16_bits() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(-1000, 2000, (20, 30, 30)).astype(np.float32)
    image[5:15, 10:20, 10:20] = rng.uniform(40, 60, (10, 10, 10))
    mask = np.zeros(image.shape, bool)
    mask[8:12, 12:18, 12:18] = True
    box = box_around(mask, (10.0, 10.0, 10.0))
    assert box == ((6, 14), (10, 20), (10, 20))
    scale = grey_scale(image, box)
    assert 39 < scale.window_low < 41
    assert 59 < scale.window_high < 61
    assert scale.dtype is np.int16
    grid = ViewerGrid.of(Geometry(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), image.shape, WHOLE)
    shown = np.asarray(read(image_volume(grid, image, scale, np.int16)).dataobj)
    assert np.abs(shown - np.clip(image, scale.low, scale.high).T).max() <= scale.step / 2 + 1e-3


@pytest.mark.parametrize("fill", [0.0, 7.5, np.nan])
def test_an_image_of_one_value_has_a_window(fill: float) -> None:
    image = np.full((2, 3, 4), fill, np.float32)
    scale = grey_scale(image, None)
    assert scale.window_low < scale.window_high
    grid = ViewerGrid.of(Geometry(), image.shape, WHOLE)
    shown = np.asarray(read(image_volume(grid, image, scale, scale.dtype)).dataobj)
    np.testing.assert_allclose(shown, np.nan_to_num(fill), atol=1e-6)


def test_nan_is_the_smallest_value() -> None:
    image = np.linspace(1, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    image[1, 2, 3] = np.nan
    grid = ViewerGrid.of(Geometry(), image.shape, WHOLE)
    scale = grey_scale(image, None)
    shown = np.asarray(read(image_volume(grid, image, scale, scale.dtype)).dataobj)
    assert shown[0, 0, 1] == pytest.approx(scale.low)


def test_shares_come_back_to_half_a_step() -> None:
    values = np.linspace(0, 1, 60).reshape(SHAPE)
    values[0, 0, 0] = np.nan
    grid = ViewerGrid.of(Geometry(direction=(-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)), SHAPE, WHOLE)
    shown = np.asarray(read(fraction_volume(grid, values)).dataobj)
    np.testing.assert_allclose(shown, np.nan_to_num(values).T, atol=0.5 / 255 + 1e-6)


def test_large_label_values_take_16_bits_and_others_are_refused() -> None:
    grid = ViewerGrid.of(Geometry(), (1, 1, 2), WHOLE)
    assert sorted(np.asarray(read(label_volume(grid, np.array([[[0, 3000]]]))).dataobj).ravel()) == [0, 3000]
    with pytest.raises(ValueError, match="from -1 to 0"):
        label_volume(grid, np.array([[[0, -1]]]))
    with pytest.raises(ValueError, match="to 40000"):
        label_volume(grid, np.array([[[0, 40000]]]))


def test_boxes_of_nothing() -> None:
    assert box_around(np.zeros(SHAPE, bool), (1.0, 1.0, 1.0)) is None


def test_what_was_filled_in_is_stored_below_all_other_values() -> None:
    channel = np.zeros((4, 10, 10), np.float32)
    channel[:, 2:8, 2:8] = np.linspace(-2, 2, 144).reshape(4, 6, 6)
    scale = grey_scale(channel, None)
    assert scale.filled == 0.0
    grid = ViewerGrid.of(Geometry(), channel.shape, 10**6)
    content = gzip.decompress(image_volume(grid, channel, scale, scale.dtype))[352:]
    stored = np.frombuffer(content, scale.dtype)
    assert np.count_nonzero(stored == 0) == np.count_nonzero(channel == 0)
