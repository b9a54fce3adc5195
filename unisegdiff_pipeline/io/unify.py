"""Make a unified data set: a dataset.json that names its sources. No image is copied."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash, text_hash
from unisegdiff_pipeline.core.names import require_name
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import read_object, to_jsonable, write_json
from unisegdiff_pipeline.core.yaml_objects import YAML_ENDINGS, read_yaml_object
from unisegdiff_pipeline.io.dataset_json import DatasetDescription, listed_test_cases, parse_description
from unisegdiff_pipeline.io.paths import find_dataset, new_dataset_folder
from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset, cases_of_source, open_raw_dataset
from unisegdiff_pipeline.io.sources import (
    BACKGROUND,
    IGNORE,
    Source,
    annotated_classes,
    unified_case_id,
    unified_values,
)

LOGGER = logging.getLogger(__name__)
DEFAULT_CLASS = "lesion"
MUCH_LARGER = 100  # times as many cases, from which on it is said how sources are drawn
_FOLDERS = ("imagesTr", "labelsTr", "ratersTr")

T = TypeVar("T")
LabelMaps = Mapping[str, Mapping[str, str]]  # source => its class => class of the unified data set


@dataclass(frozen=True)
class UnifyRequest:
    """What a unified data set is made of.

    Example:
        >>> request = usd.UnifyRequest(500, "Both", (902, 903), renamed={"902": "Flat"}, modalities={"Flat": "US"})
        >>> request.renamed["902"]
        'Flat'

    Attributes:
        number, name: of the new data set.
        datasets: numbers or names of the sources.
        label_maps: classes of sources, by the source's name or its data set's; every class of a source that is not
            named here becomes DEFAULT_CLASS.
        excluded: patterns "SOURCE/CASE" (as of a shell) of cases that are left out.
        renamed: number or name of a data set => name of the source; by default what follows "DatasetXXX_".
        modalities: what the images of sources are, by the source's name or its data set's, such as "US"; by default the
            names of their channels.
        overwrite: replace the dataset.json of a unified data set that is there; other files in its folder stay.
    """

    number: int
    name: str
    datasets: tuple[str | int, ...]
    label_maps: LabelMaps = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    modalities: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False


def unify(raw_root: Path, request: UnifyRequest) -> Path:
    """Write the dataset.json of a unified data set beside its sources.

    Args:
        raw_root: folder of the raw data sets.
        request: what it is made of.

    Returns:
        Folder of the data set.

    Raises:
        UsdError: names that clash or cannot be a folder's, a source that is missing, empty or unified itself, classes
            that a label map does not name, a source that is left without any class, a data set of that name or number
            that is there already.
    """
    name = require_name(request.name, "the data set")
    folder = new_dataset_folder(raw_root, request.number, name)
    _require_new(folder, request.overwrite)
    folders = [raw_root / find_dataset(raw_root, dataset) for dataset in request.datasets]
    names = _source_names(raw_root, folders, request.renamed)
    _require_patterns_used(request.excluded, names)
    parts = {source: open_raw_dataset(path) for source, path in zip(names, folders, strict=True)}
    sources = _sources(parts, request)
    kept = {source.name: cases_of_source(parts[source.name], source) for source in sources}
    content = {
        "name": name,
        "channel_names": {str(i): f"channel_{i}" for i in range(max(map(_num_channels, parts.values())))},
        **_labels(parts, sources),
        "file_ending": max(parts.values(), key=lambda raw: len(raw.cases)).description.file_ending,
        "spacing_known": all(raw.description.spacing_known for raw in parts.values()),
        "sources": to_jsonable(sources),
    }
    if test := _test_cases(parts, kept):
        content["test"] = test
    description = parse_description(content)
    for mapped in description.sources:  # what cannot be mapped is refused before anything is written
        unified_values(mapped, parts[mapped.name].description.labels, description.labels)
    _warn_of_sizes({source: len(cases) for source, cases in kept.items()})
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "dataset.json", content)
    return folder


def _test_cases(parts: Mapping[str, RawDataset], kept: Mapping[str, Sequence[RawCase]]) -> list[str]:
    """The cases that the sources hold out from every training, so that a model over all does not see them either."""
    found = []
    for source, cases in kept.items():
        listed = listed_test_cases(parts[source].folder / "dataset.json")
        found += [unified_case_id(source, case.case_id) for case in cases if case.case_id in listed]
    return found


def source_hash(folder: Path) -> str:
    """Hash of a source's dataset.json and groups.csv, and of names and sizes of its files: what is cheap to look at.

    Hidden files, as file managers leave them, belong to no case and do not count.
    """
    lines = [file_hash(folder / name) for name in ("dataset.json", "groups.csv") if (folder / name).is_file()]
    for part in _FOLDERS:
        if (folder / part).is_dir():
            entries = (entry for entry in os.scandir(folder / part) if not entry.name.startswith("."))
            lines += sorted(f"{part}/{entry.name} {_size(entry)}" for entry in entries)
    return text_hash("\n".join(lines))


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a file; 0 for a link to nothing, which opening the data set names."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0


def changed_sources(raw: RawDataset) -> tuple[Source, ...]:
    """The sources of a unified data set that are not what they were when it was made."""
    return tuple(
        source
        for source in raw.description.sources
        if source.hash and source.hash != source_hash(raw.folder.parent / source.dataset)
    )


def read_label_maps(path: Path) -> dict[str, dict[str, str]]:
    """A file of source => class => class: YAML where it ends in .yaml or .yml, else JSON.

    Raises:
        UsdError: names the file and what is wrong with it: the source, the class, and what is allowed.
    """
    content = read_yaml_object(path) if path.suffix.lower() in YAML_ENDINGS else read_object(path)
    for source, classes in content.items():
        if not isinstance(classes, dict) or not classes:
            raise UsdError(
                f"{path}: {source} is {classes!r:.80}; it must map each class of the source to a class, as in "
                f'{{"{source}": {{"tumour": "{DEFAULT_CLASS}"}}}}.'
            )
        for name, target in classes.items():
            if not isinstance(target, str) or not target.strip():
                raise UsdError(
                    f"{path}: the class {name} of {source} is mapped to {target!r:.80}; allowed are the name of a "
                    f"class, {BACKGROUND!r} and {IGNORE!r}."
                )
    return content


def _require_new(folder: Path, overwrite: bool) -> None:
    """Refuse a folder of another data set; beside a unified dataset.json a user may keep files, as folds."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / "dataset.json"
    if not path.is_file() or not read_object(path).get("sources"):
        raise UsdError(f"{folder} is there and no unified data set; choose another number or name.")
    if not overwrite:
        raise UsdError(f"{folder} is there already; make it again with --overwrite, or choose another number or name.")


def _source_names(raw_root: Path, folders: Sequence[Path], renamed: Mapping[str, str]) -> list[str]:
    by_folder = {raw_root / find_dataset(raw_root, dataset): name for dataset, name in renamed.items()}
    if unused := [path.name for path in by_folder if path not in folders]:
        raise UsdError(f"--rename names {', '.join(unused)}, which is no source; name it with -d, or leave it out.")
    names = [by_folder.get(path, path.name.split("_", 1)[1]) for path in folders]
    for name in names:
        # Cases become files, and some file systems know no case of letters.
        same = [path.name for path, other in zip(folders, names, strict=True) if other.casefold() == name.casefold()]
        if len(same) > 1:
            raise UsdError(
                f"{' and '.join(same)} would both be the source {name}; name each data set once, or rename one with "
                f"--rename {same[0]}=NAME."
            )
    return names


def _sources(parts: Mapping[str, RawDataset], request: UnifyRequest) -> list[Source]:
    """The entries of dataset.json; classes of a source without a label map become DEFAULT_CLASS."""
    known = {*parts, *(raw.folder.name for raw in parts.values())}
    for what, named in (("the label map", request.label_maps), ("--modality", request.modalities)):
        if unknown := sorted(set(named) - known):
            raise UsdError(f"{what} names {', '.join(unknown)}; sources are {', '.join(parts)}.")
        if twice := [name for name, raw in parts.items() if len({name, raw.folder.name} & {*named}) > 1]:
            both = f"{twice[0]} and {parts[twice[0]].folder.name}"
            raise UsdError(f"{what} names {both}, which are the same source; leave one of them out.")
    sources = []
    for name, raw in parts.items():
        chosen = _given(request.label_maps, name, raw)
        modality = _given(request.modalities, name, raw) or _modality(raw)
        label_map = dict.fromkeys(raw.description.labels.names, DEFAULT_CLASS) if chosen is None else dict(chosen)
        cases = _excluded(name, raw, request.excluded)
        sources.append(Source(name, raw.folder.name, modality, label_map, source_hash(raw.folder), cases))
    return sources


def _given(values: Mapping[str, T], source: str, raw: RawDataset) -> T | None:
    """What is said of a source, by its name or its data set's."""
    return values.get(source, values.get(raw.folder.name))


def _labels(parts: Mapping[str, RawDataset], sources: Sequence[Source]) -> dict[str, Any]:
    """`labels` of the unified data set, with `regions_class_order` where its classes are regions.

    They are where some lie within others, as in a source, and where some source does not annotate some class: a network
    that is to leave a class open there needs a channel for each class by itself.
    """
    targets = [target for source in sources for target in source.label_map.values()]
    names = [name for name in dict.fromkeys(targets) if name not in (BACKGROUND, IGNORE)]
    if not names:
        raise UsdError("the label maps leave no class; map at least one class of a source to something.")
    for name in names:
        if alike := [other for other in names if other != name and other.casefold() == name.casefold()]:
            raise UsdError(
                f"the label maps lead to {name} and {alike[0]}, which would be two classes; write both in one way, or "
                "give one another name."
            )
    _require_classes_of_each(parts, sources, names)
    partial = any(not set(names) <= set(source.label_map.values()) for source in sources)
    within = _enclosing(names, parts, sources)
    regions = partial or any(len(classes) > 1 for classes in within.values())
    names.sort(key=lambda name: len(within[name]))  # of regions the outer ones are written first
    values: dict[str, Any] = {
        name: [j for j, other in enumerate(names, start=1) if name in within[other]] if regions else i
        for i, name in enumerate(names, start=1)
    }
    ignored = IGNORE in targets or any(raw.description.labels.ignore_value is not None for raw in parts.values())
    more: dict[str, Any] = {IGNORE: len(names) + 1} if ignored else {}
    labels = {"labels": {BACKGROUND: 0, **values, **more}}
    return labels | ({"regions_class_order": list(range(1, len(names) + 1))} if regions else {})


def _require_classes_of_each(parts: Mapping[str, RawDataset], sources: Sequence[Source], names: Sequence[str]) -> None:
    """Refuse a source that annotates no class: without any loss or score, its cases would cost time and teach nothing.

    A class that becomes the background says nothing of others: a map of the liver alone may well have open tumours.
    """
    for source in sources:
        if not set(names) & set(source.label_map.values()):
            became = ", ".join(f"{name}: {target}" for name, target in source.label_map.items())
            raise UsdError(
                f"the label map of the source {source.name} ({became}) leaves it no class of the unified data set, so "
                f"that nothing would be learned from it. Map one of its classes to {' or '.join(names)}, or leave it "
                f"out of -d. Where its images are known to hold no {names[0]}, add a class for it to labels in "
                f"{parts[source.name].folder / 'dataset.json'}, which no label file has to hold, and map that to "
                f"{names[0]}."
            )


def _enclosing(
    names: Sequence[str], parts: Mapping[str, RawDataset], sources: Sequence[Source]
) -> dict[str, frozenset[str]]:
    """Of each unified class, the classes that it lies within, itself included.

    Of a label map that makes classes overlap in another way each is by itself; which value cannot be then is refused
    by `unified_values`.
    """
    together: set[frozenset[str]] = set()  # the classes that a value of a source becomes
    for source in sources:
        labels = parts[source.name].description.labels
        for value in labels.allowed_values - {labels.ignore_value}:
            targets = {source.label_map[name] for name in labels.regions_of(value)} - {BACKGROUND}
            if targets and IGNORE not in targets:
                together.add(frozenset(targets))
    alone = {name: frozenset([name]) for name in names}
    holding = {name: [classes for classes in together if name in classes] or [alone[name]] for name in names}
    found = {name: frozenset.intersection(*classes) for name, classes in holding.items()}
    return found if {*found.values()} >= together and len({*found.values()}) == len(names) else alone


def _excluded(source: str, raw: RawDataset, patterns: Sequence[str]) -> tuple[str, ...]:
    names = [case.case_id for case in raw.cases]
    own = [pattern.split("/", 1)[1] for pattern in patterns if pattern.split("/", 1)[0] == source]
    for pattern in own:
        if not fnmatch.filter(names, pattern):
            raise UsdError(f"--exclude {source}/{pattern} fits no case of {raw.folder}; check the pattern.")
    return tuple(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in own))


def _require_patterns_used(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if "/" not in pattern or pattern.split("/", 1)[0] not in names:
            raise UsdError(
                f"--exclude is {pattern!r}; it must be SOURCE/CASE, with a source out of {', '.join(names)}."
            )


def _num_channels(raw: RawDataset) -> int:
    return len(raw.description.channel_names)


def _modality(raw: RawDataset) -> str:
    """What the images are, as far as the names of their channels say it."""
    channels = raw.description.channel_names
    return "RGB" if tuple(c.upper() for c in channels) == ("R", "G", "B") else "+".join(channels)


def _warn_of_sizes(counts: Mapping[str, int]) -> None:
    if max(counts.values()) >= MUCH_LARGER * min(counts.values()):
        LOGGER.warning(
            "sources differ in size by %d times and more (%s); training draws them by the square root of their number "
            "of images, which in 2D are the slices of volumes",
            MUCH_LARGER,
            ", ".join(f"{name} {count}" for name, count in counts.items()),
        )


def describe_unified(raw: RawDataset) -> str:
    """A line for each source of a unified data set: cases, channels, and what its classes become."""
    lines = []
    for part, source in zip(raw.parts(), raw.description.sources, strict=True):
        classes = ", ".join(f"{name} -> {target}" for name, target in source.label_map.items())
        unannotated = _unannotated(source, raw.description)
        left_open = f"; does not annotate {', '.join(unannotated)}" if unannotated else ""
        left_out = f", {len(source.excluded)} left out" if source.excluded else ""
        channels = ", ".join(part.description.channel_names)
        lines.append(
            f"  {source.name}: {counted(len(part.cases), 'case')}{left_out}; channels {channels}; {classes}{left_open}"
        )
    return "\n".join(lines)


def _unannotated(source: Source, description: DatasetDescription) -> list[str]:
    annotated = annotated_classes(source, description.labels)
    return [name for name, known in zip(description.labels.names, annotated, strict=True) if not known]
