"""usd_fingerprint: check a raw data set and collect its facts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands import steps
from unisegdiff_pipeline.commands.common import CommandParser, add_case_workers, dataset_parser
from unisegdiff_pipeline.commands.terminal import say

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.paths import Roots


def build_parser() -> CommandParser:
    """Parser of usd_fingerprint."""
    return dataset_parser(
        "usd_fingerprint",
        "Check raw data sets and collect their facts: spacing, shape, intensities, and lesions.\n"
        "All problems are named in one run. usd_plan_and_preprocess does this first.",
        add_case_workers,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_fingerprint."""
    return steps.run_on_datasets(lambda: build_parser().parse_args(argv), _prepare)


def _prepare(args: argparse.Namespace, roots: Roots) -> Callable[[str], None]:
    from unisegdiff_pipeline import pipeline

    def fingerprint(dataset: str) -> None:
        raw = steps.raw_folder(roots, dataset)
        step = pipeline.fingerprint(raw, roots.require_preprocessed(), workers=args.workers, scheduler=args.scheduler)
        say(f"Facts: {step.folder / pipeline.FINGERPRINT}\nReport: {step.report}")

    return fingerprint
