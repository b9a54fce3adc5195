"""A unified data set as reference: its label maps lie in its sources, in the values of each source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.io.sources import Source, annotated_classes, unified_volumes

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.dataset_json import DatasetDescription
    from unisegdiff_pipeline.io.raw_dataset import RawCase


@dataclass(frozen=True)
class SourceLabels:
    """What the label maps of one source's cases mean.

    Attributes:
        source: with the map from its classes to those of the unified data set.
        labels: classes that its files hold.
        unified: classes that are scored.
        spacing_known: False says that the spacing of its files is made up.
    """

    source: Source
    labels: LabelScheme
    unified: LabelScheme
    spacing_known: bool = True

    @property
    def name(self) -> str:
        """In front of its cases."""
        return self.source.name

    @property
    def annotated(self) -> frozenset[str]:
        """The unified classes that its label maps say something about; the others are not scored."""
        flags = annotated_classes(self.source, self.unified)
        return frozenset(name for name, known in zip(self.unified.names, flags, strict=True) if known)


def in_scored_values(volume: Volume, source: SourceLabels | None) -> Volume:
    """A label map in the values that are scored: of a source in those of the unified data set.

    Its values must have been checked.
    """
    if source is None:
        return volume
    (mapped,) = unified_volumes([volume], source.source, source.labels, source.unified)
    return mapped


def is_unified(reference: Path) -> bool:
    """Whether a path is the raw folder of a unified data set, or a model of one."""
    path = reference / "dataset.json"
    return path.is_file() and bool(read_object(path).get("sources"))


def source_of_references(description: DatasetDescription, reference: Path) -> SourceLabels | None:
    """The source of a unified data set whose label maps lie in a folder (or one file); None where they are of none.

    Args:
        description: of the unified data set, or of any other, which has no sources.
        reference: such as DatasetXXX_Source/labelsTs.
    """
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json
    from unisegdiff_pipeline.io.paths import places_above
    from unisegdiff_pipeline.io.sources import require_whole_label_map

    for folder in places_above(reference.parent, 1):
        source = next((source for source in description.sources if source.dataset == folder.name), None)
        if source is not None and (folder / "dataset.json").is_file():
            own = read_dataset_json(folder / "dataset.json")
            require_whole_label_map(source, own.labels)
            return SourceLabels(replace(source, excluded=()), own.labels, description.labels, own.spacing_known)
    return None


def unified_cases(folder: Path) -> dict[str, tuple[RawCase, SourceLabels]]:
    """The cases of a unified data set that have a label map, by name.

    Raises:
        UsdError: as `open_raw_dataset`, for a source that is not there for example.
    """
    from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

    raw = open_raw_dataset(folder)
    unified = raw.description.labels
    sources = {}
    for source in raw.description.sources:
        own = raw.source_descriptions[source.name]
        # Which cases are left out says nothing about label maps, and would be copied with every case.
        sources[source.name] = SourceLabels(replace(source, excluded=()), own.labels, unified, own.spacing_known)
    labelled = [case for case in raw.cases if case.label_path is not None and case.source is not None]
    return {case.case_id: (case, sources[case.source]) for case in labelled if case.source is not None}
