"""usd_predict: masks with their uncertainty for new images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import (
    CommandParser,
    add_device,
    add_roots,
    add_seed,
    import_with_torch,
    roots_of,
    run,
    whole_number,
)
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.nnunet import PREDICT
from unisegdiff_pipeline.commands.slurm import TASK, JobArray, array_part, command_line, in_array
from unisegdiff_pipeline.commands.terminal import report_error, say
from unisegdiff_pipeline.core.bounds import MAX_SAMPLES
from unisegdiff_pipeline.core.names import quoted

if TYPE_CHECKING:
    from unisegdiff_pipeline.inference.model_folder import ModelFolder
    from unisegdiff_pipeline.inference.request import PredictRequest


def build_parser() -> CommandParser:
    """Parser of usd_predict."""
    parser = CommandParser(
        "usd_predict",
        "Predict masks for images in the raw layout (CASE_0000.ext, CASE_0001.ext, ...). OUT holds the masks, and\n"
        "uncertainty/, lesions.csv, volumes.csv, cases.csv and manifest.json beside them. An interrupted prediction\n"
        "continues.",
        nnunet=PREDICT,
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="IN",
        help="a folder of images, of DICOM series, or of BIDS, or image files",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the masks")
    _add_model(parser)
    parser.add_argument(
        "--samples",
        type=whole_number(0, MAX_SAMPLES),
        metavar="N",
        help="samples a case, masks that the model holds possible (default: the model's number)",
    )
    parser.add_argument(
        "--source",
        metavar="NAME",
        help="of a model of a unified data set: the source that all images are like (default: none of them)",
    )
    parser.add_argument(
        "--suffixes",
        nargs="+",
        default=(),
        metavar="SUFFIX",
        help="of a BIDS folder: suffix of the images of each channel, e.g. T1w FLAIR (default: names of the channels)",
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="also average over mirrored images, which takes up to 4 (2D) or 8 times as long",
    )
    parser.add_argument(
        "--combine",
        choices=("mean", "majority", "staple"),
        default="mean",
        help="what masks are made of: the mean probability (default), or the samples by vote or by STAPLE",
    )
    parser.add_argument(
        "--decision",
        choices=("half", "dice"),
        help="threshold of the mean probability: 0.5 (half), or where the samples promise the highest Dice (default: "
        "what training chose on its hold-out)",
    )
    lesions = parser.add_mutually_exclusive_group()
    lesions.add_argument(
        "--utility",
        type=utility,
        metavar="WHAT",
        help="keep the lesions that serve WHAT best by the held-out cases of the training: dice, lesion_f1,\n"
        "sensitivity=0.9 (fewest false positives at this sensitivity) or fp_per_case=0.5 (highest sensitivity at so\n"
        "many false positives a case); default: the filter that training chose",
    )
    lesions.add_argument("--no-filter", action="store_true", help="keep every lesion of the mask")
    parser.add_argument(
        "--guarantee",
        nargs="+",
        action="extend",
        default=[],
        metavar="KIND=RATE",
        help="also write what keeps a promise for new patients who are like those of the validation: lesions=0.9\n"
        "(masks_lesions/ touches 9 of 10 lesions), masks=0.9 (the reference lies between masks_inner/ and\n"
        "masks_outer/ but for a tenth), volume=0.9 (intervals in volumes.csv); by one fold (-f K), or by what\n"
        "usd_find_best chose",
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="memory that may be taken on a CPU (default: half of what is free); larger arrays go to temporary files\n"
        "in OUT, and the masks are the same",
    )
    parser.add_argument("--save-probabilities", action="store_true", help="write the probability of each class")
    parser.add_argument("--save-samples", action="store_true", help="write every sample")
    parser.add_argument(
        "--save-uncertainty-parts",
        action="store_true",
        help="write how much of the uncertainty lies between folds, within samples, and in single samples",
    )
    parser.add_argument(
        "--bids", type=Path, metavar="DIR", help="write the masks as BIDS derivatives, too (cases named sub-01_...)"
    )
    parser.add_argument(
        "--dicom-seg",
        type=Path,
        metavar="DIR",
        help="write masks and probabilities of DICOM series as DICOM-SEG, too (probabilities/ is then saved as well)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="predict cases again that OUT holds already, and remove those of another model or other settings",
    )
    parts = parser.add_argument_group("sharing a folder between several runs")
    parts.add_argument(
        "--num-parts",
        type=whole_number(1),
        metavar="N",
        help="number of runs (default: tasks of the SLURM job array that this is one of, else 1); 1 where each task\n"
        "of an array has a folder of its own",
    )
    parts.add_argument(
        "--part-id",
        type=whole_number(0),
        metavar="K",
        help="this run, 0 to N-1 (default: number of the task in the array); needed outside of an array where N > 1",
    )
    parts.add_argument(
        "--print-jobs",
        choices=("slurm",),
        help="predict nothing: print a batch script of --num-parts N tasks, for sbatch",
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="predict on the workers of the Dask cluster there")
    parser.add_argument("--dry-run", action="store_true", help="print the model and the cases, and stop")
    add_roots(parser, "results")
    return parser


def utility(text: str) -> str:
    """A utility by its name, for argparse."""
    from unisegdiff_pipeline.inference.utility import Utility

    try:
        return str(Utility.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_model(parser: CommandParser) -> None:
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("-d", "--dataset", metavar="DATASET", help="data set that the model was trained on")
    which.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="PATH",
        help="model folder RESULTS/DATASET/TRAINER__CONFIG, or the archive that usd_export made of one",
    )
    group.add_argument(
        "--best",
        action="store_true",
        help="with -d: the model, or the two models, that usd_find_best chose (best.json in the results of DATASET)",
    )
    add_names(group)
    group.add_argument(
        "-f",
        "--folds",
        nargs="+",
        metavar="FOLD",
        help="folds to average: 0 1 ..., or `all` for the model of fold all (default: every numbered one)",
    )


def add_names(group: argparse._ArgumentGroup) -> None:
    """Add -c, --trainer, --plans and --run, which choose among the models of -d; see `find_model`."""
    group.add_argument(
        "-c", "--configuration", metavar="CONFIG", help="with -d; default: the trained one, else the recommended"
    )
    group.add_argument(
        "--trainer", metavar="NAME", help="with -d; default: StagedDiffusionTrainer where it was trained"
    )
    group.add_argument("--plans", metavar="NAME", help="with -d; the model of the plan with this name")
    group.add_argument("--run", metavar="NAME", help="with -d; the model that was trained with --run NAME")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_predict."""
    return run(lambda: _predict(_parsed(argv)))


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.part_id is not None and args.num_parts is not None and args.part_id >= args.num_parts:
        parser.error(f"--part-id {args.part_id} must be below --num-parts {args.num_parts}")
    if args.print_jobs and (args.num_parts is None or args.part_id is not None):
        parser.error("--print-jobs needs --num-parts N, the number of tasks, and no --part-id")
    if not args.print_jobs and (args.num_parts or 1) > 1 and args.part_id is None and not in_array():
        parser.error(
            f"--num-parts {args.num_parts} needs --part-id K, 0 to {args.num_parts - 1}, outside of a SLURM job array; "
            f"without both all cases are predicted"
        )
    if args.model is not None and (args.configuration or args.trainer or args.plans or args.run):
        parser.error("-c, --trainer, --plans and --run go with -d; a model folder given with -m says them itself")
    said = {"-m": args.model, "-c": args.configuration, "-f": args.folds}
    said |= {f"--{name}": getattr(args, name) for name in ("trainer", "plans", "run")}
    if args.best and (others := [flag for flag, value in said.items() if value]):
        parser.error(f"--best goes with -d: best.json says which models and folds; leave {', '.join(others)} out")
    for name in ("bids", "dicom_seg"):
        if args.best and getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} goes with one model; leave --best or {flag} out")
    if args.guarantee:
        from unisegdiff_pipeline.inference.guarantees import parse_guarantees

        try:
            parse_guarantees(args.guarantee)
        except ValueError as error:
            parser.error(f"argument --guarantee: {error}")
    return args


def _predict(args: argparse.Namespace) -> None:
    if args.print_jobs:
        say(jobs_of(args))
        return
    num_parts, part_id, said = array_part(args.num_parts, args.part_id)
    if said:
        report_error(f"{said}.", kind="note")
    if args.best:
        model = results_of(args)
    else:
        model = find_model(args) if args.model is None else args.model
    source = args.input[0] if len(args.input) == 1 else tuple(args.input)
    if args.dry_run:
        if args.best:
            say(describe_best(model, source, args.source, args.suffixes))
        else:
            say(describe(model, source, args.folds, args.source, args.suffixes))
        return

    import_with_torch("unisegdiff_pipeline.inference.folder_run")
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.inference.bids import require_derivatives, write_derivatives
    from unisegdiff_pipeline.inference.dicom_seg import require_dicom_seg, write_dicom_segs
    from unisegdiff_pipeline.inference.folder_run import CasesFailedError
    from unisegdiff_pipeline.inference.guarantees import promised_folders
    from unisegdiff_pipeline.inference.model_folder import open_model_folder
    from unisegdiff_pipeline.networks.allocator import keep_freed_memory

    if args.bids is not None or args.dicom_seg is not None:
        opened = open_model_folder(model)
    if args.bids is not None:
        endings = case_endings(opened, source, args.source, args.suffixes)
        require_derivatives(args.bids, endings)
    if args.dicom_seg is not None:
        series = require_dicom_seg(source, args.dicom_seg, opened)

    keep_freed_memory()
    say(f"Best: {model / 'best.json'}" if args.best else f"Model: {model}")
    predict = pipeline.predict_best if args.best else pipeline.predict
    request = _request(args, model, source, (num_parts, part_id))
    failed = None
    try:
        predict(request)
    except CasesFailedError as error:
        failed = error  # the others are written in all forms that are asked for
    say(f"Masks: {args.output}\nUncertainty: {args.output / 'uncertainty'}")
    say(f"Lesions: {args.output / 'lesions.csv'}\nVolumes: {args.output / 'volumes.csv'}")
    say(f"Cases: {args.output / 'cases.csv'}")
    for folder in promised_folders(args.output) if args.guarantee else ():
        if folder.is_dir():
            say(f"Guaranteed: {folder}")
    if args.bids is not None:
        write_derivatives(args.output, args.bids, endings, opened.plans.labels)
        say(f"BIDS derivatives: {args.bids}")
    if args.dicom_seg is not None:
        write_dicom_segs(args.output, args.dicom_seg, series, opened)
        say(f"DICOM-SEG: {args.dicom_seg}")
    if failed is not None:
        raise failed


def _request(
    args: argparse.Namespace, model: Path, source: Path | tuple[Path, ...], part: tuple[int, int]
) -> PredictRequest:
    """What the flags ask for; `part` is (number of parts, this one)."""
    from unisegdiff_pipeline.inference.request import PredictRequest

    num_parts, part_id = part
    return PredictRequest(
        source,
        args.output,
        model,
        args.folds,
        num_samples=args.samples,
        source_name=args.source,
        suffixes=tuple(args.suffixes),
        seed=args.seed,
        device=args.device,
        mirror=args.mirror,
        combine=args.combine,
        decision=args.decision,
        utility=args.utility,
        guarantees=tuple(args.guarantee),
        lesion_filter=not args.no_filter,
        max_memory_gb=args.max_memory,
        save_probabilities=args.save_probabilities or args.dicom_seg is not None,
        save_samples=args.save_samples,
        save_uncertainty_parts=args.save_uncertainty_parts,
        overwrite=args.overwrite,
        num_parts=num_parts,
        part_id=part_id,
        needs_cases=num_parts > 1 and args.part_id is None,  # nobody but SLURM named the part
        scheduler=args.scheduler,
    )


def jobs_of(args: argparse.Namespace) -> str:
    """A batch script that predicts in as many tasks as --num-parts says."""
    parts = {"part_id": TASK}
    line = command_line(build_parser(), args, parts, without=("print_jobs", "dry_run"))
    return JobArray("usd_predict", args.num_parts, line, with_gpu=args.device != "cpu").script()


def find_model(args: argparse.Namespace) -> Path:
    """The model folder of a data set; of several, the default trainer's and the plan's recommended configuration."""
    from unisegdiff_pipeline.inference import model_search
    from unisegdiff_pipeline.training.request import DEFAULT_TRAINER

    return model_search.find_model(
        results_of(args),
        DEFAULT_TRAINER,
        configuration=args.configuration,
        trainer=None if args.trainer is None else args.trainer.split(":")[-1],
        plans=args.plans,
        run=args.run,
    )


def results_of(args: argparse.Namespace) -> Path:
    """RESULTS/DATASET of the data set that -d names."""
    from unisegdiff_pipeline.io.paths import find_dataset

    root = roots_of(args).require_results()
    remedy = f"Train it with usd_train {quoted(args.dataset)} 0, or check the number and the root folder."
    return root / find_dataset(root, args.dataset, remedy)


def describe_best(
    folder: Path, source: Path | Sequence[Path], source_name: str | None = None, suffixes: Sequence[str] = ()
) -> str:
    """What would be predicted by best.json of RESULTS/DATASET, in lines."""
    from unisegdiff_pipeline.inference.best_prediction import open_best

    best = open_best(folder)
    parts = [describe(model, source, folds, source_name, suffixes) for model, folds in best.models]
    return "\n".join([f"best   {best.recipe.reason}", *parts])


def describe(
    model: Path,
    source: Path | Sequence[Path],
    folds: Sequence[str] | None,
    source_name: str | None = None,
    suffixes: Sequence[str] = (),
) -> str:
    """What would be predicted, in lines, by the rules of the prediction itself."""
    from unisegdiff_pipeline.inference.model_folder import choose_folds, open_model_folder

    opened = open_model_folder(model)
    chosen = choose_folds(opened, folds)
    cases = case_endings(opened, source, source_name, suffixes)
    return "\n".join(
        [
            f"model  {model}",
            f"folds  {' '.join(chosen)} (finished: {' '.join(opened.folds)})",
            f"cases  {len(cases)}: {', '.join(cases)}",
        ]
    )


def case_endings(
    model: ModelFolder, source: Path | Sequence[Path], source_name: str | None, suffixes: Sequence[str] = ()
) -> dict[str, str]:
    """The cases that would be predicted, with the endings of their images.

    Raises:
        UsdError: as of a prediction, where it would not begin.
    """
    from unisegdiff_pipeline.inference.dicom_input import image_ending, series_in, series_of_cases
    from unisegdiff_pipeline.inference.model_inputs import ModelInputs
    from unisegdiff_pipeline.io.dicom import is_dicom_folder

    inputs = ModelInputs(model, source_name, tuple(suffixes))
    if isinstance(source, Path) and is_dicom_folder(source):
        return dict.fromkeys(series_of_cases(series_in(source)[0], model), image_ending(model))
    return {case.case_id: inputs.file_ending(case.image_paths) for case in inputs.find_cases(source)}
