"""BUSI, breast ultrasound images (Al-Dhabyani et al. 2020, Data in Brief 28:104863).

Published as Dataset_BUSI_with_GT/{benign,malignant,normal}/ with "benign (1).png", its mask "benign (1)_mask.png" and
for further lesions of the image "benign (1)_mask_1.png" and so on. Masks of normal images are empty.
"""

from __future__ import annotations

import re

from dataset_conversion.finding import Request, folder_of, images_in
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError

_IMAGE = re.compile(r"(?P<image>(?P<kind>benign|malignant|normal) \((?P<number>\d+)\))")
_MASK = re.compile(_IMAGE.pattern + r"_mask(_\d+)?")
_ORIGIN = Origin(
    "Breast Ultrasound Images Dataset (BUSI)",
    "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    "none stated by the owners; public for research, cite the article",
    "Al-Dhabyani et al. 2020, Data in Brief 28:104863",
)


def find(request: Request) -> Conversion:
    """See the module."""
    folder = folder_of(request, "Dataset_BUSI_with_GT", "benign")
    cases = []
    for kind in ("benign", "malignant", "normal"):
        files = images_in(folder / kind, (".png",))
        masks: dict[str, list[str]] = {}
        for stem in files:
            if match := _MASK.fullmatch(stem):
                masks.setdefault(match["image"], []).append(stem)
        if lonely := [files[stem] for image, stems in masks.items() if image not in files for stem in stems]:
            raise UsdError(f"{lonely[0]} is a mask without image; unpack the whole of the download.")
        for stem, path in files.items():
            match = _IMAGE.fullmatch(stem)
            if match is None:
                continue
            if stem not in masks:
                raise UsdError(f"{path} has no mask {stem}_mask.png; unpack the whole of the download.")
            found = tuple(files[mask] for mask in masks[stem])
            cases.append(Case(f"{kind}_{int(match['number']):03d}", (path,), found))
    return Conversion(
        number=201,
        name="BUSI",
        channels=("ultrasound",),
        labels={"background": 0, "lesion": 1},
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=Above(127),
        published={"training": 780},
    )
