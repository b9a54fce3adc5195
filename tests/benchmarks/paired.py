"""Compare prediction folders case by case against one reference: Dice of each, paired differences, Wilcoxon's test.

python tests/benchmarks/paired.py REFERENCE OURS OTHER [OTHER ...] [--dataset-json FILE]

A case counts where its reference holds the class; the Dice of a case is the mean over its classes. The interval is a
bootstrap over cases (10 000 draws, seed 0). `usd_evaluate --against` compares classes one by one and by every metric.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.io.dataset_json import read_dataset_json


def dice_of_cases(reference: Path, prediction: Path, dataset_json: Path) -> dict[str, float]:
    """Mean Dice over the classes of each case; NaN where the reference holds none."""
    description = read_dataset_json(dataset_json)
    evaluation = evaluate_folders(reference, prediction, Meaning(description.labels, description.spacing_known))
    return {case.case_id: mean_of_defined(score.dice for score in case.scores) for case in evaluation.cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--dataset-json", type=Path, required=True)
    args = parser.parse_args()
    ours = dice_of_cases(args.reference, args.ours, args.dataset_json)
    num_scored = sum(not math.isnan(dice) for dice in ours.values())
    print(f"{args.ours}: mean Dice {mean_of_defined(ours.values()):.4f} over {num_scored} cases")
    for other in args.others:
        theirs = dice_of_cases(args.reference, other, args.dataset_json)
        found = paired_comparison([*ours.values()], [theirs[case] for case in ours], resamples=10_000)
        print(
            f"{other}: mean Dice {mean_of_defined(theirs.values()):.4f}; ours minus it {found.mean_difference:+.4f} "
            f"[{found.ci_low:+.4f}, {found.ci_high:+.4f}], Wilcoxon p = {found.p_wilcoxon:.2g}, rank-biserial r = "
            f"{found.effect_size:+.2f}, better in {found.wins}, equal in {found.ties}, worse in {found.losses}"
        )


if __name__ == "__main__":
    main()
