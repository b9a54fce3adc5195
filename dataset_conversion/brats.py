"""BraTS 2021 and 2023, adult glioma in MR (Baid et al. 2021, arXiv 2107.02314).

2021 is published as BraTS2021_00000/BraTS2021_00000_{flair,t1,t1ce,t2,seg}.nii.gz with the labels 1 necrosis, 2 oedema,
4 enhancing; 2023 as BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz with 3 for enhancing, where
the last number is the time of the scan.
"""

from __future__ import annotations

import re

from dataset_conversion.finding import Request, unique, volume
from dataset_conversion.masks import AsLabelled, Mapped, MaskReader
from dataset_conversion.raw_writer import Case, Conversion, Origin

_LABELS: dict[str, int | list[int]] = {
    "background": 0,
    "whole_tumour": [1, 2, 3],
    "tumour_core": [1, 3],
    "enhancing_tumour": [3],
}
_REFERENCE = "Baid et al. 2021, arXiv 2107.02314; Menze et al. 2015; Bakas et al. 2017"
_LICENCE = "terms of the challenge (Synapse registration), research only"


def find_2021(request: Request) -> Conversion:
    """BraTS 2021, training part."""
    origin = Origin("BraTS 2021", "https://www.synapse.org/Synapse:syn25829067", _LICENCE, _REFERENCE)
    reader = Mapped({0: 0, 1: 1, 2: 2, 4: 3})
    suffixes = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
    return _conversion(request, 211, "BraTS2021", "BraTS2021_[0-9]*", suffixes, reader, origin)


def find_2023(request: Request) -> Conversion:
    """BraTS 2023, adult glioma, training part; scans of one patient form a group."""
    origin = Origin("BraTS 2023, adult glioma", "https://www.synapse.org/Synapse:syn51156910", _LICENCE, _REFERENCE)
    suffixes = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
    return _conversion(request, 212, "BraTS2023", "BraTS-GLI-[0-9]*", suffixes, AsLabelled(), origin)


def _conversion(
    request: Request,
    number: int,
    name: str,
    pattern: str,
    suffixes: tuple[str, ...],
    reader: MaskReader,
    origin: Origin,
) -> Conversion:
    (source,) = request.sources
    folders = unique(
        ((path.name, path) for path in source.rglob(pattern) if path.is_dir()), source, f"folder {pattern}"
    )
    cases = []
    for case, folder in folders.items():
        *images, mask = (volume(folder, case + suffix) for suffix in suffixes)
        cases.append(Case(case, tuple(images), (mask,), group=re.sub(r"(?<=\d)-\d+$", "", case)))
    return Conversion(
        number=number,
        name=name,
        channels=("T1", "T1c", "T2", "FLAIR"),
        labels=_LABELS,
        file_ending=".nii.gz",
        cases=tuple(cases),
        origin=origin,
        read_mask=reader,
        published={"training": 1251},
        more={"regions_class_order": [2, 1, 3]},
    )
