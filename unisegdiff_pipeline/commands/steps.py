"""What the commands that take raw data sets share: each of several is worked on, and one with an error is named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import EXIT_ERROR, roots_of, run
from unisegdiff_pipeline.commands.terminal import report_error
from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.paths import Roots


def run_on_datasets(
    parse: Callable[[], argparse.Namespace], prepare: Callable[[argparse.Namespace, Roots], Callable[[str], None]]
) -> int:
    """Run a command over raw data sets: `parse` the flags, `prepare` what all share, then do the work for each."""

    def work() -> int:
        args = parse()
        return for_each_dataset(args.dataset, prepare(args, roots_of(args)))

    return run(work)


def for_each_dataset(datasets: Sequence[str], work: Callable[[str], None]) -> int:
    """Do the work for each data set; one with an error does not keep the others from being done."""
    failed = False
    for dataset in datasets:
        try:
            work(dataset)
        except UsdError as error:
            if len(datasets) == 1:
                raise
            report_error(f"{dataset}: {error}")
            failed = True
    return EXIT_ERROR if failed else 0


def raw_folder(roots: Roots, dataset: str) -> Path:
    """Folder of a data set of the raw root, by its number or name."""
    from unisegdiff_pipeline.io.paths import find_dataset

    root = roots.require_raw()
    return root / find_dataset(root, dataset)


def plans_name_of(args: argparse.Namespace) -> str | None:
    """What --plans says; None is the default plan.

    Raises:
        UsdError: it cannot be part of a path.
    """
    from unisegdiff_pipeline.inference.model_name import require_part

    return None if args.plans is None else require_part("--plans", args.plans)
