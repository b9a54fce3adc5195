"""usd_preprocess: crop, normalise, resample and store what plans.json asks for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_case_workers,
    add_configurations,
    add_datasets,
    add_roots,
    roots_of,
    run,
    say,
)


def build_parser() -> CommandParser:
    """Parser of usd_preprocess."""
    parser = CommandParser(
        "usd_preprocess",
        "Preprocess data sets by their plans.json, then plan the stages of the diffusion from the labels.\n"
        "Only cases that are new or changed are done again.",
    )
    add_datasets(parser)
    add_configurations(parser)
    add_case_workers(parser)
    add_roots(parser, "raw", "preprocessed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_preprocess."""
    args = build_parser().parse_args(argv)
    return run(lambda: _preprocess_all(args))


def _preprocess_all(args: argparse.Namespace) -> int:
    from unisegdiff_pipeline.commands import steps

    roots = roots_of(args)

    def work(dataset: str) -> None:
        raw = steps.open_raw(roots, dataset)
        folder, plans = steps.load_plans(roots, raw.name)
        steps.preprocess_step(raw, folder, plans, args.configuration, args.workers, args.scheduler)
        report = f"\nReport: {steps.write_report(folder)}" if (folder / steps.FINGERPRINT).is_file() else ""
        say(f"Preprocessed: {folder}{report}")

    return steps.for_each_dataset(args.dataset, work)
