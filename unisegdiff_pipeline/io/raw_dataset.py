"""The raw folder of a data set in nnU-Net's layout, and the cases of an input for prediction.

    DatasetXXX_Name/
      dataset.json
      imagesTr/CASE_0000.ext CASE_0001.ext ...     one file a channel; one RGB or 4D file may hold several
      labelsTr/CASE.ext
      ratersTr/CASE_rater1.ext ...                 optional, further annotations of the same image
      imagesTs/ labelsTs/                          optional, for prediction and evaluation
      groups.csv                                   optional, "case,group": cases that must not be split

Opening looks at names only. What is missing or does not fit together is found by io.integrity, all in one run.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unisegdiff_pipeline.io.csv_tables import read_csv
from unisegdiff_pipeline.io.dataset_json import DatasetDescription, DatasetEntry, read_dataset_json
from unisegdiff_pipeline.io.endings import TIFF_ENDINGS
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.images import label_ending, read_header, split_ending
from unisegdiff_pipeline.io.names import require_name, require_text

_CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_RATER_SUFFIX = re.compile(r"(?P<case>.+)_rater(?P<rater>\d+)")


@dataclass(frozen=True)
class RawCase:
    """Files of one case; `image_paths` in channel order, empty where only a label file exists."""

    case_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    rater_paths: tuple[Path, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class RawDataset:
    """A raw data set; `cases` are sorted by case_id and hold the training cases only.

    `stray_files` are files with the data set's ending whose names fit no case; `unknown_groups` are case names in
    groups.csv without files. The integrity check reports both.
    """

    folder: Path
    name: str
    description: DatasetDescription
    cases: tuple[RawCase, ...]
    stray_files: tuple[Path, ...] = ()
    unknown_groups: tuple[str, ...] = ()


def open_raw_dataset(folder: Path) -> RawDataset:
    """List the training cases of a raw data set folder.

    Raises:
        UsdError: no folder, a wrong dataset.json or groups.csv, no imagesTr, or no case at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; check the path of the raw data set.")
    description = read_dataset_json(folder / "dataset.json")
    if description.entries is not None:
        listing = _cases_from_entries(folder, description.entries)
    else:
        listing = _cases_from_folders(folder, description)
    if not listing.images:
        raise UsdError(
            f"{folder / 'imagesTr'} holds no training image named CASE_0000{description.file_ending}; check "
            "file_ending in dataset.json and the file names."
        )
    groups = read_groups(folder / "groups.csv")
    raters = _list_raters(folder / "ratersTr", label_ending(description.file_ending), listing)
    for case_id in (*listing.images, *listing.labels):
        require_name(case_id, f"a case of {folder}")
    cases = tuple(
        RawCase(case_id, listing.images.get(case_id, ()), listing.labels.get(case_id), raters.get(case_id, ()),
                groups.get(case_id))
        for case_id in sorted({*listing.images, *listing.labels})
    )  # fmt: skip
    known = {case.case_id for case in cases}
    unknown_groups = tuple(case_id for case_id in groups if case_id not in known)
    return RawDataset(folder, folder.name, description, cases, tuple(listing.stray), unknown_groups)


def find_cases(source: Path | Sequence[Path], file_ending: str, num_channels: int) -> tuple[RawCase, ...]:
    """List the cases to predict in a folder, a single file, or a list of files.

    In a folder every image must be named CASE_0000.ext as for training. Single files and lists may leave the channel
    suffix out; of a file CASE_0000.ext with one, the other channels are found beside it.

    Args:
        source: folder, file, or files; of a multi-channel case a list may name one file or all of them.
        file_ending: ending of the data set, for example ".nii.gz".
        num_channels: channels that each case must have; one file may hold several (RGB, 4D).

    Raises:
        UsdError: nothing found, a name that does not fit, or incomplete cases, all of them named.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        if source.is_dir():
            images = _images_in_folder(source, file_ending)
        else:
            images = _images_of_files([source], file_ending)
    else:
        images = _images_of_files([Path(path) for path in source], file_ending)
    problems = [f"{case_id}: {problem}" for case_id, paths in images.items()
                if (problem := channel_problem(paths, num_channels))]  # fmt: skip
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise UsdError(f"{len(problems)} of {len(images)} input cases are incomplete: {shown}. Add the missing files.")
    for case_id in images:
        require_name(case_id, "an input case")
        if case_id.lower() == "manifest" and file_ending.lower() in TIFF_ENDINGS:
            raise UsdError(
                f"an input case is named {case_id!r}: the file with the spacing of its mask would replace the "
                f"manifest.json of the prediction; rename the image."
            )
    return tuple(RawCase(case_id, images[case_id]) for case_id in sorted(images))


def channel_problem(paths: Sequence[Path], num_channels: int) -> str | None:
    """Say what is wrong with the channel files of a case, or None; headers are read only where files are too few."""
    numbers = [_channel_number(path) for path in paths]
    if all(number is not None for number in numbers) and len(numbers) == num_channels:
        expected = list(range(num_channels))
        return None if numbers == expected else f"channel suffixes are {numbers}, expected {expected}"
    if len(paths) > num_channels:
        return f"{len(paths)} channel files for {num_channels} channels"
    if not paths:
        return "no image file"
    try:
        found = sum(read_header(path)[0][0] for path in paths)
    except UsdError:
        return None if len(paths) == num_channels else _missing_channels(paths, numbers, num_channels)
    # One channel more may be an alpha channel, which reading drops where it is opaque.
    if num_channels <= found <= num_channels + 1:
        return None
    return _missing_channels(paths, numbers, num_channels)


def largest_case_gb(cases: Sequence[RawCase]) -> float:
    """Memory of the case with the largest files, in GB: its image as float32, once more while reading, and labels."""
    if not cases:
        return 0.0
    largest = max(cases, key=lambda case: sum(p.stat().st_size for p in case.image_paths if p.is_file()))
    try:
        voxels = sum(math.prod(read_header(path)[0]) for path in largest.image_paths)
    except UsdError:  # reading the case will report it
        return 0.0
    return voxels * (2 * 4 + 1 + len(largest.rater_paths)) / 1e9


def read_groups(path: Path) -> dict[str, str]:
    """Read groups.csv as case -> group; an absent file gives an empty dictionary."""
    if not path.is_file():
        return {}
    rows = read_csv(path)
    if not rows or [cell.strip().lower() for cell in rows[0][1]] != ["case", "group"]:
        raise UsdError(f'{path} must begin with the line "case,group"; add it.')
    groups: dict[str, str] = {}
    for number, row in rows[1:]:
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or not all(cells):
            raise UsdError(f"{path} line {number} is {','.join(row)[:200]!r}; each line holds a case and its group.")
        require_text(cells[1], f"{path} line {number}: the group")
        if groups.setdefault(cells[0], cells[1]) != cells[1]:
            raise UsdError(f"{path} names two groups for the case {cells[0]!r}; keep one.")
    return groups


# ------------------------------------------------------------------------------------------------------- listing


@dataclass
class _Listing:
    """Files found so far, by case."""

    images: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    stray: list[Path] = field(default_factory=list)


def _cases_from_folders(folder: Path, description: DatasetDescription) -> _Listing:
    images_folder = folder / "imagesTr"
    if not images_folder.is_dir():
        raise UsdError(f"{images_folder} is missing; put the training images there, or list them in dataset.json.")
    listing = _Listing()
    channels: dict[str, dict[int, Path]] = {}
    for path in _files(images_folder, description.file_ending):
        match = _CHANNEL_SUFFIX.fullmatch(split_ending(path.name)[0])
        if match is None:
            listing.stray.append(path)
        else:
            channels.setdefault(match["case"], {})[int(match["channel"])] = path
    listing.images = {case_id: _in_order(paths) for case_id, paths in channels.items()}
    for path in _files(folder / "labelsTr", label_ending(description.file_ending)):
        listing.labels[split_ending(path.name)[0]] = path
    return listing


def _cases_from_entries(folder: Path, entries: Mapping[str, DatasetEntry]) -> _Listing:
    listing = _Listing()
    for case_id, entry in entries.items():
        listing.images[case_id] = tuple(_resolve(folder, image, case_id) for image in entry.images)
        if entry.label is not None:
            listing.labels[case_id] = _resolve(folder, entry.label, case_id)
    return listing


def _resolve(folder: Path, text: str, case_id: str) -> Path:
    """Expand environment variables; relative paths start at the data set's folder."""
    expanded = Path(os.path.expandvars(text)).expanduser()
    if "$" in str(expanded):
        raise UsdError(
            f"{folder / 'dataset.json'}: dataset.{case_id} names {text!r}, but that environment variable is not set; "
            "set it, or write the path out."
        )
    return folder / expanded  # an absolute path replaces the folder


def _list_raters(folder: Path, ending: str, listing: _Listing) -> dict[str, tuple[Path, ...]]:
    found: dict[str, dict[int, Path]] = {}
    for path in _files(folder, ending):
        match = _RATER_SUFFIX.fullmatch(split_ending(path.name)[0])
        if match is None or match["case"] not in listing.images:
            listing.stray.append(path)
        else:
            found.setdefault(match["case"], {})[int(match["rater"])] = path
    return {case_id: _in_order(paths) for case_id, paths in found.items()}


def _files(folder: Path, ending: str) -> list[Path]:
    """Files with the ending, sorted by name; hidden ones (such as macOS's "._" copies) are left out."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return [folder / name for name in names if name.endswith(ending) and not name.startswith(".")]


def _in_order(paths: Mapping[int, Path]) -> tuple[Path, ...]:
    return tuple(paths[number] for number in sorted(paths))


def _images_in_folder(folder: Path, file_ending: str) -> dict[str, tuple[Path, ...]]:
    files = _files(folder, file_ending)
    if not files:
        raise UsdError(f"{folder} holds no file ending in {file_ending}, which the model expects; check the folder.")
    channels: dict[str, dict[int, Path]] = {}
    for path in files:
        match = _CHANNEL_SUFFIX.fullmatch(split_ending(path.name)[0])
        if match is None:
            raise UsdError(f"{path} has no channel suffix; name it {path.name[: -len(file_ending)]}_0000{file_ending}.")
        channels.setdefault(match["case"], {})[int(match["channel"])] = path
    return {case_id: _in_order(paths) for case_id, paths in channels.items()}


def _images_of_files(paths: Iterable[Path], file_ending: str) -> dict[str, tuple[Path, ...]]:
    images: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        if not path.is_file():
            raise UsdError(f"{path} does not exist; name a folder or an image file ending in {file_ending}.")
        if not path.name.endswith(file_ending):
            raise UsdError(f"{path} does not end in {file_ending}, which the model expects; convert the image.")
        stem = path.name[: -len(file_ending)]
        match = _CHANNEL_SUFFIX.fullmatch(stem)
        case_id, files = (match["case"], _siblings(path, match["case"], file_ending)) if match else (stem, (path,))
        if images.setdefault(case_id, files) != files:
            raise UsdError(f"two inputs would both be case {case_id!r}: {images[case_id][0]} and {path}; rename one.")
    if not images:
        raise UsdError("the list of input files is empty; name at least one file.")
    return images


def _siblings(path: Path, case_id: str, file_ending: str) -> tuple[Path, ...]:
    names = {entry.name for entry in os.scandir(path.parent)}
    candidates = (f"{case_id}_{number:04d}{file_ending}" for number in range(10_000))
    return tuple(path.parent / name for name in candidates if name in names)


def _channel_number(path: Path) -> int | None:
    match = _CHANNEL_SUFFIX.fullmatch(split_ending(path.name)[0])
    return int(match["channel"]) if match else None


def _missing_channels(paths: Sequence[Path], numbers: Sequence[int | None], num_channels: int) -> str:
    missing = sorted(set(range(num_channels)) - {n for n in numbers if n is not None})
    suffixes = ", ".join(f"_{number:04d}" for number in missing)
    return f"channel {suffixes} is missing beside {paths[0].name}"
