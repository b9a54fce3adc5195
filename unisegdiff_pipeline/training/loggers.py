"""Where a training's numbers go besides its own log: TensorBoard, Weights & Biases, or MLflow.

Each is an extra, imported when a training that asks for it begins. They are views of log.jsonl: a training continues
from its own files whatever became of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_object, write_json

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
LOGGERS: tuple[LoggerName, ...] = get_args(LoggerName)
PROJECT = "unisegdiff_pipeline"
RUN_NAME = (
    "logger.json"  # in a fold's folder: names the logger's run, so that a training that continues goes on with it
)


class ScalarLogger(Protocol):
    """What a training needs of a logger."""

    def add_scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        """Keep numbers by name at a step of a phase.

        Steps begin at 0 in each phase and rise within it, except for what a killed training logged after its
        checkpoint.
        """

    def close(self) -> None:
        """Write what is not written yet."""


def require_logger(name: LoggerName | None) -> None:
    """Raise a UsdError where a logger's package is not installed; None asks for none."""
    if name is not None and importlib.util.find_spec(name) is None:
        raise UsdError(
            f"--logger {name} needs the package {name}, which is not installed; install it (pip install "
            f"'unisegdiff_pipeline[{name}]') or leave the flag out."
        )


def open_logger(name: LoggerName, folder: Path, settings: Mapping[str, Any]) -> ScalarLogger:
    """Begin, or go on with, the logger's run of a fold.

    Args:
        name: which.
        folder: results folder of the fold, RESULTS/DATASET/MODEL/fold_K; its place names the run.
        settings: what was asked of the training, kept beside its numbers.

    Raises:
        UsdError: the package is not installed, or refuses to begin (no login, no server).
    """
    require_logger(name)
    makers: dict[LoggerName, Callable[[Path, Mapping[str, Any]], ScalarLogger]] = {
        "tensorboard": _TensorBoard,
        "wandb": _Wandb,
        "mlflow": _Mlflow,
    }
    try:
        return makers[name](folder, settings)
    except UsdError:
        raise
    except Exception as error:  # of any kind that the package has
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsdError(
            f"--logger {name} could not begin ({reason}); set {name} up as its documentation says, or leave the flag "
            f"out."
        ) from error


def _place(folder: Path) -> tuple[str, str]:
    """Data set, and name of the run, from where a fold lies."""
    folder = folder.absolute()
    return folder.parent.parent.name, f"{folder.parent.name}/{folder.name}"


class _TensorBoard:
    """Events in the fold's folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def add_scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, whose own environment variables say where it is kept, and whether offline.

    Its own step only rises, and what comes at a lower one is lost; iterations begin anew in each phase, so they are
    numbers like others, by which the curves of a phase are drawn.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        dataset, run = _place(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=dataset,
            name=run,
            id=_identity(folder),
            resume="allow",
            config=dict(settings),
        )
        self._phases: set[str] = set()  # whose curves have their axis

    def add_scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        axis = f"{phase}/iteration"
        if phase not in self._phases:
            self._run.define_metric(axis)
            self._run.define_metric(f"{phase}/*", step_metric=axis)
            self._phases.add(phase)
        self._run.log({**{f"{phase}/{name}": value for name, value in values.items()}, axis: step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow in the experiment named after the data set, kept where MLflow's own variables say."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        tracking: Any = importlib.import_module("mlflow.tracking")
        dataset, run = _place(folder)
        self._client = tracking.MlflowClient()
        experiment = self._client.get_experiment_by_name(dataset)
        number = self._client.create_experiment(dataset) if experiment is None else experiment.experiment_id
        identity = _identity(folder)
        former = self._client.search_runs([number], filter_string=f"tags.identity = '{identity}'", max_results=1)
        if former:
            self._id = former[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=run, tags={"identity": identity}).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._id, name, value)

    def add_scalars(self, phase: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, re.sub(r"[^\w\-. /]", "_", f"{phase}/{name}"), value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _identity(folder: Path) -> str:
    """Of the logger's run of a training, the same when it continues and another one when it begins again."""
    path = folder / RUN_NAME
    if not path.is_file():
        write_json(path, {"run": uuid.uuid4().hex})
    return str(read_object(path)["run"])
