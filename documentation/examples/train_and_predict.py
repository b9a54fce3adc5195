"""From a raw data set to masks: plan, preprocess, train one fold, predict new images.

python train_and_predict.py RAW/DatasetXXX_Name WORK_FOLDER IMAGES [ITERATIONS]
"""

import sys
from pathlib import Path

import unisegdiff_pipeline as usd


def show(progress: usd.Progress) -> None:
    """Called after each case."""
    print(f"{progress.description}: {progress.done} of {progress.total}")


def main(dataset: Path, work: Path, images: Path, iterations: int | None = None) -> None:
    """Everything lies below `work` afterwards; run again, what is finished is kept."""
    prepared = usd.plan_and_preprocess(dataset, work / "preprocessed", on_progress=show)
    print(prepared.plans)
    request = usd.TrainRequest(
        dataset.name,
        fold=prepared.first_fold,
        roots=usd.Roots(raw=dataset.parent, preprocessed=work / "preprocessed", results=work / "results"),
        iterations=iterations,  # None: as long as the plan says; or max_time_s=3600
    )
    fold = usd.train(request).folds[0]
    print(f"validation Dice: {fold.scores}")
    masks = usd.predict(usd.PredictRequest(images, work / "masks", fold.folder.parent), on_progress=show)
    print(f"masks: {masks}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
