"""Score a folder of masks, of this package or of another tool, and write metrics.csv and summary.json.

python evaluate_folders.py REFERENCE PREDICTION OUTPUT
"""

import sys

import unisegdiff_pipeline as usd


def main(reference: str, prediction: str, output: str) -> None:
    """Samples, probabilities and uncertainty are scored, too, where the prediction holds them."""
    evaluation = usd.evaluate(reference, prediction, output=output)
    print(f"mean Dice {evaluation.summary.mean_dice:.3f} of {len(evaluation.cases)} cases")
    for case in evaluation.cases:
        print(case.case_id, [round(result.overlap.dice, 3) for result in case.classes])


if __name__ == "__main__":
    main(*sys.argv[1:])
