"""The sources of a unified data set: which data sets it is made of, and what their classes become.

A unified data set is a raw folder that holds a dataset.json alone. Its `sources` name data sets beside it; no image is
copied. Cases are named after their source, SEPARATOR and the case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import require_name, require_text
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object

SEPARATOR = "__"  # between source and case
BACKGROUND, IGNORE = "background", "ignore"  # what a label map may turn a class into, besides the unified classes


@dataclass(frozen=True)
class Source:
    """One data set of a unified one.

    Attributes:
        name: in front of its cases; unique, without SEPARATOR and without '_' at its end.
        dataset: its folder beside the unified data set.
        modality: what its images are, for people ("US", "CT", "MR").
        label_map: class of the source => class of the unified data set, BACKGROUND or IGNORE; every class is named.
        hash: of its dataset.json and of names and sizes of its files when the unified data set was made.
        excluded: cases of the source that are left out.
    """

    name: str
    dataset: str
    modality: str
    label_map: dict[str, str]
    hash: str
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name, "a source")
        require_name(self.dataset, f"dataset of the source {self.name}")
        require_text(self.modality, f"modality of the source {self.name}")
        if SEPARATOR in self.name or self.name.endswith("_"):  # of A_ and c, A___c would be the case _c of A
            raise UsdError(
                f"a source is named {self.name!r}, but {SEPARATOR!r} stands between sources and cases, so that no name "
                f"may hold it or end in '_'; rename it with usd_unify --rename."
            )


def unified_case_id(source: str, case_id: str) -> str:
    """Name of a source's case in the unified data set."""
    return f"{source}{SEPARATOR}{case_id}"


def source_of_case(case_id: str) -> str:
    """The source that the name of a unified data set's case begins with."""
    return case_id.split(SEPARATOR, 1)[0]


def cases_by_source(case_ids: Iterable[str]) -> dict[str, list[str]]:
    """The cases of a unified data set by source, both in the order in which they come."""
    found: dict[str, list[str]] = {}
    for case_id in case_ids:
        found.setdefault(source_of_case(case_id), []).append(case_id)
    return found


def in_turn(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The cases of several sources, one of each after the other, so that the first ones are of as many as possible."""
    return tuple(case for turn in zip_longest(*groups) for case in turn if case is not None)


def repeated_channels(channels: int, width: int) -> np.ndarray:
    """Which channel of an image each channel of the network's input is, (width,): 1 -> 111, 2 -> 121, 3 -> 123."""
    return np.arange(width) % channels


def parse_sources(sources: Any, labels: LabelScheme) -> tuple[Source, ...]:
    """The `sources` of a dataset.json; an absent key has none.

    Raises:
        UsdError: names the key, its value and what is allowed.
    """
    if sources is None:
        return ()
    if not isinstance(sources, list) or not sources:
        raise UsdError(f"sources is {sources!r:.80}; it must be a list of sources, as usd_unify writes it.")
    if any(not isinstance(source, dict) for source in sources):
        raise UsdError("sources holds something that is no object; it must be a list as usd_unify writes it.")
    found = tuple(from_jsonable(Source, source) for source in sources)
    names = [source.name for source in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsdError(f"sources names {', '.join(repeated)} more than once; give each source its own name.")
    allowed = {*labels.names, BACKGROUND, *([] if labels.ignore_value is None else [IGNORE])}
    for source in found:
        if unknown := sorted(set(source.label_map.values()) - allowed):
            raise UsdError(
                f"label_map of the source {source.name} leads to {', '.join(unknown)}; allowed are "
                f"{', '.join(sorted(allowed))}."
            )
    return found


def datasets_of_sources(dataset_json: Path) -> dict[str, str]:
    """Folder of the raw data set of each source; empty where a dataset.json is absent, or of no unified data set.

    Raises:
        UsdError: names the file and what in it is no source.
    """
    sources = read_object(dataset_json).get("sources") if dataset_json.is_file() else None
    try:
        found = from_jsonable(tuple[Source, ...], sources or [], "sources")
    except UsdError as error:
        raise UsdError(f"{dataset_json}: {error}") from None
    return {source.name: source.dataset for source in found}


def require_whole_label_map(source: Source, labels: LabelScheme) -> None:
    """Raise a UsdError where a label map leaves out a class of its source, or names one that is not there."""
    missing = [name for name in labels.names if name not in source.label_map]
    unknown = [name for name in source.label_map if name not in labels.names]
    if missing or unknown:
        problem = f"says nothing of {', '.join(missing)}" if missing else f"names {', '.join(unknown)}"
        raise UsdError(
            f"the label map of the source {source.name} {problem}; {source.dataset} has the classes "
            f"{', '.join(labels.names)}. Map each of them to a class, {BACKGROUND!r} or {IGNORE!r}, with usd_unify "
            f"--label-map."
        )


def annotated_classes(source: Source, unified: LabelScheme) -> tuple[bool, ...]:
    """Of each unified class, whether some class of the source becomes it."""
    return tuple(name in source.label_map.values() for name in unified.names)


def unified_values(source: Source, labels: LabelScheme, unified: LabelScheme) -> dict[int, int]:
    """Label value of the source => value of the unified data set.

    Raises:
        UsdError: a value that no value of the unified data set stands for: it lies in regions of the source that become
            classes which share no value.
    """
    values = {}
    for value in sorted(labels.allowed_values):
        if value == labels.ignore_value:
            if unified.ignore_value is None:
                raise UsdError(
                    f"{source.dataset} has an ignore label, but the unified data set has none; make it again with "
                    f"usd_unify."
                )
            values[value] = unified.ignore_value
            continue
        targets = {source.label_map[name] for name in labels.regions_of(value)} - {BACKGROUND}
        if IGNORE in targets and unified.ignore_value is not None:
            values[value] = unified.ignore_value
            continue
        wanted = tuple(name for name in unified.names if name in targets)
        candidates = sorted({0, *(v for group in unified.members for v in group)})
        match = next((v for v in candidates if unified.regions_of(v) == wanted), None)
        if match is None:
            raise UsdError(
                f"the value {value} of {source.dataset} would become {' and '.join(wanted)} at once, which no value of "
                f"the unified data set is; map its regions ({', '.join(labels.regions_of(value))}) to one class."
            )
        values[value] = match
    return values


def unified_labels(array: np.ndarray, source: Source, labels: LabelScheme, unified: LabelScheme) -> np.ndarray:
    """Label maps of a source, of any shape, in the values of the unified data set; values must have been checked."""
    values = unified_values(source, labels, unified)
    if all(before == after for before, after in values.items()):
        return array
    table = np.zeros(max(values) + 1, np.uint8 if max(values.values()) < 256 else np.int16)
    table[list(values)] = list(values.values())
    return table[array]


def unified_volumes(
    volumes: Sequence[Volume], source: Source, labels: LabelScheme, unified: LabelScheme
) -> tuple[Volume, ...]:
    """As `unified_labels`, of label maps with their geometry."""
    return tuple(replace(v, array=unified_labels(v.array, source, labels, unified)) for v in volumes)
