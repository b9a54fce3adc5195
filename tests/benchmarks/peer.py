"""nnU-Net beside this package: the variables of both, commands timed with their memory, plans with overrides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
TRAINERS = HERE / "nnunet_trainers"
CORES = len(os.sched_getaffinity(0))
PEER_TRAINER = "nnUNetTrainerBudget"
SAMPLING_S = 0.5  # at most; reading the memory maps costs time of its own


@dataclass(frozen=True)
class Bench:
    """Where things lie; `own` is the folder of this package's console scripts, `seconds` of wall or processor time."""

    peer: Path
    own: Path
    work: Path
    raw: Path
    runs: int
    seconds: int
    processor_seconds: bool = False

    def peer_env(self, name: str) -> dict[str, str]:
        """nnU-Net's variables for one variant."""
        root = self.work / "peer" / name
        for part in ("preprocessed", "results"):
            (root / part).mkdir(parents=True, exist_ok=True)
        extra = {
            "nnUNet_raw": self.raw,
            "nnUNet_preprocessed": root / "preprocessed",
            "nnUNet_results": root / "results",
            "nnUNet_n_proc_DA": CORES,
            "nnUNet_def_n_proc": CORES,
            "nnUNet_compile": "f",
            "nnUNet_extTrainer": TRAINERS,
            # As many threads as cores that it may use: by itself it counts those of the machine.
            "PYTHONPATH": HERE / "nnunet_cores",
            "OMP_NUM_THREADS": CORES,
        }
        return {**os.environ, **{k: str(v) for k, v in extra.items()}}

    def own_env(self, name: str) -> dict[str, str]:
        """This package's variables for one variant."""
        root = self.work / "own" / name
        extra = {"usd_raw": self.raw, "usd_preprocessed": root / "preprocessed", "usd_results": root / "results"}
        return {**os.environ, **{k: str(v) for k, v in extra.items()}}


def measure(command: list[str], env: dict[str, str], memory: bool = False) -> tuple[float, float]:
    """Wall seconds of a command, and if asked the largest sum of its processes' memory in MB (shared pages once)."""
    peak, done = 0.0, threading.Event()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def watch() -> None:
        nonlocal peak
        while not done.wait(min(SAMPLING_S, 0.1 + (time.monotonic() - start) / 4)):  # short commands are seen, too
            peak = max(peak, memory_mb(process.pid))

    watcher = threading.Thread(target=watch)
    start = time.monotonic()
    if memory:
        watcher.start()
    _, errors = process.communicate()
    seconds = time.monotonic() - start
    done.set()
    if memory:
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return seconds, peak


def own_command(name: str, *arguments: str) -> list[str]:
    """A command of the package that is imported here; console scripts may be those of another checkout."""
    script = f"import sys; from unisegdiff_pipeline.commands.{name} import main; sys.exit(main())"
    return [sys.executable, "-c", script, *arguments]


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all below it."""
    try:
        parent = psutil.Process(pid)
        return sum(p.memory_full_info().pss for p in [parent, *parent.children(recursive=True)]) / 2**20
    except psutil.Error:
        return 0.0


def prepare_peer(bench: Bench, name: str, dataset: str, configuration: str, overrides: dict[str, Any]) -> dict:
    """Plan and preprocess once, with `overrides` merged into the configuration; returns that configuration."""
    env = bench.peer_env(name)
    path = Path(env["nnUNet_preprocessed"]) / dataset / "nnUNetPlans.json"
    tool, number = str(bench.peer / "bin" / "nnUNetv2_"), dataset[7:10]
    if not path.is_file():
        command = [f"{tool}plan_and_preprocess", "-d", number, "-c", configuration, "--no_pp", "-npfp", str(CORES)]
        measure(command, env)
        plans = json.loads(path.read_text())
        _merge(plans["configurations"][configuration], overrides)
        path.write_text(json.dumps(plans, indent=1))
        measure([f"{tool}preprocess", "-d", number, "-c", configuration, "-np", str(CORES)], env)
    return json.loads(path.read_text())["configurations"][configuration]


def peer_training(bench: Bench, name: str, dataset: str, configuration: str, seconds: float) -> dict[str, float]:
    """Train fold 0 for a number of seconds; returns `iterations` and `iterations_per_s`."""
    env = bench.peer_env(name) | {"USD_BUDGET_S": str(seconds)}
    if bench.processor_seconds:  # batches are made by the process that trains, so that they count
        env |= {"USD_PROCESSOR_SECONDS": "1", "nnUNet_n_proc_DA": "0"}
    command = [str(bench.peer / "bin" / "nnUNetv2_train"), dataset[7:10], configuration, "0"]
    measure([*command, "-tr", PEER_TRAINER, "-device", "cpu"], env)
    found = Path(env["nnUNet_results"]).glob(f"{dataset}/{PEER_TRAINER}__*__{configuration}/fold_0/iterations.json")
    return json.loads(next(found).read_text())


def peer_prediction(bench: Bench, images: Path, masks: Path, dataset: str, configuration: str) -> list[str]:
    """The command that predicts a folder with fold 0 and nnU-Net's default mirroring."""
    command = [str(bench.peer / "bin" / "nnUNetv2_predict"), "-i", str(images), "-o", str(masks), "-f", "0"]
    command += ["-d", dataset[7:10], "-c", configuration, "-tr", PEER_TRAINER, "-chk", "checkpoint_final.pth"]
    return [*command, "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]


def _merge(target: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
