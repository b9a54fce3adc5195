"""autoPET, whole-body FDG PET/CT (Gatidis et al. 2022, Scientific Data 9:601).

Published as FDG-PET-CT-Lesions/PETCT_0011f3deaf/03-23-2003-NA-PET-CT.../ with CTres.nii.gz (CT on the grid of the PET),
SUV.nii.gz and SEG.nii.gz.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin

_ORIGIN = Origin(
    "FDG-PET-CT-Lesions (autoPET)",
    "https://doi.org/10.7937/gkr0-xv29",
    "TCIA limited access, terms by agreement",
    "Gatidis et al. 2022, Scientific Data 9:601",
)


def find(request: Request) -> Conversion:
    """See the module; studies of one patient form a group, half of the studies have no lesion."""
    (source,) = request.sources
    studies = unique(
        ((f"{path.parent.name}_{path.name}", path) for path in source.rglob("PETCT_*/*") if path.is_dir()),
        source,
        "folder PETCT_*/STUDY",
    )
    cases = tuple(
        Case(
            name.replace(" ", "_"),
            (study / "CTres.nii.gz", study / "SUV.nii.gz"),
            (study / "SEG.nii.gz",),
            group=study.parent.name,
        )
        for name, study in studies.items()
    )
    return Conversion(
        number=218,
        name="autoPET",
        channels=("CT", "PET"),
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
        cases=cases,
        origin=_ORIGIN,
        published={"training": 1014},
    )
