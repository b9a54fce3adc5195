"""usd_unify: make one data set of several, without copying an image."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, root_flags, roots_of, run, whole_number
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted


def build_parser() -> CommandParser:
    """Parser of usd_unify."""
    parser = CommandParser(
        "usd_unify",
        "Make one data set of several: one model is then trained on all of them. Only dataset.json is written; images\n"
        "stay where they are. By default every foreground class becomes 'lesion'.",
    )
    parser.add_argument("number", type=whole_number(1), metavar="ID", help="number of the new data set, e.g. 500")
    parser.add_argument("--name", required=True, metavar="NAME", help="name of the new data set, e.g. UnifiedLesion")
    parser.add_argument("-d", dest="datasets", nargs="+", required=True, metavar="DATASET", help="the sources")
    parser.add_argument(
        "--label-map",
        type=Path,
        metavar="FILE",
        help='JSON or YAML: {"SOURCE": {"its class": "class", ...}}; a class may also become background or ignore. '
        "Sources that are not in it keep the default. A class that some source does not have is learned from the "
        "others alone",
    )
    parser.add_argument(
        "--exclude", nargs="+", default=(), metavar="SOURCE/CASE", help="cases to leave out; * and ? as in a shell"
    )
    parser.add_argument(
        "--rename",
        nargs="+",
        default=(),
        metavar="DATASET=NAME",
        help="names of sources (default: what stands behind DatasetXXX_)",
    )
    parser.add_argument(
        "--modality",
        nargs="+",
        default=(),
        metavar="SOURCE=MODALITY",
        help="what the images of sources are, e.g. BUSI=US (default: the names of their channels)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the dataset.json of a unified data set of this name; other files in its folder, as "
        "splits_final.json, stay",
    )
    add_roots(parser, "raw")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_unify."""
    return run(lambda: _unify(build_parser().parse_args(argv)))


def _unify(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
    from unisegdiff_pipeline.io.unify import UnifyRequest, describe_unified, read_label_maps, unify

    request = UnifyRequest(
        args.number,
        args.name,
        tuple(args.datasets),
        label_maps={} if args.label_map is None else read_label_maps(args.label_map),
        excluded=tuple(args.exclude),
        renamed=_pairs("--rename", args.rename, "DATASET=NAME, as in 101=Breast"),
        modalities=_pairs("--modality", args.modality, "SOURCE=MODALITY, as in BUSI=US"),
        overwrite=args.overwrite,
    )
    folder = unify(roots_of(args).require_raw(), request)
    sources = describe_unified(open_raw_dataset(folder))
    dataset = f"{quoted(folder.name)}{root_flags(args, 'raw')}"
    say(f"Unified: {folder}\n{sources}\nNext: usd_plan_and_preprocess -d {dataset}")


def _pairs(flag: str, pairs: Sequence[str], expected: str) -> dict[str, str]:
    from unisegdiff_pipeline.core.errors import UsdError

    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key or not value or "=" in value:
            raise UsdError(f"{flag} is {pair!r}; it must be {expected}.")
        if found.setdefault(key, value) != value:
            raise UsdError(f"{flag} gives {key} two values, {found[key]} and {value}; leave one out.")
    return found
