"""usd_train as a function: one fold, all cases, or the whole cross-validation."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_stale_temporaries
from unisegdiff_pipeline.core.locks import locked, require_free
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.parallel import usable_cores
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.evaluation.summary import fold_table
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME, PLANS_NAME, plan_hash
from unisegdiff_pipeline.inference.model_name import SEPARATOR, ModelName, parse_model_name, require_part
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans, configuration_folder, require_plans
from unisegdiff_pipeline.preprocessing.reference import ReferenceRecord, read_cases, require_undamaged_references
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training.cascade import MASKS, CascadeStart
from unisegdiff_pipeline.training.compilation import is_worthwhile
from unisegdiff_pipeline.training.cross_validation import collect_validation, label_files, unified_reference
from unisegdiff_pipeline.training.data.splits import (
    Split,
    inner_holdout,
    inner_holdout_by_source,
    load_or_create_splits,
    select_split,
    trainable_cases,
)
from unisegdiff_pipeline.training.determinism import deterministic_algorithms
from unisegdiff_pipeline.training.fold import is_finished, require_weights, train_fold
from unisegdiff_pipeline.training.fold_files import (
    has_begun,
    has_begun_anew,
    remove_temporaries,
    remove_training,
    set_aside,
    settle_former,
)
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.follower import follow
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.loggers import require_logger
from unisegdiff_pipeline.training.pretrained import open_start
from unisegdiff_pipeline.training.ranks import ALONE, Ranks, joined
from unisegdiff_pipeline.training.request import (
    DEFAULT_TRAINER,
    FoldPreview,
    FoldResult,
    FoldState,
    TrainRequest,
    TrainResult,
)
from unisegdiff_pipeline.training.resume import (
    as_asked,
    held_out_of,
    like_the_others,
    read_request,
    require_same_training,
    start_record,
    taken_over,
)
from unisegdiff_pipeline.training.schedule import Stopwatch
from unisegdiff_pipeline.training.time_budget import total_iterations
from unisegdiff_pipeline.training.time_estimate import TimeEstimate, estimate_time
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.registry import find_trainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

HOLDOUT_FRACTION = 0.15
CV_SUMMARY_NAME = "cv_summary.json"
MAX_WORKERS = 12


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
        follow(request, ranks, _workers(request, ranks))
        return TrainResult(())


def _train(request: TrainRequest, began: float, ranks: Ranks) -> TrainResult:
    _check_budget(request)
    require_logger(request.logger)
    setting = _open(request, ranks=ranks)
    _require_finished(request, setting)
    _requests(request, setting)  # of all folds, before the first is touched
    _check_data(request, setting)
    made = [path for path in _folders(setting.model_folder) if not path.exists()]
    results = []
    try:
        _take_over_masks(request, setting)
        with StopRequest() as stop:
            for fold in setting.folds:
                results.append(_train_one(request, setting, fold, stop, began))
                began = time.monotonic()
    except BaseException:
        _settle_masks(setting)
        _remove_what_is_empty(setting.model_folder, made)
        raise
    if request.fold != "cv":
        return TrainResult(tuple(results))
    return _summarise_folds(request, results, setting)


def open_fold(request: TrainRequest, stop: StopRequest) -> FoldRun:
    """The cases, plan and folder of one fold, "0" to "4" or "all", without training it."""
    setting = _open(request)
    _check_data(request, setting)
    _take_over_masks(request, setting)
    return _fold_run(_requests(request, setting)[request.fold], setting, request.fold, stop, time.monotonic())


def preview(request: TrainRequest) -> tuple[FoldPreview, ...]:
    """What `train` would do with each fold, by the same rules; nothing is written.

    Raises:
        UsdError: what `train` would refuse before it begins.
    """
    _check_budget(request)
    require_logger(request.logger)
    setting = _open(request, writing=False)
    _require_finished(request, setting)
    _check_plan_of_folds(setting, restarted=_restarted(request, setting))
    _take_over_masks(request, setting, writing=False)
    found = []
    for fold, settled in _requests(request, setting).items():
        run = _fold_run(settled, setting, fold, StopRequest(), time.monotonic())
        if not request.restart:
            require_same_training(run, setting.trainer)
        if run.request.pretrained is not None and (request.restart or not has_begun(run.folder)):
            open_start(run)
        found.append(FoldPreview(fold, run.folder, _state(request, run.folder), settled, run.configuration))
    return tuple(found)


def estimate(request: TrainRequest) -> TimeEstimate | None:
    """How long the folds that are not finished will take on this machine, each as long as the first of them.

    None where there is nothing to train, a time budget says it, or a cascade has not taken over its masks. Nothing is
    written.

    Raises:
        UsdError: what `train` would refuse before it begins.
    """
    setting = _open(request, writing=False)
    requests = _requests(request, setting)
    todo = [fold for fold in requests if request.restart or not is_finished(_fold_folder(setting, fold))]
    if not todo or (setting.cascade is not None and not setting.cascade.are_kept(_cases(setting))):
        return None
    run = _fold_run(requests[todo[0]], setting, todo[0], StopRequest(), time.monotonic())
    found = estimate_time(run, setting.trainer)
    return None if found is None else dataclasses.replace(found, num_folds=len(todo))


def _require_finished(request: TrainRequest, setting: _Setting) -> None:
    """Raise a UsdError where a fold is to be validated that is not trained, before anything is written."""
    for fold in setting.folds if request.validate_only else ():
        require_weights(_fold_folder(setting, fold))


def _take_over_masks(request: TrainRequest, setting: _Setting, writing: bool = True) -> None:
    """Give a cascade the masks that it refines: before its first fold begins anew, and afterwards those of then."""
    if setting.cascade is None:
        return
    if writing:
        _settle_masks(setting)  # of a training that was killed
    if _begun(setting, _restarted(request, setting)):
        setting.cascade.require_kept(_cases(setting))
    elif writing:
        setting.cascade.take_over(_cases(setting), _workers(request, setting.ranks))
        if not request.restart:  # no fold needs the copy of before
            setting.cascade.settle(begun=True)
    else:
        setting.cascade.find_masks(_cases(setting))


def _settle_masks(setting: _Setting) -> None:
    """Keep the masks that a fold has begun anew with, else those of before; called before its own files are settled."""
    if setting.cascade is not None:
        setting.cascade.settle(begun=any(map(has_begun_anew, setting.model_folder.glob("fold_*"))))


def _cases(setting: _Setting) -> tuple[str, ...]:
    """The cases of all folds that are asked for."""
    return tuple(sorted({case for split in setting.folds.values() for case in (*split.train, *split.val)}))


def _restarted(request: TrainRequest, setting: _Setting) -> set[str]:
    """Folds that begin again."""
    return set(setting.folds) if request.restart else set()


def _state(request: TrainRequest, folder: Path) -> FoldState:
    if not has_begun(folder):
        return "new"
    if request.restart:
        return "restarted"
    if request.validate_only:
        return "validated"
    return "finished" if is_finished(folder) else "begun"


def _check_data(request: TrainRequest, setting: _Setting) -> None:
    """Find damaged files before a fold is begun; this reads every byte, so what would be refused anyway comes first."""
    todo = [fold for fold in setting.folds if _has_work(request, _fold_folder(setting, fold))]
    for fold in todo:
        require_free(_lock_path(setting, fold), str(_fold_folder(setting, fold)))
    if todo:
        splits = setting.folds.values()
        setting.data.require_undamaged([case for split in splits for case in (*split.train, *split.val)])
        require_undamaged_references(setting.dataset, [case for split in splits for case in split.val])


def _has_work(request: TrainRequest, folder: Path) -> bool:
    return request.restart or request.validate_only or not is_finished(folder)


def _lock_path(setting: _Setting, fold: str) -> Path:
    return setting.model_folder / f".lock-fold_{fold}"


def _train_one(request: TrainRequest, setting: _Setting, fold: str, stop: StopRequest, began: float) -> FoldResult:
    """One fold under its lock; where it cannot begin, its folder is as it was, with --restart too."""
    folder = _fold_folder(setting, fold)
    with locked(_lock_path(setting, fold), str(folder)):
        settle_former(folder)  # of a training that was killed
        settled = _requests(request, setting)[fold]  # again: another process may have had the fold until now
        run = _fold_run(settled, setting, fold, stop, began)
        run.compiled = _is_compiled(run)
        try:
            if request.restart:
                set_aside(folder, run.validation_cases)
            remove_temporaries(folder)
            remove_stale_temporaries(setting.model_folder)
            _write_model_files(setting, restarted=_restarted(request, setting))
            run.log.open()
            if kept := taken_over(request, settled):
                run.log.say(f"as asked before: {kept}")
            run.log.say(
                f"{setting.plans.dataset_name} {setting.configuration.name} fold {fold}: "
                f"{counted(len(run.train_cases), 'case')} to train on, {len(run.holdout_cases)} held out to choose "
                f"settings, {len(run.validation_cases)} to validate"
            )
            if setting.ranks.size > 1:
                run.log.say(
                    f"{setting.ranks.size} processes share each batch of {run.configuration.training.batch_size}; this "
                    f"one leads"
                )
            records = [setting.records[case] for case in run.train_cases]
            if not any(record.foreground_mm3 or record.num_raters for record in records):
                run.log.say("warning: no case to train on holds any foreground; the answer will be background alone")
            with deterministic_algorithms(bool(settled.deterministic)):
                return train_fold(run, setting.trainer)
        except BaseException:
            if stop.signal_number is None:  # whoever interrupts a training does not wait for its report
                run.log.final_report()
            if not has_begun(folder):
                remove_training(folder, run.validation_cases)
            raise
        finally:
            run.log.close()
            _settle_masks(setting)
            settle_former(folder)


@dataclass(frozen=True)
class _Setting:
    """What a request names, found and checked."""

    trainer: type[Trainer]
    dataset: Path
    plans_path: Path
    plans: Plans
    configuration: ConfigurationPlan
    data: PreprocessedFolder
    records: dict[str, ReferenceRecord]
    folds: dict[str, Split]
    model_folder: Path
    device: torch.device
    ranks: Ranks
    cascade: CascadeStart | None = None


def _open(request: TrainRequest, writing: bool = True, ranks: Ranks = ALONE) -> _Setting:
    trainer = find_trainer(request.trainer)
    dataset = request.roots.preprocessed_dataset(request.dataset)
    plans_name = None if request.plans is None else require_part("--plans", request.plans)
    plans_path = require_plans(dataset, plans_name)
    plans = read_dataclass(Plans, plans_path)
    configuration = _configuration(plans, request, plans_path)
    run = None if request.run is None else require_part("--run", request.run)
    name = ModelName(trainer.__name__, configuration.name, plans_name, run)
    if parse_model_name(name.folder) != name:
        raise UsdError(
            f"--trainer {trainer.__name__} and the configuration {configuration.name} would name the model folder "
            f"{name.folder}, whose parts cannot be told apart; rename the one that holds {SEPARATOR!r}."
        )
    model_folder = request.roots.require_results() / plans.dataset_name / name.folder
    records = {record.case_id: record for record in read_cases(dataset)}
    folds = {name: _usable(split, configuration) for name, split in _folds(request, dataset, records, writing).items()}
    masks = None if configuration.cascade is None else model_folder / configuration.cascade.masks_of / MASKS
    data = PreprocessedFolder(dataset / configuration_folder(configuration.cases_of, plans_name), masks)
    device = ranks.device or resolve_device(request.device)
    cases = [case for split in folds.values() for case in (*split.train, *split.val)]
    data.require_current(cases, plans.labels, configuration)
    return _Setting(
        trainer=trainer,
        dataset=dataset,
        plans_path=plans_path,
        plans=plans,
        configuration=configuration,
        data=data,
        records=records,
        folds=folds,
        model_folder=model_folder,
        device=device,
        ranks=ranks,
        cascade=_cascade_start(request, configuration, plans, data, model_folder),
    )


def _cascade_start(
    request: TrainRequest, configuration: ConfigurationPlan, plans: Plans, data: PreprocessedFolder, model_folder: Path
) -> CascadeStart | None:
    """The model of the same trainer, plan and run whose masks a cascade refines; None for another configuration."""
    name = parse_model_name(model_folder.name)
    if configuration.cascade is None or name is None:
        return None
    other = replace(name, configuration=configuration.cascade.masks_of)
    flags = {"--trainer": request.trainer, "--plans": name.plans, "--run": name.run}
    if request.trainer == DEFAULT_TRAINER:
        del flags["--trainer"]
    asked = "".join(f" {flag} {quoted(value)}" for flag, value in flags.items() if value is not None)
    return CascadeStart(
        source=model_folder.parent / other.folder,
        target=model_folder / configuration.cascade.masks_of,
        data=data,
        plans=plans,
        patch_size=configuration.network.patch_size,
        command=f"usd_train {quoted(request.dataset)} cv -c {other.configuration}{asked}",
    )


def _fold_folder(setting: _Setting, fold: str) -> Path:
    return setting.model_folder / f"fold_{fold}"


def _requests(request: TrainRequest, setting: _Setting) -> dict[str, TrainRequest]:
    """What each fold is asked, all that it was asked before included.

    Raises:
        UsdError: a flag asks for another training than the one that is there.
    """
    folders = {fold: _fold_folder(setting, fold) for fold in setting.folds}
    if request.restart:
        return {fold: as_asked(request, folder) for fold, folder in folders.items()}
    begun = {fold: as_asked(request, folder) for fold, folder in folders.items() if read_request(folder) is not None}
    if len(begun) == len(folders):
        return begun
    new = like_the_others(request, begun)  # the folds of one cross-validation are asked the same
    return {fold: begun[fold] if fold in begun else as_asked(new, folder) for fold, folder in folders.items()}


def _overridden(configuration: ConfigurationPlan, request: TrainRequest) -> ConfigurationPlan:
    training = configuration.training
    if request.batch_size is not None:
        training = dataclasses.replace(training, batch_size=request.batch_size)
    if request.learning_rate is not None:
        training = dataclasses.replace(training, learning_rate=request.learning_rate)
    if request.augmentation is not None:
        training = dataclasses.replace(training, augmentation=request.augmentation)
    return dataclasses.replace(configuration, training=training)


def _fold_run(request: TrainRequest, setting: _Setting, fold: str, stop: StopRequest, began: float) -> FoldRun:
    """Everything one fold needs; nothing is written."""
    _check_start(request, setting.trainer)
    _check_end(request, fold)
    split, folder = setting.folds[fold], _fold_folder(setting, fold)
    kept, held = (split.train, ()) if fold == "all" else _hold_out(request, setting, split, folder)
    configuration = _overridden(setting.configuration, request)
    setting.ranks.items(configuration.training.batch_size)  # refuses more processes than items
    return FoldRun(
        request=request,
        plans=setting.plans,
        configuration=configuration,
        data=setting.data,
        folder=folder,
        train_cases=kept,
        holdout_cases=held,
        validation_cases=split.val,
        device=setting.device,
        workers=_workers(request, setting.ranks),
        plan_hash=plan_hash(setting.configuration),
        log=RunLog(folder, request.logger, _logged_settings(request, setting, configuration, fold)),
        stop=stop,
        watch=Stopwatch(began),
        start=None if request.restart else start_record(folder),
        ranks=setting.ranks,
        compiled=bool(request.compile),
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


def _logged_settings(
    request: TrainRequest, setting: _Setting, configuration: ConfigurationPlan, fold: str
) -> dict[str, object]:
    """What a logger may know of a training: settings, but no case, path or image."""
    training = configuration.training
    return {
        "dataset": setting.plans.dataset_name,
        "configuration": configuration.name,
        "trainer": setting.trainer.__name__,
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
    request: TrainRequest, setting: _Setting, split: Split, folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cases to train on, and cases held out: by the seed, or those of the phase 1 that is taken over.

    What has been begun keeps the cases it holds out: earlier versions chose others. Cases of a patient that is held
    out are not trained on, should they have come since. Where phase 1 holds out other cases than this fold trains on,
    it is of another fold and refused later, with its name.
    """
    records = setting.records
    groups = {case: record.group for case, record in records.items()}
    taken_over = () if request.restart else held_out_of(folder)
    if not taken_over and request.phase_1_from is not None:
        taken_over = held_out_of(request.phase_1_from)
    if taken_over and set(taken_over) < set(split.train):
        patients = {groups[case] for case in taken_over}
        return tuple(case for case in sorted(split.train) if groups[case] not in patients), taken_over
    volumes = {case: record.foreground_mm3 for case, record in records.items()}
    if setting.configuration.sources is not None:
        return inner_holdout_by_source(split.train, groups, HOLDOUT_FRACTION, request.seed_or_default, volumes)
    kept, held = inner_holdout(split.train, groups, HOLDOUT_FRACTION, request.seed_or_default, volumes)
    # In an order of their own, because a short training looks at the first ones only.
    return kept, tuple(np.random.default_rng(request.seed_or_default).permutation(held).tolist())


def _folders(model_folder: Path) -> tuple[Path, ...]:
    """The folders that a training may have to make for its model, the innermost first."""
    return model_folder, model_folder.parent, model_folder.parent.parent


def _remove_what_is_empty(model_folder: Path, made: Sequence[Path]) -> None:
    """Remove what this command made for a model of which no fold has begun, so that it is not taken for one."""
    in_use = any(path for pattern in ("fold_*", ".lock-*") for path in model_folder.glob(pattern))
    if model_folder in made and not in_use:
        for name in (PLANS_NAME, DATASET_NAME):
            (model_folder / name).unlink(missing_ok=True)
        for copy in model_folder.glob(f"*/{MASKS}"):  # of the model whose masks a cascade refines
            shutil.rmtree(copy.parent)
    for folder in made:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def default_workers(processes: int = 1) -> int:
    """Workers that prepare patches, for each of the processes that train on this machine.

    All together take one core fewer than there are for each of these, but each has at least one.
    """
    return min(MAX_WORKERS, max(1, usable_cores() // processes - 1))


def _workers(request: TrainRequest, ranks: Ranks) -> int:
    return default_workers(ranks.local_size) if request.workers is None else request.workers


def _check_budget(request: TrainRequest) -> None:
    given = {
        "--max-time": request.max_time_s,
        "--epochs": request.epochs,
        "--iterations": request.iterations,
    }
    named = [f"{flag} {value:g}" for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsdError(f"{' and '.join(named)} were both given, but a training has one budget; keep one of them.")


def _configuration(plans: Plans, request: TrainRequest, path: Path) -> ConfigurationPlan:
    name = request.configuration or plans.recommended_configuration
    if name not in plans.configurations:
        raise UsdError(
            f"configuration {name!r} is not in {path}; it has {', '.join(plans.configurations)}. "
            f"Choose one with -c, or plan again with usd_plan -d {quoted(plans.dataset_name)}."
        )
    configuration = plans.configurations[name]
    if configuration.stages is None:
        raise UsdError(
            f"the stages of configuration {name!r} are not planned yet in {path}; "
            f"finish preprocessing with usd_preprocess -d {quoted(plans.dataset_name)} -c {name}."
        )
    return configuration


def _folds(
    request: TrainRequest, dataset: Path, records: dict[str, ReferenceRecord], writing: bool = True
) -> dict[str, Split]:
    raw_folder = None if request.roots.raw is None else request.roots.raw / dataset.name
    if request.fold == "all":
        return {"all": Split(trainable_cases(dataset, raw_folder, records), ())}
    splits = load_or_create_splits(dataset, raw_folder, writing=writing, folds=request.splits)
    if request.fold == "cv":
        return {str(i): split for i, split in enumerate(splits)}
    if not request.fold.isdigit():
        raise UsdError(f"fold {request.fold!r} is unknown; use 0 to {len(splits) - 1}, all or cv.")
    number = int(request.fold)
    return {str(number): select_split(splits, number)}


def _usable(split: Split, configuration: ConfigurationPlan) -> Split:
    """A fold without the cases of sources that the configuration has no use for, as 3D ones of 2D images."""
    if configuration.sources is None:
        return split
    known = configuration.sources.plans
    train, val = (tuple(c for c in cases if source_of_case(c) in known) for cases in (split.train, split.val))
    return Split(train, val)


def _check_plan_of_folds(setting: _Setting, restarted: set[str]) -> None:
    """Raise a UsdError where the model folder holds folds of another plan, other than those that begin again now."""
    folder, configuration = setting.model_folder, setting.configuration
    path = folder / PLANS_NAME
    if not path.is_file():
        return
    former = read_dataclass(Plans, path).configurations.get(configuration.name)
    others = _begun(setting, restarted)
    if others and (former is None or plan_hash(former) != plan_hash(configuration)):
        raise UsdError(
            f"{folder} holds {', '.join(sorted(others))}, trained with another plan than {setting.plans_path} is now. "
            f"Restore the former plan, train beside it with --run NAME, or move {folder} away and train anew."
        )


def _begun(setting: _Setting, restarted: set[str]) -> list[str]:
    """Folders of the folds of the model that have begun, without those that begin again now."""
    folders = setting.model_folder.glob("fold_*")
    return [p.name for p in folders if p.name.removeprefix("fold_") not in restarted and has_begun(p)]


def _write_model_files(setting: _Setting, restarted: set[str]) -> None:
    """Put plans.json and dataset.json beside the folds, so that a model can be used without its data."""
    _check_plan_of_folds(setting, restarted)
    write_json(setting.model_folder / PLANS_NAME, setting.plans)
    write_json(setting.model_folder / DATASET_NAME, read_json(setting.dataset / DATASET_NAME))


def _summarise_folds(request: TrainRequest, results: list[FoldResult], setting: _Setting) -> TrainResult:
    path = setting.model_folder / CV_SUMMARY_NAME
    write_json(path, {"folds": [{"fold": r.fold, "seconds": r.seconds, "scores": r.scores} for r in results]})
    table = fold_table({result.fold: {name: s["dice"] for name, s in result.scores.items()} for result in results})
    cases = [case for split in setting.folds.values() for case in split.val]
    collected = collect_validation(
        setting.model_folder,
        [result.folder for result in results],
        label_files(setting.dataset, request.roots.raw, cases),
        setting.plans.file_ending,
    )
    unified = unified_reference(setting.dataset, request.roots.raw)
    return TrainResult(
        tuple(results), path, table, collected if unified is None else replace(collected, labels=unified)
    )
