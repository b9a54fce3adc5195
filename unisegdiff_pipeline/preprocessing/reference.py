"""Label maps on their original grid and facts per case, kept once for all configurations of a data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.bounds import Count, NotNegative
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import file_of
from unisegdiff_pipeline.core.serialization import from_jsonable, read_dataclass, read_json, write_json
from unisegdiff_pipeline.preprocessing.provenance import CaseProvenance
from unisegdiff_pipeline.preprocessing.storage import (
    REFERENCE_FOLDER,
    damage_message,
    is_undamaged,
    reference_path,
    write_array,
)

CASES_FILE = "cases.json"


@dataclass(frozen=True)
class ReferenceRecord:
    """Facts of one case that splits need; volumes are those of labelsTr, nominal where the spacing is unknown.

    `identical` says that the group is one of cases with the same image, of which groups.csv names none.
    """

    case_id: str
    group: str
    num_raters: Count
    volumes_mm3: dict[str, NotNegative]
    foreground_mm3: NotNegative
    identical: bool = False


@dataclass(frozen=True)
class _StoredReference:
    """`hash` is that of the label maps' file, as it was written."""

    source: CaseProvenance
    record: ReferenceRecord
    hash: str = ""


def write_reference(
    dataset_folder: Path,
    labels: np.ndarray,
    spacing_mm: tuple[float, ...],
    scheme: LabelScheme,
    case_id: str,
    group: str,
    source: CaseProvenance,
) -> ReferenceRecord:
    """Store the label maps (R, Z, Y, X) of a case and return its record."""
    path, array_path = _record_path(dataset_folder, case_id), reference_path(dataset_folder, case_id)
    path.unlink(missing_ok=True)
    write_array(array_path, labels, labels.shape[1:])
    voxel_mm3 = float(np.prod(spacing_mm))
    voxels, foreground = dict.fromkeys(scheme.names, 0), 0
    for row in labels[0]:  # masks of a whole volume would be as large as the labels, several at once
        for name, mask in scheme.class_masks(row):
            voxels[name] += int(np.count_nonzero(mask))
        foreground += int(np.count_nonzero(scheme.foreground(row)))
    volumes = {name: voxel_mm3 * count for name, count in voxels.items()}
    record = ReferenceRecord(case_id, group, len(labels) - 1, volumes, voxel_mm3 * foreground)
    write_json(path, _StoredReference(source, record, file_hash(array_path)))
    return record


def stored_reference_source(dataset_folder: Path, case_id: str) -> CaseProvenance | None:
    """What the stored label maps of a case were made from; None where there are none, or damaged ones."""
    stored = _stored(dataset_folder, case_id)
    if stored is None or not is_undamaged(reference_path(dataset_folder, case_id), stored.hash):
        return None
    return stored.source


def require_undamaged_references(dataset_folder: Path, case_ids: Sequence[str]) -> None:
    """Compare the label maps of these cases with the hashes taken when they were written.

    Raises:
        UsdError: names the damaged files.
    """
    damaged = [
        reference_path(dataset_folder, case_id)
        for case_id in dict.fromkeys(case_ids)
        if stored_reference_source(dataset_folder, case_id) is None
    ]
    if damaged:
        raise UsdError(damage_message(damaged))


def reference_hashes(dataset_folder: Path, case_ids: Iterable[str]) -> dict[str, str]:
    """Hash of the label maps of each of these cases that is there."""
    found = {case_id: _stored(dataset_folder, case_id) for case_id in case_ids}
    return {case_id: stored.hash for case_id, stored in found.items() if stored is not None}


def relabelled(hashes: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Cases whose label maps are others now than those of earlier `reference_hashes`, sorted."""
    return tuple(sorted(case_id for case_id, found in hashes.items() if now.get(case_id, found) != found))


def write_cases(
    dataset_folder: Path, groups: dict[str, str], identical: Collection[str] = ()
) -> tuple[ReferenceRecord, ...]:
    """Gather the records of the cases in `groups` (case -> group) into cases.json; remove what belongs to no case.

    `identical` are the cases whose group is one of identical images alone.
    """
    records = []
    for case_id, group in sorted(groups.items()):
        stored = _stored(dataset_folder, case_id)
        if stored is not None:
            records.append(replace(stored.record, group=group, identical=case_id in identical))
    for path in (dataset_folder / REFERENCE_FOLDER).glob("*.json"):
        case_id = path.name.removesuffix(".json")
        if case_id not in groups and not path.name.startswith(".tmp-"):
            path.unlink(missing_ok=True)
            reference_path(dataset_folder, case_id).unlink(missing_ok=True)
    write_json(dataset_folder / CASES_FILE, records)
    return tuple(records)


def read_cases(dataset_folder: Path) -> tuple[ReferenceRecord, ...]:
    """Read cases.json of a preprocessed data set, sorted by case.

    Raises:
        UsdError: where it is missing or damaged.
    """
    path = Path(dataset_folder) / CASES_FILE
    try:
        return from_jsonable(tuple[ReferenceRecord, ...], read_json(path))
    except UsdError as error:
        raise UsdError(f"{path}: {error} Run usd_preprocess again; it skips what is done.") from None


def _stored(dataset_folder: Path, case_id: str) -> _StoredReference | None:
    path = _record_path(dataset_folder, case_id)
    if not path.is_file():
        return None
    try:
        return read_dataclass(_StoredReference, path)
    except UsdError:
        return None  # written by another version or damaged: made again


def _record_path(dataset_folder: Path, case_id: str) -> Path:
    return file_of(dataset_folder / REFERENCE_FOLDER, case_id, ".json")
