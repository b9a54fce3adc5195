"""Score one mask against another: all scores at once, or single metrics.

python evaluate_arrays.py
"""

import numpy as np

import unisegdiff_pipeline as usd


def main() -> None:
    """Two squares, the second shifted by one pixel of 0.5 mm."""
    reference, predicted = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    reference[8:16, 8:16] = 1
    predicted[8:16, 9:17] = 1
    spacing_mm = (0.5, 0.5)
    print(f"Dice {usd.metrics.dice(reference, predicted):.3f}")  # 2 * 56 / 128
    print(f"HD95 {usd.metrics.hd95(reference, predicted, spacing_mm):.1f} mm")
    distances = usd.metrics.surface_distances(reference, predicted, spacing_mm)
    print(f"largest distance {distances.reference_to_predicted.max():.1f} mm")
    lesion = usd.evaluate(reference, predicted, spacing_mm=spacing_mm).classes[0]
    print(f"lesion F1 {lesion.lesion_score.lesion_f1:.1f}, area {lesion.overlap.predicted_ml:.0f} mm2")


if __name__ == "__main__":
    main()
