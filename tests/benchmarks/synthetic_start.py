"""What the start that was trained on generated lesions is worth: each data set from it and from random weights.

    python -m tests.benchmarks.synthetic_start train --work FOLDER --raw ROOT --seconds 300
    python -m tests.benchmarks.synthetic_start table --work FOLDER --raw ROOT --seconds 300

Fold 0 of every data set, by the plan and the configuration that the planner recommends, the same for both; equal
seconds, the final validation included. `train` goes on where it was interrupted. Scores are those of the trainings' own
validation: for each case the mean Dice over the classes that its reference holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tests.benchmarks.unified import (
    TRAINER,
    difference_cells,
    groups_of,
    parser_of,
    run,
    run_benchmark,
    run_name,
    scores_of,
)
from unisegdiff_pipeline.inference.model_name import ModelName
from unisegdiff_pipeline.io.paths import find_dataset

DATASETS = ("101", "102", "106", "104")  # BUSI, Polyp, EMIDEC, Glioma
ARMS: dict[str, tuple[str, ...]] = {"alone": (), "synthetic": ("--pretrained", "synthetic")}


def preprocessed(args: argparse.Namespace, dataset: str) -> Path:
    return args.work / "preprocessed" / find_dataset(args.raw, dataset)


def configuration_of(args: argparse.Namespace, dataset: str) -> str:
    """The configuration that the plan recommends."""
    return str(json.loads((preprocessed(args, dataset) / "plans.json").read_text())["recommended_configuration"])


def fold_folder(args: argparse.Namespace, dataset: str, arm: str, seed: int) -> Path:
    """Results of one training."""
    model = ModelName(TRAINER, configuration_of(args, dataset), None, f"{arm}{run_name(args.seconds, seed)}")
    return args.work / "results" / find_dataset(args.raw, dataset) / model.folder / "fold_0"


def num_validation_cases(args: argparse.Namespace, dataset: str) -> int:
    return len(json.loads((preprocessed(args, dataset) / "splits_final.json").read_text())[0]["val"])


def train(args: argparse.Namespace) -> None:
    for dataset in args.datasets:
        if not (preprocessed(args, dataset) / "plans.json").is_file():
            run(args, "usd_plan_and_preprocess", "-d", dataset)
    for seed in args.seeds:
        for arm in args.arms:
            for dataset in args.datasets:
                folder, name = fold_folder(args, dataset, arm, seed), f"{arm}{run_name(args.seconds, seed)}"
                what = (dataset, "0", "--max-time", f"{args.seconds}s", "--seed", str(seed), "--run", name)
                if not (folder / "validation" / "summary.json").is_file():
                    run(args, "usd_train", *what, "--workers", "0", *ARMS[arm])
                if len(scores_of(folder)) < num_validation_cases(args, dataset):  # the seconds were over
                    run(args, "usd_train", *what, "--val")


def dice_of(folder: Path) -> dict[str, float]:
    """Mean Dice over the classes that the reference of a case holds; cases without any are left out."""
    result = {}
    for case in json.loads((folder / "validation" / "summary.json").read_text())["cases"]:
        dice = [score["dice"] for score in case["scores"] if score["tp"] + score["fn"] > 0]
        if dice:
            result[case["case_id"]] = fmean(dice)
    return result


def table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: a line for every data set and seed, and the means over data sets."""
    lines = [
        "| set | configuration | seed | cases | random weights | generated lesions | difference [95 %] | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed in args.seeds:
        means = []
        for dataset in args.datasets:
            arms = [dice_of(fold_folder(args, dataset, arm, seed)) for arm in ARMS]
            alone, start = arms
            means.append([fmean(arm.values()) for arm in arms])
            name = find_dataset(args.raw, dataset)
            cells = difference_cells(start, alone, groups_of(args.raw / name))
            where = f"{name.split('_', 1)[1]} | {configuration_of(args, dataset)} | {seed} | {len(alone)}"
            lines.append(f"| {where} | {means[-1][0]:.3f} | {means[-1][1]:.3f} | {cells} |")
        alone_mean, start_mean = (fmean(values) for values in zip(*means, strict=True))
        difference = f"**{start_mean - alone_mean:+.3f}**"
        lines.append(f"| **mean** | | {seed} | | **{alone_mean:.3f}** | **{start_mean:.3f}** | {difference} | |")
    return lines


def add_trainings(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Flags that say which trainings there are."""
    parser.add_argument("--datasets", nargs="+", default=datasets)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])


def main() -> None:
    parser = parser_of(__doc__)
    add_trainings(parser, DATASETS)
    run_benchmark(parser.parse_args(), train=train, table=table)


if __name__ == "__main__":
    main()
