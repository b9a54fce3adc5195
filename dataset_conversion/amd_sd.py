"""AMD-SD, OCT of wet age-related macular degeneration (Hu et al. 2024, Scientific Data 11:1014).

Published as AMD-SD/images/PATIENT/*.png: in each picture the B-scan is the left half and its annotation, in colours,
the right half.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.finding import Request, folder_of, images_in, natural
from dataset_conversion.masks import read_colour, read_grey
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Volume

_COLOURS = {  # (R, G, B), each 0 or 1 -> label
    (1, 0, 1): 1,
    (0, 1, 0): 2,
    (1, 0, 0): 3,
    (1, 1, 0): 4,
    (0, 0, 1): 5,
}
_LABELS: dict[str, int | list[int]] = {
    "background": 0,
    "ellipsoid_zone_disruption": 1,
    "intraretinal_fluid": 2,
    "subretinal_fluid": 3,
    "subretinal_hyperreflective_material": 4,
    "pigment_epithelial_detachment": 5,
}
_STRAY_FRACTION = 1e-3  # pixels between two colours may have a third one
_ORIGIN = Origin(
    "AMD-SD, OCT images for wet AMD lesion segmentation",
    "https://doi.org/10.1038/s41597-024-03844-6",
    "CC BY 4.0",
    "Hu et al. 2024, Scientific Data 11:1014",
)


def find(request: Request) -> Conversion:
    """See the module."""
    images = folder_of(request, "AMD-SD", "images") / "images"
    folders = (path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    patients = sorted(folders, key=lambda path: natural(path.name))
    cases = [
        Case(f"{patient.name}_{stem}", (path,), (path,), group=patient.name)
        for patient in patients
        for stem, path in images_in(patient, (".png",)).items()
    ]
    return Conversion(
        number=202,
        name="AMDSD",
        channels=("OCT",),
        labels=_LABELS,
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=_RightHalf(),
        read_picture=_left_half,
        published={"training": 3049},
    )


def _left_half(path: Path) -> np.ndarray:
    pixels = read_grey(path)
    return pixels[:, : _middle(path, pixels)]


@dataclass(frozen=True)
class _RightHalf:
    """The classes of the colours; black, grey and white, of which no class is, are background."""

    def __call__(self, path: Path) -> Volume:
        pixels = read_colour(path)
        colours = (pixels[:, _middle(path, pixels) :] > 127).astype(np.uint8)
        labels = np.zeros(colours.shape[:2], np.uint8)
        for colour, label in _COLOURS.items():
            labels[(colours == colour).all(axis=-1)] = label
        stray = (labels == 0) & (colours.min(axis=-1) != colours.max(axis=-1))
        if stray.mean() > _STRAY_FRACTION:
            found = (colours[stray][0] * 255).tolist()
            raise UsdError(
                f"{path} holds {int(stray.sum())} pixels of the colour {found} in its right half, which stands for no "
                "class; use the picture as published."
            )
        return Volume(labels[None, None], Geometry(is_2d=True))


def _middle(path: Path, pixels: np.ndarray) -> int:
    width = pixels.shape[1]
    if width % 2:
        raise UsdError(f"{path} is {width} pixels wide, two halves are expected; use the picture as published.")
    return width // 2
