"""EBHI-Seg, colorectal biopsies in H&E (Shi et al. 2023, Frontiers in Medicine 10:1114673).

Published as EBHI-SEG/CLASS/{image,label}/GT2012118-1-400-001.png with six classes of tissue as folders. A mask marks
the tissue of its folder's class; its edges are soft. The number before the first "-" is the patient's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset_conversion.finding import Request, folder_of, images_in, pairs
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import RGB, Case, Conversion, Origin
from unisegdiff_pipeline.core.geometry import Volume

_CLASSES = {  # folder -> label
    "Adenocarcinoma": 1,
    "High-grade IN": 2,
    "Low-grade IN": 3,
    "Polyp": 4,
    "Serrated adenoma": 5,
    "Normal": 6,
}
_ORIGIN = Origin(
    "EBHI-Seg, Enteroscope Biopsy Histopathological H&E Image Dataset for Segmentation",
    "https://figshare.com/articles/dataset/EBHISEG/21540159",
    "CC BY 4.0",
    "Shi et al. 2023, Frontiers in Medicine 10:1114673",
)


def find(request: Request) -> Conversion:
    """All six classes, a label each."""
    return _conversion(request, tuple(_CLASSES))


def find_adenocarcinoma(request: Request) -> Conversion:
    """The part of the adenocarcinomas."""
    part = _conversion(request, ("Adenocarcinoma",))
    return replace(part, number=207, name="EBHIAdenocarcinoma", published={"training": 795})


def _conversion(request: Request, classes: tuple[str, ...]) -> Conversion:
    folder = folder_of(request, "EBHI-SEG", "Adenocarcinoma")
    cases = []
    for kind in classes:
        found = pairs(images_in(folder / kind / "image", (".png",)), images_in(folder / kind / "label", (".png",)))
        for stem, (image, mask) in found.items():  # a name may stand in two classes
            name = f"{_word(kind)}_{stem}"
            cases.append(Case(name, (image,), (mask,), group=stem.split("-")[0].upper()))
    return Conversion(
        number=206,
        name="EBHI",
        channels=RGB,
        labels={"background": 0, **{_word(kind): _CLASSES[kind] for kind in classes}},
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=_TissueMask(),
        published={"training": 2228},
    )


def _word(kind: str) -> str:
    return kind.replace(" ", "_")


@dataclass(frozen=True)
class _TissueMask:
    """The label of the folder's class where the mask is white."""

    def __call__(self, path: Path) -> Volume:
        mask = Above(127)(path)
        return Volume(mask.array * np.uint8(_CLASSES[path.parent.parent.name]), mask.geometry)
