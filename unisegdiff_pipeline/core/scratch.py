"""Arrays of one case, in memory while they fit, else in temporary files that are mapped into memory.

What is mapped counts as memory of the process only while it is touched: code that goes through an array slab by slab
calls `release` on the way, and the slabs before it are on disk only.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from types import TracebackType

import numpy as np
from numpy.typing import DTypeLike

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import temporary_path

SMALL_BYTES = 1 << 20  # not worth a file
CASE_BYTES = 5e8  # that the arrays of a case may take in memory while a data set is read: a CT of a whole body has 1e9
ROWS_BETWEEN = 32  # gone through between two releases


class Scratch:
    """Makes arrays of zeros or of anything.

    Args:
        folder: for temporary files, on a disk with room; None keeps every array in memory.
        memory_bytes: that all arrays in memory may take together.
        cancelled: once it is set, `release` raises CancelledError, so that work on a thread ends at its next slab.
    """

    def __init__(
        self, folder: Path | None = None, memory_bytes: float = math.inf, cancelled: Event | None = None
    ) -> None:
        self._cancelled = cancelled
        self._folder = folder
        self._free_bytes = memory_bytes
        self._mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._paths: list[Path] = []

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> np.ndarray:
        """An array whose values are not set; given back to the budget when nobody holds it any more.

        Raises:
            UsdError: the disk of the folder is full.
        """
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if self._folder is None or size <= SMALL_BYTES:
            return np.empty(tuple(shape), dtype)
        if size <= self._free_bytes:
            array = np.empty(tuple(shape), dtype)
            self._free_bytes -= size
            weakref.finalize(array, self._give_back, size)
            return array
        return self.on_disk(shape, dtype)

    @property
    def has_folder(self) -> bool:
        """Whether arrays may live on a disk."""
        return self._folder is not None

    def free_disk_bytes(self) -> int:
        """What is free on the disk of the folder now; 0 without a folder."""
        if self._folder is None:
            return 0
        folder = self._folder.absolute()
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free

    def on_disk(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> np.ndarray:
        """An array in a temporary file, whatever room there is in memory; its values are not set.

        Raises:
            ValueError: there is no folder.
            UsdError: the disk of the folder is full.
        """
        if self._folder is None:
            raise ValueError("this scratch keeps all arrays in memory; give it a folder")
        self._paths.append(temporary_path(self._folder / f"scratch{len(self._paths)}-{id(self)}"))
        mapping = _mapped_file(self._paths[-1], math.prod(shape) * np.dtype(dtype).itemsize)
        self._mapped.add(mapping)
        return np.ndarray(tuple(shape), dtype, buffer=mapping)

    def zeros(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> np.ndarray:
        """An array of zeros."""
        array = self.empty(shape, dtype)
        if array.base is None:  # in memory; a new file holds zeros already
            array[...] = 0
        return array

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """The array (C, Z, Y, X) itself where it is contiguous, else a copy that is."""
        return array if array.flags.c_contiguous else self.copy(array, array.dtype)

    def copy(self, array: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """A contiguous copy of an array (C, Z, Y, X)."""
        return self.joined([array], dtype)

    def joined(self, arrays: Sequence[np.ndarray], dtype: DTypeLike = np.float32) -> np.ndarray:
        """A contiguous copy of the channels of all arrays (C, Z, Y, X) of one grid, in their order."""
        channels = [channel for array in arrays for channel in array]
        copy = self.empty((len(channels), *arrays[0].shape[1:]), dtype)
        for to, of in zip(copy, channels, strict=True):
            for row in self.rows(len(of)):
                to[row] = of[row]
        self.release()
        return copy

    def rows(self, count: int) -> Iterator[int]:
        """Whole numbers below `count`; what is done with rows of mapped arrays on the way leaves memory again."""
        for row in range(count):
            yield row
            if row % ROWS_BETWEEN == 0:
                self.release()

    def release(self) -> None:
        """Keep nothing of mapped arrays in memory; their values stay. Where the system cannot, nothing happens.

        Raises:
            CancelledError: the work was cancelled.
        """
        if self._cancelled is not None and self._cancelled.is_set():
            raise CancelledError
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapping in list(self._mapped):
                mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Remove files that the system did not let go before."""
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _give_back(self, size: int) -> None:
        self._free_bytes += size


def _mapped_file(path: Path, size: int) -> mmap.mmap:
    """A new file of this size in memory; without a name where the system allows, so that not even a kill leaves it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w+b") as stream:
            # All of it now: a mapped file that outgrows its disk ends the process when it is written to.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                stream.truncate(size)
            return mmap.mmap(stream.fileno(), size)
    except OSError as error:
        raise UsdError(
            f"{path.parent} has no room for {size / 1e9:.1f} GB of temporary arrays ({error.strerror}); free space "
            f"there, or allow more memory (--max-memory, max_memory_gb)."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # in use, on systems that do not allow that; `close` tries again
            path.unlink(missing_ok=True)
