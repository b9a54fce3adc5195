"""The whole way on small phantoms, in 2D and 3D, by the commands as a user gives them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands.demo import main as usd_demo
from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.core.geometry import geometry_differences
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.io.images import read_image, read_labels, write_labels

BUDGET = ["--device", "cpu", "--memory-gb", "4"]
PROMISED = (
    "Masks",
    "Uncertainty maps",
    "Samples",
    "Scores",
    "Data set report",
    "Training report",
    "Evaluation report",
    "Pictures",
    "Report",
)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folders of preprocessed data and results by variables; the raw root is given by each test."""
    monkeypatch.setenv("usd_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("usd_results", str(tmp_path / "results"))
    return tmp_path


@pytest.mark.parametrize(("dims", "configuration"), [(2, "2d"), (3, "3d_fullres"), (3, "2d")])
def test_from_raw_data_to_scores(
    dims: int, configuration: str, variables: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    raw = request.getfixturevalue(f"phantom_{dims}d")
    monkeypatch.setenv("usd_raw", str(raw.parent))
    assert usd_plan_and_preprocess(["-d", raw.name, "-c", configuration, "--workers", "0", *BUDGET]) == 0
    plans = variables / "preprocessed" / raw.name / "plans.json"
    stages = json.loads(plans.read_text())["configurations"][configuration]["stages"]
    assert stages["lam_a"] < stages["lam_c"]

    training = [raw.name, "0", "-c", configuration, "--iterations", "6", "--batch-size", "2", "--workers", "0"]
    assert usd_train([*training, "--device", "cpu"]) == 0
    model = variables / "results" / raw.name / f"StagedDiffusionTrainer__{configuration}"
    assert (model / "plans.json").read_text() == plans.read_text()
    assert usd_train([*training, "--device", "cpu"]) == 0  # a finished fold is left as it is

    masks = variables / "masks"
    prediction = ["-i", str(raw / "imagesTs"), "-o", str(masks), "-d", raw.name, "-c", configuration, "--device", "cpu"]
    assert usd_predict([*prediction, "--samples", "2", "--save-samples", "--save-probabilities"]) == 0
    images = sorted((raw / "imagesTs").iterdir())
    for image in images:
        mask = masks / image.name.replace("_0000", "")
        given, made = read_image([image]), read_labels(mask)
        assert geometry_differences(given.geometry, made.geometry, made.array.shape[1:]) == []
        assert made.array.shape[1:] == given.array.shape[1:]
    ending = ".png" if dims == 2 else ".nii.gz"
    assert {p.name for p in masks.iterdir() if p.name.endswith(ending)} == {p.name.replace("_0000", "") for p in images}
    assert len(list((masks / "samples").iterdir())) == 2 * len(images)
    assert len(list((masks / "uncertainty").iterdir())) == len(images)
    assert len(json.loads((masks / "manifest.json").read_text())["cases"]) == len(images)

    assert usd_evaluate([str(raw / "labelsTs"), str(masks)]) == 0
    with open(masks / "evaluation" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(images)
    assert all(row["nll"] for row in rows if row["outcome"] != "both_empty")
    assert all(row["ged_v"] for row in rows)  # four raters
    assert (masks / "evaluation" / "report.html").is_file()

    predicted = Predictor(model, device="cpu").predict(
        read_image([images[0]]).array, read_image([images[0]]).geometry.spacing_mm, num_samples=1
    )
    assert predicted.samples.shape == (1, *predicted.mask.shape)
    assert float(predicted.uncertainty.min()) >= 0
    assert float(predicted.uncertainty.max()) <= 1


def test_cross_validation_ends_with_a_table(
    phantom_2d: Path, variables: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("usd_raw", str(phantom_2d.parent))
    assert usd_plan_and_preprocess(["-d", "902", "--workers", "0", *BUDGET]) == 0
    flags = ["--trainer", "SegmentationTrainer", "--iterations", "2", "--batch-size", "2", "--workers", "0"]
    capsys.readouterr()
    assert usd_train(["902", "cv", *flags, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("fold "))
    table = lines[header : header + 9]
    assert [line.split()[0] for line in table[2:]] == ["0", "1", "2", "3", "4", "mean", "sd"]
    masks = variables / "masks"
    arguments = ["-i", str(phantom_2d / "imagesTs"), "-o", str(masks), "-d", "902", "--device", "cpu"]
    assert usd_predict([*arguments, "-f", "0", "1", "2", "3", "4"]) == 0
    assert json.loads((masks / "manifest.json").read_text())["folds"] == ["0", "1", "2", "3", "4"]


def test_preprocessing_again_does_only_what_changed(phantom_2d: Path, variables: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw" / phantom_2d.name
    shutil.copytree(phantom_2d, raw)
    arguments = ["-d", "902", "--raw", str(raw.parent), "--workers", "0", *BUDGET]
    assert usd_plan_and_preprocess(arguments) == 0
    folder = variables / "preprocessed" / raw.name / "2d"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.b2nd")}
    image = raw / "imagesTr" / "phantom_0007_0000.png"  # it holds no foreground, so no statistics change
    volume = read_image([image])
    write_labels(image, volume.array[0].astype(np.uint8)[:, ::-1], volume.geometry)
    assert usd_plan_and_preprocess(arguments) == 0
    changed = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {folder / "images" / "phantom_0007.b2nd", folder / "labels" / "phantom_0007.b2nd"}


def test_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--train-cases", "12", "--test-cases", "2", "--samples", "2", "--max-time", "8s", "--workers", "0"]
    assert usd_demo(["--output", str(tmp_path / "demo"), "--device", "cpu", *sizes]) == 0
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        if line.startswith(PROMISED):
            assert Path(line[18:]).exists(), line
    assert all(f"\n{name}" in printed for name in PROMISED)
    facts = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert facts["cases"] == 2
    assert 0.8 < facts["mean_dice_of_truth"] <= 1
    assert "data:image/png;base64," in (tmp_path / "demo" / "report.html").read_text()


def test_demo_makes_data_in_both_dimensions(tmp_path: Path) -> None:
    assert usd_demo(["--make-data", str(tmp_path), "--train-cases", "10", "--test-cases", "1"]) == 0
    for folder, ending in (("Dataset901_Phantom2D", ".png"), ("Dataset902_Phantom3D", ".nii.gz")):
        assert len(list((tmp_path / folder / "imagesTr").glob(f"*{ending}"))) == 10
        truth = np.load(next((tmp_path / folder / "truth").glob("*.npz")))["probability"]
        assert 0 <= truth.min() <= truth.max() <= 1
