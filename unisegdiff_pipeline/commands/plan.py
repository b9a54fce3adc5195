"""usd_plan: turn a fingerprint into plans.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands import steps
from unisegdiff_pipeline.commands.common import CommandParser, add_budget, add_plans, dataset_parser
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.errors import UsdError

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
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan instead of writing it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_plan."""
    return steps.run_on_datasets(lambda: build_parser().parse_args(argv), _prepare)


def _prepare(args: argparse.Namespace, roots: Roots) -> Callable[[str], None]:
    import json

    from unisegdiff_pipeline.core.serialization import read_dataclass, to_jsonable, write_json
    from unisegdiff_pipeline.fingerprint import Fingerprint
    from unisegdiff_pipeline.planning.budget import detect_budget
    from unisegdiff_pipeline.planning.plans import plans_file

    budget = detect_budget(args.device, args.memory_gb)
    plans_name = steps.plans_name_of(args)

    def plan(dataset: str) -> None:
        raw = steps.open_raw(roots, dataset)
        folder = roots.require_preprocessed() / raw.name
        if not (folder / steps.FINGERPRINT).is_file():
            raise UsdError(f"{folder} holds no {steps.FINGERPRINT}; run usd_fingerprint -d {raw.name} first.")
        fingerprint = read_dataclass(Fingerprint, folder / steps.FINGERPRINT)
        path = folder / plans_file(plans_name)
        if args.dry_run:
            say(json.dumps(to_jsonable(steps.plan_step(raw, fingerprint, budget, path)), indent=1))
            return
        with steps.working_on(folder):
            plans = steps.plan_step(raw, fingerprint, budget, path)
            write_json(path, plans)
            report = f"\nReport: {steps.write_report(folder, raw)}" if plans_name is None else ""
        say(f"{steps.describe_plans(plans)}\nPlans: {path}{report}")

    return plan
