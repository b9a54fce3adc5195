"""DICOM-SEG of a predicted series, read back by highdicom; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.inference.test_predictor import make_model
from tests.io.test_dicom import SIZE, only_series, write_series
from unisegdiff_pipeline.commands import predict
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference import folder_run
from unisegdiff_pipeline.inference.dicom_input import series_in, series_of_cases
from unisegdiff_pipeline.inference.dicom_seg import require_dicom_seg, write_dicom_segs
from unisegdiff_pipeline.inference.export import write_prediction
from unisegdiff_pipeline.inference.model_folder import ModelFolder, open_model_folder
from unisegdiff_pipeline.io.class_codes import parse_class_codes
from unisegdiff_pipeline.io.dicom import Series
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")


def complete(folder: Path) -> Path:
    """A series in a frame of reference; all else that is said of a study is left out, as where it is anonymous."""
    for path in write_series(folder).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.FrameOfReferenceUID = "1.2.826.0.1.1.99"
        for name in ("PatientName", "PatientBirthDate", "StudyDate"):
            dataset.pop(name, None)
        dataset.save_as(path)
    return folder


def run(images: Path, output: Path, model: Path, target: Path) -> int:
    words = ["-i", str(images), "-o", str(output), "-m", str(model), "--device", "cpu"]
    return predict.main([*words, "--dicom-seg", str(target)])


def first_series(source: Path, model: ModelFolder) -> dict[str, Series]:
    return series_of_cases(series_in(source)[0], model)


def frames(path: Path, series: list[Path]) -> tuple[object, np.ndarray]:
    """The object, and its values (Z, Y, X, classes) at the slices of a series."""
    read = highdicom.seg.segread(path)
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in series]
    return read, read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)


def test_what_is_written_is_mask_and_probability_of_the_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "Dataset001_X", 3)
    codes = {"core": {"value": "108369006", "meaning": "Neoplasm"}}
    (model / "dataset.json").write_text(json.dumps({"class_codes": codes}))
    complete(tmp_path / "in/p1")
    for _ in range(2):  # again, over the same files
        assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "seg") == 0
    assert f"DICOM-SEG: {tmp_path / 'seg'}" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in (tmp_path / "seg").iterdir()) == ["p1_probability.dcm", "p1_seg.dcm"]

    series = only_series(tmp_path / "in/p1")
    volume, files = series.read(), list(series.files())
    mask = read_labels(tmp_path / "out/p1.nii.gz").array[0]
    assert set(np.unique(mask)) >= {1, 2}
    read, found = frames(tmp_path / "seg/p1_seg.dcm", files)
    assert found.shape == (*SIZE, 2)
    assert np.array_equal(found, np.stack([mask == 1, mask == 2], axis=-1))
    names = [(s.SegmentLabel, s.segmented_property_type.meaning) for s in read.SegmentSequence]
    assert names == [("edge", "Lesion"), ("core", "Neoplasm")]
    source = pydicom.dcmread(files[0])
    assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (source.StudyInstanceUID, source.FrameOfReferenceUID)

    _, fractions = frames(tmp_path / "seg/p1_probability.dcm", files)
    probabilities = np.load(tmp_path / "out/probabilities/p1.npz")["probabilities"].astype(np.float32)
    assert np.abs(fractions - np.moveaxis(probabilities[1:], 0, -1)).max() <= 1 / 255
    assert len(np.unique(fractions)) > 2

    space = highdicom.seg.segread(tmp_path / "seg/p1_probability.dcm").get_volume_geometry()
    z, y, x = SIZE[0] - 1, 1, 3
    steps = np.reshape(volume.geometry.direction, (3, 3)) * np.array(volume.geometry.spacing_mm)[::-1]
    expected = volume.geometry.origin_mm + steps @ (x, y, z)
    places = [space.map_indices_to_reference(np.array([[i, y, x]]))[0] for i in (0, z)]  # slices either way round
    assert min(np.abs(place - expected).max() for place in places) < 1e-3


def test_probabilities_that_all_round_to_zero_are_written(tmp_path: Path) -> None:
    model, source = make_model(tmp_path / "model", 3), complete(tmp_path / "in/p1").parent
    assert run(source, tmp_path / "out", model, tmp_path / "seg") == 0
    file = tmp_path / "out/probabilities/p1.npz"
    array = np.full_like(np.load(file)["probabilities"], 0.001)  # less than half a step of 1/255
    np.savez(file, probabilities=array)
    opened = open_model_folder(model)
    assert write_dicom_segs(tmp_path / "out", tmp_path / "seg", first_series(source, opened), opened) == 1
    _, fractions = frames(tmp_path / "seg/p1_probability.dcm", list(only_series(source / "p1").files()))
    assert fractions.shape[:3] == array.shape[1:]
    assert not np.any(fractions)


def test_what_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", 3)
    write_series(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "in/seg") == 1
    assert "lies in the folder of the images" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsdError, match="is no folder of DICOM series"):
        require_dicom_seg(tmp_path / "model", tmp_path / "seg", open_model_folder(model))


def test_every_series_is_written_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(tmp_path / "model", 3)
    complete(tmp_path / "in/Zo\u0308e")
    assert run(tmp_path / "in", tmp_path / "out", model, tmp_path / "seg") == 0
    assert {path.name for path in (tmp_path / "seg").iterdir()} == {"Z\u00f6e_seg.dcm", "Z\u00f6e_probability.dcm"}
    series = first_series(tmp_path / "in", open_model_folder(model))
    caplog.set_level("INFO", "unisegdiff_pipeline")
    found = series | {"other": series["Z\u00f6e"]}
    assert write_dicom_segs(tmp_path / "out", tmp_path / "seg", found, open_model_folder(model)) == 1
    assert f"no DICOM-SEG of other, of which {tmp_path / 'out'} holds no prediction" in caplog.text


def test_a_case_that_fails_costs_the_others_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(output: Path, found: object, properties: CaseProperties, *rest: object) -> int:
        if properties.case_id == "p1":
            raise UsdError("no good")
        return write_prediction(output, found, properties, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_run, "write_prediction", write)
    for name in ("p1", "p2"):
        complete(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out", make_model(tmp_path / "model", 3), tmp_path / "seg") == 1
    assert "1 case could not be predicted" in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in (tmp_path / "seg").iterdir()} == {"p2_seg.dcm", "p2_probability.dcm"}


def test_a_series_that_nothing_can_refer_to_is_named_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in complete(tmp_path / "in").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    assert run(tmp_path / "in", tmp_path / "out", make_model(tmp_path / "model", 3), tmp_path / "seg") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"refer to the series in {tmp_path / 'in'}, which has no FrameOfReferenceUID; complete" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([], r"class_codes is \[\]; it must map classes \(core\)"),
        ({"x": {}}, "class_codes names x; it must map classes"),
        ({"core": {"value": "1"}}, r"class_codes\.core is .* must hold value and meaning"),
        ({"core": {"value": "1" * 17, "meaning": "m"}}, r"class_codes\.core.*value is '1+'; allowed are 1 to 16"),
        ({"core": {"value": "1", "meaning": "m", "colour": "red"}}, "colour"),
    ],
)
def test_codes_that_cannot_be(codes: object, message: str) -> None:
    with pytest.raises(UsdError, match=message):
        parse_class_codes({"class_codes": codes}, ("core",))
