"""ISLES 2022, acute stroke in MR (Hernandez Petzsche et al. 2022, Scientific Data 9:762).

Published as ISLES-2022/sub-strokecase0001/ses-0001/{dwi,anat}/ and
ISLES-2022/derivatives/sub-strokecase0001/ses-0001/sub-strokecase0001_ses-0001_msk.nii.gz. Masks lie on the grid of DWI
and ADC; FLAIR has a grid of its own and is left out.
"""

from __future__ import annotations

from dataset_conversion.finding import Request, folder_of, volume
from dataset_conversion.raw_writer import Case, Conversion, Origin

_ORIGIN = Origin(
    "ISLES 2022, Ischemic Stroke Lesion Segmentation",
    "https://zenodo.org/records/7960856",
    "CC BY 4.0",
    "Hernandez Petzsche et al. 2022, Scientific Data 9:762",
)


def find(request: Request) -> Conversion:
    """See the module."""
    source = folder_of(request, "ISLES-2022", "derivatives")
    raw = source / "rawdata" if (source / "rawdata").is_dir() else source
    sessions = {path.relative_to(part) for part in (raw, source / "derivatives") for path in part.glob("sub-*/ses-*")}
    cases = []
    for session in sorted(sessions):
        name = "_".join(session.parts)
        images = (volume(raw / session / "dwi", f"{name}_dwi"), volume(raw / session / "dwi", f"{name}_adc"))
        mask = volume(source / "derivatives" / session, f"{name}_msk")
        cases.append(Case(name, images, (mask,), group=session.parts[0]))
    return Conversion(
        number=214,
        name="ISLES2022",
        channels=("DWI", "ADC"),
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        published={"training": 250},
    )
