"""Data sets of unusual kinds through every step: plan, train, predict, evaluate, export, import."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unisegdiff_pipeline.commands.evaluate import main as usd_evaluate
from unisegdiff_pipeline.commands.export import main as usd_export
from unisegdiff_pipeline.commands.import_ import main as usd_import
from unisegdiff_pipeline.commands.plan_and_preprocess import main as usd_plan_and_preprocess
from unisegdiff_pipeline.commands.predict import main as usd_predict
from unisegdiff_pipeline.commands.train import main as usd_train
from unisegdiff_pipeline.core.csv_tables import read_csv
from unisegdiff_pipeline.core.geometry import Geometry, Shape, geometry_differences
from unisegdiff_pipeline.io.images import read_header, read_labels, write_labels, write_map
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder

TRAINING, NEW = tuple("abcdef"), "new"
CPU = ["--device", "cpu"]
LESION = {"background": 0, "lesion": 1}
ONE_MM = Geometry()
TILT = (math.cos(0.3), -math.sin(0.3), 0.0, math.sin(0.3), math.cos(0.3), 0.0, 0.0, 0.0, 1.0)
Mask = Callable[[Shape, str], np.ndarray]


def box(shape: Shape, case: str) -> np.ndarray:
    """A box in the middle of the slices, at another place in each case."""
    mask = np.zeros(shape, np.uint8)
    first = 4 + (*TRAINING, NEW).index(case)
    mask[shape[0] // 4 : shape[0] - shape[0] // 4, first : first + 8, first : first + 8] = 1
    return mask


def nested(shape: Shape, case: str) -> np.ndarray:
    mask = box(shape, case)
    mask[:, 12:14, 12:14] *= 2
    return mask


def scribbled(shape: Shape, case: str) -> np.ndarray:
    """Every twentieth row is annotated, the others are to be ignored."""
    mask = box(shape, case)
    mask[:, np.arange(shape[1]) % 20 != 10] = 2
    return mask


def mostly_empty(shape: Shape, case: str) -> np.ndarray:
    return box(shape, case) * (case in ("a", NEW))


@dataclass(frozen=True)
class Kind:
    """A kind of data set: files, and the values that its masks may hold."""

    name: str
    ending: str = ".nii.gz"
    shape: Shape = (8, 24, 24)
    geometry: Geometry = ONE_MM
    channels: tuple[str, ...] = ("MR",)
    labels: dict[str, Any] | None = None
    more: dict[str, Any] | None = None
    mask: Mask = box
    file_values: tuple[int, ...] = (0, 1)
    remap: dict[str, Any] | None = None
    folds: tuple[dict[str, tuple[str, ...]], ...] = ()
    picture_mode: str = "L"

    @property
    def configuration(self) -> str:
        return "2d" if self.shape[0] == 1 else "3d_fullres"


PICTURE = {"ending": ".png", "shape": (1, 24, 32), "geometry": Geometry(is_2d=True)}
KINDS = [
    Kind("rgb_png", **PICTURE, channels=("R", "G", "B"), picture_mode="RGB"),
    Kind("rgba_png", **PICTURE, channels=("R", "G", "B"), picture_mode="RGBA"),
    Kind("tif_stack", ending=".tif", geometry=Geometry((3.0, 0.5, 0.5))),
    Kind("single_slices", shape=(1, 24, 24), geometry=Geometry((5.0, 1.0, 1.0))),
    Kind("four_voxels", shape=(4, 24, 24)),
    Kind("anisotropy_5", geometry=Geometry((5.0, 1.0, 1.0))),
    Kind("anisotropy_20", geometry=Geometry((10.0, 0.5, 0.5))),
    Kind("oblique", geometry=Geometry((2.0, 1.0, 1.0), (10.0, -20.0, 5.0), TILT)),
    Kind(
        "nested_regions",
        labels={"background": 0, "whole": [1, 2], "core": 2},
        more={"regions_class_order": [1, 2]},
        mask=nested,
        file_values=(0, 1, 2),
    ),
    Kind("scribbles", shape=(8, 40, 24), labels=LESION | {"ignore": 2}, mask=scribbled),
    Kind(
        "folds_without_lesion",
        mask=mostly_empty,
        folds=(
            {"train": ("a", "b", "c", "d"), "val": ("e", "f")},
            {"train": ("b", "c", "d", "e", "f"), "val": ("a",)},
        ),
    ),
    Kind("labels_0_255", **PICTURE, more={"label_map": {"255": "lesion"}}, file_values=(0, 255)),
    Kind("label_7_alone", file_values=(0, 7), remap={"7": 1}),
]


def image_file(folder: Path, kind: Kind, case: str) -> Path:
    return folder / f"images{'Ts' if case == NEW else 'Tr'}" / f"{case}_0000{kind.ending}"


def make_dataset(root: Path, kind: Kind) -> Path:
    """Six training cases and a new one of a bright box in noise."""
    from PIL import Image

    folder, rng = root / "Dataset060_Unusual", np.random.default_rng(0)
    for case in (*TRAINING, NEW):
        mask, path = kind.mask(kind.shape, case), image_file(folder, kind, case)
        image = rng.normal(80, 10, kind.shape) + 80 * (box(kind.shape, case) > 0)
        if kind.ending == ".png":
            colours = np.stack([image[0], image[0] + 20, 200 - image[0]], axis=-1).clip(0, 255).astype(np.uint8)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).convert(kind.picture_mode).save(path)
        else:
            write_map(path, image, kind.geometry)
        values = mask if len(kind.file_values) > 2 else np.where(mask == 1, kind.file_values[1], mask)
        labels = folder / f"labels{path.parent.name[-2:]}" / f"{case}{kind.ending}"
        write_labels(labels, values.astype(np.uint8), kind.geometry)
    description = {
        "channel_names": {str(number): name for number, name in enumerate(kind.channels)},
        "labels": kind.labels or LESION,
        "numTraining": len(TRAINING),
        "file_ending": kind.ending,
        **(kind.more or {}),
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    if kind.folds:
        (folder / "splits_final.json").write_text(json.dumps(kind.folds))
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_step(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"usd_{name}", str(tmp_path / name))
    raw = make_dataset(tmp_path / "raw", kind)
    planning = ["-d", "60", "-c", kind.configuration, *CPU, "--memory-gb", "1", "--workers", "0"]
    if kind.remap is not None:
        assert usd_plan_and_preprocess(planning) == 1, "values that dataset.json does not know"
        (tmp_path / "remap.json").write_text(json.dumps(kind.remap))
        planning += ["--remap", str(tmp_path / "remap.json")]
    assert usd_plan_and_preprocess(planning) == 0
    stored = PreprocessedFolder(tmp_path / "preprocessed" / raw.name / kind.configuration)
    for case in TRAINING:  # nothing is lost on the way: value by value as many voxels as in the file
        file = read_labels(raw / "labelsTr" / f"{case}{kind.ending}").array
        assert np.array_equal(np.sort(stored.open(case).reference()[0].ravel()), np.sort(file.ravel()))

    fold = "cv" if kind.folds else "0"
    length = ["--iterations", "2", "--batch-size", "2", "--workers", "0", *CPU]
    assert usd_train(["60", fold, "-c", kind.configuration, *length]) == 0
    (model,) = (tmp_path / "results" / raw.name).iterdir()

    masks = tmp_path / "masks"
    predicting = ["-i", str(raw / "imagesTs"), "--samples", "2", *CPU]
    assert usd_predict([*predicting, "-o", str(masks), "-d", "60"]) == 0
    path = masks / f"{NEW}{kind.ending}"
    mask, (shape, geometry) = read_labels(path), read_header(image_file(raw, kind, NEW))
    assert mask.array.shape[1:] == kind.shape
    assert geometry_differences(mask.geometry, geometry, shape[1:]) == []
    assert set(np.unique(mask.array)) <= set(kind.file_values)

    described = [] if kind.remap is None else ["--dataset-json", str(stored.folder.parent / "dataset.json")]
    assert usd_evaluate([str(raw / "labelsTs"), str(masks), "--no-report", *described]) == 0
    (_, header), *rows = read_csv(masks / "evaluation" / "metrics.csv")
    assert {row[header.index("case")] for _, row in rows} == {NEW}
    assert len(rows) == sum(name not in ("background", "ignore") for name in kind.labels or LESION)

    archive, elsewhere = tmp_path / "model.zip", tmp_path / "elsewhere"
    assert usd_export([str(model), "-o", str(archive)]) == 0
    assert usd_import([str(archive), "--results", str(elsewhere)]) == 0
    imported = elsewhere / raw.name / model.name
    assert usd_predict([*predicting, "-o", str(tmp_path / "again"), "-m", str(imported)]) == 0
    assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_kinds_are_what_they_are_called(tmp_path: Path) -> None:
    """19 of 20 rows without annotation; both folds without a lesion, one in validation and one in training."""
    assert (scribbled((8, 40, 24), "a") == 2).mean() == 0.95
    (kind,) = (kind for kind in KINDS if kind.folds)
    holds = {case: bool(mostly_empty(kind.shape, case).any()) for case in TRAINING}
    assert [any(holds[case] for case in fold["val"]) for fold in kind.folds] == [False, True]
    assert [any(holds[case] for case in fold["train"]) for fold in kind.folds] == [True, False]
    assert read_header(image_file(make_dataset(tmp_path, KINDS[1]), KINDS[1], "a"))[0][0] == 3
