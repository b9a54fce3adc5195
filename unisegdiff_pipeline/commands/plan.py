"""usd_plan: turn a fingerprint into plans.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands import steps
from unisegdiff_pipeline.commands.common import CommandParser, add_budget, add_for_weights, add_plans, dataset_parser
from unisegdiff_pipeline.commands.terminal import say

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.paths import Roots


def build_parser() -> CommandParser:
    """Parser of usd_plan."""
    parser = dataset_parser(
        "usd_plan",
        "Plan spacing, patch, network and batch from the fingerprint, with a reason for each decision.\n"
        "The stages of the diffusion are planned by usd_preprocess, from the preprocessed labels.",
        add_budget,
        add_plans,
        add_for_weights,
    )
    parser.add_argument(
        "--from",
        dest="moved_from",
        type=Path,
        metavar="PLANS",
        help="take spacing, patch, network and training of this plans.json of another data set; intensities and all "
        "else follow the data",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan instead of writing it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_plan."""
    return steps.run_on_datasets(lambda: build_parser().parse_args(argv), _prepare)


def _prepare(args: argparse.Namespace, roots: Roots) -> Callable[[str], None]:
    import json

    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.core.serialization import to_jsonable
    from unisegdiff_pipeline.planning.budget import detect_budget
    from unisegdiff_pipeline.planning.description import describe_plans
    from unisegdiff_pipeline.planning.plans import plans_file

    if args.moved_from is not None and (args.for_weights is not None or args.preset is not None):
        raise UsdError("--from, --for-weights and --preset all say what the network is; keep one of them.")
    budget = detect_budget(args.device, args.memory_gb, args.preset)
    plans_name = steps.plans_name_of(args)

    def plan(dataset: str) -> None:
        raw = steps.raw_folder(roots, dataset)
        step = pipeline.plan(
            raw,
            roots.require_preprocessed(),
            budget=budget,
            plans_name=plans_name,
            writing=not args.dry_run,
            for_weights=args.for_weights,
            moved_from=args.moved_from,
        )
        assert step.plans is not None
        if args.dry_run:
            say(json.dumps(to_jsonable(step.plans), indent=1))
            return
        report = "" if step.report is None else f"\nReport: {step.report}"
        say(f"{describe_plans(step.plans)}\nPlans: {step.folder / plans_file(plans_name)}{report}")

    return plan
