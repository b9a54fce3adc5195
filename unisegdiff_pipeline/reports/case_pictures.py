"""Pictures of one slice of a case: the image, outlines of masks on it, uncertainty and single samples.

Shown is the slice with the largest reference area, seen as radiologists do: the patient's right on the left of the
picture, anterior or superior on top. Grey values are windowed by percentiles, outlines follow the edges of voxels, and
where the masks take little of the slice the picture is cut to their surroundings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unisegdiff_pipeline.core.boxes import centred_box, nonzero_box
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.figures import draw
from unisegdiff_pipeline.reports.page import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE_COLOR, PREDICTION_COLOR = "#35c8ff", "#ffb000"
# The hues of `figures.SERIES` in their order, brighter, so that a class has one colour in charts and on dark tissue.
CLASS_COLORS = ("#35c8ff", "#ff7a45", "#45e0a8", "#ff8fc8", "#ffc233", "#8fdcff", "#d9b98c", "#b9c3cc")
UNCERTAINTY_MAP = "magma"
FILLED = 0.05
WINDOW_PERCENTILES = (0.5, 99.5)
PANEL_IN = 3.33  # width: 320 CSS pixels
FLATTEST, TALLEST = 0.15, 2.5  # height of a panel over its width; longer pictures leave room at their sides
HALO_PT = 1.3  # of the dark line on either side of an outline
MAX_PIXELS = 400  # of a panel along an edge; larger slices are averaged down
# Least extent of a cut-out over that of the masks and of the slice; a larger one than the last stays whole.
AROUND_MASKS, OF_SLICE, NOT_WORTH_CUTTING = 1.8, 0.24, 0.8

# Directions of increasing index as they are shown: (rows go down, columns go right) by the axis that is cut (x, y, z in
# LPS: left, posterior, superior); -2 is inferior.
_SHOWN = {0: (-2, 1), 1: (-2, 0), 2: (1, 0)}
_LETTERS = {0: ("A", "S"), 1: ("R", "S"), 2: ("R", "A")}


@dataclass(frozen=True)
class Plane:
    """One slice of a volume and how it is turned for display.

    Attributes:
        axis, index: which slice, of an array (..., Z, Y, X).
        transposed, flip_rows, flip_columns: applied in this order.
        pixel_mm: distance of rows and of columns in the picture.
        letters: what the left and the top edge point to, such as ("R", "A"); empty where the patient's orientation is
            not known.
    """

    axis: int
    index: int
    transposed: bool
    flip_rows: bool
    flip_columns: bool
    pixel_mm: tuple[float, float]
    letters: tuple[str, ...] = ()

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice of a volume (..., Z, Y, X) as (..., rows, columns)."""
        return self.turn(np.take(volume, self.index, axis=volume.ndim - 3 + self.axis))

    def turn(self, plane: np.ndarray) -> np.ndarray:
        """A slice (..., rows, columns) that has been taken already, turned for display."""
        plane = np.swapaxes(plane, -1, -2) if self.transposed else plane
        plane = plane[..., ::-1, :] if self.flip_rows else plane
        return plane[..., ::-1] if self.flip_columns else plane


@dataclass(frozen=True)
class Outline:
    """A mask (rows, columns) and the colour and width (points) of the line around it."""

    mask: np.ndarray
    color: str
    width: float = 1.6


def class_colors(count: int) -> list[str]:
    """Colours of the classes in their order; beyond CLASS_COLORS they repeat."""
    return [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(count)]


def choose_plane(masks: Sequence[np.ndarray], geometry: Geometry, oriented: bool) -> Plane:
    """The slice to show.

    Args:
        masks: boolean (Z, Y, X) of equal shape, such as the reference and the prediction: the slice is that with the
            largest area of the first that is not empty, the middle one where all are.
        geometry: of the masks.
        oriented: whether the direction cosines can be trusted; False shows the array as it lies.
    """
    shape = masks[0].shape
    axis = _through_plane(shape, geometry)
    index = shape[axis] // 2
    for mask in masks:
        areas = np.count_nonzero(mask, axis=tuple(i for i in range(3) if i != axis))
        if areas.any():
            index = int(areas.argmax())
            break
    return turned_plane(axis, index, geometry, oriented)


def turned_plane(axis: int, index: int, geometry: Geometry, oriented: bool) -> Plane:
    """A slice across an axis, turned as radiologists see it; see `choose_plane`."""
    rows, columns = (i for i in range(3) if i != axis)
    if not oriented or geometry.is_2d:
        return Plane(axis, index, False, False, False, (geometry.spacing_mm[rows], geometry.spacing_mm[columns]))
    nearest = _anatomical_axes(geometry)
    down, _ = _SHOWN[nearest[axis][0]]
    transposed = nearest[rows][0] != abs(down)
    if transposed:
        rows, columns = columns, rows
    return Plane(
        axis,
        index,
        transposed,
        flip_rows=nearest[rows][1] != (1 if down >= 0 else -1),
        flip_columns=nearest[columns][1] != 1,
        pixel_mm=(geometry.spacing_mm[rows], geometry.spacing_mm[columns]),
        letters=_LETTERS[nearest[axis][0]],
    )


def _through_plane(shape: Sequence[int], geometry: Geometry) -> int:
    """The axis to cut: one of a single voxel, else that of the coarsest spacing, else that nearest to head to feet."""
    if 1 in shape:
        return int(np.argmin(shape))
    spacing = np.array(geometry.spacing_mm)
    if spacing.max() > 1.01 * spacing.min():
        return int(spacing.argmax())
    return next(axis for axis, (direction, _) in enumerate(_anatomical_axes(geometry)) if direction == 2)


def _anatomical_axes(geometry: Geometry) -> list[tuple[int, int]]:
    """For each array axis (Z, Y, X) the nearest of (0 left, 1 posterior, 2 superior), and 1 or -1 for its sense."""
    cosines = np.reshape(geometry.direction, (3, 3))[:, ::-1]  # columns: array axes
    left = np.abs(cosines)
    result = [(0, 1)] * 3
    for _ in range(3):  # the largest cosine first, so that no direction is given twice to oblique axes
        direction, axis = (int(i) for i in np.unravel_index(left.argmax(), (3, 3)))
        result[axis] = (direction, 1 if cosines[direction, axis] >= 0 else -1)
        left[direction, :] = left[:, axis] = -1
    return result


def is_colored(image: np.ndarray, is_2d: bool) -> bool:
    """Whether a slice (C, rows, columns) is taken for colours: three channels of 8 bits of a 2D image.

    Three channels of a volume are three sequences, whose grey values may lie between 0 and 255 as well.
    """
    if not is_2d or image.shape[0] != 3:
        return False
    return bool(image.min() >= 0 and 1 < image.max() <= 255 and np.array_equal(image, np.rint(image)))


def window(image: np.ndarray, is_2d: bool) -> np.ndarray:
    """A slice (C, rows, columns) as uint8: (rows, columns, 3) for colours, else the first channel in grey.

    Grey values are stretched between two percentiles of what lies above the lowest value, so that air around a patient
    does not decide on the contrast. What was filled in around the image is black, whatever its value.
    """
    if is_colored(image, is_2d):
        return np.moveaxis(image, 0, -1).astype(np.uint8)
    plane = np.nan_to_num(image[0].astype(np.float32))
    lowest = float(plane.min())
    filled = filled_value(plane)
    inside = plane > lowest if filled is None else (plane > lowest) & (plane != filled)
    low, high = np.percentile(plane[inside], WINDOW_PERCENTILES) if inside.any() else (lowest, lowest + 1)
    shown = (np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
    return shown if filled is None else np.where(filled_around(plane, filled), 0, shown).astype(np.uint8)


def filled_around(image: np.ndarray, value: float) -> np.ndarray:
    """Where an image holds a value in one piece with a corner, that is around what it shows and not within."""
    from scipy import ndimage

    pieces, _ = ndimage.label(image == value)
    corners = pieces[tuple(slice(None, None, max(1, n - 1)) for n in image.shape)]
    return np.isin(pieces, np.unique(corners[corners > 0]))


def filled_value(image: np.ndarray) -> float | None:
    """The value around an image whose own values go below it, such as 0 around a normalised brain; None without one.

    It is what all corners of the array, of any number of axes, hold, and with them FILLED of all voxels.
    """
    corners = image[tuple(slice(None, None, max(1, n - 1)) for n in image.shape)]
    value = float(corners.flat[0])
    if not (corners == value).all() or value <= float(np.nanmin(image)):
        return None
    return value if np.count_nonzero(image == value) >= FILLED * image.size else None


@dataclass(frozen=True)
class Region:
    """A part of a slice: first and last + 1 row, first and last + 1 column."""

    top: int
    bottom: int
    left: int
    right: int


def region_of_interest(masks: Iterable[np.ndarray], pixel_mm: tuple[float, float]) -> Region | None:
    """Surroundings of masks (rows, columns), a square in mm; None where most of the slice would be left."""
    masks = list(masks)
    box, shape = nonzero_box(*masks), masks[0].shape
    if box is None:
        return None
    size_mm = [n * mm for n, mm in zip(shape, pixel_mm, strict=True)]
    masks_mm = max((high - low) * mm for (low, high), mm in zip(box, pixel_mm, strict=True))
    edge_mm = max(AROUND_MASKS * masks_mm, OF_SLICE * max(size_mm))
    if edge_mm > NOT_WORTH_CUTTING * min(size_mm):
        return None
    (top, bottom), (left, right) = centred_box(box, [round(edge_mm / mm) for mm in pixel_mm], shape)
    return Region(top, bottom, left, right)


@dataclass(frozen=True)
class Marks:
    """What is drawn over a picture.

    Attributes:
        outlines: lines around masks of the picture's shape, drawn in their order.
        box: a part to mark by a frame.
        letters: names of the left and the top edge.
        note: a word in the middle, such as "empty".
    """

    outlines: Sequence[Outline] = ()
    box: Region | None = None
    letters: Sequence[str] = ()
    note: str = ""


def draw_panel(
    background: np.ndarray,
    pixel_mm: tuple[float, float],
    alt: str,
    marks: Marks,
    *,
    region: Region | None = None,
    color_map: str = "gray",
    highest: float = 255,
) -> Html:
    """One picture.

    Args:
        background: (rows, columns) values from 0 to `highest` for `color_map`, or (rows, columns, 3) colours, uint8.
        pixel_mm: distance of rows and columns.
        alt: what it shows, in words.
        marks: what is drawn over it.
        region: the part to show; None shows all.
        color_map: matplotlib's name of the colours of values.
        highest: value of the last colour; the first is 0.
    """
    shown = region or Region(0, background.shape[0], 0, background.shape[1])
    height_mm = (shown.bottom - shown.top) * pixel_mm[0]
    width_mm = (shown.right - shown.left) * pixel_mm[1]
    height_in = PANEL_IN * min(max(height_mm / width_mm, FLATTEST), TALLEST)

    def paint(figure: Any) -> None:
        axis = figure.add_axes((0, 0, 1, 1))
        extent = (shown.left, shown.right, shown.bottom, shown.top)
        part = _reduced(background[shown.top : shown.bottom, shown.left : shown.right])
        aspect = pixel_mm[0] / pixel_mm[1]
        axis.imshow(part, cmap=color_map, vmin=0, vmax=highest, extent=extent, aspect=aspect, interpolation="none")
        for outline in marks.outlines:
            _draw_outline(axis, outline)
        if (box := marks.box) is not None:
            corners = [(box.left, box.top), (box.right, box.top), (box.right, box.bottom), (box.left, box.bottom)]
            axis.plot(*np.transpose([*corners, corners[0]]), color="#ffffff", linewidth=1, dashes=(4, 2))
        _draw_letters(axis, marks.letters)
        if marks.note:
            axis.text(
                0.5, 0.5, marks.note, transform=axis.transAxes, ha="center", va="center", fontsize=13, **_ON_PICTURES
            )
        axis.set(xlim=extent[:2], ylim=extent[2:])
        axis.set_axis_off()

    return draw(paint, alt, PANEL_IN, height_in, constrained=False)


def _reduced(picture: np.ndarray) -> np.ndarray:
    """Average blocks of a large picture, so that a page does not hold more pixels than it shows."""
    step = -(-max(picture.shape[:2]) // MAX_PIXELS)
    if step == 1:
        return picture
    rows, columns = (n // step * step for n in picture.shape[:2])
    blocks = picture[:rows, :columns].reshape(rows // step, step, columns // step, step, -1).mean(axis=(1, 3))
    return blocks.astype(picture.dtype).reshape(*blocks.shape[:2], *picture.shape[2:])


def _draw_letters(axis: Axes, letters: Sequence[str]) -> None:
    for letter, (x, y, horizontal, vertical) in zip(
        letters, ((0.02, 0.5, "left", "center"), (0.5, 0.98, "center", "top")), strict=False
    ):
        axis.text(x, y, letter, transform=axis.transAxes, ha=horizontal, va=vertical, fontsize=11, **_ON_PICTURES)


_HALO = "#000000b0"
_ON_PICTURES: dict[str, Any] = {
    "color": "#ffffff",
    "fontweight": "bold",
    "bbox": {"facecolor": "#00000090", "edgecolor": "none", "boxstyle": "round,pad=0.15"},
}


def _draw_outline(axis: Axes, outline: Outline) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    lines = outline_segments(outline.mask)
    if not len(lines):
        return
    codes = np.tile([Path.MOVETO, Path.LINETO], len(lines))
    path = Path(lines.reshape(-1, 2).astype(float), codes)
    # A dark line beneath keeps outlines visible on bright tissue and on colour pictures.
    for color, width in ((_HALO, outline.width + 2 * HALO_PT), (outline.color, outline.width)):
        axis.add_patch(PathPatch(path, facecolor="none", edgecolor=color, linewidth=width, capstyle="round"))


def outline_segments(mask: np.ndarray) -> np.ndarray:
    """Straight pieces of the border of a mask (rows, columns) along voxel edges, (n, 2 ends, (column, row))."""
    horizontal = _runs(np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0))
    vertical = _runs(np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1).T)
    return np.concatenate([horizontal, vertical[:, :, ::-1]])


def _runs(edges: np.ndarray) -> np.ndarray:
    """Runs of equal non-zero values along the rows of `edges`, (n, 2 ends, (place, row))."""
    padded = np.pad(edges, ((0, 0), (1, 1)))
    changes = padded[:, 1:] != padded[:, :-1]
    starts = np.argwhere(changes & (padded[:, 1:] != 0))
    stops = np.argwhere(changes & (padded[:, :-1] != 0))
    return np.stack([starts, stops], axis=1)[:, :, ::-1]
