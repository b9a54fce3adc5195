"""Dice at equal seconds on fold 0: nnU-Net as planned, nnU-Net with our plan, our segmenter, the staged diffusion.

    python tests/benchmarks/rows.py DATASET CONFIG --seconds S --peer VENV --work FOLDER [--raw ROOT] [--rows ROW ...]
        [--seed N] [--processor-seconds]

The rows are staged, segmentation, peer_our_plan (nnU-Net with our patch, batch, spacing and widths), peer_as_planned.
All train on the same split (ours), for the same wall time, in turn; ours spend it with the choice of settings and the
final validation inside. nnU-Net mirrors in prediction, as it does by default. It draws anew each time: its seed only
names one more training. FOLDER keeps what was trained, so that rows can be added later; a row that is there is not
trained again, and a single row is not compared with anything.
Nothing else should run meanwhile, unless the seconds are of processor time (see processor_clock).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peer import Bench, measure, own_command, peer_prediction, peer_training, prepare_peer

from unisegdiff_pipeline.training.data.splits import load_or_create_splits

TRAINERS = {"staged": "StagedDiffusionTrainer", "segmentation": "SegmentationTrainer"}
PEER_ROWS = ("peer_our_plan", "peer_as_planned")


def prepare(bench: Bench, dataset: str, configuration: str) -> Path:
    """Plan, preprocess and split with this package; the fold's validation images lie in work/validation/DATASET."""
    env = bench.own_env("rows")
    folder = Path(env["usd_preprocessed"]) / dataset
    if not (folder / "plans.json").is_file():
        measure(own_command("plan_and_preprocess", "-d", dataset[7:10], "-c", configuration), env)
    cases = load_or_create_splits(folder)[0].val
    target = bench.work / "validation" / dataset
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True, exist_ok=True)
        for path in (bench.raw / dataset / part).iterdir():
            if any(path.name.startswith((f"{case}.", f"{case}_0")) for case in cases):
                shutil.copy(path, target / part / path.name)
    return target


def our_plan(bench: Bench, dataset: str, configuration: str) -> dict:
    """Our plan in the words of nnU-Net's."""
    plans = json.loads((Path(bench.own_env("rows")["usd_preprocessed"]) / dataset / "plans.json").read_text())
    plan = plans["configurations"][configuration]
    network = plan["network"]
    levels = network["levels"]
    kwargs = {
        "n_stages": len(levels),
        "features_per_stage": [level["features"] for level in levels],
        "strides": [level["stride"] for level in levels],
        "kernel_sizes": [level["kernel"] for level in levels],
        "n_conv_per_stage": [level["num_convs"] for level in levels],
        "n_conv_per_stage_decoder": [level["num_convs"] for level in levels[:-1]],
    }
    return {
        "batch_size": plan["training"]["batch_size"],
        "patch_size": network["patch_size"],
        "spacing": plan["preprocessing"]["target_spacing_mm"][-network["dims"] :],
        "architecture": {"arch_kwargs": kwargs},
    }


def train_peer(bench: Bench, row: str, dataset: str, configuration: str, images: Path, seed: int) -> Path:
    """One row of nnU-Net; returns its masks."""
    overrides = our_plan(bench, dataset, configuration) if row == "peer_our_plan" else {}
    name = f"{row}_seed{seed}"
    masks = bench.work / name / dataset
    if not masks.is_dir():
        prepare_peer(bench, name, dataset, configuration, overrides)
        preprocessed = Path(bench.peer_env(name)["nnUNet_preprocessed"]) / dataset
        own = Path(bench.own_env("rows")["usd_preprocessed"]) / dataset
        shutil.copy(own / "splits_final.json", preprocessed)
        print(f"{name}: {peer_training(bench, name, dataset, configuration, bench.seconds)}", flush=True)
        temporary = masks.with_suffix(".part")
        measure(peer_prediction(bench, images, temporary, dataset, configuration), bench.peer_env(name))
        temporary.rename(masks)
    return masks


def train_own(bench: Bench, row: str, dataset: str, configuration: str, seed: int) -> Path:
    """One row of this package; returns the masks of its final validation."""
    env = bench.own_env("rows")
    model = f"{TRAINERS[row]}__{configuration}__seed{seed}"
    fold = Path(env["usd_results"]) / dataset / model / "fold_0"
    if not (fold / "validation" / "summary.json").is_file():
        command = own_command("train")
        if bench.processor_seconds:
            command = [sys.executable, "-m", "tests.benchmarks.processor_clock", "usd_train", "--workers", "0"]
        command += [dataset[7:10], "0", "-c", configuration, "--trainer", TRAINERS[row]]
        command += ["--max-time", str(bench.seconds), "--seed", str(seed), "--run", f"seed{seed}"]
        seconds, _ = measure([*command, "--device", "cpu", "--restart"], env)
        print(f"{model}: {seconds:.0f} s", flush=True)
    return fold / "validation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="full name, DatasetXXX_Name")
    parser.add_argument("configuration")
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--peer", type=Path, required=True, help="virtual environment with nnunetv2")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--raw", type=Path, default=os.environ.get("usd_raw", os.environ.get("nnUNet_raw")))
    parser.add_argument("--rows", nargs="+", choices=[*TRAINERS, *PEER_ROWS], default=[*TRAINERS, *PEER_ROWS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processor-seconds", action="store_true")
    args = parser.parse_args()
    own = Path(sys.executable).parent
    bench = Bench(args.peer, own, args.work.absolute(), args.raw.absolute(), 1, args.seconds, args.processor_seconds)
    validation = prepare(bench, args.dataset, args.configuration)
    masks = []
    for row in args.rows:
        if row in TRAINERS:
            masks.append(train_own(bench, row, args.dataset, args.configuration, args.seed))
        else:
            images = validation / "imagesTr"
            masks.append(train_peer(bench, row, args.dataset, args.configuration, images, args.seed))
    if len(masks) < 2:
        return
    script = Path(__file__).with_name("paired.py")
    command = [sys.executable, str(script), str(validation / "labelsTr"), *map(str, masks)]
    subprocess.run([*command, "--dataset-json", str(args.raw / args.dataset / "dataset.json")], check=True)


if __name__ == "__main__":
    main()
