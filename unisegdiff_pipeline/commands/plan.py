"""usd_plan: turn a fingerprint into plans.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_budget,
    add_datasets,
    add_roots,
    roots_of,
    run,
    say,
)
from unisegdiff_pipeline.io.errors import UsdError


def build_parser() -> CommandParser:
    """Parser of usd_plan."""
    parser = CommandParser(
        "usd_plan",
        "Plan spacing, patch, network and batch from the fingerprint, with a reason for each decision.\n"
        "The stages of the diffusion are planned by usd_preprocess, from the preprocessed labels.",
    )
    add_datasets(parser)
    add_budget(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan instead of writing it")
    add_roots(parser, "raw", "preprocessed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_plan."""
    args = build_parser().parse_args(argv)
    return run(lambda: _plan_all(args))


def _plan_all(args: argparse.Namespace) -> int:
    import json

    from unisegdiff_pipeline.commands import steps
    from unisegdiff_pipeline.fingerprint import Fingerprint
    from unisegdiff_pipeline.io.serialization import read_dataclass, to_jsonable, write_json
    from unisegdiff_pipeline.planning.budget import detect_budget

    roots, budget = roots_of(args), detect_budget(args.device, args.memory_gb)

    def work(dataset: str) -> None:
        raw = steps.open_raw(roots, dataset)
        folder = roots.require_preprocessed() / raw.name
        if not (folder / steps.FINGERPRINT).is_file():
            raise UsdError(f"{folder} holds no {steps.FINGERPRINT}; run usd_fingerprint -d {raw.name} first.")
        fingerprint = read_dataclass(Fingerprint, folder / steps.FINGERPRINT)
        plans = steps.plan_step(raw, fingerprint, budget, folder / steps.PLANS)
        if args.dry_run:
            say(json.dumps(to_jsonable(plans), indent=1))
            return
        write_json(folder / steps.PLANS, plans)
        say(f"{steps.describe_plans(plans)}\nPlans: {folder / steps.PLANS}\nReport: {steps.write_report(folder)}")

    return steps.for_each_dataset(args.dataset, work)
