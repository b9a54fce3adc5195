"""Cases on disk: round trips, patch reads, and what a half-written case looks like."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.geometry import Geometry
from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.components import find_components
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.sources import CaseSource, FileState
from unisegdiff_pipeline.preprocessing.storage import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    CaseFile,
    PreprocessedFolder,
    block_and_chunk,
    reference_path,
    stored_case_file,
    write_array,
    write_case,
)

SCHEME = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOURCE = CaseSource((FileState("a_0000.nii.gz", "00", 5, 6),), "settings")


def store(folder: Path, case_id: str = "a") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 10, 20, 30)).astype(np.float32)
    labels = (rng.random((3, 10, 20, 30)) > 0.9).astype(np.uint8)
    properties = CaseProperties(
        case_id, "g", Geometry(), (10, 20, 30), (0, 1, 2), ((0, 10), (0, 20), (0, 30)), (10, 20, 30), (10, 20, 30),
        (1.0, 1.0, 1.0),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    content = CaseFile(SOURCE, "hash", properties)
    write_case(folder, image, labels, find_components(labels, SCHEME, case_id), content, (8, 8, 8))
    return image, labels


def test_round_trip_and_patch_read(tmp_path: Path) -> None:
    folder = tmp_path / "3d_fullres"
    image, labels = store(folder)
    write_array(reference_path(tmp_path, "a"), labels[:, :, :5], (4, 4, 4))
    case = PreprocessedFolder(folder).open("a")
    assert case.num_rows == 3
    np.testing.assert_array_equal(case.image[:, 2:5, 3:9, 25:30], image[:, 2:5, 3:9, 25:30])
    np.testing.assert_array_equal(case.labels[1, 2:5], labels[1, 2:5])
    np.testing.assert_array_equal(case.reference(), labels[:, :, :5])
    assert case.properties.group == "g"
    assert len(case.components) > 10
    loaded = case.load(in_memory=True)
    assert isinstance(loaded.image, np.ndarray)
    np.testing.assert_array_equal(loaded.image, image)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert case.num_bytes == image.nbytes + labels.nbytes
    assert case.load(in_memory=False) is case
    assert list(tmp_path.rglob(".tmp-*")) == []


def test_a_case_without_its_json_is_not_there(tmp_path: Path) -> None:
    store(tmp_path, "a")
    store(tmp_path, "b")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "b.json").unlink()
    assert PreprocessedFolder(tmp_path).case_ids == ("a",)
    with pytest.raises(UsdError, match=r"case 'b' is not in .*usd_preprocess"):
        PreprocessedFolder(tmp_path).open("b")


def test_stored_case_file_wants_all_files(tmp_path: Path) -> None:
    store(tmp_path)
    stored = stored_case_file(tmp_path, "a")
    assert stored is not None
    assert stored.source == SOURCE
    (tmp_path / "a_labels.b2nd").unlink()
    assert stored_case_file(tmp_path, "a") is None


def test_missing_configuration_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match="usd_preprocess with -c 2d"):
        PreprocessedFolder(tmp_path / "2d")


def test_damaged_array_names_the_file(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "a.b2nd").write_bytes(b"not an array")
    with pytest.raises(UsdError, match=r"a\.b2nd cannot be read"):
        PreprocessedFolder(tmp_path).open("a")


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 36, 50, 35), (40, 56, 40)),
        ((1, 155, 240, 240), (96, 96, 96)),
        ((4, 300, 512, 512), (512, 512)),
        ((3, 1, 700, 900), (128, 160)),
        ((1, 1, 1, 1), (64, 64, 64)),
    ],
)
def test_blocks_and_chunks(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    block, chunk = block_and_chunk(shape, patch, 4)
    wanted = (1,) * (3 - len(patch)) + patch
    assert 4 * math.prod(block) <= MAX_BLOCK_BYTES
    assert 4 * math.prod(chunk) <= MAX_CHUNK_BYTES
    for b, c, n, p in zip(block[1:], chunk[1:], shape[1:], wanted, strict=True):
        assert 1 <= b <= c <= min(n, math.ceil(1.5 * p))


def test_small_image_is_one_chunk() -> None:
    assert block_and_chunk((1, 36, 50, 35), (40, 56, 40), 4)[1] == (1, 36, 50, 35)
