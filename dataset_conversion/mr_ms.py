"""3D-MR-MS, multiple sclerosis in MR (Lesjak et al. 2018, Neuroinformatics 16:51).

Published by patient: patient01/ with FLAIR, T1W, T1WKS (after contrast), T2W and consensus_gt, each name with or
without "patient01_" in front. The raw images of a patient lie on grids of their own, those brought onto the FLAIR's
grid can be used together.
"""

from __future__ import annotations

import re

from dataset_conversion.finding import Request, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin

_CHANNELS = {"T1": "T1W", "T1c": "T1WKS", "T2": "T2W", "FLAIR": "FLAIR"}
_PATIENT = re.compile(r"patient\d+")
_ORIGIN = Origin(
    "3D MR image database of multiple sclerosis patients with white matter lesion segmentations",
    "https://lit.fe.uni-lj.si/en/research/resources/3D-MR-MS/",
    "CC BY",
    "Lesjak et al. 2018, Neuroinformatics 16:51",
)


def find(request: Request) -> Conversion:
    """See the module."""
    (source,) = request.sources
    found = ((_PATIENT.findall(path.as_posix()), path) for path in source.rglob("*consensus_gt.nii.gz"))
    masks = unique(((names[-1], path) for names, path in found if names), source, "file patient01/consensus_gt.nii.gz")
    cases = []
    for name, mask in masks.items():
        before = mask.name.removesuffix("consensus_gt.nii.gz")
        images = tuple(mask.with_name(f"{before}{suffix}.nii.gz") for suffix in _CHANNELS.values())
        cases.append(Case(name, images, (mask,)))
    return Conversion(
        number=220,
        name="MRMS",
        channels=tuple(_CHANNELS),
        labels={"background": 0, "lesion": 1},
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=_ORIGIN,
        published={"training": 30},
    )
