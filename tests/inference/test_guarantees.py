"""Guarantees that a prediction keeps: what is written by hand-made thresholds, and when it is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inference.test_best_prediction import DATASET, ONE, TWO, folders, write_best
from tests.inference.test_predictor import make_model, make_pictures
from unisegdiff_pipeline.commands import predict as command
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.evaluation.conformal import MaskThresholds, RiskThreshold, VolumeMargin
from unisegdiff_pipeline.inference.best_prediction import predict_best
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.guarantees import (
    ClassGuarantees,
    ClassPromises,
    Guarantees,
    Promises,
    parse_guarantees,
    promises_of,
)
from unisegdiff_pipeline.inference.model_export import export_model
from unisegdiff_pipeline.inference.recipe import read_recipe, write_recipe
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import read_settings, write_settings
from unisegdiff_pipeline.io.images import read_labels, write_map

__all__ = ["folders"]  # the fixture
ALL = ("lesions=0.9", "masks=0.9", "volume=0.9")
FOLDERS = ("masks_lesions", "masks_inner", "masks_outer")


def at(threshold: float, alpha: float = 0.1) -> RiskThreshold:
    return RiskThreshold(threshold, alpha, alpha, 9)


CALIBRATED = ClassGuarantees(
    lesions=(at(0.6, 0.2), at(0.45)),
    masks=(MaskThresholds(at(0.55), at(0.4)),),
    volume=(VolumeMargin(2.0, 0.9, 9, 2),),
    refused={"lesions=0.95": "9 held-out patients are too few, 19 are needed."},
)


def guarantees(weights: list[Path], *classes: str, num_samples: int = 2, unit: Any = "pixels2") -> Guarantees:
    hashes = tuple(sorted(file_hash(path) for path in weights))
    return Guarantees(9, num_samples, hashes, unit, dict.fromkeys(classes, CALIBRATED), ("Calibrated by hand.",))


def calibrated(model: Path, *classes: str, fold: str = "0", **options: Any) -> Path:
    """The model with guarantees of a fold."""
    folder = model / f"fold_{fold}"
    own = guarantees([folder / "weights.safetensors"], *classes, **options)
    write_settings(folder, dataclasses.replace(read_settings(folder), guarantees=own))
    return model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


# --------------------------------------------------------------------------------------------------- values by hand


def test_what_is_asked_for() -> None:
    assert parse_guarantees(ALL) == {"lesions": 0.9, "masks": 0.9, "volume": 0.9}
    for text, why in (
        (["mask=0.9"], "no guarantee"),
        (["masks"], "names no rate"),
        (["masks=90"], "none that models are calibrated for"),
        (["masks=nan"], "none that models"),
        (["masks=0.9", "masks=0.8"], "twice"),
    ):
        with pytest.raises(ValueError, match=why):
            parse_guarantees(text)


def test_the_rate_that_is_asked_for_is_taken_and_others_are_refused_with_the_reason() -> None:
    own = guarantees([], "a")
    assert promises_of(own, {"lesions": 0.8}, ("a",), "x").classes == {"a": ClassPromises(lesions=at(0.6, 0.2))}
    with pytest.raises(
        UsdError,
        match=r"x holds no guarantee lesions=0\.95\. a: 9 held-out .* 19 are needed\. Calibrated are lesions=0.8",
    ):
        promises_of(own, {"lesions": 0.95}, ("a",), "x")
    rare = dataclasses.replace(own, classes={"a": CALIBRATED, "rare": ClassGuarantees()})
    found = promises_of(rare, {"masks": 0.9}, ("rare", "new", "a"), "x").classes
    assert list(found) == ["rare", "new", "a"]  # in the order of the model, whatever the file's
    assert found["rare"] == found["new"] == ClassPromises()


def test_intervals_are_widened_in_roots_of_sizes() -> None:
    promises = Promises({"a": ClassPromises(volume=VolumeMargin(1.0, 0.5, 9, 3))}, "ml")
    sizes = [1.0, 8.0, 27.0]  # roots 1, 2, 3
    assert promises.interval("a", sizes, Units()) == pytest.approx((0.0, 64.0))
    flat = Promises(promises.classes, "mm2")
    assert flat.interval("a", [4.0, 9.0, 16.0], Units("mm", "mm2")) == pytest.approx((1.0, 25.0))
    with pytest.raises(UsdError, match="measured in ml"):
        flat.interval("a", sizes, Units())


def test_masks_of_several_classes_lie_in_folders_of_their_own_whatever_their_names() -> None:
    names = ("edema", "../core/x", "../core_x")
    promises = Promises({name: ClassPromises(lesions=at(0.5)) for name in names}, "ml")
    places = [place.as_posix() for _, place, _ in promises.masks()]
    assert places == ["masks_lesions/1_edema", "masks_lesions/2__core_x", "masks_lesions/3__core_x"]


# ---------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    return calibrated(make_model(tmp_path, 2), "lesion"), make_pictures(tmp_path / "in", 2)


def test_masks_and_intervals_are_those_of_the_thresholds(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = pictures
    out = tmp_path / "out"
    flags = ["--save-probabilities", "--save-samples", "--device", "cpu", "--no-filter", "--guarantee", *ALL]
    assert command.main(["-i", str(images), "-o", str(out), "-m", str(model), *flags]) == 0
    for case in ("case0", "case1"):
        p = np.load(out / f"probabilities/{case}.npz")["probabilities"][0].astype(float)
        for folder, threshold in zip(FOLDERS, (0.45, 0.55, 0.4), strict=True):
            mask = read_labels(out / folder / f"{case}.png").array[0]
            assert np.array_equal(mask, p >= threshold)
            assert 0 < mask.sum() < mask.size
        areas = [np.count_nonzero(read_labels(path).array) for path in sorted(out.glob(f"samples/{case}_*.png"))]
        (row,) = (row for row in rows(out / "volumes.csv") if row["case"] == case)
        low, high = np.sort(np.sqrt(areas))  # the ends of two samples; the margin is 2
        assert float(row["guaranteed_low"]) == pytest.approx(max(low - 2, 0) ** 2, rel=1e-5)
        assert float(row["guaranteed_high"]) == pytest.approx((high + 2) ** 2, rel=1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["promises"]["classes"]["lesion"]["masks"]["outer"]["threshold"] == 0.4
    request = PredictRequest(images, out, model, device="cpu", guarantees=ALL, lesion_filter=False)
    assert predict_folder(request) == 0
    (out / "masks_outer/case1.png").unlink()
    assert predict_folder(request) == 1


def test_a_folder_keeps_one_guarantee_and_overwriting_removes_the_masks_of_another(
    pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    model, images = pictures
    out = tmp_path / "out"
    request = PredictRequest(images, out, model, device="cpu", guarantees=ALL)
    predict_folder(request)
    for other in (("lesions=0.8",), ()):
        with pytest.raises(UsdError, match=r"made otherwise \(promises"):
            predict_folder(dataclasses.replace(request, guarantees=other))
    predict_folder(dataclasses.replace(request, guarantees=("lesions=0.8",), overwrite=True))
    assert len(list((out / "masks_lesions").glob("*.png"))) == 2
    assert not list(out.glob("masks_inner/*")) + list(out.glob("masks_outer/*"))


def test_each_class_of_a_volume_has_its_masks(tmp_path: Path) -> None:
    model = calibrated(make_model(tmp_path, 3), "edge", "core", unit="ml")
    image = np.random.default_rng(0).normal(size=(6, 20, 22)).astype(np.float32)
    write_map(tmp_path / "in/case0_0000.nii.gz", image, Geometry((2.0, 1.0, 1.0)))
    out = tmp_path / "out"
    request = PredictRequest(tmp_path / "in", out, model, device="cpu", guarantees=ALL, save_probabilities=True)
    predict_folder(request)
    p = np.load(out / "probabilities/case0.npz")["probabilities"].astype(float)
    for channel, name in ((1, "1_edge"), (2, "2_core")):
        mask = read_labels(out / f"masks_outer/{name}/case0.nii.gz").array[0]
        assert np.array_equal(mask, p[channel] >= 0.4)
    predict_folder(dataclasses.replace(request, guarantees=(), overwrite=True))
    assert not list(out.glob("masks_*/*/*"))


def test_what_was_not_calibrated_so_is_refused_before_anything_is_written(
    pictures: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = pictures
    line = ["-i", str(images), "-o", str(tmp_path / "out"), "-m", str(model), "--device", "cpu", "--guarantee"]
    for flags, why in (
        (["masks=0.9", "--samples", "3"], "calibrated with 2 samples a case, 3 are asked for"),
        (["masks=0.9", "--mirror"], "calibrated without --mirror"),
        (["lesions=0.95"], "19 are needed"),
    ):
        assert command.main([*line, *flags]) == 1
        assert why in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*line, "masks=2"])
    weights = model / "fold_0/weights.safetensors"
    other = make_model(tmp_path / "other", 2, folds=("1",)) / "fold_1/weights.safetensors"
    weights.write_bytes(other.read_bytes())
    with pytest.raises(UsdError, match="those of other weights"):
        predict_folder(PredictRequest(images, tmp_path / "out", model, device="cpu", guarantees=ALL))
    fresh = make_model(tmp_path / "fresh", 2)
    with pytest.raises(UsdError, match=r"fold 0 of .* holds no guarantees\. Validate it"):
        predict_folder(PredictRequest(images, tmp_path / "out", fresh, device="cpu", guarantees=ALL))
    (fresh / "fold_0").rename(fresh / "fold_all")
    with pytest.raises(UsdError, match="trained on every case, so that none is left"):
        predict_folder(PredictRequest(images, tmp_path / "out", fresh, device="cpu", guarantees=ALL))
    assert not (tmp_path / "out").exists()


def test_an_archive_keeps_the_guarantees_of_a_fold(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    model, images = pictures
    export_model(model, tmp_path / "model.zip")
    for name, of in (("out", model), ("same", tmp_path / "model.zip")):
        predict_folder(PredictRequest(images, tmp_path / name, of, device="cpu", guarantees=ALL))
    for folder in FOLDERS:
        for case in ("case0.png", "case1.png"):
            assert (tmp_path / "same" / folder / case).read_bytes() == (tmp_path / "out" / folder / case).read_bytes()


@pytest.mark.parametrize("names", [(ONE,), (ONE, TWO)])
def test_the_mean_of_folds_or_models_keeps_what_best_json_was_calibrated_for(
    folders: tuple[Path, Path], tmp_path: Path, names: tuple[str, ...]
) -> None:
    results, images = folders
    write_best(results, *((name, ("0", "1")) for name in names))
    request = PredictRequest(images, tmp_path / "out", results, device="cpu", guarantees=ALL, save_probabilities=True)
    with pytest.raises(UsdError, match=f"holds no guarantees. Run usd_find_best {DATASET}"):
        predict_best(request)
    weights = [results / name / f"fold_{fold}/weights.safetensors" for name in names for fold in "01"]
    own = guarantees(weights, "lesion", num_samples=2 * len(names))
    if len(names) == 2:  # the samples of both
        own = dataclasses.replace(
            own,
            classes={"lesion": dataclasses.replace(CALIBRATED, volume=(VolumeMargin(2.0, 0.9, 9, 4),))},
        )
    write_recipe(results, dataclasses.replace(read_recipe(results), guarantees=own))
    with pytest.raises(UsdError, match="leave --samples out"):
        predict_best(dataclasses.replace(request, num_samples=3))
    predict_best(request)
    p = np.load(tmp_path / "out/probabilities/case0.npz")["probabilities"][0].astype(float)
    assert np.array_equal(read_labels(tmp_path / "out/masks_outer/case0.png").array[0], p >= 0.4)
    assert all(row["guaranteed_high"] for row in rows(tmp_path / "out/volumes.csv"))
    if len(names) == 1:  # the model's folder by itself finds best.json beside it; a fold has none of its own
        alone = dataclasses.replace(request, model_folder=results / ONE, output=tmp_path / "alone")
        predict_folder(alone)
        with pytest.raises(UsdError, match="fold 0 of"):
            predict_folder(dataclasses.replace(alone, folds="0"))
    else:  # what usd_find_best would choose again is named
        members = re.escape(f"{ONE} (folds 0 1) + {TWO} (folds 0 1)")
        why = rf"best.json for the folds 0 1 of .* best.json is for {members}: .*\(--best\), or .*\(-f 0\)"
        with pytest.raises(UsdError, match=why):
            predict_folder(dataclasses.replace(request, model_folder=results / ONE, output=tmp_path / "alone"))
