"""usd_train as a function: one fold, all cases, or the whole cross-validation."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unisegdiff_pipeline.evaluation.summary import fold_table
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, plan_hash
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.parallel import usable_cores
from unisegdiff_pipeline.io.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans
from unisegdiff_pipeline.preprocessing.reference import CaseRecord, read_cases, require_undamaged_references
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.reports.training_log import LOG_NAME
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME
from unisegdiff_pipeline.training.continuing import PHASE_1_NAME, held_out_of
from unisegdiff_pipeline.training.fold import train_fold
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.registry import find_trainer
from unisegdiff_pipeline.training.request import FoldResult, TrainRequest, TrainResult
from unisegdiff_pipeline.training.run_log import RunLog
from unisegdiff_pipeline.training.schedule import Stopwatch
from unisegdiff_pipeline.training.splits import Split, inner_holdout, load_or_create_splits, select_split
from unisegdiff_pipeline.training.trainer import FoldRun, Trainer

HOLDOUT_SHARE = 0.15
CV_SUMMARY_NAME = "cv_summary.json"
MAX_WORKERS = 12


def train(request: TrainRequest, began: float | None = None) -> TrainResult:
    """Train what the request asks for; finished folds are skipped, interrupted ones continued.

    Args:
        request: what to train.
        began: time.monotonic() from which the first fold's time counts, so that imports may count; by default now.

    Raises:
        UsdError: data, plan or budget cannot be used; the message says what to do.
        TrainingInterrupted: on SIGINT or SIGTERM, with a checkpoint saved.
    """
    began = time.monotonic() if began is None else began
    _check_budget(request)
    setting = _open(request)
    _write_model_files(setting, restarted=set(setting.folds) if request.restart else set())
    results = []
    with StopRequest() as stop:
        for fold in setting.folds:
            run = _fold_run(request, setting, fold, stop, began)
            try:
                results.append(train_fold(run, setting.trainer))
            except BaseException:
                run.log.final_report()
                _remove_if_not_begun(run.folder)
                raise
            finally:
                run.log.close()
            began = time.monotonic()
    if request.fold != "cv":
        return TrainResult(tuple(results))
    return _summarise_folds(results, setting.model_folder)


def open_fold(request: TrainRequest, stop: StopRequest) -> FoldRun:
    """The cases, plan and folder of one fold, "0" to "4" or "all", without training it."""
    return _fold_run(request, _open(request), request.fold, stop, time.monotonic())


@dataclass(frozen=True)
class _Setting:
    """What a request names, found and checked."""

    trainer: type[Trainer]
    dataset: Path
    plans: Plans
    configuration: ConfigurationPlan
    data: PreprocessedFolder
    records: dict[str, CaseRecord]
    folds: dict[str, Split]
    model_folder: Path
    device: torch.device


def _open(request: TrainRequest) -> _Setting:
    trainer = find_trainer(request.trainer)
    dataset = request.roots.preprocessed_dataset(request.dataset)
    plans = read_dataclass(Plans, dataset / "plans.json")
    configuration = _configuration(plans, request, dataset)
    model_folder = request.roots.require_results() / plans.dataset_name / f"{trainer.__name__}__{configuration.name}"
    records = {record.case_id: record for record in read_cases(dataset)}
    folds = _folds(request, dataset, records)
    data = PreprocessedFolder(dataset / configuration.name)
    device = resolve_device(request.device)
    cases = [case for split in folds.values() for case in (*split.train, *split.val)]
    data.require_current(cases, plans.labels, configuration.preprocessing)
    data.require_undamaged(cases)
    require_undamaged_references(dataset, [case for split in folds.values() for case in split.val])
    return _Setting(trainer, dataset, plans, configuration, data, records, folds, model_folder, device)


def _fold_run(request: TrainRequest, setting: _Setting, fold: str, stop: StopRequest, began: float) -> FoldRun:
    """Everything one fold needs; with --restart its former folder is removed, once all else has been settled."""
    split, plans = setting.folds[fold], setting.plans
    folder = setting.model_folder / f"fold_{fold}"
    kept, held = (split.train, ()) if fold == "all" else _hold_out(request, split, setting.records, folder)
    if request.restart and folder.is_dir():
        shutil.rmtree(folder)
    log = RunLog(folder, request.tensorboard)
    log.say(
        f"{plans.dataset_name} {setting.configuration.name} fold {fold}: {len(kept)} cases to train on, {len(held)} "
        f"held out to choose settings, {len(split.val)} to validate"
    )
    return FoldRun(
        request=request,
        plans=plans,
        configuration=setting.configuration,
        data=setting.data,
        folder=folder,
        train_cases=kept,
        holdout_cases=held,
        validation_cases=split.val,
        device=setting.device,
        workers=default_workers() if request.workers is None else request.workers,
        plan_hash=plan_hash(setting.configuration),
        log=log,
        stop=stop,
        watch=Stopwatch(began),
    )


def _hold_out(
    request: TrainRequest, split: Split, records: dict[str, CaseRecord], folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cases to train on, and cases held out: by the seed, or those of the phase 1 that is taken over.

    Cases of a patient that is held out are not trained on, should they have come since. Where phase 1 holds out other
    cases than this fold trains on, it is of another fold and refused later, with its name.
    """
    groups = {case: record.group for case, record in records.items()}
    taken_over: tuple[str, ...] = ()
    if request.phase_1_from is not None:
        # What has been begun, and goes on, knows them too, should the source have gone since.
        begun = () if request.restart else held_out_of(folder)
        taken_over = begun or held_out_of(request.phase_1_from)
    if taken_over and set(taken_over) < set(split.train):
        patients = {groups[case] for case in taken_over}
        return tuple(case for case in sorted(split.train) if groups[case] not in patients), taken_over
    volumes = {case: record.foreground_mm3 for case, record in records.items()}
    kept, held = inner_holdout(split.train, groups, HOLDOUT_SHARE, request.seed, volumes)
    # In an order of their own, because a short training looks at the first ones only.
    return kept, tuple(np.random.default_rng(request.seed).permutation(held).tolist())


def _remove_if_not_begun(folder: Path) -> None:
    """Remove a fold's folder in which nothing has been trained, so that it is not taken for a training."""
    if not any((folder / name).exists() for name in (LOG_NAME, CHECKPOINT_NAME, PHASE_1_NAME, WEIGHTS_NAME)):
        shutil.rmtree(folder, ignore_errors=True)


def default_workers() -> int:
    """Processes that prepare patches: one fewer than the cores, at least one."""
    return min(MAX_WORKERS, max(1, usable_cores() - 1))


def _check_budget(request: TrainRequest) -> None:
    given = {
        "--max-time": request.max_time_s,
        "--epochs": request.epochs,
        "--iterations": request.iterations,
    }
    named = [f"{flag} {value:g}" for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsdError(f"{' and '.join(named)} were both given, but a training has one budget; keep one of them.")


def _configuration(plans: Plans, request: TrainRequest, dataset: Path) -> ConfigurationPlan:
    name = request.configuration or plans.recommended_configuration
    if name not in plans.configurations:
        raise UsdError(
            f"configuration {name!r} is not in {dataset / 'plans.json'}; it has {', '.join(plans.configurations)}. "
            f"Choose one with -c, or plan again with usd_plan -d {plans.dataset_name}."
        )
    configuration = plans.configurations[name]
    if configuration.stages is None:
        raise UsdError(
            f"the stages of configuration {name!r} are not planned yet in {dataset / 'plans.json'}; "
            f"finish preprocessing with usd_preprocess -d {plans.dataset_name} -c {name}."
        )
    training = configuration.training
    if request.batch_size is not None:
        training = dataclasses.replace(training, batch_size=request.batch_size)
    if request.learning_rate is not None:
        training = dataclasses.replace(training, learning_rate=request.learning_rate)
    return dataclasses.replace(configuration, training=training)


def _folds(request: TrainRequest, dataset: Path, records: dict[str, CaseRecord]) -> dict[str, Split]:
    if request.fold == "all":
        return {"all": Split(tuple(sorted(records)), ())}
    raw_folder = None if request.roots.raw is None else request.roots.raw / dataset.name
    splits = load_or_create_splits(dataset, raw_folder)
    if request.fold == "cv":
        return {str(i): split for i, split in enumerate(splits)}
    if not request.fold.isdigit():
        raise UsdError(f"fold {request.fold!r} is unknown; use 0 to {len(splits) - 1}, all or cv.")
    return {request.fold: select_split(splits, int(request.fold))}


def _write_model_files(setting: _Setting, restarted: set[str]) -> None:
    """Put plans.json and dataset.json beside the folds, so that a model can be used without its data.

    Raises:
        UsdError: where the folder holds folds of another plan, other than those that begin again now.
    """
    folder, dataset, configuration = setting.model_folder, setting.dataset, setting.configuration
    path = folder / "plans.json"
    if path.is_file():
        former = read_dataclass(Plans, path).configurations.get(configuration.name)
        others = [p.name for p in folder.glob("fold_*") if p.name.removeprefix("fold_") not in restarted]
        if others and (former is None or plan_hash(former) != plan_hash(configuration)):
            raise UsdError(
                f"{folder} holds {', '.join(sorted(others))}, trained with another plan than {dataset / 'plans.json'} "
                f"is now. Restore the former plans.json, or move {folder} away and train anew."
            )
    write_json(path, setting.plans)
    write_json(folder / "dataset.json", read_json(dataset / "dataset.json"))


def _summarise_folds(results: list[FoldResult], model_folder: Path) -> TrainResult:
    path = model_folder / CV_SUMMARY_NAME
    write_json(path, {"folds": [{"fold": r.fold, "seconds": r.seconds, "scores": r.scores} for r in results]})
    table = fold_table({result.fold: {name: s["dice"] for name, s in result.scores.items()} for result in results})
    print(f"Dice on the validation cases of each fold\n{table}\nwritten to {path}", flush=True)
    return TrainResult(tuple(results), path, table)
