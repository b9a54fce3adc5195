"""What a training would do, and how long it would take, without training: `usd_train --dry-run`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from unisegdiff_pipeline.training.cascade_masks import take_over_masks
from unisegdiff_pipeline.training.fold import is_finished
from unisegdiff_pipeline.training.fold_files import has_begun
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.model_files import check_plan_of_folds
from unisegdiff_pipeline.training.opened_fold import fold_run, requests_of_folds, require_start
from unisegdiff_pipeline.training.opened_request import open_request
from unisegdiff_pipeline.training.raw_changes import warn_of_raw_changes
from unisegdiff_pipeline.training.request import FoldPreview, FoldState, TrainRequest
from unisegdiff_pipeline.training.resume import require_same_training
from unisegdiff_pipeline.training.time_estimate import TimeEstimate, estimate_time


def preview(request: TrainRequest) -> tuple[FoldPreview, ...]:
    """What `train` would do with each fold, by the same rules; nothing is written.

    Raises:
        UsdError: what `train` would refuse before it begins.
    """
    opened = open_request(request, writing=False)
    requests = requests_of_folds(opened)
    warn_of_raw_changes(opened)
    check_plan_of_folds(opened)
    take_over_masks(opened, writing=False)
    found = []
    for fold, settled in requests.items():
        run = fold_run(opened, settled, fold, StopRequest(), time.monotonic())
        if not request.restart:
            require_same_training(run, opened.trainer)
        require_start(run)
        found.append(FoldPreview(fold, run.folder, _state(request, run.folder), settled, run.configuration))
    return tuple(found)


def estimate(request: TrainRequest) -> TimeEstimate | None:
    """How long the folds that are not finished will take on this machine, each as long as the first of them.

    None where there is nothing to train, a time budget says it, or a cascade has not taken over its masks. Nothing is
    written.

    Raises:
        UsdError: what `train` would refuse before it begins.
    """
    opened = open_request(request, writing=False)
    requests = requests_of_folds(opened)
    todo = [fold for fold in requests if request.restart or not is_finished(opened.fold_folder(fold))]
    if not todo or (opened.cascade is not None and not opened.cascade.are_kept(opened.cases)):
        return None
    run = fold_run(opened, requests[todo[0]], todo[0], StopRequest(), time.monotonic())
    found = estimate_time(run, opened.trainer)
    return None if found is None else dataclasses.replace(found, num_folds=len(todo))


def _state(request: TrainRequest, folder: Path) -> FoldState:
    if not has_begun(folder):
        return "new"
    if request.restart:
        return "restarted"
    if request.validate_only:
        return "validated"
    return "finished" if is_finished(folder) else "begun"
