"""usd_fingerprint: check a raw data set and collect its facts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_case_workers,
    add_datasets,
    add_roots,
    roots_of,
    run,
    say,
)


def build_parser() -> CommandParser:
    """Parser of usd_fingerprint."""
    parser = CommandParser(
        "usd_fingerprint",
        "Check raw data sets and collect their facts: spacing, shape, intensities, and lesions.\n"
        "All problems are named in one run. usd_plan_and_preprocess does this first.",
    )
    add_datasets(parser)
    add_case_workers(parser)
    add_roots(parser, "raw", "preprocessed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_fingerprint."""
    args = build_parser().parse_args(argv)
    return run(lambda: _fingerprint_all(args))


def _fingerprint_all(args: argparse.Namespace) -> int:
    from unisegdiff_pipeline.commands import steps

    roots = roots_of(args)

    def work(dataset: str) -> None:
        raw = steps.open_raw(roots, dataset)
        folder = roots.require_preprocessed() / raw.name
        fingerprint, report = steps.fingerprint_step(raw, args.workers, args.scheduler)
        steps.write_facts(folder, raw, fingerprint, report)
        page = steps.write_report(folder, with_plans=False)  # a former plan may be of other data
        say(f"Facts: {folder / steps.FINGERPRINT}\nReport: {page}")

    return steps.for_each_dataset(args.dataset, work)
