"""The augmentation of a cascade's mask: operations by hand and beside scipy's, frequencies, and what never happens."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.training.data.mask_augmentation import (
    BY_NAME,
    LARGEST_REMOVED,
    MaskDraw,
    augment_mask,
    draw_mask_augmentation,
    remove_component,
)


def ball(radius: int) -> np.ndarray:
    axis = np.arange(-radius, radius + 1) ** 2
    return axis[:, None, None] + axis[:, None] + axis <= radius**2


def blobs(seed: int = 0) -> np.ndarray:
    """A mask whose pieces keep away from the border, where the two implementations differ by design."""
    mask = np.zeros((30, 34, 32), bool)
    mask[10:20, 10:24, 10:22] = np.random.default_rng(seed).random((10, 14, 12)) < 0.7
    return mask


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("name", ["dilate", "erode", "close", "open"])
def test_operations_are_those_of_a_ball(name: str, radius: int) -> None:
    from scipy import ndimage

    theirs = {
        "dilate": ndimage.binary_dilation,
        "erode": ndimage.binary_erosion,
        "close": ndimage.binary_closing,
        "open": ndimage.binary_opening,
    }[name]
    mask = blobs() if name in ("dilate", "close") else ~blobs() & ndimage.binary_dilation(blobs(), ball(5))
    assert (BY_NAME[name](mask, radius) == theirs(mask, ball(radius))).all()


def test_by_hand_on_a_line() -> None:
    line = np.zeros((1, 1, 11), bool)
    line[..., 4] = True
    assert np.flatnonzero(BY_NAME["dilate"](line, 2)).tolist() == [2, 3, 4, 5, 6]
    line[..., 3:8] = True
    assert np.flatnonzero(BY_NAME["erode"](line, 1)).tolist() == [4, 5, 6]
    line[..., 5] = False
    assert np.flatnonzero(BY_NAME["close"](line, 1)).tolist() == [3, 4, 5, 6, 7]
    assert not BY_NAME["open"](line, 1).any()


@pytest.mark.parametrize("full", [False, True])
def test_an_empty_and_a_full_mask_stay(full: bool) -> None:
    mask = np.full((4, 5, 6), full)
    for operation in BY_NAME.values():
        assert (operation(mask, 3) == mask).all()


def test_what_a_class_gains_another_one_loses() -> None:
    channels = np.zeros((2, 1, 1, 9), bool)
    channels[0, ..., 2:4], channels[1, ..., 4:8] = True, True
    augment_mask(channels, MaskDraw(((0, "dilate", 2),), ()))
    assert np.flatnonzero(channels[0]).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(channels[1]).tolist() == [6, 7]


def test_a_small_component_is_removed_and_a_large_one_never() -> None:
    mask = np.zeros((1, 10, 10), bool)
    mask[0, :4, :5] = True  # 20 % of the patch
    mask[0, 6, 1], mask[0, 8, 1] = True, True
    large = mask.copy()
    large[0, 6:] = False
    first, second = mask.copy(), mask.copy()
    remove_component(first, 0.0)
    remove_component(second, 0.99)
    assert (mask.sum(), first.sum(), second.sum()) == (22, 21, 21)
    assert not first[0, 6, 1]
    assert not second[0, 8, 1]
    remove_component(large, 0.5)
    assert large.sum() == 20 > LARGEST_REMOVED * large.size


def test_frequencies_and_radii() -> None:
    draws = [draw_mask_augmentation(3, np.random.default_rng([0, i])) for i in range(3000)]
    assert sum(bool(draw.operations) for draw in draws) / 3000 == pytest.approx(0.4, abs=0.03)
    assert sum(bool(draw.removals) for draw in draws) / 3000 == pytest.approx(0.2, abs=0.03)
    drawn = [one for draw in draws for one in draw.operations]
    assert {channel for channel, _, _ in drawn[:90]} == {0, 1, 2}
    assert {name for _, name, _ in drawn} == set(BY_NAME)
    assert {radius for _, _, radius in drawn} == set(range(1, 8))
    assert draw_mask_augmentation(3, np.random.default_rng(7)) == draw_mask_augmentation(3, np.random.default_rng(7))


def test_classes_never_overlap_afterwards() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = np.kron(rng.integers(0, 4, (4, 4, 4)), np.ones((4, 4, 4), int))
        channels = np.stack([labels == value for value in (1, 2, 3)])
        augment_mask(channels, draw_mask_augmentation(3, rng))
        assert channels.sum(axis=0).max() <= 1
