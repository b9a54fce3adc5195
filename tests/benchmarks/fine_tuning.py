"""What a start is worth for few cases of a data set: random weights, `synthetic`, a unified model; at equal seconds.

    python -m tests.benchmarks.fine_tuning train --work FOLDER --raw ROOT --dataset 101 --start FOLD --seconds 120
    python -m tests.benchmarks.fine_tuning table --work FOLDER --raw ROOT --dataset 101 --start FOLD --seconds 120

The cases of the data set are shuffled once. The second half is scored; the first N of the first half are trained on,
for every N of `--cases`, so that a training on more cases knows those of a training on fewer. `alone` has the plan of
the data set and random weights, `synthetic` that plan and the start that the package ships, `start` the plan and the
weights of `--start` (a fold of the unified model, which has not seen the data set). `train` goes on where it was
interrupted; where the data set has one class, it first predicts the scored cases with the model of `--start` itself, as
images of an unknown source, which is the row of no case at all. Scores are those of the trainings' own validation: for
each case the mean Dice over the classes that its reference holds. `phase_1` shows how they got there: Dice on the
held-out cases while phase 1 lasted, and the loss on the training cases when it ended.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from statistics import fmean

from tests.benchmarks.synthetic_start import ARMS, dice_of
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
    scores_as_unknown,
    scores_of,
)
from unisegdiff_pipeline.inference.model_name import ModelName
from unisegdiff_pipeline.io.paths import find_dataset
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.planning.plans import PLANS_PREFIX
from unisegdiff_pipeline.reports.training_log import LOG_NAME, held_out_dice, of_kind, read_log

SHUFFLE_SEED = 12345
LIKE_START = "like_start"
SHOWN_LOOKS = {"a third": 1, "half": 2, "the end": 5}  # of the six that a phase 1 takes at its held-out cases
PLANS: dict[str, str | None] = {"alone": None, "synthetic": None, "start": LIKE_START}


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


def has_one_class(args: argparse.Namespace) -> bool:
    """Whether the data set has one class, as the unified model has."""
    labels = json.loads((args.raw / find_dataset(args.raw, args.dataset) / "dataset.json").read_text())["labels"]
    return len(labels.keys() - {"background"}) == 1


def scored_cases(args: argparse.Namespace) -> set[str]:
    """The cases that every training is scored on."""
    return set(splits(case_names(args), args.cases)[0]["val"])


def prepare(args: argparse.Namespace) -> None:
    """Both plans, preprocessed cases, and the folds."""
    folder = roots_of(args)["usd_preprocessed"] / find_dataset(args.raw, args.dataset)
    what = ("-d", args.dataset, "-c", "2d")
    if not (folder / "plans.json").is_file():
        run(args, "usd_plan_and_preprocess", *what)
    if not (folder / f"{PLANS_PREFIX}{LIKE_START}.json").is_file():
        run(args, "usd_plan_and_preprocess", *what, "--plans", LIKE_START, "--for-weights", str(args.start))
    wanted = json.dumps(splits(case_names(args), args.cases), indent=1)
    file = folder / "splits_final.json"
    trained = args.work / "results" / folder.name
    if trained.is_dir() and file.read_text() != wanted:
        raise SystemExit(f"{trained} was trained with other folds than --cases {args.cases}: give another --work")
    file.write_text(wanted)


def fold_folder(args: argparse.Namespace, arm: str, number: int, seed: int) -> Path:
    """Results of one training."""
    dataset = args.work / "results" / find_dataset(args.raw, args.dataset)
    model = ModelName(TRAINER, "2d", PLANS[arm], run_name(args, arm, seed))
    return dataset / model.folder / f"fold_{args.cases.index(number)}"


def run_name(args: argparse.Namespace, arm: str, seed: int) -> str:
    return f"{arm}_t{args.seconds}s{seed}"


def train(args: argparse.Namespace) -> None:
    prepare(args)
    if has_one_class(args):
        unseen_scores(args)
    num_scored = len(scored_cases(args))
    for seed in args.seeds:
        for number in args.cases:
            for arm in PLANS:
                folder = fold_folder(args, arm, number, seed)
                if (folder / "validation" / "summary.json").is_file() and len(scores_of(folder)) == num_scored:
                    continue
                more = {**ARMS, "start": ("--plans", LIKE_START, "--pretrained", str(args.start))}[arm]
                budget = ("--max-time", f"{args.seconds}s", "--seed", str(seed), "--run", run_name(args, arm, seed))
                what = (args.dataset, str(args.cases.index(number)), "-c", "2d", "--workers", "0")
                run(args, "usd_train", *what, *budget, *more)
                if len(scores_of(folder)) < num_scored:  # the seconds were over: the rest is scored behind them
                    run(args, "usd_train", *what, *budget, *more, "--val")


def unseen_scores(args: argparse.Namespace) -> Scores:
    """Scores of the scored cases by the model of the start itself."""
    raw = args.raw / find_dataset(args.raw, args.dataset)
    return scores_as_unknown(args, args.start, raw, scored_cases(args), args.work / "unseen")


def table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: a line for every number of cases and seed."""
    lines = [
        "| training cases | seed | scored | alone | `synthetic` | - alone [95 %] | p | unified start | - alone [95 %] "
        "| p | false alarms: alone | `synthetic` | unified start |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    if has_one_class(args):
        scores = unseen_scores(args)
        dice, alarms = dice_where_lesion(scores), "{} of {}".format(*false_alarms(scores))
        unseen = f"| 0 (unseen) | | {len(dice)} | | | | | {fmean(dice.values()):.3f} | | | | | {alarms} |"
        lines.append(unseen)
    groups = groups_of(args.raw / find_dataset(args.raw, args.dataset))
    for number in args.cases:
        for seed in args.seeds:
            folders = [fold_folder(args, arm, number, seed) for arm in PLANS]
            alone, *starts = (dice_of(folder) for folder in folders)
            cells = [f"{number} | {seed} | {len(alone)} | {fmean(alone.values()):.3f}"]
            cells += [f"{fmean(start.values()):.3f} | {difference_cells(start, alone, groups)}" for start in starts]
            cells += ["{} of {}".format(*false_alarms(scores_of(folder))) for folder in folders]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def phase_1(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: how the arms learn in phase 1, a line for every number of cases and seed."""
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
