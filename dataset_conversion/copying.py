"""Files of a raw data set from files of others: copied as they are where the format allows it, else without loss."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.masks import read_grey
from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.io import itk
from unisegdiff_pipeline.io.content import is_gzip
from unisegdiff_pipeline.io.endings import LOSSY_ENDINGS, is_picture_ending, split_ending
from unisegdiff_pipeline.io.images import read_header, read_image, write_labels
from unisegdiff_pipeline.io.pictures import spacing_file


@dataclass(frozen=True)
class Frame:
    """One frame of a 4D NIfTI file."""

    path: Path
    index: int


@dataclass(frozen=True)
class Made:
    """A volume that no file holds as it is, such as a DICOM series or a mask of outlines.

    Attributes:
        files: what it is made of; the first one stands for it in messages.
        make: the volume (1, Z, Y, X) of whole numbers; its repr is the same in every run and tells it from others of
            the same files.
    """

    files: tuple[Path, ...]
    make: Callable[[], Volume]

    @property
    def path(self) -> Path:
        """The first file."""
        return self.files[0]


Source = Path | Frame | Made


def path_of(source: Source) -> Path:
    """The file that a source is, or that stands for it."""
    return source if isinstance(source, Path) else source.path


def files_of(source: Source) -> tuple[Path, ...]:
    """All files that a source is read from."""
    return source.files if isinstance(source, Made) else (path_of(source),)


def save_made(source: Made, target: Path) -> None:
    """Write an image of whole numbers that 16 bits hold, as those of CT."""
    volume = source.make()
    values = volume.array[0]
    limits = np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max or (values % 1).any():
        raise UsdError(
            f"{source.path} holds {values.min():g} to {values.max():g}, expected are whole numbers of 16 bits."
        )
    with atomic_path(target) as temporary:
        itk.write(temporary, values.astype(np.int16), volume.geometry)


def copy_image(source: Path, target: Path, num_channels: int) -> None:
    """Copy an image file as it is where that is possible; else encode it anew without loss.

    Args:
        source: the file.
        target: its ending says the format.
        num_channels: channels that the file must have; a grey picture becomes colour and the other way round.

    Raises:
        UsdError: damaged, another number of channels, or no such format without loss.
    """
    (found, _, _, _), _ = read_header(source)  # a damaged header is named here
    ending = split_ending(target.name)[1]
    picture = is_picture_ending(ending)
    if found == num_channels and source.name.lower().endswith(ending):
        copy_spacing(source, target)  # first: an image that is there counts as finished after an interruption
        _copy(source, target)
    elif picture and ending not in LOSSY_ENDINGS:
        save_pixels(_pixels(source, num_channels), target)
    elif found != num_channels:
        raise UsdError(f"{source} has {found} channels, but {num_channels} are expected; use the file as published.")
    elif ending == ".nii.gz" and source.name.lower().endswith(".nii"):
        _compress(source, target)
    else:
        raise UsdError(f"{source} cannot be stored as {ending} without loss; convert it to {ending} first.")


def _pixels(path: Path, num_channels: int) -> np.ndarray:
    """Pixels of a picture as grey (Y, X) or colour (Y, X, 3), uint8; grey of more than 8 bits keeps them."""
    found, slices, *_ = read_header(path)[0]
    if slices > 1:
        raise UsdError(
            f"{path} holds {slices} slices of {counted(found, 'channel')}, but {num_channels} "
            f"{'is' if num_channels == 1 else 'are'} expected; save the stack with as many, or name its channels."
        )
    if num_channels == 1 and found == 3:
        return read_grey(path)
    values = read_image([path]).array[:, 0]  # (C, Y, X)
    if values.min() < 0 or values.max() > 65535 or (values % 1).any():
        raise UsdError(f"{path} holds {values.min():g} to {values.max():g}, a PNG whole numbers to 65535; convert it.")
    deep = values.max() > 255
    if deep and num_channels == 3:
        raise UsdError(f"{path} has over 8 bits a channel, which no colour PNG here holds; save it with 8 bits.")
    values = values.astype(np.uint16 if deep else np.uint8)
    return values[0] if num_channels == 1 else np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1)


def save_pixels(pixels: np.ndarray, target: Path) -> None:
    """Write grey (Y, X) or colour (Y, X, 3) pixels in the picture format that the ending of `target` names."""
    from PIL import Image

    with atomic_path(target) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary)


def save_frame(frame: Frame, target: Path) -> None:
    """Write one frame of a 4D file as a 3D file; a damaged file is a UsdError."""
    import nibabel
    from nibabel.volumeutils import apply_read_scaling

    try:
        image: Any = nibabel.load(frame.path)
        scale, offset = np.float32(image.dataobj.slope), np.float32(image.dataobj.inter)
        header = image.header.copy()
        if (scale, offset) == (1, 0):
            values = np.asanyarray(image.dataobj[..., frame.index])  # reads the file up to there
        else:  # as integers, scaled voxels would be rounded once more
            header.set_data_dtype(np.float32)
            values = image.dataobj.get_unscaled()[..., frame.index].astype(np.float32)
            values = apply_read_scaling(values, scale, offset)
        with atomic_path(target) as temporary:
            nibabel.save(type(image)(values, image.affine, header), temporary)
    except UsdError:
        raise
    except Exception as error:  # nibabel raises many kinds for a damaged file
        if getattr(error, "errno", None) is not None:
            raise  # of the disk, not of the image
        raise unreadable(frame.path, error) from error


def copy_labels(source: Path, target: Path, volume: Volume) -> None:
    """Copy a label map, which holds `volume`, or write it in the format that the ending of `target` names."""
    ending = split_ending(target.name)[1]
    if source.name.lower().endswith(ending):
        _copy(source, target)
    elif ending == ".nii.gz" and source.name.lower().endswith(".nii"):
        _compress(source, target)
    else:
        write_labels(target, volume.array[0], volume.geometry)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _compress(source: Path, target: Path) -> None:
    if is_gzip(source):  # whatever its name says
        _copy(source, target)
        return
    with (
        atomic_path(target) as temporary,
        open(source, "rb") as stream,
        gzip.GzipFile(temporary, "wb", compresslevel=3, mtime=0) as compressed,  # no time: same source, same bytes
    ):
        shutil.copyfileobj(stream, compressed, 1 << 20)


def copy_spacing(source: Path, target: Path) -> None:
    """The spacing of a TIFF stack lies in a JSON file beside it."""
    beside = spacing_file(source)
    if beside is not None:
        _copy(beside, target.with_name(f"{split_ending(target.name)[0]}.json"))
