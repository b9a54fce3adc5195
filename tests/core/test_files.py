"""Atomic writing and hashes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import (
    array_hash,
    atomic_path,
    file_hash,
    is_full_disk,
    remove_stale_temporaries,
    require_writable,
    text_hash,
)


def test_success_renames_and_makes_the_folder(tmp_path):
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name.endswith("a.nii.gz")
        temporary.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, as_folder):
    target = tmp_path / "a.json"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            if as_folder:
                temporary.mkdir()
                (temporary / "part").write_text("new")
            else:
                temporary.write_text("new")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_folders_are_renamed_as_a_whole(tmp_path):
    with atomic_path(tmp_path / "set") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("x")
    assert (tmp_path / "set" / "a").read_text() == "x"


def test_a_full_disk_is_told_to_the_user(tmp_path):
    def fill(code: int) -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise OSError(code, "No space left on device")

    with pytest.raises(UsdError, match=r"a cannot be written \(No space left on device\); free space"):
        fill(errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        fill(errno.EIO)  # not for the user to fix
    assert list(tmp_path.iterdir()) == []


def test_only_temporaries_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with atomic_path(tmp_path / "a.png") as own:
        own.write_text("being written")
        stale = tmp_path / own.name.replace(str(os.getpid()), str(process.pid))
        stale.write_text("half")
        of_another_machine = tmp_path / f".tmp-{process.pid}-0123abcd-a.png"
        of_another_machine.write_text("half")
        (tmp_path / "mask.png").write_text("whole")
        remove_stale_temporaries(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {own.name, of_another_machine.name, "mask.png"}
    remove_stale_temporaries(tmp_path / "absent")


def test_temporaries_below_and_of_other_machines(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    elsewhere = inner / ".tmp-1-0123abcd-a.png"
    for path in (elsewhere, inner / ".tmp-notes", inner / "mask.png"):
        path.write_text("x")
    remove_stale_temporaries(tmp_path, of_anyone=True)
    remove_stale_temporaries(tmp_path, below=True)
    assert elsewhere.exists()
    remove_stale_temporaries(tmp_path, below=True, of_anyone=True)
    assert {p.name for p in inner.iterdir()} == {".tmp-notes", "mask.png"}


def test_a_full_disk_is_found_among_the_causes():
    error = UsdError("cannot be written")
    assert not is_full_disk(error)
    error.__cause__ = OSError(errno.EDQUOT, "quota")
    assert is_full_disk(error)


def test_hashes(tmp_path):
    (tmp_path / "a").write_text("content")
    assert file_hash(tmp_path / "a") == text_hash("content")
    assert text_hash("content") != text_hash("Content")
    assert len(text_hash("")) == 32


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_writable(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsdError, match=r"file/out cannot be written \(.*/file: Not a directory\); .* another folder"):
        require_writable(tmp_path / "file" / "out")

    def read_only(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(UsdError, match="Read-only file system"):
        require_writable(tmp_path)


def test_array_hash_sees_values_and_shape() -> None:
    image = np.arange(6, dtype=np.float32)
    hashes = {array_hash(image), array_hash(image.reshape(2, 3)), array_hash(image + 1), array_hash(image.astype(int))}
    assert len(hashes) == 4
    assert array_hash(image[::-1]) == array_hash(image[::-1].copy())
