"""Speed and memory beside nnU-Net, in turn, on this machine: medians of several runs and their ratios.

    python tests/benchmarks/against_nnunet.py PART --peer VENV --work FOLDER [--raw ROOT] [--runs N]

PART is one of preprocess, train-planned, train-small, predict, help. VENV is a virtual environment with nnunetv2; ROOT
a raw root with Dataset004_Hippocampus (default: usd_raw, or nnUNet_raw). FOLDER keeps what both sides write;
results.json in it is added to by every call. `predict` needs the models that `train-small` leaves behind. The training
parts need USD_PEER_TRAINERS, a folder with a trainer nnUNetTrainerTimed that stops after NNUNET_BUDGET_S seconds and
writes its iterations and seconds to iterations.json. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
SMALL_WIDTHS = (16, 32, 64, 128)
SAMPLING_S = 0.5  # reading the memory maps costs time of its own


@dataclass(frozen=True)
class Bench:
    """Where things lie; `own` is the folder of this package's console scripts."""

    peer: Path
    own: Path
    work: Path
    raw: Path
    runs: int
    seconds: int

    def peer_env(self, name: str) -> dict[str, str]:
        """nnU-Net's variables for one variant."""
        root = self.work / "peer" / name
        for part in ("preprocessed", "results"):
            (root / part).mkdir(parents=True, exist_ok=True)
        extra = {
            "nnUNet_raw": self.raw,
            "nnUNet_preprocessed": root / "preprocessed",
            "nnUNet_results": root / "results",
            "nnUNet_n_proc_DA": 2,
            "nnUNet_def_n_proc": 2,
            "nnUNet_compile": "f",
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
        while not done.wait(SAMPLING_S):
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


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all below it."""
    try:
        parent = psutil.Process(pid)
        return sum(p.memory_full_info().pss for p in [parent, *parent.children(recursive=True)]) / 2**20
    except psutil.Error:
        return 0.0


Runs = list[tuple[float, ...]]


def compare(bench: Bench, part: str, peer: Runs, own: Runs, names: list[str]) -> None:
    """Print medians and ratios (own over peer) and add them to results.json."""
    rows = {}
    for i, name in enumerate(names):
        theirs, ours = (statistics.median(run[i] for run in runs) for runs in (peer, own))
        every = [[run[i] for run in peer], [run[i] for run in own]]
        rows[name] = {"nnunet": theirs, "own": ours, "ratio": ours / theirs, "all": every}
        print(f"{part:<12} {name:<28} nnU-Net {theirs:10.3f}   own {ours:10.3f}   ratio {ours / theirs:6.3f}")
    path = bench.work / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[part] = rows
    path.write_text(json.dumps(results, indent=1))


def preprocess(bench: Bench) -> None:
    """usd_plan_and_preprocess against nnUNetv2_plan_and_preprocess, one configuration."""
    peer, own = [], []
    for run in range(bench.runs):
        shutil.rmtree(bench.work / "peer" / "preprocess", ignore_errors=True)
        shutil.rmtree(bench.work / "own" / "preprocess", ignore_errors=True)
        command = [str(bench.peer / "bin" / "nnUNetv2_plan_and_preprocess"), "-d", "4", "-c", CONFIGURATION, "-np", "2"]
        peer.append(measure([*command, "-npfp", "2"], bench.peer_env("preprocess"), memory=True))
        command = [str(bench.own / "usd_plan_and_preprocess"), "-d", "4", "-c", CONFIGURATION]
        own.append(measure(command, bench.own_env("preprocess"), memory=True))
        print(f"run {run}: nnU-Net {peer[-1]}, own {own[-1]}", flush=True)
    compare(bench, "preprocess", peer, own, ["wall_s", "peak_mb"])


def train(bench: Bench, small: bool) -> None:
    """Training iterations a second with nnU-Net's patch, batch and network; `small`: 16 to 128 features, batch 2."""
    name = "small" if small else "as_planned"
    plans = _peer_plans(bench, name, small)
    _own_plans(bench, name, plans)
    peer, own = [], []
    for run in range(bench.runs):
        peer.append((_peer_rate(bench, name),))
        own.append((_own_rate(bench, name),))
        print(f"{name} run {run}: nnU-Net {peer[-1][0]:.3f}, own {own[-1][0]:.3f} it/s", flush=True)
    compare(bench, f"train {name}", peer, own, ["iterations_per_s"])


def _peer_plans(bench: Bench, name: str, small: bool) -> dict:
    env = bench.peer_env(name)
    folder = Path(env["nnUNet_preprocessed"]) / DATASET
    path = folder / "nnUNetPlans.json"
    tool = str(bench.peer / "bin" / "nnUNetv2_")
    if not path.is_file():
        measure([f"{tool}plan_and_preprocess", "-d", "4", "-c", CONFIGURATION, "--no_pp", "-npfp", "2"], env)
        plans = json.loads(path.read_text())
        if small:
            configuration = plans["configurations"][CONFIGURATION]
            configuration["batch_size"] = 2
            configuration["architecture"]["arch_kwargs"]["features_per_stage"] = list(SMALL_WIDTHS)
            path.write_text(json.dumps(plans, indent=1))
        measure([f"{tool}preprocess", "-d", "4", "-c", CONFIGURATION, "-np", "2"], env)
    return json.loads(path.read_text())["configurations"][CONFIGURATION]


def _own_plans(bench: Bench, name: str, peer: dict) -> None:
    """Our plan with nnU-Net's patch, batch and network."""
    env = bench.own_env(name)
    path = Path(env["usd_preprocessed"]) / DATASET / "plans.json"
    if not path.is_file():
        measure([str(bench.own / "usd_plan_and_preprocess"), "-d", "4", "-c", CONFIGURATION], env)
    plans = json.loads(path.read_text())
    configuration = plans["configurations"][CONFIGURATION]
    kwargs = peer["architecture"]["arch_kwargs"]
    fields = ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage")
    configuration["network"]["levels"] = [
        {"features": f, "stride": s, "kernel": k, "num_convs": n}
        for f, s, k, n in zip(*(kwargs[field] for field in fields), strict=True)
    ]
    configuration["network"]["patch_size"] = peer["patch_size"]
    configuration["training"]["batch_size"] = peer["batch_size"]
    path.write_text(json.dumps(plans))


def _peer_rate(bench: Bench, name: str) -> float:
    """nnU-Net's own trainer for a number of seconds (nnUNetTrainerTimed), at the rate of its training iterations."""
    env = bench.peer_env(name)
    trainers = os.environ.get("USD_PEER_TRAINERS")
    if trainers is None:
        raise SystemExit("set USD_PEER_TRAINERS to the folder that holds nnUNetTrainerTimed.py")
    env |= {"nnUNet_extTrainer": trainers, "NNUNET_BUDGET_S": str(bench.seconds)}
    command = [str(bench.peer / "bin" / "nnUNetv2_train"), "4", CONFIGURATION, "0", "-tr", "nnUNetTrainerTimed"]
    measure([*command, "-device", "cpu"], env)
    found = Path(env["nnUNet_results"]).glob(f"{DATASET}/nnUNetTrainerTimed__*/fold_0/iterations.json")
    facts = json.loads(next(found).read_text())
    return facts["iterations"] / facts["seconds"]


def _own_rate(bench: Bench, name: str) -> float:
    env = bench.own_env(name)
    command = [str(bench.own / "usd_train"), "4", "0", "-c", CONFIGURATION, "--trainer", "SegmentationTrainer"]
    measure([*command, "--max-time", str(bench.seconds), "--device", "cpu", "--restart"], env)
    folder = Path(env["usd_results"]) / DATASET / f"SegmentationTrainer__{CONFIGURATION}" / "fold_0"
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    # By the clock, validations included, as on the other side; from the first entry on, before which the number format
    # is chosen.
    first, *_, last = [e for e in entries if e["kind"] == "train"]
    return (last["iteration"] - first["iteration"]) / (last["seconds"] - first["seconds"])


def predict(bench: Bench) -> None:
    """20 cases: 8 samples of one fold against nnU-Net's default mirroring of one fold, networks of equal size."""
    images = bench.work / "images"
    images.mkdir(exist_ok=True)
    for path in sorted((bench.raw / DATASET / "imagesTr").glob("*.nii.gz"))[:20]:
        shutil.copy(path, images)
    env = bench.own_env("small")
    if not (Path(env["usd_results"]) / DATASET / f"StagedDiffusionTrainer__{CONFIGURATION}").is_dir():
        command = [str(bench.own / "usd_train"), "4", "0", "-c", CONFIGURATION, "--max-time", str(3 * bench.seconds)]
        measure([*command, "--device", "cpu"], env)
    peer, own = [], []
    masks = {side: bench.work / side / "masks" for side in ("peer", "own")}
    model = ["-d", "4", "-c", CONFIGURATION, "-f", "0"]
    for run in range(bench.runs):
        for folder in masks.values():
            shutil.rmtree(folder, ignore_errors=True)
        command = [str(bench.peer / "bin" / "nnUNetv2_predict"), "-i", str(images), "-o", str(masks["peer"]), *model]
        command += ["-tr", "nnUNetTrainerTimed", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
        trainers = {"nnUNet_extTrainer": os.environ["USD_PEER_TRAINERS"], "NNUNET_BUDGET_S": "1"}
        peer.append(measure(command, bench.peer_env("small") | trainers, memory=True))
        command = [str(bench.own / "usd_predict"), "-i", str(images), "-o", str(masks["own"]), *model]
        own.append(measure([*command, "--samples", "8", "--device", "cpu"], env, memory=True))
        print(f"run {run}: nnU-Net {peer[-1]}, own {own[-1]}", flush=True)
    compare(bench, "predict", peer, own, ["wall_s", "peak_mb"])


def help_texts(bench: Bench) -> None:
    """Seconds that every command takes to say its --help; the slowest of the medians."""
    medians = {}
    for script in sorted(bench.own.glob("usd_*")):
        seconds = [measure([str(script), "--help"], dict(os.environ))[0] for _ in range(5)]
        medians[script.name] = statistics.median(seconds)
    slowest = max(medians, key=lambda name: medians[name])
    print(f"slowest --help of {len(medians)} commands: {slowest} {medians[slowest]:.3f} s")


PARTS = {
    "preprocess": preprocess,
    "train-planned": lambda bench: train(bench, small=False),
    "train-small": lambda bench: train(bench, small=True),
    "predict": predict,
    "help": help_texts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment with nnunetv2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--raw", type=Path, default=os.environ.get("usd_raw", os.environ.get("nnUNet_raw")))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=60, help="of one training run")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    own = Path(sys.executable).parent
    PARTS[args.part](Bench(args.peer, own, args.work.absolute(), args.raw.absolute(), args.runs, args.seconds))


if __name__ == "__main__":
    main()
