"""What has changed in a raw data set since it was preprocessed, which a training by itself would not learn of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset, open_as_measured
from unisegdiff_pipeline.planning.description import differences_from_plan
from unisegdiff_pipeline.preprocessing.provenance import has_other_files
from unisegdiff_pipeline.preprocessing.reference import ReferenceRecord
from unisegdiff_pipeline.training.opened_request import OpenedRequest
from unisegdiff_pipeline.training.resume import LISTED_CASES

LOGGER = logging.getLogger(__name__)


def warn_of_raw_changes(opened: OpenedRequest) -> None:
    """Warn where the raw data set, if it is there, is another one than that which the training is about to learn from.

    It is no error: a training needs no raw data, and may have to be resumed on what it began with.
    """
    root, name = opened.request.roots.raw, opened.dataset.name
    if root is None or not (root / name).is_dir():
        return
    try:
        raw = open_as_measured(root / name, opened.dataset)
    except UsdError:  # some keep the labels alone, to make room
        return
    if changes := list(_changes(raw, opened)):
        LOGGER.warning(
            "%s has changed since it was preprocessed, and the training goes by what was preprocessed: %s. To take the "
            "changes over, run usd_plan_and_preprocess -d %s first; usd_preprocess does it without another plan where "
            "only cases, files or groups are others.",
            raw.folder,
            listed(changes, separator="; "),
            quoted(name),
        )


def _changes(raw: RawDataset, opened: OpenedRequest) -> Iterator[str]:
    yield from differences_from_plan(raw.description, opened.plans)
    now = {case.case_id: case for case in raw.cases}
    if new := [case_id for case_id in now if case_id not in opened.records]:
        yield f"{counted(len(new), 'case')} {is_or_are(len(new))} new ({listed(new, LISTED_CASES)})"
    if gone := [case_id for case_id in opened.records if case_id not in now]:
        yield f"{counted(len(gone), 'case')} {is_or_are(len(gone))} not there any more ({listed(gone, LISTED_CASES)})"
    used = [now[case_id] for case_id in opened.cases if case_id in now]
    if other := [case.case_id for case in used if _has_other_files(case, opened)]:
        yield f"the files of {counted(len(other), 'case')} are others ({listed(other, LISTED_CASES)})"
    if torn := _torn_groups(raw, opened.records):
        yield f"groups.csv puts cases together that were not in one group ({listed(torn, LISTED_CASES)})"


def _has_other_files(case: RawCase, opened: OpenedRequest) -> bool:
    return case.label_path is None or has_other_files(opened.data.provenance(case.case_id), case)


def _torn_groups(raw: RawDataset, records: Mapping[str, ReferenceRecord]) -> list[str]:
    """Groups of now with cases that are in different ones by the records; a fold may train on both sides of them."""
    former: dict[str, set[str]] = {}
    for case in raw.cases:
        if case.group is not None and case.case_id in records:
            former.setdefault(case.group, set()).add(records[case.case_id].group)
    return sorted(group for group, found in former.items() if len(found) > 1)
