"""usd_import: the model of an archive as a model folder. (`import` is a word of Python's own.)"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, roots_of, run
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted


def build_parser() -> CommandParser:
    """Parser of usd_import."""
    parser = CommandParser(
        "usd_import",
        "Unpack a model that usd_export has written into RESULTS/DATASET/MODEL. Whatever else an archive holds is\n"
        "refused before anything is written; nothing of it is run.",
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("archive", type=Path, metavar="FILE", help="the archive, NAME.zip")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model of the same name, with all that its folder holds"
    )
    add_roots(parser, "results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_import."""
    return run(lambda: _import(build_parser().parse_args(argv)))


def _import(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.inference.archive_format import CARD_NAME
    from unisegdiff_pipeline.inference.model_import import import_model

    model = import_model(args.archive, roots_of(args).require_results(), overwrite=args.overwrite)
    say(f"Model: {model.folder} (folds {' '.join(model.folds)})\nModel card: {model.folder / CARD_NAME}")
    say(f"Next: usd_predict -i IMAGES -o MASKS -m {quoted(model.folder)}")
