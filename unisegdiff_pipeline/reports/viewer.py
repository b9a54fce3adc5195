"""A page that shows one 3D case: slices in three planes with reference, prediction, samples and uncertainty.

The page is one file. It holds the volumes as gzipped NIfTI files and NiiVue, the library that draws them (WebGL 2). It
asks the network for nothing and may not (Content-Security-Policy). 2D cases need no viewer: the pictures of the
evaluation report show all of them.

Volumes are turned to the axes nearest to (right, anterior, superior), never interpolated; positions are shown in the
file's own voxels and millimetres, as lesion_scores.csv has them.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.boxes import join_boxes
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.reports.page import ASSETS, link
from unisegdiff_pipeline.reports.viewer_volumes import (
    ViewerGrid,
    box_around,
    fraction_volume,
    grey_scale,
    image_volume,
    label_volume,
)

MAX_VOXELS = 32 * 1024**2
_SIDES = "The patient&rsquo;s right is on the left of axial and coronal slices, anterior on the left of sagittal ones. "
_SIZE_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class ViewerMark:
    """A place to jump to.

    Attributes:
        name: what is there, such as "reference 1: 2.31 ml, missed".
        position_mm: (x, y, z) in the file's coordinates (LPS), as the centroids of lesion_scores.csv.
    """

    name: str
    position_mm: tuple[float, float, float]


@dataclass(frozen=True)
class ViewerCase:
    """What the viewer of one case shows. All arrays are on the image's grid.

    Attributes:
        case_id: name of the case.
        geometry: of the image; must be 3D.
        image: (C, Z, Y, X), any real type; NaN counts as the smallest value.
        labels: name of each label value besides 0, several of which may belong to one class; values without a name are
            shown as numbers.
        reference: label map (Z, Y, X); None where there is none.
        prediction: label map (Z, Y, X), likewise.
        samples: label maps (Z, Y, X) that were drawn, in their order; taken one at a time, so a generator that reads
            them keeps memory small.
        raters: label maps (Z, Y, X) of single raters, likewise.
        uncertainty: (Z, Y, X) in [0, 1].
        channel_names: one a channel; "channel 0" and so on where it is empty.
        classes: names in the order of their colours; those of `labels` where it is empty.
        ignored: label value of the reference that marks what is not scored; None where there is none.
        spacing_known: False says that voxel sizes and the patient's sides are made up: sides are not named then.
        marks: places to jump to; the viewer opens at the first. Without any it opens at the middle of the masks.
        note: a line under the name, such as the scores of the case.
        report: relative path of the page that the viewer was opened from, for a link back.
    """

    case_id: str
    geometry: Geometry
    image: np.ndarray
    labels: Mapping[int, str]
    reference: np.ndarray | None = None
    prediction: np.ndarray | None = None
    samples: Iterable[np.ndarray] = ()
    raters: Iterable[np.ndarray] = ()
    uncertainty: np.ndarray | None = None
    channel_names: Sequence[str] = ()
    classes: Sequence[str] = ()
    ignored: int | None = None
    spacing_known: bool = True
    marks: Sequence[ViewerMark] = ()
    note: str = ""
    report: str | None = None


@dataclass(frozen=True)
class ViewerFile:
    """A viewer that was written.

    Attributes:
        path: the page.
        num_bytes: its size.
        reduction: voxels of the image along (Z, Y, X) that became one voxel of the page; (1, 1, 1) is full resolution.
    """

    path: Path
    num_bytes: int
    reduction: tuple[int, int, int]


def write_case_viewer(path: Path, case: ViewerCase, max_voxels: int = MAX_VOXELS) -> ViewerFile:
    """Write the viewer of one case, atomically; equal cases give equal bytes.

    Grey values are kept in steps of a 255th of the window shown first (the grey values around the masks), in 8 or
    16 bits. An image of more than max_voxels is reduced by whole factors, first along the axes with the finest
    spacing: grey values are averaged, and masks and uncertainty take the largest value, so that no lesion vanishes.
    The page says so, and says how large it is.

    Args:
        path: target, ".html".
        case: what to show.
        max_voxels: voxels of a volume in the page. The browser keeps about ten bytes a voxel.

    Raises:
        ValueError: a 2D case, arrays of different shapes, or label values that are negative or above 32767.
        UsdError: the file cannot be written.
    """
    if case.geometry.is_2d or case.image.ndim != 4:
        raise ValueError(f"case {case.case_id!r} is 2D or its image no (C, Z, Y, X) array; viewers show 3D cases only")
    grid = ViewerGrid.of(case.geometry, case.image.shape[1:], max_voxels)
    volumes: dict[str, bytes] = {}
    masks, boxes = [], []
    for name, title, labels in _masks(case):
        _require_shape(case, title, labels)
        volumes[name] = label_volume(grid, labels)
        masks.append({"id": name, "title": title})
        boxes.append(box_around(labels, case.geometry.spacing_mm))
    box = join_boxes(boxes)
    scales = [grey_scale(channel, box) for channel in case.image]
    dtype = np.uint8 if all(scale.dtype is np.uint8 for scale in scales) else np.int16
    for index, (channel, scale) in enumerate(zip(case.image, scales, strict=True)):
        volumes[f"image{index}"] = image_volume(grid, channel, scale, dtype)
    if case.uncertainty is not None:
        _require_shape(case, "uncertainty", case.uncertainty)
        volumes["uncertainty"] = fraction_volume(grid, case.uncertainty)
    names = case.channel_names or [f"channel {index}" for index in range(len(scales))]
    settings = {
        "shape": grid.shape,
        "affine": grid.affine.tolist(),
        "toFile": grid.to_file.tolist(),
        "fileAxes": grid.file_axes,
        "fileShape": case.image.shape[:0:-1],
        "channels": [
            {
                "title": name,
                "low": s.low,
                "high": s.high,
                "window": [s.window_low, s.window_high],
                "step": s.step,
                "filled": s.filled,
            }
            for name, s in zip(names, scales, strict=True)
        ],
        "labels": [[value, name] for value, name in case.labels.items()],
        "classes": list(case.classes or dict.fromkeys(case.labels.values())),
        "ignored": case.ignored,
        "sides": case.spacing_known,
        "masks": masks,
        "uncertainty": case.uncertainty is not None,
        "marks": [{"name": mark.name, "mm": mark.position_mm} for mark in case.marks],
    }
    text = _page(case, grid, settings, volumes)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        num_bytes = temporary.stat().st_size
    return ViewerFile(Path(path), num_bytes, grid.factors_zyx)


def _masks(case: ViewerCase) -> Iterator[tuple[str, str, np.ndarray]]:
    """(id, title, label map) of all masks, each read when it is its turn."""
    if case.reference is not None:
        yield "reference", "Reference", case.reference
    if case.prediction is not None:
        yield "prediction", "Prediction", case.prediction
    yield from ((f"sample{i}", f"Sample {i + 1}", labels) for i, labels in enumerate(case.samples))
    yield from ((f"rater{i}", f"Rater {i + 1}", labels) for i, labels in enumerate(case.raters))


def _require_shape(case: ViewerCase, title: str, array: np.ndarray) -> None:
    if array.shape != case.image.shape[1:]:
        raise ValueError(
            f"{title} of case {case.case_id!r} has shape {array.shape}, but its image {case.image.shape[1:]} (Z, Y, X)"
        )


# ------------------------------------------------------------------------------------------------------------- page


def _page(case: ViewerCase, grid: ViewerGrid, settings: dict[str, Any], volumes: Mapping[str, bytes]) -> str:
    body = Template(_asset("viewer.html")).substitute(
        case=html.escape(case.case_id),
        note=f"<p class=subtitle>{html.escape(case.note)}</p>" if case.note else "",
        back=link(case.report, "Evaluation report") if case.report else "",
        facts=html.escape(_facts(case, grid)),
        sides=_SIDES if case.spacing_known else "",
        size=_SIZE_MARK,
    )
    parts = [
        _head(case.case_id),
        f"<body>{body}",
        *(_data_block(name, content) for name, content in volumes.items()),
        f"<script type=text/plain id=data-niivue>{_packed_library()}</script>",
        f"<script type=application/json id=settings>{_script_json(settings)}</script>",
        f"<script>{_asset('viewer.js')}</script>",
        "</html>\n",
    ]
    text = "\n".join(parts)
    return text.replace(_SIZE_MARK, _size_text(len(text)), 1)


def _head(case_id: str) -> str:
    allowed = f"'sha256-{_hash(_asset('viewer.js').encode())}' 'sha256-{_hash(_library())}'"
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang=en>\n<head><meta charset=utf-8><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name=viewport content="width=device-width, initial-scale=1">'
        '<meta name=color-scheme content="light dark"><link rel=icon href="data:,">'
        f"<title>{html.escape(case_id)}: case viewer</title>\n"
        f"<style>{_asset('page.css')}{_asset('viewer.css')}</style></head>"
    )


def _facts(case: ViewerCase, grid: ViewerGrid) -> str:
    z, y, x = case.image.shape[1:]
    spacing = " \N{MULTIPLICATION SIGN} ".join(f"{s:.4g}" for s in case.geometry.spacing_mm[::-1])
    text = f"{x} \N{MULTIPLICATION SIGN} {y} \N{MULTIPLICATION SIGN} {z} voxels of {spacing} mm (x, y, z)"
    if not case.spacing_known:
        text += ", which are nominal: voxel size and the patient's sides are not known"
    if grid.factors == (1, 1, 1):
        return text
    blocks = " \N{MULTIPLICATION SIGN} ".join(str(f) for f in grid.factors_zyx[::-1])
    return (
        f"{text}. Shown in blocks of {blocks} voxels: the mean grey value, and every mask that touches the block. "
        "The files have the full resolution."
    )


def _data_block(name: str, content: bytes) -> str:
    return f"<script type=text/plain id=data-{name}>{base64.b64encode(content).decode('ascii')}</script>"


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _hash(content: bytes) -> str:
    return base64.b64encode(hashlib.sha256(content).digest()).decode("ascii")


@functools.cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@functools.cache
def _library() -> bytes:
    return (ASSETS / "niivue.min.js").read_bytes()


@functools.cache
def _packed_library() -> str:
    return base64.b64encode(gzip.compress(_library(), 9, mtime=0)).decode("ascii")
