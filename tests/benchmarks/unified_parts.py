"""What the parts of a unified model are worth, at equal iterations: tables of benchmarks/unified_parts.md.

    python -m tests.benchmarks.unified_parts train --work FOLDER --raw ROOT --unified 510 [--iterations 400 200]
    python -m tests.benchmarks.unified_parts table --work FOLDER --raw ROOT --unified 510 [--iterations 400 200]

`train` plans and preprocesses the unified data set (made by usd_unify before, in ROOT), trains the segmenter of fold 0
by the plan and by each plan of PLANS, which differs in one field of `sources`; then, on the phase 1 of the first, the
second phase of each trainer of TRAINERS; and, for what the first phase is worth, the second phase alone, on a segmenter
of one iteration, for as many iterations as both have. What is there is not trained again. Scores are those of the
trainings' own validation: Dice over the cases with a lesion, and the energy score of the sampled masks over all. The
mean is that of the sources' means; its interval is of normal shape with the error of `macro_interval`, over groups
(patients) within each source; p is Wilcoxon's, over the groups of all sources.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.unified import (
    dice_where_lesion,
    energies,
    false_alarms,
    groups_of,
    parser_of,
    roots_of,
    run,
    run_benchmark,
    scores_of,
)
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.evaluation.comparison import macro_interval, paired_comparison
from unisegdiff_pipeline.inference.model_name import ModelName
from unisegdiff_pipeline.io.paths import find_dataset
from unisegdiff_pipeline.io.sources import cases_by_source, source_of_case
from unisegdiff_pipeline.planning.plans import Plans, plans_file

SEGMENTER = "SegmentationTrainer"
PLANS: dict[str | None, dict[str, Any]] = {
    None: {},
    "unconditioned": {"conditioning": "none"},
    "adapter": {"channel_rule": "adapter"},
    "even": {"temperature": 0.0},
    "byimages": {"temperature": 1.0},
    "rate1": {"learning_rate_factor": 1.0},
    "rate10": {"learning_rate_factor": 10.0},
}
TRAINERS = ("StagedDiffusionTrainer", "X0DiffusionTrainer", "VDiffusionTrainer", "EpsilonDiffusionTrainer")
PHASE_2_ALONE = f"{TRAINERS[0]} alone"


def prepare(args: argparse.Namespace, plan: str | None) -> None:
    """The plan of that name, and the cases preprocessed by it."""
    folder = roots_of(args)["usd_preprocessed"] / find_dataset(args.raw, args.unified)
    if not (folder / plans_file(None)).is_file():
        run(args, "usd_plan_and_preprocess", "-d", args.unified, "-c", "2d")
    if plan is None or (folder / plans_file(plan)).is_file():
        return
    plans = read_dataclass(Plans, folder / plans_file(None))
    configuration = plans.configurations["2d"]
    assert configuration.sources is not None
    changed = replace(configuration, sources=replace(configuration.sources, **PLANS[plan]))
    write_json(folder / plans_file(plan), replace(plans, configurations={"2d": changed}))
    run(args, "usd_preprocess", "-d", args.unified, "-c", "2d", "--plans", plan)


def fold_folder(args: argparse.Namespace, trainer: str, plan: str | None, name: str) -> Path:
    """Results of one training."""
    dataset = args.work / "results" / find_dataset(args.raw, args.unified)
    return dataset / ModelName(trainer, "2d", plan, name).folder / "fold_0"


def folder_of(args: argparse.Namespace, trainer: str, seed: int) -> Path:
    """Results of one of the rows of TRAINERS and PHASE_2_ALONE."""
    if trainer == PHASE_2_ALONE:
        return fold_folder(args, TRAINERS[0], None, alone_name(seed))
    return fold_folder(args, trainer, None, run_name(seed))


def run_name(seed: int) -> str:
    return f"s{seed}"


def alone_name(seed: int) -> str:
    """Name of the trainings without a first phase."""
    return f"alone_s{seed}"


def train(args: argparse.Namespace) -> None:
    """Everything that is not there yet; an interrupted training goes on."""
    first, second = args.iterations
    for seed in args.seeds:
        for plan in PLANS:
            prepare(args, plan)
            _train(args, SEGMENTER, plan, run_name(seed), seed, first)
        trained, untrained = (fold_folder(args, SEGMENTER, None, name(seed)) for name in (run_name, alone_name))
        for trainer in TRAINERS:
            _train(args, trainer, None, run_name(seed), seed, second, "--phase-1-from", str(trained))
        _train(args, SEGMENTER, None, alone_name(seed), seed, 1)
        _train(args, TRAINERS[0], None, alone_name(seed), seed, first + second, "--phase-1-from", str(untrained))


def _train(
    args: argparse.Namespace, trainer: str, plan: str | None, name: str, seed: int, iterations: int, *more: str
) -> None:
    if (fold_folder(args, trainer, plan, name) / "validation" / "summary.json").is_file():
        return
    named = () if plan is None else ("--plans", plan)
    length = ("--iterations", str(iterations), "--seed", str(seed), "--run", name, "--workers", "0")
    run(args, "usd_train", args.unified, "0", "-c", "2d", "--trainer", trainer, *named, *length, *more)


def macro_mean(values: Mapping[str, float]) -> float:
    """Mean over sources of the means over their cases."""
    return fmean(fmean(values[case] for case in cases) for cases in cases_by_source(values).values())


def difference(first: Mapping[str, float], second: Mapping[str, float], groups: Mapping[str, str]) -> str:
    """Two cells of a table: mean over sources of first - second with its interval, and p."""
    cases = list(first)
    a, b = [first[case] for case in cases], [second[case] for case in cases]
    of_cases = [groups[case] for case in cases]
    gain, low, high = macro_interval(a, b, of_cases, [source_of_case(case) for case in cases])
    p = paired_comparison(a, b, of_cases, resamples=0).p_wilcoxon
    return f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] | {p:.2g}"


def rows_of_plans(
    args: argparse.Namespace, trainer: str, names: Mapping[int, str], plans: Iterable[str | None]
) -> list[str]:
    """Rows of a Markdown table: Dice by source of trainings of every plan beside those by the data set's own.

    Args:
        names: of the trainings, by seed.
        plans: keys of PLANS.
    """
    groups = groups_of(args.raw / find_dataset(args.raw, args.unified))
    lines = _header("plan", "seed", "Dice by source", "mean", "difference to the plan [95 %]", "p", "false alarms")
    for seed, name in names.items():
        base = dice_where_lesion(scores_of(fold_folder(args, trainer, None, name)))
        for plan in plans:
            scores = scores_of(fold_folder(args, trainer, plan, name))
            dice = dice_where_lesion(scores)
            cells = " | " if plan is None else difference(dice, base, groups)
            alarms = " of ".join(map(str, false_alarms(scores)))
            found = f"{_by_source(dice)} | {macro_mean(dice):.3f} | {cells} | {alarms}"
            lines.append(f"| {plan or 'as planned'} | {seed} | {found} |")
    return lines


def table(args: argparse.Namespace) -> list[str]:
    """Rows of two Markdown tables: Dice of the plans, then Dice and energy score of the trainers."""
    groups = groups_of(args.raw / find_dataset(args.raw, args.unified))
    lines = rows_of_plans(args, SEGMENTER, {seed: run_name(seed) for seed in args.seeds}, PLANS)
    against = ("staged - it [95 %]", "p")
    lines += ["", *_header("trainer", "seed", "Dice by source", "mean", *against, "energy score", *against)]
    for seed in args.seeds:
        folder = folder_of(args, TRAINERS[0], seed)
        staged, energy_of_staged = dice_where_lesion(scores_of(folder)), energies(folder)
        for trainer in (*TRAINERS, PHASE_2_ALONE):
            folder = folder_of(args, trainer, seed)
            dice, energy = dice_where_lesion(scores_of(folder)), energies(folder)
            cells = [" | "] * 2
            if trainer != TRAINERS[0]:
                cells = [difference(staged, dice, groups), difference(energy_of_staged, energy, groups)]
            lines.append(
                f"| {trainer} | {seed} | {_by_source(dice)} | {macro_mean(dice):.3f} | {cells[0]} | "
                f"{macro_mean(energy):.3f} | {cells[1]} |"
            )
    return lines


def _header(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]


def _by_source(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{source} {fmean(values[case] for case in cases):.3f}" for source, cases in cases_by_source(values).items()
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--unified", required=True)
    parser.add_argument("--iterations", type=int, nargs=2, default=[400, 200], help="of the two phases")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    run_benchmark(parser.parse_args(), train=train, table=table)


if __name__ == "__main__":
    main()
