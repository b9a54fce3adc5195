"""COVID-19 CT Lung and Infection Segmentation Dataset (Ma et al. 2021, Medical Physics 48:1197; Zenodo 3757476).

Published as COVID-19-CT-Seg_20cases.zip and Infection_Mask.zip, whose files have the same names
(coronacases_001.nii.gz, radiopaedia_4_85506_1.nii.gz). The copy on Kaggle has the folders ct_scans and infection_mask,
and other names for the images of Radiopaedia.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset_conversion.finding import Request, images_in, pairs
from dataset_conversion.masks import Mapped
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS

_CORONA = re.compile(r"coronacases(?:_org)?_(\d+)")
_RADIOPAEDIA = re.compile(r"radiopaedia.*?(\d+_\d{4,}_\d+)")
_ORIGIN = Origin(
    "COVID-19 CT Lung and Infection Segmentation Dataset",
    "https://zenodo.org/records/3757476",
    "CC BY 4.0 for the masks (Zenodo); the scans are of coronacases.org and radiopaedia.org, CC BY-NC-SA",
    "Ma et al. 2021, Medical Physics 48:1197; doi 10.5281/zenodo.3757476",
)


def find(request: Request) -> Conversion:
    """See the module; scans of one Radiopaedia case form a group."""
    (source,) = request.sources
    images = _by_case(_first(source, "COVID-19-CT-Seg_20cases", "ct_scans"))
    masks = _by_case(_first(source, "Infection_Mask", "infection_mask"))
    cases = [
        Case(name, (image,), (mask,), group="_".join(name.split("_")[:2]))
        for name, (image, mask) in pairs(images, masks).items()
    ]
    return Conversion(
        number=205,
        name="CovidCT",
        channels=("CT",),
        labels={"background": 0, "infection": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=Mapped({0: 0, 1: 1}),
        published={"training": 20},
    )


def _first(source: Path, *names: str) -> Path:
    """The folder of one of these names in `source`."""
    found = next((source / name for name in names if (source / name).is_dir()), None)
    if found is None:
        raise UsdError(f"{source} holds none of the folders {' and '.join(names)}; unpack each archive into its own.")
    return found


def _by_case(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for stem, path in images_in(folder, NIFTI_ENDINGS).items():
        if match := _CORONA.match(stem):
            name = f"coronacases_{match[1]}"
        elif match := _RADIOPAEDIA.match(stem):
            name = f"radiopaedia_{match[1]}"
        else:
            raise UsdError(f"{path} has no name of this data set (coronacases_N, radiopaedia_N_N_N); move it away.")
        if found.setdefault(name, path) != path:
            raise UsdError(f"{found[name]} and {path} are one case; keep one of them.")
    return found
