"""Converters of published data sets into the raw layout; one module a data set.

Each module has `find(request) -> Conversion`: it finds the files of the data set as its owners distribute it, and says
what they mean. `raw_writer` writes the raw data set; it is resumed after an interruption and never half there.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion import (
    amd_sd,
    atlas,
    autopet,
    bids,
    brats,
    busi,
    covid_ct,
    ebhi,
    emidec,
    figshare_brain,
    folder,
    glas,
    isic2018,
    isles2022,
    kits23,
    lidc,
    lidc_slices,
    lits,
    mr_ms,
    msd,
    ph2,
    polyp,
    uls23,
)
from dataset_conversion.finding import Finder, Request
from dataset_conversion.raw_writer import write_raw_dataset
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted


@dataclass(frozen=True)
class Converter:
    """A converter by name.

    Attributes:
        find: finds the files and says what they mean.
        sources: what the user names, a word for each folder.
        summary: what is converted, for the help.
        options: fields of `Request` that it takes besides the sources and the number.
    """

    find: Finder
    sources: tuple[str, ...]
    summary: str
    options: frozenset[str] = frozenset()


CONVERTERS: dict[str, Converter] = {
    "folder": Converter(
        folder.find,
        ("IMAGES", "MASKS"),
        "plain folders of images and masks of the same names",
        frozenset({"name", "channels", "threshold", "group_pattern"}),
    ),
    "bids": Converter(
        bids.find,
        ("ROOT",),
        "BIDS data with masks in derivatives or beside the images",
        frozenset({"name", "channels", "threshold", "mask"}),
    ),
    "busi": Converter(busi.find, ("SRC",), "breast ultrasound; SRC holds Dataset_BUSI_with_GT"),
    "amd_sd": Converter(amd_sd.find, ("SRC",), "OCT of wet macular degeneration; SRC holds AMD-SD"),
    "figshare_brain": Converter(figshare_brain.find, ("SRC",), "brain tumour slices; SRC holds 1.mat to 3064.mat"),
    "polyp": Converter(polyp.find, ("SRC",), "five colonoscopy sets; SRC holds TrainDataset and TestDataset"),
    "covid_ct": Converter(covid_ct.find, ("SRC",), "COVID-19 CT; SRC holds COVID-19-CT-Seg_20cases and Infection_Mask"),
    "ebhi": Converter(ebhi.find, ("SRC",), "colorectal biopsies, six classes; SRC holds EBHI-SEG"),
    "ebhi_adenocarcinoma": Converter(ebhi.find_adenocarcinoma, ("SRC",), "their adenocarcinomas; SRC holds EBHI-SEG"),
    "isic2018": Converter(isic2018.find, ("SRC",), "skin lesions; SRC holds ISIC2018_Task1-2_Training_Input and so on"),
    "ph2": Converter(ph2.find, ("SRC",), "skin lesions; SRC holds IMD002 and so on"),
    "glas": Converter(glas.find, ("SRC",), "glands of the colon; SRC holds Warwick QU Dataset"),
    "brats2021": Converter(brats.find_2021, ("SRC",), "glioma in MR; SRC holds BraTS2021_00000 and so on"),
    "brats2023": Converter(brats.find_2023, ("SRC",), "glioma in MR; SRC holds BraTS-GLI-00000-000 and so on"),
    "atlas": Converter(atlas.find, ("SRC",), "chronic stroke in T1; SRC holds ATLAS_2"),
    "isles2022": Converter(isles2022.find, ("SRC",), "acute stroke in DWI and ADC; SRC holds ISLES-2022"),
    "emidec": Converter(emidec.find, ("SRC",), "myocardial infarction; SRC holds Case_P001 and so on"),
    "kits23": Converter(kits23.find, ("SRC",), "kidney tumours in CT; SRC holds case_00000 and so on"),
    "lidc": Converter(
        lidc.find, ("SRC",), "lung nodules in CT, four readers; SRC holds LIDC-IDRI-0001 and so on, and XML"
    ),
    "lidc_slices": Converter(lidc_slices.find, ("SRC",), "lung nodules, four readers; SRC holds LIDC-IDRI-slices"),
    "lits": Converter(lits.find, ("SRC",), "liver tumours in CT; SRC holds volume-0.nii, segmentation-0.nii and so on"),
    "autopet": Converter(autopet.find, ("SRC",), "whole-body PET/CT; SRC holds FDG-PET-CT-Lesions"),
    "uls23": Converter(uls23.find, ("SRC",), "lesions in CT; SRC holds sets of images and labels"),
    "mr_ms": Converter(mr_ms.find, ("SRC",), "3D-MR-MS, multiple sclerosis; SRC holds patient01 and so on"),
    "msd": Converter(msd.find, ("TaskXX_Name",), "a task of the Medical Segmentation Decathlon"),
}


def converter(name: str) -> Converter:
    """The converter of that name; an unknown one is a UsdError that lists them."""
    if name in CONVERTERS:
        return CONVERTERS[name]
    near = difflib.get_close_matches(name.lower(), CONVERTERS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise UsdError(f"there is no converter {name!r}{hint} known are {', '.join(sorted(CONVERTERS))}.")


def convert(name: str, request: Request, raw_root: Path) -> Path:
    """Convert a data set and return its new folder in `raw_root`.

    Raises:
        UsdError: an unknown converter, another number of sources than it takes, a source that is no folder, an option
            it does not take, or what `raw_writer.write_raw_dataset` raises.
    """
    chosen = converter(name)
    if len(request.sources) != len(chosen.sources):
        raise UsdError(
            f"usd_convert {name} takes {' '.join(chosen.sources)}, but {counted(len(request.sources), 'folder')} "
            f"{'was' if len(request.sources) == 1 else 'were'} named; name {len(chosen.sources)}."
        )
    for option in ("name", "channels", "threshold", "group_pattern", "mask"):
        if getattr(request, option) not in (None, ()) and option not in chosen.options:
            raise UsdError(f"usd_convert {name} takes no --{option.replace('_', '-')}; leave it out.")
    # Links stay, as they may have the name that says what the data are, and so does "..", which leads on from the place
    # that a link before it leads to.
    sources = tuple(Path(source).expanduser().absolute() for source in request.sources)
    for source in sources:
        if not source.is_dir():
            problem = "is a file" if source.exists() else "does not exist"
            raise UsdError(f"{source} {problem}; name a folder, and check the path.")
    found = chosen.find(dataclasses.replace(request, sources=sources))
    if request.number is not None:
        found = dataclasses.replace(found, number=request.number)
    return write_raw_dataset(found, raw_root)
