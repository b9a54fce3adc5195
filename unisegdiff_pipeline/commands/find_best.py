"""usd_find_best: which model, or pair of models, of a data set is best in cross-validation."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unisegdiff_pipeline.commands.common import CommandParser, add_roots, root_flags, roots_of, run, whole_number
from unisegdiff_pipeline.commands.limits import LEAST_WITH_NETWORK_GB
from unisegdiff_pipeline.commands.nnunet import FIND_BEST
from unisegdiff_pipeline.commands.terminal import say
from unisegdiff_pipeline.core.names import quoted

if TYPE_CHECKING:
    from unisegdiff_pipeline.inference.recipe import Candidate, Recipe


def build_parser() -> CommandParser:
    """Parser of usd_find_best."""
    parser = CommandParser(
        "usd_find_best",
        "Compare all trained models of a data set, and all pairs of them with their probabilities averaged, by the\n"
        "validation cases of their folds. The simplest one is taken unless another is significantly better. Writes\n"
        "best.json into the results of the data set; usd_predict --best predicts by it.",
        nnunet=FIND_BEST,
        least_gb=LEAST_WITH_NETWORK_GB,
    )
    parser.add_argument("dataset", metavar="DATASET", help="4, 004, Hippocampus or Dataset004_Hippocampus")
    parser.add_argument(
        "--workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="processes that score pairs (default: 0, in this one)",
    )
    parser.add_argument("--dry-run", action="store_true", help="compare and print, write nothing")
    add_roots(parser, "raw", "preprocessed", "results")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of usd_find_best."""
    return run(lambda: _find_best(build_parser().parse_args(argv)))


def _find_best(args: argparse.Namespace) -> None:
    from unisegdiff_pipeline.training.find_best import find_best

    found = find_best(roots_of(args), args.dataset, workers=args.workers, writing=not args.dry_run)
    say(describe(found.recipe))
    if not args.dry_run:
        dataset = f"{quoted(found.recipe.dataset)}{root_flags(args, 'results')}"
        say(f"Written to {found.path}\nNext: usd_predict --best -d {dataset} -i IMAGES -o MASKS")


def describe(recipe: Recipe) -> str:
    """The table of candidates, what was left out, and the choice with its reason."""
    from unisegdiff_pipeline.evaluation.summary import format_table, format_value
    from unisegdiff_pipeline.inference.guarantees import guarantees_in_words

    header = ("candidate", "parameters", "cases", "score", "95 % interval", "Dice", "gain over the best before", "p")
    lines = [format_table([header, *(_row(candidate) for candidate in recipe.candidates)])]
    lines.append("score: mean Dice over cases; a class that the reference lacks counts 1 where the mask lacks it, too")
    if sources := list(dict.fromkeys(source for candidate in recipe.candidates for source in candidate.sources)):
        lines[-1] += (
            "\nAll of it is the mean over sources, in which a small one counts as much as a large one; score by source:"
        )
        rows = [
            (one.name, *(format_value(one.sources.get(name, math.nan), ".4f") for name in sources))
            for one in recipe.candidates
        ]
        lines.append(format_table([("candidate", *sources), *rows]))
    lines += [f"Left out: {reason}" for reason in recipe.left_out]
    lines += [f"Note: {note}" for note in recipe.notes]
    if recipe.filter_evidence is not None:
        lines += [f"Lesion filter: {sentence}" for sentence in recipe.filter_evidence.in_words]
    guaranteed = guarantees_in_words(recipe.guarantees, recipe.source_guarantees)
    lines += [f"Guarantee: {sentence}" for sentence in guaranteed]
    lines.append(f"Best: {' + '.join(member.model for member in recipe.members)} ({recipe.reason})")
    return "\n".join(lines)


def _row(candidate: Candidate) -> tuple[str, ...]:
    against = candidate.comparison
    gain = "" if against is None else f"{against.difference:+.4f} ({against.low:+.4f} to {against.high:+.4f})"
    return (
        candidate.name,
        f"{candidate.num_parameters:,}",
        str(candidate.num_cases),
        f"{candidate.score:.4f}",
        f"{candidate.score_low:.4f} to {candidate.score_high:.4f}",
        f"{candidate.mean_dice:.4f}",
        gain,
        "" if against is None else f"{against.p_corrected:.2g}",
    )
