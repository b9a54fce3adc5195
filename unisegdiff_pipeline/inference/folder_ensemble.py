"""Ensembles of folders of predictions: one folder whose masks come from the mean of their probabilities."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash, require_writable
from unisegdiff_pipeline.core.progress import counted, progress
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.averaging import (
    average_case,
    have_samples,
    require_same_classes,
    require_same_grids,
)
from unisegdiff_pipeline.inference.export import (
    OutputOptions,
    PredictionRecord,
    endings_there,
    output_folders,
    write_prediction,
    write_record,
    write_summary,
)
from unisegdiff_pipeline.inference.label_fusion import require_combinable
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter, combined_filter
from unisegdiff_pipeline.inference.memory import MemoryBudget
from unisegdiff_pipeline.inference.origin import request_hash
from unisegdiff_pipeline.inference.output_folder import (
    Owner,
    claimed,
    collected,
    finished_in_words,
    is_finished,
    remove_former,
    require_own,
)
from unisegdiff_pipeline.inference.prediction_folder import PredictionFolder, open_prediction_folder
from unisegdiff_pipeline.inference.request import EnsembleRequest
from unisegdiff_pipeline.inference.saving import manifest_of
from unisegdiff_pipeline.inference.settings import Decision
from unisegdiff_pipeline.io.images import files_read, split_ending

LOGGER = logging.getLogger(__name__)


def ensemble_folders(request: EnsembleRequest, failed: Mapping[str, str] = MappingProxyType({})) -> int:
    """Make the masks of an ensemble; returns how many cases were made now.

    The output is like that of a prediction (see `export`), and belongs to these members with these settings (see
    `output_folder`); cases that it holds already, made of the same files, are left as they are. Samples are pooled
    where all members have them of all cases.

    Args:
        request: what is averaged, and how.
        failed: cases that a member could not be made of now, and the ending of their images; what the output holds of
            them is removed.

    Raises:
        UsdError: members of different cases, classes or grids, or without probabilities, naming folder and case; an
            output that cannot be written into or holds other predictions; or cases that failed, named at the end.
    """
    dataset_json = None if request.dataset_json is None else Path(request.dataset_json)
    members = [open_prediction_folder(Path(folder), dataset_json) for folder in request.members]
    require_same_classes(members)
    held = {case for member in members for case in (*member.masks, *member.probabilities)}
    cases = sorted(held if request.cases is None else request.cases)
    for member in members:
        member.require_cases(cases)
    require_same_grids(members, cases)
    run = _EnsembleRun.of(request, members, cases)
    for folder in output_folders(run.output):
        require_writable(folder)
    endings = {case: run.ending(case) for case in cases}
    ending = next(iter(endings.values()), "")
    with claimed(run.output, run.owner, endings, ending, overwrite=request.overwrite, part=request.part):
        for case_id, ending_of_image in failed.items():
            remove_former(run.output, case_id, ending_of_image)
        left = [case for case in cases if request.overwrite or not run.is_finished(case)]
        if len(left) < len(cases):
            LOGGER.info("%s", finished_in_words(len(cases), len(left)))
        try:
            failures = run.make(left)
        finally:
            run.write_tables(ending)
    if failures:
        lines = [f"{case_id}: {failure}" for case_id, failure in failures.items()]
        raise UsdError("\n".join([f"{counted(len(lines), 'case')} could not be made, the others are done.", *lines]))
    return len(left)


@dataclass(frozen=True)
class _EnsembleRun:
    """Members, settings and output of one run."""

    request: EnsembleRequest
    members: Sequence[PredictionFolder]
    output: Path
    pooling: bool
    decision: Decision
    lesion_filter: LesionFilter
    owner: Owner
    budget: MemoryBudget

    @classmethod
    def of(cls, request: EnsembleRequest, members: Sequence[PredictionFolder], cases: Sequence[str]) -> _EnsembleRun:
        pooling = have_samples(members, cases)
        if not pooling and any(member.samples for member in members):
            LOGGER.info("not all members have samples of all cases: none are pooled, and lesions get no confidence")
        require_combinable(request.combine, int(pooling))
        if request.decision == "dice" and not pooling:
            raise UsdError(
                "decision is 'dice', which needs samples of all cases from all members; predict them with "
                "--save-samples, or decide by 'half'."
            )
        by_dice = pooling and all(member.decision == "dice" for member in members)
        decision: Decision = request.decision or ("dice" if by_dice else "half")
        kept = request.lesion_filter
        if isinstance(kept, bool):
            kept = combined_filter([member.lesion_filter for member in members]) if kept else NO_FILTER
        if not pooling and (void := kept.void_without_samples()):
            LOGGER.warning("%s", void)
        promised = [str(member.folder) for member in members if member.keeps_promises]
        if promised and request.promises is None:
            LOGGER.warning(
                "guarantees of %s are void for the mean of several predictions: %s keeps none",
                ", ".join(promised),
                request.output,
            )
        made_of: dict[str, Any] = {
            "members": [member.identity for member in members],
            "weights": [round(fraction, 9) for fraction in request.fractions],
            "decision": decision,
            "combine": request.combine,
            "pooled_samples": pooling,
            "labels": to_jsonable(members[0].labels),
            "spacing_known": members[0].spacing_known,
        }
        if not kept.keeps_all:
            made_of["lesion_filter"] = to_jsonable(kept)
        if request.promises is not None:
            made_of["promises"] = to_jsonable(request.promises)
        owner = Owner(request_hash(made_of), " + ".join(str(member.folder.resolve()) for member in members), made_of)
        budget = MemoryBudget.of(request.max_memory_gb)
        return cls(request, members, Path(request.output), pooling, decision, kept, owner, budget)

    def ending(self, case_id: str) -> str:
        """Ending of the masks of a case: the first member's."""
        return split_ending(self.members[0].masks[case_id].name)[1]

    def is_finished(self, case_id: str) -> bool:
        """Whether the output holds all that is wanted of a case, made of the same files."""
        count = sum(len(member.samples[case_id]) for member in self.members) if self.pooling else 0
        options = self._options(case_id)
        return is_finished(self.output, self.owner, case_id, options, (1, count), lambda: self._hashes(case_id))

    def make(self, cases: Sequence[str]) -> dict[str, str]:
        """Make cases one after the other; returns what failed, in words."""
        failures: dict[str, str] = {}
        for case_id in progress(cases, len(cases), "averaging"):
            with collected(failures, case_id):
                self._make(case_id)
        return failures

    def _make(self, case_id: str) -> None:
        start = time.perf_counter()
        require_own(self.output, self.owner)
        options = self._options(case_id)
        remove_former(self.output, case_id, options.file_ending)
        with Scratch(self.output, self.budget.for_arrays()) as scratch:
            found, properties = average_case(
                self.members,
                case_id,
                self.request.fractions,
                self.decision,
                pooling=self.pooling,
                lesion_filter=self.lesion_filter,
                scratch=scratch,
            )
            num_lesions = write_prediction(self.output, found, properties, self.members[0].labels, options)
        facts = {"num_samples": len(found.sample_places), "num_lesions": num_lesions, "threshold": found.threshold}
        record = PredictionRecord(
            case_id,
            self.owner.request,
            tuple(str(member.probabilities[case_id]) for member in self.members),
            self._hashes(case_id),
            {"average": time.perf_counter() - start},
            facts,
            options.file_ending,
        )
        write_record(self.output, record)

    def write_tables(self, file_ending: str) -> None:
        """Write lesions.csv, volumes.csv and manifest.json over all finished cases."""
        require_own(self.output, self.owner)
        first, endings = self.members[0], endings_there(self.output, file_ending)
        manifest = manifest_of(self.owner, first.labels, "cpu", endings, spacing_known=first.spacing_known)
        write_summary(self.output, manifest)

    def _options(self, case_id: str) -> OutputOptions:
        return OutputOptions(
            self.ending(case_id),
            self.members[0].knows_spacing(case_id),
            save_samples=self.request.save_samples,
            save_probabilities=self.request.save_probabilities,
            combine=self.request.combine,
            promises=self.request.promises,
        )

    def _hashes(self, case_id: str) -> tuple[str, ...]:
        paths = [path for member in self.members for path in member.files(case_id)]
        return tuple(file_hash(path) for path in files_read(paths))
