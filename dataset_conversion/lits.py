"""LiTS, liver tumours in CT (Bilic et al. 2023, Medical Image Analysis 84:102680).

Published as "Training Batch 1/" and "Training Batch 2/" with volume-0.nii and segmentation-0.nii.
"""

from __future__ import annotations

from pathlib import Path

from dataset_conversion.finding import Request, pairs, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin

_ORIGIN = Origin(
    "LiTS, Liver Tumor Segmentation Benchmark",
    "https://competitions.codalab.org/competitions/17094",
    "CC BY-NC-ND 4.0",
    "Bilic et al. 2023, Medical Image Analysis 84:102680",
)


def find(request: Request) -> Conversion:
    """See the module."""
    (source,) = request.sources
    matched = pairs(_by_number(source, "volume"), _by_number(source, "segmentation"))
    return Conversion(
        number=217,
        name="LiTS",
        channels=("CT",),
        labels={"background": 0, "liver": 1, "tumour": 2},
        file_ending=".nii.gz",
        cases=tuple(Case(f"liver_{int(n):03d}", (image,), (mask,)) for n, (image, mask) in matched.items()),
        origin=_ORIGIN,
        published={"training": 131},
    )


def _by_number(source: Path, kind: str) -> dict[str, Path]:
    numbered = ((path.name.split(".")[0].split("-")[1], path) for path in source.rglob(f"{kind}-*.nii*"))
    return unique(((number, path) for number, path in numbered if number.isdigit()), source, f"file {kind}-0.nii")
