"""usd_evaluate --follow-up: lesions of two time points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import CommandParser, positive_number
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:
    from argparse import Namespace

    from unisegdiff_pipeline.evaluation.follow_up import Thresholds
    from unisegdiff_pipeline.evaluation.follow_up_folders import FollowUp
    from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule

OWN_FLAGS = ("pairs", "change", "grow_percent", "grow_mm", "shrink_percent")
# Flags of the scores against references, which say nothing here; without the flag they are None or an empty list.
FOREIGN_FLAGS = (
    "probabilities",
    "samples",
    "raters",
    "uncertainty",
    "groups",
    "against",
    "strata_ml",
    "profile",
    "min_lesion_ml",
    "tolerance_mm",
    "bootstrap",
    "seed",
    "workers",
    "scheduler",
)


def add_follow_up(parser: CommandParser) -> None:
    """Add the flags of the comparison of two time points."""
    group = parser.add_argument_group("two time points")
    group.add_argument(
        "--follow-up",
        action="store_true",
        help="REF and PRED are masks of the same patients at baseline and follow-up, on one grid: lesions that are "
        "new, vanished, growing, shrinking or stable, with their probabilities where both folders hold samples/",
    )
    group.add_argument(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="CSV of the pairs, case,baseline,follow_up (default: masks of the same name)",
    )
    group.add_argument(
        "--change", choices=("volume", "diameter"), help="what grows or shrinks (default: volume, in 2D the area)"
    )
    group.add_argument(
        "--grow-percent",
        type=positive_number,
        metavar="P",
        help="growth from here on (default: 25 in volume, 20 in diameter)",
    )
    group.add_argument(
        "--grow-mm",
        type=positive_number,
        metavar="MM",
        help="and by at least so much, with --change diameter (default: 5)",
    )
    group.add_argument(
        "--shrink-percent",
        type=positive_number,
        metavar="P",
        help="shrinkage from here on (default: 25 in volume, 30 in diameter)",
    )


def check_flags(args: Namespace) -> None:
    """Refuse flags that do not go with what is compared.

    Raises:
        UsdError: a flag of the comparison of two time points without --follow-up, or of scores with it.
    """
    names, reason = (
        (
            FOREIGN_FLAGS,
            "does not go with --follow-up, which compares two time points (samples are taken from samples/ "
            "in either folder)",
        )
        if args.follow_up
        else (OWN_FLAGS, "goes with --follow-up")
    )
    for name in names:
        if getattr(args, name) not in (None, []):
            raise UsdError(f"--{name.replace('_', '-')} {reason}; leave one of the two out.")


def run_follow_up(args: Namespace, rule: MatchingRule) -> None:
    """Compare, write and show."""
    from unisegdiff_pipeline.core.files import remove_stale_temporaries, require_writable
    from unisegdiff_pipeline.evaluation.follow_up import FollowUpOptions
    from unisegdiff_pipeline.evaluation.follow_up_folders import follow_up_folders, follow_up_table, write_follow_up
    from unisegdiff_pipeline.evaluation.meaning import find_meaning

    beside = args.prediction if args.prediction.is_dir() else args.prediction.parent
    folder = args.output or beside / "follow_up"
    options = FollowUpOptions(rule, _thresholds(args))
    meaning = find_meaning(args.reference, args.prediction, args.dataset_json, args.labels)
    require_writable(folder)
    result = follow_up_folders(args.reference, args.prediction, meaning, options, args.pairs, args.subset)
    remove_stale_temporaries(folder, below=True)  # of runs that were killed
    files = write_follow_up(folder, result)
    say(follow_up_table(result))
    left = f"; {len(result.not_paired)} case(s) without a partner are left out" if result.not_paired else ""
    say(f"\nCompared {len(result.patients)} patient(s){left}.")
    if result.other_values:
        say(f"Label values that are not followed: {', '.join(map(str, result.other_values))}.")
    say(f"Lesions: {files.table}\nPatients: {files.summary}")
    if not args.no_report:
        say(f"Report: {_write_report(result, folder)}")


def _thresholds(args: Namespace) -> Thresholds:
    import dataclasses

    from unisegdiff_pipeline.evaluation.follow_up import RECIST_THRESHOLDS, VOLUME_THRESHOLDS

    if args.grow_mm is not None and args.change != "diameter":
        raise UsdError(f"--grow-mm {args.grow_mm:g} is a diameter; add --change diameter, or leave it out.")
    if args.shrink_percent is not None and args.shrink_percent > 100:
        raise UsdError(f"--shrink-percent is {args.shrink_percent:g}; a lesion shrinks by at most 100.")
    default = RECIST_THRESHOLDS if args.change == "diameter" else VOLUME_THRESHOLDS
    given = {name: getattr(args, name) for name in ("grow_percent", "grow_mm", "shrink_percent")}
    return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})


def _write_report(result: FollowUp, folder: Path) -> Path:
    from unisegdiff_pipeline.reports.follow_up_report import write_follow_up_report

    return write_follow_up_report(folder, result)
