"""Writing without leaving half a file behind, and recognising a file by its content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.errors import UsdError, chain_of

if TYPE_CHECKING:
    import numpy as np

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_WRITE_ERRORS = (*_FULL_DISK, errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success it is renamed to `target`, on failure it is removed.

    The temporary name keeps all suffixes of the target, because image writers choose the format by them.

    Raises:
        UsdError: the disk is full or the place is not writable.
    """
    target = Path(target)
    temporary = temporary_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        raise UsdError(
            f"{target} cannot be written ({error.strerror}); free space there or choose a folder that you may write to."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove those folders that are there and hold nothing, in this order: what is inside a folder comes before it."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def temporary_path(target: Path) -> Path:
    """The temporary name beside `target` that `remove_stale_temporaries` knows."""
    return target.with_name(f".tmp-{os.getpid()}-{_host()}-{target.name}")


def require_writable(folder: Path) -> None:
    """Find out before hours of work whether `folder` can be written, by a nameless file in it or in what is above it.

    Raises:
        UsdError: it cannot be made or written; nothing is left behind in any case.
    """
    folder = Path(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsdError(
            f"{folder} cannot be written ({existing}: {error.strerror}); change the permissions, or choose another "
            f"folder."
        ) from error


def remove_stale_temporaries(folder: Path, *, below: bool = False, of_anyone: bool = False) -> None:
    """Remove the temporary files that processes of this machine which were killed have left in `folder`.

    Files of running processes stay, and so do those of other machines that may be writing into a shared folder.

    Args:
        folder: may be missing.
        below: in all folders inside it as well.
        of_anyone: nobody else writes there, since the caller holds its lock: what other machines have left goes, too.
    """
    import psutil

    for path in (Path(folder).rglob if below else Path(folder).glob)(".tmp-*"):
        match = re.match(r"\.tmp-(\d+)-([0-9a-f]{8})-", path.name)
        if match is None:
            continue
        elsewhere = match[2] != _host()
        if of_anyone if elsewhere else not psutil.pid_exists(int(match[1])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk (or quota) is the error or one of its causes."""
    return any(
        (isinstance(link, OSError) and link.errno in _FULL_DISK) or "No space left on device" in str(link)
        for link in chain_of(error)
    )


def _host() -> str:
    """A short name of this machine that file names may hold."""
    return text_hash(platform.node())[:8]


def file_hash(path: Path) -> str:
    """Hash of a file's content (BLAKE2b, 128 bits, hexadecimal)."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_hash(text: str) -> str:
    """Hash of a text, in the same form as `file_hash`."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def array_hash(array: np.ndarray) -> str:
    """Hash of an array's shape, type and values, in the same form as `file_hash`."""
    import numpy as np

    digest = hashlib.blake2b(str((array.shape, array.dtype.str)).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
