"""Where a training's numbers go besides its own log: TensorBoard, Weights & Biases, or MLflow.

Each is an extra, imported when a training that asks for it begins. They are views of log.jsonl: a training continues from
its own files whatever became of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from unisegdiff_pipeline.core.errors import UsdError

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
LOGGERS: tuple[LoggerName, ...] = get_args(LoggerName)
PROJECT = "unisegdiff_pipeline"


class ScalarLogger(Protocol):
    """What a training needs of a logger."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep numbers by name at a step; steps rise, but for what a kill left behind a checkpoint."""

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
            f"--logger {name} could not begin ({reason}); set {name} up as its documentation says, or leave the flag out."
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

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, which goes by WANDB_PROJECT, WANDB_MODE (offline) and the other variables of wandb.

    The same fold goes on with the same run. What a kill left behind the checkpoint was sent already: wandb takes no step
    back, so that such numbers are not sent again.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import os

        wandb: Any = importlib.import_module("wandb")
        dataset, run = _place(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=dataset,
            name=run,
            id=_identity(folder),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
        )

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow in the experiment named after the data set, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        tracking: Any = importlib.import_module("mlflow.tracking")
        dataset, run = _place(folder)
        self._client = tracking.MlflowClient()
        experiment = self._client.get_experiment_by_name(dataset)
        number = self._client.create_experiment(dataset) if experiment is None else experiment.experiment_id
        identity = _identity(folder)
        former = self._client.search_runs([number], filter_string=f"tags.fold_folder = '{identity}'", max_results=1)
        if former:
            self._id = former[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=run, tags={"fold_folder": identity}).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._id, name, value)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _identity(folder: Path) -> str:
    """Of a run: one for each folder of a fold that has been begun; letters and digits."""
    from unisegdiff_pipeline.core.files import text_hash

    return text_hash(str(folder.absolute()))
