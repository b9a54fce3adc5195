"""The service of the examples: several requests at once, one model, and files of strangers."""

from __future__ import annotations

import io
import runpy
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unisegdiff_pipeline as usd
from tests.inference.test_predictor import GEOMETRY_3D, make_model
from unisegdiff_pipeline.io.images import read_labels, write_map

EXAMPLE = Path(__file__).resolve().parents[1] / "documentation/examples/http_service.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> usd.Predictor:
    return usd.Predictor(make_model(tmp_path_factory.mktemp("model"), 3), device="cpu")


@pytest.fixture(scope="module")
def service(model: usd.Predictor) -> dict[str, Any]:
    for name in ("fastapi", "httpx", "multipart", "uvicorn"):
        pytest.importorskip(name, reason="the extra serve is not installed")
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def client(service: dict[str, Any], model: usd.Predictor) -> Any:
    from fastapi.testclient import TestClient

    return TestClient(service["make_app"](model))


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scans")
    paths = [folder / f"scan{i}.nii.gz" for i in range(3)]
    for i, path in enumerate(paths):
        write_map(path, np.random.default_rng(i).normal(size=(9, 18, 14)).astype(np.float32), GEOMETRY_3D)
    return paths


def post(client: Any, *files: tuple[str, bytes], **query: int) -> Any:
    return client.post("/predict", files=[("image", file) for file in files], params=query)


def test_requests_at_once_get_the_files_of_usd_predict(
    client: Any, model: usd.Predictor, scans: list[Path], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda path: post(client, (path.name, path.read_bytes()), samples=2), scans))
    for path, answer in zip(scans, answers, strict=True):
        assert answer.status_code == 200, answer.text
        case = path.name.removesuffix(".nii.gz")
        assert f'filename="{case}.zip"' in answer.headers["content-disposition"]
        expected = model.predict(path, num_samples=2).save(tmp_path / case)
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert set(archive.namelist()) == {
                f"{case}.nii.gz",
                f"uncertainty/{case}.nii.gz",
                "lesions.csv",
                "volumes.csv",
                "cases.csv",
                "manifest.json",
            }
            for name in (f"{case}.nii.gz", f"uncertainty/{case}.nii.gz", "lesions.csv"):
                assert archive.read(name) == (expected / name).read_bytes()
            archive.extract(f"{case}.nii.gz", tmp_path / "answer")
        assert read_labels(tmp_path / f"answer/{case}.nii.gz").array.any()


def test_no_more_predictions_at_once_than_allowed(
    service: dict[str, Any], client: Any, model: usd.Predictor, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, lock, both = 0, 0, threading.Lock(), threading.Barrier(service["AT_ONCE"], timeout=60)
    predict = model.predict

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait()  # as many as are allowed are here together
        try:
            return predict(*args, **kwargs)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(model, "predict", counted)
    files = [(path.name, path.read_bytes()) for path in (scans[0], scans[1], scans[2], scans[0])]
    with ThreadPoolExecutor(4) as threads:
        assert [answer.status_code for answer in threads.map(lambda file: post(client, file, samples=0), files)] == (
            [200] * 4
        )
    assert most == service["AT_ONCE"] == 2


def test_what_cannot_be_predicted_is_refused_in_words(client: Any, scans: list[Path]) -> None:
    content = scans[0].read_bytes()
    for name, data, words in (
        ("scan.nii.gz", b"no image", "scan"),
        ("scan.png", content, ".nii.gz"),
        ("../scan.nii.gz", content, "cannot be the name"),
        ("..\\scan.nii.gz", content, "cannot be the name"),
        (".scan.nii.gz", content, "cannot be the name"),
    ):
        answer = post(client, (name, data))
        assert answer.status_code == 422, name
        assert words in answer.json()["detail"]
        assert "/tmp" not in answer.json()["detail"]
    assert post(client, ("a.nii.gz", content), ("a.nii.gz", content)).status_code == 422
    assert post(client, ("scan.nii.gz", content), samples=-1).status_code == 422
    assert client.post("/predict").status_code == 422


def test_more_than_allowed_is_refused(service: dict[str, Any], client: Any, scans: list[Path]) -> None:
    files = [(f"a_{i:04d}.nii.gz", b"x") for i in range(service["MAX_FILES"] + 1)]
    assert post(client, *files).status_code == 413


def test_it_says_what_it_serves(client: Any) -> None:
    assert client.get("/").json()["classes"] == ["edge", "core"]
