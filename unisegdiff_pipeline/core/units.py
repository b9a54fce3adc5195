"""Units of sizes and lengths: one for each thing in every table, page and line of text about a data set.

    volumes                           ml     mm
    2D images                         mm2    mm
    2D images of unknown pixel size   pixels2  pixels
    volumes and 2D images together    ml     mm      nominal: a 2D image is a slice of a thickness that is made up

Scores are computed on `measured_grid`, whose numbers are in these units. Their names inside the package end in `_ml`
and `_mm` whatever the data; files and pages take theirs from `Units`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unisegdiff_pipeline.core.geometry import Geometry

MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class Units:
    """How sizes and lengths of a data set are called.

    Attributes:
        length: in names of columns, "mm" or "pixels".
        size: in names of columns, "ml", "mm2" or "pixels2".
        nominal: millimetres are made up: volumes whose voxel size is not known.
    """

    length: Literal["mm", "pixels"] = "mm"
    size: Literal["ml", "mm2", "pixels2"] = "ml"
    nominal: bool = False

    @property
    def size_text(self) -> str:
        """The unit of sizes for readers."""
        return self.size.replace("2", "\N{SUPERSCRIPT TWO}")

    @property
    def size_word(self) -> str:
        """What a size is called."""
        return "volume" if self.size == "ml" else "area"

    @property
    def element(self) -> str:
        """What images consist of: "voxel", in 2D "pixel"."""
        return "voxel" if self.size == "ml" else "pixel"

    def length_text(self, length: float) -> str:
        """A length in words, such as "2 mm" or "1 pixel"."""
        unit = "pixel" if self.length == "pixels" and length == 1 else self.length
        return f"{length:g} {unit}"

    def size_shown(self, size: float) -> str:
        """A size with its unit, such as "2.31 ml" or "1204 pixels²"."""
        return f"{size:.0f} {self.size_text}" if self.size == "pixels2" else f"{size:.3g} {self.size_text}"

    def name(self, name: str) -> str:
        """Name of a column or key in these units: hd_mm => hd_pixels, reference_ml => reference_mm2."""
        if match := re.fullmatch(r"(surface_dice_[^_]+?)mm", name):
            return f"{match[1]}{self.length}"
        area = "mm2" if self.size == "ml" else self.size
        for inner, shown in (("_mm", self.length), ("_ml", self.size), ("_mm2", area)):
            if name.endswith(inner):
                return f"{name.removesuffix(inner)}_{shown}"
        return name

    def named(self, value: Any, kept: Collection[str] = ()) -> Any:
        """JSON values whose keys, and the metrics that they name, are called in these units.

        Keys in `kept` stay as they are: those that are names of classes, such as "nodule_6_mm", or of sources.
        """
        if isinstance(value, Mapping):
            inner = {key: self.named(item, kept) for key, item in value.items()}
            if isinstance(inner.get("metric"), str):
                inner["metric"] = self.name(inner["metric"])
            return {key if key in kept else self.name(key): item for key, item in inner.items()}
        return [self.named(item, kept) for item in value] if isinstance(value, (list, tuple)) else value


VOLUMES = Units()


def units_of(is_2d: bool, spacing_known: bool) -> Units:
    """Units of a data set.

    Args:
        is_2d: its files are 2D images.
        spacing_known: of dataset.json.
    """
    if not is_2d:
        return Units(nominal=not spacing_known)
    return Units("mm", "mm2") if spacing_known else Units("pixels", "pixels2")


def units_of_files(are_2d: Collection[bool], spacing_known: bool) -> Units:
    """Units of files that may be of both kinds, by which of them are 2D images."""
    return units_of(False not in are_2d, spacing_known and len({*are_2d}) < 2)


def measured_grid(geometry: Geometry, units: Units) -> Geometry:
    """The geometry that sizes and distances are measured on in these units: where they are pixels, that of pixels."""
    if units.length == "pixels":
        return Geometry(is_2d=True)
    return dataclasses.replace(geometry, is_2d=units.size == "mm2")


def size_of_voxel(spacing_mm: Sequence[float], units: Units) -> float:
    """Size of a voxel of an image with this spacing (Z, Y, X): ml, mm2 or pixels2."""
    z, y, x = map(float, spacing_mm)
    return {"ml": z * y * x / MM3_PER_ML, "mm2": y * x, "pixels2": 1.0}[units.size]


def voxel_size(geometry: Geometry) -> float:
    """Size of one voxel of a measured grid: ml, of 2D images mm2 or pixels2."""
    return geometry.voxel_volume_mm3 / (1.0 if geometry.is_2d else MM3_PER_ML)
