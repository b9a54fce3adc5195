"""usd_convert: bring a published data set into the raw layout."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, roots_of, run, whole_number
from unisegdiff_pipeline.commands.terminal import say


def build_parser() -> CommandParser:
    """Parser of usd_convert."""
    parser = CommandParser(
        "usd_convert",
        "Bring a published data set into the raw layout DatasetXXX_Name/{imagesTr,labelsTr,imagesTs,dataset.json}.\n"
        "Converters: msd (Medical Segmentation Decathlon, SRC = an unpacked TaskXX_Name folder).",
    )
    parser.add_argument("name", metavar="NAME", help="converter, e.g. msd")
    parser.add_argument("source", type=Path, metavar="SRC", help="folder of the data set as it was published")
    parser.add_argument(
        "--dataset-id", type=whole_number(1), metavar="N", help="number of the new data set (default: the converter's)"
    )
    add_roots(parser, "raw")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_convert."""
    return run(lambda: _convert(build_parser().parse_args(argv)))


def _convert(args: argparse.Namespace) -> None:
    from dataset_conversion import converter

    folder = converter(args.name)(args.source, roots_of(args).require_raw(), args.dataset_id)
    say(f"Converted: {folder}\nNext: usd_plan_and_preprocess -d {folder.name}")
