"""A model of several sources predicts folders of mixed images, with their source or without."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inference.models import tiny_plans, write_model
from tests.inference.test_predictor import BINARY, GEOMETRY_3D, listing, make_model, make_pictures
from unisegdiff_pipeline.commands.predict import describe
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.io.images import read_header, read_labels, write_map
from unisegdiff_pipeline.planning.plans import PreprocessingPlan, SourcePlan, SourcesPlan, StagePlan


def plan(channels: int, target: float) -> PreprocessingPlan:
    return PreprocessingPlan((0, 1, 2), (None, target, target), ("zscore",) * channels, (False,) * channels, ())


SOURCES = SourcesPlan(
    {
        "US": SourcePlan("US", ("US",), ".png", False, plan(1, 2.0), (True,), 10),
        "Scope": SourcePlan("endoscopy", ("R", "G", "B"), ".png", False, plan(3, 1.0), (True,), 10),
    }
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A 2D network of three channels, with two sources."""
    plans = tiny_plans(BINARY, plan(3, 1.0), ("R", "G", "B"), ".png", False)
    configuration = replace(plans.configurations["tiny"], sources=SOURCES, median_shape=(1, 24, 24))
    return write_model(tmp_path, replace(plans, configurations={"tiny": configuration}))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Grey of 8 and 16 bits, colour as JPEG, two files of one case, and a volume of three slices."""
    folder, rng = tmp_path / "in", np.random.default_rng(0)
    folder.mkdir()
    Image.fromarray(rng.integers(0, 255, (20, 25), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 65535, (20, 25), dtype=np.uint16)).save(folder / "deep_0000.png")
    Image.fromarray(rng.integers(0, 255, (20, 25, 3), dtype=np.uint8)).save(folder / "colour_0000.jpg")
    for channel in range(2):
        Image.fromarray(rng.integers(0, 255, (20, 25), dtype=np.uint8)).save(folder / f"two_{channel:04d}.png")
    write_map(folder / "volume_0000.nii.gz", rng.normal(size=(3, 20, 25)), GEOMETRY_3D)
    return folder


MASKS = {"grey.png", "deep.png", "colour.png", "two.png", "volume.nii.gz"}


def test_each_mask_of_a_mixed_folder_has_the_ending_and_the_grid_of_its_image(model, images, tmp_path) -> None:
    out = tmp_path / "out"
    assert predict_folder(PredictRequest(images, out, model, device="cpu", save_samples=True)) == 5
    assert {path.name for path in out.iterdir() if path.is_file()} >= MASKS
    assert {path.name for path in (out / "uncertainty").iterdir()} >= MASKS
    assert read_labels(out / "grey.png").array.shape == (1, 1, 20, 25)
    shape, geometry = read_header(out / "volume.nii.gz")
    assert shape == (1, 3, 20, 25)
    assert geometry.spacing_mm == pytest.approx(GEOMETRY_3D.spacing_mm)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"] is None
    assert manifest["uncertainty"]["scale"] == {".jpg": 65535.0, ".nii.gz": None, ".png": 65535.0}
    rows = list(csv.DictReader((out / "volumes.csv").open()))  # sizes of pictures are nominal, those of volumes real
    known = {row["case"]: (row["unit"], row["spacing_known"]) for row in rows}
    assert known == dict.fromkeys(("colour", "deep", "grey", "two"), ("pixels2", "no")) | {"volume": ("ml", "yes")}
    assert predict_folder(PredictRequest(images, out, model, device="cpu", save_samples=True)) == 0


def test_images_with_other_channels_than_those_of_the_source_are_refused_by_its_name(model, images, tmp_path) -> None:
    for name, has in (("grey", "1 channel"), ("two", "2 channels")):
        given = sorted(images.glob(f"{name}*"))
        request = PredictRequest(given, tmp_path / f"out_{name}", model, source_name="Scope", device="cpu")
        with pytest.raises(UsdError, match=f"has {has}, images of the source Scope have 3; predict it with its own"):
            predict_folder(request)


def test_the_same_folder_with_a_source_is_another_request(model, images, tmp_path) -> None:
    for name in ("colour_0000.jpg", "two_0000.png", "two_0001.png"):
        (images / name).unlink()
    out = tmp_path / "out"
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    with pytest.raises(UsdError, match='source null there, "US" asked for'):
        predict_folder(PredictRequest(images, out, model, source_name="US", device="cpu"))
    assert predict_folder(PredictRequest(images, out, model, source_name="US", device="cpu", overwrite=True)) == 3
    assert json.loads((out / "manifest.json").read_text())["source"] == "US"


def test_what_cannot_be_mapped_costs_its_case_alone(model, images, tmp_path) -> None:
    write_map(images / "four_0003.nii.gz", np.zeros((3, 8, 8)), GEOMETRY_3D)
    with pytest.raises(UsdError, match=r"1 case could not be predicted(.|\n)*four: .*expected are the suffixes _0000"):
        predict_folder(PredictRequest(images, tmp_path / "out", model, device="cpu"))
    with pytest.raises(UsdError) as raised:  # the source has one channel
        predict_folder(PredictRequest(images, tmp_path / "known", model, source_name="US", device="cpu"))
    named = [line.split(":")[0] for line in str(raised.value).splitlines()[1:]]
    assert named == ["colour", "four", "two"]
    assert {path.name for path in (tmp_path / "known").iterdir()} >= {"grey.png", "deep.png", "volume.nii.gz"}


def test_an_image_with_more_channels_than_the_network_is_named(model) -> None:
    with pytest.raises(UsdError, match="case 'array' has 4 channels, the network takes 1 to 3"):
        Predictor(model, device="cpu").predict(np.zeros((4, 20, 25), np.float32))
    with pytest.raises(UsdError, match="case 'array' has 2 channels, images of the source US have 1"):
        Predictor(model, device="cpu").predict(np.zeros((2, 20, 25), np.float32), source="US")


def test_a_file_and_an_array_of_a_source_are_predicted_like_the_folder(model, images, tmp_path) -> None:
    out = tmp_path / "out"
    predictor = Predictor(model, device="cpu")
    predict_folder(PredictRequest(images / "grey.png", out, model, source_name="US", device="cpu"))
    found = predictor.predict(images / "grey.png", source="US")
    assert np.array_equal(found.mask, read_labels(out / "grey.png").array[0, 0])
    saved = found.save(tmp_path / "saved")
    assert np.array_equal(read_labels(saved / "grey.png").array, read_labels(out / "grey.png").array)
    pixels = np.asarray(Image.open(images / "grey.png"), np.float32)[None]
    assert np.array_equal(predictor.predict(pixels, source="US", case_id="grey").mask, found.mask)
    assert not np.array_equal(predictor.predict(pixels, case_id="grey").probabilities, found.probabilities)


def test_a_volume_without_spacing_is_measured_in_nominal_millimetres(model) -> None:
    predictor, array = Predictor(model, device="cpu"), np.random.default_rng(0).normal(size=(1, 3, 20, 25))
    nominal, real = predictor.predict(array), predictor.predict(array, (1.0, 1.0, 1.0))
    assert np.array_equal(nominal.probabilities, real.probabilities)
    assert [(row.unit, row.spacing_known) for row in nominal.volumes] == [("ml", False)]
    assert [(row.unit, row.spacing_known) for row in real.volumes] == [("ml", True)]


def test_an_array_lies_and_is_measured_as_the_images_of_the_source_that_is_named(tmp_path: Path) -> None:
    """The first source's volumes lie the other way round in x and y; pictures of a third one know no spacing."""
    turned, straight = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    own = {name: replace(plan(1, 1.0), direction=found) for name, found in (("MR", turned), ("CT", straight))}
    sources = {
        name: SourcePlan(name, (name,), ".nii.gz", True, preprocessing, (True,), 10)
        for name, preprocessing in own.items()
    }
    sources["US"] = SourcePlan("US", ("US",), ".png", False, plan(1, 1.0), (True,), 10)
    plans = tiny_plans(BINARY, own["MR"], ("channel_0",), ".nii.gz", False)
    configuration = replace(plans.configurations["tiny"], sources=SourcesPlan(sources), median_shape=(1, 24, 24))
    predictor = Predictor(write_model(tmp_path, replace(plans, configurations={"tiny": configuration})), device="cpu")
    array = np.random.default_rng(0).normal(size=(1, 3, 20, 25)).astype(np.float32)
    for name, direction in (("MR", turned), ("CT", straight)):
        write_map(tmp_path / f"{name}_0000.nii.gz", array[0], Geometry((2.0, 1.0, 1.0), direction=direction))
        of_file = predictor.predict(tmp_path / f"{name}_0000.nii.gz", source=name)
        found = predictor.predict(array, (2.0, 1.0, 1.0), source=name, case_id=name)
        assert np.array_equal(found.probabilities, of_file.probabilities)
        assert found.geometry.direction == direction
        with pytest.raises(ValueError, match="spacing_mm"):
            predictor.predict(array, source=name)
    predictor.predict(array[:, 0], source="US")


def test_overwriting_removes_masks_of_every_ending(model, images, tmp_path) -> None:
    out = tmp_path / "out"
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    predict_folder(PredictRequest(images / "grey.png", out, model, device="cpu", seed=1, overwrite=True))
    assert listing(out) == {
        "grey.png",
        "uncertainty/grey.png",
        "lesions.csv",
        "volumes.csv",
        "cases.csv",
        "manifest.json",
    }


def test_a_case_whose_image_has_another_ending_now_leaves_one_mask(model, tmp_path) -> None:
    folder, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    predict_folder(PredictRequest(folder, out, model, device="cpu"))
    (folder / "case0_0000.png").unlink()
    write_map(folder / "case0_0000.nii.gz", np.random.default_rng(0).normal(size=(2, 20, 25)), Geometry((2, 1, 1)))
    assert predict_folder(PredictRequest(folder, out, model, device="cpu")) == 1
    assert {path.name for path in out.iterdir() if path.name.startswith("case0")} == {"case0.nii.gz"}


def test_sources_that_there_are_not_are_refused(model, images, tmp_path) -> None:
    with pytest.raises(UsdError, match=r"--source is CT, which is none of the sources .* allowed are US, Scope"):
        predict_folder(PredictRequest(images, tmp_path / "out", model, source_name="CT", device="cpu"))
    with pytest.raises(UsdError, match="allowed are US, Scope"):
        describe(model, images, None, "CT")
    with pytest.raises(UsdError, match="allowed are US, Scope"):
        Predictor(model, device="cpu").predict(np.zeros((1, 8, 8), np.float32), source="CT")
    ordinary = make_model(tmp_path / "ordinary", 2)
    with pytest.raises(UsdError, match=r"--source is US, but .* was trained on one data set, Dataset001_X"):
        predict_folder(PredictRequest(images, tmp_path / "out", ordinary, source_name="US", device="cpu"))
    assert not (tmp_path / "out").exists()


def test_settings_of_a_source_have_its_own_input_scale() -> None:
    settings = InferenceSettings(lam_a=-3.0, lam_c=0.5, input_scale=(1.0,))
    stages = StagePlan(-5.0, -1.0, (2.0,), ())
    sources = replace(SOURCES, plans=SOURCES.plans | {"US": replace(SOURCES.plans["US"], stages=stages)})
    assert settings.for_source(None, None) == settings == settings.for_source(sources, "Scope")
    assert settings.for_source(sources, None) == settings
    assert settings.for_source(sources, "US") == replace(settings, input_scale=(2.0,))


def test_settings_of_a_source_have_its_own_calibration() -> None:
    settings = InferenceSettings(
        lam_a=-3.0,
        lam_c=0.5,
        calibration=LogitCalibration(2.0),
        source_calibrations={"US": LogitCalibration(0.5)},
    )
    found = settings.for_source(SOURCES, "US")
    assert found.calibration == LogitCalibration(0.5)
    assert found.for_source(SOURCES, "US") == found
    assert settings.for_source(SOURCES, "Scope").calibration == LogitCalibration(2.0)
    assert settings.for_source(SOURCES, None) == settings
    assert settings.calibrated(LogitCalibration(3.0)).for_source(SOURCES, "US").calibration == LogitCalibration(3.0)
