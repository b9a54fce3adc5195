"""PH2, dermoscopy of melanocytic lesions (Mendonca et al. 2013, EMBC).

Published as "PH2Dataset/PH2 Dataset images/IMD002/" with IMD002_Dermoscopic_Image/IMD002.bmp and
IMD002_lesion/IMD002_lesion.bmp.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, pairs, unique
from dataset_conversion.masks import Above
from dataset_conversion.raw_writer import RGB, Case, Conversion, Origin

_ORIGIN = Origin(
    "PH2, a dermoscopic image database",
    "https://www.fc.up.pt/addi/ph2%20database.html",
    "research and education only, with citation",
    "Mendonca et al. 2013, 35th EMBC",
)


def find(request: Request) -> Conversion:
    """See the module."""
    (source,) = request.sources
    images = {path.stem: path for path in source.rglob("IMD*_Dermoscopic_Image/IMD*.bmp")}
    masks = {path.stem.removesuffix("_lesion"): path for path in source.rglob("IMD*_lesion/IMD*_lesion.bmp")}
    images = unique(images.items(), source, "image IMD002_Dermoscopic_Image/IMD002.bmp")
    return Conversion(
        number=209,
        name="PH2",
        channels=RGB,
        labels={"background": 0, "lesion": 1},
        file_ending=".png",
        cases=tuple(Case(name, (image,), (mask,)) for name, (image, mask) in pairs(images, masks).items()),
        origin=_ORIGIN,
        read_mask=Above(127),
        published={"training": 200},
    )
