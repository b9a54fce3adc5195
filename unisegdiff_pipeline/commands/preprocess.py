"""usd_preprocess: crop, normalise, resample and store what plans.json asks for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands import steps
from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_case_workers,
    add_configurations,
    add_plans,
    dataset_parser,
)
from unisegdiff_pipeline.commands.terminal import say

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.paths import Roots


def build_parser() -> CommandParser:
    """Parser of usd_preprocess."""
    return dataset_parser(
        "usd_preprocess",
        "Preprocess data sets by their plans.json, then plan the stages of the diffusion from the labels.\n"
        "Only cases that are new or changed are done again.",
        add_configurations,
        add_plans,
        add_case_workers,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_preprocess."""
    return steps.run_on_datasets(lambda: build_parser().parse_args(argv), _prepare)


def _prepare(args: argparse.Namespace, roots: Roots) -> Callable[[str], None]:
    from unisegdiff_pipeline import pipeline

    plans_name = steps.plans_name_of(args)

    def preprocess(dataset: str) -> None:
        raw = steps.raw_folder(roots, dataset)
        step = pipeline.preprocess(
            raw,
            roots.preprocessed_dataset(raw.name),
            configurations=args.configuration,
            plans_name=plans_name,
            workers=args.workers,
            scheduler=args.scheduler,
        )
        report = "" if step.report is None else f"\nReport: {step.report}"
        say(f"Preprocessed: {step.folder}{report}")

    return preprocess
