"""usd_export: a trained model as one file to pass on, or as graphs for other runtimes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, run
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.nnunet import EXPORT
from unisegdiff_pipeline.commands.predict import add_names, find_model
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted


def build_parser() -> CommandParser:
    """Parser of usd_export."""
    parser = CommandParser(
        "usd_export",
        "Write a trained model into one file: weights of the finished folds, plan, settings, scores and a model card,\n"
        "with the SHA-256 of each. No image, no state of the training, no path of this machine, and no name of a case\n"
        "unless --with-case-scores asks for it.",
        nnunet=EXPORT,
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="model folder, instead of -d")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="archive, NAME.zip; with --onnx a new folder",
    )
    group = parser.add_argument_group("model of a data set, chosen as usd_predict does")
    group.add_argument("-d", "--dataset", metavar="DATASET", help="data set that the model was trained on")
    add_names(group)
    parser.add_argument(
        "--with-case-scores", action="store_true", help="keep the scores of single cases, and with them their names"
    )
    parser.add_argument("--notes", type=Path, metavar="FILE", help="Markdown that becomes a section of the model card")
    parser.add_argument("--overwrite", action="store_true", help="replace an archive that is there")
    onnx = parser.add_argument_group("for other runtimes")
    onnx.add_argument(
        "--onnx", action="store_true", help="write one fold as ONNX graphs with their numbers (needs the extra onnx)"
    )
    onnx.add_argument("-f", "--fold", metavar="FOLD", help="with --onnx: 0, 1, ... or all, where several are finished")
    onnx.add_argument("--source", metavar="NAME", help="with --onnx, of a unified data set: what all images are like")
    add_roots(parser, "results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_export."""
    return run(lambda: _export(_parsed(argv)))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.model is None and args.dataset is None:
        parser.error("name one model: its folder MODEL, or the data set with -d")
    if args.model is not None and args.dataset is not None:  # the second value of -f 0 1 is taken for a folder, too
        parser.error(
            f"{args.model} is taken for the folder of a model, beside -d {args.dataset}; leave one of them out. -c "
            "takes one configuration; -f takes one fold and goes with --onnx, an archive holds all finished folds"
        )
    if args.model is not None and (args.configuration or args.trainer or args.plans or args.run):
        parser.error("-c, --trainer, --plans and --run go with -d; a model folder says them itself")
    if args.onnx and (args.with_case_scores or args.notes or args.overwrite):
        parser.error("--with-case-scores, --notes and --overwrite are for archives; leave them out with --onnx")
    if not args.onnx and (args.fold or args.source):
        parser.error("--fold and --source go with --onnx; an archive holds all finished folds")
    return args


def _export(args: argparse.Namespace) -> None:
    model = find_model(args) if args.model is None else args.model
    if args.onnx:
        _export_onnx(args, model)
    else:
        _export_archive(args, model)


def _export_onnx(args: argparse.Namespace, model: Path) -> None:
    from unisegdiff_pipeline.inference.onnx_export import FILE_NAME, export_onnx

    description = export_onnx(model, args.output, args.fold, args.source)
    files = ", ".join(description.graphs.values())
    say(f"Model: {model}, fold {description.fold}\nGraphs: {files} and {FILE_NAME} in {args.output}")
    say("Next: documentation/examples/onnx_masks.py samples masks with them; documentation/reference/onnx.md explains")


def _export_archive(args: argparse.Namespace, model: Path) -> None:
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.inference.model_export import export_model

    notes = ""
    if args.notes is not None:
        try:
            notes = args.notes.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsdError(f"--notes {args.notes} cannot be read ({error}); name a text file in UTF-8.") from None
    manifest = export_model(
        model, args.output, with_case_scores=args.with_case_scores, notes=notes, overwrite=args.overwrite
    )
    size_mb = args.output.stat().st_size / 1e6
    say(f"Model: {model}\nArchive: {args.output} ({size_mb:.1f} MB; folds {' '.join(manifest.folds)})")
    say(f"Next: usd_predict -i IMAGES -o MASKS -m {quoted(args.output)}, or usd_import {quoted(args.output)}")
