"""What a preprocessed case was made from, so that only what changed is made again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash, text_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.io.images import files_read
from unisegdiff_pipeline.io.raw_dataset import RawCase
from unisegdiff_pipeline.planning.plans import ConfigurationPlan

FORMAT_VERSION = 3  # raised when arrays are stored otherwise; `storage.is_outdated` says which of 2 are not right
READ_VERSIONS = (2, FORMAT_VERSION)


@dataclass(frozen=True)
class FileState:
    """A file's name and content; size and time of change spare the reading of files that nobody touched."""

    name: str
    hash: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class CaseProvenance:
    """Everything that a stored case depends on.

    Attributes:
        files: input files in the order in which they are read.
        settings: hash of the settings that were applied.
        format_version: of the stored arrays.
    """

    files: tuple[FileState, ...]
    settings: str
    format_version: int = FORMAT_VERSION


def image_files(case: RawCase) -> tuple[Path, ...]:
    """All files that a configuration's case is made from; those of `label_files` come last."""
    return (*files_read(case.image_paths), *label_files(case))


def label_files(case: RawCase) -> tuple[Path, ...]:
    """Label file, raters' files, and what is read beside them.

    Raises:
        UsdError: where a training case has no label file.
    """
    if case.label_path is None:
        raise UsdError(
            f"case {case.case_id!r} has no label file; add it to labelsTr or take the image out of imagesTr."
        )
    return files_read((case.label_path, *case.rater_paths))


def settings_hash(scheme: LabelScheme, preprocessing_hash: str = "") -> str:
    """Hash of what is applied to the files: the preprocessing part of the plan and the meaning of the labels."""
    return text_hash(preprocessing_hash + json.dumps(scheme.fields(), sort_keys=True))


def case_settings(scheme: LabelScheme, configuration: ConfigurationPlan) -> dict[str | None, str]:
    """Hash of what is applied to the cases of each source; that of an ordinary data set has the key None.

    The plan of one source says nothing of the cases of another: where it changes, only its own are made again.
    """
    if configuration.sources is None:
        return {None: settings_hash(scheme, configuration.preprocessing.hash())}
    width = configuration.network.num_input_channels
    return {
        name: settings_hash(scheme, f"{plan.preprocessing.hash()} {width} {mapping_words(plan.labels, plan.label_map)}")
        for name, plan in configuration.sources.plans.items()
    }


def mapping_words(labels: LabelScheme | None, label_map: Mapping[str, str]) -> str:
    """What becomes of the label values of a source, for hashes."""
    return json.dumps([None if labels is None else labels.fields(), dict(label_map)], sort_keys=True)


def current_source(files: Sequence[Path]) -> CaseProvenance:
    """The source of a case that is made now, its settings left open; reads all files."""
    return CaseProvenance(tuple(_state(path) for path in files), settings="")


def is_current(stored: CaseProvenance | None, files: Sequence[Path], settings: str) -> bool:
    """Whether a case made from `stored` is what these files and settings would give again."""
    if stored is None or stored.settings != settings or stored.format_version not in READ_VERSIONS:
        return False
    if [f.name for f in stored.files] != [path.name for path in files]:
        return False
    return all(_unchanged(state, path) for state, path in zip(stored.files, files, strict=True))


def has_other_files(stored: CaseProvenance, case: RawCase) -> bool:
    """Whether a case has other files now than it was made from, as far as can be said without reading its images.

    Images are compared by name and size, since a whole data set would take long to read; label maps by content, too.
    """
    files, labels = image_files(case), label_files(case)
    if [f.name for f in stored.files] != [path.name for path in files]:
        return True
    if any(not path.is_file() or path.stat().st_size != f.size for f, path in zip(stored.files, files, strict=True)):
        return True
    states = stored.files[len(files) - len(labels) :]
    return any(not _unchanged(state, path) for state, path in zip(states, labels, strict=True))


def merge_identical(group_of: Mapping[str, str], image_hashes: Mapping[str, str]) -> dict[str, str]:
    """Groups of all cases, where cases with the same image, and with them their groups, are put into one.

    Copies of one image on both sides of a fold would make its scores too good. The merged group takes the first name.
    """
    representative = {group: group for group in group_of.values()}

    def find(group: str) -> str:
        while representative[group] != group:
            representative[group] = representative[representative[group]]  # of many copies the way would grow long
            group = representative[group]
        return group

    first_of: dict[str, str] = {}
    for case_id, image_hash in image_hashes.items():
        first, second = sorted((find(group_of[first_of.setdefault(image_hash, case_id)]), find(group_of[case_id])))
        representative[second] = first
    return {case_id: find(group) for case_id, group in group_of.items()}


def grouped_as_identical(named: Mapping[str, str], merged: Mapping[str, str]) -> frozenset[str]:
    """The cases whose group `merge_identical` made of cases that were all groups of their own.

    Args:
        named: group of each case before, its own name where none was known.
        merged: the groups after.
    """
    named_groups = {merged[case_id] for case_id, group in named.items() if group != case_id}
    sizes = Counter(merged.values())
    return frozenset(c for c, group in merged.items() if sizes[group] > 1 and group not in named_groups)


def _unchanged(state: FileState, path: Path) -> bool:
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    if now.st_size != state.size:
        return False
    return now.st_mtime_ns == state.changed_ns or file_hash(path) == state.hash


def _state(path: Path) -> FileState:
    status = path.stat()  # before reading: a change in between is then seen the next time
    return FileState(path.name, file_hash(path), status.st_size, status.st_mtime_ns)
