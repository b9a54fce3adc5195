"""The Decathlon converter on generated folders of the Decathlon's form."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion import convert as convert_named
from dataset_conversion import converter
from dataset_conversion.finding import Request
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.fingerprint import extract_fingerprint
from unisegdiff_pipeline.io.images import read_image, read_labels
from unisegdiff_pipeline.io.raw_dataset import find_cases, open_raw_dataset

AFFINE = np.diag([0.5, 0.6, 2.0, 1.0])
SHAPE = (4, 5, 6)


def convert(source: Path, raw_root: Path, number: int | None = None) -> Path:
    return convert_named("msd", Request((source,), number), raw_root)


def _task(folder: Path, channels: int) -> Path:
    """A task folder with two training cases, one test case and the hidden copies of the archives."""
    rng = np.random.default_rng(0)
    for part, cases in (("imagesTr", ("c_01", "c_02")), ("imagesTs", ("c_03",)), ("labelsTr", ("c_01", "c_02"))):
        (folder / part).mkdir(parents=True)
        for case in cases:
            image = part.startswith("images")
            shape = (*SHAPE, channels) if image and channels > 1 else SHAPE
            data = rng.integers(0, 1000 if image else 3, shape).astype(np.int16 if image else np.uint8)
            nibabel.save(nibabel.Nifti1Image(data, AFFINE), folder / part / f"{case}.nii.gz")
            (folder / part / f"._{case}.nii.gz").write_bytes(b"\x00\x05\x16\x07")
    modality = {str(i): name for i, name in enumerate(("FLAIR", "T1w")[:channels])}
    description = {
        "name": "THING",
        "licence": "CC-BY-SA 4.0",
        "modality": modality,
        "labels": {"0": "background", "1": "organ", "2": "cancer"},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("c_01", "c_02")],
        "test": ["./imagesTs/c_03.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("channels", [1, 2])
def test_conversion_keeps_voxels_geometry_and_facts(tmp_path, channels):
    source = _task(tmp_path / "Task07_Thing", channels)
    folder = convert(source, tmp_path / "raw", None)
    assert folder == tmp_path / "raw" / "Dataset007_Thing"
    raw = open_raw_dataset(folder)
    _, report = extract_fingerprint(raw, workers=0)
    assert report.problems == report.warnings == report.empty_cases == ()
    assert raw.description.channel_names == ("FLAIR", "T1w")[:channels]
    assert raw.description.labels.names == ("organ", "cancer")
    assert raw.description.raw["licence"] == "CC-BY-SA 4.0"
    assert [case.case_id for case in raw.cases] == ["c_01", "c_02"]
    assert not list(folder.rglob("._*"))
    for case in raw.cases:
        original = nibabel.load(source / "imagesTr" / f"{case.case_id}.nii.gz")
        expected = np.asarray(original.dataobj).T.reshape(channels, *SHAPE[::-1])
        volume = read_image(case.image_paths)
        np.testing.assert_array_equal(volume.array, expected)
        np.testing.assert_allclose(volume.geometry.spacing_mm, (2.0, 0.6, 0.5), rtol=1e-6)
        assert case.label_path is not None
        label = nibabel.load(source / "labelsTr" / f"{case.case_id}.nii.gz")
        np.testing.assert_array_equal(read_labels(case.label_path).array[0], np.asarray(label.dataobj).T)
    assert [case.case_id for case in find_cases(folder / "imagesTs", ".nii.gz", channels)] == ["c_03"]


def test_frames_whose_header_scales_them_are_not_rounded(tmp_path):
    source = _task(tmp_path / "Task07_Thing", 2)
    for path in source.glob("images*/c_*.nii.gz"):
        image = nibabel.load(path)
        image.header.set_slope_inter(0.37, -11)
        nibabel.save(image, path)
    expected = read_image([source / "imagesTr/c_01.nii.gz"]).array
    folder = convert(source, tmp_path / "raw")
    found = [read_image([folder / f"imagesTr/c_01_000{channel}.nii.gz"]).array[0] for channel in range(2)]
    np.testing.assert_array_equal(found, expected)


def test_number_and_existing_folder(tmp_path):
    source = _task(tmp_path / "Task07_Thing", 1)
    assert convert(source, tmp_path / "raw", 55).name == "Dataset055_Thing"
    with pytest.raises(UsdError, match="is there already"):
        convert(source, tmp_path / "raw", 55)


def test_nothing_is_left_after_a_failure(tmp_path):
    source = _task(tmp_path / "Task07_Thing", 2)
    path = source / "imagesTr" / "c_02.nii.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsdError, match=r"c_02\.nii\.gz cannot be read.*truncated"):
        convert(source, tmp_path / "raw", None)
    assert not list((tmp_path / "raw").glob("*"))


@pytest.mark.parametrize(("link", "folder"), [("Task07_Thing", "store"), ("link", "Task07_Thing")])
def test_a_link_to_a_task_is_one_whichever_of_the_two_has_its_name(tmp_path, link, folder):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / link).symlink_to(_task(tmp_path / folder, 1))
    assert convert(tmp_path / "links" / link, tmp_path / "raw").name == "Dataset007_Thing"


def test_wrong_sources(tmp_path):
    (tmp_path / "Thing").mkdir()
    with pytest.raises(UsdError, match="TaskXX_Name"):
        convert(tmp_path / "Thing", tmp_path / "raw", None)
    source = _task(tmp_path / "Task07_Thing", 1)
    (source / "labelsTr" / "c_02.nii.gz").unlink()
    with pytest.raises(UsdError, match=r"1 file\(s\).*c_02"):
        convert(source, tmp_path / "raw", None)
    (source / "dataset.json").write_text('{"labels": ["background"]}')
    with pytest.raises(UsdError, match="lacks modality or labels"):
        convert(source, tmp_path / "raw", None)
    two = _task(tmp_path / "Task08_Two", 2)
    description = json.loads((two / "dataset.json").read_text()) | {"modality": {"0": "CT"}}
    (two / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UsdError, match=r"2 channels, but modality in dataset\.json names 1"):
        convert(two, tmp_path / "raw", None)


def test_registry():
    assert converter("msd").sources == ("TaskXX_Name",)
    with pytest.raises(UsdError, match=r"no converter 'MSD'; did you mean msd\? known are .*msd"):
        converter("MSD")
