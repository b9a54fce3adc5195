"""usd_convert: bring a published data set into the raw layout."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, root_flags, roots_of, run, whole_number
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted


def build_parser() -> CommandParser:
    """Parser of usd_convert."""
    parser = CommandParser(
        "usd_convert",
        "Bring a data set into the raw layout DatasetXXX_Name/{imagesTr,labelsTr,imagesTs,dataset.json}: a published\n"
        "one from the files as its owners distribute them, or images and masks of your own. The same command goes on\n"
        "where it was interrupted. usd_convert --list shows the converters.",
    )
    parser.add_argument("name", metavar="NAME", help="converter, e.g. folder, bids, busi")
    parser.add_argument("sources", nargs="+", type=Path, metavar="SRC", help="folder (of folder: IMAGES MASKS)")
    parser.add_argument("--list", action=_List, help="show the converters and what each takes, and end")
    parser.add_argument(
        "--dataset-id", type=whole_number(1), metavar="N", help="number of the new data set (default: the converter's)"
    )
    parser.add_argument("--name", dest="dataset_name", metavar="NAME", help="name of the new data set (folder, bids)")
    parser.add_argument(
        "--channels", nargs="+", default=(), metavar="C", help="names of the channels (folder), suffixes (bids)"
    )
    parser.add_argument("--threshold", type=float, metavar="T", help="masks are lesion above this value (folder, bids)")
    parser.add_argument(
        "--group-pattern", metavar="REGEX", help="its first group, in the name of a case, is the patient (folder)"
    )
    parser.add_argument("--mask", metavar="PATTERN", help="names of the masks without ending, e.g. '*_dseg' (bids)")
    add_roots(parser, "raw")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_convert."""
    return run(lambda: _convert(build_parser().parse_args(argv)))


class _List(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from dataset_conversion import CONVERTERS

        for name, converter in CONVERTERS.items():
            line = f"{name} {' '.join(converter.sources)}"
            say(textwrap.fill(f"{line:<24} {converter.summary}", 100, subsequent_indent=" " * 25))
        parser.exit()


def _convert(args: argparse.Namespace) -> None:
    from dataset_conversion import convert
    from dataset_conversion.finding import Request

    request = Request(
        sources=tuple(args.sources),
        number=args.dataset_id,
        name=args.dataset_name,
        channels=tuple(args.channels),
        threshold=args.threshold,
        group_pattern=args.group_pattern,
        mask=args.mask,
    )
    folder = convert(args.name, request, roots_of(args).require_raw())
    say(f"Converted: {folder}\nNext: usd_plan_and_preprocess -d {quoted(folder.name)}{root_flags(args, 'raw')}")
