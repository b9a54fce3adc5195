"""Peak memory and time of `usd_fingerprint`, `usd_plan` and `usd_preprocess` on a large CT.

    python -m tests.benchmarks.preprocessing_memory --work FOLDER [--shape Z Y X] [--spacing Z Y X]

The volume is that of `prediction_memory` (int16, .nii.gz, 1 mm), its balls are the lesions. It is one of a data set
whose other three are small and have another spacing, so that the large one is resampled. Memory is the resident set of
the command and its children, added up, looked at ten times a second.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np

from tests.benchmarks.prediction_memory import make_volume, watched_run
from unisegdiff_pipeline.core.serialization import write_json

DATASET = "Dataset951_Large"
SMALL = (48, 64, 64)
BRIGHT = 250  # Hounsfield units that only the balls exceed
MAIN = "import sys; from unisegdiff_pipeline.commands.{} import main; sys.exit(main())"


def make_dataset(folder: Path, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> None:
    """One large case and three small ones; `spacing_mm` (Z, Y, X) is that of the small ones."""
    for number in range(4):
        image = make_volume(SMALL if number else shape, whole=False)
        labels = (image > BRIGHT).astype(np.uint8)
        affine = np.diag([*(spacing_mm[::-1] if number else (1.0, 1.0, 1.0)), 1.0])
        for path, array in ((f"imagesTr/c{number}_0000", image + number), (f"labelsTr/c{number}", labels)):
            target = folder / f"{path}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(array.T.astype(np.int16), affine).to_filename(target)
    labels = {"background": 0, "lesion": 1}
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=3, default=(1000, 512, 512), metavar=("Z", "Y", "X"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("Z", "Y", "X"))
    args = parser.parse_args()
    roots = ["--raw", str(args.work / "raw"), "--preprocessed", str(args.work / "preprocessed")]
    shutil.rmtree(args.work / "preprocessed", ignore_errors=True)
    if not (args.work / "raw").is_dir():
        make_dataset(args.work / "raw" / DATASET, tuple(args.shape), tuple(args.spacing))
    for step, flags in (
        ("fingerprint", ["--workers", "0"]),
        ("plan", ["--device", "cpu"]),
        ("preprocess", ["--workers", "0", "-c", "3d_fullres"]),
    ):
        run = watched_run([sys.executable, "-c", MAIN.format(step), "-d", DATASET, *roots, *flags])
        print(f"usd_{step}: peak {run.peak_gb:.2f} GB, {run.cpu_seconds:.0f} s of the CPU", flush=True)


if __name__ == "__main__":
    main()
