"""Spacings that cannot be, by hand."""

from __future__ import annotations

import re

import pytest

from unisegdiff_pipeline.io.spacing import spacing_problem

ONE = (1.0, 1.0, 1.0)
SHAPE = (10, 10, 10)


@pytest.mark.parametrize(
    ("spacing", "words"),
    [
        ((0.001, 0.001, 0.001), "voxels of 0.001 x 0.001 x 0.001 mm are 1000 times smaller.*in metres"),
        ((1000.0, 1000.0, 1000.0), "1000 times larger.*in micrometres"),
        ((50.0, 50.0, 50.0), "50 times larger than those of the others, 1 x 1 x 1 mm.*lost or changed"),
        ((1.0, 21.0, 1.0), "21 times larger"),
        ((1e-7, 1.0, 1.0), "cannot be: allowed are 1e-06 to 1000 mm"),
        ((2000.0, 1.0, 1.0), "cannot be"),
    ],
)
def test_spacings_that_are_refused(spacing: tuple[float, ...], words: str) -> None:
    found = spacing_problem(spacing, SHAPE, ONE, "the others")
    assert found is not None
    assert re.search(words, found), found


@pytest.mark.parametrize("spacing", [(10.0, 0.4, 0.4), (20.0, 1.0, 1.0), (0.05, 1.0, 1.0), ONE])
def test_spacings_that_pass(spacing: tuple[float, ...]) -> None:
    assert spacing_problem(spacing, SHAPE, ONE, "the others") is None


def test_a_lost_spacing_of_one_is_named_as_such() -> None:
    found = spacing_problem(ONE, SHAPE, (0.001, 0.0002, 0.0002), "the others")
    assert found is not None
    assert "a spacing of 1 along all axes often means that it was lost" in found


def test_axes_of_one_voxel_and_axes_that_are_not_known_do_not_count() -> None:
    assert spacing_problem((100.0, 1.0, 1.0), (1, 9, 9), ONE, "the others") is None
    assert spacing_problem((100.0, 1.0, 1.0), (9, 9, 9), (None, 1.0, 1.0), "the others") is None
