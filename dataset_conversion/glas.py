"""GlaS, glands in colon histology (Sirinukunwattana et al. 2017, Medical Image Analysis 35:489).

Published as "Warwick QU Dataset (Released 2016_07_08)", of which copies are named Warwick_QU_Dataset, with train_1.bmp,
train_1_anno.bmp, testA_1.bmp, testB_1.bmp and so on, and Grade.csv with the patient of each image. A mask numbers the
glands; here they are one class.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.finding import Request, folder_of, images_in, pairs
from dataset_conversion.masks import NonZero
from dataset_conversion.raw_writer import RGB, Case, Conversion, Origin
from unisegdiff_pipeline.core.csv_tables import read_csv
from unisegdiff_pipeline.core.errors import UsdError

_ORIGIN = Origin(
    "GlaS@MICCAI2015, Warwick-QU data set",
    "https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest",
    "research only, with citation",
    "Sirinukunwattana et al. 2017, Medical Image Analysis 35:489",
)


def find(request: Request) -> Conversion:
    """See the module; images of one patient form a group, testA and testB are held out."""
    folder = folder_of(request, "Warwick?QU?Dataset*", "train_1.bmp")
    files = images_in(folder, (".bmp",))
    masks = {stem.removesuffix("_anno"): path for stem, path in files.items() if stem.endswith("_anno")}
    images = {stem: path for stem, path in files.items() if not stem.endswith("_anno")}
    patients = _patients(folder / "Grade.csv")
    cases = []
    for name, (image, mask) in pairs(images, masks).items():
        if name not in patients:
            raise UsdError(f"{folder / 'Grade.csv'} has no line for {name}; use the file as published.")
        group = f"patient_{patients[name]}"
        cases.append(Case(name, (image,), (mask,), group, held_out=not name.startswith("train")))
    return Conversion(
        number=210,
        name="GlaS",
        channels=RGB,
        labels={"background": 0, "gland": 1},
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=NonZero(),
        published={"training": 85, "test": 80},
    )


def _patients(path: Path) -> dict[str, str]:
    """Image -> patient."""
    if not path.is_file():
        raise UsdError(f"{path} does not exist; unpack the whole of the download.")
    (_, head), *rows = read_csv(path) or [(1, [])]
    names = [cell.strip().lower() for cell in head]
    if not {"name", "patient id"} <= set(names):
        raise UsdError(f"{path} has the columns {', '.join(names)}; name and patient ID are expected.")
    name, patient = names.index("name"), names.index("patient id")
    return {row[name].strip(): row[patient].strip() for _, row in rows if len(row) > max(name, patient)}
