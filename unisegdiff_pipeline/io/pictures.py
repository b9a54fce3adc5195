"""Pictures (PNG, JPEG, BMP) and stacks of them (TIFF), read and written by Pillow; they know no place in space."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.io.endings import TIFF_ENDINGS, split_ending
from unisegdiff_pipeline.io.errors import UsdError, unreadable
from unisegdiff_pipeline.io.geometry import Geometry, Shape, Volume
from unisegdiff_pipeline.io.serialization import from_jsonable, read_object


def _pillow() -> Any:
    from PIL import Image

    # Its limit guards web servers against hostile files; whole-slide pictures are larger than that.
    Image.MAX_IMAGE_PIXELS = None
    return Image


def header(path: Path) -> tuple[Shape, Geometry]:
    try:
        with _pillow().open(path) as picture:
            frames = getattr(picture, "n_frames", 1) if path.suffix.lower() in TIFF_ENDINGS else 1
            shape = (_picture_channels(picture), frames, picture.height, picture.width)
    except FileNotFoundError:
        raise UsdError(f"{path} does not exist; check the path and the file name.") from None
    except Exception as error:
        raise unreadable(path, error) from error
    return shape, _picture_geometry(path, frames)


def read(path: Path, as_labels: bool) -> Volume:
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


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
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
