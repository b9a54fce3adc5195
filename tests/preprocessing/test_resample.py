"""Resampling against values by hand and against scikit-image, which nnU-Net uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.preprocessing.resample import (
    AxisMap,
    GridMap,
    find_separate_axis,
    resample_image,
    resampled_shape,
)


def dense(num_in: int, num_out: int, order: int) -> np.ndarray:
    """The whole matrix of one axis, (num_out, num_in)."""
    axis = AxisMap(num_in, num_out, order)
    matrix = np.zeros((num_out, num_in))
    start, stop = axis.needed(0, num_out)
    matrix[:, start:stop] = axis.matrix(0, num_out)
    return matrix


def test_linear_doubling_by_hand() -> None:
    # positions of the four outputs: -0.25, 0.25, 0.75, 1.25
    np.testing.assert_allclose(dense(2, 4, 1), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_nearest_by_hand() -> None:
    # 3 -> 5: positions -0.2, 0.4, 1.0, 1.6, 2.2
    np.testing.assert_array_equal(dense(3, 5, 0).argmax(axis=1), [0, 0, 1, 2, 2])


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 3), (5, 2), (7, 7 * 30), (400, 100)])
def test_a_constant_stays_constant(order: int, num_in: int, num_out: int) -> None:
    np.testing.assert_allclose(dense(num_in, num_out, order).sum(axis=1), 1.0)


def test_cubic_spline_reproduces_a_cubic_away_from_the_border() -> None:
    coarse, fine = np.arange(60.0), (np.arange(120) + 0.5) / 2 - 0.5
    result = dense(60, 120, 3) @ (coarse - 30) ** 3
    np.testing.assert_allclose(result[40:80], (fine[40:80] - 30) ** 3, atol=0.02)


@pytest.mark.parametrize("shape", [(13, 20, 17), (10, 15, 25), (21, 15, 14)])
@pytest.mark.parametrize("order", [1, 3])
def test_upsampling_equals_scikit_image(shape: tuple[int, int, int], order: int) -> None:
    from skimage.transform import resize

    image = np.random.default_rng(0).normal(size=(2, 10, 15, 14)).astype(np.float32)
    expected = [resize(c.astype(float), shape, order, mode="edge", anti_aliasing=False) for c in image]
    np.testing.assert_allclose(resample_image(image, shape, order), expected, atol=1e-4)


def test_downsampling_is_smoothed_as_in_scikit_image() -> None:
    from skimage.transform import resize

    image = np.random.default_rng(1).normal(size=(1, 1, 120, 160)).astype(np.float32)
    expected = resize(image[0, 0].astype(float), (30, 40), 3, mode="edge", anti_aliasing=True)
    np.testing.assert_allclose(resample_image(image, (1, 30, 40))[0, 0], expected, atol=0.01)


def test_downsampling_does_not_alias() -> None:
    stripes = np.tile([1.0, -1.0], 64).astype(np.float32).reshape(1, 1, 1, 128)  # one voxel each: gone at a quarter
    assert np.abs(resample_image(stripes, (1, 1, 33))[..., 4:-4]).max() < 0.02


def test_values_stay_within_the_range_of_the_image() -> None:
    edge = np.zeros((1, 1, 1, 20), np.float32)
    edge[..., 10:] = 1
    result = resample_image(edge, (1, 1, 57))
    assert result.min() == 0
    assert result.max() == 1


def test_slabs_and_bands_change_nothing() -> None:
    image = np.random.default_rng(2).normal(size=(1, 150, 9, 8)).astype(np.float32)
    grid = GridMap((150, 9, 8), (211, 7, 12), 3)
    whole = grid.slab(image, 0, 211)
    parts = [grid.slab(image, a, b) for a, b in grid.slabs(1, budget_bytes=4000)]
    assert len(parts) > 10
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


@pytest.mark.parametrize("separate_axis", [None, 0])
def test_torch_gives_what_numpy_gives(separate_axis: int | None) -> None:
    image = np.random.default_rng(3).normal(size=(2, 7, 40, 30)).astype(np.float32)
    by_torch = resample_image(image, (12, 70, 11), 3, separate_axis, device="cpu")
    np.testing.assert_allclose(resample_image(image, (12, 70, 11), 3, separate_axis), by_torch, atol=1e-5)


def test_torch_makes_its_result_where_the_values_are(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(12.0).reshape(1, 12, 1)
    axis = AxisMap(12, 5, 1)
    expected = axis.apply(values.numpy(), 1, 0, 5)
    monkeypatch.delattr(np, "empty")  # it would be on the host
    np.testing.assert_allclose(axis.apply(values, 1, 0, 5).numpy(), expected, atol=1e-6)
    assert axis.apply(values.to("meta"), 1, 0, 5).device.type == "meta"


def test_slabs_take_only_the_rows_they_need() -> None:
    grid = GridMap((100, 4, 4), (200, 4, 4), 1)
    assert grid.needed_rows(0, 10) == (0, 6)  # positions -0.25 .. 4.25
    assert grid.needed_rows(100, 110) == (49, 56)  # positions 49.75 .. 54.25


def test_separate_axis_repeats_slices() -> None:
    image = np.stack([np.full((6, 6), v, np.float32) for v in (0, 5, 9)])[None]
    result = resample_image(image, (6, 6, 6), 3, separate_axis=0)
    np.testing.assert_allclose(result[0, :, 0, 0], [0, 0, 5, 5, 9, 9])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_nearest_takes_the_middle_voxel_along_any_axis(axis: int, device: str | None) -> None:
    image = np.moveaxis(np.broadcast_to(np.arange(35, dtype=np.float32), (1, 6, 4, 35)), 3, axis + 1)
    grid = GridMap(image.shape[1:], [5 if i == axis else n for i, n in enumerate(image.shape[1:])], 1, axis, device)
    result = np.moveaxis(grid.slab(image, 0, grid.shape_out[0]), axis + 1, 3)
    np.testing.assert_array_equal(result[0, 0, 0], [3, 10, 17, 24, 31])  # of 0 to 6, 7 to 13, ...


@pytest.mark.parametrize(
    ("spacing", "target", "mode", "axis"),
    [
        ((5.0, 1.0, 1.0), (5.0, 1.0, 1.0), "auto", 0),
        ((2.0, 1.0, 1.0), (2.0, 1.0, 1.0), "auto", None),
        ((2.0, 1.0, 1.0), (4.0, 1.0, 1.0), "auto", 0),  # the target is anisotropic
        ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0), "auto", 2),  # the image's own coarse axis comes first
        ((0.2, 1.0, 1.0), (0.2, 1.0, 1.0), "auto", None),  # two coarse axes
        ((0.2, 1.0, 1.0000002), (0.2, 1.0, 1.0), "auto", None),  # as a NIfTI header holds them
        ((2.0, 1.0, 1.0), (2.0, 1.0, 1.0), "always", 0),
        ((5.0, 1.0, 1.0), (5.0, 1.0, 1.0), "never", None),
    ],
)
def test_separate_axis(spacing: tuple, target: tuple, mode: str, axis: int | None) -> None:
    assert find_separate_axis(spacing, target, mode) == axis


def test_resampled_shape() -> None:
    assert resampled_shape((10, 100, 101), (3.0, 0.5, 0.5), (None, 1.0, 1.0)) == (10, 50, 50)
    assert resampled_shape((1, 4, 4), (1.0, 1.0, 1.0), (5.0, 2.0, 100.0)) == (1, 2, 1)
