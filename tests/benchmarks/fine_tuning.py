"""What a start from a unified model is worth: few cases of a data set that it has not seen, at equal seconds.

    python -m tests.benchmarks.fine_tuning train --work FOLDER --raw ROOT --dataset 101 --start FOLD --seconds 120
    python -m tests.benchmarks.fine_tuning table --work FOLDER --raw ROOT --dataset 101 --start FOLD --seconds 120

The cases of the data set are shuffled once. The second half is scored; the first N of the first half are trained on,
for every N of `--cases`, so that a training on more cases knows those of a training on fewer. `alone` has the plan of
the data set and random weights, `start` the plan and the weights of `--start` (a fold of the unified model). `train`
goes on where it was interrupted; it first predicts the scored cases with the model of `--start` itself, as images of an
unknown source, which is the row of no case at all. Scores are those of the trainings' own validation. `phase_1` shows
how both got there: Dice on the held-out cases while phase 1 lasted, and the loss on the training cases when it ended.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path
from statistics import fmean

from tests.benchmarks.unified import (
    TRAINER,
    Scores,
    dice_where_lesion,
    difference_cells,
    false_alarms,
    groups_of,
    parser_of,
    roots_of,
    run,
    run_benchmark,
    scores_of,
)
from unisegdiff_pipeline.inference.model_name import ModelName
from unisegdiff_pipeline.io.paths import find_dataset
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.plans import PLANS_PREFIX
from unisegdiff_pipeline.reports.training_log import LOG_NAME, held_out_dice, of_kind, read_log

SHUFFLE_SEED = 12345
COUNTS = ("dice", "tp", "fp", "fn")
LIKE_START = "like_start"
SHOWN_LOOKS = {"a third": 1, "half": 2, "the end": 5}  # of the six that a phase 1 takes at its held-out cases
PLANS: dict[str, str | None] = {"alone": None, "start": LIKE_START}


def splits(cases: list[str], numbers: list[int]) -> list[dict[str, list[str]]]:
    """A fold for every number of training cases, all with the same cases to score: half of all."""
    shuffled = sorted(cases)
    random.Random(SHUFFLE_SEED).shuffle(shuffled)
    half = len(shuffled) // 2
    if max(numbers) > half:
        raise SystemExit(f"--cases {max(numbers)}: half of the {len(shuffled)} cases are scored, {half} are left")
    return [{"train": sorted(shuffled[:number]), "val": sorted(shuffled[half:])} for number in numbers]


def case_names(args: argparse.Namespace) -> list[str]:
    """All cases of the data set."""
    return [case.case_id for case in open_raw_dataset(args.raw / find_dataset(args.raw, args.dataset)).cases]


def scored_cases(args: argparse.Namespace) -> set[str]:
    """The cases that every training is scored on."""
    return set(splits(case_names(args), args.cases)[0]["val"])


def prepare(args: argparse.Namespace) -> None:
    """Both plans, preprocessed cases, and the folds."""
    roots = roots_of(args)
    folder = roots["usd_preprocessed"] / find_dataset(args.raw, args.dataset)
    what = ("-d", args.dataset, "-c", "2d")
    if not (folder / "plans.json").is_file():
        run("usd_plan_and_preprocess", *what, roots=roots)
    if not (folder / f"{PLANS_PREFIX}{LIKE_START}.json").is_file():
        run("usd_plan_and_preprocess", *what, "--plans", LIKE_START, "--for-weights", str(args.start), roots=roots)
    wanted = json.dumps(splits(case_names(args), args.cases), indent=1)
    file = folder / "splits_final.json"
    trained = args.work / "results" / folder.name
    if trained.is_dir() and file.read_text() != wanted:
        raise SystemExit(f"{trained} was trained with other folds than --cases {args.cases}: give another --work")
    file.write_text(wanted)


def fold_folder(args: argparse.Namespace, arm: str, number: int, seed: int) -> Path:
    """Results of one training."""
    dataset = args.work / "results" / find_dataset(args.raw, args.dataset)
    model = ModelName(TRAINER, "2d", PLANS[arm], run_name(args, seed))
    return dataset / model.folder / f"fold_{args.cases.index(number)}"


def run_name(args: argparse.Namespace, seed: int) -> str:
    return f"t{args.seconds}s{seed}"


def train(args: argparse.Namespace) -> None:
    prepare(args)
    predict_unseen(args)
    num_scored = len(scored_cases(args))
    for seed in args.seeds:
        for number in args.cases:
            for arm in PLANS:
                folder = fold_folder(args, arm, number, seed)
                if (folder / "validation" / "summary.json").is_file() and len(scores_of(folder)) == num_scored:
                    continue
                plans = PLANS[arm]
                more = () if plans is None else ("--plans", plans, "--pretrained", str(args.start))
                budget = ("--max-time", f"{args.seconds}s", "--seed", str(seed), "--run", run_name(args, seed))
                what = (args.dataset, str(args.cases.index(number)), "-c", "2d", "--workers", "0")
                run("usd_train", *what, *budget, *more, roots=roots_of(args))
                if len(scores_of(folder)) < num_scored:  # the seconds were over: the rest is scored behind them
                    run("usd_train", *what, *budget, *more, "--val", roots=roots_of(args))


def predict_unseen(args: argparse.Namespace) -> None:
    """Masks of the scored cases by the model of the start itself, and their evaluation."""
    raw = args.raw / find_dataset(args.raw, args.dataset)
    images, out = args.work / "unseen_images", args.work / "unseen_masks"
    if (out / "evaluation" / "summary.json").is_file():
        return
    images.mkdir(exist_ok=True)
    scored = scored_cases(args)
    for path in (raw / "imagesTr").iterdir():
        link = images / path.name
        if path.name.rsplit("_", 1)[0] in scored and not link.exists():
            link.symlink_to(path.resolve())
    fold = args.start.name.removeprefix("fold_")
    roots = roots_of(args)
    run("usd_predict", "-m", str(args.start.parent), "-f", fold, "-i", str(images), "-o", str(out), roots=roots)
    evaluation = ("--subset", "--no-report", "-o", str(out / "evaluation"))
    run("usd_evaluate", str(raw / "labelsTr"), str(out), *evaluation, roots=roots)


def table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: a line for every number of cases and seed."""
    lines = [
        f"| training cases | seed | scored | alone, {args.seconds} s | start, {args.seconds} s | difference [95 %] | "
        "p | false alarms alone | start |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with (args.work / "unseen_masks" / "evaluation" / "metrics.csv").open(newline="") as file:
        scores: Scores = {row["case"]: {name: row[name] or None for name in COUNTS} for row in csv.DictReader(file)}
    dice, alarms = dice_where_lesion(scores), false_alarms(scores)
    lines.append(f"| 0 (unseen) | | {len(dice)} | | {fmean(dice.values()):.3f} | | | | {alarms[0]} of {alarms[1]} |")
    groups = groups_of(args.raw / find_dataset(args.raw, args.dataset))
    for number in args.cases:
        for seed in args.seeds:
            arms = [scores_of(fold_folder(args, arm, number, seed)) for arm in PLANS]
            alone, start = (dice_where_lesion(arm) for arm in arms)
            lines.append(
                f"| {number} | {seed} | {len(alone)} | {fmean(alone.values()):.3f} | {fmean(start.values()):.3f} | "
                f"{difference_cells(start, alone, groups)} | "
                + " | ".join("{} of {}".format(*false_alarms(arm)) for arm in arms)
                + " |"
            )
    return lines


def phase_1(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: how `alone` and `start` learn in phase 1, a line for every number of cases and seed."""
    columns = [f"Dice at {name}: {arm}" for name in SHOWN_LOOKS for arm in PLANS]
    columns += [f"training loss at the end: {arm}" for arm in PLANS]
    lines = [f"| training cases | seed | {' | '.join(columns)} |", "|" + "---|" * (2 + len(columns))]
    for number in args.cases:
        for seed in args.seeds:
            logs = [read_log(fold_folder(args, arm, number, seed) / LOG_NAME) for arm in PLANS]
            dice = [[held_out_dice(entry) for entry in of_kind(log, "validation", 1)] for log in logs]
            cells = [f"{arm[look]:.3f}" for look in SHOWN_LOOKS.values() for arm in dice]
            cells += [f"{of_kind(log, 'train', 1)[-1]['loss']:.2f}" for log in logs]
            lines.append(f"| {number} | {seed} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = parser_of(__doc__, "phase_1")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--start", type=Path, required=True, help="a fold folder")
    parser.add_argument("--cases", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    run_benchmark(parser.parse_args(), train=train, table=table, phase_1=phase_1)


if __name__ == "__main__":
    main()
