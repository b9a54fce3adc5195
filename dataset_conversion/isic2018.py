"""ISIC 2018 task 1, outlines of skin lesions in dermoscopy (Codella et al. 2019, arXiv 1902.03368).

Published as ISIC2018_Task1-2_PART_Input/ISIC_0000000.jpg and ISIC2018_Task1_PART_GroundTruth/
ISIC_0000000_segmentation.png for the parts Training, Validation and Test.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.finding import Request, folder_of, images_in, pairs, picture_ending
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import RGB, Case, Conversion, Origin

_PARTS = {"Training": "", "Validation": "validation_", "Test": ""}  # the owners' part -> what case names begin with
_ORIGIN = Origin(
    "ISIC 2018 challenge, task 1: lesion boundary segmentation",
    "https://challenge.isic-archive.com/data/#2018",
    "CC0 or CC BY-NC 4.0, by image (HAM10000)",
    "Codella et al. 2019, arXiv 1902.03368; Tschandl et al. 2018, Scientific Data 5:180161",
)


def find(request: Request) -> Conversion:
    """See the module; Validation and Test are held out where they are there."""
    source = folder_of(request, "ISIC2018", "ISIC2018_Task1-2_Training_Input")
    cases: list[Case] = []
    images: list[Path] = []
    for part, prefix in _PARTS.items():
        folder = source / f"ISIC2018_Task1-2_{part}_Input"
        if part != "Training" and not folder.is_dir():
            continue
        masks = images_in(source / f"ISIC2018_Task1_{part}_GroundTruth", (".png",))
        by_image = {stem.removesuffix("_segmentation"): path for stem, path in masks.items()}
        for name, (image, mask) in pairs(images_in(folder, (".jpg",)), by_image).items():
            cases.append(Case(prefix + name, (image,), (mask,), held_out=part != "Training"))
            images.append(image)
    return Conversion(
        number=208,
        name="ISIC2018",
        channels=RGB,
        labels={"background": 0, "lesion": 1},
        file_ending=picture_ending(images, RGB),
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=Above(127),
        published={"training": 2594, "test": 1100},
    )
