"""usd_train: train one fold, all cases, or the whole cross-validation."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import (
    EXIT_SIGNAL,
    CommandParser,
    add_device,
    add_plans,
    add_roots,
    add_splits,
    duration,
    import_with_torch,
    positive_number,
    root_flags,
    roots_of,
    run,
    whole_number,
)
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.nnunet import TRAIN
from unisegdiff_pipeline.commands.slurm import TASK, JobArray, command_line
from unisegdiff_pipeline.commands.terminal import report_error, say
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.words import joined
from unisegdiff_pipeline.training.loggers import LOGGERS

if TYPE_CHECKING:
    from unisegdiff_pipeline.training.request import FoldPreview, TrainRequest

DATASET_FLAGS, FOLD_FLAGS = ("-d", "--dataset"), ("-f", "--fold", "--folds")  # of other commands
STATES = {
    "new": "begins",
    "restarted": "begins again; what was trained is removed",
    "begun": "continues where it stopped",
    "finished": "is trained; nothing to do",
    "validated": "is trained; its validation cases are predicted again",
}


def build_parser() -> CommandParser:
    """Parser of usd_train."""
    parser = CommandParser(
        "usd_train",
        "Train on preprocessed data: first the segmenter, then the staged diffusion model on top of it.\n"
        "An interrupted training continues where it stopped, with what it was asked; no flag has to be given again.",
        nnunet=TRAIN,
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("dataset", metavar="DATASET", help="4, 004, Hippocampus or Dataset004_Hippocampus")
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
        "--augmentation",
        choices=("default", "nnunet"),
        help="nnunet: nnU-Net's recipe by its own library, several times slower (default: plan)",
    )
    add_splits(parser)
    parser.add_argument(
        "--phase-1-from",
        type=Path,
        metavar="DIR",
        help="begin with phase 2, on the segmenter and the hold-out of this fold_k folder",
    )
    parser.add_argument(
        "--pretrained",
        metavar="SOURCE",
        help="start from these weights instead of random ones: a fold or model folder, also of other data, or\n"
        "synthetic, which comes with this program and was trained on generated lesions; what does not fit is listed",
    )
    parser.add_argument(
        "--phase-2-only",
        action="store_true",
        default=None,
        help="begin with phase 2 on the segmenter of --pretrained, where classes, channels and architecture agree",
    )
    parser.add_argument(
        "--run",
        metavar="NAME",
        help="train beside others of the same kind, into a model folder ending in NAME",
    )
    add_plans(parser)
    parser.add_argument(
        "--patience",
        type=whole_number(1),
        metavar="N",
        help="end a phase when Dice on its held-out cases has not become better for N looks of the 4 N of a phase",
    )
    parser.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="compute by deterministic algorithms alone, which are slower on a GPU; with --epochs or --iterations",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the networks by torch.compile, which takes minutes (default: on a GPU with Triton where the\n"
        "training is of 30 minutes or 20000 iterations at least)",
    )
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="random seed (default: 0)")
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
    logger = parser.add_mutually_exclusive_group()
    logger.add_argument("--tensorboard", action="store_true", help="the same as --logger tensorboard")
    logger.add_argument(
        "--logger", choices=LOGGERS, help="where numbers go besides log.jsonl; each needs the extra of its name"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--continue",
        dest="restart",
        action="store_false",
        default=False,
        help="continue where the training stopped (the default)",
    )
    again.add_argument("--restart", dest="restart", action="store_true", help="begin again; removes what was trained")
    again.add_argument(
        "--val", action="store_true", help="train nothing: predict the validation cases of finished folds again"
    )
    parser.add_argument(
        "--save-validation",
        choices=("auto", "masks", "all"),
        help="what is kept of validation cases: masks, all (probabilities and samples, too), or auto: all where it\n"
        "comes to 2 GB a fold before compression at most (default)",
    )
    parser.add_argument(
        "--print-jobs",
        choices=("slurm",),
        help="with FOLD cv, train nothing: print a batch script of a task for each fold, for sbatch",
    )
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
    length.add_argument("--epochs", type=whole_number(1), metavar="N", help="of as many iterations as the plan says")
    length.add_argument("--iterations", type=whole_number(1), metavar="N", help="batches")


def fold_name(text: str) -> str:
    """Parse a fold: a whole number, `all` or `cv`."""
    if text in ("all", "cv") or (text.isascii() and text.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is no fold; write 0, 1, 2, 3, 4, all or cv")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_train."""
    return run(lambda: _train(parse_arguments(argv)))


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; where a data set or folds are given as other commands take them, the error says how it is here."""
    parser, given = build_parser(), list(sys.argv[1:] if argv is None else argv)
    by_flags = {flag: _values_of(flag, given) for flag in given if flag in (*DATASET_FLAGS, *FOLD_FLAGS)}
    if by_flags:
        parser.error(_without_flags(by_flags, given))
    args, unknown = parser.parse_known_args(given)
    if unknown and all(token.isdigit() or token in ("all", "cv") for token in unknown):
        parser.error(_one_fold(args.dataset, [args.fold, *unknown]))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _values_of(flag: str, given: Sequence[str]) -> list[str]:
    """What follows a flag, up to the next one."""
    behind = given[given.index(flag) + 1 :]
    return list(itertools.takewhile(lambda token: not token.startswith("-"), behind))


def _without_flags(by_flags: Mapping[str, Sequence[str]], given: Sequence[str]) -> str:
    """How the command is written whose data set or folds are given by flags; DATASET or FOLD stands for what is not."""
    first = [] if given[0].startswith("-") else [given[0]]
    datasets = [value for flag in DATASET_FLAGS for value in by_flags.get(flag, ())] or first
    dataset = datasets[0] if datasets else "DATASET"
    folds = [value for flag in FOLD_FLAGS for value in by_flags.get(flag, ())] or datasets[1:]
    command = f"usd_train {quoted(dataset)} {folds[0] if folds else 'FOLD'}"
    said = f"DATASET and FOLD are given without {joined(list(by_flags))}: {command}"
    return f"{said}; {_one_fold(dataset, folds)}" if len(folds) > 1 else said


def _one_fold(dataset: str, folds: Sequence[str]) -> str:
    command = f"usd_train {quoted(dataset)} cv"
    return f"one command trains one fold ({joined(folds)} are given), or all of them: {command}"


def _train(args: argparse.Namespace) -> int:
    began = time.monotonic()
    request = request_of(args)
    if args.print_jobs:
        say(jobs_of(args, request))
        return 0
    if args.dry_run:
        say(describe(request))
        if not args.val and (estimated := _estimated_time(request)):
            say(f"{'estimated time':<14} {estimated}")
        return 0
    # Before torch is imported, which takes seconds.
    request.roots.preprocessed_dataset(request.dataset)
    request.roots.require_results()

    import_with_torch("unisegdiff_pipeline.training.run")
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.networks.allocator import keep_freed_memory
    from unisegdiff_pipeline.training.interrupt import TrainingInterrupted

    keep_freed_memory()
    try:
        result = pipeline.train(request, began=began)
    except TrainingInterrupted as stop:
        report_error(str(stop), kind="interrupted")
        return EXIT_SIGNAL + stop.signal_number
    if not result.folds:  # this process has helped another
        return 0
    model = result.folds[0].folder.parent
    collected = result.collected if any(fold.scores for fold in result.folds) else None
    if result.collected is not None and collected is None:
        say(
            "No validation case was predicted in the time that the folds had, so that there is no Dice to show. The "
            "same command with --val (without --restart) predicts them."
        )
    if collected is not None:
        say(f"Dice on the validation cases of each fold\n{result.table}\nwritten to {result.summary_path}")
        labels = quoted(collected.labels or "LABELS")
        subset = " --subset" if collected.not_validated else ""
        say(f"All validation cases: usd_evaluate {labels} {quoted(collected.folder)}{subset}")
    say(f"Model: {model}")
    if collected is not None:
        dataset = quoted(model.parent.name) + root_flags(args, "raw", "preprocessed", "results")
        say(f"Next: usd_find_best {dataset}, which compares all models of the data set and pairs of them; or")
    say(f"Next: usd_predict -i IMAGES -o MASKS -m {quoted(model)}")
    return 0


def _estimated_time(request: TrainRequest) -> str:
    """From a few iterations; empty where nothing is to be estimated."""
    from unisegdiff_pipeline.training.dry_run import estimate

    found = estimate(request)
    return "" if found is None else found.describe()


def request_of(args: argparse.Namespace) -> TrainRequest:
    """The flags as the request that training takes."""
    from unisegdiff_pipeline.training.request import TrainRequest, start_path

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
        augmentation=args.augmentation,
        seed=args.seed,
        workers=args.workers,
        device=args.device,
        checkpoint_every_s=args.checkpoint_every,
        restart=args.restart,
        phase_1_from=args.phase_1_from,
        pretrained=None if args.pretrained is None else start_path(args.pretrained),
        phase_2_only=args.phase_2_only,
        tensorboard=args.tensorboard,
        logger=args.logger,
        run=args.run,
        plans=args.plans,
        patience=args.patience,
        deterministic=args.deterministic,
        compile=args.compile,
        splits=args.splits,
        save_validation=args.save_validation,
        validate_only=args.val,
    )


def jobs_of(args: argparse.Namespace, request: TrainRequest) -> str:
    """A batch script that trains every fold of the data set in a task of its own.

    Raises:
        UsdError: FOLD is not cv, folds are to begin again, or the data set is not preprocessed or has no folds.
    """
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.training.data.splits import load_or_create_splits

    if args.fold != "cv":
        raise UsdError(f"--print-jobs makes a job of each fold, but FOLD is {args.fold}; write cv.")
    if args.restart:
        raise UsdError(
            "--print-jobs with --restart would remove what a task has trained whenever it is queued again, since it "
            "goes on with the same command. Leave --restart out: train beside the former folds with --run NAME, or "
            "remove their folders first."
        )
    roots = request.roots
    folder = roots.preprocessed_dataset(request.dataset)
    raw = None if roots.raw is None else roots.raw / folder.name
    # Written now: tasks that begin at once must not each make the folds.
    splits = load_or_create_splits(folder, raw, folds=request.splits)
    parser, left = build_parser(), ("print_jobs", "dry_run")
    afterwards = command_line(parser, args, without=(*left, "val"))  # the tasks have validated
    line = command_line(parser, args, {"fold": TASK}, without=left)
    return JobArray(f"usd_train_{folder.name}", len(splits), line, args.device != "cpu", afterwards).script()


def describe(request: TrainRequest) -> str:
    """What a request would train, a line for each setting, by the rules of the training itself."""
    from unisegdiff_pipeline.training.dry_run import preview

    previews = preview(request)
    first = previews[0]
    lines: dict[str, object] = {
        "results": first.folder.parent,
        "configuration": first.configuration.name,
        "trainer": request.trainer,
        "fold": request.fold,
        "length": _of_folds(previews, lambda fold: _length(fold)),
        "batch size": _of_folds(previews, lambda fold: _of_plan(fold, "batch_size")),
        "learning rate": _of_folds(previews, lambda fold: _of_plan(fold, "learning_rate")),
        "augmentation": _of_folds(previews, lambda fold: _of_plan(fold, "augmentation")),
        "seed": _of_folds(previews, lambda fold: fold.request.seed),
        "device": request.device,
    }
    if first.request.patience is not None:
        lines["patience"] = f"{first.request.patience} looks without a better held-out Dice end a phase"
    if first.request.deterministic:
        lines["deterministic"] = "yes"
    if request.compile is not None:
        lines["compiled"] = "yes" if request.compile else "no"
    if first.request.phase_1_from is not None:
        lines["phase 1 from"] = first.request.phase_1_from
    if first.request.pretrained is not None:
        skipped = ", phase 1 is skipped" if first.request.phase_2_only else ""
        lines["starts from"] = f"{first.request.pretrained}{skipped}"
    for fold in previews:
        lines[f"fold {fold.fold}"] = STATES[fold.state]
    return "\n".join(f"{name:<14} {value}" for name, value in lines.items())


def _of_folds(previews: Sequence[FoldPreview], text: Callable[[FoldPreview], object]) -> str:
    """One value where all folds have the same, else the value of each."""
    values = {fold.fold: str(text(fold)) for fold in previews}
    if len(set(values.values())) == 1:
        return values[previews[0].fold]
    return ", ".join(f"{value} (fold {fold})" for fold, value in values.items())


def _of_plan(fold: FoldPreview, name: str) -> str:
    asked = getattr(fold.request, name)
    return f"{getattr(fold.configuration.training, name)} (plan)" if asked is None else str(asked)


def _length(fold: FoldPreview) -> str:
    """The length of both phases together."""
    request = fold.request
    if request.max_time_s is not None:
        return f"{request.max_time_s:g} s with choosing and the final validation"
    if request.epochs is not None:
        return counted(request.epochs, "epoch")
    if request.iterations is not None:
        return counted(request.iterations, "iteration")
    return f"{fold.configuration.training.num_epochs} epochs (plan)"
