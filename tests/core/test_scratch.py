"""Arrays in memory and in files that have no name."""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from unisegdiff_pipeline.core import scratch as module
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.scratch import Scratch

MEGABYTE = 1 << 20


def rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
def test_a_file_takes_memory_only_while_it_is_touched(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, 0)
    array = scratch.empty((4, 50 * MEGABYTE // 16), np.float32)
    before = rss()
    array[...] = 3
    assert rss() - before > 40 * MEGABYTE
    scratch.release()
    assert rss() - before < 5 * MEGABYTE
    assert array.min() == array.max() == 3
    assert not list(tmp_path.iterdir())  # nothing that a kill could leave


def test_the_budget_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[int] = []
    original = mmap.mmap

    def counted(descriptor: int, size: int) -> mmap.mmap:
        mapped.append(size)
        return original(descriptor, size)

    monkeypatch.setattr(mmap, "mmap", counted)
    scratch = Scratch(tmp_path, 5 * MEGABYTE)
    first = scratch.empty((4 * MEGABYTE,), np.uint8)
    scratch.zeros((3, MEGABYTE), np.uint8)
    assert mapped == [3 * MEGABYTE]
    view = first[:10]
    del first
    scratch.empty((3, MEGABYTE), np.uint8)  # the view still holds the first
    assert len(mapped) == 2
    del view
    scratch.empty((3, MEGABYTE), np.uint8)
    assert len(mapped) == 2


def test_copies_are_contiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_BYTES", 0)
    array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    turned = array.transpose(0, 3, 2, 1)[:, ::-1]
    for scratch in (Scratch(), Scratch(tmp_path, 0)):
        assert scratch.contiguous(array) is array
        copy = scratch.contiguous(turned)
        assert copy.flags.c_contiguous
        assert copy.dtype == np.int16
        assert np.array_equal(copy, turned)
        assert scratch.copy(turned).dtype == np.float32
        assert not scratch.zeros((3, 4)).any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files are not allocated ahead here")
def test_a_full_disk_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsdError, match=r"no room for 2\.1 GB of temporary arrays \(No space left.*--max-memory"):
        Scratch(tmp_path, 0).empty((2100, 1000, 1000), np.uint8)
    assert not list(tmp_path.iterdir())


def test_cancelled_work_ends_at_its_next_slab() -> None:
    cancelled = Event()
    scratch = Scratch(cancelled=cancelled)
    scratch.release()
    cancelled.set()
    with pytest.raises(CancelledError):
        scratch.copy(np.zeros((1, 2, 2, 2), np.float32))
