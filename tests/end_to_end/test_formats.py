"""The whole way on data that the phantoms are not: JPEG and TIFF, regions, an ignore label, several channels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.core.geometry import Geometry, geometry_differences
from unisegdiff_pipeline.io.images import read_header, read_labels, write_labels, write_map

REGIONS = {"background": 0, "whole": [1, 2], "core": 2}
LESION = {"background": 0, "lesion": 1}


def make_dataset(
    root: Path, ending: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], labels: dict
) -> Path:
    """Five training cases and one new one of a bright box in noise; JPEG images are written as such."""
    from PIL import Image

    folder = root / "Dataset050_Made"
    rng = np.random.default_rng(0)
    channels = 2 if labels is REGIONS else 1
    geometry = Geometry(spacing_mm, (1.0, 2.0, 3.0) if ending == ".nrrd" else (0.0, 0.0, 0.0), is_2d=shape[0] == 1)
    for case in ("a", "b", "c", "d", "e", "new"):
        part = "Ts" if case == "new" else "Tr"
        mask = np.zeros(shape, np.uint8)
        y, x = rng.integers(4, 12, 2)
        mask[:, y : y + 10, x : x + 10] = 1
        mask[:, y + 2 : y + 6, x + 2 : x + 6] = max(1, channels)
        mask[:, :2] = 2 if "ignore" in labels else 0
        for channel in range(channels):
            image = rng.normal(80, 10, shape) + 60 * (mask > channel)
            path = folder / f"images{part}" / f"{case}_{channel:04d}{ending}"
            if ending == ".jpg":
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].astype(np.uint8)).save(path)
            else:
                write_map(path, image, geometry)
        write_labels(folder / f"labels{part}" / f"{case}{'.png' if ending == '.jpg' else ending}", mask, geometry)
    description = {
        "channel_names": {str(c): f"channel {c}" for c in range(channels)},
        "labels": labels,
        "numTraining": 5,
        "file_ending": ending,
    }
    if labels is REGIONS:
        description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize(
    ("ending", "shape", "spacing_mm", "labels"),
    [
        (".jpg", (1, 32, 40), (1.0, 1.0, 1.0), LESION),
        (".tif", (8, 24, 32), (2.0, 1.0, 1.0), REGIONS),
        (".nrrd", (1, 32, 40), (1.0, 0.5, 0.7), LESION | {"ignore": 2}),
    ],
    ids=["jpeg", "tiff-3d-regions", "nrrd-2d-ignore"],
)
def test_from_raw_data_to_masks(
    ending: str,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    labels: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    raw = make_dataset(tmp_path / "raw", ending, shape, spacing_mm, labels)
    budget = ["--device", "cpu", "--memory-gb", "4", "--workers", "0"]
    assert usd_plan_and_preprocess(["-d", "50", *budget]) == 0
    assert usd_train(["50", "0", "--iterations", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]) == 0
    (model,) = (tmp_path / "results" / raw.name).iterdir()
    assert json.loads((model / "plans.json").read_text())["spacing_known"] is (ending != ".jpg")
    label_ending = ".png" if ending == ".jpg" else ending
    (case,) = json.loads((model / "fold_0" / "request.json").read_text())["validation_cases"]
    assert (model / "fold_0" / "validation" / f"{case}{label_ending}").is_file()

    image, masks = raw / "imagesTs" / f"new_0000{ending}", tmp_path / "masks"
    arguments = ["-i", str(raw / "imagesTs"), "-o", str(masks), "-d", "50", "--samples", "2", "--device", "cpu"]
    assert usd_predict(arguments) == 0
    mask = read_labels(masks / f"new{label_ending}")
    assert mask.array.shape[1:] == shape
    assert geometry_differences(mask.geometry, read_header(image)[1], shape) == []
    assert set(np.unique(mask.array)) <= {0, 1, 2 if labels is REGIONS else 1}
    on_top = {path.name for path in masks.iterdir() if path.is_file() and not path.name.startswith(".")}
    sidecar = {"new.json"} if ending == ".tif" else set()  # the spacing of a TIFF
    assert on_top == {f"new{label_ending}", "lesions.csv", "volumes.csv", "cases.csv", "manifest.json", *sidecar}
