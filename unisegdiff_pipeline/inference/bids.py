"""Masks of a prediction as BIDS derivatives.

    DIR/dataset_description.json
    DIR/desc-unisegdiff_dseg.tsv                        label values and their names, for all masks below
    DIR/sub-01/ses-1/anat/sub-01_ses-1_desc-unisegdiff_dseg.nii.gz, .json

A case is named as BIDS names an image, with or without its suffix: sub-01_ses-1_run-2_FLAIR.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, require_writable
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_object, write_json
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.io.bids import DESCRIPTION_NAME
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS
from unisegdiff_pipeline.io.prediction_files import MANIFEST

DESCRIPTION = "unisegdiff"  # of the derivatives, as their entity desc
BIDS_VERSION = "1.9.0"
PROGRAM = "unisegdiff_pipeline"
_CASE = re.compile(r"sub-[a-zA-Z0-9]+(_ses-[a-zA-Z0-9]+)?(_[a-z]+-[a-zA-Z0-9]+)*(?P<suffix>_[a-zA-Z0-9]+)?")


def derivative_of(case_id: str) -> str:
    """Path of a case's mask below the derivatives, without its ending.

    Raises:
        UsdError: the case is not named as BIDS names images.
    """
    match = _CASE.fullmatch(case_id)
    entities = [] if match is None else case_id.removesuffix(match["suffix"] or "").split("_")
    keys = [entity.split("-")[0] for entity in entities]
    if not keys or len(set(keys)) < len(keys) or "desc" in keys:
        raise UsdError(
            f"case {case_id!r} is not named as BIDS names an image; derivatives (--bids) need names such as "
            f"sub-01_ses-1_FLAIR, each entity once and without desc."
        )
    folder = "/".join(entity for entity in entities[:2] if entity.startswith(("sub-", "ses-")))
    return f"{folder}/anat/{'_'.join(entities)}_desc-{DESCRIPTION}_dseg"


def derivatives_of(case_ids: Iterable[str]) -> dict[str, str]:
    """`derivative_of` each case.

    Raises:
        UsdError: see there; or two cases that differ in their suffix alone would have one mask.
    """
    found: dict[str, str] = {}
    case_of: dict[str, str] = {}
    for case_id in case_ids:
        path = derivative_of(case_id)
        if case_of.setdefault(path, case_id) != case_id:
            raise UsdError(
                f"cases {case_of[path]!r} and {case_id!r} would both have the mask {path}; predict the images of "
                f"one suffix at a time, each into derivatives of its own."
            )
        found[case_id] = path
    return found


def require_derivatives(target: Path, endings: Mapping[str, str]) -> None:
    """Refuse what cannot be written, before anything is predicted.

    Args:
        target: folder of the derivatives.
        endings: ending of the image of each case.

    Raises:
        UsdError: masks that are no NIfTI files, names (see `derivatives_of`), a folder of other data, or one that
            cannot be written into.
    """
    if others := [case_id for case_id, ending in endings.items() if ending not in NIFTI_ENDINGS]:
        raise UsdError(
            f"the mask of {others[0]} will be like its image, {endings[others[0]]}; BIDS derivatives (--bids) are "
            f"NIfTI files. Leave it out."
        )
    derivatives_of(endings)
    there = Path(target).is_dir() and any(Path(target).iterdir())
    if there and not _is_made_here(Path(target) / DESCRIPTION_NAME):
        raise UsdError(f"{target} (--bids) holds other files than derivatives of this package; name a new folder.")
    require_writable(Path(target))


def _is_made_here(description: Path) -> bool:
    """Whether a dataset_description.json, which others may have written, names this package."""
    made_by = read_object(description).get("GeneratedBy") if description.is_file() else None
    programs = made_by if isinstance(made_by, list) else []
    return any(isinstance(program, dict) and program.get("Name") == PROGRAM for program in programs)


def write_derivatives(prediction: Path, target: Path, case_ids: Iterable[str], labels: LabelScheme) -> int:
    """Copy the masks of a prediction that are there into derivatives; returns how many.

    Args:
        prediction: output folder of a prediction.
        target: folder of the derivatives; one that they are in already gets the masks anew.
        case_ids: of the prediction.
        labels: what values mean.
    """
    target, count = Path(target), 0
    model = str(read_object(prediction / MANIFEST).get("model", ""))
    name = "/".join(Path(model).parts[-2:])  # data set and model, but no path of this machine
    write_json(
        target / DESCRIPTION_NAME,
        {
            "Name": f"Lesion masks by {name}" if name else "Lesion masks",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": PROGRAM, "Version": __version__, "Description": name}],
        },
    )
    values = {0: "background", **dict(zip(labels.write_values, labels.names, strict=True))}
    with atomic_path(target / f"desc-{DESCRIPTION}_dseg.tsv") as temporary:
        rows = "".join(f"{value}\t{values[value]}\n" for value in sorted(values))
        temporary.write_text(f"index\tname\n{rows}", encoding="utf-8")
    for case_id, place in derivatives_of(case_ids).items():
        for mask in (prediction / f"{case_id}{ending}" for ending in NIFTI_ENDINGS):
            if not mask.is_file():
                continue
            count += 1
            ending = mask.name.removeprefix(case_id)
            with atomic_path(target / f"{place}{ending}") as temporary:
                shutil.copyfile(mask, temporary)
            write_json(target / f"{place}.json", {"Manual": False, "SpatialReference": "orig", "Description": name})
    return count
