"""EMIDEC, late gadolinium enhancement MR of the heart (Lalande et al. 2020, Data 5:89).

Published as emidec-dataset-1.0.1/Case_P001/{Images,Contours}/Case_P001.nii.gz, N in place of P for normal cases. The
test set has images alone.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, unique, volume
from dataset_conversion.raw_writer import Case, Conversion, Origin

_ORIGIN = Origin(
    "EMIDEC challenge",
    "https://emidec.com",
    "CC BY-NC-SA 4.0",
    "Lalande et al. 2020, Data 5:89",
)


def find(request: Request) -> Conversion:
    """See the module; cases without contours are held out."""
    (source,) = request.sources
    folders = unique(
        ((path.name, path) for path in source.rglob("Case_*") if path.is_dir()),
        source,
        "folder Case_P001",
    )
    cases = []
    for name, folder in folders.items():
        image, mask = (volume(folder / part, name) for part in ("Images", "Contours"))
        labelled = (folder / "Contours").is_dir()
        cases.append(Case(name, (image,), (mask,) if labelled else (), held_out=not labelled))
    return Conversion(
        number=215,
        name="EMIDEC",
        channels=("LGE",),
        labels={"background": 0, "cavity": 1, "normal_myocardium": 2, "infarction": 3, "no_reflow": 4},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        published={"training": 100},
    )
