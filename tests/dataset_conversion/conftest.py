"""Small pictures and volumes that stand for published data, the command, and the check of what it wrote."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from dataset_conversion import convert
from dataset_conversion.finding import Request
from unisegdiff_pipeline.commands.convert import main
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.integrity import check_case, merge_checks
from unisegdiff_pipeline.io.raw_dataset import RawDataset, open_raw_dataset

Converted = Callable[..., RawDataset]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 8), colour: bool = True, **how: Any) -> np.ndarray:
    """Write a picture of noise (Y, X[, 3]) and return its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def mask(path: Path, value: int = 255, size: tuple[int, int] = (6, 8), rows: slice = slice(1, 3), **how: Any) -> None:
    """Write a grey picture that holds `value` in some rows, columns 2 to 4, and 0 elsewhere."""
    pixels = np.zeros(size, np.uint8)
    pixels[rows, 2:5] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def volume(path: Path, seed: int = 0, shape: tuple[int, ...] = (5, 6, 4)) -> None:
    """Write a NIfTI volume (X, Y, Z[, frames]) of noise with spacing 1 x 1 x 3 mm."""
    save(path, np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16))


def label_volume(path: Path, *values: int, shape: tuple[int, ...] = (5, 6, 4)) -> None:
    """Write a NIfTI label map that holds each of `values` in one voxel (i, 2, 1)."""
    labels = np.zeros(shape, np.uint8)
    for x, value in enumerate(values):
        labels[x, 2, 1] = value
    save(path, labels)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def labels_of(raw: RawDataset, case_id: str) -> np.ndarray:
    """Label map of a case as a converter wrote it, (Y, X) or (X, Y, Z) as the file has it."""
    (case,) = [case for case in raw.cases if case.case_id == case_id]
    assert case.label_path is not None
    if case.label_path.name.endswith(".nii.gz"):
        return np.asarray(nibabel.load(case.label_path).dataobj)
    return np.asarray(Image.open(case.label_path))


def refused(converter: str, source: Path, message: str, **options: Any) -> None:
    """The converter refuses the source with a message of that pattern, and leaves nothing behind."""
    raw = source.parent / "refused"
    raw.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # miniatures have fewer cases than the owners publish
        with pytest.raises(UsdError, match=message):
            convert(converter, Request((source,), **options), raw)
    assert list(raw.iterdir()) == []


def groups_of(raw: RawDataset) -> dict[str, str | None]:
    return {case.case_id: case.group for case in raw.cases}


@pytest.fixture
def converted(tmp_path: Path) -> Converted:
    """Run the command, which must succeed, and open the result after the integrity check found no problem."""

    def run(*arguments: str | Path) -> RawDataset:
        root = tmp_path / "raw"
        root.mkdir(exist_ok=True)
        before = set(root.iterdir())
        assert main([*map(str, arguments), "--raw", str(root)]) == 0
        (folder,) = set(root.iterdir()) - before
        raw = open_raw_dataset(folder)
        report = merge_checks(raw, [check_case(case, raw.description) for case in raw.cases])
        assert report.problems == ()
        assert json.loads((folder / "dataset.json").read_text())["numTraining"] == len(raw.cases)
        return raw

    return run
