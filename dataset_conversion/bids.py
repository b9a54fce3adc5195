"""BIDS data with lesion masks: in derivatives (sub-01_ses-1_space-T1w_label-lesion_dseg.nii.gz) or beside the images.

A session with a mask is a case, all sessions of a subject are a group. Images are searched in the mask's own folder and
in the raw folders of its session, with the entities that the mask has (space, run, acq and so on). Sessions without a
mask are left out: that nobody drew is not that there is no lesion.
"""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable
from pathlib import Path

from dataset_conversion.finding import Request
from dataset_conversion.folder import meaning_of
from dataset_conversion.raw_writer import Case, Conversion
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.bids import BidsFile, parse_bids_name
from unisegdiff_pipeline.io.endings import split_ending
from unisegdiff_pipeline.io.paths import files_below

# The first pattern that finds any, in what stands behind subject and session: a subject may be called lesion01, too. Of
# files named _mask and _roi, most are of brains: one of a lesion must say so.
_MASKS = ("*lesion*_dseg", "*lesion*_mask", "*lesion*_roi", "*_dseg")
_OF_MASKS_ONLY = ("label", "desc", "res", "den", "hemi", "atlas", "seg")


def find(request: Request) -> Conversion:
    """See the module; channels are the suffixes of the images, T1w or FLAIR."""
    (source,) = request.sources
    if request.number is None or request.name is None or not request.channels:
        raise UsdError(
            "BIDS data have no number or name of their own; give --dataset-id N, --name NAME and --channels."
        )
    named = sorted(path for path in files_below(source) if path.name.startswith("sub-"))
    files = [file for path in named if (file := parse_bids_name(path)) is not None]
    masks = _masks(source, files, request.mask)
    by_session: dict[str, list[BidsFile]] = {}
    for file in files:
        by_session.setdefault(file.session, []).append(file)
    cases = [
        Case(
            name,
            tuple(_image(source, mask, by_session[name], suffix) for suffix in request.channels),
            (mask.path,),
            group=f"sub-{mask.entities['sub']}",
        )
        for name, mask in masks.items()
    ]
    without = sorted({file.session for file in files if file.suffix in request.channels} - masks.keys())
    if without:
        warnings.warn(
            f"{source}: {len(without)} session(s) without a mask are left out, among them {', '.join(without[:5])}.",
            stacklevel=2,
        )
    reader, labels = meaning_of([mask.path for mask in masks.values()], request.threshold)
    return Conversion(
        number=request.number,
        name=request.name,
        channels=request.channels,
        labels=labels,
        file_ending=".nii.gz",
        cases=tuple(cases),
        read_mask=reader,
    )


def _masks(source: Path, files: Iterable[BidsFile], pattern: str | None) -> dict[str, BidsFile]:
    """Session -> its only mask."""
    found: list[BidsFile] = []
    for wanted in _MASKS if pattern is None else (pattern,):
        found = [file for file in files if fnmatch.fnmatchcase(_name(file, whole=pattern is not None), wanted)]
        if found:
            break
    if not found:
        raise UsdError(
            f"{source} holds no mask named {' or '.join(_MASKS if pattern is None else (pattern,))}; give --mask "
            "PATTERN, for example '*_label-lesion_mask'."
        )
    masks: dict[str, BidsFile] = {}
    for file in found:
        other = masks.setdefault(file.session, file)
        if other is not file:
            raise UsdError(
                f"{other.path} and {file.path} are two masks of {file.session}; choose by --mask PATTERN, for example "
                f"'*_{_tail(file)}'."
            )
    return masks


def _name(file: BidsFile, whole: bool) -> str:
    """The name that a pattern has to fit: as the user sees it, or from behind subject and session on."""
    return split_ending(file.path.name)[0] if whole else f"_{_tail(file)}"


def _tail(file: BidsFile) -> str:
    """The name of a file without subject and session."""
    kept = [f"{key}-{value}" for key, value in file.entities.items() if key not in ("sub", "ses")]
    return "_".join([*kept, file.suffix])


def _image(source: Path, mask: BidsFile, files: Iterable[BidsFile], suffix: str) -> Path:
    """The image of a channel that belongs to a mask."""
    found = [file for file in files if file.suffix == suffix and _on_one_grid(mask, file)]
    beside = [file for file in found if file.path.parent == mask.path.parent]
    raw = [file for file in found if "derivatives" not in file.path.relative_to(source).parts]
    found = beside or raw or found
    if len(found) != 1:
        what = "no image" if not found else f"{len(found)} images ({', '.join(str(file.path) for file in found[:4])})"
        raise UsdError(
            f"{mask.path}: {what} of the suffix {suffix} found with its space, run and acquisition; correct "
            "--channels, or leave one image of each channel."
        )
    return found[0].path


def _on_one_grid(mask: BidsFile, image: BidsFile) -> bool:
    """Whether no entity speaks against it; an image in another space than the mask's lies on another grid."""
    if mask.entities.get("space", "orig") != image.entities.get("space", "orig"):
        # space-T1w says that the mask lies on the T1w image, which needs not say so of itself.
        return mask.entities.get("space") == image.suffix and "space" not in image.entities
    shared = (mask.entities.keys() & image.entities.keys()) - set(_OF_MASKS_ONLY)
    return all(mask.entities[key] == image.entities[key] for key in shared)
