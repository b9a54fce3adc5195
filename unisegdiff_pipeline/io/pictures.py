"""Pictures (PNG, JPEG, BMP) and stacks of them (TIFF), read and written by Pillow; they know no place in space.

Pixels are taken as a viewer shows them: turned as the EXIF or TIFF orientation says, with the colours of a palette.
Of label maps the grey value counts, in a palette of greys too. A palette of real colours stands for classes, where
each colour has one index. Transparency has no meaning here: where it hides anything, the picture is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object
from unisegdiff_pipeline.io import png_chunks, tiff_pages
from unisegdiff_pipeline.io.declared import check_declared
from unisegdiff_pipeline.io.endings import TIFF_ENDINGS, split_ending

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # Pillow knows more, some of which start other programs
_LOSSY = ("JPEG", "MPO")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag of TIFF and its value
_SAMPLE_FORMAT, _UNSIGNED, _SIGNED = 339, 1, 2
_ORIENTATION = 0x0112  # tag of EXIF and TIFF; 5 to 8 exchange rows and columns
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # grey of more than 8 bits
_GREY_MODES = ("1", "L", "LA", *_DEEP_MODES)
_BYTES_PER_VALUE = 4  # at most; Pillow keeps colours in four bytes a pixel


def header(path: Path) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X), as displayed and without an alpha channel, and geometry of a picture or stack."""
    with _open(path) as picture:
        return _declared(path, picture)


def read(path: Path, as_labels: bool) -> Volume:
    """Pixels (C, Z, Y, X) of a picture or stack."""
    with _open(path) as picture:
        (_, frames, _, _), geometry = _declared(path, picture)
        if picture.format == "PNG":
            png_chunks.require_whole(path)
        if as_labels:
            _require_exact_labels(path, picture)
        slices = []
        for number in range(frames):
            if frames > 1:
                picture.seek(number)
            slices.append(_frame(path, picture, as_labels))
    if any(part.shape != slices[0].shape for part in slices):
        sizes = " and ".join(sorted({str(part.shape) for part in slices}))
        raise UsdError(f"{path} holds pages of different shapes (C, Y, X), {sizes}; store slices of one size.")
    array = slices[0][:, None] if frames == 1 else np.stack(slices, axis=1)  # (C, Z, Y, X)
    return Volume(array, geometry)


def label_colours(path: Path) -> dict[int, tuple[int, int, int]]:
    """Colours of the values of a label picture with a palette of colours; empty for all others."""
    with _open(path) as picture:
        if picture.mode != "P" or _has_grey_palette(picture):
            return {}
        return {value: (int(r), int(g), int(b)) for value, (r, g, b) in enumerate(_palette(picture))}


def write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write (Z, Y, X); pictures hold one slice of 8 or 16 bits, TIFF any number of slices."""
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


# ------------------------------------------------------------------------------------------------------- headers


def _pillow() -> Any:
    from PIL import Image

    # Its limit guards web servers against hostile files; whole-slide pictures are larger. check_declared has its own.
    Image.MAX_IMAGE_PIXELS = None
    return Image


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    # Not by its name: Pillow then maps the file into memory, which scrambles TIFF files that an orientation turns, and
    # kills the process where another one cuts the file short.
    with open(path, "rb") as stream, _identified(path, stream) as picture:
        yield picture


def _identified(path: Path, stream: BinaryIO) -> Any:
    """The picture that a stream holds, its pixels not read yet."""
    from PIL import UnidentifiedImageError

    try:
        return _pillow().open(stream, formats=_FORMATS)
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(4) in _TIFF_MAGIC:
            raise UsdError(
                f"{path} is a TIFF that is damaged, or of a kind that is not read, such as one of 64 bits a value; "
                f"save it with 8, 16 or 32 bits a value, uncompressed or compressed by LZW or deflate."
            ) from None
        raise UsdError(
            f"{path} is damaged, or no {', '.join(_FORMATS[:-1])} or TIFF picture, whatever its name says; check where "
            f"it comes from, and export it again."
        ) from None


def _declared(path: Path, picture: Any) -> tuple[Shape, Geometry]:
    """Shape (C, Z, Y, X) and geometry from the headers, checked."""
    frames = 1
    if picture.format == "TIFF":
        frames = tiff_pages.count(path)
        tiff_pages.check_description(path, picture.tag_v2.get(270), frames)
    require_still(path, picture)
    if frames > 1 and path.suffix.lower() not in TIFF_ENDINGS:
        raise UsdError(f"{path} is a TIFF of {frames} pages; name it {split_ending(path.name)[0]}.tif.")
    size, geometry = _displayed_size(path, picture), _geometry(path, frames)
    check_declared(path, (1, frames, *size), _BYTES_PER_VALUE, geometry)  # Pillow decodes a picture for its palette
    shape = (_channels(picture), frames, *size)
    check_declared(path, shape, _BYTES_PER_VALUE, geometry)
    return shape, geometry


def _channels(picture: Any) -> int:
    if picture.mode == "P":
        return 1 if _has_grey_palette(picture) else 3
    return 1 if picture.mode in _GREY_MODES else 3


def _displayed_size(path: Path, picture: Any) -> tuple[int, int]:
    """(height, width) after the orientation has been applied."""
    if picture.format == "TIFF":  # versions of Pillow differ in whether `size` is already turned
        width, height = int(picture.tag_v2[256]), int(picture.tag_v2[257])
        turned = picture.tag_v2.get(_ORIENTATION, 1) >= 5
    else:
        width, height = picture.size
        turned = _may_be_turned(path, picture) and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def _may_be_turned(path: Path, picture: Any) -> bool:
    """Whether it is worth asking Pillow for the orientation, for which it decodes the whole of a PNG."""
    if picture.format != "PNG":
        return True
    with open(path, "rb") as stream:
        stream.seek(8)
        while len(start := stream.read(8)) == 8:
            length, kind = int.from_bytes(start[:4], "big"), start[4:]
            text = stream.read(min(length, 32)) if kind in (b"iTXt", b"tEXt", b"zTXt") else b""
            if kind == b"eXIf" or text.startswith((b"XML:com.adobe.xmp", b"Raw profile type")):
                return True
            stream.seek(length - len(text) + 4, 1)
    return False


def _geometry(path: Path, frames: int) -> Geometry:
    """Spacing 1, unless a stack of slices has a JSON file beside it, as nnU-Net's reader of 3D TIFF expects."""
    if path.suffix.lower() not in TIFF_ENDINGS:
        return Geometry(is_2d=True)
    sidecar = spacing_file(path)
    if sidecar is None:
        return Geometry(is_2d=frames == 1)
    spacing = from_jsonable(tuple[float, float, float], read_object(sidecar).get("spacing"), f"{sidecar}: spacing")
    return Geometry(spacing, is_2d=frames == 1)


def spacing_file(path: Path) -> Path | None:
    """The JSON file beside a TIFF that holds its spacing, named after the file or its case; None without one."""
    if path.suffix.lower() not in TIFF_ENDINGS:
        return None
    stem, _ = split_ending(path.name)
    candidates = (path.with_name(f"{name}.json") for name in (stem, re.sub(r"_\d{4}$", "", stem)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


# -------------------------------------------------------------------------------------------------------- pixels


def _frame(path: Path, picture: Any, as_labels: bool) -> np.ndarray:
    """The current frame as (C, Y, X), as displayed."""
    from PIL import ImageOps

    picture.load()
    bits = _bits_per_value(path, picture)
    if bits > 8 and picture.mode not in _DEEP_MODES:
        raise UsdError(
            f"{path} is a colour or transparent picture of {bits} bits a channel, of which only 8 could be read; save "
            "it with 8 bits, or as grey without transparency."
        )
    if picture.format == "TIFF" and bits > (1 if as_labels else 8) and _stores_white_as_zero(picture):
        raise UsdError(  # Pillow turns round up to 8 bits, which masks of other programs do not expect
            f"{path} has {bits} bits a value and stores white as 0 (WhiteIsZero), which viewers show turned round and "
            f"other programs do not; save it with black as 0."
        )
    require_opaque(path, picture)
    frame = ImageOps.exif_transpose(picture)
    if frame.mode == "P":
        return _from_palette(path, frame, as_labels)
    if frame.mode == "LA":
        frame = frame.getchannel("L")
    elif frame.mode not in (*_GREY_MODES, "RGB"):
        frame = frame.convert("RGB")
    array = np.asarray(frame)
    if picture.format == "TIFF":
        _require_own_sign(path, picture, bits, array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif as_labels and bits < 8:
        array = array // (255 // (2**bits - 1))  # Pillow spreads 2 and 4 bits over 0 to 255
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _stores_white_as_zero(picture: Any) -> bool:
    return bool(picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)


def _require_own_sign(path: Path, picture: Any, bits: int, array: np.ndarray) -> None:
    """Refuse a TIFF that Pillow reads as numbers of the other sign: 8 bits as unsigned, 32 bits as signed ones."""
    (kind, *_) = picture.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if bits == 8 and kind == _SIGNED:
        raise UsdError(f"{path} holds signed numbers of 8 bits, which cannot be read; save it with 16 bits.")
    if bits == 32 and kind == _UNSIGNED and array.dtype == np.int32 and array.min() < 0:
        raise UsdError(f"{path} holds numbers of 2^31 and more, which cannot be read; save it as real numbers.")


def _bits_per_value(path: Path, picture: Any) -> int:
    """Bits of one channel of one pixel in the file; 8 for formats that have no choice, and for palettes."""
    if picture.mode == "P":
        return 8
    if picture.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(25)[24]
    if picture.format == "TIFF":
        return int(max(np.ravel(picture.tag_v2.get(258, 1))))
    return 8


def require_still(path: Path, picture: Any) -> None:
    """Raise a UsdError where an open picture is an animated PNG."""
    if picture.format == "PNG" and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise UsdError(f"{path} is an animated PNG of {frames} frames; save the frame that counts, alone.")


def require_opaque(path: Path, picture: Any) -> None:
    """Raise a UsdError where pixels of the current frame of an open picture are transparent."""
    if not picture.has_transparency_data:
        return
    if picture.mode.startswith("I"):
        hidden = bool((np.asarray(picture) == picture.info["transparency"]).any())
    else:
        hidden = picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
    if hidden:
        raise UsdError(
            f"{path} has transparent pixels, and what they hide or show is not defined; save the picture without "
            "transparency (no alpha channel), labels as grey values."
        )


def _require_exact_labels(path: Path, picture: Any) -> None:
    if picture.format in _LOSSY or picture.info.get("compression") in ("jpeg", "tiff_jpeg"):
        raise UsdError(
            f"{path} is compressed as JPEG, whatever its name says, and JPEG alters label values; export the label "
            "map again as PNG."
        )


def _palette(picture: Any) -> np.ndarray:
    """Colours (N, 3) of the palette."""
    return np.reshape(picture.getpalette("RGB"), (-1, 3)).astype(np.uint8)


def _has_grey_palette(picture: Any) -> bool:
    palette = _palette(picture)
    return bool((palette == palette[:, :1]).all())


def _from_palette(path: Path, picture: Any, as_labels: bool) -> np.ndarray:
    """(C, Y, X): greys of a grey palette; else colours of an image, and indices of a label map."""
    index, palette = np.asarray(picture), _palette(picture)
    used = np.unique(index)
    if used[-1] >= len(palette):
        raise UsdError(f"{path} uses colour {used[-1]} of a palette of {len(palette)}; it is damaged, export it again.")
    if as_labels:
        _require_distinct_colours(path, used, palette)
    if _has_grey_palette(picture):
        return palette[index, 0][None]
    return index[None] if as_labels else np.ascontiguousarray(np.moveaxis(palette[index], -1, 0))


def _require_distinct_colours(path: Path, used: np.ndarray, palette: np.ndarray) -> None:
    """Two indices of one colour look the same to the annotator, so that the index says nothing."""
    owner: dict[Sequence[int], int] = {}
    for value in used.tolist():
        colour = tuple(palette[value].tolist())
        if owner.setdefault(colour, value) != value:
            raise UsdError(
                f"{path} has a palette in which the values {owner[colour]} and {value} have the same colour {colour}, "
                "so that its classes cannot be told apart; save the label map as grey values."
            )
