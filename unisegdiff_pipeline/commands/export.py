"""usd_export: a trained model as one file to pass on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, run
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.predict import find_model
from unisegdiff_pipeline.commands.terminal import say


def build_parser() -> CommandParser:
    """Parser of usd_export."""
    parser = CommandParser(
        "usd_export",
        "Write a trained model into one file: weights of the finished folds, plan, settings, scores and a model card,\n"
        "with the SHA-256 of each. No image, no state of the training, no path of this machine, and no name of a case\n"
        "unless --with-case-scores asks for it.",
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="model folder, instead of -d")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the archive, NAME.zip")
    group = parser.add_argument_group("model of a data set, chosen as usd_predict does")
    group.add_argument("-d", "--dataset", metavar="DATASET", help="data set that the model was trained on")
    group.add_argument("-c", "--configuration", metavar="CONFIG", help="with -d, where several were trained")
    group.add_argument("--trainer", metavar="NAME", help="with -d, where several trained it")
    group.add_argument("--plans", metavar="NAME", help="with -d; the model of the plan with this name")
    group.add_argument("--run", metavar="NAME", help="with -d; the model that was trained with --run NAME")
    parser.add_argument(
        "--with-case-scores", action="store_true", help="keep the scores of single cases, and with them their names"
    )
    parser.add_argument("--notes", type=Path, metavar="FILE", help="Markdown that becomes a section of the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace an archive that is there")
    add_roots(parser, "results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_export."""
    return run(lambda: _export(_parsed(argv)))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if (args.model is None) == (args.dataset is None):
        parser.error("name one model: its folder MODEL, or the data set with -d")
    if args.model is not None and (args.configuration or args.trainer or args.plans or args.run):
        parser.error("-c, --trainer, --plans and --run go with -d; a model folder says them itself")
    return args


def _export(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.inference.model_export import export_model

    notes = ""
    if args.notes is not None:
        try:
            notes = args.notes.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsdError(f"--notes {args.notes} cannot be read ({error}); name a text file in UTF-8.") from None
    model = find_model(args) if args.model is None else args.model
    manifest = export_model(
        model, args.output, with_case_scores=args.with_case_scores, notes=notes, overwrite=args.overwrite
    )
    size_mb = args.output.stat().st_size / 1e6
    say(f"Model: {model}\nArchive: {args.output} ({size_mb:.1f} MB; folds {' '.join(manifest.folds)})")
    say(f"Next: usd_predict -i IMAGES -o MASKS -m {args.output}, or usd_import {args.output}")
