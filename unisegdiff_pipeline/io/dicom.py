"""DICOM series as volumes: found below a folder, sorted by where their slices lie, and refused where one is missing.

Each slice is read by itself, because the scale of values may change from slice to slice, as in PET. Values are those of
the modality (Hounsfield units of CT); nothing becomes an SUV.
"""

from __future__ import annotations

import itertools
import locale
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume
from unisegdiff_pipeline.core.names import composed, require_name
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.bids import is_bids_folder
from unisegdiff_pipeline.io.endings import SUPPORTED_ENDINGS, split_ending
from unisegdiff_pipeline.io.itk import simple_itk
from unisegdiff_pipeline.io.paths import files_below

NO_IMAGES = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC")  # modalities of other objects
_STORAGE = "1.2.840.10008.5.1.4.1.1."
# Classes of objects without an image, by the beginning of their UIDs (DICOM PS3.6, table A-1). GDCM cannot read most of
# them, so that these are told apart before it is asked.
WITHOUT_IMAGE = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.34": "RT instruction",
    "1.2.840.10008.5.1.4.38": "hanging protocol",
    "1.2.840.10008.5.1.4.39": "colour palette",
    f"{_STORAGE}4.2": "MR spectroscopy",
    **{f"{_STORAGE}{arc}": "overlay, curve or table" for arc in ("8", "9", "10", "129")},
    f"{_STORAGE}9.1": "waveform",
    f"{_STORAGE}11": "PR",
    **{f"{_STORAGE}66.{n}": "SEG" for n in range(4, 9)},
    **{f"{_STORAGE}66.{n}": "REG" for n in (1, 3)},
    f"{_STORAGE}66.2": "fiducials",
    f"{_STORAGE}66": "raw data",
    f"{_STORAGE}67": "table of values",
    f"{_STORAGE}68": "surface",
    **{f"{_STORAGE}{arc}": "measurements" for arc in ("78", "79", "80", "90", "91")},
    f"{_STORAGE}88": "SR",
    f"{_STORAGE}88.59": "KO",
    f"{_STORAGE}104": "DOC",
    f"{_STORAGE}131": "structured display",
    **{f"{_STORAGE}{arc}": "protocol" for arc in ("200", "201")},
    **{f"{_STORAGE}481.{n}": "RT record or instruction" for n in (4, 6, 7, *range(9, 23), 25)},
    f"{_STORAGE}481.2": "RTDOSE",
    f"{_STORAGE}481.3": "RTSTRUCT",
    **{f"{_STORAGE}481.{n}": "RTPLAN" for n in (5, 8)},
    "1.3.12.2.1107.5.9.1": "Siemens CSA data",
}
_STANDARD = "1.2.840.10008."  # what the UIDs of all classes of the standard begin with
LARGEST_GAP_ERROR = 0.05  # of the distance of slices, as a fraction of it
LARGEST_SHEAR = 0.01  # of the distance of slices, sideways
LARGEST_ANGLE = 1e-3  # of cosines
_PREAMBLE, _MAGIC = 128, b"DICM"
_META_GROUP, _SOP_CLASS = 2, 2  # group of the elements after the magic word, and the element that says the class
_LONG_LENGTHS = (b"OB", b"OW", b"SQ", b"UN", b"UT")  # value representations whose lengths have four bytes, after two


@dataclass(frozen=True)
class _Slice:
    """What the header of one file says; `position` of the first voxel and the axes are in mm, LPS."""

    path: Path
    image: str
    series: str
    number: str
    modality: str
    is_localizer: bool
    frames: int
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    thickness_mm: float | None
    size: tuple[int, ...]


@dataclass(frozen=True)
class Series:
    """A series of slices, not sorted yet; `name` is that of its case."""

    name: str
    folder: Path
    slices: tuple[_Slice, ...]

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.slices[0].series

    @property
    def modality(self) -> str:
        """Such as CT."""
        return self.slices[0].modality

    def read(self) -> Volume:
        """The volume (1, Z, Y, X), float32, along the normal of its slices.

        Raises:
            UsdError: no position in space, several frames in a file, slices that do not lie on one grid, are there
                twice, are missing or sheared (a tilted gantry), or a file that cannot be read.
        """
        _, geometry = self.header()
        return Volume(np.stack([_pixels(path, self.slices[0].size) for path in self.files()])[None], geometry)

    def header(self) -> tuple[Shape, Geometry]:
        """Shape (Z, Y, X) and geometry of the volume, without reading voxels.

        Raises:
            UsdError: as `read`, of the headers.
        """
        slices, spacing_mm, normal = _sorted(self)
        first = slices[0]
        direction = np.column_stack([first.axes[:3], first.axes[3:], normal]).ravel().tolist()
        (rows_mm, columns_mm), (x, y, z) = first.spacing_mm, first.position
        geometry = Geometry((spacing_mm, rows_mm, columns_mm), (x, y, z), tuple(direction))
        return (len(slices), *first.size), geometry

    def files(self) -> tuple[Path, ...]:
        """The files of the slices in the order of the volume's rows.

        Raises:
            UsdError: as `read`, of the headers.
        """
        return tuple(one.path for one in _sorted(self)[0])

    def images(self) -> tuple[tuple[str, float], ...]:
        """SOPInstanceUID and Z of the position (mm, LPS) of each slice, in the order of the volume's rows.

        Raises:
            UsdError: as `read`, of the headers.
        """
        return tuple((one.image, one.position[2]) for one in _sorted(self)[0])


def is_dicom_folder(source: Path) -> bool:
    """Whether a folder holds DICOM files, itself or below, and no image of another format itself, nor is it BIDS."""
    source = Path(source)
    if not source.is_dir() or is_bids_folder(source):
        return False
    if any(split_ending(path.name)[1] for path in source.iterdir() if path.is_file()):
        return False
    return any(_is_dicom(path) for path in files_below(source))


def find_series(source: Path) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """The series of images below a folder, and what is left out, in words.

    A series is named after the folders that it lies in below `source`, or after `source` itself; where a folder holds
    several, the number of the series follows: FOLDER_series3.

    Raises:
        UsdError: no series, a name that cannot be a file's, two series that would have one name, or a volume that is
            spread over several folders.
    """
    source = Path(source)
    by_folder: dict[Path, list[_Slice]] = {}
    left_out = []
    for path in files_below(source):
        if not _is_dicom(path):
            continue
        if kind := kind_without_image(path):
            left_out.append(f"{path} ({kind}, no image)")
            continue
        try:
            by_folder.setdefault(path.parent, []).append(_read_slice(path))
        except UsdError:
            if (uid := _sop_class(path)).startswith(_STANDARD) or not uid:
                raise
            left_out.append(f"{path} (of the private class {uid}, which only programs of its vendor read)")
    found: dict[str, Series] = {}
    for folder, slices in sorted(by_folder.items()):
        groups: dict[str, list[_Slice]] = {}
        for one in slices:
            if one.modality in NO_IMAGES or one.is_localizer:
                kind = "a localizer" if one.is_localizer else f"{one.modality}, no image"
                left_out.append(f"{one.path} ({kind})")
            else:
                groups.setdefault(one.series, []).append(one)
        base = composed("_".join(folder.relative_to(source).parts) or source.resolve().name)
        for group in groups.values():
            name = base if len(groups) == 1 else f"{base}_series{group[0].number or 0}"
            require_name(name, f"the series in {folder}")
            if name in found:
                raise UsdError(
                    f"{folder} and {found[name].folder} hold series that would both be case {name!r}; give each series "
                    f"a folder of its own."
                )
            found[name] = Series(name, folder, tuple(group))
    if not found:
        raise UsdError(
            f"{source} holds no DICOM series of images{'; left out: ' if left_out else ''}"
            f"{listed(left_out, 3)}. Check the folder; supported are also {', '.join(SUPPORTED_ENDINGS)}."
        )
    _require_whole(found.values())
    return tuple(found.values()), tuple(left_out)


def _require_whole(found: Iterable[Series]) -> None:
    """Refuse a volume that lies in several folders, as discs of some archives have it: each would be a case by itself.

    Copies, phases and stacks of one series make no even volume together; of two single slices nothing can be told.
    """
    by_uid: dict[str, list[Series]] = {}
    for series in found:
        by_uid.setdefault(series.uid, []).append(series)
    for uid, parts in by_uid.items():
        joined = Series(parts[0].name, parts[0].folder, tuple(one for part in parts for one in part.slices))
        if uid and len(parts) > 1 and len(joined.slices) > 2 and _is_volume(joined):
            raise UsdError(
                f"{counted(len(parts), 'folder')} hold parts of one volume, the series {uid}: "
                f"{listed((part.folder for part in parts), 3)}. Put its files into one folder."
            )


def _is_volume(series: Series) -> bool:
    try:
        series.header()
    except UsdError:
        return False
    return True


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as stream:
            return stream.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def kind_without_image(path: Path) -> str | None:
    """What an object without an image is, by the class that the file names; None for images and unknown classes."""
    arcs = _sop_class(path).split(".")
    beginnings = (".".join(arcs[:count]) for count in range(len(arcs), 0, -1))  # the closest first
    return next((WITHOUT_IMAGE[uid] for uid in beginnings if uid in WITHOUT_IMAGE), None)


def _sop_class(path: Path) -> str:
    """MediaStorageSOPClassUID of the group after the magic word, always explicit and little endian; "" without."""
    with open(path, "rb") as stream:
        stream.seek(_PREAMBLE + len(_MAGIC))
        while len(start := stream.read(8)) == 8:
            group, element, kind, length = struct.unpack("<HH2sH", start)
            if group != _META_GROUP or element > _SOP_CLASS:  # elements are in ascending order
                break
            if kind in _LONG_LENGTHS:
                length = int.from_bytes(stream.read(4), "little")
            if element == _SOP_CLASS:
                return stream.read(length).rstrip(b"\0 ").decode("ascii", "replace")
            stream.seek(length, os.SEEK_CUR)
    return ""


@contextmanager
def keeping_locale() -> Iterator[None]:
    """GDCM sets the locale of the whole process to "C", by which Python would then read text files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _read_slice(path: Path) -> _Slice:
    reader = simple_itk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with keeping_locale():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path, error) from error

    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text(tag).split("\\"))
        except ValueError:
            return ()
        return values if len(values) == count and all(np.isfinite(values)) else ()

    thickness = numbers("0018|0088", 1) or numbers("0018|0050", 1)  # spacing between slices, else their thickness
    frames = numbers("0028|0008", 1)
    return _Slice(
        path,
        text("0008|0018"),
        text("0020|000e"),
        text("0020|0011"),
        text("0008|0060"),
        "LOCALIZER" in text("0008|0008").upper().split("\\"),
        int(frames[0]) if frames else 1,
        numbers("0020|0032", 3),
        numbers("0020|0037", 6),
        numbers("0028|0030", 2),
        thickness[0] if thickness else None,
        tuple(int(n) for n in reader.GetSize()[:2][::-1]),
    )


def _sorted(series: Series) -> tuple[list[_Slice], float, np.ndarray]:
    """Slices along their normal, the distance between them in mm, and the normal."""
    first, where = series.slices[0], f"the series {series.name!r} in {series.folder}"
    for one in series.slices:
        if one.frames > 1:
            raise UsdError(
                f"{one.path} holds {one.frames} frames in one file, which is not supported; convert it, with "
                f"dcm2niix for example, to .nii.gz."
            )
        if not (one.position and one.axes and one.spacing_mm) or min(one.spacing_mm) <= 0:
            raise UsdError(
                f"{one.path} does not say where its slice lies (position, orientation and pixel spacing), "
                f"so that {where} is no volume; convert it by other means, or take it out."
            )
        if one.size != first.size or not np.allclose(one.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise UsdError(
                f"{where} has slices of several sizes ({first.path.name}: {first.size}, {one.path.name}: "
                f"{one.size}) or pixel spacings; give each part a folder and a series of its own."
            )
        if not np.allclose(one.axes, first.axes, atol=LARGEST_ANGLE):
            raise UsdError(
                f"{where} has slices that are not parallel ({first.path.name}, {one.path.name}); take those "
                f"out that do not belong to the volume."
            )
    row, column = np.array(first.axes[:3]), np.array(first.axes[3:])
    if abs(row @ column) > LARGEST_ANGLE or not np.allclose([row @ row, column @ column], 1, atol=LARGEST_ANGLE):
        raise UsdError(
            f"{first.path}: the axes {list(first.axes)} of its slice are not at right angles; export it again."
        )
    normal = np.cross(row, column)
    along = {one.path: float(np.dot(one.position, normal)) for one in series.slices}
    slices = sorted(series.slices, key=lambda one: along[one.path])
    if len(slices) == 1:
        if not first.thickness_mm or first.thickness_mm <= 0:
            raise UsdError(f"{where} is one slice that does not say how thick it is; convert it by other means.")
        return slices, first.thickness_mm, normal
    _require_even(slices, along, normal, where)
    return slices, (along[slices[-1].path] - along[slices[0].path]) / (len(slices) - 1), normal


def _require_even(slices: Sequence[_Slice], along: dict[Path, float], normal: np.ndarray, where: str) -> None:
    steps = np.diff([along[one.path] for one in slices])
    step = float(np.median(steps))
    for (before, behind), distance in zip(itertools.pairwise(slices), steps, strict=True):
        names = f"{before.path.name} and {behind.path.name}"
        if distance < 1e-3:
            raise UsdError(
                f"{where} has two slices at one place, {names}: several volumes (phases, echoes) or a copy; "
                f"give each volume a folder and a series of its own."
            )
        if abs(distance - step) > LARGEST_GAP_ERROR * step:
            raise UsdError(
                f"{where} has slices {step:.4g} mm apart, but {names} are {distance:.4g} mm apart: slices are "
                f"missing, or two volumes are mixed; complete the series."
            )
        moved = np.subtract(behind.position, before.position)
        if np.linalg.norm(moved - distance * normal) > LARGEST_SHEAR * step + 1e-3:
            raise UsdError(
                f"{where} is sheared: {names} are shifted sideways, as by a tilted gantry; resample it, with "
                f"dcm2niix for example, to .nii.gz."
            )


def _pixels(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Values (Y, X) of a slice, scaled as the file says."""
    itk = simple_itk()
    reader = itk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with keeping_locale():
            image = reader.Execute()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UsdError(f"{path} is a colour picture, no slice of a volume; take it out, or convert it to .png.")
    array: np.ndarray = itk.GetArrayFromImage(image).astype(np.float32)
    return array.reshape(size)
