"""What a fold was asked, and what may be continued or taken over.

A fold keeps its request in request.json. The command repeated without a flag continues what was asked; a flag that asks
for another thing is refused, since the weights would then be those of neither. What is kept of validation cases changes
no weights: another value is taken, without one that of before. Workers, device, checkpoint interval and logger are not
kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch

from unisegdiff_pipeline.core.bounds import Range
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import former_names, from_jsonable, read_dataclass, read_object, to_jsonable
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.inference.model_folder import PLANS_NAME, WEIGHTS_NAME, plan_difference
from unisegdiff_pipeline.planning.plans import MAX_BATCH, Augmentation, Plans, TrainingPlan
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.pretrained_start import SeenCases, StartRecord
from unisegdiff_pipeline.training.request import Kept, TrainRequest, start_name, start_path
from unisegdiff_pipeline.training.trainers.trainer import Trainer

REQUEST_NAME = "request.json"
PHASE_1_NAME = "phase_1.safetensors"
PHASE_1_FACTS_NAME = "phase_1.json"
START_NAME = "pretrained.safetensors"
LENGTHS = ("max_time_s", "epochs", "iterations")
PATHS = ("pretrained", "phase_1_from")
OTHERS = ("batch_size", "learning_rate", "augmentation", "seed", "patience", "deterministic", "phase_2_only")
ASKED = (*LENGTHS, *OTHERS, *PATHS)
CHANGEABLE = ("save_validation",)  # of these another value is taken
ASKED_VALUES = {  # the flag that asks for each, and what request.json may hold of it
    "max_time_s": ("--max-time", Annotated[float, Range(0, 1e9, low_open=True)] | None),
    "epochs": ("--epochs", Annotated[int, Range(1, 1e9)] | None),
    "iterations": ("--iterations", Annotated[int, Range(1, 1e12)] | None),
    "batch_size": ("--batch-size", Annotated[int, Range(1, MAX_BATCH)] | None),
    "learning_rate": ("--lr", Annotated[float, Range(0, 10, low_open=True)] | None),
    "augmentation": ("--augmentation", Augmentation | None),
    "seed": ("--seed", Annotated[int, Range(0, 2**63)] | None),
    "patience": ("--patience", Annotated[int, Range(1, 1e6)] | None),
    "deterministic": ("--deterministic", bool | None),
    "phase_1_from": ("--phase-1-from", str | None),
    "pretrained": ("--pretrained", str | None),
    "phase_2_only": ("--phase-2-only", bool | None),
    "save_validation": ("--save-validation", Kept | None),
}
WAYS_OUT = "Leave the flag out to go on with it, train beside it with --run NAME, or begin again with --restart."
LISTED_CASES = 5


class OtherRequestError(UsdError):
    """A fold is asked for another training than the one that is there."""


def describe_training(run: FoldRun, trainer: type[Trainer]) -> dict[str, Any]:
    """What request.json keeps: what was asked, what of it decides the weights, and which cases have which part."""
    source = run.request.phase_1_from
    started: dict[str, Any] = {}
    if run.request.pretrained is not None and run.start is not None:
        started = {
            "pretrained": start_name(run.request.pretrained),
            "pretrained_hash": run.start.hash,
            "pretrained_cases": run.start.seen.cases,
            "pretrained_cases_known": run.start.seen.all_known,
            "phase_2_only": run.request.phase_2_only,
        }
    if source is not None and run.phase_1_seen is not None:
        started |= {"phase_1_cases": run.phase_1_seen.cases, "phase_1_cases_known": run.phase_1_seen.all_known}
    return {
        "trainer": trainer.__name__,
        "configuration": run.configuration.name,
        "training": run.configuration.training,
        **{name: getattr(run.request, name) for name in (*LENGTHS, *OTHERS) if name not in ("seed", "phase_2_only")},
        "phase_1_from": None if source is None else str(source.absolute()),
        **started,
        "save_validation": run.request.save_validation,
        "seed": run.seed,
        "device": str(run.device),
        "torch": torch.__version__,
        "train_cases": run.train_cases,
        "holdout_cases": run.holdout_cases,
        "validation_cases": run.validation_cases,
    }


def read_request(folder: Path) -> dict[str, Any] | None:
    """What was asked of the training in a fold's folder; None where none has begun.

    Raises:
        UsdError: the file is damaged.
    """
    path = folder / REQUEST_NAME
    if not path.is_file():
        return None
    stored = _read_request(path)
    if "learning_rate" not in stored:
        # Folders of earlier versions say what batch size and learning rate came to, not whether a flag gave them.
        stored |= {name: stored["training"].get(name) for name in ("batch_size", "learning_rate")}
    names = former_names(TrainingPlan)
    stored["training"] = {names.get(name, name): value for name, value in stored["training"].items()}
    stored["training"].setdefault("augmentation", "default")  # there was no other one
    for name in PATHS:
        if stored.get(name) is not None:
            stored[name] = str(start_path(stored[name]).absolute())
    return stored


def _read_request(path: Path) -> dict[str, Any]:
    """request.json as `describe_training` wrote it; keys that earlier versions did not write may be missing."""
    others = {
        **dict.fromkeys(("train_cases", "holdout_cases", "validation_cases"), tuple[str, ...]),
        "training": dict[str, Any],
        "pretrained_hash": str | None,
        **dict.fromkeys(("pretrained_cases", "phase_1_cases"), dict[str, tuple[str, ...]] | None),
        **dict.fromkeys(("pretrained_cases_known", "phase_1_cases_known"), bool | None),
    }
    try:
        request = read_object(path)
        for name, kind in {**{name: kind for name, (_, kind) in ASKED_VALUES.items()}, **others}.items():
            from_jsonable(kind, request.get(name), name)  # type: ignore[arg-type]
    except UsdError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UsdError(f"{where}{error} Restore the file, or begin the fold again with --restart.") from None
    return request


def as_asked(request: TrainRequest, folder: Path) -> TrainRequest:
    """The request with all that is left open as it was asked of the training in `folder`, the seed filled in.

    Raises:
        OtherRequestError: a flag asks for another training than the one that is there; names both values.
        UsdError: a value that request.json may not hold, so that the training could not be continued.
    """
    former = None if request.restart else read_request(folder)
    if former is None:
        for name in (*LENGTHS, *OTHERS):
            flag, kind = ASKED_VALUES[name]
            from_jsonable(kind, to_jsonable(getattr(request, name)), flag)  # type: ignore[arg-type]
        return dataclasses.replace(request, seed=request.seed_or_default)
    differences = [
        f"{old} and is now asked for {new}"
        for old, new in (_length(request, former), *(_value(request, former, name) for name in (*OTHERS, *PATHS)))
        if new is not None and old != new
    ]
    if differences:
        raise OtherRequestError(f"{folder} was trained with {', with '.join(differences)}. {WAYS_OUT}")
    asked: dict[str, Any] = {name: former.get(name) for name in ASKED}
    asked |= {name: Path(asked[name]) for name in PATHS if asked[name] is not None}
    asked |= {name: getattr(request, name) or former.get(name) for name in CHANGEABLE}
    return dataclasses.replace(request, **asked)


def start_record(folder: Path) -> StartRecord | None:
    """What the training in a fold's folder started from; None where it was from random weights, or has not begun."""
    former = read_request(folder)
    if former is None or former.get("pretrained_hash") is None:
        return None
    return StartRecord(former["pretrained_hash"], recorded_cases(former, "pretrained_cases"))


def phase_1_record(folder: Path) -> SeenCases | None:
    """Cases that the phase 1 which the training in a fold's folder took over has seen; None for none."""
    former = read_request(folder)
    if former is None or former.get("phase_1_cases") is None:
        return None
    return recorded_cases(former, "phase_1_cases")


def recorded_cases(request: Mapping[str, Any], key: str) -> SeenCases:
    """What request.json says of "pretrained_cases" or "phase_1_cases"; without the key there are none."""
    cases = {name: tuple(cases) for name, cases in (request.get(key) or {}).items()}
    return SeenCases(cases, all_known=request.get(f"{key}_known") is not False)  # earlier versions did not say


def taken_over(request: TrainRequest, settled: TrainRequest) -> str:
    """The flags that a request leaves open and that were given before, for the log; empty where there are none."""
    names = [
        name for name in (*ASKED, *CHANGEABLE) if getattr(request, name) is None and getattr(settled, name) is not None
    ]
    return ", ".join(_flag(name, getattr(settled, name)) for name in names if name != "seed" or settled.seed)


def like_the_others(request: TrainRequest, others: Mapping[str, TrainRequest]) -> TrainRequest:
    """The request of a cross-validation's next fold: what is left open is as it was asked of the folds begun.

    Args:
        request: what the command says.
        others: the requests of the folds begun, by name.

    Raises:
        UsdError: they were asked different things, so that it is not known what the next one is to be.
    """
    taken: dict[str, Any] = {}
    for names in (LENGTHS, *((name,) for name in (*OTHERS, "pretrained"))):  # each fold takes a phase 1 of its own
        if any(getattr(request, name) is not None for name in names):
            continue
        asked = {fold: tuple(getattr(other, name) for name in names) for fold, other in others.items()}
        if len(set(asked.values())) > 1:
            parts = ", ".join(f"fold {fold}: {_said(names, values)}" for fold, values in asked.items())
            raise UsdError(
                f"the folds of this cross-validation were asked different things ({parts}), so what the others are to "
                f"be is not known. Train the others singly (usd_train DATASET FOLD), or train all anew with --run NAME."
            )
        for values in asked.values():
            taken |= dict(zip(names, values, strict=True))
    for name in CHANGEABLE:
        former = {getattr(other, name) for other in others.values()}
        if getattr(request, name) is None and len(former) == 1:
            taken[name] = former.pop()
    return dataclasses.replace(request, **taken)


def require_same_training(run: FoldRun, trainer: type[Trainer]) -> None:
    """Raise a UsdError where the folder holds a training with other cases, or by other numbers of the plan.

    Going on with them would choose settings on cases that were trained on, or validate on them.
    """
    former = read_request(run.folder)
    if former is None:
        if (run.folder / WEIGHTS_NAME).is_file():
            raise UsdError(
                f"{run.folder} holds weights but no {REQUEST_NAME}, as imported models do: what they were trained on "
                f"is not known, so they are neither validated nor trained on. Train beside them with --run NAME."
            )
        return
    now = to_jsonable(describe_training(run, trainer))
    ways_out = "Restore the former one, train beside it with --run NAME, or begin again with --restart."
    if former.get("trainer") != now["trainer"]:
        raise UsdError(
            f"{run.folder} was trained by {former.get('trainer')} and is now asked for {now['trainer']}. {ways_out}"
        )
    for name in ("train_cases", "holdout_cases", "validation_cases"):
        if former.get(name) != now[name]:
            differ = _cases_differ(former[name], now[name])
            raise UsdError(
                f"{run.folder} holds a training whose {name} were others: {differ}. Restore the former data and "
                f"splits_final.json, train beside it with --run NAME, or begin again with --restart."
            )
    changed = [
        f"training.{name} was {former['training'][name]!r} and is now {value!r}"
        for name, value in now["training"].items()
        if name in former["training"] and former["training"][name] != value
    ]
    if changed:
        raise UsdError(f"{run.folder} was trained by another plan: {', '.join(changed)}. {ways_out}")


def held_out_of(folder: Path) -> tuple[str, ...]:
    """The cases that a training in `folder` holds out to choose on, in its order; none where there is no training."""
    former = read_request(folder)
    return () if former is None else tuple(former["holdout_cases"])


def require_phase_1_of_plan(run: FoldRun, folder: Path) -> None:
    """Raise a UsdError where a foreign phase 1 is of another plan."""
    path = folder.absolute().parent / PLANS_NAME
    if not path.is_file():
        raise UsdError(
            f"--phase-1-from {folder}: {path} is not there, which says what its weights mean; name a fold's folder as "
            f"it lies in its model folder."
        )
    if difference := plan_difference(read_dataclass(Plans, path), run.plans, run.configuration.name):
        raise UsdError(
            f"--phase-1-from {folder} was trained with another plan ({path}): {difference}. Restore the former plan, "
            f"or train phase 1 anew, without the flag."
        )


def _length(request: TrainRequest, former: Mapping[str, Any]) -> tuple[str, str | None]:
    """The former length and the one now asked for, as flags; None where the request leaves it open."""
    now = tuple(getattr(request, name) for name in LENGTHS)
    return _said(LENGTHS, tuple(former.get(name) for name in LENGTHS), former["training"]), (
        None if now == (None, None, None) else _said(LENGTHS, now)
    )


def _value(request: TrainRequest, former: Mapping[str, Any], name: str) -> tuple[str, str | None]:
    now = getattr(request, name)
    if isinstance(now, Path):
        now = str(now.absolute())
    return _said((name,), (former.get(name),), former["training"]), None if now is None else _said((name,), (now,))


def _said(names: Sequence[str], values: Sequence[Any], planned: Mapping[str, Any] | None = None) -> str:
    """Values as the flags that ask for them; one that is not given is the plan's, where there is one."""
    for name, value in zip(names, values, strict=True):
        if value is not None:
            return _flag(name, value)
    of_plan = {"max_time_s": "num_epochs"}.get(names[0], names[0])
    if planned is None or of_plan not in planned:
        return f"no {ASKED_VALUES[names[0]][0]}"
    return _flag("epochs" if of_plan == "num_epochs" else names[0], planned[of_plan])


def _flag(name: str, value: Any) -> str:
    flag = ASKED_VALUES[name][0]
    if value is True:
        return flag
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{flag} {number}{'s' if name == 'max_time_s' else ''}"


def _cases_differ(former: Sequence[str], now: Sequence[str]) -> str:
    come, gone = sorted({*now} - {*former}), sorted({*former} - {*now})
    changes = ((come, "came"), (gone, "left"))
    parts = [f"{len(names)} {what} ({listed(names, LISTED_CASES)})" for names, what in changes if names]
    return ", ".join(parts) or "they stand in another order"
