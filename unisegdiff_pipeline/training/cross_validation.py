"""The validation cases of all folds in one folder, MODEL/cross_validation, that `usd_evaluate` takes as it is.

It looks like a folder of predictions (see `inference.export`); its files are hard links to those of the folds where
the disk allows it. manifest.json says the fold and the label file of each case, and the hash of each fold's scores, by
which a fold that is validated again later is noticed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object, write_json
from unisegdiff_pipeline.core.words import joined
from unisegdiff_pipeline.evaluation.spread import SPREAD_NAME
from unisegdiff_pipeline.evaluation.summary import fold_table
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME
from unisegdiff_pipeline.io.prediction_files import (
    MANIFEST,
    SCORES,
    SUMMARY_FILES,
    VALIDATED,
    VALIDATION,
    scores_of_fold,
    validated_since,
)
from unisegdiff_pipeline.io.sources import datasets_of_sources, source_of_case
from unisegdiff_pipeline.preprocessing.reference import stored_reference_source
from unisegdiff_pipeline.training.opened_request import OpenedRequest
from unisegdiff_pipeline.training.request import CollectedCases, FoldResult, TrainResult

LOGGER = logging.getLogger(__name__)
FOLDER = "cross_validation"
OWN_OF_A_FOLD = (SCORES, SPREAD_NAME, *SUMMARY_FILES)
CV_SUMMARY_NAME = "cv_summary.json"
EVALUATION = "evaluation"  # where usd_evaluate writes unless told otherwise


def summarise_folds(opened: OpenedRequest, results: Sequence[FoldResult]) -> TrainResult:
    """Write the scores of all folds, and gather their validation cases."""
    path = opened.model_folder / CV_SUMMARY_NAME
    write_json(path, {"folds": [{"fold": r.fold, "seconds": r.seconds, "scores": r.scores} for r in results]})
    table = fold_table({result.fold: {name: s["dice"] for name, s in result.scores.items()} for result in results})
    cases = [case for split in opened.folds.values() for case in split.val]
    collected = collect_validation(
        opened.model_folder,
        [result.folder for result in results],
        label_files(opened.dataset, opened.request.roots.raw, cases),
        opened.plans.file_ending,
    )
    unified = unified_reference(opened.dataset, opened.request.roots.raw)
    return TrainResult(
        tuple(results), path, table, collected if unified is None else replace(collected, labels=unified)
    )


def collect_validation(
    model_folder: Path, fold_folders: Sequence[Path], references: Mapping[str, Path | None], file_ending: str
) -> CollectedCases:
    """Put what the folds kept of their validation cases into one folder; what a former call put there is replaced.

    Args:
        model_folder: where the folder is made.
        fold_folders: folders of the finished folds.
        references: label file of each case.
        file_ending: of the images.
    """
    from unisegdiff_pipeline.inference.export import RECORDS, remove_summary, write_summary

    folder = model_folder / FOLDER
    _remove_former(folder, file_ending)
    remove_summary(folder)
    cases: dict[str, dict[str, str | None]] = {}
    not_validated: list[str] = []
    hashes: dict[str, str] = {}
    for fold_folder in fold_folders:
        fold, source = fold_folder.name.removeprefix("fold_"), fold_folder / VALIDATION
        scores = scores_of_fold(fold_folder)
        summary, hashes[fold] = read_object(scores), file_hash(scores)
        try:
            validated = [str(case["case_id"]) for case in summary["cases"]]
            not_validated += from_jsonable(tuple[str, ...], summary.get("not_validated") or [], "not_validated")
        except (KeyError, TypeError, UsdError):
            raise UsdError(
                f"{scores} does not name its cases as validation writes them; delete it and train that "
                f"fold again: it is only validated anew."
            ) from None
        for case_id in validated:
            label = references.get(case_id)
            cases[case_id] = {"fold": fold, "reference": None if label is None else str(label)}
        for path in sorted(source.rglob("*")):
            inside = path.relative_to(source)
            if path.is_file() and str(inside) not in OWN_OF_A_FOLD and inside.parts[0] != EVALUATION:
                _link(path, folder / inside)
    made_of = {
        "model": str(model_folder.resolve()),
        "validation": cases,
        "not_validated": not_validated,
        VALIDATED: hashes,
    }
    if any((folder / RECORDS).glob("*.json")):
        write_summary(folder, made_of)
    else:
        write_json(folder / MANIFEST, made_of)
    labels = {Path(case["reference"]).parent for case in cases.values() if case["reference"] is not None}
    known = len(labels) == 1 and labels != {Path()}
    return CollectedCases(folder, labels.pop() if known else None, tuple(not_validated))


def say_what_is_former(model_folder: Path) -> None:
    """Name the folds that `summarise_folds` has to gather anew; nothing where none was gathered."""
    if former := validated_since(model_folder / FOLDER):
        LOGGER.info(
            "%s and %s hold earlier results of %s; usd_train with FOLD cv gathers them again",
            model_folder / FOLDER,
            CV_SUMMARY_NAME,
            joined([f"fold {fold}" for fold in former]),
        )


def label_files(dataset_folder: Path, raw_root: Path | None, case_ids: Iterable[str]) -> dict[str, Path | None]:
    """The label file that each case was preprocessed from; only its name where the raw data set is not there.

    Args:
        dataset_folder: preprocessed/DatasetXXX_Name.
        raw_root: root of the raw data sets, if known.
        case_ids: names of cases.
    """
    result: dict[str, Path | None] = {}
    datasets = datasets_of_sources(dataset_folder / DATASET_NAME)
    for case_id in case_ids:
        source = stored_reference_source(dataset_folder, case_id)
        if source is None or not source.files:
            result[case_id] = None
            continue
        name = Path(source.files[0].name).name
        dataset = datasets.get(source_of_case(case_id), dataset_folder.name)
        path = None if raw_root is None else raw_root / dataset / "labelsTr" / name
        result[case_id] = path if path is not None and path.is_file() else Path(name)
    return result


def unified_reference(dataset_folder: Path, raw_root: Path | None) -> Path | None:
    """The raw folder of a unified data set, which `usd_evaluate` takes as reference; None where it is not there."""
    if raw_root is None or not datasets_of_sources(dataset_folder / DATASET_NAME):
        return None
    folder = raw_root / dataset_folder.name
    return folder if (folder / DATASET_NAME).is_file() else None


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that knows no links
        shutil.copy2(source, target)


def _remove_former(folder: Path, file_ending: str) -> None:
    """Remove the cases that the folder's manifest names, and nothing else."""
    from unisegdiff_pipeline.inference.output_folder import remove_former
    from unisegdiff_pipeline.io.images import split_ending

    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    endings: dict[str, set[str]] = {}  # sources of a unified data set have endings of their own
    for name, ending in (split_ending(path.name) for path in folder.iterdir() if path.is_file()):
        if ending:
            endings.setdefault(name, {file_ending}).add(ending)
    for case_id in read_object(manifest).get("validation") or {}:
        for ending in endings.get(case_id, {file_ending}):
            remove_former(folder, case_id, ending)
