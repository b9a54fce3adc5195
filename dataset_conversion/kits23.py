"""KiTS23, kidney tumours in CT (Heller et al. 2023, arXiv 2307.01984).

Published as kits23/dataset/case_00000/{imaging,segmentation}.nii.gz; the images are downloaded by the owners' script.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, unique, volume
from dataset_conversion.raw_writer import Case, Conversion, Origin

_ORIGIN = Origin(
    "KiTS23, Kidney and Kidney Tumor Segmentation",
    "https://github.com/neheller/kits23",
    "CC BY-NC-SA 4.0",
    "Heller et al. 2023, arXiv 2307.01984",
)


def find(request: Request) -> Conversion:
    """See the module; the regions are those that the challenge scores."""
    (source,) = request.sources
    folders = unique(
        ((path.name, path) for path in source.rglob("case_[0-9]*") if path.is_dir()), source, "folder case_00000"
    )
    cases = tuple(
        Case(name, (volume(folder, "imaging"),), (volume(folder, "segmentation"),)) for name, folder in folders.items()
    )
    return Conversion(
        number=216,
        name="KiTS23",
        channels=("CT",),
        labels={"background": 0, "kidney_and_masses": [1, 2, 3], "masses": [2, 3], "tumour": [2]},
        file_ending=".nii.gz",
        cases=cases,
        origin=_ORIGIN,
        published={"training": 489},
        more={"regions_class_order": [1, 3, 2]},
    )
