"""What the geometry of an input does to its prediction.

Copies of an image that are stored in other axes get the same masks, samples and maps, voxel for voxel in space; inputs
whose geometry cannot be right are refused by name, and the others of the folder are predicted.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.io.images import read_image, write_map
from unisegdiff_pipeline.io.orientation import Direction
from unisegdiff_pipeline.planning.plans import (
    PreprocessingPlan,
)
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image

LABELS = LabelScheme(("left", "right"), ((1,), (2,)), "softmax", (1, 2))
RAS: Direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
CODES = ("RAS", "LAS", "LPS", "ASR", "RSA")


def make_model(
    root: Path, dims: int, direction: Direction | None, channels: tuple[str, ...] = ("MRI",), ending: str = ".nii.gz"
) -> Path:
    spacing, each = (None if dims == 2 else 2.0, 1.0, 1.2), len(channels)
    preprocessing = PreprocessingPlan((0, 1, 2), spacing, ("zscore",) * each, (False,) * each, (), direction=direction)
    return write_model(root, tiny_plans(LABELS, preprocessing, channels, ending, spacing_known=True))


def image_in(codes: str, tilt: float = 0.0, num_slices: int = 9) -> nibabel.Nifti1Image:
    """One image with an empty border and voxels of 1 x 1.5 x 2.5 mm, stored in the axes that `codes` name."""
    rng = np.random.default_rng(3)
    array = np.zeros((20, 18, num_slices), np.float32)
    array[2:19, 1:17] = rng.standard_normal((17, 16, num_slices)) + 5
    affine = np.eye(4)
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([1.0, 1.5, 2.5])
    affine[:3, 3] = (-7, 11, 40)
    return turned(nibabel.Nifti1Image(array, affine), codes)


def turned(image: nibabel.Nifti1Image, codes: str) -> nibabel.Nifti1Image:
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def assert_same_in_space(a: Path, b: Path) -> None:
    """Equal voxels at equal places, by nibabel."""
    first, second = turned(nibabel.load(a), "RAS"), turned(nibabel.load(b), "RAS")
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("tilt", [0.0, 25.0])
@pytest.mark.parametrize("direction", [IDENTITY_DIRECTION, RAS])
def test_masks_samples_and_maps_of_reoriented_copies_are_equal(
    tmp_path: Path, dims: int, tilt: float, direction: Direction
) -> None:
    model, out = make_model(tmp_path, dims, direction), tmp_path / "out"
    probabilities = {}
    for codes in CODES:  # of the same name, so that the same noise is drawn
        file = tmp_path / codes / "case_0000.nii.gz"
        file.parent.mkdir()
        nibabel.save(image_in(codes, tilt), file)
        request = PredictRequest(file, out / codes, model, device="cpu", save_samples=True, save_probabilities=True)
        predict_folder(request)
        array = np.load(out / codes / "probabilities/case.npz")["probabilities"]
        mask = nibabel.load(out / codes / "case.nii.gz")
        np.testing.assert_allclose(mask.affine, nibabel.load(file).affine, atol=1e-4)
        images = [nibabel.Nifti1Image(channel.T.astype(np.float32), mask.affine) for channel in array]
        probabilities[codes] = [np.asarray(turned(image, "RAS").dataobj) for image in images]
    assert len(np.unique(np.asarray(nibabel.load(out / "RAS/case.nii.gz").dataobj))) == 3
    for codes in CODES[1:]:
        for name in ("case", "uncertainty/case", "samples/case_sample00", "samples/case_sample01"):
            assert_same_in_space(out / "RAS" / f"{name}.nii.gz", out / codes / f"{name}.nii.gz")
        np.testing.assert_array_equal(probabilities[codes], probabilities["RAS"])


def test_doubtful_images_are_predicted_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")
    model, images = make_model(tmp_path, 2, RAS), tmp_path / "in"
    images.mkdir()
    nibabel.save(image_in("RAS"), images / "good_0000.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((20, 18, 2), 7, np.uint8), np.eye(4)), images / "grey_0000.nii.gz")
    twice = image_in("RAS")
    twice.set_qform(twice.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1]), 1)
    twice.set_sform(twice.affine, 2)
    nibabel.save(twice, images / "twice_0000.nii.gz")
    assert predict_folder(PredictRequest(images, tmp_path / "out", model, device="cpu")) == 3
    said = {line.split(": ")[1]: line for line in caplog.text.splitlines() if "warning: case" in line}
    assert "grey_0000.nii.gz: all voxels of channel 0 are 7. Check" in said["case grey"]
    assert "(sform and qform) place it differently" in said["case twice"]
    assert "case good" not in caplog.text


@pytest.mark.parametrize("direction", [IDENTITY_DIRECTION, RAS])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "ARS"])
def test_a_2d_image_is_predicted_like_the_single_slice_that_it_is(
    tmp_path: Path, direction: Direction, codes: str
) -> None:
    model, masks = make_model(tmp_path, 2, direction), []
    slice_ = image_in(codes, num_slices=1)
    for name, array in (("volume", slice_.get_fdata()), ("flat", slice_.get_fdata()[..., 0])):
        file = tmp_path / name / "case_0000.nii.gz"  # of the same name, so that the same noise is drawn
        file.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), slice_.affine), file)
        predict_folder(PredictRequest(file, tmp_path / f"{name}_out", model, device="cpu"))
        masks.append(np.asarray(nibabel.load(tmp_path / f"{name}_out/case.nii.gz").dataobj))
    assert masks[1].ndim == 2
    assert len(np.unique(masks[1])) == 3
    np.testing.assert_array_equal(masks[0][..., 0], masks[1])


def test_a_2d_image_for_slices_along_another_axis_is_refused() -> None:
    plan = PreprocessingPlan((2, 0, 1), (None, 1.0, 1.0), ("zscore",), (False,), (), direction=RAS)
    volume = Volume(np.ones((1, 1, 10, 12), np.float32), Geometry(is_2d=True))
    with pytest.raises(UsdError, match=r"'a' is a 2D image.*store it as a volume of one slice"):
        preprocess_image(volume, plan, "a")


def test_an_array_that_knows_its_direction_is_turned_and_another_is_not(tmp_path: Path) -> None:
    predictor = Predictor(make_model(tmp_path, 3, RAS), device="cpu")
    nibabel.save(image_in("LPS"), tmp_path / "lps.nii.gz")
    nibabel.save(image_in("RAS"), tmp_path / "ras.nii.gz")
    lps, ras = read_image([tmp_path / "lps.nii.gz"]), read_image([tmp_path / "ras.nii.gz"])
    plain = predictor.predict(ras.array, ras.geometry.spacing_mm)
    found = predictor.predict(lps.array, lps.geometry.spacing_mm, direction=lps.geometry.direction)
    np.testing.assert_array_equal(found.mask, plain.mask[:, ::-1, ::-1])
    np.testing.assert_array_equal(found.samples, plain.samples[..., ::-1, ::-1])
    as_matrix = np.reshape(lps.geometry.direction, (3, 3))
    again = predictor.predict(lps.array, lps.geometry.spacing_mm, direction=as_matrix)
    np.testing.assert_array_equal(again.mask, found.mask)
    with pytest.raises(ValueError, match="nine cosines"):
        predictor.predict(lps.array, lps.geometry.spacing_mm, direction=(1.0, 0.0, 0.0))


def test_models_of_earlier_versions_predict_volumes_as_they_are_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unisegdiff_pipeline")
    model, images, out = make_model(tmp_path, 3, None), tmp_path / "in", tmp_path / "out"
    images.mkdir()
    nibabel.save(image_in("RAS"), images / "case_0000.nii.gz")
    nibabel.save(image_in("RAS"), images / "other_0000.nii.gz")
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 2
    assert caplog.text.count("names no orientation") == 1
    volume = read_image([images / "case_0000.nii.gz"])
    turned_by_plan = Predictor(make_model(tmp_path / "new", 3, RAS), device="cpu")
    expected = turned_by_plan.predict(volume.array, volume.geometry.spacing_mm, case_id="case").mask
    np.testing.assert_array_equal(np.asarray(nibabel.load(out / "case.nii.gz").dataobj).T, expected)


def test_a_single_slice_across_the_slices_of_a_2d_configuration_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path, 2, RAS)
    images = tmp_path / "in"
    images.mkdir()
    nibabel.save(image_in("LAS", num_slices=1), images / "flipped_0000.nii.gz")
    sagittal = image_in("RAS", num_slices=1)  # 20 x 18 x 1, now called A, S and R
    affine = np.zeros((4, 4))
    affine[2, 1] = affine[1, 0] = affine[0, 2] = affine[3, 3] = 1
    nibabel.save(nibabel.Nifti1Image(np.asarray(sagittal.dataobj), affine), images / "sagittal_0000.nii.gz")
    with pytest.raises(UsdError, match=r"(?s)1 case could not be predicted.*single slice stored as ASR.*RAS"):
        predict_folder(PredictRequest(images, tmp_path / "out", model, device="cpu"))
    assert (tmp_path / "out/flipped.nii.gz").is_file()


def with_spacing(image: nibabel.Nifti1Image, factor: float) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([factor] * 3 + [1.0]))


@pytest.mark.parametrize("dims", [2, 3])
def test_spacings_that_cannot_be_are_refused_by_file_and_the_other_cases_finish(tmp_path: Path, dims: int) -> None:
    model, images, out = make_model(tmp_path, dims, RAS), tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for name, factor in (("metres", 1e-3), ("lost", 50.0), ("good", 1.0), ("coarse", 4.0)):
        nibabel.save(with_spacing(image_in("RAS"), factor), images / f"{name}_0000.nii.gz")
    with pytest.raises(UsdError) as caught:
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    message = str(caught.value)
    assert message.startswith("2 cases could not be predicted")
    assert "metres_0000.nii.gz: case 'metres': voxels of 0.0025 x 0.0015 x 0.001 mm are" in message
    assert "the spacing seems to be in metres" in message
    assert "lost_0000.nii.gz: case 'lost': voxels of 125 x 75 x 50 mm are" in message
    assert {path.name for path in out.glob("*.nii.gz")} == {"good.nii.gz", "coarse.nii.gz"}


def test_a_corrected_spacing_beside_a_stack_is_predicted_again(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 3, IDENTITY_DIRECTION, ending=".tif"), tmp_path / "in", tmp_path / "out"
    for case in "ab":
        array = np.random.default_rng(0).random((8, 16, 14)).astype(np.float32)
        write_map(images / f"{case}_0000.tif", array, Geometry((2.0, 1.0, 1.2)))
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 2
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 0
    write_json(images / "b_0000.json", {"spacing": [3.0, 1.0, 1.2]})
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 1
    assert json.loads((out / "b.json").read_text()) == {"spacing": [3.0, 1.0, 1.2]}


def test_an_image_too_large_for_the_memory_at_the_planned_spacing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), ())
    volume = Volume(np.ones((1, 10, 10, 10), np.float32), Geometry((10.0, 10.0, 10.0)))
    monkeypatch.setattr("unisegdiff_pipeline.preprocessing.preprocessor.UNCHECKED_GB", 0)
    monkeypatch.setattr("unisegdiff_pipeline.preprocessing.preprocessor.available_memory_gb", lambda: 0.0039)
    with pytest.raises(UsdError, match=r"'a' has 100 x 100 x 100 voxels at the planned spacing of 1 x 1 x 1 mm"):
        preprocess_image(volume, plan, "a")
    monkeypatch.setattr("unisegdiff_pipeline.preprocessing.preprocessor.available_memory_gb", lambda: 0.0041)
    assert preprocess_image(volume, plan, "a")[0].shape == (1, 100, 100, 100)


def test_hashes_of_plans_without_a_direction_are_what_they_were() -> None:
    plan = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (False,), ())
    assert "direction" not in plan.fields()
    assert plan.hash() == "d6bf1ee997b442407a0e82c366626e2a"
    assert replace(plan, direction=RAS).hash() != plan.hash()
    assert replace(plan, training_spacing_mm=(1.0, 1.0, 1.0)).hash() == plan.hash()


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_on_different_grids_are_refused_by_name_and_the_other_cases_finish(tmp_path: Path, dims: int) -> None:
    model, images, out = make_model(tmp_path, dims, RAS, ("T1", "FLAIR")), tmp_path / "in", tmp_path / "out"
    images.mkdir()
    first = image_in("RAS")
    array, affine = np.asarray(first.dataobj), first.affine
    spacing, shifted = affine.copy(), affine.copy()
    spacing[2, 2] *= 1.5
    shifted[0, 3] += 0.2  # of a voxel of 1 mm
    tiny = affine + 1e-3 * (np.arange(16).reshape(4, 4) == 3)
    second = {"flipped": turned(first, "LAS"), "same": first}
    for name, other in (("spacing", spacing), ("shifted", shifted), ("tiny", tiny)):
        second[name] = nibabel.Nifti1Image(array, other)
    for name, flair in second.items():
        nibabel.save(first, images / f"{name}_0000.nii.gz")
        nibabel.save(flair, images / f"{name}_0001.nii.gz")
    with pytest.raises(UsdError) as caught:
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    message = str(caught.value)
    assert message.startswith("3 cases could not be predicted")
    for name in ("flipped", "spacing", "shifted"):
        assert f"{name}_0001.nii.gz lies elsewhere than {name}_0000.nii.gz" in message
        assert not (out / f"{name}.nii.gz").exists()
    assert {path.name for path in out.glob("*.nii.gz")} == {"same.nii.gz", "tiny.nii.gz"}
