"""What goes wrong in practice: each time one explanation with a remedy, an exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.io.images import read_image, read_labels, write_labels, write_map

BUDGET = ["--device", "cpu", "--memory-gb", "4", "--workers", "0"]


@pytest.fixture
def copied(phantom_3d: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the 3D phantoms that a test may spoil, with all variables set."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    folder = tmp_path / "raw" / phantom_3d.name
    shutil.copytree(phantom_3d, folder)
    return folder


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed as an error, on one line."""
    return " ".join(capsys.readouterr().err.split())


def test_all_problems_of_the_data_in_one_run(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = sorted((copied / "imagesTr").iterdir()), sorted((copied / "labelsTr").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:3000])  # truncated
    volume = read_image([images[1]])
    volume.array[0, 2, 3, 4] = np.nan
    write_map(images[1], volume.array[0], volume.geometry)
    mask = read_labels(labels[2])
    write_labels(labels[2], mask.array[0, :-1], mask.geometry)  # another shape
    mask.array[0, 0, 0, 0] = 9
    write_labels(labels[3], mask.array[0], mask.geometry)  # unknown value
    assert usd_plan_and_preprocess(["-d", copied.name, *BUDGET]) == 1
    printed = message(capsys)
    for path in (images[0], images[1], labels[2], labels[3]):
        assert path.name in printed
    assert "NaN" in printed
    assert "9" in printed
    assert not (tmp_path / "preprocessed").exists()


def test_unknown_data_set_lists_what_is_there(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usd_plan_and_preprocess(["-d", "77", *BUDGET]) == 1
    assert copied.name in message(capsys)


def test_one_wrong_data_set_does_not_stop_the_others(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usd_plan_and_preprocess(["-d", "77", copied.name, "-c", "2d", *BUDGET]) == 1
    assert "77" in message(capsys)
    assert (tmp_path / "preprocessed" / copied.name / "plans.json").is_file()


def test_missing_root_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("usd_raw", "nnUNet_raw", "usd_preprocessed", "usd_results"):
        monkeypatch.delenv(name, raising=False)
    assert usd_plan_and_preprocess(["-d", "4", *BUDGET]) == 1
    assert "--raw" in message(capsys)
    assert usd_train(["4", "0"]) == 1
    assert "--preprocessed" in message(capsys)
    assert usd_predict(["-i", ".", "-o", "out", "-d", "4"]) == 1
    assert "--results" in message(capsys)


def test_training_before_preprocessing(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "preprocessed").mkdir()
    assert usd_train([copied.name, "0", "--iterations", "2"]) == 1
    assert "no data set" in message(capsys)


def test_configurations_that_make_no_sense(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One beside others is left out, so that -c can serve several data sets; alone it is an error, before any file."""
    assert usd_plan_and_preprocess(["-d", copied.name, "-c", "3d_lowres", *BUDGET]) == 1
    printed = message(capsys)
    assert "3d_lowres is not planned (not made:" in printed
    assert "2d, 3d_fullres" in printed
    assert not (tmp_path / "preprocessed").exists()
    assert usd_plan_and_preprocess(["-d", copied.name, "-c", "3d_lowres", "2d", *BUDGET]) == 0
    assert "warning" in message(capsys)
    assert (tmp_path / "preprocessed" / copied.name / "2d").is_dir()


def test_full_disk(copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "plans.json")

    monkeypatch.setattr("os.replace", full)
    assert usd_plan_and_preprocess(["-d", copied.name, *BUDGET]) == 1
    printed = message(capsys)
    assert "fingerprint.json" in printed
    assert "space" in printed
    assert not list(copied.parents[1].glob("preprocessed/**/.tmp-*"))


def test_after_training(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fold that does not exist, a configuration that does not, and a checkpoint of another plan."""
    assert usd_plan_and_preprocess(["-d", copied.name, "-c", "3d_fullres", *BUDGET]) == 0
    training = ["-c", "3d_fullres", "--iterations", "2", "--batch-size", "2", "--workers", "0"]
    assert usd_train([copied.name, "7", *training]) == 1
    assert "fold 7" in message(capsys)
    assert usd_train([copied.name, "0", "-c", "3d_lowest"]) == 1
    assert "3d_fullres" in message(capsys)
    assert usd_train([copied.name, "0", *training, "--trainer", "SegmentationTrainer", "--device", "cpu"]) == 0

    model = tmp_path / "results" / copied.name / "SegmentationTrainer__3d_fullres"
    prediction = ["-i", str(copied / "imagesTs"), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu"]
    capsys.readouterr()
    assert usd_predict([*prediction, "-f", "3"]) == 1
    assert "fold 3" in message(capsys)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["preprocessing"]["target_spacing_mm"] = [2.0, 1.0, 1.0]
    (model / "plans.json").write_text(json.dumps(plans))
    assert usd_predict(prediction) == 1
    assert "another plan" in message(capsys)
    plans["configurations"]["3d_fullres"]["network"]["patchsize"] = [8, 8, 8]
    (model / "plans.json").write_text(json.dumps(plans))
    assert usd_predict(prediction) == 1
    assert "configurations.3d_fullres.network.patchsize" in message(capsys)
    assert not list(tmp_path.glob("out/*.nii.gz"))
