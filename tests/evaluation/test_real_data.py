"""Real masks with every kind of file beside them: scores against other software, raters, groups, and any workers.

Predictions are the references moved by a voxel or two, as masks, samples and probabilities.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medpy.metric import binary as medpy
from PIL import Image
from scipy.ndimage import generate_binary_structure, label

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.io.images import read_labels, write_labels

NUM_SAMPLES = 3
CASES = {
    "Dataset106_EMIDEC": ("Case_N0", "Case_P00"),  # without and with a lesion
    "Dataset101_BUSI": ("normal", "benign"),
    "Dataset108_LIDC4R": ("",),
}
FILES = ("metrics.csv", "lesion_scores.csv", "summary.json")


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Label map and spacing (Z, Y, X), by other readers than those that are tested."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path))[None], (1.0, 1.0, 1.0)
    image = nib.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.header.get_zooms()[::-1]


def prepare(raw_data: Path, dataset: str, root: Path, each: int = 3) -> tuple[Path, Path]:
    """References of a few cases, linked, and predictions of them; skips where the data set is not there."""
    source = raw_data / dataset
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    description = json.loads((source / "dataset.json").read_text())
    ending, num_classes = description["file_ending"], len(description["labels"])
    paths = sorted((source / "labelsTr").iterdir())
    paths = [p for start in CASES[dataset] for p in [q for q in paths if q.name.startswith(start)][:each]]
    references, predictions = root / "raw" / "labelsTr", root / "predictions"
    for folder in (references, predictions / "probabilities"):
        folder.mkdir(parents=True)
    (root / "raw" / "dataset.json").symlink_to(source / "dataset.json")
    for extra in ("ratersTr", "groups.csv"):
        if (source / extra).exists():
            (root / "raw" / extra).symlink_to(source / extra)
    for number, path in enumerate(paths):
        (references / path.name).symlink_to(path)
        reference, case = read_labels(path), path.name.removesuffix(ending)
        moved = [np.roll(reference.array[0], (step, number % 2), (1, 2)) for step in range(1, NUM_SAMPLES + 1)]
        write_labels(predictions / path.name, moved[0], reference.geometry)
        for index, sample in enumerate(moved):
            write_labels(predictions / "samples" / f"{case}_sample{index}{ending}", sample, reference.geometry)
        fractions = np.mean([[mask == value for value in range(num_classes)] for mask in moved], axis=0)
        np.savez_compressed(predictions / "probabilities" / f"{case}.npz", probabilities=fractions.astype(np.float16))
    return references, predictions


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("dataset", ["Dataset106_EMIDEC", "Dataset101_BUSI"])
def test_scores_are_those_of_other_software(raw_data: Path, dataset: str, tmp_path: Path) -> None:
    references, predictions = prepare(raw_data, dataset, tmp_path)
    assert usd_evaluate([str(references), str(predictions), "--workers", "0"]) == 0
    summary = json.loads((predictions / "evaluation" / "summary.json").read_text())
    values = {name: value for name, (value,) in summary["settings"]["classes"].items()}
    rows = rows_of(predictions / "evaluation" / "metrics.csv")
    assert len(rows) == len(values) * len(list(references.iterdir()))
    assert {row["outcome"] for row in rows} == {"scored", "both_empty"}
    assert (predictions / "evaluation" / "report.html").stat().st_size > 100_000
    for row in rows:
        (path,) = references.glob(f"{row['case']}.*")
        (whole, spacing), (moved, _) = read(path), read(predictions / path.name)
        a, b = whole == values[row["class_name"]], moved == values[row["class_name"]]
        lesions = label(a, generate_binary_structure(3, 3))[1]
        assert int(row["num_reference_lesions"]) == lesions
        if path.suffix == ".png":
            assert float(row["reference_pixels2"]) == a.sum()
        else:
            assert float(row["reference_ml"]) == pytest.approx(a.sum() * np.prod(spacing) / 1000, rel=1e-6)
        distance = row["hd_pixels" if path.suffix == ".png" else "hd_mm"]
        if not a.any():
            assert row["dice"] == distance == ""
            continue
        assert float(row["dice"]) == pytest.approx(medpy.dc(b, a))
        if a.shape[0] == 1:
            a, b, spacing = a[0], b[0], spacing[1:]
        assert float(distance) == pytest.approx(medpy.hd(b, a, spacing), rel=1e-6)
        assert float(row["single_sample_dice"]) <= float(row["d_max"]) == pytest.approx(float(row["dice"]))


def test_raters_and_patients(raw_data: Path, tmp_path: Path) -> None:
    references, predictions = prepare(raw_data, "Dataset108_LIDC4R", tmp_path, each=24)
    assert usd_evaluate([str(references), str(predictions), "--workers", "0"]) == 0
    rows = rows_of(predictions / "evaluation" / "metrics.csv")
    summary = json.loads((predictions / "evaluation" / "summary.json").read_text())
    patients = {re.match(r"LIDC-IDRI-\d+", row["case"])[0] for row in rows}  # type: ignore[index]
    assert {row["group"] for row in rows} == patients
    assert (summary["settings"]["num_groups"], summary["settings"]["num_cases"]) == (len(patients), 24)
    assert summary["settings"]["rater_tolerances_pixels"]["nodule"] > 0
    (nodule,) = summary["classes"]
    assert sum(nodule["rank_histogram"]) == nodule["volume_coverage"][0]["n"] > 0
    for row in rows:
        samples = [read(p)[0] > 0 for p in (predictions / "samples").glob(f"{row['case']}_sample*.png")]
        raters = [read(p)[0] > 0 for p in (tmp_path / "raw" / "ratersTr").glob(f"{row['case']}_rater*.png")]
        assert (int(row["num_samples"]), int(row["num_raters"])) == (NUM_SAMPLES, 4)
        expected = 2 * mean_distance(samples, raters) - mean_distance(samples, samples) - mean_distance(raters, raters)
        assert float(row["ged_v"]) == pytest.approx(expected, abs=1e-8)
        assert (row["surface_dice_rater"] == "") == (row["outcome"] != "scored")


def mean_distance(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Mean of 1 - IoU over all pairs; two empty masks are equal."""
    return float(np.mean([1 - (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0 for a in first for b in second]))


@pytest.mark.parametrize("dataset", ["Dataset106_EMIDEC", "Dataset108_LIDC4R"])
def test_files_do_not_depend_on_the_workers(raw_data: Path, dataset: str, tmp_path: Path) -> None:
    references, predictions = prepare(raw_data, dataset, tmp_path)
    written = []
    for workers in ("1", "4"):
        output = tmp_path / workers
        flags = ["--workers", workers, "-o", str(output), "--no-report"]
        assert usd_evaluate([str(references), str(predictions), *flags]) == 0
        written.append([(output / name).read_bytes() for name in FILES])
    assert written[0] == written[1]
