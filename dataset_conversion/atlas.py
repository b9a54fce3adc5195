"""ATLAS 2.0, chronic stroke in T1-weighted MR (Liew et al. 2022, Scientific Data 9:320).

Published as ATLAS_2/{Training,Testing}/R001/sub-r001s001/ses-1/anat/ with
sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz and, in Training,
sub-r001s001_ses-1_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask.nii.gz.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.finding import Request, folder_of, pairs, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin

_SPACE = "_space-MNI152NLin2009aSym"
_IMAGE = f"{_SPACE}_T1w.nii.gz"
_MASK = f"{_SPACE}_label-L_desc-T1lesion_mask.nii.gz"
_ORIGIN = Origin(
    "ATLAS R2.0, Anatomical Tracings of Lesions After Stroke",
    "https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html",
    "terms of use of the archive, which is encrypted: ask the owners for the password",
    "Liew et al. 2022, Scientific Data 9:320",
)


def find(request: Request) -> Conversion:
    """See the module; Testing, which has no masks, is held out where it is there."""
    source = folder_of(request, "ATLAS_2", "Training")
    images = _by_scan(source / "Training", _IMAGE)
    cases = [
        Case(name, (image,), (mask,), group=name.split("_")[0])
        for name, (image, mask) in pairs(images, _by_scan(source / "Training", _MASK)).items()
    ]
    if (source / "Testing").is_dir():
        held_out = _by_scan(source / "Testing", _IMAGE)
        cases += [Case(name, (image,), held_out=True) for name, image in held_out.items()]
    return Conversion(
        number=213,
        name="ATLAS2",
        channels=("T1",),
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        published={"training": 655, "test": 300},
    )


def _by_scan(folder: Path, ending: str) -> dict[str, Path]:
    found = ((path.name.removesuffix(ending), path) for path in folder.rglob(f"sub-*{ending}"))
    return unique(found, folder, f"file sub-*{ending}")
