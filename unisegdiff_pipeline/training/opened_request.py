"""What a request to train names, found and checked: trainer, plan, preprocessed cases, folds, model folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.inference.model_name import SEPARATOR, ModelName, parse_model_name, require_part
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans, configuration_folder, require_plans
from unisegdiff_pipeline.preprocessing.reference import ReferenceRecord, read_cases
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training.cascade import MASKS, CascadeStart
from unisegdiff_pipeline.training.data.loader import default_workers
from unisegdiff_pipeline.training.data.splits import Split, load_or_create_splits, select_split, trainable_cases
from unisegdiff_pipeline.training.loggers import require_logger
from unisegdiff_pipeline.training.ranks import ALONE, Ranks
from unisegdiff_pipeline.training.request import DEFAULT_TRAINER, TrainRequest
from unisegdiff_pipeline.training.trainers.registry import find_trainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

FOLD_LOCK = ".lock-fold_{}"


@dataclass(frozen=True)
class OpenedRequest:
    """What a request names, found and checked."""

    request: TrainRequest
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

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases of all folds that are asked for."""
        return tuple(sorted({case for split in self.folds.values() for case in (*split.train, *split.val)}))

    @property
    def restarted(self) -> set[str]:
        """Folds that begin again."""
        return set(self.folds) if self.request.restart else set()

    @property
    def workers(self) -> int:
        """Processes that prepare patches for this one."""
        return workers_of(self.request, self.ranks)

    def fold_folder(self, fold: str) -> Path:
        """Results folder of a fold."""
        return self.model_folder / f"fold_{fold}"

    def lock_path(self, fold: str) -> Path:
        """The file whose lock a process holds that trains a fold."""
        return self.model_folder / FOLD_LOCK.format(fold)


def open_request(request: TrainRequest, writing: bool = True, ranks: Ranks = ALONE) -> OpenedRequest:
    """Find what the request names; nothing is written but, where `writing`, the folds of a data set without any.

    Raises:
        UsdError: it contradicts itself, or something that it names is not there or does not agree with the plan.
    """
    _check_budget(request)
    _check_all(request)
    require_logger(request.logger)
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
    return OpenedRequest(
        request=request,
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


def workers_of(request: TrainRequest, ranks: Ranks) -> int:
    """Processes that prepare patches for this one: as asked, else by the cores of the machine."""
    return default_workers(ranks.local_size) if request.workers is None else request.workers


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


def _check_budget(request: TrainRequest) -> None:
    given = {
        "--max-time": request.max_time_s,
        "--epochs": request.epochs,
        "--iterations": request.iterations,
    }
    named = [f"{flag} {value:g}" for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsdError(f"{' and '.join(named)} were both given, but a training has one budget; keep one of them.")


def _check_all(request: TrainRequest) -> None:
    """A model on all cases has neither folds to make nor cases to validate."""
    given = {
        f"--splits {request.splits}": request.splits != "default",
        f"--save-validation {request.save_validation}": request.save_validation is not None,
        "--val": request.validate_only,
    }
    if request.fold == "all" and (void := [flag for flag, is_given in given.items() if is_given]):
        raise UsdError(
            f"FOLD all trains on every case and validates none, so that {' and '.join(void)} would do nothing; "
            f"leave {'it' if len(void) == 1 else 'them'} out, or name a fold (0, 1, ...) or cv."
        )


def _configuration(plans: Plans, request: TrainRequest, path: Path) -> ConfigurationPlan:
    name = request.configuration or plans.recommended_configuration
    if name not in plans.configurations:
        decision = plans.decisions.get(f"configurations.{name}")
        reason = f" ({decision})" if decision else ""
        raise UsdError(
            f"configuration {name!r} is not in {path}{reason}; it has {', '.join(plans.configurations)}. "
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
