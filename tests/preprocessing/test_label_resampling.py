"""Label maps on other grids: values are kept whole, and objects keep their volume where voxels become larger."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.preprocessing.label_resampling import resample_labels


def test_labels_doubled_and_halved() -> None:
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, :, 2:] = 3
    labels[0, 2:, :2] = 1
    doubled = resample_labels(labels, (1, 8, 8))
    np.testing.assert_array_equal(doubled, np.kron(labels, np.ones((1, 2, 2), np.uint8)))
    np.testing.assert_array_equal(resample_labels(doubled, (1, 4, 4)), labels)


def test_labels_are_never_mixed_into_new_values() -> None:
    labels = np.zeros((1, 1, 12), np.uint8)
    labels[..., 4:8], labels[..., 8:] = 1, 7
    assert set(np.unique(resample_labels(labels, (1, 1, 31)))) == {0, 1, 7}


def test_empty_and_unchanged_labels() -> None:
    empty = np.zeros((2, 4, 4), np.int16)
    assert resample_labels(empty, (3, 5, 5)).dtype == np.int16
    assert not resample_labels(empty, (3, 5, 5)).any()
    assert resample_labels(empty, (2, 4, 4)) is empty


def ball(shape: tuple[int, ...], centre: np.ndarray, diameter: float) -> np.ndarray:
    grids = np.meshgrid(*[np.arange(n) + 0.5 for n in shape], indexing="ij")
    return np.asarray(sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) <= (diameter / 2) ** 2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("width", [3, 6])
def test_small_objects_keep_their_volume(dims: int, factor: float, width: int) -> None:
    """Discs and balls at any place, so many coarse voxels wide, alone and within another class."""
    rng = np.random.default_rng(0)
    coarse = width + 8
    fine = round(coarse * factor)
    factor = fine / coarse
    alone, within, around = [], [], []
    for _ in range(20):
        centre = fine / 2 + rng.uniform(-factor, factor, dims)
        small, large = (ball((fine,) * dims, centre, d * factor) for d in (width, width + 4))
        shape = (1,) * (3 - dims) + (coarse,) * dims
        lesion = small.astype(np.uint8).reshape((1,) * (3 - dims) + small.shape)
        nested = np.where(large & ~small, 2, small).astype(np.uint8).reshape(lesion.shape)
        found = resample_labels(nested, shape)
        alone.append(np.count_nonzero(resample_labels(lesion, shape)) * factor**dims / small.sum())
        within.append(np.count_nonzero(found == 1) * factor**dims / small.sum())
        around.append(np.count_nonzero(found == 2) * factor**dims / (large & ~small).sum())
    assert np.mean(alone) == pytest.approx(1, abs=0.05)
    assert np.mean(within) == pytest.approx(1, abs=0.05)
    assert np.mean(around) == pytest.approx(1, abs=0.05)


def test_each_object_keeps_its_own_volume() -> None:
    """A lesion of two coarse voxels is not made smaller for the sake of a large one in the same image."""
    labels = np.zeros((1, 40, 40), np.uint8)
    labels[0, 1:4, 1:4] = 1  # 9 voxels of the finer grid: 2.25 of the coarser one
    labels[0, 11:33, 11:33] = 1  # 484: 121
    found = resample_labels(labels, (1, 20, 20))
    assert found[0, :4, :4].sum() == 2
    assert found[0, 4:, 4:].sum() == 121
    assert found.sum() == 123


def test_coarser_slices_thinner_pixels() -> None:
    """One axis loses voxels while another gains them."""
    labels = np.zeros((8, 6, 6), np.uint8)
    labels[2:6, 2:4, 2:4] = 5
    found = resample_labels(labels, (4, 12, 12))
    np.testing.assert_array_equal(np.argwhere(found == 5).min(axis=0), [1, 4, 4])
    np.testing.assert_array_equal(np.argwhere(found == 5).max(axis=0), [2, 7, 7])
    assert np.count_nonzero(found) == 2 * 4 * 4


def test_no_hole_between_classes_that_meet() -> None:
    labels = np.ones((1, 9, 9), np.int16)
    labels[0, :, 4:] = 300
    labels[0, 5:] = 7
    assert (resample_labels(labels, (1, 4, 4)) > 0).all()
