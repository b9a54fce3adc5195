"""dataset.json in nnU-Net's format: channel names, labels or regions, file ending, and what this package adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.core.names import composed, require_name, require_text
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.io.class_codes import parse_class_codes
from unisegdiff_pipeline.io.images import MAX_LABEL, SUPPORTED_ENDINGS, is_picture_ending, spacing_known
from unisegdiff_pipeline.io.label_map import LabelMap, in_file_values
from unisegdiff_pipeline.io.sources import BACKGROUND, IGNORE, Source, parse_sources

_RESERVED = (BACKGROUND, IGNORE)  # names in labels that are no class


@dataclass(frozen=True)
class DatasetEntry:
    """Files of one case as the `dataset` dictionary names them: one path a channel, None where it is missing."""

    images: tuple[str | None, ...]
    label: str | None


@dataclass(frozen=True)
class DatasetDescription:
    """What dataset.json says.

    Attributes:
        channel_names: name of each channel in file order; the name chooses the normalisation.
        labels: classes or regions and how they are coded, in the values of the label files (see `label_map`).
        file_ending: ending of image files (labels as well, except beside JPEG: see images.label_ending).
        spacing_known: False where spacings in the files are made up; results in mm are then nominal. By default
            True, and False for pictures, which hold no spacing (`with_spacing_of` looks beside them).
        name: display name, None where the file has none.
        entries: explicit paths of cases instead of folders, else None.
        raw: the parsed file.
        allow_unmatched: files that belong to no case are left out with a warning; else they are errors.
        sources: the data sets that a unified one is made of; empty for any other.
        missing_channels: cases may lack some of their channel files; else an absent file is an error.
    """

    channel_names: tuple[str, ...]
    labels: LabelScheme
    file_ending: str
    spacing_known: bool
    name: str | None
    entries: dict[str, DatasetEntry] | None
    raw: dict[str, Any]
    allow_unmatched: bool = False
    sources: tuple[Source, ...] = ()
    missing_channels: bool = False


def read_dataset_json(path: Path, label_map: LabelMap | None = None) -> DatasetDescription:
    """Read and check a dataset.json.

    Args:
        path: of the file.
        label_map: takes the place of the one that the file does not have.

    Raises:
        UsdError: names the file, the key, what it holds and what is allowed.
    """
    path = Path(path)
    raw = read_object(path)
    if label_map is not None:
        if raw.get("label_map", label_map) != label_map:
            raise UsdError(
                f"{path} has another label_map than --remap names; leave the flag out, or take it out there."
            )
        raw = {**raw, "label_map": dict(label_map)}
    try:
        return parse_description(raw)
    except UsdError as error:
        raise UsdError(f"{path}: {error}") from None


def listed_test_cases(path: Path) -> frozenset[str]:
    """The cases that `test` of a dataset.json names; none where there is no file.

    Paths, as the Medical Segmentation Decathlon lists its images for testing there, are none of them.

    Raises:
        UsdError: no list of names.
    """
    listed = read_object(path).get("test") if path.is_file() else None
    if listed is None:
        return frozenset()
    if not isinstance(listed, list) or any(not isinstance(name, (str, dict)) for name in listed):
        raise UsdError(f'{path}: test is {listed!r:.80}; it must be a list of cases, as in ["scan_001"].')
    return frozenset(composed(name) for name in listed if isinstance(name, str) and "/" not in name)


def with_spacing_of(description: DatasetDescription, cases: Iterable[Sequence[Path]]) -> DatasetDescription:
    """The description of pictures whose spacing is known after all: each of these cases has it in a file beside it.

    Args:
        description: what it says itself stays.
        cases: files of each case; images or label maps.
    """
    if description.spacing_known or "spacing_known" in description.raw:
        return description
    files = [paths for paths in cases if paths]
    if not files or not all(spacing_known(paths) for paths in files):
        return description
    return replace(description, spacing_known=True, raw={**description.raw, "spacing_known": True})


def parse_description(raw: dict[str, Any]) -> DatasetDescription:
    """Check the parsed content of a dataset.json; errors name the key but no file."""
    ending = _file_ending(raw)
    channel_names, missing_channels = _channel_names(raw), _flag(raw, "missing_channels", False)
    if missing_channels and (raw.get("sources") or len(channel_names) == 1):
        why = "sources stand beside it" if raw.get("sources") else "there is one channel, which each case needs"
        raise UsdError(f"missing_channels is true, but {why}; leave it out.")
    name = raw.get("name")
    if name is not None and not isinstance(name, str):
        raise UsdError(f"name is {name!r}, it must be a text; correct it or leave it out.")
    labels = parse_labels(raw.get("labels"), raw.get("regions_class_order"))
    parse_class_codes(raw, labels.names)
    if "label_map" in raw:
        if raw.get("sources"):
            raise UsdError("label_map and sources stand beside each other; each source has a label_map of its own.")
        labels = in_file_values(labels, raw["label_map"])
    return DatasetDescription(
        channel_names=channel_names,
        labels=labels,
        file_ending=ending,
        spacing_known=_flag(raw, "spacing_known", not is_picture_ending(ending)),
        name=name,
        entries=_entries(raw.get("dataset"), len(channel_names) if missing_channels else 0),
        raw=raw,
        allow_unmatched=_flag(raw, "allow_unmatched", False),
        sources=parse_sources(raw.get("sources"), labels),
        missing_channels=missing_channels,
    )


def parse_labels(labels: Any, class_order: Any = None) -> LabelScheme:
    """Turn the `labels` and `regions_class_order` of a dataset.json into a LabelScheme.

    The coding is "binary" for exactly one foreground class, "softmax" for several, "regions" as soon as one label
    is a list of values.
    """
    groups = _label_groups(labels)
    ignore_value = _take_ignore(groups)
    _require_background(groups)
    groups.pop("background")
    if not groups:
        raise UsdError('labels holds no foreground class; add at least one, for example "lesion": 1.')
    has_regions = any(isinstance(value, list) for value in labels.values())
    values = {v for group in groups.values() for v in group}
    _require_consecutive(values | {0})
    coding: Coding = "regions" if has_regions else "binary" if len(groups) == 1 else "softmax"
    if not has_regions:
        _require_unique(groups)
        groups = dict(sorted(groups.items(), key=lambda item: item[1]))
        write_values = tuple(group[0] for group in groups.values())
    else:
        write_values = _class_order(class_order, tuple(groups), values)
    scheme = LabelScheme(tuple(groups), tuple(groups.values()), coding, write_values, ignore_value)
    if has_regions and (problem := scheme.order_problem()):
        raise UsdError(f"regions_class_order is {problem}")
    return scheme


def _file_ending(raw: Mapping[str, Any]) -> str:
    ending = raw.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in SUPPORTED_ENDINGS:
        problem = "is missing" if ending is None else f"is {ending!r}"
        raise UsdError(f"file_ending {problem}; it must be one of {', '.join(SUPPORTED_ENDINGS)}.")
    return ending


def _flag(raw: Mapping[str, Any], key: str, default: bool) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise UsdError(f"{key} is {value!r}, allowed is true or false; correct the value.")
    return value


def _channel_names(raw: Mapping[str, Any]) -> tuple[str, ...]:
    channels = raw.get("channel_names", raw.get("modality"))
    if channels is None:
        raise UsdError('channel_names is missing; add it, for example "channel_names": {"0": "MRI"}.')
    if isinstance(channels, list):
        channels = {str(i): name for i, name in enumerate(channels)}
    if not isinstance(channels, dict) or not channels:
        raise UsdError(f'channel_names is {channels!r}; it must map numbers to names, as in {{"0": "T1", "1": "T2"}}.')
    if set(channels) != {str(i) for i in range(len(channels))}:
        hint = "keys and values look swapped; " if all(str(v).isdigit() for v in channels.values()) else ""
        raise UsdError(
            f"channel_names has the keys {', '.join(map(repr, channels))}; {hint}they must be "
            f'"0" to "{len(channels) - 1}", with the channel\'s name as value.'
        )
    names = tuple(channels[str(i)] for i in range(len(channels)))
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise UsdError(f"channel_names.{i} is {name!r}; it must be a non-empty text such as CT or T1.")
        require_text(name, f"channel_names.{i}")
    return names


def _label_groups(labels: Any) -> dict[str, tuple[int, ...]]:
    """labels as name -> values, after checking types; single values become groups of one."""
    if not isinstance(labels, dict) or not labels:
        problem = "is missing" if labels is None else f"is {labels!r}"
        raise UsdError(f'labels {problem}; it must map names to values, as in {{"background": 0, "lesion": 1}}.')
    if all(key.isdigit() for key in labels) and all(isinstance(v, str) for v in labels.values()):
        raise UsdError('labels maps values to names; swap them: {"background": 0, "lesion": 1}.')
    groups = {}
    for name, value in labels.items():
        require_text(name, "a name in labels")
        if name not in _RESERVED and name.strip().lower() in _RESERVED:  # it would silently become a class
            raise UsdError(
                f"labels holds the name {name!r}; write it as {name.strip().lower()!r}, or rename the class."
            )
        values = value if isinstance(value, list) else [value]
        if not values or any(not isinstance(v, int) or isinstance(v, bool) or not 0 <= v <= MAX_LABEL for v in values):
            raise UsdError(
                f"labels.{name} is {value!r}; allowed is a whole number from 0 to {MAX_LABEL}, or a list of them for a "
                "region."
            )
        groups[name] = tuple(dict.fromkeys(values))
    return groups


def _take_ignore(groups: dict[str, tuple[int, ...]]) -> int | None:
    """Remove the ignore label from `groups` and return its value; it must be the highest of all."""
    ignore = groups.pop("ignore", None)
    if ignore is None:
        return None
    highest = max(v for group in groups.values() for v in group) if groups else 0
    if len(ignore) != 1 or ignore[0] != highest + 1:
        raise UsdError(
            f"labels.ignore is {list(ignore)}; the ignore label must be the highest value of all, here {highest + 1}. "
            "Change it in dataset.json and in the label files."
        )
    return ignore[0]


def _require_background(groups: Mapping[str, tuple[int, ...]]) -> None:
    background = groups.get("background")
    if background is None:
        raise UsdError(f'labels holds {", ".join(groups)} but no background; add "background": 0.')
    if background != (0,):
        raise UsdError(f"labels.background is {list(background)}; it must be 0.")
    for name, values in groups.items():
        if name != "background" and 0 in values:
            raise UsdError(f"labels.{name} holds the value 0, which is the background; remove 0 from it.")


def _require_consecutive(values: set[int]) -> None:
    gap = next((value for value, used in enumerate(sorted(values)) if value != used), None)
    if gap is not None:
        raise UsdError(
            f"labels uses the values {sorted(values)}, which leaves out [{gap}]; values must be consecutive from 0. "
            'Renumber them here, and say in label_map which values the label files hold, as in {"255": 1}.'
        )


def _require_unique(groups: Mapping[str, tuple[int, ...]]) -> None:
    owner: dict[int, str] = {}
    for name, (value, *_) in groups.items():
        if value in owner:
            raise UsdError(f"labels.{name} and labels.{owner[value]} are both {value}; give each its own value.")
        owner[value] = name


def _class_order(class_order: Any, names: tuple[str, ...], values: set[int]) -> tuple[int, ...]:
    if class_order is None:
        raise UsdError(
            f"labels holds regions but regions_class_order is missing; add one label value for each of "
            f"{', '.join(names)}, in this order: the value to write for the region, larger regions first."
        )
    if not isinstance(class_order, list) or any(not isinstance(v, int) or isinstance(v, bool) for v in class_order):
        raise UsdError(f"regions_class_order is {class_order!r}; it must be a list of label values.")
    if len(class_order) != len(names):
        raise UsdError(
            f"regions_class_order has {len(class_order)} values for the {len(names)} regions {', '.join(names)}; "
            "give one for each, in this order."
        )
    unknown = sorted(set(class_order) - values)
    if unknown:
        raise UsdError(f"regions_class_order holds {unknown}, which no region in labels has; use values of the labels.")
    return tuple(class_order)


def _entries(dataset: Any, channels: int) -> dict[str, DatasetEntry] | None:
    """The `dataset` dictionary; where channels may be missing, so many, an image may be null."""
    if dataset is None:
        return None
    if not isinstance(dataset, dict):
        raise UsdError('dataset must map case names to {"images": [...], "label": "..."}; correct it or leave it out.')
    names = [require_name(case_id, "a case of dataset") for case_id in dataset]
    return {case_id: _entry(case_id, dataset[case_id], channels) for case_id in names}


def _entry(case_id: str, entry: Any, channels: int) -> DatasetEntry:
    images = entry.get("images") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    if isinstance(images, list) and None in images:
        if not channels:
            raise UsdError(
                f"dataset.{case_id}.images holds null; name the file, or let cases lack channels with "
                f'"missing_channels": true.'
            )
        if len(images) != channels or set(images) == {None}:
            raise UsdError(
                f"dataset.{case_id}.images has {len(images)} values; where channels are missing it has one for each of "
                f"the {channels} channels, null for those that are, and at least one path."
            )
    if not isinstance(images, list) or not images or any(not isinstance(image, str | None) for image in images):
        raise UsdError(f"dataset.{case_id}.images must be a list of paths, one for each channel; correct it.")
    if label is not None and not isinstance(label, str):
        raise UsdError(f"dataset.{case_id}.label is {label!r}; it must be a path.")
    for path in (path for path in (*images, label) if path is not None):
        if not path.isprintable() or any(len(part.encode("utf-8")) > 255 for part in path.split("/")):
            raise UsdError(f"dataset.{case_id} names {path[:100]!r}, which can be no path; correct it.")
    return DatasetEntry(tuple(images), label)
