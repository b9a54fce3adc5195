"""Folders of DICOM series through usd_predict, as if they were images of the model's kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.inference.readers import kill_the_reader_of
from tests.inference.test_predictor import listing, make_model
from tests.io.test_dicom import only_series, write_series
from unisegdiff_pipeline.commands import predict
from unisegdiff_pipeline.io.images import read_labels, write_map

ROOT = Path(__file__).parents[2]


def run(images: Path, output: Path, model: Path, *more: str) -> int:
    return predict.main(["-i", str(images), "-o", str(output), "-m", str(model), "--device", "cpu", *more])


def test_series_give_the_masks_of_their_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", 3)
    write_series(tmp_path / "in/p1")
    write_series(tmp_path / "in/p2/T1", 2)
    for name in ("p1", "p2/T1"):
        volume = only_series(tmp_path / "in" / name).read()
        write_map(tmp_path / f"nifti/{name.replace('/', '_')}.nii.gz", volume.array[0], volume.geometry)
    assert run(tmp_path / "in", tmp_path / "none", model, "--dry-run") == 0
    assert "cases  2: p1, p2_T1" in capsys.readouterr().out
    assert run(tmp_path / "in", tmp_path / "a", model) == 0
    assert run(tmp_path / "nifti", tmp_path / "b", model) == 0
    names = listing(tmp_path / "a") - {"manifest.json"}
    assert names == listing(tmp_path / "b") - {"manifest.json"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert np.any(read_labels(tmp_path / "a/p1.nii.gz").array)
    cases = json.loads((tmp_path / "a/manifest.json").read_text())["cases"]
    assert [case["inputs"] for case in cases.values()] == [[str(tmp_path / "in/p1")], [str(tmp_path / "in/p2/T1")]]
    capsys.readouterr()
    assert run(tmp_path / "in", tmp_path / "a", model) == 0
    assert "2 of 2 cases are finished already" in " ".join(capsys.readouterr().err.split())


def test_numbers_of_patients_are_none_of_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", 3)
    for name in ("patient_0000", "patient_0012"):
        write_series(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "none", model, "--dry-run") == 0
    assert "cases  2: patient_0000, patient_0012" in capsys.readouterr().out
    assert run(tmp_path / "in", tmp_path / "out", model) == 0
    assert {"patient_0000.nii.gz", "patient_0012.nii.gz"} <= {path.name for path in (tmp_path / "out").iterdir()}
    write_series(tmp_path / "of_channel/p1_0000")
    assert run(tmp_path / "of_channel", tmp_path / "none", model, "--dry-run") == 0
    assert "cases  1: p1\n" in capsys.readouterr().out


def test_a_series_that_is_no_volume_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model", 3)
    write_series(tmp_path / "in", places=[0.0, 2.5, 7.5, 10.0])
    assert run(tmp_path / "in", tmp_path / "out", model) == 1
    assert "slices are missing" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_series_that_kills_its_reader_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        write_series(tmp_path / f"in/p{number}", number)
    kill_the_reader_of(monkeypatch, tmp_path / "in/p2")
    assert run(tmp_path / "in", tmp_path / "out", make_model(tmp_path / "model", 3)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "reading DICOM: 1 of 2 cases failed" in said
    assert f"p2: the series in {tmp_path / 'in/p2'}: the process that read it was ended by SIGKILL" in said
    assert not (tmp_path / "out").exists()


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    write_series(tmp_path / "in/p1")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from unisegdiff_pipeline.inference.dicom_input import as_images\n"
        "from unisegdiff_pipeline.inference.model_folder import open_model_folder\n"
        "with as_images(Path(sys.argv[1]), open_model_folder(Path(sys.argv[2]))) as images:\n"
        "    print([path.name for path in images.source.iterdir()])\n"
    )
    words = [sys.executable, str(script), str(tmp_path / "in"), str(make_model(tmp_path / "model", 3))]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "['p1.nii.gz']\n", done.stderr


def test_a_model_of_pictures_takes_no_dicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", 2)
    write_series(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", model) == 1
    assert "takes pictures (.png); convert the images" in " ".join(capsys.readouterr().err.split())
