"""Whose a folder of predictions is, what is removed from it, and cases that fail in every way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import weakref
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.inference.readers import kill_the_reader_of
from tests.inference.test_predictor import GEOMETRY_3D, listing, make_model, make_pictures
from unisegdiff_pipeline.core import files, scratch
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference import folder_run, origin
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.inference.memory import MemoryBudget
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.output_folder import Owner, claim_folder, remove_case
from unisegdiff_pipeline.inference.prediction_folder import open_prediction_folder
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import InferenceSettings, write_settings
from unisegdiff_pipeline.io import images as nifti_writing
from unisegdiff_pipeline.io.images import read_image, write_map
from unisegdiff_pipeline.io.prediction_files import SUMMARY_FILES
from unisegdiff_pipeline.io.reading_process import ReadingProcess
from unisegdiff_pipeline.preprocessing import resample, restore

ALL = {"save_samples": True, "save_probabilities": True}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Model, two pictures, output folder."""
    return make_model(tmp_path, 2, folds=("0", "1")), make_pictures(tmp_path / "in", 2), tmp_path / "out"


def bytes_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in listing(out) - {"manifest.json"}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed 0 there, 1 asked for"),
        ({"num_samples": 1}, "num_samples 2 there, 1 asked for"),
        ({"folds": ["0"]}, "folds"),
        ({"mirror": True}, "mirror_axes"),
        ({"decision": "dice"}, 'decision "half" there, "dice" asked for'),
    ],
)
def test_another_prediction_is_refused_by_its_difference_and_touches_nothing(folders, change, named) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))
    before = bytes_of(out)
    with pytest.raises(UsdError, match=f"{named}.*--overwrite"):
        predict_folder(PredictRequest(images, out, model, device="cpu", **ALL, **change))
    assert bytes_of(out) == before


def test_masks_without_a_filter_are_not_written_among_filtered_ones(folders) -> None:
    model, images, out = folders
    request = PredictRequest(images, out, model, device="cpu")
    few = LesionFilter(rules={"lesion": LesionRule(min_size=3)}, unit="pixels2")
    predict_folder(replace(request, lesion_filter=few))
    with pytest.raises(UsdError, match=r"made otherwise \(lesion_filter"):
        predict_folder(replace(request, lesion_filter=False))


def test_another_model_is_refused_and_overwriting_removes_all_of_it(folders, tmp_path: Path) -> None:
    """Samples and probabilities of the first, and its cases that are not predicted again, would be scored as one."""
    first, images, out = folders
    second = make_model(tmp_path / "second", 2, folds=("1",))
    predict_folder(PredictRequest(images, out, first, folds=["0"], device="cpu", **ALL))
    (images / "case1_0000.png").unlink()
    with pytest.raises(UsdError, match=r"made otherwise by .*first|made otherwise by .*StagedDiffusionTrainer__tiny"):
        predict_folder(PredictRequest(images, out, second, device="cpu"))
    assert predict_folder(PredictRequest(images, out, second, device="cpu", overwrite=True)) == 1
    assert listing(out) == {
        "case0.png",
        "uncertainty/case0.png",
        "lesions.csv",
        "volumes.csv",
        "cases.csv",
        "manifest.json",
    }
    alone = tmp_path / "alone"
    predict_folder(PredictRequest(images, alone, second, device="cpu"))
    assert bytes_of(out) == bytes_of(alone)


def test_a_filter_by_samples_says_that_it_is_void_without_them(folders, caplog: pytest.LogCaptureFixture) -> None:
    model, images, out = folders
    by_samples = LesionFilter(rules={"lesion": LesionRule(min_confidence=0.5)})
    request = PredictRequest(images, out, model, device="cpu", lesion_filter=by_samples)
    predict_folder(replace(request, num_samples=0))
    assert "there are no samples: that part of it removes nothing" in caplog.text
    caplog.clear()
    predict_folder(replace(request, num_samples=1, output=out.parent / "sampled"))
    assert "removes nothing" not in caplog.text


def test_tables_of_other_masks_go_with_them(folders) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert all((out / name).is_file() for name in SUMMARY_FILES)
    other = Owner("other", str(model), {"seed": 1})
    claim_folder(out, other, {"case0": ".png"}, ".png", overwrite=True)  # and killed before it wrote any
    assert listing(out) == set()


def test_a_model_that_was_moved_is_the_same(folders, tmp_path: Path) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    moved = tmp_path / "elsewhere" / model.name
    shutil.copytree(model, moved)
    assert predict_folder(PredictRequest(images, out, moved, device="cpu")) == 0


def test_what_is_asked_for_besides_is_added_and_what_is_there_serves(folders) -> None:
    """Samples and probabilities say how much is written, not what: no other prediction."""
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu"))
    masks = (out / "case0.png").read_bytes()
    assert predict_folder(PredictRequest(images, out, model, device="cpu", **ALL)) == 2
    assert (out / "case0.png").read_bytes() == masks
    assert predict_folder(PredictRequest(images, out, model, device="cpu")) == 0
    (out / "samples" / "case1_sample01.png").unlink()
    assert predict_folder(PredictRequest(images, out, model, device="cpu", **ALL)) == 1
    assert predict_folder(PredictRequest(images, out, model, device="cpu", **ALL, save_uncertainty_parts=True)) == 2
    assert predict_folder(PredictRequest(images, out, model, device="cpu", **ALL, save_uncertainty_parts=True)) == 0


def test_nothing_of_the_old_image_stays_when_the_new_one_fails(folders) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))
    (images / "case1_0000.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(UsdError, match="case1"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert not [name for name in listing(out) if "case1" in name]
    assert set(json.loads((out / "manifest.json").read_text())["cases"]) == {"case0"}


def test_parts_that_overwrite_keep_what_the_others_have_made(folders) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))
    for part in (0, 1):
        request = PredictRequest(images, out, model, device="cpu", seed=4, overwrite=True, num_parts=2, part_id=part)
        assert predict_folder(request) == 1
    assert {name for name in listing(out) if name.endswith(".png")} == {
        f"{folder}case{i}.png" for folder in ("", "uncertainty/") for i in (0, 1)
    }
    assert predict_folder(PredictRequest(images, out, model, device="cpu", seed=4)) == 0


def test_files_of_others_are_not_written_among(folders) -> None:
    model, images, out = folders
    out.mkdir()
    Image.fromarray(np.ones((20, 25), np.uint8)).save(out / "case0.png")
    Image.fromarray(np.ones((20, 25), np.uint8)).save(out / "patient.png")
    with pytest.raises(UsdError, match=r"2 files that no prediction.*case0\.png, patient\.png"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert predict_folder(PredictRequest(images, out, model, device="cpu", overwrite=True)) == 2
    assert (out / "patient.png").is_file()


def test_a_folder_says_what_its_values_mean_when_the_model_is_gone(folders) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, num_samples=0, device="cpu", save_probabilities=True))
    before = open_prediction_folder(out)
    shutil.rmtree(model)
    after = open_prediction_folder(out)
    assert (after.labels, after.spacing_known) == (before.labels, before.spacing_known)
    assert after.labels.names == ("lesion",)
    assert not after.spacing_known  # pictures


def test_a_folder_of_an_earlier_version_is_known_by_its_manifest(folders) -> None:
    model, images, out = folders
    predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))
    (out / ".prediction.json").unlink()
    with pytest.raises(UsdError, match="seed 0 there, 3 asked for"):
        predict_folder(PredictRequest(images, out, model, device="cpu", seed=3))
    assert predict_folder(PredictRequest(images, out, model, device="cpu", **ALL)) == 0
    (out / ".prediction.json").unlink()
    (out / "manifest.json").unlink()
    with pytest.raises(UsdError, match="does not say what it was made with"):
        predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))


def test_a_run_notices_that_another_took_its_folder(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = folders
    compute = Predictor.predict_preprocessed
    calls = []

    def with_another_run(self, image, properties, **options):
        result = compute(self, image, properties, **options)
        if not calls:
            calls.append(properties.case_id)
            for part in (0, 1):  # as the only part it would be refused
                request = PredictRequest(images, out, model, device="cpu", seed=9, overwrite=True)
                predict_folder(replace(request, num_parts=2, part_id=part))
        return result

    monkeypatch.setattr(Predictor, "predict_preprocessed", with_another_run)
    with pytest.raises(UsdError, match="taken over by another prediction"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    monkeypatch.undo()
    assert predict_folder(PredictRequest(images, out, model, device="cpu", seed=9)) == 0


def test_two_runs_do_not_predict_the_same_part_at_once(folders) -> None:
    model, images, out = folders
    with locked(out / ".lock-part-0-of-2", "x"):
        with pytest.raises(UsdError, match=rf"process {os.getpid()} on this machine .* working on part 0 of 2"):
            predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=0))
        assert predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=1)) == 1
    assert predict_folder(PredictRequest(images, out, model, device="cpu", num_parts=2, part_id=0)) == 1
    assert not list(out.glob(".lock*"))


def test_an_output_that_cannot_be_written_is_found_before_anything_is_computed(folders, monkeypatch) -> None:
    model, images, out = folders
    monkeypatch.setattr(Predictor, "__init__", lambda *_: pytest.fail("the model was loaded"))
    out.mkdir()
    (out / "samples").touch()
    with pytest.raises(UsdError, match=r"samples cannot be written"):
        predict_folder(PredictRequest(images, out, model, device="cpu", **ALL))
    (out / "samples").unlink()
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))  # whoever runs the tests may write everywhere

    def refuse(**_: object) -> None:
        raise read_only

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsdError, match=r"out cannot be written .*Read-only file system\)"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("shapes differ"), ZeroDivisionError()])
def test_any_error_of_one_case_is_named_and_the_others_finish(folders, monkeypatch, error: Exception) -> None:
    model, images, out = folders
    compute = Predictor.predict_preprocessed

    def all_but_one(self, image, properties, **options):
        if properties.case_id == "case0":
            raise error
        return compute(self, image, properties, **options)

    monkeypatch.setattr(Predictor, "predict_preprocessed", all_but_one)
    named = "memory ran out" if isinstance(error, MemoryError) else rf"{type(error).__name__}.*test_folder_run\.py:\d+"
    with pytest.raises(UsdError, match=f"(?s)1 case could not be predicted.*case0: {named}"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert (out / "case1.png").is_file()


def test_a_case_that_failed_takes_no_memory_while_the_next_ones_are_read(folders, monkeypatch) -> None:
    model, images, out = folders
    monkeypatch.setattr(folder_run, "available_memory_gb", lambda: 0.0)  # one case after the other
    preprocess = ModelInputs.prepare
    made: list[weakref.ref[np.ndarray]] = []
    held: list[int] = []

    def remembered(*arguments, **options):
        held.append(sum(array() is not None for array in made))
        prepared, properties = preprocess(*arguments, **options)
        made.append(weakref.ref(prepared))
        return prepared, properties

    def fails(self, image, properties, **options):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(ModelInputs, "prepare", remembered)
    monkeypatch.setattr(Predictor, "predict_preprocessed", fails)
    with pytest.raises(UsdError, match=r"2 cases could not be predicted"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert held == [0, 0]


def test_an_interruption_ends_the_slabs_of_the_next_case(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = folders
    preprocess = ModelInputs.prepare
    begun = threading.Event()
    ended: list[type[BaseException]] = []

    def endless(self, plan, volume, case, scratch):
        if case.case_id == "case0":
            return preprocess(self, plan, volume, case, scratch)
        begun.set()
        try:
            while True:
                scratch.release()
        except BaseException as error:
            ended.append(type(error))
            raise

    def interrupted(self, image, properties, **options):
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelInputs, "prepare", endless)
    monkeypatch.setattr(Predictor, "predict_preprocessed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert ended == [CancelledError]


def test_after_an_interruption_no_image_is_read_any_more(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = folders
    read, close, file_hash = ReadingProcess.read_image, ReadingProcess.close, origin.file_hash
    begun, ended = threading.Event(), threading.Event()
    asked_for: list[str] = []

    def remembered(self, paths, *rest, **options):
        asked_for.append(paths[0].name)
        return read(self, paths, *rest, **options)

    def closed(self):
        close(self)
        ended.set()

    def hashed(path: Path) -> str:
        if path.name.startswith("case1"):
            begun.set()
            assert ended.wait(60)
        return file_hash(path)

    def interrupted(self, image, properties, **options):
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(ReadingProcess, "read_image", remembered)
    monkeypatch.setattr(ReadingProcess, "close", closed)
    monkeypatch.setattr(origin, "file_hash", hashed)
    monkeypatch.setattr(Predictor, "predict_preprocessed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert asked_for == ["case0_0000.png"]


def test_an_image_that_kills_its_reader_costs_this_case_alone(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, out = folders
    kill_the_reader_of(monkeypatch, images / "case0_0000.png")
    with pytest.raises(UsdError, match=r"case0: .*case0_0000\.png.*ended by SIGKILL"):
        predict_folder(PredictRequest(images, out, model, device="cpu"))
    assert (out / "case1.png").is_file()


def test_the_process_reads_what_the_reader_reads_and_passes_its_errors_on(folders, tmp_path: Path) -> None:
    path = folders[1] / "case0_0000.png"
    with ReadingProcess() as images:
        found, expected = images.read_image([path]), read_image([path])
        assert np.array_equal(found.array, expected.array)
        assert found.geometry == expected.geometry
        with pytest.raises(UsdError, match=r"missing\.png does not exist"):
            images.read_image([tmp_path / "missing.png"])
        pid = images.pid
        assert np.array_equal(images.read_image([path]).array, expected.array)
        assert images.pid == pid
        filled = np.zeros(expected.array.shape, np.float32)
        images.read_image([path], lambda shape: filled.reshape(shape))
        assert np.array_equal(filled, expected.array)
    assert pid is not None
    assert images.pid is None
    assert not psutil.pid_exists(pid)  # nothing is left running


def test_half_an_answer_is_not_taken_for_the_next(folders) -> None:
    first, second = (folders[1] / f"case{i}_0000.png" for i in (0, 1))

    def no_room(shape: tuple[int, ...]) -> np.ndarray:
        raise MemoryError

    with ReadingProcess() as images:
        with pytest.raises(MemoryError):
            images.read_image([first], no_room)
        assert np.array_equal(images.read_image([second]).array, read_image([second]).array)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_memory_may_be_taken_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dims: int) -> None:
    """With next to none every array is a file, samples are drawn one at a time and nothing is cached."""
    model, images = make_model(tmp_path, dims, folds=("0", "1")), tmp_path / "in"
    hard = SamplerSettings(
        method="hard", start="stage_a", num_calls=1, lam_end=0.0, correlation_length_mm=3.0, draw=True
    )
    for fold in ("0", "1"):
        write_settings(model / f"fold_{fold}", InferenceSettings(lam_a=-3.0, lam_c=0.5, sampler=hard, decision="dice"))
    if dims == 2:
        make_pictures(images, 2)  # the process that reads ends between them
    else:
        values = np.random.default_rng(3).normal(size=(19, 18, 24)).astype(np.float32)
        values[:, :5] = 0  # something to crop
        write_map(images / "a_0000.nii.gz", values, GEOMETRY_3D)
    options = {"device": "cpu", "num_samples": 4, "save_uncertainty_parts": True, **ALL}
    predict_folder(PredictRequest(images, tmp_path / "roomy", model, **options))
    monkeypatch.setattr(scratch, "SMALL_BYTES", 0)
    monkeypatch.setattr(nifti_writing, "STREAMED_BYTES", 0)
    monkeypatch.setattr(resample, "LINEAR_SLAB_BYTES", 20_000)
    monkeypatch.setattr(restore, "LINEAR_SLAB_BYTES", 20_000)
    monkeypatch.setattr(MemoryBudget, "for_arrays", lambda self: 0)
    monkeypatch.setattr(MemoryBudget, "free_gb", lambda self: 1e-9)
    predict_folder(PredictRequest(images, tmp_path / "tight", model, max_memory_gb=100.0, **options))
    assert listing(tmp_path / "tight") == listing(tmp_path / "roomy")
    for name in listing(tmp_path / "roomy") - {"manifest.json"}:
        roomy, tight = tmp_path / "roomy" / name, tmp_path / "tight" / name
        if name.endswith(".npz"):
            assert np.array_equal(np.load(roomy)["probabilities"], np.load(tight)["probabilities"])
        elif name.endswith(".csv"):
            assert roomy.read_bytes() == tight.read_bytes()
        else:
            one, other = read_image([roomy]), read_image([tight])
            assert np.array_equal(one.array, other.array)
            assert one.geometry == other.geometry
    assert not list(tmp_path.rglob(".tmp-*"))


def test_what_writes_the_masks_is_loaded_before_memory_is_measured(folders, monkeypatch) -> None:
    """Imported while the first mask is written, it took 0.1 GB beyond what was allowed."""
    model, images, out = folders
    done: list[str] = []
    monkeypatch.setattr("unisegdiff_pipeline.inference.folder_run.load_writer", done.append)
    monkeypatch.setattr(MemoryBudget, "require_room", lambda self: done.append("measured"))
    predict_folder(PredictRequest(images, out, model, device="cpu", max_memory_gb=100.0, num_samples=1))
    assert done == [".png", "measured"]


def test_memory_that_cannot_be_is_refused(folders) -> None:
    model, images, out = folders
    for number in (0.0, -1.0, float("nan")):
        with pytest.raises(UsdError, match=r"--max-memory\) is .*above 0"):
            predict_folder(PredictRequest(images, out, model, device="cpu", max_memory_gb=number))
    refused = r"--max-memory\) is 0\.1, but the libraries and the model alone take .* GB; allowed is [\d.]+ GB or more"
    with pytest.raises(UsdError, match=refused):
        predict_folder(PredictRequest(images, out, model, device="cpu", max_memory_gb=0.1))


def test_a_case_is_removed_without_looking_at_those_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its samples go, with a gap that a removal that was killed left, and no folder is listed for it."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for name in ("a_sample03", "a_sample12", "a_sample100", "aa_sample00", "a_b_sample00"):
        (samples / f"{name}.png").touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", None)
        patched.setattr(os, "listdir", None)
        remove_case(tmp_path, "a", ".png")
    assert {path.name for path in samples.iterdir()} == {"aa_sample00.png", "a_b_sample00.png"}


@pytest.mark.parametrize(("is_cascade", "fits"), [(False, True), (True, False)])
def test_a_cascade_counts_the_images_that_it_makes(
    monkeypatch: pytest.MonkeyPatch, is_cascade: bool, fits: bool
) -> None:
    # In MiB: image 4, probabilities 2 x 4; in a cascade the other network's image 4, and 1 + 2 channels more, 3 x 4.
    monkeypatch.setattr(folder_run, "available_memory_gb", lambda: 200 / 1024)  # a tenth of it is 20 MiB
    image = np.empty((1, 64, 128, 128), np.float32)
    predictor = SimpleNamespace(labels=SimpleNamespace(num_channels=2, write_values=(1, 2)), folds=("0",))
    run = SimpleNamespace(predictor=predictor, budget=MemoryBudget(1e6))
    properties = SimpleNamespace(shape=image.shape[1:])
    prepared = SimpleNamespace(
        image=image, properties=properties, for_masks=(image, properties) if is_cascade else None
    )
    assert folder_run._FolderRun._overlap_fits(run, prepared) == fits  # type: ignore[arg-type]
