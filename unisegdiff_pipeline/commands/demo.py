"""usd_demo: the whole way on generated phantoms, in minutes and without a GPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import (
    EXIT_SIGNAL,
    CommandParser,
    add_device,
    add_seed,
    duration,
    run,
    whole_number,
)
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.terminal import report_error, say

if TYPE_CHECKING:
    from unisegdiff_pipeline.demo.report import DemoResult
    from unisegdiff_pipeline.io.raw_dataset import RawDataset

DATASET_2D, DATASET_3D = 901, 902
NUM_TRAIN, NUM_TEST = 160, 24
TRAINING_TIME = "155s"
NUM_STEPS = 5


def build_parser() -> CommandParser:
    """Parser of usd_demo."""
    parser = CommandParser(
        "usd_demo",
        "Go the whole way on generated phantoms whose true probability is known: make data, plan, preprocess, train\n"
        "one 2D fold in both phases from the start that comes with this program (usd_train --pretrained synthetic),\n"
        "predict held-out cases with several samples, evaluate, write a report.",
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("usd_demo"),
        metavar="DIR",
        help="where all of it goes (default: ./usd_demo)",
    )
    parser.add_argument(
        "--make-data", type=Path, metavar="DIR", help="only write the phantoms, 2D and 3D, into this raw folder"
    )
    parser.add_argument(
        "--max-time",
        type=duration,
        default=duration(TRAINING_TIME),
        metavar="TIME",
        help=f"time of the training (default: {TRAINING_TIME})",
    )
    parser.add_argument(
        "--train-cases", type=whole_number(10), default=NUM_TRAIN, metavar="N", help=f"default: {NUM_TRAIN}"
    )
    parser.add_argument(
        "--test-cases", type=whole_number(1), default=NUM_TEST, metavar="N", help=f"default: {NUM_TEST}"
    )
    parser.add_argument("--samples", type=whole_number(1), default=8, metavar="N", help="samples a case (default: 8)")
    parser.add_argument(
        "--workers", type=whole_number(0), metavar="N", help="processes that prepare patches (default: by cores)"
    )
    add_seed(parser)
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_demo."""
    args = build_parser().parse_args(argv)
    return run(lambda: _make_data(args) if args.make_data else _go_the_whole_way(args))


def _make_data(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset

    for number, dims in ((DATASET_2D, 2), (DATASET_3D, 3)):
        folder = make_phantom_dataset(args.make_data, number, dims, args.train_cases, args.test_cases, args.seed)
        say(f"{dims}D phantoms: {folder}")


def _go_the_whole_way(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.core.progress import format_duration
    from unisegdiff_pipeline.demo.report import write_report

    start = time.monotonic()
    output = args.output.absolute()
    raw = _phantoms(args, output)
    model = _train(args, output, raw)
    predictions = output / "predictions"
    _predict(args, raw, model, predictions)
    _announce(5, "evaluating against the references, and against the true probability")
    result = _evaluate(raw, predictions)
    reports = {
        "The data set and its plan": output / "preprocessed" / raw.name / "dataset_report.html",
        "The training": model / "fold_0" / "report.html",
        "The evaluation": predictions / "evaluation" / "report.html",
    }
    report = write_report(output, raw, predictions, result, reports, seconds=time.monotonic() - start)
    say(_where(result, output, predictions, reports, report))
    say(f"\nThat took {format_duration(time.monotonic() - start)}.")


def _announce(number: int, text: str) -> None:
    say(f"\n[{number}/{NUM_STEPS}] {text}")


def _phantoms(args: argparse.Namespace, output: Path) -> RawDataset:
    from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset
    from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset

    _announce(1, f"making {args.train_cases} phantoms to train on and {args.test_cases} to test with")
    folder = make_phantom_dataset(output / "raw", DATASET_2D, 2, args.train_cases, args.test_cases, args.seed)
    return open_raw_dataset(folder)


def _train(args: argparse.Namespace, output: Path, raw: RawDataset) -> Path:
    """Plan, preprocess and train fold 0; returns the model folder."""
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.core.progress import format_duration
    from unisegdiff_pipeline.io.paths import Roots
    from unisegdiff_pipeline.planning.budget import detect_budget
    from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
    from unisegdiff_pipeline.training.request import SYNTHETIC_WEIGHTS, TrainRequest
    from unisegdiff_pipeline.training.resume import OtherRequestError

    roots = Roots(output / "raw", output / "preprocessed", output / "results")
    _announce(2, "checking, planning and preprocessing them")
    kind = args.device.split(":")[0]
    budget = detect_budget(kind if kind in ("auto", "cuda") else "cpu")
    pipeline.plan_and_preprocess(raw.folder, roots.require_preprocessed(), budget=budget)
    _announce(3, f"training one fold in both phases, for {format_duration(args.max_time)}")
    request = TrainRequest(
        dataset=raw.name,
        fold="0",
        roots=roots,
        configuration="2d",
        max_time_s=args.max_time,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        pretrained=SYNTHETIC_WEIGHTS,
    )
    try:
        return pipeline.train(request).folds[0].folder.parent
    except OtherRequestError as error:  # whose ways out are flags of usd_train
        raise UsdError(
            f"{output} holds a demo that was trained with other flags; give those again to go on with it, or another "
            f"folder with --output."
        ) from error
    except TrainingInterrupted as stop:
        report_error(str(stop), kind="interrupted")
        raise SystemExit(EXIT_SIGNAL + stop.signal_number) from stop


def _predict(args: argparse.Namespace, raw: RawDataset, model: Path, predictions: Path) -> None:
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.inference.request import PredictRequest

    _announce(4, f"predicting the held-out phantoms with {args.samples} samples each")
    pipeline.predict(
        PredictRequest(
            raw.folder / "imagesTs",
            predictions,
            model,
            ["0"],
            num_samples=args.samples,
            seed=args.seed,
            device=args.device,
            save_probabilities=True,
            save_samples=True,
            overwrite=True,  # the folder is the demo's own
        )
    )


def _evaluate(raw: RawDataset, predictions: Path) -> DemoResult:
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.demo.report import DemoResult, score_truth
    from unisegdiff_pipeline.evaluation.overview import evaluation_table
    from unisegdiff_pipeline.reports.evaluation_report import write_evaluation_report

    scores, dataset_json = predictions / "evaluation", raw.folder / "dataset.json"
    evaluation = pipeline.evaluate(raw.folder / "labelsTs", predictions, dataset_json=dataset_json, output=scores)
    write_evaluation_report(scores, evaluation)
    say(evaluation_table(evaluation.report))
    return DemoResult(evaluation.summary, score_truth(raw, [case.case_id for case in evaluation.cases]))


def _where(result: DemoResult, output: Path, predictions: Path, reports: dict[str, Path], report: Path) -> str:
    dataset, training, evaluation = reports.values()
    return "\n".join(
        [
            f"\nMean Dice of the held-out phantoms: {result.predicted.mean_dice:.3f}. The known true probability, "
            f"above 0.5, reaches {result.truth.mean_dice:.3f}: the ratio is {result.ratio:.3f}.\n",
            f"Masks             {predictions}",
            f"Uncertainty maps  {predictions / 'uncertainty'}",
            f"Samples           {predictions / 'samples'}",
            f"Scores            {predictions / 'evaluation' / 'metrics.csv'}",
            f"Data set report   {dataset}",
            f"Training report   {training}",
            f"Evaluation report {evaluation}",
            f"Pictures          {output / 'cases.png'}",
            f"Report            {report}",
        ]
    )
