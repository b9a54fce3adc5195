"""LIDC-IDRI, lung nodules in CT with four readers (Armato et al. 2011, Medical Physics 38:915), as its owners have it.

LIDC-IDRI-0001/STUDY/SERIES/*.dcm, and the readings as LIDC-XML-only.zip holds them: an XML file for each CT series,
which names it. In the file each reading session holds the nodules that one reader marked, as outlines on slices.

The outline of a nodule runs through the first pixels outside of it, so that what it encloses is the nodule and it
itself is not. An outline with the inclusion FALSE is that of a hole, and belongs to the hole. Nodules below 3 mm have a
point in place of an outline, which encloses nothing, and marks of what is no nodule are not read. Sessions are
numbered as they stand in the file: the first of two files need not be of one person.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dataset_conversion.copying import Made
from dataset_conversion.finding import Request
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.io.dicom import Series, find_series
from unisegdiff_pipeline.io.paths import files_below

_READERS, _AGREE = 4, 2
_PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
_ROOT = "LidcReadMessage"  # of readings of CT; those of radiographs are IdriReadMessage
_LARGEST_Z_ERROR = 0.1  # of the distance of slices, as a fraction of it
_ORIGIN = Origin(
    "LIDC-IDRI, CT with the outlines of four readers",
    "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
    "CC BY 3.0",
    "Armato et al. 2011, Medical Physics 38:915",
)


@dataclass(frozen=True)
class _Outline:
    """Points (N, 2) of an outline, columns x and y in pixels of the image that it lies on."""

    image: str
    z_mm: float
    is_hole: bool
    points: np.ndarray


@dataclass(frozen=True)
class _Readings:
    """A file of readings: session => nodule => outlines."""

    path: Path
    series: str
    sessions: tuple[tuple[tuple[_Outline, ...], ...], ...]


def find(request: Request) -> Conversion:
    """Each CT series with readings is a case: labelsTr is what two readers mark, ratersTr has all; group = patient."""
    (source,) = request.sources
    readings = _find_readings(source)
    ct = [one for one in find_series(source)[0] if one.modality == "CT"]
    series = {one.uid: one for one in ct}
    if twins := [one for one in ct if series[one.uid] is not one]:
        folders = f"{twins[0].folder} and {series[twins[0].uid].folder}"
        raise UsdError(f"{folders} hold one series, {twins[0].uid}; keep one of them.")
    both, left_out = sorted(readings.keys() & series.keys(), key=lambda uid: series[uid].name), []
    for uid in both:
        sessions = len(readings[uid].sessions)
        if sessions < _AGREE:  # labelsTr would be empty, whatever is marked
            left_out.append(f"{readings[uid].path}: {counted(sessions, 'reading session')}, {_AGREE} have to agree")
            del series[uid]
            continue
        try:
            series[uid].header()
        except UsdError as error:  # known before anything is written, and one of a thousand does not stop the others
            left_out.append(str(error))
            del series[uid]
    left_out += [f"{series[uid].folder}: no readings of it" for uid in series.keys() - readings.keys()]
    left_out += [
        f"{readings[uid].path}: its series is not there" for uid in readings.keys() - series.keys() - set(both)
    ]
    if left_out:
        number = "1 series is" if len(left_out) == 1 else f"{len(left_out)} series are"
        warnings.warn(f"LIDC: {number} left out: {' | '.join(sorted(left_out))}", stacklevel=2)
    found = [series[uid] for uid in both if uid in series]
    if not found:
        raise UsdError(f"{source} holds no CT series together with its readings; unpack images and XML files into it.")
    patients = [_patient(one) for one in found]
    cases = []
    for one, patient in zip(found, patients, strict=True):
        name = patient if patients.count(patient) == 1 else f"{patient}_{one.uid.rpartition('.')[2][-5:]}"
        cases.append(_case(name, patient, one, readings[one.uid]))
    return Conversion(
        number=222,
        name="LIDC3D",
        channels=("CT",),
        labels={"background": 0, "nodule": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        published={"training": 1018},
    )


def _patient(series: Series) -> str:
    match = _PATIENT.search(series.folder.as_posix())
    if match is None:
        raise UsdError(
            f"{series.folder} lies in no folder LIDC-IDRI-NNNN, which names the patient; keep those folders."
        )
    return match[0]


def _case(name: str, patient: str, series: Series, readings: _Readings) -> Case:
    if len(readings.sessions) != _READERS:
        sessions = counted(len(readings.sessions), "reading session")
        warnings.warn(f"{readings.path} holds {sessions}, expected are {_READERS}; ratersTr has as many.", stacklevel=3)
    files = series.files()
    masks = tuple(
        Made((readings.path,), _Mask(number, nodules, series))
        for number, nodules in enumerate(readings.sessions, start=1)
    )
    return Case(name, (Made(files, _Image(series)),), masks, group=patient, raters=masks, agree=_AGREE)


# --------------------------------------------------------------------------------------------------------- readings


def _find_readings(source: Path) -> dict[str, _Readings]:
    """Readings of CT below a folder, by the UID of their series."""
    found: dict[str, _Readings] = {}
    for path in files_below(source):
        one = _read(path) if path.suffix == ".xml" and not path.name.startswith(".") else None
        if one is None:
            continue
        other = found.setdefault(one.series, one)
        if other is not one and other.path.read_bytes() != path.read_bytes():
            raise UsdError(f"{other.path} and {path} are readings of one series and differ; keep one of them.")
    return found


def _read(path: Path) -> _Readings | None:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, LookupError, ValueError) as error:
        raise unreadable(path, error) from error
    if root.tag.rpartition("}")[2] != _ROOT:
        return None
    try:
        series = _text(root, "{*}ResponseHeader/{*}SeriesInstanceUid")
        sessions = tuple(
            tuple(
                tuple(map(_outline, nodule.iterfind("{*}roi"))) for nodule in session.iterfind("{*}unblindedReadNodule")
            )
            for session in root.iterfind("{*}readingSession")
        )
    except ValueError as error:
        raise UsdError(f"{path} is no file of readings as LIDC-IDRI has them: {error}; use it as published.") from None
    if not sessions:
        raise UsdError(f"{path} holds no readingSession; use the file as published.")
    return _Readings(path, series, sessions)


def _outline(roi: ElementTree.Element) -> _Outline:
    inclusion = _text(roi, "{*}inclusion").upper()
    if inclusion not in ("TRUE", "FALSE"):
        raise ValueError(f"inclusion is {inclusion!r}, allowed are TRUE and FALSE")
    points = [(int(_text(edge, "{*}xCoord")), int(_text(edge, "{*}yCoord"))) for edge in roi.iterfind("{*}edgeMap")]
    if not points:
        raise ValueError("a roi has no edgeMap")
    z_mm = float(_text(roi, "{*}imageZposition"))
    return _Outline(_text(roi, "{*}imageSOP_UID"), z_mm, inclusion == "FALSE", np.array(points))


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"{element.tag.rpartition('}')[2]} has no {path.replace('{*}', '')}")
    return text


# ------------------------------------------------------------------------------------------------ images and masks


@dataclass(frozen=True)
class _Image:
    """The volume of a series."""

    series: Series = field(repr=False)

    def __call__(self) -> Volume:
        return self.series.read()


@dataclass(frozen=True)
class _Mask:
    """What one session marks, on the grid of the series."""

    session: int
    nodules: tuple[tuple[_Outline, ...], ...] = field(repr=False)
    series: Series = field(repr=False)

    def __call__(self) -> Volume:
        shape, geometry = self.series.header()
        images = self.series.images()
        rows = {uid: row for row, (uid, _) in enumerate(images)}
        tolerance_mm = _LARGEST_Z_ERROR * geometry.spacing_mm[0]
        mask = np.zeros(shape, np.uint8)
        for nodule in self.nodules:
            by_row: dict[int, list[_Outline]] = {}
            for outline in nodule:
                by_row.setdefault(self._row(outline, rows, images, tolerance_mm), []).append(outline)
            for row, outlines in by_row.items():
                mask[row] |= self._drawn(outlines, shape[1:])
        return Volume(mask[None], geometry)

    def _row(
        self,
        outline: _Outline,
        rows: Mapping[str, int],
        images: Sequence[tuple[str, float]],
        tolerance_mm: float,
    ) -> int:
        """By the UID of the image, else by the only slice at the position."""
        if outline.image in rows:
            return rows[outline.image]
        near = [row for row, (_, z_mm) in enumerate(images) if abs(z_mm - outline.z_mm) <= tolerance_mm]
        if len(near) != 1:
            raise UsdError(
                f"session {self.session} has an outline on image {outline.image} at z = {outline.z_mm:g} mm, and "
                f"{self.series.folder} holds neither that image nor one at that place; complete the series."
            )
        return near[0]

    def _drawn(self, outlines: Iterable[_Outline], size: tuple[int, ...]) -> np.ndarray:
        """The pixels (Y, X) of one nodule on one slice."""
        nodule, holes = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        for outline in outlines:
            x, y = outline.points.T
            if min(x.min(), y.min()) < -1 or x.max() > size[1] or y.max() > size[0]:
                raise UsdError(
                    f"session {self.session} has an outline from (x, y) = ({x.min()}, {y.min()}) to ({x.max()}, "
                    f"{y.max()}) on image {outline.image}, which has {size[1]} x {size[0]} pixels; the readings are "
                    f"not those of this series."
                )
            filled(holes if outline.is_hole else nodule, outline.points, with_edge=outline.is_hole)
        return nodule & ~holes


def filled(mask: np.ndarray, points: np.ndarray, *, with_edge: bool) -> None:
    """Set the pixels of a mask (Y, X) that a closed outline through points (N, 2), x and y, encloses, in place.

    The outline may lie one pixel outside of the mask. Its own pixels are set where `with_edge` says so.
    """
    from PIL import Image, ImageDraw
    from scipy.ndimage import binary_fill_holes

    low, high = points.min(axis=0), points.max(axis=0)
    width, height = (high - low + 1).tolist()
    canvas = Image.new("L", (width, height))
    ring = [tuple(point) for point in (points - low).tolist()]
    ImageDraw.Draw(canvas).line([*ring, ring[0]], fill=1)
    edge = np.asarray(canvas) > 0
    inside = binary_fill_holes(edge)
    if not with_edge:
        inside &= ~edge
    (x0, y0), (x1, y1) = np.maximum(low, 0), np.minimum(high + 1, mask.shape[::-1])
    mask[y0:y1, x0:x1] |= inside[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]].astype(mask.dtype)
