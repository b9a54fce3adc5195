"""Brain tumour slices of Jun Cheng (Cheng et al. 2015, PLoS ONE 10:e0140381; figshare 1512427).

Published as files 1.mat to 3064.mat in four archives, in MATLAB's format 7.3, which is HDF5: a struct `cjdata` with
PID, label (1 meningioma, 2 glioma, 3 pituitary tumour), image, tumorMask. Reading them takes the package h5py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.finding import Request, unique
from dataset_conversion.raw_writer import Case, Conversion, Origin
from unisegdiff_pipeline.core.errors import UsdError, unreadable
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.progress import progress

_KINDS = {1: "meningioma", 2: "glioma", 3: "pituitary"}
_ORIGIN = Origin(
    "Brain tumor dataset (Jun Cheng)",
    "https://figshare.com/articles/dataset/brain_tumor_dataset/1512427",
    "CC BY 4.0",
    "Cheng et al. 2015, PLoS ONE 10:e0140381",
)


def find(request: Request) -> Conversion:
    """See the module; slices of one patient form a group."""
    (source,) = request.sources
    _h5py()
    numbered = ((path.stem, path) for path in source.rglob("*.mat") if path.stem.isdigit())
    paths = unique(numbered, source, "file 1.mat")
    cases = []
    for number, path in progress(paths.items(), len(paths), "Reading patients"):
        kind, patient = int(_read(path, "label").flat[0]), "".join(chr(code) for code in _read(path, "PID").ravel())
        if kind not in _KINDS:
            raise UsdError(f"{path} has the label {kind}, known are {_KINDS}; use the file as published.")
        # MR040240B is most likely another scan of the patient MR040240.
        group = re.sub(r"(?<=\d)[A-Za-z]$", "", patient.strip())
        cases.append(Case(f"{_KINDS[kind]}_{int(number):04d}", (path,), (path,), group=group))
    return Conversion(
        number=203,
        name="BrainTumour",
        channels=("T1c",),
        labels={"background": 0, "tumour": 1},
        file_ending=".png",
        cases=tuple(cases),
        origin=_ORIGIN,
        read_mask=_TumourMask(),
        read_picture=_slice,
        published={"training": 3064},
    )


def _slice(path: Path) -> np.ndarray:
    image = _read(path, "image")
    if image.min() < 0 or image.max() > 65535:
        raise UsdError(f"{path} holds values {image.min()} to {image.max()}, 0 to 65535 are expected.")
    return image.astype(np.uint16)


@dataclass(frozen=True)
class _TumourMask:
    def __call__(self, path: Path) -> Volume:
        return Volume(_read(path, "tumorMask").astype(np.uint8)[None, None], Geometry(is_2d=True))


def _read(path: Path, name: str) -> np.ndarray:
    """An array of cjdata as (Y, X); MATLAB stores columns first."""
    try:
        with _h5py().File(path, "r") as file:
            return np.asarray(file["cjdata"][name]).T
    except UsdError:
        raise
    except Exception as error:  # h5py raises many kinds for a damaged file
        raise unreadable(path, error) from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UsdError(
            "the .mat files of this data set are HDF5 (MATLAB 7.3), which takes the package h5py to read; install it "
            "(pip install h5py) and run the command again."
        ) from None
    return h5py
