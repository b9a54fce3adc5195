"""A long-running service: the model is loaded once, and requests are answered from several threads.

python service.py MODEL_FOLDER IMAGE [IMAGE ...]
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import unisegdiff_pipeline as usd


def main(model_folder: str, *images: str) -> None:
    """Masks do not depend on the number of threads, nor on what else is predicted at the time."""
    model = usd.Predictor(model_folder)

    def answer(image: str) -> str:
        try:
            prediction = model.predict(image)
        except usd.UsdError as error:  # says what is wrong with the image, and what to do
            return f"{image} is refused: {error}"
        return f"{prediction.case_id}: {np.count_nonzero(prediction.mask)} voxels"

    with ThreadPoolExecutor(4) as threads:
        for line in threads.map(answer, images):
            print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
