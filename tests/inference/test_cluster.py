"""A folder predicted, and scored, by the workers of a Dask cluster."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.inference.test_folder_run import bytes_of
from tests.inference.test_predictor import make_model, make_pictures
from unisegdiff_pipeline.core import parallel
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.inference import folder_run
from unisegdiff_pipeline.inference.dicom_input import InputImages
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.inference.model_folder import open_model_folder
from unisegdiff_pipeline.inference.request import PredictRequest

# What each worker loads: fp32 as in the other tests, a note of each model opened, and death at a case, once.
PRELOADED = """
import os, signal
from pathlib import Path
from unisegdiff_pipeline.inference import folder_run
from unisegdiff_pipeline.networks import precision

folder = Path({folder!r})
precision.bf16_in_hardware = lambda device_type: False
if folder_run._open_run.__name__ != "note":  # loaded twice, by the nanny's and the worker's rules
    opened, computed = folder_run._open_run, folder_run._FolderRun._compute

def note(*arguments):
    with open(folder / "opened", "a") as stream:
        stream.write(f"{{os.getpid()}}\\n")
    return opened(*arguments)

def die_once(self, prepared):
    if prepared.case.case_id == "case1" and not (folder / "died").exists():
        (folder / "died").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return computed(self, prepared)

if folder_run._open_run.__name__ != "note":
    folder_run._open_run, folder_run._FolderRun._compute = note, die_once
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of this process in place of a cluster."""
    folder_run._KEPT.clear()
    monkeypatch.setattr(parallel, "_dask_executor", lambda address: ThreadPoolExecutor(2))


def test_workers_predict_what_one_process_does_and_load_the_model_once(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3)
    predict_folder(PredictRequest(images, tmp_path / "one", model, device="cpu", save_samples=True))
    opened = []
    original = folder_run._open_run
    monkeypatch.setattr(folder_run, "_open_run", lambda *given: opened.append(1) or original(*given))
    request = PredictRequest(
        images, tmp_path / "many", model, ["0"], device="cpu", save_samples=True, scheduler="tcp://host:8786"
    )
    assert predict_folder(request) == 3
    assert len(opened) == 2  # by the command, and by the worker
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")
    assert predict_folder(request) == 0


def test_workers_take_a_lesion_filter(tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of best.json is part of the request."""
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 2)
    nothing_stays = LesionFilter(rules={"lesion": LesionRule(min_size=1e6)}, unit="pixels2")
    opened = []
    original = folder_run._open_run
    monkeypatch.setattr(folder_run, "_open_run", lambda *given: opened.append(1) or original(*given))
    for name, lesion_filter, loaded in (("none", nothing_stays, 2), ("all", False, 4)):
        request = PredictRequest(
            images,
            tmp_path / name,
            model,
            device="cpu",
            lesion_filter=lesion_filter,
            scheduler="tcp://host:8786",
        )
        assert predict_folder(request) == 2
        assert len(opened) == loaded  # by the command, and once by the worker
    kept = [(tmp_path / name / "lesions.csv").read_text().count("\n") for name in ("none", "all")]
    assert kept[0] == 1 < kept[1]


def test_a_case_that_fails_on_a_worker_is_named_and_the_others_are_done(tmp_path: Path, here: None) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 3)
    (images / "case1_0000.png").write_bytes((images / "case1_0000.png").read_bytes()[:60])
    request = PredictRequest(images, tmp_path / "out", model, device="cpu", scheduler="tcp://host:8786")
    with pytest.raises(UsdError, match=r"1 case could not be predicted, the others are done\.\ncase1: "):
        predict_folder(request)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"case0.png", "case2.png"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["failed"]) == ["case1"]
    assert not list((tmp_path / "out").glob(".begun-*"))


def test_a_worker_with_another_model_is_refused(tmp_path: Path, here: None) -> None:
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1)
    asked = PredictRequest((), tmp_path / "out", model, device="cpu")
    with pytest.raises(UsdError, match=r"finds another model in .* same files at the same paths"):
        folder_run._run_of_worker(asked, "of another model")
    assert images.is_dir()


def test_images_that_workers_cannot_see_are_refused(tmp_path: Path, here: None) -> None:
    folder, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 1)
    made = InputImages(images, {images / "case0_0000.png": tmp_path / "series"})
    request = PredictRequest(tmp_path / "dicom", tmp_path / "out", folder, device="cpu", scheduler="tcp://host:8786")
    with pytest.raises(UsdError, match=r"the DICOM files in .*dicom would become images on this machine"):
        folder_run._predict_folder(request, open_model_folder(folder), made)
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_killed_worker_loses_no_case_and_its_case_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    distributed = pytest.importorskip("distributed")
    model, images = make_model(tmp_path, 2), make_pictures(tmp_path / "in", 4)
    predict_folder(PredictRequest(images, tmp_path / "one", model, device="cpu"))
    (tmp_path / "preloaded.py").write_text(PRELOADED.format(folder=str(tmp_path)))
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, preload=[str(tmp_path / "preloaded.py")]
        ) as cluster,
        caplog.at_level("INFO", "unisegdiff_pipeline"),
    ):
        request = PredictRequest(images, tmp_path / "many", model, device="cpu", scheduler=cluster.scheduler_address)
        assert predict_folder(request) == 4
        masks = (tmp_path / "one", tmp_path / "many")
        meaning = Meaning(LabelScheme(("lesion",), ((1,),), "binary", (1,)))
        scores = [
            evaluate_folders(*masks, meaning, EvaluationOptions(resamples=0, scheduler=scheduler)).summary.mean_dice
            for scheduler in (None, cluster.scheduler_address)
        ]
    assert (tmp_path / "died").is_file()
    assert "a worker died, and another one predicted its case anew: case1" in caplog.text
    assert bytes_of(tmp_path / "many") == bytes_of(tmp_path / "one")
    opened = Counter((tmp_path / "opened").read_text().split())
    assert set(opened.values()) == {1}
    assert scores[0] == pytest.approx(scores[1], nan_ok=True)
    assert not list((tmp_path / "many").glob(".begun-*"))
