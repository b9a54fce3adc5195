"""Prediction by best.json: one model, two models, and recipes whose models are gone."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.test_predictor import make_model, make_pictures
from tests.io.test_dicom import write_series
from unisegdiff_pipeline.commands import predict as command
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.best_prediction import predict_best
from unisegdiff_pipeline.inference.folder_ensemble import ensemble_folders
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.inference.recipe import Recipe, RecipeMember, write_recipe
from unisegdiff_pipeline.inference.request import EnsembleRequest, PredictRequest

DATASET = "Dataset001_X"
ONE, TWO = "StagedDiffusionTrainer__tiny", "StagedDiffusionTrainer__tiny__two"


def write_best(folder: Path, *members: tuple[str, tuple[str, ...]], kept: LesionFilter | None = None) -> None:
    found = [RecipeMember(model, "StagedDiffusionTrainer", "tiny", None, None, folds) for model, folds in members]
    write_recipe(
        folder, Recipe(1, DATASET, tuple(found), "half" if len(found) > 1 else None, "a test", (), (), (), kept)
    )


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """RESULTS/DATASET with two models of two folds, and two pictures."""
    results = tmp_path / "results" / DATASET
    shutil.move(make_model(tmp_path / "made", 2, folds=("0", "1")), results / ONE)
    shutil.copytree(results / ONE, results / TWO)
    shutil.copy(results / TWO / "fold_1/weights.safetensors", results / TWO / "fold_0/weights.safetensors")
    return results, make_pictures(tmp_path / "in", 2)


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_one_model_predicts_with_the_folds_of_the_recipe(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    write_best(results, (ONE, ("1",)))
    assert predict_best(PredictRequest(images, tmp_path / "out", results, device="cpu")) == 2
    predict_folder(PredictRequest(images, tmp_path / "same", results / ONE, "1", device="cpu"))
    assert masks(tmp_path / "out") == masks(tmp_path / "same")
    assert not (tmp_path / "out/.members").exists()


def test_two_models_are_the_ensemble_of_their_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("0", "1")))
    out = tmp_path / "out"
    request = PredictRequest(images, out, results, device="cpu", save_samples=True)
    for part_id in (0, 1):
        assert predict_best(dataclasses.replace(request, num_parts=2, part_id=part_id)) == 1
    assert predict_best(request) == 0  # all is there
    saved = {"device": "cpu", "save_probabilities": True, "save_samples": True}
    predict_folder(PredictRequest(images, tmp_path / "one", results / ONE, "0", **saved))
    predict_folder(PredictRequest(images, tmp_path / "two", results / TWO, **saved))
    ensemble_folders(EnsembleRequest((tmp_path / "one", tmp_path / "two"), tmp_path / "same", save_samples=True))
    assert masks(out) == masks(tmp_path / "same")
    assert masks(out / "samples") == masks(tmp_path / "same/samples")
    assert len(masks(out / "samples")) == 8
    assert {row["num_samples"] for row in csv.DictReader((out / "volumes.csv").open())} == {"4"}


def test_a_part_without_cases_leaves_the_output_to_the_others(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    request = PredictRequest(images, tmp_path / "out", results, device="cpu", num_parts=3)
    made = [predict_best(dataclasses.replace(request, part_id=part_id)) for part_id in (2, 0, 1)]
    assert made == [0, 1, 1]
    assert set(masks(tmp_path / "out")) == {"case0.png", "case1.png"}


@pytest.mark.parametrize("names", [(ONE,), (ONE, TWO)])
def test_the_lesion_filter_of_the_recipe_is_applied(
    folders: tuple[Path, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    results, images = folders
    nothing_stays = LesionFilter(rules={"lesion": LesionRule(min_size=1e6)}, unit="pixels2")
    write_best(results, *((name, ("0",)) for name in names), kept=nothing_stays)
    request = PredictRequest(images, tmp_path / "out", results, device="cpu")
    predict_best(request)
    assert all(not np.asarray(Image.open(path)).any() for path in (tmp_path / "out").glob("*.png"))
    assert (tmp_path / "out/lesions.csv").read_text().count("\n") == 1
    predict_best(dataclasses.replace(request, output=tmp_path / "all", lesion_filter=False))
    assert any(np.asarray(Image.open(path)).any() for path in (tmp_path / "all").glob("*.png"))


def test_a_case_that_fails_does_not_keep_the_others_from_being_made(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    (images / "bad_0000.png").write_bytes(b"no picture")
    with pytest.raises(UsdError, match=rf"{ONE}: 1 case could not be predicted.*\nbad: (.|\n)*{TWO}: 1 case"):
        predict_best(PredictRequest(images, tmp_path / "out", results, device="cpu"))
    assert set(masks(tmp_path / "out")) == {"case0.png", "case1.png"}


def test_a_case_that_fails_now_leaves_no_former_mask(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    request = PredictRequest(images, tmp_path / "out", results, device="cpu")
    assert predict_best(request) == 2
    (images / "case0_0000.png").write_bytes(b"no picture")
    with pytest.raises(UsdError, match="case0: "):
        predict_best(request)
    assert set(masks(tmp_path / "out")) == {"case1.png"}
    assert {row["case"] for row in csv.DictReader((tmp_path / "out/cases.csv").open())} == {"case1"}


def test_an_output_of_others_is_refused_before_anything_is_predicted(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    strange = tmp_path / "strange"
    strange.mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(strange / "mask.png")
    predict_folder(PredictRequest(images, tmp_path / "single", results / ONE, device="cpu"))
    for name, words in (
        ("strange", "holds 1 file that no prediction"),
        ("single", "holds a prediction made otherwise"),
    ):
        with pytest.raises(UsdError, match=words):
            predict_best(PredictRequest(images, tmp_path / name, results, device="cpu"))
        assert not (tmp_path / name / ".members").exists()


def test_two_models_predict_dicom_series_and_name_them(tmp_path: Path) -> None:
    results, images = tmp_path / "results" / DATASET, tmp_path / "in"
    shutil.move(make_model(tmp_path / "made", 3), results / ONE)
    shutil.copytree(results / ONE, results / TWO)
    write_series(images / "p1")
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    request = PredictRequest(images, tmp_path / "out", results, device="cpu", num_samples=0)
    with pytest.raises(UsdError, match=rf"the DICOM files in {images} would become images on this machine"):
        predict_best(dataclasses.replace(request, scheduler="tcp://host:8786"))
    assert not (tmp_path / "out").exists()
    assert predict_best(request) == 1
    for model in (ONE, TWO):
        manifest = json.loads((tmp_path / "out/.members" / model / "manifest.json").read_text())
        assert manifest["cases"]["p1"]["inputs"] == [str(images / "p1")]


def test_recipes_that_cannot_be_followed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    results, images = folders
    request = PredictRequest(images, tmp_path / "out", results, device="cpu")
    with pytest.raises(UsdError, match=r"holds no best\.json; run usd_find_best Dataset001_X"):
        predict_best(request)
    write_best(results, (ONE, ("0", "7")))
    with pytest.raises(UsdError, match=r"best\.json names .* with the folds 0 7: fold 7 .* usd_find_best Dataset001_X"):
        predict_best(request)
    write_best(results, (ONE, ("0",)), (TWO, ("0",)))
    with pytest.raises(UsdError, match="--save-uncertainty-parts splits what one model says"):
        predict_best(dataclasses.replace(request, save_uncertainty_parts=True))
    with pytest.raises(UsdError, match="--utility dice chooses the lesion filter of one model"):
        predict_best(dataclasses.replace(request, utility="dice"))
    assert not (tmp_path / "out").exists()


def test_the_command(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, images = folders
    write_best(results, (ONE, ("0",)), (TWO, ("1",)))
    flags = ["--best", "-d", "1", "-i", str(images), "-o", str(tmp_path / "out"), "--results", str(results.parent)]
    assert command.main([*flags, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "best   a test" in said
    assert f"{results / TWO}\nfolds  1 (finished: 0 1)" in said
    assert command.main([*flags, "--device", "cpu"]) == 0
    assert len(masks(tmp_path / "out")) == 2
    with pytest.raises(SystemExit):
        command.main([*flags, "-c", "tiny", "-f", "0"])
    assert "leave -c, -f out" in capsys.readouterr().err
