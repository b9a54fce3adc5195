"""Loggers beside the log: what they are told, how they go on, and that none costs a training."""

from __future__ import annotations

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.commands import train
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training import loggers
from unisegdiff_pipeline.training.log import RunLog
from unisegdiff_pipeline.training.request import TrainRequest

SETTINGS = {"dataset": "Dataset001_X", "seed": 0, "learning_rate": 0.002}


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    return tmp_path / "Dataset001_X/StagedDiffusionTrainer__2d/fold_0"


class FakeRun:
    """As the object that wandb.init returns: a step below the current one is ignored, with a warning alone."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, str] = {}
        self.step = 0
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        assert "*" not in name.removesuffix("*")  # it takes prefixes alone
        if step_metric is not None:
            self.axes[name] = step_metric

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert not self.finished
        if step is None:
            self.step += 1
        elif step < self.step:
            return
        else:
            self.step = step
        self.logged.append(data)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with the part of wandb's surface that is used; `started` holds the arguments of each init."""
    module: Any = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.started, module.runs = [], []

    def init(
        *,
        project: str,
        group: str,
        name: str,
        id: str,
        resume: str,
        config: dict[str, Any],
    ) -> FakeRun:
        module.started.append({"project": project, "group": group, "name": name, "id": id, "config": config})
        assert resume == "allow"
        module.runs.append(FakeRun())
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


def write(log: RunLog) -> None:
    log.open()
    log.record("train", phase=1, iteration=20, loss=0.5, note="text", cases=["a"])
    log.record("start", cases=12)  # without an iteration: for log.jsonl alone
    log.close()


def test_wandb_gets_numbers_and_settings_and_goes_on_with_its_run(fold: Path, wandb: Any) -> None:
    write(RunLog(fold, "wandb", SETTINGS))
    assert wandb.runs[0].logged == [{"phase_1/loss": 0.5, "phase_1/iteration": 20}]
    assert wandb.runs[0].finished
    first = wandb.started[0]
    assert (first["project"], first["group"]) == ("unisegdiff_pipeline", "Dataset001_X")
    assert (first["name"], first["config"]) == ("StagedDiffusionTrainer__2d/fold_0", SETTINGS)
    write(RunLog(fold, "wandb", SETTINGS))
    assert wandb.started[1]["id"] == first["id"]
    (fold / "logger.json").unlink()  # as --restart does
    write(RunLog(fold, "wandb", SETTINGS))
    assert wandb.started[2]["id"] != first["id"]


def test_wandb_keeps_the_numbers_of_both_phases_which_count_from_0_each(fold: Path, wandb: Any) -> None:
    log = RunLog(fold, "wandb")
    log.open()
    for phase in (1, 2):
        for iteration in (20, 40):
            log.record("train", phase=phase, iteration=iteration, loss=1 / phase)
    log.record("pictures", phase=2, iteration=40, cases=["a"])  # no number
    log.close()
    (run,) = wandb.runs
    assert run.logged == [
        {f"phase_{phase}/loss": 1 / phase, f"phase_{phase}/iteration": iteration}
        for phase in (1, 2)
        for iteration in (20, 40)
    ]
    assert run.axes == {f"phase_{phase}/*": f"phase_{phase}/iteration" for phase in (1, 2)}


def test_a_logger_that_fails_costs_no_training(
    fold: Path, wandb: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: FakeRun, data: object, step: int | None = None) -> None:
        calls.append(data)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(FakeRun, "log", fail)
    log = RunLog(fold, "wandb")
    log.open()
    with caplog.at_level(logging.INFO):
        for iteration in (1, 2):
            log.record("train", phase=1, iteration=iteration, loss=0.5)
    log.close()
    assert calls == [{"phase_1/loss": 0.5, "phase_1/iteration": 1}]
    assert "wandb failed and gets no further numbers, log.jsonl has them all: no route to host" in caplog.text
    assert [json.loads(line)["iteration"] for line in (fold / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_a_logger_that_cannot_begin_is_named(fold: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("api_key not\nconfigured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        UsdError, match=r"--logger wandb could not begin \(api_key not configured\).*leave the flag out"
    ):
        RunLog(fold, "wandb").open()


@pytest.mark.parametrize("words", [["--logger", "wandb"], ["--logger", "mlflow"], ["--tensorboard"]])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_missing_package_is_named_before_anything_begins(
    prepared: Path,
    roots: Roots,
    words: list[str],
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    places = ["--raw", str(roots.raw), "--preprocessed", str(prepared), "--results", str(roots.results)]
    assert train.main(["902", "0", "--iterations", "2", "--workers", "0", *words, *more, *places]) == 1
    name = words[-1].removeprefix("--")
    said = " ".join(capsys.readouterr().err.split())
    assert f"--logger {name} needs the package {name}" in said
    assert f"pip install 'unisegdiff_pipeline[{name}]'" in said
    assert roots.results is not None
    assert not list(roots.results.glob("*"))


def test_tensorboard_has_two_flags_and_one_meaning(roots: Roots) -> None:
    assert TrainRequest("902", "0", roots, tensorboard=True).logger == "tensorboard"
    assert TrainRequest("902", "0", roots, tensorboard=True, logger="tensorboard").logger == "tensorboard"
    with pytest.raises(UsdError, match=r"--tensorboard\) and logger wandb were both given"):
        TrainRequest("902", "0", roots, tensorboard=True, logger="wandb")
    with pytest.raises(SystemExit):
        train.build_parser().parse_args(["902", "0", "--tensorboard", "--logger", "wandb"])


def test_mlflow_keeps_the_numbers_offline(fold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the extra has no data base
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    write(RunLog(fold, "mlflow", SETTINGS))
    log = RunLog(fold, "mlflow", SETTINGS)  # the training continues
    log.open()
    log.record("train", phase=1, iteration=40, loss=0.25, **{"dice (lesion: a)": 0.7})
    log.close()
    client = MlflowClient()
    experiment = client.get_experiment_by_name("Dataset001_X")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("StagedDiffusionTrainer__2d/fold_0", "FINISHED")
    assert run.data.params == {"dataset": "Dataset001_X", "seed": "0", "learning_rate": "0.002"}
    history = client.get_metric_history(run.info.run_id, "phase_1/loss")
    assert [(metric.step, metric.value) for metric in history] == [(20, 0.5), (40, 0.25)]
    assert run.data.metrics["phase_1/dice _lesion_ a_"] == 0.7
