"""Geometry: differences in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import (
    Geometry,
    corner_displacement,
    geometry_differences,
)

BASE = Geometry((3.0, 0.5, 0.5), (10.0, -20.0, 30.0))


SHAPE = (11, 21, 31)


def test_float32_rounding_is_no_difference():
    rounded = Geometry(
        tuple(float(np.float32(v) * (1 + 1e-6)) for v in BASE.spacing_mm),
        tuple(float(np.float32(v) + 1e-5) for v in BASE.origin_mm),
    )
    assert geometry_differences(BASE, rounded, SHAPE) == []


@pytest.mark.parametrize(
    ("change", "word", "voxels"),
    [
        ({"spacing_mm": (3.0, 0.5, 0.51)}, "spacing (3, 0.5, 0.5) against (3, 0.5, 0.51)", "0.6"),  # 30 x 0.01 / 0.5
        ({"origin_mm": (10.0, -20.0, 30.3)}, "origin", "0.1"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)}, "direction", "40"),
    ],
)
def test_each_field_is_compared(change, word, voxels):
    field, corner = geometry_differences(BASE, replace(BASE, **change), SHAPE)
    assert word in field
    assert corner == f"a corner lies {voxels} voxels off (allowed is 0.1)"


@pytest.mark.parametrize(
    "change",
    [
        {"origin_mm": (10.003, -19.997, 30.003)},  # 3 micrometres
        {"direction": (np.cos(1e-4), -np.sin(1e-4), 0.0, np.sin(1e-4), np.cos(1e-4), 0.0, 0.0, 0.0, 1.0)},
        {"spacing_mm": (3.0, 0.5, 0.501)},  # 30 steps of 0.001 mm are 0.06 voxels
    ],
)
def test_what_moves_no_corner_by_a_tenth_of_a_voxel_is_no_difference(change):
    assert geometry_differences(BASE, replace(BASE, **change), SHAPE) == []


def test_the_size_of_the_image_decides_what_a_rotation_means():
    angle = 1e-3
    turned = (np.cos(angle), -np.sin(angle), 0.0, np.sin(angle), np.cos(angle), 0.0, 0.0, 0.0, 1.0)
    a, b = Geometry(), Geometry(direction=turned)
    assert geometry_differences(a, b, (1, 51, 51)) == []
    assert corner_displacement(a, b, (1, 201, 201)) == pytest.approx(0.2, rel=1e-2)
    assert len(geometry_differences(a, b, (1, 201, 201))) == 2


def test_cosines_that_were_made_orthonormal_again_are_no_difference():
    a = Geometry(
        (2.0, 0.9, 0.9),
        direction=(
            0.99955683,
            -4.2305939e-05,
            0.029768182,
            0.0023210087,
            0.99706551,
            -0.076517888,
            -0.029677592,
            0.076553061,
            0.99662373,
        ),
    )
    b = replace(
        a,
        direction=(
            0.99955753,
            0.0011393518,
            0.029722897,
            0.0011393518,
            0.99706621,
            -0.076535507,
            -0.029722896,
            0.076535505,
            0.99662372,
        ),
    )
    assert corner_displacement(a, b, (32, 48, 40)) < 0.1
    assert geometry_differences(a, b, (32, 48, 40)) == []


def test_a_2d_file_agrees_with_the_same_plane_as_one_slice():
    flat = Geometry((1.0, 0.5, 0.4), (10.0, -20.0, 0.0), is_2d=True)
    slice_of_3d = Geometry((5.0, 0.5, 0.4), (10.0, -20.0, 77.0))
    for pair in ((flat, slice_of_3d), (slice_of_3d, flat)):
        assert geometry_differences(*pair, (1, 5, 6)) == []
    assert geometry_differences(flat, replace(slice_of_3d, spacing_mm=(5.0, 0.5, 0.5)), (1, 5, 6))
    assert geometry_differences(flat, replace(slice_of_3d, origin_mm=(11.0, -20.0, 77.0)), (1, 5, 6))
    # Of a sagittal slice the first two coordinates are others than those of the plane.
    sagittal = replace(slice_of_3d, direction=(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    assert geometry_differences(flat, sagittal, (1, 5, 6)) == []


def test_voxel_volume():
    assert BASE.voxel_volume_mm3 == pytest.approx(0.75)
