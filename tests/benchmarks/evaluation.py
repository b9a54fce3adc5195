"""Seconds and memory of usd_evaluate with every metric: perturbed references of a real data set as predictions.

python tests/benchmarks/evaluation.py RAW/Dataset106_EMIDEC [--samples 8] [--workers 2] [--keep FOLDER]

Predictions, probabilities, samples and uncertainty maps are made from the references with a seed. Prints the time and
the largest memory of the command and its workers together, compares the files of one and of four workers byte by byte,
and, given --nnunet with a folder of nnU-Net's commands, the Dice with that of nnUNetv2_evaluate_folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from scipy.ndimage import gaussian_filter

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.io.dataset_json import read_dataset_json
from unisegdiff_pipeline.io.images import map_ending, read_labels, split_ending, write_labels, write_map

WRITTEN = ("metrics.csv", "lesion_scores.csv", "summary.json")


def perturbed(
    labels: np.ndarray, scheme: LabelScheme, rng: np.random.Generator, samples: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Probabilities (K, Z, Y, X) that blur a label map and err in places, and masks drawn around them."""
    onehot = np.stack([labels == value for value in (0, *scheme.write_values)]).astype(np.float32)
    sigma = (0.0 if labels.shape[0] == 1 else 0.4, 1.2, 1.2)
    logits = np.stack([8 * gaussian_filter(channel, sigma) for channel in onehot])

    def noise(scale: float) -> np.ndarray:
        raw = rng.standard_normal(logits.shape, np.float32)
        field = np.stack([gaussian_filter(channel, (sigma[0], 2.5, 2.5)) for channel in raw])
        return scale * field / field.std()

    logits += noise(1.0)
    drawn = [(logits + noise(1.0)).argmax(axis=0) for _ in range(samples)]
    exponentials = np.exp(logits - logits.max(axis=0))
    values = np.array((0, *scheme.write_values), np.uint8)
    return exponentials / exponentials.sum(axis=0), [values[index] for index in drawn]


def make_predictions(dataset: Path, output: Path, samples: int, limit: int | None = None, seed: int = 0) -> None:
    """Write masks, probabilities, samples and uncertainty maps for the training cases of a data set."""
    description = read_dataset_json(dataset / "dataset.json")
    scheme, ending = description.labels, description.file_ending
    shutil.copy(dataset / "dataset.json", output / "dataset.json")
    for index, path in enumerate(sorted((dataset / "labelsTr").iterdir())[:limit]):
        reference = read_labels(path)
        case, labels = split_ending(path.name)[0], reference.array[0]
        rng = np.random.default_rng([seed, index])
        probabilities, drawn = perturbed(labels, scheme, rng, samples)
        values = np.array((0, *scheme.write_values), np.uint8)
        write_labels(output / path.name, values[probabilities.argmax(axis=0)], reference.geometry)
        for number, sample in enumerate(drawn):
            write_labels(output / "samples" / f"{case}_sample{number:02d}{ending}", sample, reference.geometry)
        entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-9))).sum(axis=0) / math.log(len(probabilities))
        write_map(output / "uncertainty" / f"{case}{map_ending(ending)}", entropy, reference.geometry)
        kept = probabilities if scheme.coding == "softmax" else probabilities[1:]
        (output / "probabilities").mkdir(exist_ok=True)
        np.savez_compressed(output / "probabilities" / f"{case}.npz", probabilities=kept.astype(np.float16))


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and the largest sum of the memory (proportional set size) of a command and its children in GB."""
    start = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(member.memory_full_info().pss for member in family))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, peak / 1e9


def compare_with_nnunet(commands: Path, dataset: Path, predictions: Path, metrics: Path, reference: Path) -> None:
    """Largest difference in Dice from nnU-Net's evaluation, over the cases where both define it."""
    output = metrics.parent / "nnunet.json"
    plans = metrics.parent / "plans.json"
    plans.write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))
    masks = metrics.parent / "masks"  # nnU-Net takes every file of the folder with the right ending
    masks.mkdir(exist_ok=True)
    for path in predictions.iterdir():
        if path.is_file() and split_ending(path.name)[1]:
            shutil.copy(path, masks / path.name)
    subprocess.run(
        [
            commands / "nnUNetv2_evaluate_folder",
            reference,
            masks,
            "-djfile",
            dataset / "dataset.json",
            "-pfile",
            plans,
            "-o",
            output,
            "-np",
            "2",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    theirs = {
        split_ending(Path(case["reference_file"]).name)[0]: case["metrics"]
        for case in json.loads(output.read_text())["metric_per_case"]
    }
    names = read_dataset_json(dataset / "dataset.json").labels
    label_of = {name: str(members[0]) for name, members in zip(names.names, names.members, strict=True)}
    with open(metrics, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["dice"]]
    differences = [abs(float(row["dice"]) - theirs[row["case"]][label_of[row["class_name"]]]["Dice"]) for row in rows]
    print(f"Dice against nnU-Net: largest difference {max(differences):.1e} over {len(rows)} cases and classes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keep", type=Path, help="make the predictions here, or use those that are here")
    parser.add_argument("--nnunet", type=Path, help="folder of nnUNetv2_evaluate_folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = args.keep or Path(temporary) / "predictions"
        if not (output / "dataset.json").is_file():
            output.mkdir(parents=True, exist_ok=True)
            make_predictions(args.dataset, output, args.samples, args.cases)
        command = [str(Path(sys.executable).with_name("usd_evaluate"))]
        command += [str(args.dataset / "labelsTr"), str(output), "--subset", "-o"]
        chosen = [] if args.workers is None else ["--workers", str(args.workers)]
        for flags in (["--no-report"], []):
            seconds, gigabytes = measured([*command, f"{temporary}/timed", *chosen, *flags])
            print(f"{' '.join(flags) or 'with the report'}: {seconds:.1f} s, {gigabytes:.2f} GB")
        for workers in (1, 4):
            measured([*command, f"{temporary}/{workers}", "--workers", str(workers), "--no-report"])
        for name in WRITTEN:
            one, four = (Path(temporary, workers, name).read_bytes() for workers in ("1", "4"))
            print(f"{name}: {'equal' if one == four else 'DIFFERENT'} for 1 and 4 workers, {len(one)} bytes")
        if args.nnunet is not None:
            metrics = Path(temporary) / "1" / "metrics.csv"
            compare_with_nnunet(args.nnunet, args.dataset, output, metrics, args.dataset / "labelsTr")


if __name__ == "__main__":
    main()
