"""usd_ensemble: one prediction from the probabilities of several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands.common import CommandParser, positive_number, run
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.nnunet import ENSEMBLE
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted


def build_parser() -> CommandParser:
    """Parser of usd_ensemble."""
    parser = CommandParser(
        "usd_ensemble",
        "Average the probabilities of several folders of predictions of the same images, whatever configuration, data\n"
        "set or program they are of: usd_predict --save-probabilities, or nnU-Net's --save_probabilities. OUT holds\n"
        "what usd_predict writes. Samples are pooled where all members have them. Interrupted, it continues.",
        nnunet=ENSEMBLE,
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("members", type=Path, nargs="+", metavar="FOLDER", help="folders of predictions, two or more")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the masks")
    parser.add_argument(
        "--weights",
        type=positive_number,
        nargs="+",
        metavar="W",
        help="how much each folder counts in the mean probability (default: all alike)",
    )
    parser.add_argument(
        "--decision",
        choices=("half", "dice"),
        help="threshold of the mean probability: 0.5 (half), or where the pooled samples promise the highest Dice "
        "(default: dice where all members were predicted with it and have samples, else half)",
    )
    parser.add_argument(
        "--combine",
        choices=("mean", "majority", "staple"),
        default="mean",
        help="what masks are made of: the mean probability (default), or the pooled samples by vote or by STAPLE",
    )
    parser.add_argument(
        "--no-filter",
        action="store_true",
        help="keep every lesion of the mask (default: what the lesion filters of all folders make together)",
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="what the label values of all folders mean (default: what each folder says itself)",
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="memory that may be taken (default: half of what is free); larger arrays go to temporary files in OUT",
    )
    parser.add_argument("--save-probabilities", action="store_true", help="write the mean probability of each class")
    parser.add_argument("--save-samples", action="store_true", help="write the pooled samples")
    parser.add_argument(
        "--overwrite", action="store_true", help="make cases again that OUT holds, and remove those of other members"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_ensemble."""
    return run(lambda: _ensemble(build_parser().parse_args(argv)))


def _ensemble(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.inference.request import EnsembleRequest

    request = EnsembleRequest(
        args.members,
        args.output,
        weights=args.weights,
        decision=args.decision,
        combine=args.combine,
        lesion_filter=not args.no_filter,
        dataset_json=args.dataset_json,
        max_memory_gb=args.max_memory,
        save_probabilities=args.save_probabilities,
        save_samples=args.save_samples,
        overwrite=args.overwrite,
    )
    pipeline.ensemble(request)
    say(f"Masks: {args.output}\nUncertainty: {args.output / 'uncertainty'}")
    say(f"Lesions: {args.output / 'lesions.csv'}\nVolumes: {args.output / 'volumes.csv'}")
    say(f"Next, where references are at hand: usd_evaluate REF {quoted(args.output)}")
