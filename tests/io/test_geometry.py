"""Geometry: differences in words, and boxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unisegdiff_pipeline.io.geometry import Geometry, box_slices, geometry_differences, nonzero_box

BASE = Geometry((3.0, 0.5, 0.5), (10.0, -20.0, 30.0))


def test_float32_rounding_is_no_difference():
    rounded = Geometry(
        tuple(float(np.float32(v) * (1 + 1e-6)) for v in BASE.spacing_mm),
        tuple(float(np.float32(v) + 1e-5) for v in BASE.origin_mm),
    )
    assert geometry_differences(BASE, rounded) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"spacing_mm": (3.0, 0.5, 0.51)}, "spacing"),
        ({"origin_mm": (10.0, -20.0, 30.1)}, "origin"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)}, "direction"),
        ({"is_2d": True}, "2D"),
    ],
)
def test_each_field_is_compared(change, word):
    differences = geometry_differences(BASE, replace(BASE, **change))
    assert len(differences) == 1
    assert word in differences[0]


def test_tolerance_of_the_origin_is_a_share_of_the_largest_voxel_edge():
    moved = replace(BASE, origin_mm=(10.0, -20.0, 30.2))  # 0.2 mm of 3 mm
    assert geometry_differences(BASE, moved, tolerance=0.1) == []
    assert len(geometry_differences(BASE, moved, tolerance=0.05)) == 1


def test_nonzero_box_by_hand():
    array = np.zeros((2, 4, 5, 6))
    array[0, 1, 2, 3] = 1
    array[1, 2, 4, 0] = -7
    assert nonzero_box(array) == ((1, 3), (2, 5), (0, 4))
    assert nonzero_box(array[0]) == ((1, 2), (2, 3), (3, 4))
    assert array[(slice(None), *box_slices(((1, 3), (2, 5), (0, 4))))].shape == (2, 2, 3, 4)


def test_nonzero_box_of_nothing_is_everything():
    assert nonzero_box(np.zeros((1, 4, 5, 6))) == ((0, 4), (0, 5), (0, 6))
    assert nonzero_box(np.ones((1, 4, 5, 6))) == ((0, 4), (0, 5), (0, 6))


def test_nonzero_box_against_numpy_on_random_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        array = (rng.random((2, 7, 8, 9)) > 0.98).astype(np.float32)
        if not array.any():
            continue
        hits = np.argwhere(array.any(axis=0))
        expected = tuple((int(lo), int(hi) + 1) for lo, hi in zip(hits.min(0), hits.max(0), strict=True))
        assert nonzero_box(array) == expected


def test_nonzero_box_refuses_other_ranks():
    with pytest.raises(ValueError, match="expected"):
        nonzero_box(np.zeros((4, 4)))


def test_voxel_volume():
    assert BASE.voxel_volume_mm3 == pytest.approx(0.75)
