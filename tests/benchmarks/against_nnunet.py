"""Speed and memory beside nnU-Net, in turn, on this machine: medians of several runs and their ratios.

    python tests/benchmarks/against_nnunet.py PART --peer VENV --work FOLDER [--raw ROOT] [--runs N]

PART is one of preprocess, train-planned, train-small, predict, help. VENV is a virtual environment with nnunetv2; ROOT
a raw root with Dataset004_Hippocampus (default: usd_raw, or nnUNet_raw). FOLDER keeps what both sides write;
results.json in it is added to by every call. `predict` needs the models that `train-small` leaves behind. Training
rates count the training loop with its batches, validations left out on both sides. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

from peer import Bench, measure, peer_prediction, peer_training, prepare_peer

DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
SMALL_WIDTHS = (16, 32, 64, 128)

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
    overrides = {"batch_size": 2, "architecture": {"arch_kwargs": {"features_per_stage": list(SMALL_WIDTHS)}}}
    return prepare_peer(bench, name, DATASET, CONFIGURATION, overrides if small else {})


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
    return peer_training(bench, name, DATASET, CONFIGURATION, bench.seconds)["iterations_per_s"]


def _own_rate(bench: Bench, name: str) -> float:
    env = bench.own_env(name)
    command = [str(bench.own / "usd_train"), "4", "0", "-c", CONFIGURATION, "--trainer", "SegmentationTrainer"]
    measure([*command, "--max-time", str(bench.seconds), "--device", "cpu", "--restart"], env)
    folder = Path(env["usd_results"]) / DATASET / f"SegmentationTrainer__{CONFIGURATION}" / "fold_0"
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    # From the second entry on: the first has the choice of the number format in it.
    steps = [e["iteration"] for e in entries if e["kind"] == "train"]
    rates = [e["iterations_per_s"] for e in entries if e["kind"] == "train"]
    lengths = [b - a for a, b in itertools.pairwise(steps)]
    return sum(lengths) / sum(n / rate for n, rate in zip(lengths, rates[1:], strict=True))


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
        command = peer_prediction(bench, images, masks["peer"], DATASET, CONFIGURATION)
        peer.append(measure(command, bench.peer_env("small"), memory=True))
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
