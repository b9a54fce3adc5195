"""usd_export, usd_import and usd_predict of the archive, in an environment without any variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inference.test_predictor import listing, make_model, make_pictures
from unisegdiff_pipeline.commands import export, import_, predict

ROOT = Path(__file__).resolve().parents[2]


def test_the_way_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = make_model(tmp_path / "results", 2), make_pictures(tmp_path / "in", 1)
    archive = tmp_path / "m.zip"
    assert export.main([str(model), "-o", str(archive)]) == 0
    assert f"usd_predict -i IMAGES -o MASKS -m {archive}" in capsys.readouterr().out
    assert import_.main([str(archive), "--results", str(tmp_path / "other")]) == 0
    imported = tmp_path / "other/Dataset001_X" / model.name
    assert f"usd_predict -i IMAGES -o MASKS -m {imported}" in capsys.readouterr().out
    assert import_.main([str(archive), "--results", str(tmp_path / "other")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert predict.main(["-i", str(images), "-o", str(tmp_path / "a"), "-m", str(model), "--device", "cpu"]) == 0
    code = "import sys; from unisegdiff_pipeline.commands.predict import main; sys.exit(main(sys.argv[1:]))"
    words = ["-i", str(images), "-o", str(tmp_path / "b"), "-m", str(archive), "--device", "cpu"]
    bare = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    answer = subprocess.run([sys.executable, "-c", code, *words], env=bare, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    for name in listing(tmp_path / "a") - {"manifest.json"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("words", [["-o", "a.zip"], ["model", "-d", "4", "-o", "a.zip"], ["m", "-c", "2d", "-o", "a"]])
def test_one_model_must_be_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        export.main(words)
    assert stop.value.code == 2


def test_several_folds_or_configurations_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-f", "0", "1"], ["-c", "2d", "3d_fullres"]):
        with pytest.raises(SystemExit) as stop:
            export.main(["-d", "4", "-o", "a.zip", *words])
        assert stop.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"{words[-1]} is taken for the folder of a model, beside -d 4" in said
        assert "an archive holds all finished folds" in said


def test_flags_of_archives_and_of_onnx_do_not_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--onnx", "--overwrite"], ["--onnx", "--with-case-scores"], ["--fold", "0"], ["--source", "A"]):
        with pytest.raises(SystemExit) as stop:
            export.main([str(tmp_path), "-o", str(tmp_path / "out"), *words])
        assert stop.value.code == 2
        assert words[0] in capsys.readouterr().err
