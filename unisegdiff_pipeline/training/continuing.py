"""What may be continued or taken over: a training with the same cases and plan; the seed may differ of a phase 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.serialization import from_jsonable, read_object, to_jsonable
from unisegdiff_pipeline.training.trainer import FoldRun, Trainer

REQUEST_NAME = "request.json"
PHASE_1_NAME = "phase_1.safetensors"
PHASE_1_FACTS_NAME = "phase_1.json"


def describe_training(run: FoldRun, trainer: type[Trainer]) -> dict[str, Any]:
    return {
        "trainer": trainer.__name__,
        "configuration": run.configuration.name,
        "training": run.configuration.training,
        "max_time_s": run.request.max_time_s,
        "epochs": run.request.epochs,
        "iterations": run.request.iterations,
        "phase_1_from": run.request.phase_1_from,
        "seed": run.request.seed,
        "device": str(run.device),
        "torch": torch.__version__,
        "train_cases": run.train_cases,
        "holdout_cases": run.holdout_cases,
        "validation_cases": run.validation_cases,
    }


def require_same_training(run: FoldRun, trainer: type[Trainer]) -> None:
    """Raise a UsdError where the folder holds a training with other cases, another seed or another batch size.

    Going on with them would choose settings on cases that were trained on, or validate on them.
    """
    path = run.folder / REQUEST_NAME
    if not path.is_file():
        return
    former, now = _read_request(path), to_jsonable(describe_training(run, trainer))
    for name in ("train_cases", "holdout_cases", "validation_cases", "seed", "trainer", "phase_1_from"):
        if former.get(name) != now[name]:
            what = "is another" if isinstance(now[name], list) else f"was {former.get(name)!r} and is now {now[name]!r}"
            raise UsdError(
                f"{run.folder} holds a training whose {name} {what}; continuing it would mix the two. "
                f"Give the former flags and splits_final.json again, or begin again with --restart."
            )
    batch = former.get("training", {}).get("batch_size")
    if batch != now["training"]["batch_size"]:
        raise UsdError(
            f"{run.folder} holds a training with batch size {batch}, now it is {now['training']['batch_size']}; "
            f"give --batch-size {batch} to continue it, or begin again with --restart."
        )


def held_out_of(folder: Path) -> tuple[str, ...]:
    """The cases that a training in `folder` holds out to choose on, in its order; none where there is no training."""
    path = folder / REQUEST_NAME
    return tuple(_read_request(path)["holdout_cases"]) if path.is_file() else ()


def require_fair_phase_1(run: FoldRun, folder: Path) -> None:
    """Raise a UsdError where a foreign phase 1 is not there, or has seen cases that this fold holds out."""
    for name in (PHASE_1_NAME, PHASE_1_FACTS_NAME, REQUEST_NAME):
        if not (folder / name).is_file():
            raise UsdError(f"--phase-1-from {folder} holds no {name}; name a fold's folder whose phase 1 has ended.")
    seen = set(_read_request(folder / REQUEST_NAME)["train_cases"])
    leaked = sorted(seen & {*run.holdout_cases, *run.validation_cases})
    if leaked:
        raise UsdError(
            f"--phase-1-from {folder} was trained on {len(leaked)} cases that this fold holds out ({leaked[0]}, ...): "
            f"its scores would mean nothing. Take phase 1 from the same fold."
        )


def _read_request(path: Path) -> dict[str, Any]:
    """request.json as `describe_training` wrote it; cases are lists of names, `training` is an object."""
    request = read_object(path)
    try:
        for name in ("train_cases", "holdout_cases", "validation_cases"):
            from_jsonable(tuple[str, ...], request.get(name), name)
        from_jsonable(dict[str, Any], request.get("training"), "training")
    except UsdError as error:
        raise UsdError(f"{path}: {error} Restore the file, or begin the fold again with --restart.") from None
    return request
