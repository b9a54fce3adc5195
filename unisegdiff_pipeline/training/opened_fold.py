"""One fold of a request, ready to be trained: what it is asked, its cases, its hold-out, its log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.model_folder import plan_hash
from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.training.data.splits import Split, inner_holdout, inner_holdout_by_source
from unisegdiff_pipeline.training.fold import require_weights
from unisegdiff_pipeline.training.fold_files import has_begun
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.opened_request import OpenedRequest
from unisegdiff_pipeline.training.pretrained import open_start, require_fair_phase_1
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.resume import (
    as_asked,
    held_out_of,
    like_the_others,
    phase_1_record,
    read_request,
    require_phase_1_of_plan,
    start_record,
)
from unisegdiff_pipeline.training.schedule import Stopwatch
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

HOLDOUT_FRACTION = 0.15


def requests_of_folds(opened: OpenedRequest) -> dict[str, TrainRequest]:
    """What each fold is asked, all that it was asked before included.

    Raises:
        UsdError: a flag asks for another training than the one that is there, or a fold is to be validated that is not
            trained.
    """
    request = opened.request
    for fold in opened.folds if request.validate_only else ():
        require_weights(opened.fold_folder(fold))
    folders = {fold: opened.fold_folder(fold) for fold in opened.folds}
    if request.restart:
        return {fold: as_asked(request, folder) for fold, folder in folders.items()}
    begun = {fold: as_asked(request, folder) for fold, folder in folders.items() if read_request(folder) is not None}
    if len(begun) == len(folders):
        return begun
    new = like_the_others(request, begun)  # the folds of one cross-validation are asked the same
    return {fold: begun[fold] if fold in begun else as_asked(new, folder) for fold, folder in folders.items()}


def fold_run(opened: OpenedRequest, request: TrainRequest, fold: str, stop: StopRequest, began: float) -> FoldRun:
    """Everything one fold needs, of a request that leaves nothing open it was asked before; nothing is written.

    Raises:
        UsdError: what is asked contradicts itself, or leaves no case to train on.
    """
    _check_start(request, opened.trainer)
    _check_end(request, fold)
    split, folder = opened.folds[fold], opened.fold_folder(fold)
    kept, held = (split.train, ()) if fold == "all" else _hold_out(request, opened, split, folder)
    configuration = _overridden(opened.configuration, request)
    opened.ranks.items(configuration.training.batch_size)  # refuses more processes than items
    return FoldRun(
        request=request,
        plans=opened.plans,
        configuration=configuration,
        data=opened.data,
        folder=folder,
        train_cases=kept,
        holdout_cases=held,
        validation_cases=split.val,
        device=opened.device,
        workers=opened.workers,
        plan_hash=plan_hash(opened.configuration),
        log=RunLog(folder, request.logger, _logged_settings(request, opened, configuration, fold)),
        stop=stop,
        watch=Stopwatch(began),
        start=None if request.restart else start_record(folder),
        phase_1_seen=None if request.restart else phase_1_record(folder),
        ranks=opened.ranks,
    )


def require_start(run: FoldRun, warning: bool = True) -> None:
    """Refuse a fold that begins where it cannot start from what its request names; nothing is kept of what is read.

    Args:
        run: the fold; one that has begun goes on from its own files.
        warning: see `open_start`.

    Raises:
        UsdError: it is what begins again; also as `open_start`, `require_fair_phase_1` and `require_phase_1_of_plan`.
    """
    request = run.request
    if has_begun(run.folder) and not request.restart:
        return
    for flag, path in (("--pretrained", request.pretrained), ("--phase-1-from", request.phase_1_from)):
        own = (run.folder.resolve(), run.folder.parent.resolve())
        if request.restart and path is not None and path.resolve() in own:
            raise UsdError(
                f"{flag} {path} names what --restart removes; leave --restart out and train beside it with --run NAME."
            )
    if request.pretrained is not None:
        open_start(run, warning)
    if request.phase_1_from is not None:
        require_fair_phase_1(run, request.phase_1_from, warning)
        require_phase_1_of_plan(run, request.phase_1_from)


def _overridden(configuration: ConfigurationPlan, request: TrainRequest) -> ConfigurationPlan:
    training = configuration.training
    if request.batch_size is not None:
        training = dataclasses.replace(training, batch_size=request.batch_size)
    if request.learning_rate is not None:
        training = dataclasses.replace(training, learning_rate=request.learning_rate)
    if request.augmentation is not None:
        training = dataclasses.replace(training, augmentation=request.augmentation)
    return dataclasses.replace(configuration, training=training)


def _logged_settings(
    request: TrainRequest, opened: OpenedRequest, configuration: ConfigurationPlan, fold: str
) -> dict[str, object]:
    """What a logger may know of a training: settings, but no case, path or image."""
    training = configuration.training
    return {
        "dataset": opened.plans.dataset_name,
        "configuration": configuration.name,
        "trainer": opened.trainer.__name__,
        "fold": fold,
        "seed": request.seed_or_default,
        "patch_size": "x".join(map(str, configuration.network.patch_size)),
        **{name: getattr(training, name) for name in ("batch_size", "learning_rate", "num_epochs", "augmentation")},
    }


def _check_start(request: TrainRequest, trainer: type[Trainer]) -> None:
    """Raise a UsdError where what is asked of the start contradicts itself."""
    if request.phase_2_only and request.pretrained is None:
        raise UsdError("--phase-2-only needs a segmenter: name one with --pretrained SOURCE.")
    if request.phase_2_only and not issubclass(trainer, DiffusionTrainer):
        raise UsdError(f"--phase-2-only leaves nothing to train: {trainer.__name__} has no phase 2; leave it out.")
    if request.pretrained is not None and request.phase_1_from is not None:
        raise UsdError(
            f"--pretrained {request.pretrained} and --phase-1-from {request.phase_1_from} both say where the segmenter "
            f"comes from; keep one of them."
        )


def _check_end(request: TrainRequest, fold: str) -> None:
    """Raise a UsdError where what is asked of the end of a fold cannot be."""
    if request.deterministic and request.max_time_s is not None:
        raise UsdError(
            f"--deterministic goes with --epochs or --iterations: how far a training comes in --max-time "
            f"{request.max_time_s:g} s is never the same. Keep one of the two."
        )
    if request.deterministic and request.compile:
        raise UsdError(
            "--compile chooses its kernels by the clock, so that --deterministic cannot be kept; give one of the two."
        )
    if request.patience is not None and fold == "all":
        raise UsdError(
            f"--patience {request.patience} needs held-out cases, and fold all has none; leave it out, or give "
            f"--epochs as long as the numbered folds took."
        )


def _hold_out(
    request: TrainRequest, opened: OpenedRequest, split: Split, folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cases to train on, and cases held out: by the seed, or those of the phase 1 that is taken over.

    What has been begun keeps the cases it holds out: earlier versions chose others. Cases of a patient that is held
    out are not trained on, should they have come since. Where phase 1 holds out other cases than this fold trains on,
    it is of another fold and refused later, with its name.
    """
    records = opened.records
    groups = {case: record.group for case, record in records.items()}
    taken_over = () if request.restart else held_out_of(folder)
    if not taken_over and request.phase_1_from is not None:
        taken_over = held_out_of(request.phase_1_from)
    if taken_over and set(taken_over) < set(split.train):
        patients = {groups[case] for case in taken_over}
        return tuple(case for case in sorted(split.train) if groups[case] not in patients), taken_over
    volumes = {case: record.foreground_mm3 for case, record in records.items()}
    if opened.configuration.sources is not None:
        return inner_holdout_by_source(split.train, groups, HOLDOUT_FRACTION, request.seed_or_default, volumes)
    kept, held = inner_holdout(split.train, groups, HOLDOUT_FRACTION, request.seed_or_default, volumes)
    # In an order of their own, because a short training looks at the first ones only.
    return kept, tuple(np.random.default_rng(request.seed_or_default).permutation(held).tolist())
