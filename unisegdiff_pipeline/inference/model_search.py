"""Which of the models of a data set is meant; folders without a finished fold are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.inference.model_folder import PLANS_NAME, finished_folds
from unisegdiff_pipeline.inference.model_name import ModelName, parse_model_name
from unisegdiff_pipeline.planning.plans import Plans


def find_model(
    folder: Path,
    default_trainer: str,
    *,
    configuration: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
    run: str | None = None,
) -> Path:
    """The model folder in RESULTS/DATASET that is meant.

    What is None is left open: of several models the one of the default trainer is taken, of the default plan, without
    the name of a run, and of the configuration that its plan recommends.

    Raises:
        UsdError: there is none, or several are equally meant; lists what is there, unfinished models too.
    """
    models, unfinished = _models(folder)
    asked = {"configuration": configuration, "trainer": trainer, "plans": plans, "run": run}
    fitting = list(models)
    for part, value in asked.items():
        if value is not None:
            fitting = [model for model in fitting if getattr(models[model], part) == value]
    for part, default in {"trainer": default_trainer, "plans": None, "run": None}.items():
        if asked[part] is None and len(fitting) > 1:
            fitting = [model for model in fitting if getattr(models[model], part) == default] or fitting
    if configuration is None and len(fitting) > 1:
        fitting = [model for model in fitting if models[model].configuration == _recommended(model)] or fitting
    there = _there(list(models), unfinished)
    flags = "-c CONFIG, --trainer NAME, --plans NAME or --run NAME"
    if not models and unfinished:
        names = ", ".join(path.name for path in unfinished)
        raise UsdError(
            f"no training in {folder} has finished a fold yet; begun are {names}. usd_train {quoted(folder.name)} FOLD "
            "with the flags of before goes on with it."
        )
    if not fitting:
        raise UsdError(f"{folder} holds no such model; {there}. Train it with usd_train, or correct {flags}.")
    if len(fitting) > 1:
        raise UsdError(f"{folder} holds several models; {there}. Choose one with {flags}.")
    return fitting[0]


def _models(folder: Path) -> tuple[dict[Path, ModelName], list[Path]]:
    """Models with a finished fold, and model folders without one."""
    models, unfinished = {}, []
    for path in sorted(folder.iterdir()):
        name = parse_model_name(path.name) if path.is_dir() else None
        if name is None:
            continue
        if (path / PLANS_NAME).is_file() and finished_folds(path):
            models[path] = name
        else:
            unfinished.append(path)
    return models, unfinished


def _there(models: Sequence[Path], unfinished: Sequence[Path]) -> str:
    text = f"there are {', '.join(path.name for path in models)}" if models else "there is none"
    if unfinished:
        text += f" (without a finished fold, and so left out: {', '.join(path.name for path in unfinished)})"
    return text


def _recommended(model: Path) -> str:
    return read_dataclass(Plans, model / PLANS_NAME).recommended_configuration
