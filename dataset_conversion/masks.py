"""How the masks of published data sets become label maps: what their values mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.io.endings import LOSSY_ENDINGS, PICTURE_ENDINGS, split_ending
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.io.integrity import label_values
from unisegdiff_pipeline.io.pictures import require_opaque, require_still

_JPEG_BLACK = 16  # black of a JPEG may come back as a value up to this
MaskReader = Callable[[Path], Volume]  # label map (1, Z, Y, X) of unsigned integers


@dataclass(frozen=True)
class AsLabelled:
    """The values of the file are the labels."""

    def __call__(self, path: Path) -> Volume:
        return read_labels(path)


@dataclass(frozen=True)
class Above:
    """One class: 1 where the value of the file is larger than `threshold`, for masks of 0 and 255, soft ones too.

    A mask that holds something, but nothing above the threshold, is refused: its values mean something else.
    """

    threshold: float

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:  # nothing is above NaN, and everything above a negative number
            raise UsdError(f"the threshold is {self.threshold:g}, allowed is a number from 0 on; correct --threshold.")

    def __call__(self, path: Path) -> Volume:
        if split_ending(path.name)[1].lower() in PICTURE_ENDINGS:
            volume = Volume(read_grey(path)[None, None], Geometry(is_2d=True))
        else:
            volume = read_image([path], 1)
            if not np.isfinite(volume.array).all():  # of which no maximum tells whether anything is above
                raise UsdError(f"{path} holds NaN or infinite values; write numbers, 0 where there is no lesion.")
        highest = float(volume.array.max())
        black = _JPEG_BLACK if path.name.lower().endswith(LOSSY_ENDINGS) else 0
        if black < highest <= self.threshold:
            raise UsdError(
                f"{path} holds values up to {highest:g}, a lesion is expected above {self.threshold:g}; use the mask "
                "as published."
            )
        return Volume((volume.array > self.threshold).astype(np.uint8), volume.geometry)


@dataclass(frozen=True)
class NonZero:
    """One class: 1 where the file has any value but 0, for masks that number their objects."""

    def __call__(self, path: Path) -> Volume:
        volume = read_labels(path)
        return Volume((volume.array > 0).astype(np.uint8), volume.geometry)


@dataclass(frozen=True)
class Mapped:
    """Values of the file -> labels; a value that is not named is refused."""

    values: Mapping[int, int]

    def __call__(self, path: Path) -> Volume:
        volume = read_labels(path)
        unknown = sorted(label_values(volume.array) - set(self.values))
        if unknown:
            raise UsdError(
                f"{path} holds the values {unknown[:10]}, known are {sorted(self.values)}; use the mask as published."
            )
        labels = np.zeros(volume.array.shape, np.uint8)
        for value, label in self.values.items():
            labels[volume.array == value] = label
        return Volume(labels, volume.geometry)


def read_grey(path: Path) -> np.ndarray:
    """Grey values (Y, X) of a picture as it is displayed, uint8, or of more bits where it has them.

    An opaque alpha channel counts for nothing.

    Raises:
        UsdError: the picture cannot be read, or has transparent pixels.
    """
    return _read(path, "L")


def read_colour(path: Path) -> np.ndarray:
    """Colours (Y, X, 3), uint8, of a picture as it is displayed; an opaque alpha channel counts for nothing.

    Raises:
        UsdError: the picture cannot be read, or has transparent pixels.
    """
    return _read(path, "RGB")


def _read(path: Path, mode: str) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "TIFF")) as picture:
            require_still(path, picture)
            require_opaque(path, picture)
            shown = ImageOps.exif_transpose(picture)
            if mode == "L" and shown.mode.startswith("I"):
                return np.asarray(shown)  # of more than 8 bits, which convert() would cut off at 255
            if shown.mode in ("P", "PA", "RGBA"):
                shown = shown.convert("RGB")  # of palettes the colours count, and alpha is dropped
            return np.asarray(shown.convert(mode))  # of 1-bit pictures 1 becomes 255
    except UsdError:
        raise
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise unreadable(path, error) from error
