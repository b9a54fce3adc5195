"""usd_train as a function: one fold, all cases, or the whole cross-validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from unisegdiff_pipeline.core.files import remove_stale_temporaries
from unisegdiff_pipeline.core.locks import locked, require_free
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.preprocessing.reference import require_undamaged_references
from unisegdiff_pipeline.training.cascade_masks import settle_masks, take_over_masks
from unisegdiff_pipeline.training.compilation import is_worthwhile
from unisegdiff_pipeline.training.cross_validation import say_what_is_former, summarise_folds
from unisegdiff_pipeline.training.determinism import deterministic_algorithms
from unisegdiff_pipeline.training.fold import is_finished, train_fold
from unisegdiff_pipeline.training.fold_files import (
    has_begun,
    remove_temporaries,
    remove_training,
    set_aside,
    settle_former,
)
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.follower import follow
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.model_files import folders_to_make, remove_what_is_empty, write_model_files
from unisegdiff_pipeline.training.opened_fold import fold_run, requests_of_folds, require_start
from unisegdiff_pipeline.training.opened_request import OpenedRequest, open_request, workers_of
from unisegdiff_pipeline.training.ranks import Ranks, joined
from unisegdiff_pipeline.training.raw_changes import warn_of_raw_changes
from unisegdiff_pipeline.training.request import FoldResult, TrainRequest, TrainResult
from unisegdiff_pipeline.training.resume import LISTED_CASES, read_request, taken_over
from unisegdiff_pipeline.training.time_budget import total_iterations


def train(request: TrainRequest, began: float | None = None) -> TrainResult:
    """Train what the request asks for; finished folds are skipped, interrupted ones continued.

    Of several processes that torchrun started, the first returns the result, the others one without folds.

    Args:
        request: what to train.
        began: time.monotonic() from which the first fold's time counts, so that imports may count; by default now.

    Raises:
        UsdError: data, plan or budget cannot be used, a fold was asked another thing before, or another process trains
            it; the message says what to do. Of a training that could not begin nothing is left.
        TrainingInterrupted: on SIGINT or SIGTERM, with a checkpoint saved.
    """
    began = time.monotonic() if began is None else began
    with joined(request.device) as ranks:
        if ranks.leads:
            return _train(request, began, ranks)
        follow(request, ranks, workers_of(request, ranks))
        return TrainResult(())


def _train(request: TrainRequest, began: float, ranks: Ranks) -> TrainResult:
    opened = open_request(request, ranks=ranks)
    requests_of_folds(opened)  # of all folds, before the first is touched
    warn_of_raw_changes(opened)
    _check_data(opened)
    made = [path for path in folders_to_make(opened.model_folder) if not path.exists()]
    results = []
    try:
        take_over_masks(opened)
        with StopRequest() as stop:
            for fold in opened.folds:
                results.append(_train_one(opened, fold, stop, began))
                began = time.monotonic()
    except BaseException:
        settle_masks(opened)
        remove_what_is_empty(opened.model_folder, made)
        raise
    if request.fold != "cv":
        say_what_is_former(opened.model_folder)
        return TrainResult(tuple(results))
    return summarise_folds(opened, results)


def open_fold(request: TrainRequest, stop: StopRequest) -> FoldRun:
    """The cases, plan and folder of one fold, "0" to "4" or "all", without training it."""
    opened = open_request(request)
    _check_data(opened)
    take_over_masks(opened)
    return fold_run(opened, requests_of_folds(opened)[request.fold], request.fold, stop, time.monotonic())


def _check_data(opened: OpenedRequest) -> None:
    """Find damaged files before a fold is begun; this reads every byte, so what would be refused anyway comes first."""
    todo = [fold for fold in opened.folds if _has_work(opened.request, opened.fold_folder(fold))]
    for fold in todo:
        require_free(opened.lock_path(fold), str(opened.fold_folder(fold)))
    requests = requests_of_folds(opened)
    for fold in todo:
        run = fold_run(opened, requests[fold], fold, StopRequest(), time.monotonic())
        require_start(run, warning=False)  # of all folds, before the first is trained; each says its warnings itself
    if todo:
        opened.data.require_undamaged(opened.cases)
        validated = [case for split in opened.folds.values() for case in split.val]
        require_undamaged_references(opened.dataset, validated)


def _has_work(request: TrainRequest, folder: Path) -> bool:
    return request.restart or request.validate_only or not is_finished(folder)


def _train_one(opened: OpenedRequest, fold: str, stop: StopRequest, began: float) -> FoldResult:
    """One fold under its lock; where it cannot begin, its folder is as it was, with --restart too."""
    request, folder = opened.request, opened.fold_folder(fold)
    with locked(opened.lock_path(fold), str(folder)):
        settle_former(folder)  # of a training that was killed
        settled = requests_of_folds(opened)[fold]  # again: another process may have had the fold until now
        run = fold_run(opened, settled, fold, stop, began)
        run.compiled = _is_compiled(run)
        try:
            if request.restart:
                set_aside(folder, run.validation_cases)
            remove_temporaries(folder)
            remove_stale_temporaries(opened.model_folder)
            write_model_files(opened)
            run.log.open()
            if kept := taken_over(request, settled):
                run.log.say(f"as asked before: {kept}")
            run.log.say(
                f"{opened.plans.dataset_name} {opened.configuration.name} fold {fold}: "
                f"{counted(len(run.train_cases), 'case')} to train on, {len(run.holdout_cases)} held out to choose "
                f"settings, {len(run.validation_cases)} to validate"
            )
            if opened.ranks.size > 1:
                run.log.say(
                    f"{opened.ranks.size} processes share each batch of {run.configuration.training.batch_size}; this "
                    f"one leads"
                )
            for warning in (*_of_cases(run, opened), *_of_other_splits(run)):
                run.log.say(f"warning: {warning}")
            with deterministic_algorithms(bool(settled.deterministic)):
                return train_fold(run, opened.trainer)
        except BaseException:
            if stop.signal_number is None:  # a user who interrupts a training does not wait for its report
                run.log.final_report()
            if not has_begun(folder):
                remove_training(folder, run.validation_cases)
            raise
        finally:
            run.log.close()
            settle_masks(opened)
            settle_former(folder)


def _of_cases(run: FoldRun, opened: OpenedRequest) -> Iterator[str]:
    """What the cases of a fold cannot teach; of those with several raters it is not known what each has marked."""
    records = [opened.records[case] for case in run.train_cases]
    if any(record.num_raters for record in records):
        return
    if not any(record.foreground_mm3 for record in records):
        yield "no case to train on holds any foreground; the answer will be background alone"
        return
    never = [name for name in run.plans.labels.names if not any(record.volumes_mm3.get(name) for record in records)]
    if never:
        yield (
            f"no case to train on holds {listed(never)}, which this fold cannot learn; spread the cases that do over "
            f"the folds by a splits_final.json, or add cases"
        )


def _of_other_splits(run: FoldRun) -> Iterator[str]:
    """Folds beside this one that validate cases of it, too: what is gathered or chosen over all of them is no more."""
    for folder in sorted(run.folder.parent.glob("fold_[0-9]*")):
        request = None if folder == run.folder else read_request(folder)
        if request is not None and (twice := sorted({*request["validation_cases"]} & {*run.validation_cases})):
            yield (
                f"{folder.name} beside it was trained by other splits, and validates {listed(twice, LISTED_CASES)}, "
                f"too; of such folds no cross-validation can be made. Train this one beside them with --run NAME, or "
                f"{folder.name} again with --restart"
            )


def _is_compiled(run: FoldRun) -> bool:
    """Whether the networks of a fold are compiled for training: as asked, else by device and length.

    Several processes would have to agree that a compiler failed: there it has to be asked for.
    """
    if run.request.compile is not None:
        return run.request.compile
    if run.request.deterministic or run.ranks.size > 1:
        return False
    return is_worthwhile(run.device, run.request.max_time_s, total_iterations(run))
