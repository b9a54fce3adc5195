"""Which slice is shown, how it is turned, what is cut out, and outlines along voxel edges."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.case_pictures import (
    MAX_PIXELS,
    Marks,
    Outline,
    Region,
    choose_plane,
    draw_panel,
    filled_around,
    filled_value,
    outline_segments,
    region_of_interest,
    window,
)

SIGNED_PERMUTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
RIGHTWARDS, DOWNWARDS = {"R": (0, 1), "A": (1, 1)}, {"A": (1, 1), "S": (2, -1)}  # letter => LPS axis and its sense


def geometry(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> Geometry:
    """File axis j (x, y, z) runs along LPS axis order[j], in the sense signs[j]."""
    direction = np.zeros((3, 3))
    for axis, (towards, sign) in enumerate(zip(order, signs, strict=True)):
        direction[towards, axis] = sign
    return Geometry(spacing, (0.0, 0.0, 0.0), tuple(direction.ravel().tolist()))  # type: ignore[arg-type]


def positions(shape: tuple[int, ...], where: Geometry) -> np.ndarray:
    """LPS position of every voxel, (3, Z, Y, X)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))[::-1].reshape(3, -1)
    scaled = index * np.array(where.spacing_mm)[::-1, None]
    return (np.reshape(where.direction, (3, 3)) @ scaled).reshape(3, *shape)


@pytest.mark.parametrize(("order", "signs"), SIGNED_PERMUTATIONS)
@pytest.mark.parametrize("thick", [0, 1, 2])
def test_pictures_are_turned_as_radiologists_see_them(
    order: tuple[int, ...], signs: tuple[int, ...], thick: int
) -> None:
    spacing = [1.0, 1.2, 0.9]
    spacing[thick] = 5.0
    where = geometry(order, signs, tuple(spacing))
    mask = np.zeros((3, 4, 5), bool)
    mask[1, 2, 3] = True
    plane = choose_plane([mask], where, oriented=True)
    assert plane.axis == thick
    shown = plane.cut(positions(mask.shape, where))
    left, top = plane.letters
    axis, sense = RIGHTWARDS[left]
    assert (np.diff(shown[axis], axis=1) * sense > 0).all()
    assert np.allclose(np.abs(np.diff(shown[axis], axis=1)), plane.pixel_mm[1])
    axis, sense = DOWNWARDS[top]
    assert (np.diff(shown[axis], axis=0) * sense > 0).all()
    assert np.allclose(np.abs(np.diff(shown[axis], axis=0)), plane.pixel_mm[0])
    assert plane.cut(mask).sum() == 1


def test_the_slice_of_the_largest_area_of_the_first_mask_that_is_not_empty() -> None:
    first, second = np.zeros((2, 6, 8, 8), bool)
    second[2, :3, :3] = second[4, :2, :2] = True
    where = Geometry((3.0, 1.0, 1.0))
    assert choose_plane([first, second], where, True).index == 2
    first[5, 0, 0] = True
    assert choose_plane([first, second], where, True).index == 5
    assert choose_plane([first & False], where, True).index == 3  # the middle


def test_equal_spacing_is_cut_from_head_to_feet() -> None:
    sagittal = geometry((1, 2, 0), (1, 1, 1), (1.0, 1.0, 1.0))  # array axis Z runs along left
    plane = choose_plane([np.ones((4, 4, 4), bool)], sagittal, True)
    assert plane.axis == 1  # Y is superior
    assert plane.letters == ("R", "A")


def test_untrusted_directions_and_2d_images_are_shown_as_they_lie() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    flipped = geometry((0, 1, 2), (-1, -1, 1), (2.0, 1.0, 1.0))
    plane = choose_plane([volume > 11], flipped, oriented=False)
    assert np.array_equal(plane.cut(volume), volume[1])
    assert plane.letters == ()
    flat = choose_plane([volume[:1] > 3], Geometry((1.0, 0.5, 0.7), is_2d=True), oriented=True)
    assert np.array_equal(flat.cut(volume[:1]), volume[0])
    assert flat.pixel_mm == (0.5, 0.7)


def test_the_window_ignores_air_and_colours_stay() -> None:
    grey = np.zeros((1, 20, 20), np.float32)
    grey[0, :10] = np.linspace(100, 200, 200).reshape(10, 20)
    shown = window(grey, False)
    assert shown.dtype == np.uint8
    assert (shown[10:] == 0).all()
    assert shown[5, 10] == pytest.approx(255 * (110 / 199 - 0.005) / 0.99, abs=1.5)
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 6)).astype(np.float32)
    assert np.array_equal(window(colour, True), np.moveaxis(colour, 0, -1).astype(np.uint8))
    assert (window(np.full((1, 4, 4), 7.0), False) == 0).all()
    assert window(np.full((1, 2, 2), np.nan), False).shape == (2, 2)


def test_sequences_of_a_volume_and_fractions_are_no_colours() -> None:
    """As colours, values from 0 to 1 would be black and those of T1, T2 and FLAIR below 256 a coloured noise."""
    fractions = np.random.default_rng(0).random((3, 5, 6)).astype(np.float32)
    for sequences, is_2d in ((np.rint(255 * fractions), False), (fractions, False), (fractions, True)):
        assert np.array_equal(window(sequences, is_2d), window(sequences[:1], is_2d))
        assert window(sequences, is_2d).max() == 255


@pytest.mark.parametrize("seed", range(20))
def test_the_region_holds_the_masks_and_is_square_in_mm(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, pixel_mm = (200, 120), (0.5, 0.8)
    mask = np.zeros(shape, bool)
    y, x = rng.integers(0, 190), rng.integers(0, 110)
    mask[y : y + rng.integers(1, 10), x : x + rng.integers(1, 10)] = True
    region = region_of_interest([mask, mask & False], pixel_mm)
    assert region is not None
    assert mask[region.top : region.bottom, region.left : region.right].sum() == mask.sum()
    assert 0 <= region.top < region.bottom <= shape[0]
    assert 0 <= region.left < region.right <= shape[1]
    assert (region.bottom - region.top) * 0.5 == pytest.approx((region.right - region.left) * 0.8, abs=0.8)


def test_large_and_empty_masks_are_not_cut_out() -> None:
    assert region_of_interest([np.zeros((50, 50), bool)], (1, 1)) is None
    assert region_of_interest([np.ones((50, 50), bool)], (1, 1)) is None


def test_outline_of_a_rectangle_is_four_lines() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    lines = {tuple(map(tuple, np.sort(line, axis=0).tolist())) for line in outline_segments(mask)}
    assert lines == {((2, 1), (5, 1)), ((2, 3), (5, 3)), ((2, 1), (2, 3)), ((5, 1), (5, 3))}


@pytest.mark.parametrize("seed", range(10))
def test_outlines_are_as_long_as_the_border(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) < 0.4
    border = sum(
        mask[y, x] and not (0 <= y + dy < 9 and 0 <= x + dx < 11 and mask[y + dy, x + dx])
        for y in range(9)
        for x in range(11)
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
    )
    lines = outline_segments(mask)
    assert np.abs(lines[:, 1] - lines[:, 0]).sum() == border
    assert (np.abs(lines[:, 1] - lines[:, 0]).min(axis=1) == 0).all()


def test_a_panel_keeps_the_proportions_in_mm_and_bounds_its_pixels() -> None:
    background = np.zeros((3000, 2000), np.uint8)
    mask = background > 0
    mask[100:200, 100:200] = True
    svg = draw_panel(background, (0.5, 1.0), "a case", Marks([Outline(mask, "#35c8ff")]))
    width, height = (int(svg.partition(f'{name}="')[2].partition('"')[0]) for name in ("width", "height"))
    assert height / width == pytest.approx(0.75, abs=0.01)
    assert "#35c8ff" in svg
    assert len(svg) < 20 * MAX_PIXELS
    marks = Marks(box=Region(0, 9, 0, 9), letters="RA")
    cut = draw_panel(background, (1.0, 1.0), "part", marks, region=Region(0, 100, 0, 50))
    assert ">R<" in cut
    assert ">A<" in cut


def test_what_was_filled_in_around_an_image_is_black() -> None:
    """A normalised brain of -2 to 2 in the middle of zeros; without such a frame nothing is taken for filled in."""
    image = np.zeros((1, 10, 10), np.float32)
    image[0, 2:8, 2:8] = np.linspace(-2, 2, 36).reshape(6, 6)
    image[0, 4, 6] = 0  # within it, a value like any other
    assert filled_value(image[0]) == 0.0
    shown = window(image, False)
    assert (shown[0] == 0).all()
    assert shown[2, 2] == 0
    assert shown[7, 7] == 255
    assert 100 < shown[4, 7] < 150
    assert 100 < shown[4, 6] < 150
    assert filled_value(image[0, 2:8, 2:8]) is None
    assert filled_value(np.abs(image[0])) is None  # the frame is the lowest value, which is black anyway


@pytest.mark.parametrize(
    ("shape", "pixel_mm"),
    [((40, 60), (1, 1)), ((20, 60), (4, 1)), ((64, 800), (1, 1)), ((400, 40), (1, 1)), ((30, 30), (8, 1))],
)
def test_a_square_stays_one_whatever_the_shape_and_the_spacing(
    shape: tuple[int, int], pixel_mm: tuple[int, int]
) -> None:
    mask = np.zeros(shape, bool)
    mask[: 16 // pixel_mm[0], : 16 // pixel_mm[1]] = True
    marks = Marks([Outline(mask, "#35c8ff")])
    drawn = draw_panel(np.zeros(shape, np.uint8), pixel_mm, "square", marks)
    path = re.findall(r'<path d="([^"]*)"[^>]*stroke: #35c8ff', drawn)[0]
    lines = re.findall(r"M(\S+) (\S+)([HV])(\S+)", path)
    width = next(abs(float(x) - float(end)) for x, _, way, end in lines if way == "H")
    height = next(abs(float(y) - float(end)) for _, y, way, end in lines if way == "V")
    assert height == pytest.approx(width, rel=0.01)
    assert width > 4


def test_a_word_can_stand_in_a_picture() -> None:
    picture = draw_panel(np.zeros((4, 4), np.uint8), (1.0, 1.0), "sample", Marks(note="empty"))
    assert ">empty</text>" in picture


def test_what_lies_around_is_in_one_piece_with_a_corner() -> None:
    image = np.zeros((3, 5, 5))
    image[:, 1:4, 1:4] = 1
    image[1, 2, 2] = 0
    around = filled_around(image, 0.0)
    assert around[0, 0, 0]
    assert not around[1, 2, 2]
    assert np.count_nonzero(around) == 3 * 16
