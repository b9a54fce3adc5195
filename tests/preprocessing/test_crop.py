"""Cropping and hole filling on pictures that can be read."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.preprocessing.crop import crop_to_nonzero, nonzero_mask, uncrop


def test_crop_and_uncrop() -> None:
    image = np.zeros((2, 3, 5, 6), np.float32)
    image[0, 1, 2, 3], image[1, 2, 4, 4] = 1, -1
    cropped, box = crop_to_nonzero(image)
    assert box == ((1, 3), (2, 5), (3, 5))
    np.testing.assert_array_equal(uncrop(cropped, box, (3, 5, 6)), image)
    assert uncrop(cropped, box, (3, 5, 6), fill=-7)[0, 0, 0, 0] == -7


def test_holes_are_filled_bays_are_not() -> None:
    picture = np.array(
        [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0]]
    )
    expected = picture.copy()
    expected[2, 2] = 1  # the hole; the bay at the bottom reaches the border
    np.testing.assert_array_equal(nonzero_mask(picture[None, None].astype(np.float32))[0], expected)
    volume = np.zeros((1, 3, 5, 6), np.float32)
    volume[0, :] = picture  # a tube: its hole is open at both ends
    np.testing.assert_array_equal(nonzero_mask(volume), volume[0] != 0)
    volume[0, ::2, 2, 2] = 1  # closed by lids
    np.testing.assert_array_equal(nonzero_mask(volume)[1], expected)


def test_any_channel_counts() -> None:
    image = np.zeros((2, 1, 3, 3), np.float32)
    image[0, 0, 0, 0], image[1, 0, 2, 2] = 4, -4
    np.testing.assert_array_equal(nonzero_mask(image)[0], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
