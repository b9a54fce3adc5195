"""usd_train: train one fold, all cases, or the whole cross-validation."""

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
    add_roots,
    add_seed,
    duration,
    positive_number,
    report_error,
    roots_of,
    run,
    say,
    whole_number,
)
from unisegdiff_pipeline.io.errors import UsdError

if TYPE_CHECKING:
    from unisegdiff_pipeline.training.request import TrainRequest


def build_parser() -> CommandParser:
    """Parser of usd_train."""
    parser = CommandParser(
        "usd_train",
        "Train on preprocessed data: first the segmenter, then the staged diffusion model on top of it.\n"
        "An interrupted training continues where it stopped.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="4, 004 or Dataset004_Hippocampus")
    parser.add_argument(
        "fold", type=fold_name, metavar="FOLD", help="0 to 4, `all` (one model on every case) or `cv` (every fold)"
    )
    parser.add_argument("-c", "--configuration", metavar="CONFIG", help="default: the one that the plan recommends")
    parser.add_argument(
        "--trainer",
        default="StagedDiffusionTrainer",
        metavar="NAME",
        help="StagedDiffusionTrainer (default), SegmentationTrainer (the segmenter alone), or package.module:Class",
    )
    _add_length(parser)
    parser.add_argument("--batch-size", type=whole_number(1), metavar="N", help="patches an iteration (default: plan)")
    parser.add_argument("--lr", type=positive_number, metavar="X", help="highest learning rate (default: plan)")
    parser.add_argument(
        "--phase-1-from",
        type=Path,
        metavar="DIR",
        help="begin with phase 2, on the segmenter and the hold-out of this fold_k folder",
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        metavar="N",
        help="processes that prepare patches; 0 prepares them in this one (default: by cores)",
    )
    parser.add_argument(
        "--checkpoint-every", type=duration, default=300.0, metavar="TIME", help="between checkpoints (default: 5m)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--continue",
        dest="restart",
        action="store_false",
        default=False,
        help="continue where the training stopped (the default)",
    )
    again.add_argument("--restart", dest="restart", action="store_true", help="begin again; removes the fold's folder")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and stop")
    add_roots(parser, "raw", "preprocessed", "results")
    return parser


def _add_length(parser: CommandParser) -> None:
    group = parser.add_argument_group("length of the training, both phases together (default: the plan's epochs)")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--max-time",
        type=duration,
        metavar="TIME",
        help="wall time of a fold with its final validation: 90s, 15m, 2h or plain seconds",
    )
    length.add_argument("--epochs", type=whole_number(1), metavar="N")
    length.add_argument("--iterations", type=whole_number(1), metavar="N")


def fold_name(text: str) -> str:
    """Parse a fold: a whole number, `all` or `cv`."""
    if text in ("all", "cv") or (text.isascii() and text.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no fold; write 0, 1, 2, 3, 4, all or cv")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_train."""
    args = build_parser().parse_args(argv)
    return run(lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    began = time.monotonic()
    request = request_of(args)
    if args.dry_run:
        say(describe(request))
        return 0
    # Before torch is imported, which takes seconds.
    request.roots.preprocessed_dataset(request.dataset)
    request.roots.require_results()

    from unisegdiff_pipeline.networks.allocator import keep_freed_memory
    from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
    from unisegdiff_pipeline.training.run import train

    keep_freed_memory()
    try:
        result = train(request, began)
    except TrainingInterrupted as stop:
        report_error(str(stop), kind="interrupted")
        return EXIT_SIGNAL + stop.signal_number
    model = result.folds[0].folder.parent
    say(f"Model: {model}\nNext: usd_predict -i IMAGES -o MASKS -m {model}")
    return 0


def request_of(args: argparse.Namespace) -> TrainRequest:
    """The flags as the request that training takes."""
    from unisegdiff_pipeline.training.request import TrainRequest

    return TrainRequest(
        dataset=args.dataset,
        fold=args.fold,
        roots=roots_of(args),
        configuration=args.configuration,
        trainer=args.trainer,
        max_time_s=args.max_time,
        epochs=args.epochs,
        iterations=args.iterations,
        batch_size=args.batch_size,
        learning_rate=args.lr,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        checkpoint_every_s=args.checkpoint_every,
        restart=args.restart,
        phase_1_from=args.phase_1_from,
        tensorboard=args.tensorboard,
    )


def describe(request: TrainRequest) -> str:
    """What a request would train, a line for each setting; those of the plan are marked."""
    from unisegdiff_pipeline.commands.steps import load_plans

    folder, plans = load_plans(request.roots, request.dataset)
    name = request.configuration or plans.recommended_configuration
    if name not in plans.configurations:
        planned_names = ", ".join(plans.configurations)
        raise UsdError(f"configuration {name!r} is not in {folder / 'plans.json'}; choose one of {planned_names}.")
    planned = plans.configurations[name].training

    def of_plan(value: object, default: object) -> str:
        return f"{default} (plan)" if value is None else str(value)

    trainer = request.trainer.split(":")[-1]
    lines = {
        "preprocessed": folder,
        "results": request.roots.require_results() / plans.dataset_name / f"{trainer}__{name}",
        "configuration": of_plan(request.configuration, name),
        "trainer": request.trainer,
        "fold": request.fold,
        "length": _length(request) or f"{planned.num_epochs} epochs (plan)",
        "batch size": of_plan(request.batch_size, planned.batch_size),
        "learning rate": of_plan(request.learning_rate, planned.learning_rate),
        "seed": request.seed,
        "device": request.device,
        "begin again": "yes, removing what is there" if request.restart else "no, continue where it stopped",
    }
    if request.phase_1_from is not None:
        lines["phase 1 from"] = request.phase_1_from
    return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


def _length(request: TrainRequest) -> str | None:
    """The length that a flag gives, both phases together; None where the plan says it."""
    if request.max_time_s is not None:
        return f"{request.max_time_s:g} s with choosing and the final validation"
    if request.epochs is not None:
        return f"{request.epochs} epochs"
    return None if request.iterations is None else f"{request.iterations} iterations"
