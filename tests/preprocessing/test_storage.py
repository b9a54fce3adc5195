"""Cases on disk: round trips, patch reads, and what a half-written case looks like."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.planning.plans import configuration_folder
from unisegdiff_pipeline.preprocessing import storage
from unisegdiff_pipeline.preprocessing.components import sample_components
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.provenance import CaseProvenance, FileState
from unisegdiff_pipeline.preprocessing.storage import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    CaseFile,
    PreprocessedFolder,
    block_and_chunk,
    damaged_files,
    open_array,
    reference_path,
    remove_case,
    remove_former_layout,
    stored_case_file,
    write_array,
    write_case,
)

SCHEME = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOURCE = CaseProvenance((FileState("a_0000.nii.gz", "00", 5, 6),), "settings")


def store(folder: Path, case_id: str = "a") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 10, 20, 30)).astype(np.float32)
    labels = (rng.random((3, 10, 20, 30)) > 0.9).astype(np.uint8)
    properties = CaseProperties(
        case_id,
        "g",
        Geometry(),
        (10, 20, 30),
        (0, 1, 2),
        ((0, 10), (0, 20), (0, 30)),
        (10, 20, 30),
        (10, 20, 30),
        (1.0, 1.0, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    content = CaseFile(SOURCE, "hash", properties)
    write_case(folder, image, labels, sample_components(labels, SCHEME, case_id), content, (8, 8, 8))
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


def test_the_json_of_a_case_is_parsed_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []

    def counted(kind: type, path: Path) -> Any:
        parsed.append(path)
        return read_dataclass(kind, path)

    folder = tmp_path / "3d_fullres"
    store(folder)
    monkeypatch.setattr(storage, "read_dataclass", counted)
    for _ in range(2):
        data = PreprocessedFolder(folder)
        data.require_undamaged(["a"])
        assert data.open("a").group == "g"
    path = folder / "cases" / "a.json"
    assert parsed == [path]
    path.write_text(path.read_text().replace('"g"', '"patient"'))
    assert data.open("a").group == "patient"
    assert parsed == [path, path]
    path.unlink()
    with pytest.raises(UsdError, match="'a' is not in"):
        data.open("a")


def test_a_case_without_its_json_is_not_there(tmp_path: Path) -> None:
    store(tmp_path, "a")
    store(tmp_path, "b")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "cases" / "b.json").unlink()
    assert PreprocessedFolder(tmp_path).case_ids == ("a",)
    with pytest.raises(UsdError, match=r"case 'b' is not in .*usd_preprocess"):
        PreprocessedFolder(tmp_path).open("b")


def test_stored_case_file_wants_all_files(tmp_path: Path) -> None:
    store(tmp_path)
    stored = stored_case_file(tmp_path, "a")
    assert stored is not None
    assert stored.source == SOURCE
    (tmp_path / "labels" / "a.b2nd").unlink()
    assert stored_case_file(tmp_path, "a") is None


@pytest.mark.parametrize(("plans_name", "flag"), [(None, ""), ("mine", " --plans mine")])
def test_missing_configuration_names_the_command(plans_name: str | None, flag: str, tmp_path: Path) -> None:
    dataset = tmp_path / "Dataset007_X"
    with pytest.raises(UsdError, match=f"run usd_preprocess -d Dataset007_X -c 3d_fullres{flag} first"):
        PreprocessedFolder(dataset / configuration_folder("3d_fullres", plans_name))


def test_damaged_array_names_the_file(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "images" / "a.b2nd").write_bytes(b"not an array")
    with pytest.raises(UsdError, match=r"a\.b2nd cannot be read.*usd_preprocess again"):
        PreprocessedFolder(tmp_path).open("a")


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def zeros_in_the_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


DAMAGES = (flip_a_byte, zeros_in_the_middle, lambda content: content[:-1], lambda content: b"")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["images/a.b2nd", "labels/a.b2nd", "components/a.npz"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    store(tmp_path, "a")
    store(tmp_path, "b")
    folder = PreprocessedFolder(tmp_path)
    folder.require_undamaged(["a", "b"])
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UsdError, match=r"usd_preprocess again") as caught:
        folder.require_undamaged(["a", "b"])
    assert str(tmp_path / name) in str(caught.value)
    folder.require_undamaged(["b"])


def test_a_block_that_cannot_be_decompressed_names_the_file(tmp_path: Path) -> None:
    store(tmp_path)
    path = tmp_path / "images" / "a.b2nd"
    path.write_bytes(zeros_in_the_middle(path.read_bytes()))
    with pytest.raises(UsdError, match=r"a\.b2nd.*usd_preprocess again"):
        PreprocessedFolder(tmp_path).open("a").load()


def test_damaged_components_name_the_file(tmp_path: Path) -> None:
    store(tmp_path)
    path = tmp_path / "components" / "a.npz"
    path.write_bytes(flip_a_byte(path.read_bytes()))
    with pytest.raises(UsdError, match=r"a\.npz cannot be read.*usd_preprocess again"):
        _ = PreprocessedFolder(tmp_path).open("a").components


def test_a_case_whose_record_holds_no_hashes_counts_as_damaged(tmp_path: Path) -> None:
    store(tmp_path)
    stored = stored_case_file(tmp_path, "a")
    assert stored is not None
    assert damaged_files(tmp_path, "a", stored) == []
    assert len(damaged_files(tmp_path, "a", CaseFile(stored.source, "", stored.properties))) == 3


NAMES = ("a", "a_labels", "a_components", "manifest", "images", "labels", "a.b2nd", "a.json", "cases")


def test_no_case_shares_a_file_with_another(tmp_path: Path) -> None:
    for case_id in NAMES:
        store(tmp_path, case_id)
    folder = PreprocessedFolder(tmp_path)
    assert folder.case_ids == tuple(sorted(NAMES))
    folder.require_undamaged(NAMES)
    remove_case(tmp_path, "a")
    assert set(folder.__class__(tmp_path).case_ids) == set(NAMES) - {"a"}
    folder.require_undamaged(NAMES[1:])


def test_files_of_the_former_layout_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.b2nd", "a_labels.b2nd", "a_components.npz", "a.json", "manifest.json", "mine.txt"):
        (tmp_path / name).write_bytes(b"")
    remove_former_layout(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "mine.txt"]


def test_what_a_file_would_evaluate_is_refused(tmp_path: Path) -> None:
    import blosc2

    a = blosc2.asarray(np.arange(9), urlpath=str(tmp_path / "x.b2nd"), mode="w")
    (a + 1).save(urlpath=str(tmp_path / "lazy.b2nd"))
    with pytest.raises(UsdError, match=r"lazy\.b2nd cannot be read"):
        open_array(tmp_path / "lazy.b2nd")


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
