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

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from unisegdiff_pipeline.core.csv_tables import read_csv
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import composed, require_name, require_text
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.dataset_json import DatasetDescription, read_dataset_json, with_spacing_of
from unisegdiff_pipeline.io.endings import TIFF_ENDINGS, is_unread_image, split_image_ending, unread_images
from unisegdiff_pipeline.io.images import is_picture_ending, label_ending, read_header, split_ending
from unisegdiff_pipeline.io.label_map import LabelMap
from unisegdiff_pipeline.io.sources import Source, require_whole_label_map, unified_case_id

CHANNEL_SUFFIX = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
Key = TypeVar("Key", str, int)
_RATER_SUFFIX = re.compile(r"(?P<case>.+)_rater(?P<rater>\d+)")


@dataclass(frozen=True)
class RawCase:
    """Files of one case; `image_paths` in channel order, empty where only a label file exists.

    `source` names the source of a case of a unified data set. `channels` holds the number of the channel of each file
    where some are missing; None where there are all.
    """

    case_id: str
    image_paths: tuple[Path, ...]
    label_path: Path | None = None
    rater_paths: tuple[Path, ...] = ()
    group: str | None = None
    source: str | None = None
    channels: tuple[int, ...] | None = None

    def num_channels(self, whole: int) -> int:
        """Channels that the files must hold, of a data set with so many."""
        return whole if self.channels is None else len(self.channels)

    def missing(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the channels that are missing, of all names."""
        return () if self.channels is None else tuple(n for i, n in enumerate(names) if i not in self.channels)


@dataclass(frozen=True)
class StrayFile:
    """A file that is left out, why, and what to do."""

    path: Path
    reason: str
    remedy: str


@dataclass(frozen=True)
class RawDataset:
    """A raw data set; `cases` are sorted by case_id and hold the training cases only.

    `stray_files` belong to no case: names that do not fit, another ending, a link to nothing, an image without label
    map or a label map without image where dataset.json allows them. `unknown_groups` are case names in groups.csv
    without files. The integrity check reports both. `source_descriptions` holds the dataset.json of each source of a
    unified data set, by the source's name.
    """

    folder: Path
    name: str
    description: DatasetDescription
    cases: tuple[RawCase, ...]
    stray_files: tuple[StrayFile, ...] = ()
    unknown_groups: tuple[str, ...] = ()
    source_descriptions: Mapping[str, DatasetDescription] = field(default_factory=dict)

    def description_of(self, case: RawCase) -> DatasetDescription:
        """What the files of a case are to be read by: the dataset.json of its source, where it has one.

        What it says of other cases is left out: it goes to a worker with each case, which would take the square of
        their number.
        """
        description = self.description if case.source is None else self.source_descriptions[case.source]
        return replace(description, entries=None, raw={}, sources=())

    def source_of(self, case: RawCase) -> Source | None:
        """The source of a case, without the names of the cases that it leaves out; None outside unified data sets."""
        found = next((source for source in self.description.sources if source.name == case.source), None)
        return None if found is None else replace(found, excluded=())

    def parts(self) -> Iterator[RawDataset]:
        """One data set for each source, with the names that cases have here; itself where it has no sources."""
        if not self.source_descriptions:
            yield self
        for source in self.description.sources:
            folder, prefix = self.folder.parent / source.dataset, unified_case_id(source.name, "")
            yield RawDataset(
                folder,
                f"{self.name}, {source.name}",
                self.source_descriptions[source.name],
                tuple(case for case in self.cases if case.source == source.name),
                tuple(file for file in self.stray_files if folder in file.path.parents),
                tuple(case_id for case_id in self.unknown_groups if case_id.startswith(prefix)),
            )


def open_raw_dataset(folder: Path, label_map: LabelMap | None = None) -> RawDataset:
    """List the training cases of a raw data set folder.

    Args:
        folder: of the data set.
        label_map: of its label files, where its dataset.json has none.

    Raises:
        UsdError: no folder, a wrong dataset.json or groups.csv, no imagesTr, or no case at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; check the path of the raw data set.")
    if not (folder / "dataset.json").exists():
        raise UsdError(
            f"{folder} holds no dataset.json, so it is no raw data set; check the path, write dataset.json, or bring "
            f"plain folders of images and masks into the raw layout with usd_convert folder."
        )
    description = read_dataset_json(folder / "dataset.json", label_map)
    if description.sources:
        return _open_unified(folder, description)
    if description.entries is not None:
        listing = _cases_from_entries(folder, description)
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
    names = {*listing.images, *listing.labels}
    if description.allow_unmatched:
        names = listing.images.keys() & listing.labels.keys()
        listing.stray += _unmatched(listing)
        if not names:
            raise UsdError(f"{folder} holds no image with a label map of the same name; check the file names.")
    cases = tuple(
        RawCase(
            case_id,
            listing.images.get(case_id, ()),
            listing.labels.get(case_id),
            raters.get(case_id, ()),
            groups.get(case_id),
            channels=listing.channels.get(case_id),
        )
        for case_id in sorted(names)
    )
    unknown_groups = tuple(case_id for case_id in groups if case_id not in names)
    description = with_spacing_of(description, (case.image_paths for case in cases))
    return RawDataset(folder, folder.name, description, cases, tuple(listing.stray), unknown_groups)


def open_as_measured(folder: Path, preprocessed: Path) -> RawDataset:
    """As `open_raw_dataset`, with the label map that it was preprocessed with, where that is not its own (--remap).

    Args:
        folder: of the data set.
        preprocessed: folder of the preprocessed one, with a copy of dataset.json.
    """
    copy, own = preprocessed / "dataset.json", folder / "dataset.json"
    mapped_itself = own.is_file() and "label_map" in read_object(own)
    label_map = read_object(copy).get("label_map") if copy.is_file() and not mapped_itself else None
    return open_raw_dataset(folder, label_map)


def _open_unified(folder: Path, description: DatasetDescription) -> RawDataset:
    """The cases of all sources of a unified data set, which lie beside it."""
    own = folder / "dataset.json"
    cases: list[RawCase] = []
    stray: list[StrayFile] = []
    unknown_groups: list[str] = []
    descriptions = {}
    for source in description.sources:
        path = folder.parent / source.dataset
        if not path.is_dir():
            raise UsdError(
                f"{own}: the source {source.name} is {path}, which is not there; put the data set back, or make the "
                f"unified one again with usd_unify, without it."
            )
        if read_dataset_json(path / "dataset.json").sources:  # before it is opened: it may name this one in turn
            raise UsdError(
                f"{own}: the source {source.name} is {path}, a unified data set itself; name its sources in its place."
            )
        raw = open_raw_dataset(path)
        channels = raw.description.channel_names
        if len(channels) > len(description.channel_names):
            raise UsdError(
                f"{own}: channel_names has {counted(len(description.channel_names), 'channel')}, but the source "
                f"{source.name} has {len(channels)} ({', '.join(channels)}); make the unified data set again with "
                f"usd_unify --overwrite."
            )
        cases += [_of_source(case, source.name) for case in cases_of_source(raw, source)]
        descriptions[source.name] = raw.description
        stray += raw.stray_files
        unknown_groups += [unified_case_id(source.name, case_id) for case_id in raw.unknown_groups]
    return RawDataset(
        folder,
        folder.name,
        description,
        tuple(sorted(cases, key=lambda case: case.case_id)),
        tuple(stray),
        tuple(unknown_groups),
        descriptions,
    )


def cases_of_source(raw: RawDataset, source: Source) -> list[RawCase]:
    """The cases of a data set that a unified one takes, under their own names.

    Raises:
        UsdError: it is a unified data set itself, its label map does not name its classes, or no case is left.
    """
    if raw.source_descriptions:
        raise UsdError(f"{raw.folder} is a unified data set itself; name its sources in its place.")
    require_whole_label_map(source, raw.description.labels)
    excluded = set(source.excluded)
    kept = [case for case in raw.cases if case.case_id not in excluded]
    if not kept:
        raise UsdError(f"no case of the source {source.name} ({raw.folder}) is left; exclude fewer, or leave it out.")
    if lacking := [case.case_id for case in kept if case.channels is not None]:
        raise UsdError(
            f"{counted(len(lacking), 'case')} of the source {source.name} ({raw.folder}), {lacking[0]} first, lack "
            f"channels, which a unified data set does not take; complete or exclude them."
        )
    return kept


def _of_source(case: RawCase, source: str) -> RawCase:
    group = None if case.group is None else unified_case_id(source, case.group)
    return replace(case, case_id=unified_case_id(source, case.case_id), group=group, source=source)


def find_cases(
    source: Path | Sequence[Path], file_ending: str, num_channels: int, missing_channels: bool = False
) -> tuple[RawCase, ...]:
    """List the cases to predict in a folder, a single file, or a list of files.

    Images are named CASE_0000.ext as for training. A file that holds all channels of its case may leave the suffix out;
    of a file CASE_0000.ext that was named alone, the other channels are found beside it.

    Args:
        source: folder, file, or files; of a multi-channel case a list may name one file or all of them.
        file_ending: ending of the data set, for example ".nii.gz".
        num_channels: channels that each case must have; one file may hold several (RGB, 4D).
        missing_channels: whether a case may lack some of them.

    Raises:
        UsdError: nothing found, images that would be left out, or cases that do not fit, all of them named.
    """
    if isinstance(source, (str, Path)):
        source = Path(source)
        if source.is_dir():
            images = _images_in_folder(source, file_ending)
        else:
            images = _images_of_files([source], file_ending)
    else:
        images = _images_of_files([Path(path) for path in source], file_ending)
    channels = {
        case_id: channels_of_files(paths, num_channels) if missing_channels else None
        for case_id, paths in images.items()
    }
    problems = [
        f"{case_id}: {problem}"
        for case_id, paths in images.items()
        if (problem := channel_problem(paths, num_channels, channels[case_id], unreadable_is_problem=False))
    ]
    if problems:
        raise UsdError(
            f"{len(problems)} of {counted(len(images), 'input case')} cannot be predicted: "
            f"{listed(problems, 10, '; ')}."
        )
    for case_id in images:
        require_input_name(case_id, file_ending)
    return tuple(RawCase(case_id, images[case_id], channels=channels[case_id]) for case_id in sorted(images))


def case_of_channels(paths: Sequence[Path], channels: tuple[int, ...], file_ending: str) -> RawCase:
    """The case of these files alone, one for each of the channels that it has; named after the first file.

    Raises:
        UsdError: a file does not exist, has another ending, or a name that no case can have.
    """
    for path in paths:
        _require_input(path, file_ending)
    stem = _stem(paths[0], file_ending)
    match = CHANNEL_SUFFIX.fullmatch(stem)
    case_id = match["case"] if match else stem
    require_input_name(case_id, file_ending)
    return RawCase(case_id, tuple(paths), channels=channels)


def require_input_name(case_id: str, file_ending: str) -> None:
    """Raise a UsdError where an image to predict is named like what cannot be written, or stands beside the masks."""
    require_name(case_id, "an input case")
    if case_id.lower() == "manifest" and file_ending.lower() in TIFF_ENDINGS:
        raise UsdError(
            f"an input case is named {case_id!r}: the file with the spacing of its mask would replace the "
            f"manifest.json of the prediction; rename the image."
        )


def channels_of_files(paths: Sequence[Path], num_channels: int) -> tuple[int, ...] | None:
    """Number of the channel of each file of a case that lacks some; None where none is missing, or names do not say it.

    The header of a file that is alone is read: it may hold all channels (RGB, 4D).

    Raises:
        UsdError: two files are named after the same channel.
    """
    numbers = [number for path in paths if (number := _channel_number(path)) is not None]
    if len(set(numbers)) < len(numbers):
        raise UsdError(f"{', '.join(map(str, paths))}: two files are named after the same channel; rename one.")
    if not numbers or len(numbers) < len(paths) or len(paths) >= num_channels:
        return None
    if numbers == [0]:
        with contextlib.suppress(UsdError):  # reading the file will report it
            if read_header(paths[0])[0][0] > 1:
                return None
    return tuple(numbers)


def channel_problem(
    paths: Sequence[Path],
    num_channels: int,
    channels: Sequence[int] | None = None,
    unreadable_is_problem: bool = True,
) -> str | None:
    """Say what is wrong with the channel files of a case, and what to do, or None.

    `channels` are those of the files of a case that lacks some (`channels_of_files`). Headers are read only where files
    are fewer than channels and none may be missing; what the files hold is checked when they are read. A single file
    whose header cannot be read is no problem here where reading it reports it for this case alone.
    """
    if not paths:
        return "there is no image file; add it"
    numbers = [_channel_number(path) for path in paths]
    if channels is not None:
        unknown = [path.name for path, number in zip(paths, channels, strict=True) if number >= num_channels]
        return f"{', '.join(unknown)}: there are {num_channels} channels; rename the files" if unknown else None
    if len(paths) > num_channels:
        names = ", ".join(path.name for path in paths[num_channels:])
        return (
            f"there are {counted(len(paths), 'channel file')} for {counted(num_channels, 'channel')}; "
            f"remove {names}, or rename what is another case"
        )
    if len(paths) == num_channels:
        expected = list(range(num_channels))
        unnamed = None in numbers or len(set(numbers)) < len(numbers)  # listed in dataset.json, where order decides
        if unnamed or numbers == expected:
            return None
        return f"channel suffixes are {numbers}, expected {expected}; rename the files"
    try:
        found = sum(read_header(path)[0][0] for path in paths)
    except UsdError as error:
        if len(paths) > 1:
            return _missing_channels(paths, numbers, num_channels)
        return str(error).removesuffix(".") if unreadable_is_problem else None
    if found == num_channels:
        return None
    if found > len(paths):
        names = ", ".join(path.name for path in paths)
        return f"{names}: {counted(found, 'channel')} found, {num_channels} expected; add or leave out channels"
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
        first = ",".join(rows[0][1])[:80] if rows else ""
        raise UsdError(f'{path} begins with {first!r}; its first line must be "case,group", and commas divide the two.')
    groups: dict[str, str] = {}
    for number, row in rows[1:]:
        cells = [cell.strip() for cell in row]
        if len(cells) != 2 or not all(cells):
            raise UsdError(f"{path} line {number} is {','.join(row)[:200]!r}; each line holds a case and its group.")
        require_text(cells[1], f"{path} line {number}: the group")
        if groups.setdefault(composed(cells[0]), cells[1]) != cells[1]:
            raise UsdError(f"{path} names two groups for the case {cells[0]!r}; keep one.")
    return groups


# ------------------------------------------------------------------------------------------------------- listing


@dataclass
class _Listing:
    """Files found so far, by case."""

    images: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    channels: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    stray: list[StrayFile] = field(default_factory=list)


def _cases_from_folders(folder: Path, description: DatasetDescription) -> _Listing:
    images_folder, ending = folder / "imagesTr", description.file_ending
    if not images_folder.is_dir():
        raise UsdError(f"{images_folder} is missing; put the training images there, or list them in dataset.json.")
    listing = _Listing()
    channels: dict[str, dict[int, Path]] = {}
    for path in _files(images_folder, ending):
        match = CHANNEL_SUFFIX.fullmatch(_stem(path, ending))
        if match is None:
            remedy = f"Name it {_stem(path, ending)}_0000{ending}."
            listing.stray.append(StrayFile(path, "the image has no channel suffix", remedy))
        else:
            _add(channels.setdefault(match["case"], {}), int(match["channel"]), path)
    listing.images = {case_id: _in_order(paths) for case_id, paths in channels.items()}
    if description.missing_channels:
        count = len(description.channel_names)
        listing.channels = {case_id: channels_of_files(paths, count) for case_id, paths in listing.images.items()}
    for path in _files(folder / "labelsTr", label_ending(ending)):
        _add(listing.labels, _stem(path, label_ending(ending)), path)
    listing.stray += left_out(images_folder, ending)
    listing.stray += left_out(folder / "labelsTr", label_ending(ending))
    return listing


def left_out(folder: Path, ending: str) -> list[StrayFile]:
    """Files of a folder that look like images, of formats that are not read too, and do not end in `ending`, and links
    to nothing.

    Pictures beside volumes are taken for previews, unless they are named like a channel. Copies in formats that are not
    read do not count, as in `unread_images`.
    """
    stray = []
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
    unread = set(unread_images(entry.name for entry in entries))
    for entry in entries:
        path, (stem, found) = Path(entry.path), split_image_ending(entry.name)
        if entry.name.startswith(".") or not found or (is_unread_image(entry.name) and entry.name not in unread):
            continue
        if not path.exists():
            stray.append(StrayFile(path, "it is a link to a file that does not exist", "Correct or remove the link."))
        elif not path.is_file():
            if entry.name.endswith(ending):
                kind = "folder" if path.is_dir() else "device or pipe"
                stray.append(StrayFile(path, f"it is a {kind}, not a file", "Put the image there, or move it away."))
        elif not entry.name.endswith(ending):
            reason = f"it ends in {found}, expected is {ending}"
            if found.lower() == ending.lower():
                stray.append(StrayFile(path, reason, f"Rename it to {stem}{ending}."))
            elif is_picture_ending(found) == is_picture_ending(ending) or CHANNEL_SUFFIX.fullmatch(stem):
                stray.append(StrayFile(path, reason, f"Convert it to {ending}, or move it away."))
    return stray


def _unmatched(listing: _Listing) -> Iterator[StrayFile]:
    for case_id in sorted(listing.images.keys() - listing.labels.keys()):
        yield StrayFile(listing.images[case_id][0], "the image has no label map and is left out", "")
    for case_id in sorted(listing.labels.keys() - listing.images.keys()):
        yield StrayFile(listing.labels[case_id], "the label map has no image and is left out", "")


def _cases_from_entries(folder: Path, description: DatasetDescription) -> _Listing:
    listing = _Listing()
    for case_id, entry in (description.entries or {}).items():
        case_id = composed(case_id)
        named = {i: _resolve(folder, image, case_id) for i, image in enumerate(entry.images) if image is not None}
        listing.images[case_id] = tuple(named.values())
        listing.channels[case_id] = tuple(named) if len(named) < len(entry.images) else None
        if description.missing_channels:
            _require_all_or_null(folder, case_id, entry.images, listing.images[case_id], len(description.channel_names))
        if entry.label is not None:
            listing.labels[case_id] = _resolve(folder, entry.label, case_id)
    return listing


def _require_all_or_null(
    folder: Path, case_id: str, images: Sequence[str | None], paths: Sequence[Path], num_channels: int
) -> None:
    """Refuse a list shorter than the channels whose files do not hold them all: it does not say which these are."""
    if len(images) >= num_channels:
        return
    try:
        found = sum(read_header(path)[0][0] for path in paths)
    except UsdError:  # reading the case will report it
        return
    if found < num_channels:
        raise UsdError(
            f"{folder / 'dataset.json'}: dataset.{case_id}.images names {counted(found, 'channel')} of {num_channels}; "
            f"write null in the place of each channel that is missing."
        )


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
        match = _RATER_SUFFIX.fullmatch(_stem(path, ending))
        if match is None or match["case"] not in listing.images:
            remedy = f"Name it CASE_raterN{ending} after a case of imagesTr, or remove it."
            listing.stray.append(StrayFile(path, "the annotation belongs to no case", remedy))
        else:
            _add(found.setdefault(match["case"], {}), int(match["rater"]), path)
    listing.stray += left_out(folder, ending)
    return {case_id: _in_order(paths) for case_id, paths in found.items()}


def _files(folder: Path, ending: str) -> list[Path]:
    """Files with the ending, sorted by name; hidden ones (such as macOS's "._" copies) are left out."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    return [folder / name for name in names if name.endswith(ending) and not name.startswith(".")]


def _stem(path: Path, ending: str) -> str:
    """The name without its ending, in the one Unicode form (NFC) that names of cases have here.

    macOS and some archives store an umlaut as two characters, so that an image and its label map differ in bytes only.
    """
    return composed(path.name.removesuffix(ending))


def _add(files: dict[Key, Path], key: Key, path: Path) -> None:
    if files.setdefault(key, path) != path:
        raise UsdError(
            f"{files[key]} and {path} count as one name: they differ only in their Unicode form, or in zeros before "
            "the number of a rater; rename or remove one."
        )


def _in_order(paths: Mapping[int, Path]) -> tuple[Path, ...]:
    return tuple(paths[number] for number in sorted(paths))


def _images_in_folder(folder: Path, file_ending: str) -> dict[str, tuple[Path, ...]]:
    files = _files(folder, file_ending)
    if stray := left_out(folder, file_ending):
        reasons = [f"{file.path.name}: {file.reason}. {file.remedy}".removesuffix(".") for file in stray]
        raise UsdError(f"{folder}: {counted(len(stray), 'image')} would be left out. {listed(reasons, 10, '; ')}.")
    if not files:
        below = [name for name in ("imagesTs", "imagesTr") if _files(folder / name, file_ending)]
        remedy = f"name {folder / below[0]}" if below else "check the folder"
        raise UsdError(f"{folder} holds no file ending in {file_ending}, which the model expects; {remedy}.")
    channels: dict[str, dict[int, Path]] = {}
    whole: dict[str, Path] = {}  # files that hold all channels of a case and leave the suffix out
    for path in files:
        match = CHANNEL_SUFFIX.fullmatch(_stem(path, file_ending))
        if match is None:
            _add(whole, _stem(path, file_ending), path)
        else:
            _add(channels.setdefault(match["case"], {}), int(match["channel"]), path)
    for case_id in sorted(whole.keys() & channels.keys()):
        raise UsdError(
            f"two inputs would both be case {case_id!r}: {whole[case_id]} and {_in_order(channels[case_id])[0]}; "
            "rename or remove one."
        )
    images = {case_id: _in_order(paths) for case_id, paths in channels.items()}
    return images | {case_id: (path,) for case_id, path in whole.items()}


def _images_of_files(paths: Iterable[Path], file_ending: str) -> dict[str, tuple[Path, ...]]:
    images: dict[str, tuple[Path, ...]] = {}
    listed: dict[Path, dict[str, list[Path]]] = {}  # channel files by case, of each folder
    for path in paths:
        _require_input(path, file_ending)
        stem = _stem(path, file_ending)
        match = CHANNEL_SUFFIX.fullmatch(stem)
        case_id, files = stem, (path,)  # type: str, tuple[Path, ...]
        if match:
            if path.parent not in listed:
                listed[path.parent] = _channel_files(path.parent, file_ending)
            case_id = match["case"]
            files = _siblings(listed[path.parent].get(case_id, ()), file_ending)
        if images.setdefault(case_id, files) != files:
            raise UsdError(f"two inputs would both be case {case_id!r}: {images[case_id][0]} and {path}; rename one.")
    if not images:
        raise UsdError("the list of input files is empty; name at least one file.")
    return images


def require_image_file(path: Path, described: str = "an image file") -> None:
    """Raise a UsdError where a file that is named as an input is none; `described` says what it should be."""
    if path.is_dir():
        raise UsdError(f"{path} is a folder, named beside other inputs; name one folder, or image files alone.")
    if not path.is_file():
        raise UsdError(f"{path} does not exist; name a folder or {described}.")


def _require_input(path: Path, file_ending: str) -> None:
    require_image_file(path, f"an image file ending in {file_ending}")
    if not path.name.endswith(file_ending):
        raise UsdError(f"{path} does not end in {file_ending}, which the model expects; convert the image.")


def _channel_files(folder: Path, file_ending: str) -> dict[str, list[Path]]:
    """The files of a folder that are named as a channel of a case, by case."""
    found: dict[str, list[Path]] = {}
    for path in _files(folder, file_ending):
        if match := CHANNEL_SUFFIX.fullmatch(_stem(path, file_ending)):
            found.setdefault(match["case"], []).append(path)
    return found


def _siblings(paths: Iterable[Path], file_ending: str) -> tuple[Path, ...]:
    """The files of one case in channel order."""
    channels: dict[int, Path] = {}
    for path in paths:
        match = CHANNEL_SUFFIX.fullmatch(_stem(path, file_ending))
        assert match is not None
        _add(channels, int(match["channel"]), path)
    return _in_order(channels)


def _channel_number(path: Path) -> int | None:
    match = CHANNEL_SUFFIX.fullmatch(split_ending(path.name)[0])
    return int(match["channel"]) if match else None


def _missing_channels(paths: Sequence[Path], numbers: Sequence[int | None], num_channels: int) -> str:
    """Names the files that are missing; of a single picture where a colour picture is expected, that it is grey."""
    missing = sorted(set(range(num_channels)) - {n for n in numbers if n is not None})
    suffixes = ", ".join(f"_{number:04d}" for number in missing)
    channels = "channels" if len(missing) > 1 else "channel"
    text = f"{channels} {suffixes} {'are' if len(missing) > 1 else 'is'} missing beside {paths[0].name}; "
    if num_channels == 3 and len(paths) == 1 and is_picture_ending(split_ending(paths[0].name)[1]):
        return f"{paths[0].name} is a grey picture, but 3 channels are expected; save it in colour (RGB), or add files"
    if None in numbers:
        return f"{text}add the file{'s' * (len(missing) > 1)}, or name each file after its channel (_0000)"
    return (
        f'{text}add the file{"s" * (len(missing) > 1)}, or let cases lack channels: "missing_channels": true in '
        f"dataset.json before planning"
    )
