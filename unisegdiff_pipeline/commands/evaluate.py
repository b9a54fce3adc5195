"""usd_evaluate: score predicted masks against references."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.commands.common import CommandParser, add_seed, positive_number, run, whole_number
from unisegdiff_pipeline.commands.follow_up import add_follow_up, check_flags, run_follow_up
from unisegdiff_pipeline.commands.nnunet import EVALUATE
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted

# Those of evaluation.profiles.registry, which is too heavy for a parser.
PROFILE_NAMES = (
    "autopet",
    "brats",
    "brats-men",
    "brats-met",
    "isles",
    "lits",
    "panoptic",
    "picai",
    "recommended",
    "ulds",
)

if TYPE_CHECKING:
    from argparse import Namespace

    from unisegdiff_pipeline.evaluation.evaluate import Evaluation
    from unisegdiff_pipeline.evaluation.lesion_matching import Criterion, MatchingRule
    from unisegdiff_pipeline.evaluation.options import EvaluationOptions


def build_parser() -> CommandParser:
    """Parser of usd_evaluate."""
    parser = CommandParser(
        "usd_evaluate",
        "Score predicted masks against references: overlap, distances, lesions, sizes; and, where they are\n"
        "there, probabilities, samples and several raters. Shape and geometry are compared before scoring. Both masks\n"
        "empty: undefined, and counted. Reference empty and prediction not: the volume predicted falsely, not a Dice\n"
        "of 0. Works on predictions of this package and of nnU-Net, and on plain folders of masks.",
        nnunet=EVALUATE,
    )
    parser.add_argument(
        "reference",
        type=Path,
        metavar="REF",
        help="folder of reference masks, or one file; of a unified data set its raw folder, DatasetXXX_Name",
    )
    parser.add_argument("prediction", type=Path, metavar="PRED", help="folder of predicted masks, or one file")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where metrics.csv, lesion_scores.csv, summary.json and report.html go (default: PRED/evaluation)",
    )
    _add_meaning(parser)
    _add_inputs(parser)
    _add_choices(parser)
    add_follow_up(parser)
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")
    parser.add_argument(
        "--workers", type=whole_number(0), metavar="N", help="processes (default: by the amount of data)"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="score on the workers of the Dask cluster there")
    return parser


def _add_meaning(parser: CommandParser) -> None:
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
    parser.add_argument("--subset", action="store_true", help="score only the cases that PRED and each OTHER hold")


def _add_inputs(parser: CommandParser) -> None:
    group = parser.add_argument_group("what else is scored")
    for name, text in (
        ("probabilities", "CASE.npz or maps of real numbers (default: PRED/probabilities, or CASE.npz in PRED)"),
        ("samples", "CASE_sampleN.ext, or a folder for each case or sample (default: PRED/samples)"),
        ("raters", "CASE_raterN.ext, or a folder for each case or rater (default: ratersTr beside labelsTr)"),
        ("uncertainty", "uncertainty maps CASE.ext (default: PRED/uncertainty)"),
    ):
        group.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)
    group.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="groups.csv: cases of one patient, drawn together for intervals (default: groups.csv beside REF)",
    )
    group.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="OTHER", help="other prediction folders to compare with"
    )


def _add_choices(parser: CommandParser) -> None:
    group = parser.add_argument_group("choices")
    group.add_argument(
        "--match",
        choices=("overlap", "iou", "dilated"),
        help="lesions match where they share a voxel, by their IoU, or where they come near (default: overlap)",
    )
    group.add_argument("--iou", type=fraction, metavar="T", help="least IoU of matching lesions, with --match iou")
    group.add_argument(
        "--dilation-mm",
        type=positive_number,
        metavar="MM",
        help="largest distance, with --match dilated (default: 3; in pixels where their size is unknown)",
    )
    group.add_argument("--one-to-one", action="store_true", help="match each lesion at most once")
    group.add_argument(
        "--connectivity",
        type=int,
        choices=(6, 18, 26),
        default=26,
        help="neighbours that make one lesion (default: 26; in 2D 8, and 4 for 6)",
    )
    group.add_argument(
        "--tolerance-mm",
        type=positive_number,
        nargs="+",
        metavar="MM",
        help="tolerances of surface Dice (default: 1 2; in pixels likewise)",
    )
    group.add_argument(
        "--strata-ml",
        type=positive_number,
        nargs="+",
        metavar="ML",
        help="sizes that divide lesions: ml, in 2D mm2 or pixels (default: thirds of the reference lesions)",
    )
    group.add_argument(
        "--bootstrap",
        type=whole_number(0, 1_000_000),
        metavar="N",
        help="draws of the 95 %% intervals; 0 = none (default: 2000)",
    )
    group.add_argument(
        "--profile",
        choices=PROFILE_NAMES,
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"score by these rules of challenges as well, into profile_NAME.csv: {', '.join(PROFILE_NAMES)}",
    )
    group.add_argument(
        "--min-lesion-ml",
        type=positive_number,
        metavar="ML",
        help="smaller lesions do not count in the profile panoptic: ml, in 2D mm2 or pixels",
    )
    add_seed(parser)
    parser.set_defaults(seed=None)  # of values that --follow-up does not take it must be known whether they are given


def fraction(text: str) -> float:
    """Parse a number above 0 and up to 1."""
    value = positive_number(text)
    if value > 1:
        raise ArgumentTypeError(f"{text!r} must be a number above 0 and up to 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_evaluate."""
    return run(lambda: _compare(build_parser().parse_args(argv)))


def _compare(args: Namespace) -> None:
    check_flags(args)
    if args.follow_up:
        run_follow_up(args, _matching_rule(args))
    else:
        _evaluate(args)


def _evaluate(args: Namespace) -> None:
    from unisegdiff_pipeline import pipeline
    from unisegdiff_pipeline.evaluation.evaluate import WrittenFiles
    from unisegdiff_pipeline.evaluation.overview import comparison_table, evaluation_table, source_table
    from unisegdiff_pipeline.evaluation.profiles.report import profile_file, profile_table

    if args.scheduler is not None:  # whose workers stand in other folders
        for name in ("reference", "prediction", "probabilities", "samples", "raters", "uncertainty"):
            if (path := getattr(args, name)) is not None:
                setattr(args, name, path.absolute())
        args.against = [path.absolute() for path in args.against]
    folder = args.output or (args.prediction if args.prediction.is_dir() else args.prediction.parent) / "evaluation"
    evaluation = pipeline.evaluate(
        args.reference,
        args.prediction,
        labels=args.labels,
        dataset_json=args.dataset_json,
        output=folder,
        options=_options(args),
    )
    say(evaluation_table(evaluation.report))
    if evaluation.report.by_source is not None:
        say(f"\n{source_table(evaluation.report)}")
    if args.against:
        say(f"\n{comparison_table(evaluation.report)}")
    for profile in evaluation.profiles:
        say(f"\n{profile_table(profile, evaluation.report.units)}")
    say(f"\n{_what_was_scored(evaluation)}")
    files = WrittenFiles.of(folder)
    say(f"Scores per case: {files.metrics}\nLesions: {files.lesions}\nAll scores: {files.summary}")
    for profile in evaluation.profiles:
        say(f"Scores by the rule of {profile.name}: {folder / profile_file(profile.name)}")
    if not args.no_report:
        say(f"Report: {_write_report(evaluation, folder)}")


def _options(args: Namespace) -> EvaluationOptions:
    from unisegdiff_pipeline.evaluation.options import EvaluationOptions

    if args.min_lesion_ml is not None and "panoptic" not in args.profile:
        raise UsdError(
            f"--min-lesion-ml {args.min_lesion_ml:g} goes with --profile panoptic; challenges set their own "
            f"sizes. Add the profile, or leave the flag out."
        )
    given: dict[str, Any] = {
        # In the six digits by which their columns are named.
        "tolerances_mm": args.tolerance_mm and tuple(sorted({float(f"{value:g}") for value in args.tolerance_mm})),
        "resamples": args.bootstrap,
        "seed": args.seed,
    }
    return EvaluationOptions(
        rule=_matching_rule(args),
        strata_edges_ml=None if args.strata_ml is None else tuple(sorted(set(args.strata_ml))),
        subset=args.subset,
        against=tuple(args.against),
        probabilities=args.probabilities,
        samples=args.samples,
        raters=args.raters,
        uncertainty=args.uncertainty,
        groups=args.groups,
        profiles=tuple(dict.fromkeys(args.profile)),
        min_lesion_ml=args.min_lesion_ml or 0.0,
        workers=args.workers,
        scheduler=args.scheduler,
        **{name: value for name, value in given.items() if value is not None},
    )


def _matching_rule(args: Namespace) -> MatchingRule:
    from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule

    given: dict[Criterion, float | None] = {"iou": args.iou, "dilated": args.dilation_mm}
    flags = {"iou": "--iou", "dilated": "--dilation-mm"}
    chosen_by_value = next((name for name, value in given.items() if value is not None), None)
    criterion: Criterion = args.match or chosen_by_value or "overlap"
    for name, value in given.items():
        if value is not None and name != criterion:
            raise UsdError(
                f"{flags[name]} {value:g} belongs to --match {name}, but lesions are matched by {criterion}; leave one "
                f"of the two out."
            )
    if criterion == "iou" and args.iou is None:
        raise UsdError("--match iou needs the least IoU of matching lesions; add for example --iou 0.5.")
    chosen = {"threshold": args.iou, "dilation_mm": args.dilation_mm}
    return MatchingRule(
        criterion,
        one_to_one=args.one_to_one,
        connectivity=args.connectivity,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def _what_was_scored(evaluation: Evaluation) -> str:
    """Files beside the masks that went into the scores, and cases that are left out."""
    settings, cases = evaluation.report.settings, len(evaluation.cases)
    found = []
    for name in ("probabilities", "samples", "raters", "uncertainty", "groups"):
        if settings[name] is not None:
            of_cases = "" if settings[name]["cases"] == cases else f" ({settings[name]['cases']} of {cases} cases)"
            found.append(f"{name} in {settings[name]['path']}{of_cases}")
    lines = [f"Scored {counted(cases, 'case')}{', with ' if found else ''}{'; '.join(found)}."]
    folders = evaluation.inputs.folders
    for name in ("probabilities", "samples", "raters", "uncertainty"):
        if settings[name] is None and (folder := getattr(folders, name)) is not None:
            lines.append(f"{folder} holds no {name} of these cases, so that none are scored.")
    if settings["groups"] is None and folders.groups is not None and not folders.unified:
        lines.append(f"{folders.groups} names none of these cases, so that each is a group by itself.")
    for side, values in settings.get("not_scored_values", {}).items():
        if values:
            lines.append(f"Label values of the {side} that are not scored: {', '.join(map(str, values))}.")
    if evaluation.not_predicted:
        left_out = counted(len(evaluation.not_predicted), "reference case")
        lines.append(f"Left out, because not every run predicted them: {left_out}.")
    return "\n".join(lines)


def _write_report(evaluation: Evaluation, folder: Path) -> Path:
    from unisegdiff_pipeline.reports.evaluation_report import write_evaluation_report

    return write_evaluation_report(folder, evaluation)
