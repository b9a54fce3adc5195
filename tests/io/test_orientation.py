"""Axis codes and reorientation, compared with nibabel's and by hand."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry
from unisegdiff_pipeline.io.orientation import (
    Reorientation,
    axis_codes,
    common_direction,
    nearest_reorientation,
    reorientation_of,
)
from unisegdiff_pipeline.planning.plans import PreprocessingPlan

ALL_CODES = ["".join(c) for order in itertools.permutations(("LR", "PA", "SI")) for c in itertools.product(*order)]
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


def rotation(degrees: float, axis: int) -> np.ndarray:
    """About one of the patient's axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    i, j = (a for a in range(3) if a != axis)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def direction_of(affine: np.ndarray) -> tuple[float, ...]:
    """Our direction of nibabel's affine."""
    matrix = LPS_FROM_RAS @ affine[:3, :3]
    return tuple((matrix / np.linalg.norm(matrix, axis=0)).ravel().tolist())


def stored_as(affine: np.ndarray, array_xyz: np.ndarray, codes: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """The same image in the axes that `codes` name, by nibabel: (Z, Y, X) and its direction."""
    image = nibabel.Nifti1Image(array_xyz, affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(codes)))
    return np.asarray(turned.dataobj).T, direction_of(turned.affine)


def test_identity_is_lps() -> None:
    assert axis_codes(IDENTITY_DIRECTION) == "LPS"


@pytest.mark.parametrize("codes", ALL_CODES)
def test_codes_are_nibabels(codes: str) -> None:
    _, direction = stored_as(np.diag([1.0, 1.0, 2.0, 1.0]), np.zeros((2, 3, 4)), codes)
    assert axis_codes(direction) == codes


@pytest.mark.parametrize("tilt", [(0, 0), (17, 0), (30, 2), (44, 1), (45, 2), (45, 0)])
def test_all_48_ways_to_store_an_image_become_the_same_array(tilt: tuple[int, int]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*tilt) @ np.diag([1.0, 1.2, 5.0])
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.int32)
    results = []
    for codes in ALL_CODES:
        stored, direction = stored_as(affine, array, codes)
        turn = nearest_reorientation(direction, IDENTITY_DIRECTION)
        results.append(turn.apply(stored))
        np.testing.assert_array_equal(turn.undo(turn.apply(stored)), stored)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_reorientation_by_hand() -> None:
    array = np.arange(6).reshape(1, 1, 2, 3)  # (C, Z, Y, X)
    turn = Reorientation((2, 0, 1), (True, False, False))
    assert turn.apply(array).tolist() == [[[[2, 5]], [[1, 4]], [[0, 3]]]]
    assert turn.undo(turn.apply(array)).tolist() == array.tolist()
    assert turn.apply(array).base is not None  # a view


def test_a_2d_image_is_turned_within_the_axial_plane_alone() -> None:
    stored = Geometry(
        direction=direction_of(np.diag([1.0, 1.0, 1.0, 1.0])), is_2d=True
    )  # x to the right, y to the front
    assert reorientation_of(stored, IDENTITY_DIRECTION) == Reorientation((0, 1, 2), (False, True, True))
    sagittal = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert reorientation_of(stored, sagittal) == Reorientation()
    volume = Geometry(direction=stored.direction)
    assert reorientation_of(volume, sagittal) == nearest_reorientation(stored.direction, sagittal) != Reorientation()


def test_a_second_permutation_can_be_joined() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    turn = Reorientation((1, 2, 0), (True, False, True))
    np.testing.assert_array_equal(turn.then((2, 0, 1)).apply(array), turn.apply(array).transpose(2, 0, 1))


def test_the_commonest_orientation_is_taken() -> None:
    ras, lps = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), IDENTITY_DIRECTION
    assert common_direction([ras, lps, ras]) == ras
    assert common_direction([ras, lps]) == lps  # as many of both: the first in the alphabet


def test_a_small_tilt_changes_nothing_and_a_large_one_is_kept() -> None:
    tilted = [tuple(rotation(degrees, 2).ravel().tolist()) for degrees in (10, 20)]
    assert common_direction(tilted) == IDENTITY_DIRECTION
    oblique = [tuple(rotation(degrees, 2).ravel().tolist()) for degrees in (38, 42)]
    cosine, sine = 0.77 / np.hypot(0.77, 0.64), 0.64 / np.hypot(0.77, 0.64)  # of 40 degrees, after rounding to 1 %
    expected = (cosine, -sine, 0.0, sine, cosine, 0.0, 0.0, 0.0, 1.0)
    assert common_direction(oblique) == pytest.approx(expected, abs=1e-5)


def test_a_common_direction_may_stand_in_a_plan() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        direction = common_direction([tuple(axes.ravel().tolist())])
        plan = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), (), direction=direction)
        assert nearest_reorientation(tuple(axes.ravel().tolist()), plan.direction or ()) == Reorientation()


def test_oblique_views_on_both_sides_of_45_degrees_keep_their_axes() -> None:
    """By the patient's axes alone the view at 50 degrees would get its rows where that at 40 has its slices."""
    views = [tuple(rotation(degrees, 0).ravel().tolist()) for degrees in (40, 41, 50)]
    assert [axis_codes(view) for view in views] == ["LPS", "LPS", "LSA"]
    wanted = common_direction(views)
    assert [nearest_reorientation(view, wanted) for view in views] == [Reorientation()] * 3
