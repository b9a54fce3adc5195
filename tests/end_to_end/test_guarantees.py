"""From training to a folder that keeps guarantees, on small phantoms, by the commands as a user gives them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands.find_best import main as usd_find_best
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.inference.settings import read_settings
from unisegdiff_pipeline.io.images import read_labels


def test_from_training_to_masks_that_keep_a_guarantee(
    prepared: Path, phantom_2d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, name = tmp_path / "results", phantom_2d.name
    roots = ["--raw", str(phantom_2d.parent), "--preprocessed", str(prepared), "--results", str(results)]
    training = ["--iterations", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    for fold in ("0", "1"):
        assert usd_train([name, fold, *training, *roots]) == 0
    (model,) = (results / name).glob("*__2d")
    own = read_settings(model / "fold_0").guarantees
    assert own is not None
    assert (own.num_patients, own.classes["lesion"].rates("lesions")) == (3, [0.5, 0.6])  # one holds no lesion

    predicting = ["-i", str(phantom_2d / "imagesTs"), "-d", name, "--results", str(results), "--device", "cpu"]
    asked = ["--guarantee", "lesions=0.5", "masks=0.5", "volume=0.5"]
    out = tmp_path / "fold"
    assert usd_predict([*predicting, "-f", "0", "-o", str(out), *asked]) == 0
    assert f"Guaranteed: {out / 'masks_outer'}" in capsys.readouterr().out
    for mask in out.glob("*.png"):
        inner, outer = (read_labels(out / folder / mask.name).array[0] for folder in ("masks_inner", "masks_outer"))
        assert (inner <= outer).all()
        assert np.isin(read_labels(out / "masks_lesions" / mask.name).array, (0, 1)).all()
    assert len(list(out.glob("masks_lesions/*.png"))) == 4
    with (out / "volumes.csv").open() as stream:
        assert all(float(row["guaranteed_low"]) <= float(row["guaranteed_high"]) for row in csv.DictReader(stream))
    assert usd_predict([*predicting, "-f", "0", "-o", str(tmp_path / "no"), "--guarantee", "lesions=0.9"]) == 1
    assert "at least 9 are needed" in capsys.readouterr().err

    assert usd_predict([*predicting, "-o", str(tmp_path / "no"), *asked]) == 1
    assert f"Run usd_find_best {name}" in capsys.readouterr().err
    assert usd_find_best([name, *roots]) == 0
    assert "Guarantee: Calibrated on 5 patients: each fold on its own validation cases" in capsys.readouterr().out
    for flags, folder in ((["--best"], "best"), ([], "folds")):
        assert usd_predict([*predicting, *flags, "-o", str(tmp_path / folder), "--guarantee", "lesions=0.75"]) == 0
        assert len(list((tmp_path / folder / "masks_lesions").glob("*.png"))) == 4
    assert not (tmp_path / "no").exists()
