"""A unified data set from usd_unify to a prediction: grey and colour pictures and volumes, one network."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.commands.find_best import main as usd_find_best
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.preprocess import main as usd_preprocess
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.commands.unify import main as usd_unify
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, read_weights
from unisegdiff_pipeline.inference.settings import read_settings
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.networks.sources import TABLE
from unisegdiff_pipeline.planning.plans import Plans
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder
from unisegdiff_pipeline.selection.calibration import FittedCalibration
from unisegdiff_pipeline.training.cross_validation import label_files
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.pretrained import open_start
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import open_fold

BUDGET = ["--device", "cpu", "--memory-gb", "4", "--workers", "0"]
CASES = 6
MODEL = "results/Dataset500_Both/StagedDiffusionTrainer__2d"


def write_pictures(folder: Path, colour: bool, class_name: str) -> None:
    rng = np.random.default_rng(len(class_name))
    size = 48 if colour else 40
    for case in range(CASES):
        mask = np.zeros((size, size), np.uint8)
        row, column = rng.integers(8, size - 20, 2)
        mask[row : row + 12, column : column + 10] = 1
        pixels = rng.integers(0, 60, (size, size, 3) if colour else (size, size)) + 120 * (
            mask[..., None] if colour else mask
        )
        Image.fromarray(pixels.astype(np.uint8)).save(_made(folder / "imagesTr") / f"c{case}_0000.png")
        Image.fromarray(mask).save(_made(folder / "labelsTr") / f"c{case}.png")
    channels = ["R", "G", "B"] if colour else ["US"]
    _describe(folder, channels, {"background": 0, class_name: 1}, ".png")


def write_volumes(folder: Path) -> None:
    rng = np.random.default_rng(3)
    for case in range(CASES):
        mask = np.zeros((4, 36, 44), np.uint8)
        mask[1:3, 10 + case : 20 + case, 12:24] = 2
        mask[1:3, 2:6, 2:6] = 1
        image = rng.normal(0, 1, mask.shape).astype(np.float32) + 4 * (mask == 2)
        for part, array, name in (("imagesTr", image, f"c{case}_0000"), ("labelsTr", mask, f"c{case}")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((0.8, 0.8, 5.0))
            sitk.WriteImage(volume, str(_made(folder / part) / f"{name}.nii.gz"))
    _describe(folder, ["T1"], {"background": 0, "organ": 1, "tumour": 2}, ".nii.gz")


def write_cubes(folder: Path, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    """Volumes (Z, Y, X) with a bright cube of their own place; `spacing_mm` as SimpleITK has it, (X, Y, Z)."""
    rng = np.random.default_rng(5)
    for case in range(CASES):
        mask = np.zeros(shape, np.uint8)
        mask[3:7, 4 + case : 9 + case, 5:11] = 1
        image = rng.normal(0, 1, shape).astype(np.float32) + 4 * mask
        for part, array, name in (("imagesTr", image, f"c{case}_0000"), ("labelsTr", mask, f"c{case}")):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing(spacing_mm)
            sitk.WriteImage(volume, str(_made(folder / part) / f"{name}.nii.gz"))
    _describe(folder, ["CT"], {"background": 0, "lesion": 1}, ".nii.gz")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _describe(folder: Path, channels: list[str], labels: dict[str, int], ending: str) -> None:
    content = {"channel_names": dict(enumerate(channels)), "labels": labels, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    write_pictures(tmp_path / "raw/Dataset001_Grey", False, "cyst")
    write_pictures(tmp_path / "raw/Dataset002_Colour", True, "polyp")
    write_volumes(tmp_path / "raw/Dataset003_Volume")
    label_map = tmp_path / "map.json"
    label_map.write_text(json.dumps({"Volume": {"organ": "background", "tumour": "lesion"}}))
    assert usd_unify(["500", "--name", "Both", "-d", "1", "2", "3", "--label-map", str(label_map)]) == 0
    assert usd_plan_and_preprocess(["-d", "500", "-c", "2d", *BUDGET]) == 0
    return tmp_path


def test_the_whole_way(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert usd_train(["500", "0", "-c", "2d", "--iterations", "6", "--device", "cpu", "--workers", "0"]) == 0
    validation = root / MODEL / "fold_0/validation"
    summary = json.loads((validation / "summary.json").read_text())
    assert {case["case_id"].split("__")[0] for case in summary["cases"]} == {"Grey", "Colour", "Volume"}
    assert "by_source" in summary
    endings = {path.name.split("__")[0]: "".join(path.suffixes) for path in validation.glob("*__*")}
    assert endings == {"Grey": ".png", "Colour": ".png", "Volume": ".nii.gz"}
    with (validation / "volumes.csv").open() as stream:  # each in the units of its own source
        units = {(row["case"].split("__")[0], row["unit"], row["spacing_known"]) for row in csv.DictReader(stream)}
    assert units == {("Grey", "pixels2", "no"), ("Colour", "pixels2", "no"), ("Volume", "ml", "yes")}
    first = [case["case_id"].split("__")[0] for case in summary["cases"][:3]]
    assert sorted(first) == ["Colour", "Grey", "Volume"]  # in turn, so that lack of time leaves no source out

    reference = str(root / "raw/Dataset500_Both")
    assert usd_evaluate([reference, str(validation), "--subset", "--workers", "0", "--bootstrap", "50"]) == 0
    scores = json.loads((validation / "evaluation/summary.json").read_text())["by_source"]
    assert scores["macro_mean"]["dice"]["mean"] == pytest.approx(summary["by_source"]["macro_mean_dice"], abs=1e-6)

    images = _made(root / "new")
    for number, name in ((1, "Grey"), (2, "Colour"), (3, "Volume")):
        (image,) = (root / f"raw/Dataset{number:03d}_{name}/imagesTr").glob("c1_0000.*")
        (images / image.name.replace("c1", name)).write_bytes(image.read_bytes())
    predict = ["-i", str(images), "-m", str(root / MODEL), "--device", "cpu"]
    assert usd_predict([*predict, "-o", str(root / "unknown")]) == 0
    assert sitk.ReadImage(str(root / "unknown/Volume.nii.gz")).GetSize() == (44, 36, 4)
    assert Image.open(root / "unknown/Colour.png").size == (48, 48)
    assert Image.open(root / "unknown/Grey.png").size == (40, 40)
    # A picture of another kind is an error of its own; the others are predicted as what the user says they are.
    assert usd_predict([*predict, "-o", str(root / "grey"), "--source", "Grey"]) != 0
    assert (root / "grey/Grey.png").is_file()
    assert not (root / "grey/Colour.png").exists()

    # Guarantees are those of the source that is named, by its own patients.
    own = read_settings(root / MODEL / "fold_0")
    assert own.guarantees is None
    assert {name: made.num_patients for name, made in own.source_guarantees.items()} == dict.fromkeys(
        ("Grey", "Colour", "Volume"), 2
    )
    one = ["-i", str(images / "Colour_0000.png"), "--device", "cpu", "--guarantee", "lesions=0.6"]
    assert usd_predict([*one, "-m", str(root / MODEL), "-o", str(root / "none")]) == 1
    assert "name it (--source Grey or Colour or Volume)" in capsys.readouterr().err
    assert usd_predict([*one, "-m", str(root / MODEL), "-o", str(root / "one"), "--source", "Colour"]) == 0
    assert usd_find_best(["500"]) == 0
    assert "of the source Colour: " in capsys.readouterr().out
    assert usd_predict([*one, "-d", "500", "--best", "-o", str(root / "best"), "--source", "Colour"]) == 0
    masks = [Image.open(root / out / "masks_lesions/Colour.png") for out in ("one", "best")]
    assert np.array_equal(*masks)  # the only fold is the best


def test_a_segmenter_alone_has_a_temperature_of_a_source_that_tells_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_all, of_grey = LogitCalibration(2.0, 2.0), LogitCalibration(0.5, 0.5)
    fold = "unisegdiff_pipeline.training.fold_settings"
    monkeypatch.setattr(f"{fold}.choose_calibration", lambda *_: FittedCalibration(of_all, {}))
    monkeypatch.setattr(
        f"{fold}.choose_source_calibrations", lambda *_: {"Grey": FittedCalibration(of_grey, {"Grey__c1": of_all})}
    )
    short = ["500", "0", "-c", "2d", "--iterations", "2", "--device", "cpu", "--workers", "0"]
    assert usd_train([*short, "--trainer", "SegmentationTrainer"]) == 0
    settings = read_settings(root / "results/Dataset500_Both/SegmentationTrainer__2d/fold_0")
    assert (settings.calibration, settings.source_calibrations) == (of_all, {"Grey": of_grey})


def test_a_unified_model_starts_another_by_the_names_of_its_sources(root: Path) -> None:
    train = ["500", "0", "-c", "2d", "--trainer", "SegmentationTrainer", "--iterations", "2", "--device", "cpu"]
    assert usd_train([*train, "--workers", "0"]) == 0
    fold = root / "results/Dataset500_Both/SegmentationTrainer__2d/fold_0"
    former = read_weights(fold / WEIGHTS_NAME)[0]
    assert usd_unify(["501", "--name", "Turned", "-d", "2", "1"]) == 0
    assert usd_plan_and_preprocess(["-d", "501", "-c", "2d", "--for-weights", str(fold), *BUDGET]) == 0
    roots = Roots(*(root / name for name in ("raw", "preprocessed", "results")))
    request = TrainRequest("501", "0", roots, "2d", "SegmentationTrainer", iterations=1, device="cpu", pretrained=fold)
    start = open_start(open_fold(request, StopRequest()))
    assert start.source_names == ("Colour", "Grey")
    tables = {name: table for name, table in start.tensors.items() if name.endswith(TABLE)}
    assert tables
    for name, table in tables.items():
        grey, colour, _ = former[name]
        assert torch.equal(table, torch.stack([colour, grey]))


def test_sources_in_another_order_are_refused_beside_a_fold_that_knows_them_by_their_places(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["500", "-c", "2d", "--trainer", "SegmentationTrainer", "--iterations", "2", "--device", "cpu"]
    train += ["--workers", "0"]
    assert usd_train([*train, "0"]) == 0
    model = root / "results/Dataset500_Both/SegmentationTrainer__2d"
    before = (model / "plans.json").read_bytes()
    maps = ["--label-map", str(root / "map.json"), "--overwrite"]
    assert usd_unify(["500", "--name", "Both", "-d", "2", "1", "3", *maps]) == 0
    assert usd_plan_and_preprocess(["-d", "500", "-c", "2d", *BUDGET]) == 0
    capsys.readouterr()
    change = "the sources were Grey, Colour, Volume and are Colour, Grey, Volume now"
    for asked in (["1"], ["0"], ["0", "--val"], ["0", "--run", "beside", "--phase-1-from", str(model / "fold_0")]):
        assert usd_train([*train, *asked]) == 1
        assert change in " ".join(capsys.readouterr().err.split())
    assert (model / "plans.json").read_bytes() == before
    assert usd_unify(["500", "--name", "Both", "-d", "1", "2", "3", *maps]) == 0
    assert usd_plan_and_preprocess(["-d", "500", "-c", "2d", *BUDGET]) == 0
    assert usd_train([*train, "1"]) == 0


def test_volumes_of_two_spacings_are_one_3d_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    write_cubes(tmp_path / "raw/Dataset001_Fine", (0.8, 0.8, 1.6), (12, 24, 20))
    write_cubes(tmp_path / "raw/Dataset002_Coarse", (1.0, 1.2, 2.0), (10, 16, 18))
    assert usd_unify(["500", "--name", "Solid", "-d", "1", "2"]) == 0
    assert usd_plan_and_preprocess(["-d", "500", "-c", "3d_fullres", *BUDGET]) == 0
    plans = read_dataclass(Plans, tmp_path / "preprocessed/Dataset500_Solid/plans.json")
    sources = plans.configurations["3d_fullres"].sources
    assert sources is not None
    assert sources.grid == "physical"
    assert len({plan.preprocessing.target_spacing_mm for plan in sources.plans.values()}) == 1
    train = ["500", "0", "-c", "3d_fullres", "--iterations", "4", "--device", "cpu", "--workers", "0"]
    assert usd_train(train) == 0
    model = tmp_path / "results/Dataset500_Solid/StagedDiffusionTrainer__3d_fullres"

    images = _made(tmp_path / "new")
    for name in ("Fine", "Coarse"):
        (image,) = (tmp_path / "raw").glob(f"*_{name}/imagesTr/c1_0000.nii.gz")
        (images / f"{name}__c1_0000.nii.gz").write_bytes(image.read_bytes())
    masks = tmp_path / "masks"
    assert usd_predict(["-i", str(images), "-m", str(model), "-o", str(masks), "--device", "cpu"]) == 0
    assert sitk.ReadImage(str(masks / "Fine__c1.nii.gz")).GetSize() == (20, 24, 12)
    assert sitk.ReadImage(str(masks / "Coarse__c1.nii.gz")).GetSpacing() == pytest.approx((1.0, 1.2, 2.0))
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(picture)
    assert usd_predict(["-i", str(picture), "-m", str(model), "-o", str(tmp_path / "no"), "--device", "cpu"]) == 1
    assert "'picture' is a 2D image, but 3d_fullres of" in " ".join(capsys.readouterr().err.split())
    reference = str(tmp_path / "raw/Dataset500_Solid")
    for predicted in (masks, model / "fold_0/validation"):
        assert usd_evaluate([reference, str(predicted), "--subset", "--workers", "0", "--bootstrap", "50"]) == 0
        found = json.loads((predicted / "evaluation/summary.json").read_text())["by_source"]["sources"]
        assert [source["source"] for source in found] == ["Coarse", "Fine"]


def test_stored_cases_hold_unified_classes_and_the_networks_channels(root: Path) -> None:
    folder = PreprocessedFolder(root / "preprocessed/Dataset500_Both/2d")
    assert len(folder.case_ids) == 3 * CASES
    for case_id in ("Grey__c0", "Colour__c0", "Volume__c0"):
        case = folder.open(case_id)
        assert case.properties.source == case_id.split("__")[0]
        assert case.image.shape[0] == 3
        assert set(np.unique(case.labels[...])) == {0, 1}
    grey = folder.open("Grey__c0").image[...]
    assert np.array_equal(grey[0], grey[2])


def test_label_files_of_validated_cases_are_those_of_their_sources(root: Path) -> None:
    found = label_files(root / "preprocessed/Dataset500_Both", root / "raw", ["Grey__c0", "Volume__c1"])
    assert found == {
        "Grey__c0": root / "raw/Dataset001_Grey/labelsTr/c0.png",
        "Volume__c1": root / "raw/Dataset003_Volume/labelsTr/c1.nii.gz",
    }


def test_another_plan_of_one_source_makes_its_cases_alone_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "preprocessed/Dataset500_Both/plans.json"
    content = json.loads(path.read_text())
    plan = content["configurations"]["2d"]["sources"]["plans"]["Grey"]["preprocessing"]
    plan["target_spacing_mm"] = [None, *(1.1 * s for s in plan["target_spacing_mm"][1:])]
    path.write_text(json.dumps(content))
    before = {p.name: p.stat().st_mtime_ns for p in (path.parent / "2d/cases").iterdir()}
    assert usd_preprocess(["-d", "500", "-c", "2d", "--workers", "0"]) == 0
    images = path.parent / "2d/cases"
    changed = {p.name.split("__")[0] for p in images.iterdir() if before[p.name] != p.stat().st_mtime_ns}
    assert changed == {"Grey"}
    assert read_dataclass(Plans, path).configurations["2d"].sources is not None
