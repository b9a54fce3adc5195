"""usd_plan_and_preprocess: from raw data to everything that training needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands import steps
from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_budget,
    add_case_workers,
    add_configurations,
    add_for_weights,
    add_plans,
    add_splits,
    dataset_parser,
    root_flags,
)
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.paths import Roots


def build_parser() -> CommandParser:
    """Parser of usd_plan_and_preprocess."""
    parser = dataset_parser(
        "usd_plan_and_preprocess",
        "Check raw data sets, collect their facts, plan, and preprocess.\n"
        "Run it again after a change of the data: only what changed is preprocessed again.",
        add_configurations,
        add_budget,
        add_plans,
        add_for_weights,
        add_case_workers,
        add_splits,
    )
    parser.add_argument(
        "--remap",
        type=Path,
        metavar="FILE",
        help='JSON: value of the label files => label, as {"255": 1}; as label_map of dataset.json, for data that are '
        "not to be changed",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and plan, print the plan, write nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_plan_and_preprocess."""
    return steps.run_on_datasets(lambda: build_parser().parse_args(argv), _prepare)


def _prepare(args: argparse.Namespace, roots: Roots) -> Callable[[str], None]:
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.io.label_map import read_label_map
    from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
    from unisegdiff_pipeline.planning.budget import detect_budget
    from unisegdiff_pipeline.planning.description import describe_plans
    from unisegdiff_pipeline.training.data.splits import find_test_cases, wanted_splits

    budget = detect_budget(args.device, args.memory_gb, args.preset)
    plans_name = steps.plans_name_of(args)
    flags = "" if plans_name is None else f" --plans {plans_name}"
    if args.for_weights is not None:
        flags += f" --pretrained {quoted(args.for_weights)}"
    flags += root_flags(args, "raw", "preprocessed")
    label_map = None if args.remap is None else read_label_map(args.remap)

    def plan_and_preprocess(dataset: str) -> None:
        folder = steps.raw_folder(roots, dataset)
        raw = open_raw_dataset(folder, label_map)
        cases = {case.case_id: case.group or case.case_id for case in raw.cases}
        # What cannot be is refused before anything is preprocessed.
        test = find_test_cases(folder / "dataset.json", cases)
        wanted_splits({case: group for case, group in cases.items() if case not in test}, args.splits)
        if args.dry_run:
            facts, _ = pipeline.check_and_measure(raw, args.workers, args.scheduler)
            weights = None if args.for_weights is None else pipeline.weights_to_follow(args.for_weights)
            say(describe_plans(pipeline.make_plans(raw, facts, budget, weights=weights)))
            return
        request = pipeline.PrepareRequest(
            configurations=tuple(args.configuration or ()),
            budget=budget,
            plans_name=plans_name,
            workers=args.workers,
            scheduler=args.scheduler,
            for_weights=args.for_weights,
            label_map=label_map,
            splits=args.splits,
        )
        prepared = pipeline.prepare(folder, roots.require_preprocessed(), request)
        report = "" if prepared.report is None else f"Report: {prepared.report}\n"
        first = f"usd_train {quoted(folder.name)} {prepared.first_fold}{flags}"
        say(f"{report}Ready to train: {prepared.folder}\nNext: {first}")

    return plan_and_preprocess
