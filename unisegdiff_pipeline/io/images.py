"""Reading and writing images and label maps; the ending of the file name decides which reader is used.

| endings | geometry | voxels |
|---|---|---|
| .nii.gz .nii | SimpleITK, else nibabel | nibabel |
| .nrrd .mha .gipl | SimpleITK | SimpleITK |
| .png .jpg .jpeg .bmp | none: 2D, spacing 1 | Pillow |
| .tif .tiff | none, or `CASE.json` with "spacing" beside a stack of slices | Pillow |

Voxels of NIfTI files are not read by SimpleITK, because it fills the end of a truncated file with arbitrary values
and says nothing; nibabel raises, and is several times faster on small files.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import atomic_path
from unisegdiff_pipeline.io.geometry import Geometry, Volume
from unisegdiff_pipeline.io.serialization import from_jsonable, read_object, write_json

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".mha", ".gipl")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp")
TIFF_ENDINGS = (".tiff", ".tif")
LOSSY_ENDINGS = (".jpg", ".jpeg")
NIFTI_HEADER_BYTES = 352  # with the four bytes that say that no extension follows
SUPPORTED_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS + PICTURE_ENDINGS + TIFF_ENDINGS

Shape = tuple[int, ...]


def split_ending(name: str) -> tuple[str, str]:
    """Split a file name into stem and supported ending, `("case_0000", ".nii.gz")`; the ending is "" if unknown."""
    for ending in SUPPORTED_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def is_picture_ending(ending: str) -> bool:
    """Whether files of this ending are pictures without a geometry of their own."""
    return ending.lower() in PICTURE_ENDINGS + TIFF_ENDINGS


def label_ending(file_ending: str) -> str:
    """Ending of label files that belong to images of `file_ending`: the same, but PNG beside JPEG, which is lossy."""
    return ".png" if file_ending.lower() in LOSSY_ENDINGS else file_ending


def map_ending(file_ending: str) -> str:
    """Ending of probability and uncertainty maps that belong to images of `file_ending`: pictures get PNG maps."""
    return ".png" if file_ending.lower() in PICTURE_ENDINGS else file_ending


def read_image(paths: Sequence[Path], num_channels: int | None = None) -> Volume:
    """Read the files of one case and concatenate their channels in the order of `paths`.

    One RGB picture gives three channels, a 4D file one channel a frame; an alpha channel is dropped where it is
    opaque everywhere.

    Args:
        paths: files of one case in channel order.
        num_channels: channels that the case must have, not checked where it is None.

    Returns:
        Volume with float32 array (C, Z, Y, X), C-contiguous, and the geometry of the first file.

    Raises:
        UsdError: a file cannot be read, the files differ in shape, or their channels are not num_channels.
    """
    if not paths:
        raise ValueError("paths is empty; pass at least one file")
    volumes = [_read(Path(path)) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        _require_same_shape(Path(paths[0]), volumes[0], Path(path), volume)
    arrays = [volume.array.astype(np.float32, copy=False) for volume in volumes]
    array = np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
    if num_channels is not None and array.shape[0] != num_channels:
        names = ", ".join(Path(path).name for path in paths)
        raise UsdError(
            f"{paths[0]}: {names} hold {array.shape[0]} channels, but {num_channels} are expected; give each case the "
            "channels that dataset.json names (grey pictures must not be saved as colour)."
        )
    return Volume(array, volumes[0].geometry)


def read_labels(path: Path) -> Volume:
    """Read a label map as integers (1, Z, Y, X) in the smallest type that holds its values.

    Float files are accepted where every value is a whole number, RGB pictures where the three channels are equal.

    Raises:
        UsdError: unreadable, more than one channel, fractional values, or NaN.
    """
    path = Path(path)
    volume = _read(path, as_labels=True)
    array = volume.array
    if array.shape[0] in (3, 4) and all(np.array_equal(array[0], other) for other in array[1:3]):
        array = array[:1]
    if array.shape[0] != 1:
        raise UsdError(
            f"{path} has {array.shape[0]} channels, but a label map has one value a voxel; store the classes as "
            "whole numbers in one channel."
        )
    return Volume(_as_integers(array, path), volume.geometry)


def read_map(path: Path, scale: float | None = None) -> Volume:
    """Read a map of real numbers as `write_map` wrote it, float32 (C, Z, Y, X).

    Args:
        path: any supported file.
        scale: units per unit of the map; by default pictures of whole numbers are divided by the largest value that
            their type holds (255 or 65535), and all others are taken as they are.
    """
    path = Path(path)
    volume = _read(path)
    array = volume.array
    if scale is None:
        is_picture = split_ending(path.name)[1].lower() in PICTURE_ENDINGS
        whole = is_picture and array.dtype.kind in "iu"  # Pillow may give 16 bits as int32
        scale = (255.0 if array.dtype == np.uint8 else 65535.0) if whole else 1.0
    values = array.astype(np.float32)
    return Volume(values if scale == 1.0 else values / np.float32(scale), volume.geometry)


def read_header(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry of a file, without reading voxels.

    An alpha channel counts as a channel here, because only its voxels tell whether it is opaque.
    """
    path = Path(path)
    return _reader(path).header(path)


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


def write_map(path: Path, values: np.ndarray, geometry: Geometry, scale: float | None = None) -> None:
    """Write a map of real numbers (Z, Y, X), atomically: float32, or for 2D pictures a 16-bit PNG.

    Args:
        path: target; pictures must be .png (see `map_ending`).
        values: (Z, Y, X); pictures hold round(values * scale), clipped to 0..65535.
        geometry: of the image that the map belongs to.
        scale: units of a 16-bit PNG per unit of `values`; 65535 by default, so that 0..1 fills the range.
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
    else:
        _write(path, values.astype(np.float32, copy=False), geometry)


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
        return _Format(_nifti_header, _read_nifti, _write_itk)
    if ending in ITK_ENDINGS:
        return _Format(_itk_header, _read_itk, _write_itk)
    if ending in PICTURE_ENDINGS + TIFF_ENDINGS:
        return _Format(_picture_header, _read_picture, _write_picture)
    raise UsdError(f"{path} has no known ending; supported are {', '.join(SUPPORTED_ENDINGS)}. Convert the file.")


def _read(path: Path, as_labels: bool = False) -> Volume:
    reader = _reader(path)
    if not path.is_file():
        raise UsdError(f"{path} does not exist; check the path and the file name.")
    try:
        return reader.read(path, as_labels)
    except (UsdError, MemoryError):
        raise
    except Exception as error:  # the libraries raise anything from OSError to SyntaxError for a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UsdError:
    reason = " ".join(str(error).split())[-300:] or type(error).__name__
    return UsdError(f"{path} cannot be read, it seems to be truncated or damaged ({reason}); copy or export it again.")


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    writer = _reader(path)
    try:
        with atomic_path(path) as temporary:
            writer.write(temporary, array, geometry)
        if path.suffix.lower() in TIFF_ENDINGS and not geometry.is_2d:
            write_json(path.with_name(f"{split_ending(path.name)[0]}.json"), {"spacing": geometry.spacing_mm})
    except OSError as error:
        raise UsdError(f"{path} cannot be written ({error}); check free space and permissions there.") from error


def _require_same_shape(first: Path, a: Volume, second: Path, b: Volume) -> None:
    if a.array.shape[1:] != b.array.shape[1:]:
        raise UsdError(
            f"{second} has shape {b.array.shape[1:]} (Z, Y, X), but {first.name} of the same case has "
            f"{a.array.shape[1:]}; resample the channels of a case onto one grid."
        )


def _as_integers(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UsdError(f"{path} holds NaN or infinite label values; write whole numbers.")
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            example = float(array[rounded != array][0])
            raise UsdError(
                f"{path} holds the label value {example:g}, which is no whole number; was the label map "
                "interpolated? Resample labels with nearest neighbours."
            )
        array = rounded
    return array.astype(_smallest_integer_type(array), copy=False)


def _smallest_integer_type(array: np.ndarray) -> np.dtype[Any]:
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


# --------------------------------------------------------------------------------------------- NIfTI, NRRD, MHA


def _itk() -> Any:
    import SimpleITK

    # Its readers print to stderr about header details that do not matter here; real problems are raised.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _itk_geometry(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Geometry:
    """Geometry from ITK's own order (x, y, z); dimensions above three are dropped, a missing third is added."""
    dims = len(spacing)
    matrix = np.eye(max(3, dims))
    matrix[:dims, :dims] = np.reshape(direction, (dims, dims))
    padded_spacing = [*map(float, spacing), 1.0][:3]
    padded_origin = [*map(float, origin), 0.0][:3]
    z, y, x = padded_spacing[::-1]
    return Geometry((z, y, x), tuple(padded_origin), tuple(matrix[:3, :3].ravel().tolist()), is_2d=dims == 2)


def _itk_header(path: Path) -> tuple[Shape, Geometry]:
    sitk = _itk()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    size = reader.GetSize()
    geometry = _itk_geometry(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    channels = reader.GetNumberOfComponents() * (size[3] if len(size) == 4 else 1)
    return (channels, *((*size[:3], 1)[:3][::-1])), geometry


def _read_itk(path: Path, as_labels: bool) -> Volume:
    sitk = _itk()
    image = sitk.ReadImage(str(path))
    geometry = _itk_geometry(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    elif image.GetDimension() < 4:
        array = array[None]
    if geometry.is_2d:
        array = array[:, None]
    return Volume(array, geometry)


def _write_itk(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    sitk = _itk()
    if geometry.is_2d:
        image = sitk.GetImageFromArray(array[0])
        image.SetSpacing(geometry.spacing_mm[:0:-1])
        image.SetOrigin(geometry.origin_mm[:2])
        image.SetDirection(np.reshape(geometry.direction, (3, 3))[:2, :2].ravel().tolist())
    else:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(geometry.spacing_mm[::-1])
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(geometry.direction)
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(" ".join(str(error).split())[-300:]) from error
    if not _is_complete(path, array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _is_complete(path: Path, array: np.ndarray) -> bool:
    """Whether a file that ITK has written holds the whole array; on a full disk ITK cuts it short and says nothing.

    The size says so for NIfTI, that of the content being the last four bytes of a gzip file. Other formats are read
    back.
    """
    size = NIFTI_HEADER_BYTES + array.nbytes
    if path.suffix.lower() == ".nii":
        return path.stat().st_size == size
    if path.suffix.lower() == ".gz":
        with open(path, "rb") as stream:
            stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
            return int.from_bytes(stream.read(), "little") == size % (1 << 32)
    try:
        return _read_itk(path, True).array.tobytes() == array.tobytes()
    except RuntimeError:
        return False


def _nifti_header(path: Path) -> tuple[Shape, Geometry]:
    import nibabel

    try:
        image: Any = nibabel.load(path)
        return _nifti_shape(image.shape), _nifti_geometry(path, image)
    except UsdError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _read_nifti(path: Path, as_labels: bool) -> Volume:
    import nibabel

    image: Any = nibabel.load(path)
    geometry = _nifti_geometry(path, image)
    if path.suffix.lower() == ".gz":
        # Decompressing to the end of the file compares its checksum, which reading only the voxels would not reach.
        image = type(image).from_bytes(gzip.decompress(path.read_bytes()))
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    # Unscaled voxels keep their integer type; scaled ones need no float64 copy of the volume.
    scaled = (slope, intercept) != (1, 0)
    array: np.ndarray = np.asarray(image.dataobj, dtype=np.float32 if scaled else None)
    if array.dtype.fields:  # RGB(A) voxels
        array = np.stack([array[str(name)] for name in array.dtype.fields], axis=-1).reshape(*array.shape[:3], -1)
    return Volume(np.ascontiguousarray(array.T).reshape(_nifti_shape(array.shape)), geometry)


def _nifti_shape(shape: Shape) -> Shape:
    """(X, Y, Z, ...) of the file as (C, Z, Y, X); all axes beyond the third are channels."""
    x, y, z = (*shape[:3], 1, 1)[:3]
    return (int(np.prod(shape[3:], dtype=int)), z, y, x)


def _nifti_geometry(path: Path, image: Any) -> Geometry:
    try:
        return _itk_header(path)[1]
    except UsdError as cause:  # above all "only supports orthonormal direction cosines"
        try:
            return _affine_geometry(path, image.affine, is_2d=len(image.shape) == 2)
        except UsdError as error:
            raise error from cause


def _affine_geometry(path: Path, affine: np.ndarray, is_2d: bool) -> Geometry:
    """Geometry from nibabel's RAS affine, with the directions made orthonormal where they nearly are.

    Raises:
        UsdError: a sheared grid, which spacing and rotation cannot describe.
    """
    matrix = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # RAS -> LPS
    spacing = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(affine).all() and (spacing > 0).all()):
        raise UsdError(f"{path} has no valid affine in its header; write spacing, origin and direction into it.")
    u, _, vt = np.linalg.svd(matrix / spacing)
    direction = u @ vt
    shear = float(np.abs(direction - matrix / spacing).max())
    if shear > 0.02:
        raise UsdError(
            f"{path} has a sheared grid (directions are off orthogonal by {shear:.3f}, allowed is 0.02); resample it "
            "onto an orthogonal grid."
        )
    origin = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3]
    z, y, x = spacing[::-1].tolist()
    return Geometry((z, y, x), tuple(origin.tolist()), tuple(direction.ravel().tolist()), is_2d=is_2d)


# ------------------------------------------------------------------------------------------------------ pictures


def _pillow() -> Any:
    from PIL import Image

    # Its limit guards web servers against hostile files; whole-slide pictures are larger than that.
    Image.MAX_IMAGE_PIXELS = None
    return Image


def _picture_header(path: Path) -> tuple[Shape, Geometry]:
    try:
        with _pillow().open(path) as picture:
            frames = getattr(picture, "n_frames", 1) if path.suffix.lower() in TIFF_ENDINGS else 1
            shape = (_picture_channels(picture), frames, picture.height, picture.width)
    except FileNotFoundError:
        raise UsdError(f"{path} does not exist; check the path and the file name.") from None
    except Exception as error:
        raise _unreadable(path, error) from error
    return shape, _picture_geometry(path, frames)


def _read_picture(path: Path, as_labels: bool) -> Volume:
    from PIL import ImageSequence

    with _pillow().open(path) as picture:
        if path.suffix.lower() in TIFF_ENDINGS:
            slices = [_picture_array(frame, as_labels) for frame in ImageSequence.Iterator(picture)]
        else:
            slices = [_picture_array(picture, as_labels)]
    array = slices[0][:, None] if len(slices) == 1 else np.stack(slices, axis=1)  # (C, Z, Y, X)
    return Volume(_drop_opaque_alpha(array), _picture_geometry(path, len(slices)))


def _picture_channels(picture: Any) -> int:
    if picture.mode == "P":
        return 1 if _has_grey_palette(picture) else 3
    return {"RGB": 3, "CMYK": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "RGBA": 4, "PA": 4, "LA": 2}.get(picture.mode, 1)


def _picture_array(picture: Any, as_labels: bool) -> np.ndarray:
    """One frame as (C, Y, X); of a palette, label maps use the indices and images the colours."""
    if picture.mode == "P" and not as_labels:
        picture = picture.convert("L" if _has_grey_palette(picture) else "RGB")
    elif picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    elif picture.mode == "PA":
        picture = picture.convert("RGBA")
    array = np.asarray(picture)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _has_grey_palette(picture: Any) -> bool:
    palette = np.reshape(picture.getpalette("RGB"), (-1, 3))
    return bool((palette == palette[:, :1]).all())


def _drop_opaque_alpha(array: np.ndarray) -> np.ndarray:
    """Drop the last channel of grey + alpha or RGBA where it is at its maximum everywhere."""
    if array.shape[0] in (2, 4) and array.dtype == np.uint8 and (array[-1] == 255).all():
        return array[:-1]
    return array


def _picture_geometry(path: Path, frames: int) -> Geometry:
    """Spacing 1, unless a stack of slices has a JSON file beside it, as nnU-Net's reader of 3D TIFF expects."""
    if path.suffix.lower() not in TIFF_ENDINGS:
        return Geometry(is_2d=True)
    stem, _ = split_ending(path.name)
    for name in (stem, re.sub(r"_\d{4}$", "", stem)):
        sidecar = path.with_name(f"{name}.json")
        if sidecar.is_file():
            content = read_object(sidecar)
            spacing = from_jsonable(tuple[float, float, float], content.get("spacing"), f"{sidecar}: spacing")
            return Geometry(spacing, is_2d=frames == 1)
    return Geometry(is_2d=frames == 1)


def _write_picture(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    if array.dtype == np.int16:
        array = array.astype(np.uint16 if array.min() >= 0 else np.int32)
    tiff = path.suffix.lower() in TIFF_ENDINGS
    if array.shape[0] != 1 and not tiff:
        raise ValueError(f"{path.suffix} holds one slice, but the array has shape {array.shape}; use another format")
    if array.dtype not in (np.uint8, np.uint16) and not tiff:
        raise ValueError(f"{path.suffix} holds values 0..65535, but the array is {array.dtype} up to {array.max()}")
    slices = [_pillow().fromarray(np.ascontiguousarray(part)) for part in array]
    if tiff:
        slices[0].save(path, compression="tiff_deflate", save_all=True, append_images=slices[1:])
    else:
        slices[0].save(path)
