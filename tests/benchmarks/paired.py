"""Compare prediction folders case by case against one reference: Dice of each, paired differences, Wilcoxon's test.

python tests/benchmarks/paired.py REFERENCE OURS OTHER [OTHER ...] [--dataset-json FILE]

A case counts where its reference holds the class; the Dice of a case is the mean over its classes. The interval is a
bootstrap over cases (10 000 draws, seed 0).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.io.dataset_json import read_dataset_json


def dice_of_cases(reference: Path, prediction: Path, dataset_json: Path) -> dict[str, float]:
    """Mean Dice over the classes of each case whose reference holds any."""
    description = read_dataset_json(dataset_json)
    evaluation = evaluate_folders(reference, prediction, description.labels, spacing_known=description.spacing_known)
    found = {}
    for case in evaluation.cases:
        defined = [score.dice for score in case.scores if not math.isnan(score.dice)]
        if defined:
            found[case.case_id] = float(np.mean(defined))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("ours", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--dataset-json", type=Path, required=True)
    args = parser.parse_args()
    ours = dice_of_cases(args.reference, args.ours, args.dataset_json)
    print(f"{args.ours}: mean Dice {np.mean(list(ours.values())):.4f} over {len(ours)} cases")
    for other in args.others:
        theirs = dice_of_cases(args.reference, other, args.dataset_json)
        difference = np.array([ours[case] - theirs[case] for case in ours])
        draws = np.random.default_rng(0).choice(difference, (10_000, len(difference))).mean(axis=1)
        low, high = np.percentile(draws, (2.5, 97.5))
        p = wilcoxon(difference).pvalue if np.any(difference) else 1.0
        print(
            f"{other}: mean Dice {np.mean(list(theirs.values())):.4f}; ours minus it {difference.mean():+.4f} "
            f"[{low:+.4f}, {high:+.4f}], Wilcoxon p = {p:.2g}"
        )


if __name__ == "__main__":
    main()
