"""Boxes by hand, and label maps kept as the box around their foreground."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.core.boxes import (
    Box,
    CroppedLabels,
    box_slices,
    centred_box,
    grow_box,
    join_boxes,
    nonzero_box,
    whole_box,
)


def test_the_box_around_what_is_not_zero() -> None:
    image = np.zeros((2, 4, 5, 6))
    image[0, 1, 2, 3] = 1
    image[1, 2, 4, 0] = -7
    assert nonzero_box(*image) == ((1, 3), (2, 5), (0, 4))
    assert nonzero_box(image[0]) == ((1, 2), (2, 3), (3, 4))
    assert nonzero_box(image[1, 2]) == ((4, 5), (0, 1))
    assert image[:, *box_slices(((1, 3), (2, 5), (0, 4)))].shape == (2, 2, 3, 4)
    assert nonzero_box(np.ones((4, 5, 6))) == whole_box((4, 5, 6)) == ((0, 4), (0, 5), (0, 6))


def test_nothing_has_no_box() -> None:
    assert nonzero_box(np.zeros((4, 5, 6))) is None
    assert nonzero_box(np.zeros((4, 5), bool), np.zeros((4, 5), bool)) is None
    assert nonzero_box(np.zeros((4, 0, 6))) is None


@pytest.mark.parametrize("dims", [2, 3])
def test_the_box_of_random_masks_is_that_of_their_voxels(dims: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((7, 8, 9)[:dims]) > 0.97
        mask[(0,) * dims] |= not mask.any()
        voxels = np.argwhere(mask)
        assert nonzero_box(mask) == tuple(zip(voxels.min(0).tolist(), (voxels.max(0) + 1).tolist(), strict=True))


def test_arrays_of_several_shapes_have_no_box() -> None:
    for arrays in ((), (np.zeros((2, 3)), np.zeros((3, 2)))):
        with pytest.raises(ValueError, match="of one shape"):
            nonzero_box(*arrays)


def test_joining() -> None:
    one, other, empty = ((0, 1), (2, 3), (4, 5)), ((1, 3), (0, 1), (4, 9)), ((0, 0), (0, 0), (0, 0))
    assert join_boxes([one, None, other, empty]) == ((0, 3), (0, 3), (4, 9))
    assert join_boxes([one]) == one
    assert join_boxes([]) is join_boxes([None, empty]) is None


def test_growing_ends_at_the_border() -> None:
    assert grow_box(((0, 1), (2, 3), (3, 4)), (1, 1, 1), (1, 5, 4)) == ((0, 1), (1, 4), (2, 4))
    assert grow_box(((4, 5), (4, 5)), (0, 9), (9, 9)) == ((4, 5), (0, 9))


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        ((2, 4), ((4, 6), (5, 9))),  # around (5, 7)
        ((3, 3), ((3, 6), (5, 8))),  # half a voxel towards the corner
        ((2, 9), ((4, 6), (1, 10))),  # moved in from the border at 10
        ((12, 2), ((0, 10), (6, 8))),  # the whole axis
    ],
)
def test_a_box_around_the_middle_of_another_stays_inside(extent: tuple[int, int], expected: Box) -> None:
    assert centred_box(((4, 6), (6, 8)), extent, (10, 10)) == expected


@pytest.mark.parametrize("box", [((0, 5), (0, 6), (0, 7)), ((1, 3), (2, 6), (0, 2)), ((4, 5), (5, 6), (6, 7))])
def test_labels_kept_as_a_box_give_any_crop(box: Box) -> None:
    rng = np.random.default_rng(0)
    for filled in (0, 1, 30, 210):
        labels = np.zeros((5, 6, 7), np.uint8)
        labels.ravel()[rng.permutation(labels.size)[:filled]] = 3
        kept = CroppedLabels.of(labels)
        assert np.array_equal(kept.within(box), labels[box_slices(box)])
        assert np.array_equal(kept.whole(), labels)
        assert kept.whole().dtype == labels.dtype


def test_labels_keep_no_more_than_their_box() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    assert CroppedLabels.of(labels).inner.size == 0
    labels[1:3, 2, 0:5:4] = 7
    kept = CroppedLabels.of(labels)
    assert kept.box == ((1, 3), (2, 3), (0, 5))
    assert kept.inner[0].tolist() == [[7, 0, 0, 0, 7]]
    assert kept.inner.base is None  # the whole map is let go
