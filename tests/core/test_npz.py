"""Arrays in .npz files: what is read, and damage that is named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.npz import read_npz


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "a.npz", p=np.arange(5000.0), q=np.ones(3))
    return tmp_path / "a.npz"


def test_arrays_by_name(path: Path) -> None:
    assert read_npz(path, ("p",), "Do it again.")["p"][4] == 4
    assert list(read_npz(path, ("softmax", "q", "p"), "Do it again.", any_of=True)) == ["q"]
    with pytest.raises(UsdError, match=r"holds p, q; expected is an array named r\. Do it again\."):
        read_npz(path, ("r",), "Do it again.")


@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_a_flipped_byte_or_a_cut_is_named(path: Path, place: float) -> None:
    content = path.read_bytes()
    at = int(place * len(content))
    path.write_bytes(content[:at])
    with pytest.raises(UsdError, match=r"a\.npz cannot be read.*Do it again\."):
        read_npz(path, ("p",), "Do it again.")
    if 0.1 < place < 0.9:  # within the data of p
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        with pytest.raises(UsdError, match=r"a\.npz cannot be read.*Do it again\."):
            read_npz(path, ("p",), "Do it again.")


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"none\.npz cannot be read \(No such file or directory\)\. Do it again\."):
        read_npz(tmp_path / "none.npz", ("p",), "Do it again.")
    with pytest.raises(UsdError, match=r"cannot be read \(Is a directory\)\. Do it again\."):
        read_npz(tmp_path, ("p",), "Do it again.")


def test_the_size_is_known_before_anything_is_decompressed(path: Path) -> None:
    assert len(read_npz(path, ("p",), "", max_bytes=41_000)["p"]) == 5000
    with pytest.raises(UsdError, match=r"the array p takes 0\.0 MB, at most 0\.0 MB"):
        read_npz(path, ("p",), "", max_bytes=39_000)


def test_objects_and_claims_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", p=np.array([{}], object))
    with pytest.raises(UsdError, match="cannot be read"):
        read_npz(tmp_path / "objects.npz", ("p",), "")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "claim.npz", "w") as archive:
        archive.writestr("p.npy", header.getvalue())
    with pytest.raises(UsdError, match="cannot be read"):
        read_npz(tmp_path / "claim.npz", ("p",), "")
