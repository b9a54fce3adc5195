"""A data set without any foreground: images keep their contrast, and every step says what training will learn."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.fingerprint import Fingerprint
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train

SIZES = {2: (1, 24, 20), 3: (8, 24, 20)}


def make_ct(root: Path, dims: int, foreground: bool = False) -> Path:
    """Six scans of -1000 (air) and 40 (tissue) with noise of 10; the foreground is one voxel of 500 in one of them."""
    folder = root / "raw" / "Dataset001_CT"
    folder.mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    geometry = Geometry(is_2d=dims == 2)
    for i in range(6):
        rng = np.random.default_rng(i)
        image = np.where(np.arange(20) < 10, -1000.0, 40.0) + 10 * rng.standard_normal(SIZES[dims])
        labels = np.zeros(SIZES[dims], np.uint8)
        if foreground and i == 0:
            labels[0, 5, 15], image[0, 5, 15] = 1, 500
        write_map(folder / f"imagesTr/c{i}_0000.nii.gz", image, geometry)
        write_labels(folder / f"labelsTr/c{i}.nii.gz", labels, geometry)
    return folder


def preprocess(root: Path, configuration: str) -> Path:
    arguments = ["-d", "1", "--raw", str(root / "raw"), "--preprocessed", str(root / "pre"), "--device", "cpu"]
    assert plan_and_preprocess.main([*arguments, "-c", configuration]) == 0
    return root / "pre" / "Dataset001_CT"


@pytest.mark.parametrize("foreground", [False, True], ids=["no foreground", "foreground of one value"])
@pytest.mark.parametrize("dims", [2, 3])
def test_ct_statistics_of_the_images_stand_in_for_those_of_the_foreground(
    tmp_path: Path, dims: int, foreground: bool
) -> None:
    make_ct(tmp_path, dims, foreground)
    configuration = "2d" if dims == 2 else "3d_fullres"
    folder = preprocess(tmp_path, configuration)
    (statistics,) = read_dataclass(Fingerprint, folder / "fingerprint.json").intensities
    assert statistics.mean == pytest.approx(-480, abs=20)
    assert statistics.percentile_00_5 < -1000
    assert 40 < statistics.percentile_99_5 < 90
    stored = np.asarray(PreprocessedFolder(folder / configuration).open("c1").image[...])
    assert float(stored.std()) == pytest.approx(1, abs=0.05)


def test_training_on_background_alone_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make_ct(tmp_path, 2)
    folder = preprocess(tmp_path, "2d")
    printed = " ".join(capsys.readouterr().err.split())
    assert "none of the 6 label maps holds any foreground, so training learns to answer background alone" in printed
    roots = Roots(raw=None, preprocessed=folder.parent, results=tmp_path / "results")
    request = TrainRequest("1", "0", roots, trainer="SegmentationTrainer", iterations=1, workers=0, device="cpu")
    with caplog.at_level(logging.INFO, "unisegdiff_pipeline"):
        train(request)
    assert "no case to train on holds any foreground" in caplog.text


def test_a_class_that_no_case_of_a_fold_teaches_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_ct(tmp_path, 2)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "labels": {"background": 0, "a": 1, "b": 2}}))
    for i in range(6):
        labels = np.zeros(SIZES[2], np.uint8)
        labels[0, 5:9, 3:7] = 1
        labels[0, 12:16, 12:16] = 2 if i == 5 else 0
        write_labels(folder / f"labelsTr/c{i}.nii.gz", labels, Geometry(is_2d=True))
    folds = [{"train": ["c0", "c1", "c2", "c3"], "val": ["c4", "c5"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    roots = Roots(raw=None, preprocessed=preprocess(tmp_path, "2d").parent, results=tmp_path / "results")
    request = TrainRequest("1", "0", roots, trainer="SegmentationTrainer", iterations=1, workers=0, device="cpu")
    with caplog.at_level(logging.INFO, "unisegdiff_pipeline"):
        train(request)
    assert "no case to train on holds b, which this fold cannot learn" in caplog.text
