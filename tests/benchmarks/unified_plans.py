"""Whole trainings of a unified data set by plans that differ in one field: a table of benchmarks/unified_parts.md.

    python -m tests.benchmarks.unified_plans train --work FOLDER --raw ROOT --unified 520 --plans adapter even
    python -m tests.benchmarks.unified_plans table --work FOLDER --raw ROOT --unified 520 --plans adapter even

Both phases of fold 0 in equal seconds, by the plan of the data set and by each named one of `unified_parts`, which
compares phase 1 alone in equal iterations. Folders and names are those of `tests.benchmarks.unified`, so that the
training by the plan of the data set is made once for both. What is there is not trained again. The difference is that
of the means over sources; its interval and p are those of `unified_parts`.
"""

from __future__ import annotations

import argparse

from tests.benchmarks.unified import TRAINER, parser_of, run, run_benchmark, run_name
from tests.benchmarks.unified_parts import PLANS, fold_folder, prepare, rows_of_plans


def train(args: argparse.Namespace) -> None:
    """Everything that is not there yet; an interrupted training goes on."""
    for seed in args.seeds:
        name = run_name(args.seconds, seed)
        for plan in (None, *args.plans):
            prepare(args, plan)
            if (fold_folder(args, TRAINER, plan, name) / "validation" / "summary.json").is_file():
                continue
            named = () if plan is None else ("--plans", plan)
            budget = ("--max-time", f"{args.seconds}s", "--seed", str(seed), "--run", name, "--workers", "0")
            run(args, "usd_train", args.unified, "0", "-c", "2d", *named, *budget)


def table(args: argparse.Namespace) -> list[str]:
    """Rows of a Markdown table: Dice of the plans by source."""
    names = {seed: run_name(args.seconds, seed) for seed in args.seeds}
    return rows_of_plans(args, TRAINER, names, (None, *args.plans))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--unified", required=True)
    parser.add_argument("--plans", nargs="+", choices=[plan for plan in PLANS if plan is not None], required=True)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    run_benchmark(parser.parse_args(), train=train, table=table)


if __name__ == "__main__":
    main()
