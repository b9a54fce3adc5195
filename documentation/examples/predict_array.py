"""Predict one image that is in memory as a numpy array, and save what usd_predict would write.

python predict_array.py MODEL_FOLDER OUTPUT
"""

import sys

import numpy as np

import unisegdiff_pipeline as usd


def main(model_folder: str, output: str) -> None:
    """An image of noise stands for yours."""
    model = usd.Predictor(model_folder)
    print(model)
    image = np.random.default_rng(0).normal(100.0, 10.0, (1, 64, 64))  # (C, Y, X); of a volume (C, Z, Y, X)
    prediction = model.predict(image, spacing_mm=(1.0, 1.0), case_id="noise")
    print(prediction)
    print(f"{np.count_nonzero(prediction.mask)} pixels in {len(prediction.lesions)} lesions")
    prediction.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
