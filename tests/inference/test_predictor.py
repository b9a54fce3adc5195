"""Folders and arrays through a tiny model: layout, continuing, parts, failures, folds."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from tests.inference.models import tiny_plans, write_model
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference import folder_run
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.prediction import Prediction
from unisegdiff_pipeline.inference.predictor import Predictor, require_finite
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import read_settings, write_settings
from unisegdiff_pipeline.io.images import read_image, read_labels, write_map
from unisegdiff_pipeline.planning.plans import (
    PreprocessingPlan,
)

SOFTMAX = LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2))
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
GEOMETRY_3D = Geometry((2.0, 1.0, 1.5), (3.0, -4.0, 5.5), (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0))


def make_model(root: Path, dims: int, folds: tuple[str, ...] = ("0",), denoiser: bool = True) -> Path:
    """A model of one channel: pictures of unknown spacing and a lesion, or volumes and two classes."""
    labels, ending = (BINARY, ".png") if dims == 2 else (SOFTMAX, ".nii.gz")
    spacing = (None if dims == 2 else 2.0, 1.0, 1.0)
    preprocessing = PreprocessingPlan((0, 1, 2), spacing, ("zscore",), (False,), ())
    return write_model(root, tiny_plans(labels, preprocessing, ("MRI",), ending, dims == 3), folds, denoiser)


def predict(image: np.ndarray, model: Path, folds: Any = None, **options: Any) -> Prediction:
    """A 2D image with pixels of 1 mm."""
    return Predictor(model, folds, "cpu").predict(image, (1, 1), **options)


def make_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 255, (20, 25), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"case{i}_0000.png")
    return folder


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")} - {
        str(p.relative_to(folder)) for p in (folder / ".cases").rglob("*")
    }


def test_layout_of_a_2d_folder(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 2), tmp_path / "out"
    request = PredictRequest(images, out, model, device="cpu", save_samples=True, save_probabilities=True)
    assert predict_folder(request) == 2
    per_case = [
        "{}.png",
        "uncertainty/{}.png",
        "samples/{}_sample00.png",
        "samples/{}_sample01.png",
        "probabilities/{}.npz",
    ]
    expected = {name.format(f"case{i}") for name in per_case for i in range(2)}
    assert listing(out) == expected | {"lesions.csv", "volumes.csv", "cases.csv", "manifest.json"}
    mask = read_labels(out / "case0.png").array[0]
    assert mask.shape == (1, 20, 25)
    probabilities = np.load(out / "probabilities/case0.npz")["probabilities"]
    assert probabilities.shape == (1, 1, 20, 25)
    sure = np.abs(probabilities[0] - 0.5) > 1e-3  # 0.5 itself is either, in 16 bits
    assert np.array_equal((mask == 1)[sure], (probabilities[0] > 0.5)[sure])
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["uncertainty"]["scale"] == 65535
    assert manifest["num_samples"] == 2
    assert set(manifest["cases"]) == {"case0", "case1"}
    assert manifest["cases"]["case0"]["seconds"]["network"] > 0
    with Image.open(out / "uncertainty/case0.png") as picture:
        entropy = np.asarray(picture) / 65535
    p = probabilities[0, 0].astype(float).clip(1e-6, 1 - 1e-6)
    assert np.abs(entropy + p * np.log2(p) + (1 - p) * np.log2(1 - p)).max() < 5e-3


def test_only_what_was_asked_for_is_written(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1), tmp_path / "out"
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert listing(out) == {
        "case0.png",
        "uncertainty/case0.png",
        "lesions.csv",
        "volumes.csv",
        "cases.csv",
        "manifest.json",
    }


def test_the_callers_number_of_threads_stays(tmp_path: Path) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1)
    torch.set_num_threads(37)  # more than are used
    predict_folder(PredictRequest(images, tmp_path / "out", model, device="cpu", num_samples=0))
    assert torch.get_num_threads() == 37


def test_3d_geometry_and_lesions_survive(tmp_path: Path) -> None:
    model, out = make_model(tmp_path, 3), tmp_path / "out"
    values = np.random.default_rng(3).normal(size=(9, 18, 14)).astype(np.float32)
    write_map(tmp_path / "in/a_0000.nii.gz", values, GEOMETRY_3D)
    predict_folder(PredictRequest(tmp_path / "in/a_0000.nii.gz", out, model, device="cpu"))
    written = read_labels(out / "a.nii.gz")
    assert written.array.shape == (1, 9, 18, 14)
    assert np.allclose(written.geometry.direction, GEOMETRY_3D.direction, atol=1e-6)
    assert np.allclose(written.geometry.origin_mm, GEOMETRY_3D.origin_mm, atol=1e-5)
    uncertainty = read_image([out / "uncertainty/a.nii.gz"]).array
    assert 0 <= uncertainty.min() < uncertainty.max() <= 1
    with open(out / "lesions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(r["voxels"]) for r in rows) == np.count_nonzero(written.array)
    assert sum(float(r["volume_mm3"]) for r in rows) == pytest.approx(3.0 * np.count_nonzero(written.array), rel=1e-4)
    assert {r["confidence"] for r in rows} <= {"0", "0.5", "1"}


def test_a_second_run_does_only_what_is_left(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    before = {name: (out / name).read_bytes() for name in ("case0.png", "case1.png", "lesions.csv")}
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 0
    (out / "case1.png").unlink()  # as if interrupted
    Image.fromarray(np.zeros((20, 25), np.uint8) + np.arange(25, dtype=np.uint8)).save(images / "case2_0000.png")
    stamp = (out / "case0.png").stat().st_mtime_ns
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 2
    assert (out / "case0.png").stat().st_mtime_ns == stamp
    assert (out / "case1.png").read_bytes() == before["case1.png"]
    assert predict_folder(PredictRequest(images, out, model, device="cpu", overwrite=True)) == 3


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    original = Predictor.predict_preprocessed

    def stop_at_the_last(self, image, properties, **options):
        if properties.case_id == "case2":
            raise KeyboardInterrupt
        return original(self, image, properties, **options)

    monkeypatch.setattr(Predictor, "predict_preprocessed", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    monkeypatch.undo()
    finished = set(json.loads((out / "manifest.json").read_text())["cases"])
    assert {"case0"} <= finished <= {"case0", "case1"}  # case1 was being written, which an interruption may cut off
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 3 - len(finished)
    assert set(json.loads((out / "manifest.json").read_text())["cases"]) == {"case0", "case1", "case2"}


def test_parts_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    assert predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=0)) == 2
    assert predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=1)) == 1
    assert "warning" not in caplog.text
    assert predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=9, part_id=5)) == 0
    assert "warning: part 5 of 9 holds no case, there are 3 cases in all" in caplog.text
    whole = tmp_path / "whole"
    predict_folder(PredictRequest(images, whole, model, device="cpu"))
    for table in ("lesions.csv", "volumes.csv"):
        assert (out / table).read_bytes() == (whole / table).read_bytes()
    with pytest.raises(UsdError, match="part_id is 2 of 2"):
        predict_folder(PredictRequest(images, out, model, num_parts=2, part_id=2))


def test_what_failed_in_a_part_stays_in_the_manifest_until_it_is_done(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    damaged = images / "case0_0000.png"
    whole = damaged.read_bytes()

    def predict_part(part_id: int) -> list[str]:
        with contextlib.suppress(UsdError):
            predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=part_id))
        return list(json.loads((out / "manifest.json").read_text())["failed"])

    damaged.write_bytes(whole[:60])
    assert [predict_part(0), predict_part(1)] == [["case0"], ["case0"]]
    damaged.write_bytes(whole)
    assert [predict_part(0), predict_part(1)] == [[], []]


def test_a_case_that_fails_is_named_and_the_others_finish(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    damaged = images / "case1_0000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(UsdError, match=r"(?s)1 case could not be predicted.*case1_0000"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert (out / "case0.png").is_file()
    assert (out / "case2.png").is_file()
    assert not (out / "case1.png").exists()
    assert list(json.loads((out / "manifest.json").read_text())["failed"]) == ["case1"]


def test_an_unreadable_picture_of_several_channels_costs_this_case_alone(tmp_path: Path) -> None:
    preprocessing = PreprocessingPlan((0, 1, 2), (None, 1.0, 1.0), ("rgb_to_0_1",) * 3, (False,) * 3, ())
    labels = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    model = write_model(tmp_path, tiny_plans(labels, preprocessing, ("R", "G", "B"), ".png", False))
    images, out = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for name in ("case0", "case1"):
        Image.fromarray(np.full((20, 25, 3), 80, np.uint8)).save(images / f"{name}_0000.png")
    (images / "case2_0000.png").write_bytes((images / "case1_0000.png").read_bytes()[:40])
    with pytest.raises(UsdError, match=r"(?s)1 case could not be predicted.*case2_0000"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert {path.name for path in out.glob("*.png")} == {"case0.png", "case1.png"}


def test_a_case_whose_computing_or_writing_fails_is_named_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 4), tmp_path / "out"
    compute, write = Predictor.predict_preprocessed, folder_run.write_prediction

    def compute_all_but_one(self, image, properties, **options):
        if properties.case_id == "case0":
            raise UsdError("too large")
        return compute(self, image, properties, **options)

    def write_all_but_one(output, found, properties, *rest):
        if properties.case_id == "case2":
            raise UsdError("not writable")
        return write(output, found, properties, *rest)

    monkeypatch.setattr(Predictor, "predict_preprocessed", compute_all_but_one)
    monkeypatch.setattr(folder_run, "write_prediction", write_all_but_one)
    for memory_gb in (100.0, 0.0):  # three cases at once, and one at a time
        monkeypatch.setattr(folder_run, "available_memory_gb", lambda memory_gb=memory_gb: memory_gb)
        with pytest.raises(UsdError, match=r"(?s)2 cases could not .*case0: too large\ncase2: not writable"):
            predict_folder(PredictRequest(images, out, model, device="cpu", overwrite=True))
        manifest = json.loads((out / "manifest.json").read_text())
        assert set(manifest["failed"]) == {"case0", "case2"}
        assert set(manifest["cases"]) == {"case1", "case3"}


def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3), tmp_path / "out"
    tried = []

    def full(output, found, properties, *rest):
        tried.append(properties.case_id)
        raise UsdError("a cannot be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_run, "write_prediction", full)
    monkeypatch.setattr(folder_run, "available_memory_gb", lambda: 0.0)
    with pytest.raises(UsdError, match="a cannot be written"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert tried == ["case0"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with atomic_path(out / "case0.png") as own:
        stale = own.name.replace(str(os.getpid()), str(process.pid))
        own.touch()
    (out / "case0.png").unlink()
    for folder in (out, out / "uncertainty", out / ".cases"):
        folder.mkdir(exist_ok=True)
        (folder / stale).touch()
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert not list(out.rglob(".tmp-*"))


def test_nan_is_refused_with_its_file(tmp_path: Path) -> None:
    model = make_model(tmp_path, 3)
    values = np.zeros((8, 16, 16), np.float32)
    values[1, 2, 3] = np.nan
    write_map(tmp_path / "in/a_0000.nii.gz", values, Geometry())
    with pytest.raises(UsdError, match=r"a_0000\.nii\.gz holds 1 value of NaN"):
        predict_folder(PredictRequest(tmp_path / "in", tmp_path / "out", model, device="cpu"))


def test_nan_is_refused_with_the_file_of_its_channel() -> None:
    array = np.zeros((2, 1, 4, 4), np.float32)
    array[1, 0, 2, 3] = np.inf
    with pytest.raises(UsdError, match=r"^flair holds 1 value of NaN or infinity"):
        require_finite(array, ["t1", "flair"])
    with pytest.raises(UsdError, match=r"^both holds 1 value"):
        require_finite(array, ["both"])
    require_finite(array[:1], ["t1"])


def test_masks_do_not_go_beside_images(tmp_path: Path) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1)
    with pytest.raises(UsdError, match="choose another folder"):
        predict_folder(PredictRequest(images, images, model, device="cpu"))


def test_folds_are_averaged_in_probability(tmp_path: Path) -> None:
    model = make_model(tmp_path, 2, folds=("0", "1", "2"))
    image = np.random.default_rng(5).normal(size=(1, 20, 22))
    single = [predict(image, model, [f], num_samples=0) for f in range(3)]
    all_three = predict(image, model, num_samples=0)
    mean = np.mean([p.probabilities.astype(np.float32) for p in single], axis=0)
    assert np.abs(all_three.probabilities - mean).max() < 2e-3  # half precision
    assert all_three.samples.shape == (0, 20, 22)


def test_samples_are_shared_out_over_folds(tmp_path: Path) -> None:
    """Sample i comes from fold i modulo the number of folds, and is the very sample that fold draws alone."""
    model = make_model(tmp_path, 2, folds=("0", "1"))
    image = np.random.default_rng(6).normal(size=(1, 20, 22))
    both = predict(image, model, num_samples=3)
    assert both.samples.shape == (3, 20, 22)
    for sample, fold in enumerate((0, 1, 0)):
        alone = predict(image, model, fold, num_samples=3)
        assert np.mean(both.samples[sample] != alone.samples[sample]) < 0.01
    assert not np.array_equal(both.samples[0], both.samples[2])


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("combine", ["majority", "staple"])
@pytest.mark.parametrize("dims", [2, 3])
def test_combined_masks_are_those_of_the_written_samples(tmp_path: Path, dims: int, combine: str) -> None:
    """Over samples/ SimpleITK finds the masks that were written; all else but the lesions stays that of the mean."""
    model, out, mean = make_model(tmp_path, dims, folds=("0", "1")), tmp_path / "out", tmp_path / "mean"
    if dims == 2:
        images, ending = make_pictures(tmp_path / "in", 1), ".png"
    else:
        images, ending = tmp_path / "in", ".nii.gz"
        write_map(images / "case0_0000.nii.gz", np.random.default_rng(3).normal(size=(9, 18, 14)), GEOMETRY_3D)
    predict_folder(PredictRequest(images, mean, model, device="cpu", num_samples=5, save_samples=True))
    predict_folder(PredictRequest(images, out, model, device="cpu", num_samples=5, save_samples=True, combine=combine))
    samples = [sitk.ReadImage(str(path)) for path in sorted((out / "samples").iterdir())]
    written = read_labels(out / f"case0{ending}").array[0]
    if combine == "majority":
        expected = sitk.GetArrayFromImage(sitk.LabelVoting(samples, 9)).reshape(written.shape)
        assert np.array_equal(written[expected != 9], expected[expected != 9])
        votes = np.stack([sitk.GetArrayFromImage(sample).reshape(written.shape) for sample in samples])
        most = np.stack([(votes == value).sum(axis=0) for value in range(3)]).argmax(axis=0)
        assert np.array_equal(written, most)  # a tie goes to the lowest
    elif dims == 2:
        expected = sitk.GetArrayFromImage(sitk.STAPLE(samples, 1.0, 1)).reshape(written.shape)
        assert np.array_equal(written == 1, expected > 0.5)
    else:
        expected = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(samples, 9))
        assert np.mean(written != expected) < 0.02
    assert not np.array_equal(written, read_labels(mean / f"case0{ending}").array[0])
    assert read_image([out / f"uncertainty/case0{ending}"]).array.tobytes() == (
        read_image([mean / f"uncertainty/case0{ending}"]).array.tobytes()
    )
    assert sum(int(row["voxels"]) for row in read_rows(out / "lesions.csv")) == np.count_nonzero(written)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["combine"] == combine
    assert manifest["request"] != json.loads((mean / "manifest.json").read_text())["request"]


def test_combined_masks_continue_and_another_rule_is_another_prediction(tmp_path: Path) -> None:
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 2), tmp_path / "out"
    run = {"device": "cpu", "num_samples": 3}
    assert predict_folder(PredictRequest(images, out, model, **run, combine="majority")) == 2
    before = (out / "case0.png").read_bytes()
    (out / "case0.png").unlink()
    assert predict_folder(PredictRequest(images, out, model, **run, combine="majority")) == 1
    assert (out / "case0.png").read_bytes() == before
    with pytest.raises(UsdError, match=r'combine "majority" there, "staple" asked for'):
        predict_folder(PredictRequest(images, out, model, **run, combine="staple"))
    assert predict_folder(PredictRequest(images, out, model, **run, combine="staple", overwrite=True)) == 2
    assert predict_folder(PredictRequest(images, out, model, **run, combine="staple", save_uncertainty_parts=True)) == 2
    assert predict_folder(PredictRequest(images, out, model, **run, combine="staple", save_uncertainty_parts=True)) == 0


def test_the_mean_is_the_default(tmp_path: Path) -> None:
    """Naming it and asking for the parts changes no byte of what is written without."""
    model, images = make_model(tmp_path, 2, folds=("0", "1")), make_pictures(tmp_path / "in", 2)
    plain, named = tmp_path / "plain", tmp_path / "named"
    common = {"device": "cpu", "save_samples": True, "num_samples": 4}
    predict_folder(PredictRequest(images, plain, model, **common))
    predict_folder(PredictRequest(images, named, model, **common, combine="mean", save_uncertainty_parts=True))
    for name in listing(plain) - {"manifest.json"}:
        assert (plain / name).read_bytes() == (named / name).read_bytes(), name
    parts = ("between_folds", "within_samples", "single_samples")
    assert listing(named) - listing(plain) == {f"uncertainty/{p}/case{i}.png" for p in parts for i in range(2)}


def test_arrays_are_combined_and_split_as_files_are(tmp_path: Path) -> None:
    model, out = make_model(tmp_path, 3, folds=("0", "1")), tmp_path / "out"
    values = np.random.default_rng(7).normal(size=(9, 18, 14)).astype(np.float32)
    write_map(tmp_path / "in/a_0000.nii.gz", values, GEOMETRY_3D)
    choice = {"num_samples": 4, "combine": "majority"}
    predict_folder(PredictRequest(tmp_path / "in", out, model, device="cpu", save_uncertainty_parts=True, **choice))
    loaded = Predictor(model, device="cpu")
    found = loaded.predict(values[None], GEOMETRY_3D.spacing_mm, case_id="a", uncertainty_parts=True, **choice)
    assert np.array_equal(found.mask, read_labels(out / "a.nii.gz").array[0])
    for name in ("between_folds", "within_samples", "single_samples"):
        part = getattr(found, name)
        assert part.shape == values.shape
        assert 0 <= part.min() < part.max() <= 1
        assert np.abs(part - read_image([out / f"uncertainty/{name}/a.nii.gz"]).array[0]).max() < 1e-6
    plain = loaded.predict(values[None], GEOMETRY_3D.spacing_mm, case_id="a", num_samples=4)
    assert plain.between_folds is None
    flat = predict(values[:1], make_model(tmp_path / "2d", 2), uncertainty_parts=True)
    assert flat.within_samples is not None
    assert flat.within_samples.shape == flat.mask.shape == flat.uncertainty.shape
    assert flat.between_folds is None  # one fold


def test_what_needs_samples_is_refused_without(tmp_path: Path) -> None:
    images = make_pictures(tmp_path / "in", 1)
    for denoiser in (True, False):
        model = make_model(tmp_path / str(denoiser), 2, folds=("0", "1"), denoiser=denoiser)
        number = 0 if denoiser else 4
        with pytest.raises(UsdError, match="combined by staple, but 0 samples are drawn"):
            predict_folder(
                PredictRequest(images, tmp_path / "out", model, device="cpu", num_samples=number, combine="staple")
            )
        with pytest.raises(UsdError, match="one fold without samples"):
            predict_folder(
                PredictRequest(
                    images,
                    tmp_path / "out",
                    model,
                    ["0"],
                    device="cpu",
                    num_samples=number,
                    save_uncertainty_parts=True,
                )
            )
        assert not (tmp_path / "out").exists()
        with pytest.raises(UsdError, match="combined by majority"):
            Predictor(model, device="cpu").predict(np.ones((1, 20, 20)), (1, 1), num_samples=0, combine="majority")


def test_a_decision_by_samples_needs_some(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, model, out = make_pictures(tmp_path / "in", 1), make_model(tmp_path, 2), tmp_path / "out"
    request = PredictRequest(images, out, model, device="cpu", num_samples=0)
    with pytest.raises(UsdError, match="the decision is to be 'dice', which goes by samples, but 0 are drawn"):
        predict_folder(replace(request, decision="dice"))
    with pytest.raises(UsdError, match="which goes by samples"):
        Predictor(model, device="cpu", decision="dice").predict(np.ones((1, 20, 20)), num_samples=0)
    assert not out.exists()
    write_settings(model / "fold_0", replace(read_settings(model / "fold_0"), decision="dice"))
    predict_folder(request)
    assert "training chose the decision 'dice'" in caplog.text
    assert json.loads((out / "manifest.json").read_text())["decision"] == "half"


def test_volumes_of_mask_and_samples(tmp_path: Path) -> None:
    model, out = make_model(tmp_path, 3), tmp_path / "out"
    write_map(tmp_path / "in/a_0000.nii.gz", np.random.default_rng(3).normal(size=(9, 18, 14)), GEOMETRY_3D)
    predict_folder(PredictRequest(tmp_path / "in", out, model, device="cpu", num_samples=3, save_samples=True))
    mask = read_labels(out / "a.nii.gz").array
    samples = np.stack([read_labels(path).array for path in sorted((out / "samples").iterdir())])
    rows = read_rows(out / "volumes.csv")
    assert [(row["case"], row["class_name"], row["unit"]) for row in rows] == [("a", "edge", "ml"), ("a", "core", "ml")]
    for row, value in zip(rows, (1, 2), strict=True):
        drawn = 0.003 * (samples == value).sum(axis=(1, 2, 3, 4))  # 3 mm3 a voxel
        assert float(row["volume"]) == pytest.approx(0.003 * np.count_nonzero(mask == value), rel=1e-5)
        assert float(row["expected_volume"]) == pytest.approx(drawn.mean(), rel=1e-5)
        assert float(row["std"]) == pytest.approx(drawn.std(ddof=1), rel=1e-5)
        assert float(row["quantile_05"]) == pytest.approx(drawn.min(), rel=1e-5)
        assert float(row["quantile_95"]) == pytest.approx(drawn.max(), rel=1e-5)


def test_volumes_of_an_earlier_folder_and_without_samples(tmp_path: Path) -> None:
    """Pictures are measured in pixels; a finished case whose volumes are not there is left out of the table."""
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 2), tmp_path / "out"
    predict_folder(PredictRequest(images, out, model, device="cpu", num_samples=0))
    rows = read_rows(out / "volumes.csv")
    assert [row["case"] for row in rows] == ["case0", "case1"]
    area = np.count_nonzero(read_labels(out / "case0.png").array)
    assert rows[0] | {"spacing_known": ""} == {
        "case": "case0",
        "class_name": "lesion",
        "unit": "pixels2",
        "spacing_known": "",
        "volume": f"{area}",
        "num_samples": "0",
        "expected_volume": "",
        "std": "",
        "quantile_05": "",
        "quantile_95": "",
        "guaranteed_low": "",
        "guaranteed_high": "",
    }
    assert rows[0]["spacing_known"] == read_rows(out / "lesions.csv")[0]["spacing_known"] == "no"
    (out / ".cases/volumes/case0.csv").unlink()
    assert predict_folder(PredictRequest(images, out, model, device="cpu", num_samples=0)) == 0
    assert [row["case"] for row in read_rows(out / "volumes.csv")] == ["case1"]


def test_array_and_file_agree(tmp_path: Path) -> None:
    model, out = make_model(tmp_path, 3), tmp_path / "out"
    values = np.random.default_rng(7).normal(size=(9, 18, 14)).astype(np.float32)
    write_map(tmp_path / "in/a_0000.nii.gz", values, GEOMETRY_3D)
    predict_folder(PredictRequest(tmp_path / "in", out, model, device="cpu", seed=3))
    found = Predictor(model, device="cpu").predict(values[None], GEOMETRY_3D.spacing_mm, seed=3, case_id="a")
    assert found.probabilities.shape == (3, 9, 18, 14)
    assert np.array_equal(found.mask, read_labels(out / "a.nii.gz").array[0])
    assert np.abs(found.uncertainty - read_image([out / "uncertainty/a.nii.gz"]).array[0]).max() < 1e-6


def test_arrays_of_unknown_spacing_need_none_in_a_list_either(tmp_path: Path) -> None:
    loaded = Predictor(make_model(tmp_path, 2), device="cpu")
    image = np.random.default_rng(0).normal(size=(20, 25))
    assert np.array_equal(loaded.predict([image]).probabilities, loaded.predict(image[None]).probabilities)
    with pytest.raises(ValueError, match="needs its spacing"):
        Predictor(make_model(tmp_path / "3d", 3), device="cpu").predict([np.ones((9, 18, 14))])


def test_an_image_without_a_name_that_replaces_another_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop over arrays would else leave the last one alone without a word; to save a named case again is meant."""
    model, image = make_model(tmp_path, 2), np.random.default_rng(0).normal(size=(1, 20, 25)).astype(np.float32)
    predict(image, model).save(tmp_path / "out")
    for _ in range(2):
        predict(image, model, case_id="a").save(tmp_path / "out")
    assert "is replaced" not in caplog.text
    predict(image + 1, model).save(tmp_path / "out")
    assert f"'array' in {tmp_path / 'out'} is replaced" in caplog.text
    assert "case_id" in caplog.text


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    loaded = Predictor(make_model(tmp_path, 2), device="cpu")
    with pytest.raises(ValueError, match="expected \\(C, Z, Y, X\\)"):
        loaded.predict(np.zeros((20, 20)), (1, 1))
    with pytest.raises(ValueError, match="spacing_mm"):
        loaded.predict(np.zeros((1, 4, 20, 20)), (1, 1))
    with pytest.raises(UsdError, match="2 channels"):
        loaded.predict(np.ones((2, 20, 20)), (1, 1))


def test_a_decision_or_a_number_of_samples_that_cannot_be_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path, 2)
    with pytest.raises(ValueError, match="decision is 'dize'; allowed are half, dice"):
        Predictor(model, device="cpu", decision="dize")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_samples is -1; allowed is 0 to 10000"):
        predict(np.ones((1, 20, 20)), model, num_samples=-1)
    with pytest.raises(ValueError, match="num_samples is 1000000000; allowed is 0 to 10000"):
        predict(np.ones((1, 20, 20)), model, num_samples=10**9)


def test_large_cases_are_done_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_run, "available_memory_gb", lambda: 0.0)
    model, images, out = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 2), tmp_path / "out"
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 2
    assert (out / "case1.png").is_file()


def test_what_cannot_be_had_of_a_model_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, images = make_model(tmp_path, 2, denoiser=False), make_pictures(tmp_path / "in", 1)
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["tiny"]["training"]["mirror_axes"] = []
    (model / "plans.json").write_text(json.dumps(plans))
    request = PredictRequest(images, tmp_path / "out", model, device="cpu")
    predict_folder(request)
    assert not caplog.records
    predict_folder(replace(request, num_samples=4, mirror=True))
    assert f"{model} was trained without a denoiser: no samples are drawn" in caplog.text
    assert f"training.mirror_axes in the plan of {model} is empty: mirroring changes nothing" in caplog.text


def test_a_plain_segmenter_has_no_samples(tmp_path: Path) -> None:
    model = make_model(tmp_path, 2, denoiser=False)
    out = tmp_path / "out"
    images = make_pictures(tmp_path / "in", 1)
    predict_folder(PredictRequest(images, out, model, device="cpu", save_samples=True, num_samples=4))
    assert not (out / "samples").exists()
    with open(out / "lesions.csv", newline="", encoding="utf-8") as stream:
        assert {row["confidence"] for row in csv.DictReader(stream)} <= {""}
