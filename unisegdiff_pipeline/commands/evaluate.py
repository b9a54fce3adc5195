"""usd_evaluate: score predicted masks against references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import CommandParser, run, say, whole_number
from unisegdiff_pipeline.io.errors import UsdError

if TYPE_CHECKING:
    from argparse import Namespace

    from unisegdiff_pipeline.io.labels import LabelScheme


def build_parser() -> CommandParser:
    """Parser of usd_evaluate."""
    parser = CommandParser(
        "usd_evaluate",
        "Score predicted masks against references: Dice, IoU, volume error and counts per case and class.\n"
        "Shape and geometry are compared before scoring. Both masks empty: undefined, and counted. Reference\n"
        "empty and prediction not: the volume predicted falsely, not a Dice of 0.",
    )
    parser.add_argument("reference", type=Path, metavar="REF", help="folder of reference masks, or one file")
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of predicted masks, or one file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where evaluation.csv and .json go (default: PRED)"
    )
    meaning = parser.add_mutually_exclusive_group()
    meaning.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="what the labels mean (default: the dataset.json in or above PRED or REF)",
    )
    meaning.add_argument(
        "--labels", type=whole_number(1), nargs="+", metavar="N", help="score these label values, no dataset.json"
    )
    parser.add_argument("--subset", action="store_true", help="score only the cases that PRED holds")
    parser.add_argument(
        "--workers", type=whole_number(0), metavar="N", help="processes (default: by the amount of data)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_evaluate."""
    args = build_parser().parse_args(argv)
    return run(lambda: _evaluate(args))


def _evaluate(args: Namespace) -> None:
    from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
    from unisegdiff_pipeline.evaluation.summary import summary_table

    scheme, spacing_known = _meaning(args)
    evaluation = evaluate_folders(
        args.reference,
        args.prediction,
        scheme,
        spacing_known=spacing_known,
        subset=args.subset,
        check_values=args.labels is None,
        workers=args.workers,
    )
    folder = args.output or (args.prediction if args.prediction.is_dir() else args.prediction.parent)
    json_path, csv_path = evaluation.write(folder)
    say(summary_table(evaluation.summary, volumes_nominal=not spacing_known))
    if evaluation.not_predicted:
        say(f"{len(evaluation.not_predicted)} reference case(s) have no prediction and are left out.")
    say(f"Scores per case: {csv_path}\nAll scores: {json_path}")


def _meaning(args: Namespace) -> tuple[LabelScheme, bool]:
    from unisegdiff_pipeline.io.dataset_json import read_dataset_json
    from unisegdiff_pipeline.io.labels import Coding, LabelScheme

    if args.labels is not None:
        values = tuple(sorted(set(args.labels)))
        coding: Coding = "binary" if len(values) == 1 else "softmax"
        return LabelScheme(tuple(map(str, values)), tuple((v,) for v in values), coding, values), True
    description = read_dataset_json(args.dataset_json or find_dataset_json(args.reference, args.prediction))
    return description.labels, description.spacing_known


def find_dataset_json(reference: Path, prediction: Path) -> Path:
    """The dataset.json in the prediction folder or the two above it, else beside or above the references."""
    prediction, reference = prediction.resolve(), reference.resolve()
    for folder in (prediction, *prediction.parents[:2], reference, *reference.parents[:2]):
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise UsdError(
        f"no dataset.json in or above {prediction} or {reference}, so that the meaning of the label values is not "
        f"known; give it with --dataset-json FILE, or name the values to score with --labels 1 2 ..."
    )
