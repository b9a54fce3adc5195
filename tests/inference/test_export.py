"""Files, records and tables of a prediction whose numbers are known by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inference.by_hand import SOFTMAX, SPACING_MM, case_by_hand, prediction_by_hand
from unisegdiff_pipeline.inference import export
from unisegdiff_pipeline.inference.export import (
    OutputOptions,
    PredictionRecord,
    expected_files,
    mask_path,
    read_record,
    record_path,
    remove_summary,
    uncertainty_scale,
    write_prediction,
    write_record,
    write_summary,
)
from unisegdiff_pipeline.io.images import read_image, read_labels

EVERYTHING = OutputOptions(".nii.gz", True, save_samples=True, save_probabilities=True, save_uncertainty_parts=True)


def write_case(output: Path, options: OutputOptions = EVERYTHING) -> None:
    assert write_prediction(output, prediction_by_hand(), case_by_hand(), SOFTMAX, options) == 1
    write_record(
        output, PredictionRecord("a", "same", ("a_0000.nii.gz",), ("hash",), {"write": 0.25}, {"num_lesions": 1})
    )


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_what_is_written_is_what_was_predicted(tmp_path: Path) -> None:
    write_case(tmp_path)
    mask = read_labels(mask_path(tmp_path, "a", ".nii.gz"))
    assert mask.geometry.spacing_mm == pytest.approx(SPACING_MM)
    assert np.argwhere(mask.array[0]).tolist() == [[0, 1, 2]]
    sizes = [np.count_nonzero(read_labels(tmp_path / f"samples/a_sample0{i}.nii.gz").array) for i in (0, 1)]
    assert sizes == [2, 1]
    p = np.load(tmp_path / "probabilities/a.npz")["probabilities"]
    assert p.dtype == np.float16
    assert p[1, 0, 1].tolist() == [0, 0, 0.75, 0.5]
    assert p.sum() == 24  # two channels of 2 x 3 x 4 voxels
    entropy = read_image([tmp_path / "uncertainty/a.nii.gz"]).array[0]
    assert entropy[0, 1].tolist() == pytest.approx([0, 0, 2 - 0.75 * np.log2(3), 1], abs=1e-5)  # bits


def test_all_that_a_finished_case_must_have_is_there(tmp_path: Path) -> None:
    write_case(tmp_path)
    expected = expected_files(tmp_path, "a", EVERYTHING, num_folds=1, num_samples=2)
    assert len(expected) == len(set(expected)) == 7  # with one fold nothing lies between folds
    written = {path for path in tmp_path.rglob("*") if path.is_file() and ".cases" not in path.parts}
    assert set(expected) == written


def test_only_the_mask_and_its_uncertainty_are_written_unless_asked(tmp_path: Path) -> None:
    options = OutputOptions(".nii.gz", True)
    write_case(tmp_path, options)
    assert expected_files(tmp_path, "a", options, 1, 2) == [tmp_path / "a.nii.gz", tmp_path / "uncertainty/a.nii.gz"]
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "probabilities").exists()


def test_tables_are_put_together_from_the_records(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_summary(tmp_path, {"request": "same", "seed": 0})
    (lesion,) = table(tmp_path / "lesions.csv")
    assert (lesion["case"], lesion["voxels"], lesion["volume_mm3"]) == ("a", "1", "10")
    assert (lesion["mean_probability"], lesion["confidence"]) == ("0.75", "1")
    (volume,) = table(tmp_path / "volumes.csv")
    assert (volume["unit"], volume["volume"], volume["expected_volume"]) == ("ml", "0.01", "0.015")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["cases"]["a"]["current"] is True
    assert manifest["cases"]["a"]["seconds"] == {"write": 0.25}
    assert manifest["versions"]["numpy"] == np.__version__
    write_summary(tmp_path, {"request": "another"})
    assert json.loads((tmp_path / "manifest.json").read_text())["cases"]["a"]["current"] is False
    remove_summary(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".json")]


@pytest.mark.parametrize("again", [False, True])
def test_a_case_that_another_run_finishes_meanwhile_is_in_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    write_case(tmp_path)
    record = read_record(tmp_path, "a")
    assert record is not None

    def joined(path: Path, *arguments: Any) -> None:
        original(path, *arguments)
        if path.name == "cases.csv" and not finished:  # all records have been read
            finished.append(dataclasses.replace(record, case="a" if again else "b", inputs=("meanwhile",)))
            write_record(tmp_path, finished[0])

    original, finished = export.join_rows, list[PredictionRecord]()
    monkeypatch.setattr(export, "join_rows", joined)
    write_summary(tmp_path, {"request": "same"})
    cases = json.loads((tmp_path / "manifest.json").read_text())["cases"]
    assert list(cases) == (["a"] if again else ["a", "b"])
    assert cases[finished[0].case]["inputs"] == ["meanwhile"]


def test_a_case_without_a_readable_record_is_not_finished(tmp_path: Path) -> None:
    assert read_record(tmp_path, "a") is None
    write_case(tmp_path)
    record = read_record(tmp_path, "a")
    assert record is not None
    assert record.input_hashes == ("hash",)
    record_path(tmp_path, "a").write_text('{"case": "a"')
    assert read_record(tmp_path, "a") is None


def test_pictures_say_the_scale_of_their_uncertainty(tmp_path: Path) -> None:
    assert uncertainty_scale(".png") == 65535
    assert uncertainty_scale(".nii.gz") is None
