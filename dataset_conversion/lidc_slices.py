"""LIDC-IDRI, lung nodules in CT with four readers (Armato et al. 2011, Medical Physics 38:915), as slices.

The copy "LIDC-IDRI-slices" of Kaggle, made with pylidc: LIDC-IDRI-0001/nodule-1/images/slice-0.png, and mask-0 to
mask-3 with files of the same names. A reader who did not mark the nodule has an empty mask. The original, DICOM series
with outlines in XML, is read by `lidc`.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, folder_of, images_in, natural, pairs
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import Case, Conversion, Origin

_READERS = 4
_ORIGIN = Origin(
    "LIDC-IDRI, slices of nodules with the masks of four readers",
    "https://www.kaggle.com/datasets/zhangweiled/lidcidri; original https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
    "CC BY 3.0 (LIDC-IDRI)",
    "Armato et al. 2011, Medical Physics 38:915",
)


def find(request: Request) -> Conversion:
    """Each slice is a case: labelsTr is what two of four readers mark, ratersTr their masks; a group is a patient."""
    source = folder_of(request, "LIDC-IDRI-slices", "LIDC-IDRI-[0-9]*")
    cases = []
    nodules = [path for path in source.glob("LIDC-IDRI-[0-9]*/nodule-*") if path.is_dir()]
    for nodule in sorted(nodules, key=lambda path: natural(path.as_posix())):
        images = images_in(nodule / "images", (".png",))
        readers = [pairs(images, images_in(nodule / f"mask-{number}", (".png",))) for number in range(_READERS)]
        for stem, image in images.items():
            masks = tuple(reader[stem][1] for reader in readers)
            name = f"{nodule.parent.name}_{nodule.name}_{stem}"
            cases.append(Case(name, (image,), masks, group=nodule.parent.name, raters=masks, agree=2))
    return Conversion(
        number=221,
        name="LIDC",
        channels=("CT_8bit",),
        labels={"background": 0, "nodule": 1},
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=Above(127),
        published={"training": 15548},
    )
