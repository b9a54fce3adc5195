"""Votes and STAPLE over label maps, on a few voxels and against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from unisegdiff_pipeline.core.boxes import CroppedLabels
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.label_fusion import combine_masks, require_combinable

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOFTMAX = LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def line(*values: int) -> np.ndarray:
    return np.array(values, np.uint8).reshape(1, 1, -1)


def combined(scheme: LabelScheme, combine: str, *maps: np.ndarray) -> list[int]:
    return combine_masks([CroppedLabels.of(labels) for labels in maps], scheme, combine).ravel().tolist()  # type: ignore[arg-type]


def blobs(count: int, labels: int) -> list[np.ndarray]:
    """Label maps of several readers, int (Z, Y, X): smooth random blobs that overlap for the most part."""
    rng = np.random.default_rng(labels)
    axes = np.mgrid[:9, :16, :14]
    maps = []
    for _ in range(count):
        out = np.zeros(axes.shape[1:], np.uint8)
        for value in range(1, labels + 1):
            centre = np.array([4, 4 + 4 * value, 7]) + rng.normal(scale=0.7, size=3)
            out[((axes - centre[:, None, None, None]) ** 2).sum(axis=0) < 16] = value
        maps.append(out)
    return maps


def test_a_majority_is_more_than_half() -> None:
    """Votes of four masks for each voxel: 0, 1, 2 (a tie: background), 3, 4."""
    maps = [line(0, 1, 1, 1, 1), line(0, 0, 1, 1, 1), line(0, 0, 0, 1, 1), line(0, 0, 0, 0, 1)]
    assert combined(BINARY, "majority", *maps) == [0, 0, 0, 1, 1]
    assert combined(BINARY, "majority", *maps[:3]) == [0, 0, 1, 1, 1]


def test_of_several_classes_the_most_votes_win() -> None:
    """By voxel: 2 2 1, 0 1 2 (a tie of all: background), 1 1 2 2 0 (a tie of classes: the first)."""
    assert combined(SOFTMAX, "majority", line(2, 0), line(2, 1), line(1, 2)) == [2, 0]
    assert combined(SOFTMAX, "majority", line(1), line(1), line(2), line(2), line(0)) == [1]


def test_regions_are_voted_on_one_by_one() -> None:
    """1 2 0: two of three say whole, one says core; so whole, although no label has two votes. 2 2 0: both."""
    assert combined(REGIONS, "majority", line(1, 2), line(2, 2), line(0, 0)) == [1, 2]


@pytest.mark.parametrize("scheme", [BINARY, SOFTMAX, REGIONS])
def test_masks_that_cover_the_image_leave_none_out(scheme: LabelScheme) -> None:
    whole, part = line(*[1] * 10), line(*[1] * 9, 0)
    assert combined(scheme, "staple", whole, part, part)[:9] == [1] * 9


def test_nothing_drawn_anywhere_is_background() -> None:
    for combine in ("majority", "staple"):
        for scheme in (BINARY, SOFTMAX, REGIONS):
            assert combined(scheme, combine, line(0, 0), line(0, 0)) == [0, 0]


def test_one_mask_or_equal_masks_are_themselves() -> None:
    labels = blobs(1, 2)[0]
    for combine in ("majority", "staple"):
        for scheme in (SOFTMAX, REGIONS):
            for count in (1, 3):
                assert combined(scheme, combine, *[labels] * count) == labels.ravel().tolist()


def test_a_majority_is_simpleitk_s() -> None:
    """LabelVoting marks a tie with a label of its own; there the rule is ours."""
    maps = blobs(5, 3)
    scheme = LabelScheme(("a", "b", "c"), ((1,), (2,), (3,)), "softmax", (1, 2, 3))
    expected = sitk.GetArrayFromImage(sitk.LabelVoting([sitk.GetImageFromArray(m) for m in maps], 9))
    found = combine_masks([CroppedLabels.of(m) for m in maps], scheme, "majority")
    assert np.array_equal(found[expected != 9], expected[expected != 9])
    assert 50 < np.count_nonzero(found) < found.size


def test_staple_is_simpleitk_s_over_the_whole_volume() -> None:
    """Background around the masks matters to STAPLE, and it is counted although it is not kept."""
    for margin in (0, 6):
        maps = [np.pad(m, margin) for m in blobs(4, 1)]
        images = [sitk.GetImageFromArray(m) for m in maps]
        expected = sitk.GetArrayFromImage(sitk.STAPLE(images, 1.0, 1)) > 0.5
        assert np.array_equal(combine_masks([CroppedLabels.of(m) for m in maps], BINARY, "staple") == 1, expected)


def test_a_hundred_masks() -> None:
    """More than fit into one number a voxel: mask i marks the first i of 100 voxels, so voxel i has 99 - i votes."""
    maps = [(np.arange(100) < i).astype(np.uint8).reshape(1, 10, 10) for i in range(100)]
    assert combined(BINARY, "majority", *maps) == [1] * 49 + [0] * 51


def test_label_values_beyond_eight_bits() -> None:
    scheme = LabelScheme(("far",), ((300,),), "binary", (300,))
    maps = [
        np.array([[[0, 300, 300]]], np.int16),
        np.array([[[0, 0, 300]]], np.int16),
        np.array([[[0, 300, 0]]], np.int16),
    ]
    assert combined(scheme, "majority", *maps) == [0, 300, 300]


def test_what_cannot_be_combined_is_refused() -> None:
    require_combinable("mean", 0)
    require_combinable("staple", 1)
    with pytest.raises(UsdError, match=r"combined by majority, but 0 samples are drawn; ask for some \(--samples N"):
        require_combinable("majority", 0)
    with pytest.raises(ValueError, match="combine is 'median'; allowed are mean, majority, staple"):
        require_combinable("median", 3)
    with pytest.raises(ValueError, match="no masks to combine"):
        combine_masks([], BINARY, "majority")
