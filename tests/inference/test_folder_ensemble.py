"""Ensembles of folders: values by hand, nnU-Net's files, pooled samples, and everything that does not fit together."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inference.test_predictor import make_model, make_pictures
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.inference.folder_ensemble import ensemble_folders
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.lesion_filter import LesionRule
from unisegdiff_pipeline.inference.prediction_folder import open_prediction_folder
from unisegdiff_pipeline.inference.request import EnsembleRequest, PredictRequest
from unisegdiff_pipeline.io.dataset_json import parse_labels
from unisegdiff_pipeline.io.images import read_header, read_labels, write_labels

GRID = Geometry((3.0, 2.0, 1.0), (5.0, -7.0, 11.0))
ONE_CLASS = {"background": 0, "lesion": 1}
TWO_CLASSES = {"background": 0, "a": 1, "b": 2}


class Executed(RuntimeError):
    """Raised where a pickle is loaded."""


class Trap:
    """A pickle of this raises when it is loaded."""

    def __reduce__(self) -> Any:
        return (_raise, ())


def _raise() -> None:
    raise Executed


def nnunet_folder(
    folder: Path, cases: dict[str, np.ndarray], labels: dict[str, Any], geometry: Geometry = GRID
) -> Path:
    """What nnUNetv2_predict --save_probabilities writes: arrays (K, Z, Y, X) with background first, masks, pickles."""
    folder.mkdir()
    for case_id, probabilities in cases.items():
        np.savez_compressed(folder / f"{case_id}.npz", probabilities=probabilities.astype(np.float32))
        write_labels(folder / f"{case_id}.nii.gz", probabilities.argmax(axis=0).astype(np.uint8), geometry)
        (folder / f"{case_id}.pkl").write_bytes(pickle.dumps(Trap()))
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def of_lesion(*values: float) -> np.ndarray:
    """Two channels on 1 x 1 x n voxels: background first."""
    p = np.array(values).reshape(1, 1, -1)
    return np.stack([1 - p, p])


def mask_of(folder: Path, case_id: str = "x", ending: str = ".nii.gz") -> list[int]:
    return read_labels(folder / f"{case_id}{ending}").array.ravel().tolist()


def probabilities_of(folder: Path, case_id: str = "x") -> np.ndarray:
    return np.load(folder / f"probabilities/{case_id}.npz")["probabilities"].astype(float)


def test_nnunet_folders_by_hand_without_their_pickles(tmp_path: Path) -> None:
    a = nnunet_folder(tmp_path / "a", {"x": of_lesion(0.9, 0.4, 0.2, 0.8)}, ONE_CLASS)
    b = nnunet_folder(tmp_path / "b", {"x": of_lesion(0.3, 0.4, 0.7, 0.9)}, ONE_CLASS)
    out = tmp_path / "out"
    assert ensemble_folders(EnsembleRequest((a, b), out, save_probabilities=True)) == 1
    assert mask_of(out) == [1, 0, 0, 1]  # of 0.6, 0.4, 0.45, 0.85
    assert probabilities_of(out).shape == (1, 1, 1, 4)
    assert probabilities_of(out).ravel() == pytest.approx([0.6, 0.4, 0.45, 0.85], abs=2.5e-4)
    shape, geometry = read_header(out / "x.nii.gz")
    assert shape == (1, 1, 1, 4)
    assert (geometry.spacing_mm, geometry.origin_mm) == (GRID.spacing_mm, GRID.origin_mm)
    rows = list(csv.DictReader((out / "lesions.csv").open()))
    assert [(row["voxels"], row["confidence"]) for row in rows] == [("1", ""), ("1", "")]
    assert [float(row["mean_probability"]) for row in rows] == pytest.approx([0.6, 0.85])
    with pytest.raises(Executed):
        pickle.loads((a / "x.pkl").read_bytes())


def test_weights_move_the_mean_and_are_fractions(tmp_path: Path) -> None:
    a = nnunet_folder(tmp_path / "a", {"x": of_lesion(0.9, 0.2)}, ONE_CLASS)
    b = nnunet_folder(tmp_path / "b", {"x": of_lesion(0.1, 0.6)}, ONE_CLASS)
    for name, weights in (("out", (1, 3)), ("same", (0.5, 1.5))):
        ensemble_folders(EnsembleRequest((a, b), tmp_path / name, weights=weights, save_probabilities=True))
        assert probabilities_of(tmp_path / name).ravel() == pytest.approx([0.3, 0.5], abs=2.5e-4)
    assert mask_of(tmp_path / "out") == [0, 0]


def test_of_several_classes_the_likeliest_of_the_mean_is_taken(tmp_path: Path) -> None:
    one = np.array([[0.5, 0.2], [0.5, 0.1], [0.0, 0.7]]).reshape(3, 1, 1, 2)  # background, a, b; two voxels
    other = np.array([[0.1, 0.1], [0.3, 0.9], [0.6, 0.0]]).reshape(3, 1, 1, 2)
    a = nnunet_folder(tmp_path / "a", {"x": one}, TWO_CLASSES)
    b = nnunet_folder(tmp_path / "b", {"x": other}, TWO_CLASSES)
    ensemble_folders(EnsembleRequest((a, b), tmp_path / "out", save_probabilities=True))
    assert probabilities_of(tmp_path / "out")[:, 0, 0].T.tolist() == pytest.approx(
        [pytest.approx([0.3, 0.4, 0.3], abs=3e-4), pytest.approx([0.15, 0.5, 0.35], abs=3e-4)]
    )
    assert mask_of(tmp_path / "out") == [1, 1]


def test_regions_are_averaged_one_by_one_and_stay_nested(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    folders = []
    for name, whole, core in (("a", 0.9, 0.2), ("b", 0.5, 0.9)):
        folder = tmp_path / name
        folder.mkdir()
        np.savez(folder / "x.npz", probabilities=np.array([whole, core], np.float32).reshape(2, 1, 1, 1))
        write_labels(folder / "x.nii.gz", np.ones((1, 1, 1), np.uint8), GRID)
        description = {"channel_names": {"0": "CT"}, "labels": labels, "regions_class_order": [1, 2]}
        (folder / "dataset.json").write_text(json.dumps(description | {"file_ending": ".nii.gz"}))
        folders.append(folder)
    ensemble_folders(EnsembleRequest(folders, tmp_path / "out"))
    assert mask_of(tmp_path / "out") == [2]  # whole 0.7, core 0.55


def test_ours_with_pooled_samples_is_a_folder_of_predictions(tmp_path: Path) -> None:
    model, images = make_model(tmp_path, 2, folds=("0", "1")), make_pictures(tmp_path / "in", 2)
    members = [tmp_path / "a", tmp_path / "b"]
    for seed, member in enumerate(members):
        saved = {"save_probabilities": True, "save_samples": True}
        predict_folder(PredictRequest(images, member, model, str(seed), device="cpu", seed=seed, **saved))
    out = tmp_path / "out"
    request = EnsembleRequest(members, out, save_probabilities=True, save_samples=True)
    assert ensemble_folders(request) == 2
    for case_id in ("case0", "case1"):
        mean = (probabilities_of(members[0], case_id) + probabilities_of(members[1], case_id)) / 2
        assert np.abs(probabilities_of(out, case_id) - mean).max() < 5e-4
        sure = (np.abs(mean - 0.5) > 1e-3).ravel()
        assert np.array_equal(np.array(mask_of(out, case_id, ".png"))[sure], (mean > 0.5).ravel()[sure])
        for number, (member, index) in enumerate([(m, i) for m in members for i in range(2)]):
            mine, theirs = (f"{case_id}_sample{i:02d}.png" for i in (number, index))
            assert (out / "samples" / mine).read_bytes() == (member / "samples" / theirs).read_bytes()
        assert (out / "uncertainty" / f"{case_id}.png").is_file()
    rows = list(csv.DictReader((out / "volumes.csv").open()))
    assert {row["num_samples"] for row in rows} == {"4"}
    evaluation = evaluate_folders(members[0], out, Meaning(parse_labels(ONE_CLASS), spacing_known=False))
    assert evaluation.report.settings["samples_per_case"] == [4, 4]
    assert evaluation.report.settings["probabilities"]["cases"] == 2
    assert ensemble_folders(request) == 0  # all is there
    before = (out / "case0.png").read_bytes()
    np.savez(members[0] / "probabilities/case0.npz", probabilities=probabilities_of(members[1], "case0"))
    assert ensemble_folders(request) == 1  # of another file
    assert (out / "case0.png").read_bytes() != before
    again = EnsembleRequest((out, members[0]), tmp_path / "again")
    assert ensemble_folders(again) == 2  # an ensemble says its labels itself


def test_without_samples_of_one_member_none_are_pooled(tmp_path: Path) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1)
    for name, samples in (("a", True), ("b", False)):
        saved = {"save_probabilities": True, "save_samples": samples}
        predict_folder(PredictRequest(images, tmp_path / name, model, device="cpu", **saved))
    members = (tmp_path / "a", tmp_path / "b")
    ensemble_folders(EnsembleRequest(members, tmp_path / "out"))
    assert {row["num_samples"] for row in csv.DictReader((tmp_path / "out/volumes.csv").open())} == {"0"}
    with pytest.raises(UsdError, match="decision is 'dice', which needs samples"):
        ensemble_folders(EnsembleRequest(members, tmp_path / "dice", decision="dice"))
    assert not (tmp_path / "dice").exists()


def test_the_decision_by_dice_takes_the_pooled_samples(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        folder = nnunet_folder(tmp_path / name, {"x": of_lesion(0.45, 0.3, 0.1)}, ONE_CLASS)
        write_labels(folder / "samples/x_sample00.nii.gz", np.array([[[1, 0, 0]]], np.uint8), GRID)
        folders.append(folder)
    ensemble_folders(EnsembleRequest(folders, tmp_path / "half"))
    ensemble_folders(EnsembleRequest(folders, tmp_path / "dice", decision="dice"))
    assert mask_of(tmp_path / "half") == [0, 0, 0]
    assert mask_of(tmp_path / "dice") == [1, 0, 0]
    record = json.loads((tmp_path / "dice/.cases/x.json").read_text())
    assert record["facts"]["threshold"] == 0.4


def test_the_filters_of_the_members_are_applied_together(tmp_path: Path) -> None:
    """Of two the weaker one of each number: lesions of one voxel (6 mm3) go, of two (12 mm3) stay."""
    folders = []
    for name, min_size in (("a", 0.007), ("b", 0.1)):
        folder = nnunet_folder(tmp_path / name, {"x": of_lesion(0.9, 0.1, 0.9, 0.9)}, ONE_CLASS)
        rules = {"rules": {"lesion": to_jsonable(LesionRule(min_size=min_size))}, "unit": "ml"}
        (folder / "manifest.json").write_text(json.dumps({"lesion_filter": rules}))
        folders.append(folder)
    ensemble_folders(EnsembleRequest(folders, tmp_path / "out"))
    assert mask_of(tmp_path / "out") == [0, 0, 1, 1]
    ensemble_folders(EnsembleRequest(folders, tmp_path / "all", lesion_filter=False))
    assert mask_of(tmp_path / "all") == [1, 0, 1, 1]
    (folders[0] / "manifest.json").unlink()  # one that has no filter
    ensemble_folders(EnsembleRequest(folders, tmp_path / "one"))
    assert mask_of(tmp_path / "one") == [1, 0, 1, 1]


def test_filters_of_members_with_other_names_are_those_of_the_common_ones(tmp_path: Path) -> None:
    folders = []
    for name in ("polyp", "nodule"):
        labels = {"background": 0, name: 1}
        folder = nnunet_folder(tmp_path / name, {"x": of_lesion(0.9, 0.1, 0.9, 0.9)}, labels)
        rules = {"rules": {name: to_jsonable(LesionRule(min_size=0.007))}, "unit": "ml"}
        content = {"lesion_filter": rules, "labels": to_jsonable(parse_labels(labels, None))}
        (folder / "manifest.json").write_text(json.dumps(content))
        folders.append(folder)
    ensemble_folders(EnsembleRequest(folders, tmp_path / "out", dataset_json=folders[0] / "dataset.json"))
    assert mask_of(tmp_path / "out") == [0, 0, 1, 1]


def test_what_members_promise_and_an_ensemble_does_not_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [nnunet_folder(tmp_path / name, {"x": of_lesion(0.9, 0.1, 0.9, 0.9)}, ONE_CLASS) for name in "ab"]
    rules = {"lesion": to_jsonable(LesionRule(min_confidence=0.5))}
    content = {"lesion_filter": {"rules": rules, "unit": "ml"}, "promises": {"classes": {}, "unit": "ml"}}
    for folder in folders:
        (folder / "manifest.json").write_text(json.dumps(content))
    ensemble_folders(EnsembleRequest(folders, tmp_path / "out"))
    assert f"guarantees of {folders[0]}, {folders[1]} are void for the mean of several predictions" in caplog.text
    assert "the lesion filter of lesion asks for a fraction of the samples" in caplog.text
    assert "promises" not in json.loads((tmp_path / "out/manifest.json").read_text())


# ------------------------------------------------------------------------------------------------- what does not fit


def refuse(tmp_path: Path, a: Path, b: Path, *words: str, **options: Any) -> None:
    """The ensemble is refused with all of these words, and nothing is written."""
    with pytest.raises(UsdError) as refused:
        ensemble_folders(EnsembleRequest((a, b), tmp_path / "out", **options))
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "out/.prediction.json").exists()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    cases = {name: of_lesion(0.9, 0.4, 0.2) for name in ("x", "y")}
    return nnunet_folder(tmp_path / "a", cases, ONE_CLASS), nnunet_folder(tmp_path / "b", cases, ONE_CLASS)


def test_a_case_that_one_member_lacks(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for suffix in (".nii.gz", ".npz"):
        (pair[1] / f"y{suffix}").unlink()
    refuse(tmp_path, *pair, f"{pair[1]} lacks 1 of 2 case(s)", ": y.")


def test_probabilities_that_one_member_lacks(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (pair[0] / "y.npz").unlink()
    refuse(tmp_path, *pair, f"{pair[0]} holds no probabilities of 1 of 2 case(s): y", "--save-probabilities")


def test_probabilities_without_a_mask_whose_pickle_would_say_the_geometry(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    for folder in pair:
        (folder / "y.nii.gz").unlink()
    refuse(tmp_path, *pair, f"{pair[0]} holds probabilities of y but no mask")


def test_other_grids_are_named_by_case_and_folder(tmp_path: Path) -> None:
    a = nnunet_folder(tmp_path / "a", {"x": of_lesion(0.9, 0.4)}, ONE_CLASS)
    b = nnunet_folder(tmp_path / "b", {"x": of_lesion(0.9, 0.4)}, ONE_CLASS, Geometry((3.0, 2.0, 1.5), GRID.origin_mm))
    c = nnunet_folder(tmp_path / "c", {"x": of_lesion(0.9, 0.4, 0.1)}, ONE_CLASS)
    refuse(tmp_path, a, b, "x: spacing (3, 2, 1) against (3, 2, 1.5) mm", str(a), str(b))
    refuse(tmp_path, a, c, f"x: shape (1, 1, 3) (Z, Y, X) in {c}, (1, 1, 2) in {a}")


def test_other_classes_are_named(tmp_path: Path) -> None:
    two = np.array([0.2, 0.5, 0.3]).reshape(3, 1, 1, 1)
    a = nnunet_folder(tmp_path / "a", {"x": two}, TWO_CLASSES)
    b = nnunet_folder(tmp_path / "b", {"x": two}, {"background": 0, "a": 1, "c": 2})
    refuse(tmp_path, a, b, f"{b} has the classes a 1, c 2, {a} has a 1, b 2")
    ensemble_folders(EnsembleRequest((a, b), tmp_path / "out", dataset_json=a / "dataset.json"))
    assert mask_of(tmp_path / "out") == [1]


def test_another_number_of_channels_fails_that_case_alone(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    np.savez(pair[1] / "y.npz", probabilities=np.full((3, 1, 1, 3), 1 / 3, np.float32))
    with pytest.raises(UsdError, match=r"1 case could not be made.*\ny: .*b/y\.npz holds 3 channels"):
        ensemble_folders(EnsembleRequest(pair, tmp_path / "out"))
    assert mask_of(tmp_path / "out") == [1, 0, 0]
    assert not (tmp_path / "out/y.nii.gz").exists()


@pytest.mark.parametrize("value", [np.nan, 2.0, -1.0])
def test_values_that_are_no_probabilities_fail(tmp_path: Path, pair: tuple[Path, Path], value: float) -> None:
    np.savez(pair[1] / "y.npz", probabilities=np.full((2, 1, 1, 3), value, np.float32))
    with pytest.raises(UsdError, match=r"b/y\.npz holds values"):
        ensemble_folders(EnsembleRequest(pair, tmp_path / "out"))


def test_axes_that_were_turned_are_noticed_by_the_mask(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    np.savez(pair[1] / "y.npz", probabilities=of_lesion(0.2, 0.4, 0.9))  # along x from the other end
    with pytest.raises(UsdError, match=r"b/y\.npz holds the axes in another order or direction than the mask"):
        ensemble_folders(EnsembleRequest(pair, tmp_path / "out"))


def test_a_reader_that_turns_images_is_noticed_by_the_plans(tmp_path: Path) -> None:
    folders = [nnunet_folder(tmp_path / name, {"x": of_lesion(0.1, 0.2)}, ONE_CLASS) for name in "ab"]
    (folders[1] / "plans.json").write_text(json.dumps({"image_reader_writer": "NibabelIOWithReorient"}))
    with pytest.raises(UsdError, match="NibabelIOWithReorient"):
        ensemble_folders(EnsembleRequest(folders, tmp_path / "out"))


def test_folders_that_are_none(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path, pair[0], tmp_path / "nowhere", "nowhere is no folder")
    refuse(tmp_path, pair[0], tmp_path / "empty", "empty holds no label file")
    (pair[1] / "dataset.json").unlink()
    refuse(tmp_path, *pair, f"no dataset.json in or above {pair[1]}", "--dataset-json FILE")


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    for members, options, words in (
        ((a,), {}, "needs two or more folders of predictions; 1 given"),
        ((a, a), {}, "a is given twice"),
        ((a, b), {"weights": (1,)}, "weights has 1 values for 2 members"),
        ((a, b), {"weights": (1, 0)}, "weights are 1, 0; allowed are numbers above 0"),
        ((a, out), {}, "out is one of the members"),
    ):
        with pytest.raises(UsdError, match=words):
            EnsembleRequest(members, out, **options)


def test_an_output_of_other_members_is_refused_and_overwritten(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = nnunet_folder(tmp_path / "c", {"x": of_lesion(0.1, 0.9, 0.9)}, ONE_CLASS)
    out = tmp_path / "out"
    ensemble_folders(EnsembleRequest(pair, out))
    first = nnunet_folder(tmp_path / "d", {"x": of_lesion(0.1, 0.9, 0.9)}, ONE_CLASS)
    with pytest.raises(UsdError, match="holds a prediction made otherwise"):
        ensemble_folders(EnsembleRequest((other, first), out))
    assert mask_of(out) == [1, 0, 0]
    ensemble_folders(EnsembleRequest((other, first), out, overwrite=True))
    assert mask_of(out) == [0, 1, 1]
    assert not (out / "y.nii.gz").exists()  # of the former members


def test_probabilities_are_found_by_composed_names(tmp_path: Path) -> None:
    folder = nnunet_folder(tmp_path / "a", {"Zo\u0308e": of_lesion(0.9)}, ONE_CLASS)
    found = open_prediction_folder(folder)
    assert set(found.masks) == set(found.probabilities) == {"Z\u00f6e"}
