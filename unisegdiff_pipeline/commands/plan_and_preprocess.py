"""usd_plan_and_preprocess: from raw data to everything that training needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_budget,
    add_case_workers,
    add_configurations,
    add_datasets,
    add_roots,
    roots_of,
    run,
    say,
)


def build_parser() -> CommandParser:
    """Parser of usd_plan_and_preprocess."""
    parser = CommandParser(
        "usd_plan_and_preprocess",
        "Check raw data sets, collect their facts, plan, and preprocess.\n"
        "Run it again after a change of the data: only what changed is preprocessed again.",
    )
    add_datasets(parser)
    add_configurations(parser)
    add_budget(parser)
    add_case_workers(parser)
    parser.add_argument("--dry-run", action="store_true", help="check and plan, print the plan, write nothing")
    add_roots(parser, "raw", "preprocessed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_plan_and_preprocess."""
    args = build_parser().parse_args(argv)
    return run(lambda: _do_all(args))


def _do_all(args: argparse.Namespace) -> int:
    from unisegdiff_pipeline.commands import steps
    from unisegdiff_pipeline.planning.budget import detect_budget

    roots, budget = roots_of(args), detect_budget(args.device, args.memory_gb)

    def work(dataset: str) -> None:
        raw = steps.open_raw(roots, dataset)
        if args.dry_run:
            fingerprint, _ = steps.fingerprint_step(raw, args.workers, args.scheduler)
            say(steps.describe_plans(steps.plan_step(raw, fingerprint, budget)))
            return
        folder = roots.require_preprocessed() / raw.name
        steps.plan_and_preprocess(raw, folder, budget, args.configuration, args.workers, args.scheduler)
        say(f"Report: {folder / steps.REPORT}\nReady to train: {folder}\nNext: usd_train {raw.name} 0")

    return steps.for_each_dataset(args.dataset, work)
