"""Cases that lack channels, from the raw folder to the table of predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder

NAME = "Dataset007_Two"
LACKING = {1: 0, 4: 1}  # case => the channel that it lacks
MODEL = f"results/{NAME}/StagedDiffusionTrainer__2d"


def write_set(folder: Path, missing_channels: bool) -> None:
    """Ten pictures of two channels with a square in both; two of them lack a channel."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for case in range(10):
        mask = np.zeros((40, 40), np.uint8)
        mask[10 + case : 20 + case, 8:20] = 1
        for channel, contrast in enumerate((150, 90)):
            if LACKING.get(case) != channel:
                pixels = (rng.integers(20, 60, mask.shape) + contrast * mask).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"imagesTr/c{case}_{channel:04d}.png")
                if case == 2:
                    Image.fromarray(pixels).save(folder / f"imagesTs/whole_{channel:04d}.png")
                elif case == 3 and channel == 1:
                    Image.fromarray(pixels).save(folder / "imagesTs/half_0001.png")
        Image.fromarray(mask).save(folder / f"labelsTr/c{case}.png")
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 10,
        "file_ending": ".png",
    }
    if missing_channels:
        description["missing_channels"] = True
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    return tmp_path


def plan_and_preprocess(*more: str) -> int:
    return usd_plan_and_preprocess(["-d", "7", "--device", "cpu", "--memory-gb", "4", "--workers", "0", *more])


def test_an_absent_file_is_an_error_that_names_the_key(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(root / "raw" / NAME, missing_channels=False)
    assert plan_and_preprocess() == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "channel _0000 is missing beside c1_0001.png" in said
    assert '"missing_channels": true in dataset.json' in said
    assert not (root / "preprocessed" / NAME / "plans.json").exists()


def test_cases_that_lack_channels_are_trained_and_predicted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = root / "raw" / NAME
    write_set(raw, missing_channels=True)
    assert plan_and_preprocess() == 0
    plan = json.loads((root / "preprocessed" / NAME / "plans.json").read_text())["configurations"]["2d"]
    assert plan["preprocessing"]["missing_channels"] is True
    assert (plan["network"]["num_input_channels"], plan["training"]["channel_dropout"]) == (4, 0.2)
    stored = PreprocessedFolder(root / "preprocessed" / NAME / "2d").open("c1")
    assert stored.properties.missing_channels == ("T1",)
    values = np.asarray(stored.image[...])
    assert np.array_equal([values[0].any(), values[1].any(), values[2].any(), values[3].all()], [0, 1, 0, 1])
    assert abs(float(values[1].mean())) < 1e-5  # normalised by itself

    training = [NAME, "0", "--iterations", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    assert usd_train(training) == 0
    model = root / MODEL
    capsys.readouterr()
    words = ["-i", str(raw / "imagesTs"), "-o", str(root / "masks"), "-m", str(model), "--device", "cpu"]
    assert usd_predict([*words, "--samples", "1"]) == 0
    assert "half: predicted without T1, missing there" in capsys.readouterr().err
    with open(root / "masks/cases.csv", newline="") as stream:
        assert {row["case"]: row["missing_channels"] for row in csv.DictReader(stream)} == {"half": "T1", "whole": ""}

    predictor = Predictor(model, device="cpu")
    flair = np.asarray(Image.open(raw / "imagesTs/half_0001.png"), np.float32)
    by_array = predictor.predict([None, flair], (1.0, 1.0), num_samples=1, case_id="half")
    by_file = predictor.predict(raw / "imagesTs/half_0001.png", num_samples=1)
    assert np.array_equal(by_array.mask, by_file.mask)
    assert by_array.case.missing_channels == by_file.case.missing_channels == "T1"
    in_list = predictor.predict([None, str(raw / "imagesTs/half_0001.png")], num_samples=1)
    assert np.array_equal(in_list.mask, by_file.mask)
    alone = predictor.predict([None, raw / "imagesTs/whole_0001.png"], num_samples=1)  # T1 lies beside it
    assert (alone.case.case, alone.case.missing_channels) == ("whole", "T1")
    for wrong in ([None, None, flair], [None], [None, None]):
        with pytest.raises(ValueError, match="one value for each of the channels T1, FLAIR, and at least one image"):
            predictor.predict(wrong, (1.0, 1.0))
    with pytest.raises(UsdError, match="does not exist"):
        predictor.predict([None, raw / "absent.png"])
    written = [path.stat().st_mtime_ns for path in (root / "masks/half.png", root / "masks/whole.png")]
    (raw / "imagesTs/half_0001.png").rename(raw / "imagesTs/half_0000.png")  # the same content as another channel
    assert usd_predict([*words, "--samples", "1"]) == 0
    assert "half: predicted without FLAIR, missing there" in capsys.readouterr().err
    again = [path.stat().st_mtime_ns for path in (root / "masks/half.png", root / "masks/whole.png")]
    assert again[0] > written[0]
    assert again[1] == written[1]
    (raw / "imagesTs/half_0000.png").rename(raw / "imagesTs/half_0002.png")
    with pytest.raises(UsdError, match=r"half_0002\.png: there are 2 channels; rename"):
        predictor.predict(raw / "imagesTs/half_0002.png")


def test_a_model_of_whole_cases_refuses_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "raw", missing_channels=False)
    two = PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("zscore",) * 2, (False,) * 2, ())
    labels = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    model = write_model(tmp_path / "model", tiny_plans(labels, two, ("T1", "FLAIR"), ".png", False))
    words = ["-i", str(tmp_path / "raw/imagesTs"), "-o", str(tmp_path / "m"), "-m", str(model), "--device", "cpu"]
    assert usd_predict(words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "half: channel _0000 is missing beside half_0001.png" in said
    assert '"missing_channels": true in dataset.json' in said
    assert not (tmp_path / "m").exists()
    flair = np.zeros((40, 40), np.float32)
    with pytest.raises(UsdError, match="takes all of T1, FLAIR; give them, or let cases lack channels"):
        Predictor(model, device="cpu").predict([None, flair], (1.0, 1.0))
