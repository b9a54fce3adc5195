"""Reading and writing images and label maps; the ending of the file name decides which reader is used.

| endings | geometry | voxels |
|---|---|---|
| .nii.gz .nii | SimpleITK, else nibabel | numpy |
| .nrrd .mha .gipl | SimpleITK | SimpleITK |
| .png .jpg .jpeg .bmp | none: 2D, spacing 1 | Pillow |
| .tif .tiff | none, or `CASE.json` with "spacing" beside a stack of slices | Pillow |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume, geometry_differences, on_grid_of
from unisegdiff_pipeline.core.labels import MAX_LABEL
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.io import itk, nifti, pictures
from unisegdiff_pipeline.io.endings import (
    ITK_ENDINGS,
    LOSSY_ENDINGS,
    NIFTI_ENDINGS,
    PICTURE_ENDINGS,
    SUPPORTED_ENDINGS,
    TIFF_ENDINGS,
    is_picture_ending,
    label_ending,
    map_ending,
    split_ending,
)

ROUNDING = 1e-4  # label values may be off by this: headers that scale by 1/255 make 1.0000003 of 255
STREAMED_BYTES = 1 << 26  # NIfTI maps from here on are written row by row

__all__ = [
    "MAX_LABEL",
    "SUPPORTED_ENDINGS",
    "files_read",
    "is_picture_ending",
    "label_colours",
    "label_ending",
    "load_writer",
    "map_ending",
    "read_header",
    "read_image",
    "read_labels",
    "read_map",
    "spacing_known",
    "split_ending",
    "write_labels",
    "write_map",
]


def read_image(paths: Sequence[Path], num_channels: int | None = None, scratch: Scratch | None = None) -> Volume:
    """Read the files of one case and concatenate their channels in the order of `paths`.

    One RGB picture gives three channels, a 4D file one channel a frame; an opaque alpha channel counts for nothing.
    Where each file stands for one channel, a colour picture whose three channels are equal is taken as grey.

    Args:
        paths: files of one case in channel order.
        num_channels: channels that the case must have, not checked where it is None.
        scratch: makes the array; None keeps it in memory.

    Returns:
        Volume with float32 array (C, Z, Y, X), C-contiguous, and the geometry of the first file.

    Raises:
        UsdError: a file cannot be read, the files lie on different grids, or their channels are not num_channels.
    """
    if not paths:
        raise ValueError("paths is empty; pass at least one file")
    paths = [Path(path) for path in paths]
    volumes = [_read(path) for path in paths]
    if len(paths) == num_channels:
        volumes = [_one_channel(path, volume, num_channels) for path, volume in zip(paths, volumes, strict=True)]
    volumes = [volumes[0], *(on_grid_of(volume, volumes[0]) for volume in volumes[1:])]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        _require_same_grid(paths[0], volumes[0], path, volume)
    if scratch is None and len(volumes) == 1:
        array = np.ascontiguousarray(volumes[0].array, np.float32)
    else:
        array = (scratch or Scratch()).joined([volume.array for volume in volumes])
    if num_channels is not None and array.shape[0] != num_channels:
        names = ", ".join(path.name for path in paths)
        holds, are = "holds" if len(paths) == 1 else "hold", "is" if num_channels == 1 else "are"
        raise UsdError(
            f"{paths[0]}: {names} {holds} {counted(array.shape[0], 'channel')}, but "
            f"{counted(num_channels, 'channel')} {are} expected; give each case the channels that "
            "dataset.json names (colour pictures hold three, grey ones one)."
        )
    return Volume(array, volumes[0].geometry)


def files_read(paths: Sequence[Path]) -> tuple[Path, ...]:
    """All files that reading some images or label maps opens: themselves, and those beside them that give a spacing.

    What is made from images depends on the content of these files, and on no other's.
    """
    beside = (pictures.spacing_file(Path(path)) for path in paths)
    return tuple(dict.fromkeys([*map(Path, paths), *(path for path in beside if path is not None)]))


def spacing_known(paths: Sequence[Path]) -> bool:
    """Whether the files of a case say their spacing; pictures do not, TIFF only by a JSON file beside it."""
    return not is_picture_ending(split_ending(Path(paths[0]).name)[1]) or len(files_read(paths)) > len(paths)


def read_labels(path: Path) -> Volume:
    """Read a label map as integers (1, Z, Y, X) in the smallest type that holds its values.

    Float files are accepted where every value is a whole number up to rounding, RGB pictures where the three channels
    are equal.

    Raises:
        UsdError: unreadable, more than one channel, or a value that is no whole number from 0 to 32767.
    """
    path = Path(path)
    volume = _read(path, as_labels=True)
    array = volume.array
    if array.shape[0] == 3 and _is_grey(array):
        array = array[:1]
    if array.shape[0] != 1:
        raise UsdError(
            f"{path} has {array.shape[0]} channels, but a label map has one value a voxel; store the classes as "
            "whole numbers in one channel."
        )
    return Volume(_as_integers(array, path), volume.geometry)


def read_map(path: Path) -> Volume:
    """Read a map of real numbers as `write_map` wrote it, float32 (C, Z, Y, X).

    Pictures of whole numbers are divided by the largest value that their type holds (255 or 65535); all others are
    taken as they are.
    """
    path = Path(path)
    volume = _read(path)
    array = volume.array
    values = array.astype(np.float32)
    if split_ending(path.name)[1].lower() in PICTURE_ENDINGS and array.dtype.kind in "iu":
        values /= np.float32(255 if array.dtype == np.uint8 else 65535)  # Pillow may give 16 bits as int32
    return Volume(values, volume.geometry)


def read_header(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry of a file, without reading voxels; both are what reading it gives."""
    path = Path(path)
    reader = _reader(path)
    with _named(path):
        return reader.header(path)


def label_colours(path: Path) -> dict[int, tuple[int, int, int]]:
    """Colours (R, G, B) of the values of a label picture with a palette of colours; empty for all other files."""
    path = Path(path)
    return pictures.label_colours(path) if is_picture_ending(split_ending(path.name)[1]) else {}


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write a label map (Z, Y, X), atomically, in the format that the ending of `path` names.

    Raises:
        UsdError: the format is lossy (JPEG), holds no 3D data, or the file cannot be written.
    """
    path = Path(path)
    if labels.ndim != 3:
        raise ValueError(f"labels have shape {labels.shape}; expected (Z, Y, X)")
    _, ending = split_ending(path.name)
    if ending.lower() in LOSSY_ENDINGS:
        raise UsdError(f"{path} would be a JPEG, which alters label values; write label maps as .png.")
    _write(path, labels.astype(_smallest_integer_type(labels), copy=False), geometry)


def write_map(
    path: Path,
    values: np.ndarray,
    geometry: Geometry,
    scale: float | None = None,
    release: Callable[[], None] | None = None,
) -> None:
    """Write a map of real numbers (Z, Y, X), atomically: float32, or for 2D pictures a 16-bit PNG.

    Args:
        path: target; pictures must be .png (see `map_ending`).
        values: (Z, Y, X); pictures hold round(values * scale), clipped to 0..65535.
        geometry: of the image that the map belongs to.
        scale: units of a 16-bit PNG per unit of `values`; 65535 by default, so that 0..1 fills the range.
        release: called when rows of `values` have been written and need not be in memory any more. Large NIfTI files
            are written row by row.
    """
    path = Path(path)
    if values.ndim != 3:
        raise ValueError(f"values have shape {values.shape}; expected (Z, Y, X)")
    _, ending = split_ending(path.name)
    if ending.lower() in PICTURE_ENDINGS:
        if ending.lower() != ".png":
            raise ValueError(f"{path} cannot hold 16-bit values; use the ending that map_ending() gives")
        units = np.nan_to_num(values.astype(np.float64)) * (65535.0 if scale is None else scale)
        _write(path, np.clip(np.rint(units), 0, 65535).astype(np.uint16), geometry)
    elif ending.lower() in NIFTI_ENDINGS and not geometry.is_2d and values.nbytes > STREAMED_BYTES:
        with atomic_path(path) as temporary:
            nifti.write_rows(temporary, values.astype(np.float32, copy=False), geometry, release)
    else:
        _write(path, values.astype(np.float32, copy=False), geometry)


def load_writer(ending: str) -> None:
    """Import what writing files of this ending needs, so that memory measured from now on holds it."""
    if ending.lower() in NIFTI_ENDINGS + ITK_ENDINGS:
        itk.simple_itk()


# ----------------------------------------------------------------------------------------------------- formats


@dataclass(frozen=True)
class _Format:
    """How one family of formats is read and written; `read` takes (path, whether it is a label map)."""

    header: Callable[[Path], tuple[Shape, Geometry]]
    read: Callable[[Path, bool], Volume]
    write: Callable[[Path, np.ndarray, Geometry], None]


def _reader(path: Path) -> _Format:
    _, ending = split_ending(path.name)
    ending = ending.lower()
    if ending in NIFTI_ENDINGS:
        return _Format(nifti.header, nifti.read, itk.write)
    if ending in ITK_ENDINGS:
        return _Format(itk.header, itk.read, itk.write)
    if ending in PICTURE_ENDINGS + TIFF_ENDINGS:
        return _Format(pictures.header, pictures.read, pictures.write)
    raise UsdError(f"{path} has no known ending; supported are {', '.join(SUPPORTED_ENDINGS)}. Convert the file.")


def _read(path: Path, as_labels: bool = False) -> Volume:
    reader = _reader(path)
    with _named(path):
        return reader.read(path, as_labels)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever fails while a file is read as a UsdError that names it.

    The libraries raise anything from OSError to SyntaxError for a damaged file.
    """
    if not path.is_file():
        raise UsdError(f"{path} does not exist; check the path and the file name.")
    try:
        yield
    except (UsdError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(path, error) from error


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    writer = _reader(path)
    try:
        with atomic_path(path) as temporary:
            writer.write(temporary, array, geometry)
        if path.suffix.lower() in TIFF_ENDINGS and (not geometry.is_2d or geometry.spacing_mm != Geometry().spacing_mm):
            write_json(path.with_name(f"{split_ending(path.name)[0]}.json"), {"spacing": geometry.spacing_mm})
    except OSError as error:
        raise UsdError(f"{path} cannot be written ({error}); check free space and permissions there.") from error


def _require_same_grid(first: Path, a: Volume, second: Path, b: Volume) -> None:
    if a.array.shape[1:] != b.array.shape[1:]:
        raise UsdError(
            f"{second} has shape {b.array.shape[1:]} (Z, Y, X), but {first.name} of the same case has "
            f"{a.array.shape[1:]}; resample the channels of a case onto one grid."
        )
    if differences := geometry_differences(a.geometry, b.geometry, a.array.shape[1:]):
        raise UsdError(
            f"{second} lies elsewhere than {first.name} of the same case: {'; '.join(differences)}. Resample the "
            "channels of a case onto one grid."
        )


def _one_channel(path: Path, volume: Volume, num_channels: int) -> Volume:
    """A file that stands for one channel of its case."""
    found = volume.array.shape[0]
    if found == 1:
        return volume
    if found == 3 and _is_grey(volume.array):
        return Volume(volume.array[:1], volume.geometry)
    one = "the only channel" if num_channels == 1 else f"one of the {num_channels} channels"
    raise UsdError(
        f"{path} holds {found} channels (colours or frames), but it stands for {one} that dataset.json names; save one "
        f"channel a file{'' if num_channels == 1 else ', or all of them in one'}."
    )


def _is_grey(array: np.ndarray) -> bool:
    return all(np.array_equal(array[0], other) for other in array[1:])


def _as_integers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UsdError(f"{path} holds NaN or infinite label values; write whole numbers.")
        rounded = np.rint(array)
        off = np.abs(array - rounded) > ROUNDING
        if off.any():
            raise UsdError(
                f"{path} holds the label value {float(array[off][0]):.7g}, which is no whole number; was the label map "
                "interpolated? Resample labels with nearest neighbours."
            )
        array = rounded
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < 0 or high > MAX_LABEL:
        raise UsdError(
            f"{path} holds the label value {low if low < 0 else high:g}, allowed are whole numbers from 0 to "
            f"{MAX_LABEL}; is it an image, or are its labels stored in another way?"
        )
    return array.astype(_smallest_integer_type(array), copy=False)


def _smallest_integer_type(array: np.ndarray) -> np.dtype[Any]:
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)
