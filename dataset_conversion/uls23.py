"""ULS23, lesions in CT, each in a cube around it (de Grauw et al. 2025, Medical Image Analysis).

Published as ULS23/{novel_data,processed_data}/.../SET/{images,labels}/ with files of the same names, such as
ULS23_DeepLesion3D/labels/000010_02_02_100_lesion_01.nii.gz: in that set the first number is the patient's. Names of the
processed sets have the number of a sample behind the lesion's: LiTS/labels/liver_0_lesion_01_sample_0.nii.gz.
"""

from __future__ import annotations

import re
from pathlib import Path

from dataset_conversion.finding import Request, images_in, pairs, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS

_OF_ONE_LESION = re.compile(r"(_lesion_?[0-9]+)?(_sample_?[0-9]+)?$")  # what the lesions of a scan differ in
_ORIGIN = Origin(
    "ULS23, Universal Lesion Segmentation Challenge",
    "https://uls23.grand-challenge.org",
    "CC BY-NC-SA 4.0; parts have their own terms",
    "de Grauw et al. 2025, Medical Image Analysis",
)


def find(request: Request) -> Conversion:
    """See the module; all sets below the source are taken, lesions of one scan or patient form a group."""
    (source,) = request.sources
    pairs_of_folders = (path.parent for path in source.rglob("labels") if (path.parent / "images").is_dir())
    folders = unique(((str(path), path) for path in pairs_of_folders), source, "folder with images and labels in it")
    cases: list[Case] = []
    for folder in folders.values():
        images = images_in(folder / "images", NIFTI_ENDINGS)
        by_name = {re.sub(r"_0000$", "", stem): path for stem, path in images.items()}
        for name, (image, mask) in pairs(by_name, images_in(folder / "labels", NIFTI_ENDINGS)).items():
            cases.append(Case(f"{folder.name}_{name}", (image,), (mask,), group=_group(folder, name)))
    return Conversion(
        number=219,
        name="ULS23",
        channels=("CT",),
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
    )


def _group(folder: Path, name: str) -> str:
    if "DeepLesion" in folder.name:
        return f"DeepLesion_{name.split('_')[0]}"
    return f"{folder.name}_{_OF_ONE_LESION.sub('', name)}"
