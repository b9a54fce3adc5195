"""One unified 2D model against a model for each source, with the same seconds in total, on fold 0 of every source.

    python -m tests.benchmarks.unified train --work FOLDER --raw ROOT --unified 500 --sources 101 102 ... --seconds 480
    python -m tests.benchmarks.unified table --work FOLDER --raw ROOT --unified 500 --sources 101 102 ... --seconds 480
    python -m tests.benchmarks.unified quality ...
    python -m tests.benchmarks.unified unseen ... --unseen 108 110

`train` plans, preprocesses and trains what is not there yet: the unified data set (made by usd_unify before, in ROOT)
for all the seconds, and each source alone for its equal part. Folds of a unified data set are those of its sources, so
that both validate on the same cases; `table` refuses where they do not. Scores are those of the trainings' own
validation; lesion F1 of a case and the energy score of its samples have a table of their own. `unseen` sets the unified
model beside models of data sets of one class that it does not hold: their images are of an unknown source for it. The
interval of a
difference is a bootstrap, the test Wilcoxon's signed ranks, both over groups (patients).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean

from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import find_meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.spread import SPREAD_NAME
from unisegdiff_pipeline.io.paths import find_dataset
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

TRAINER = "StagedDiffusionTrainer"
COUNTS = ("dice", "tp", "fp", "fn")
Scores = dict[str, dict[str, float | str | None]]


def run(args: argparse.Namespace, command: str, *arguments: str) -> None:
    """One command of this package, with the folders of the benchmark and the clock that was asked for."""
    environment = {**os.environ, **{name: str(path) for name, path in roots_of(args).items()}}
    start = [str(Path(sys.executable).parent / command)]
    if args.processor_seconds:
        start = [sys.executable, "-m", "tests.benchmarks.processor_clock", command]
    subprocess.run([*start, *arguments], env=environment, check=True)


def roots_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of the product under the folder of the benchmark."""
    return {
        "usd_raw": args.raw,
        "usd_preprocessed": args.work / "preprocessed",
        "usd_results": args.work / "results",
    }


def fold_folder(args: argparse.Namespace, dataset: str, name: str) -> Path:
    """Results of fold 0 of one training."""
    return args.work / "results" / find_dataset(args.raw, dataset) / f"{TRAINER}__2d__{name}" / "fold_0"


def run_name(seconds: int, seed: int) -> str:
    """Name of a training by its budget and seed."""
    return f"t{seconds}s{seed}"


def train(args: argparse.Namespace) -> None:
    """Everything that is not there yet; an interrupted training goes on."""
    part = args.seconds // len(args.sources)
    jobs = [*((dataset, part) for dataset in (*args.sources, *args.unseen)), (args.unified, args.seconds)]
    for dataset, _ in jobs:
        if not (roots_of(args)["usd_preprocessed"] / find_dataset(args.raw, dataset) / "splits_final.json").is_file():
            run(args, "usd_plan_and_preprocess", "-d", dataset, "-c", "2d")
    for seed in args.seeds:
        for dataset, seconds in jobs:
            name = run_name(seconds, seed)
            if not (fold_folder(args, dataset, name) / "validation" / "summary.json").is_file():
                budget = ("--max-time", f"{seconds}s", "--seed", str(seed), "--run", name)
                run(args, "usd_train", dataset, "0", "-c", "2d", *budget, "--workers", str(args.workers))


def unseen_table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: a line for every data set of --unseen and seed; predicts what is not there yet."""
    part = args.seconds // len(args.sources)
    lines = [
        f"| data set | seed | cases | alone, {part} s | unseen | difference [95 %] | p | false alarms alone | unseen |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in args.seeds:
        fold = fold_folder(args, args.unified, run_name(args.seconds, seed))
        for dataset in args.unseen:
            name = find_dataset(args.raw, dataset)
            alone = scores_of(fold_folder(args, dataset, run_name(part, seed)))
            work = args.work / "unseen" / f"{args.unified}_{run_name(args.seconds, seed)}" / name
            unseen = scores_as_unknown(args, fold, args.raw / name, set(alone), work)
            lines.append(_row(name.split("_", 1)[1], seed, alone, unseen, groups_of(args.raw / name)))
    return lines


def scores_as_unknown(args: argparse.Namespace, fold: Path, raw: Path, cases: set[str], work: Path) -> Scores:
    """Scores of cases of a raw data set that a fold of a unified model predicts as images of an unknown source.

    Masks and their evaluation lie in `work`; they are made once.
    """
    images, masks = work / "images", work / "masks"
    metrics = masks / "evaluation" / "metrics.csv"
    if not metrics.is_file():
        images.mkdir(parents=True, exist_ok=True)
        for path in (raw / "imagesTr").iterdir():
            link = images / path.name
            if path.name.rsplit("_", 1)[0] in cases and not link.exists():
                link.symlink_to(path.resolve())
        number = fold.name.removeprefix("fold_")
        run(args, "usd_predict", "-m", str(fold.parent), "-f", number, "-i", str(images), "-o", str(masks))
        evaluation = ("--subset", "--no-report", "-o", str(metrics.parent))
        run(args, "usd_evaluate", str(raw / "labelsTr"), str(masks), *evaluation)
    with metrics.open(newline="") as file:
        return {row["case"]: {name: row[name] or None for name in COUNTS} for row in csv.DictReader(file)}


def scores_of(folder: Path, prefix: str = "") -> Scores:
    """Score of the first class of every validated case whose name begins with `prefix`, by the rest of its name."""
    cases = json.loads((folder / "validation" / "summary.json").read_text())["cases"]
    return {
        case["case_id"].removeprefix(prefix): case["scores"][0] for case in cases if case["case_id"].startswith(prefix)
    }


def dice_where_lesion(scores: Scores) -> dict[str, float]:
    """Dice of the cases whose reference holds a lesion."""
    return {case: _number(score["dice"]) for case, score in scores.items() if _positive(score)}


def false_alarms(scores: Scores) -> tuple[int, int]:
    """Lesion-free cases with a predicted lesion, and lesion-free cases."""
    free = [score for score in scores.values() if not _positive(score)]
    return sum(_number(score["fp"]) > 0 for score in free), len(free)


def _positive(score: dict[str, float | str | None]) -> bool:
    return _number(score["tp"]) + _number(score["fn"]) > 0


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: a line for every source and seed, and the macro means."""
    part = args.seconds // len(args.sources)
    lines = [
        f"| source | seed | cases | alone, {part} s | unified, {args.seconds} s in all | difference [95 %] | p | false "
        "alarms alone | unified |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in args.seeds:
        means: list[tuple[float, float]] = []
        for dataset in args.sources:
            source = find_dataset(args.raw, dataset).split("_", 1)[1]
            groups = groups_of(args.raw / find_dataset(args.raw, dataset))
            alone = scores_of(fold_folder(args, dataset, run_name(part, seed)))
            unified = scores_of(fold_folder(args, args.unified, run_name(args.seconds, seed)), f"{source}__")
            if alone.keys() != unified.keys():
                raise SystemExit(f"{source}, seed {seed}: other cases were validated alone than unified")
            lines.append(_row(source, seed, alone, unified, groups))
            means.append((_mean_dice(alone), _mean_dice(unified)))
        lines.append(_macro(seed, means))
    return lines


def quality_table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: lesion F1 of cases with a lesion, and energy score of all cases."""
    lines = [
        "| source | seed | lesion F1 alone | unified | difference [95 %] | p | energy score alone | unified | "
        "difference [95 %] | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    part = args.seconds // len(args.sources)
    unified_raw = args.raw / find_dataset(args.raw, args.unified)
    for seed in args.seeds:
        of_unified = fold_folder(args, args.unified, run_name(args.seconds, seed))
        unified = lesion_f1(unified_raw, of_unified), energies(of_unified)
        for dataset in args.sources:
            name = find_dataset(args.raw, dataset)
            source, groups = name.split("_", 1)[1], groups_of(args.raw / name)
            folder = fold_folder(args, dataset, run_name(part, seed))
            cells = ""
            for all_of_unified, alone in zip(
                unified, (lesion_f1(args.raw / name / "labelsTr", folder), energies(folder)), strict=True
            ):
                own = {case: all_of_unified[f"{source}__{case}"] for case in alone}
                both = [case for case in alone if not math.isnan(alone[case]) and not math.isnan(own[case])]
                first, second = ({case: values[case] for case in both} for values in (alone, own))
                means = f"{fmean(first.values()):.3f} | {fmean(second.values()):.3f}"
                cells += f" {means} | {difference_cells(second, first, groups)} |"
            lines.append(f"| {source} | {seed} |{cells}")
    return lines


def lesion_f1(reference: Path, fold: Path) -> dict[str, float]:
    """Lesion F1 of the first class of every validated case; NaN where the reference has no lesion."""
    masks = fold / "validation"
    options = EvaluationOptions(subset=True, resamples=0, workers=0)
    cases = evaluate_folders(reference, masks, find_meaning(reference, masks), options).cases
    return {case.case_id: case.classes[0].lesion_score.lesion_f1 for case in cases}


def energies(fold: Path) -> dict[str, float]:
    """Energy score of the sampled masks of every validated case; NaN where it has none."""
    cases = json.loads((fold / "validation" / SPREAD_NAME).read_text())["cases"]
    return {case["case_id"]: _number(case["energy"]) for case in cases}


def groups_of(folder: Path) -> dict[str, str]:
    """Group of every case of a raw data set; a case without one is its own."""
    return {case.case_id: case.group or case.case_id for case in open_raw_dataset(folder).cases}


def difference_cells(first: dict[str, float], second: dict[str, float], groups: dict[str, str]) -> str:
    """Two cells of a table: mean of first - second over the cases with its interval, and p, over groups."""
    pairs = [first.values(), (second[case] for case in first)]
    found = paired_comparison(*map(list, pairs), [groups[case] for case in first], resamples=10_000)
    difference = f"{found.mean_difference:+.3f} [{found.ci_low:+.3f}, {found.ci_high:+.3f}]"
    return f"{difference} | {found.p_wilcoxon:.2g}"


def _row(name: str, seed: int, alone: Scores, other: Scores, groups: dict[str, str]) -> str:
    """Line of a table: a model of one source beside another model, on the same cases."""
    first, second = dice_where_lesion(alone), dice_where_lesion(other)
    alarms = [" of ".join(map(str, false_alarms(scores))) for scores in (alone, other)]
    return (
        f"| {name} | {seed} | {len(first)} | {_mean_dice(alone):.3f} | {_mean_dice(other):.3f} | "
        f"{difference_cells(second, first, groups)} | {alarms[0]} | {alarms[1]} |"
    )


def _mean_dice(scores: Scores) -> float:
    return fmean(dice_where_lesion(scores).values())


def _macro(seed: int, means: Iterable[tuple[float, float]]) -> str:
    alone, unified = (fmean(values) for values in zip(*means, strict=True))
    return f"| **macro mean** | {seed} | | **{alone:.3f}** | **{unified:.3f}** | **{unified - alone:+.3f}** | | | |"


def parser_of(description: str | None, *more: str) -> argparse.ArgumentParser:
    """What benchmarks that train and then print a table ask for; `more` are further things that they do."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "table", *more))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--processor-seconds", action="store_true", help="budgets in processor time, see that module")
    return parser


def run_benchmark(args: argparse.Namespace, **what: Callable[[argparse.Namespace], list[str] | None]) -> None:
    """Do what is asked for, and print the lines of a table where that gives one."""
    lines = what[args.what](args)
    if lines is not None:
        print("\n".join(lines))


def main() -> None:
    parser = parser_of(__doc__, "quality", "unseen")
    parser.add_argument("--unified", required=True)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--unseen", nargs="*", default=[], help="data sets that the unified one does not hold")
    parser.add_argument("--seconds", type=int, default=480)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=0)
    run_benchmark(parser.parse_args(), train=train, table=table, quality=quality_table, unseen=unseen_table)


if __name__ == "__main__":
    main()
