"""One program at a time on a folder: a lock file that names its holder, and that no crash leaves behind for ever.

On one machine the operating system's record locks decide: they end with the process, however it ends. Where the file
system has none, the process named in the lock file decides, by number and start time. Of another machine, whose
processes cannot be seen and whose record locks not every network file system shows, the age of the lock file decides:
the holder touches it every HEARTBEAT_S seconds, and it counts until EXPIRY_S seconds after the last touch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError

HEARTBEAT_S = 30.0
EXPIRY_S = 300.0
_BUSY = (errno.EACCES, errno.EAGAIN)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: name of the machine.
        pid: number of the process there.
        started: when that process started, in seconds since 1970 by the clock of that machine.
        since: when it took the lock, as people read it.
    """

    host: str
    pid: int
    started: float
    since: str


# By this process, or about to be: its own record locks would let it in again. Their files must not be read: closing one
# ends all record locks that the process has on it.
_held: dict[Path, Holder] = {}


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; it is removed at the end, and so are folders that were made for it and stayed empty.

    Args:
        path: the lock file.
        what: what must not be done twice at once, for the message: "fold 0 of .../StagedDiffusionTrainer__2d".

    Raises:
        UsdError: another process holds it; names the process and its machine.
    """
    path = Path(path).resolve()
    holder = _this_process()
    if (other := _held.setdefault(path, holder)) is not holder:  # one step: of two threads at once one is refused
        raise _busy(path, what, other)
    try:
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _acquire(path, what)
        except BaseException:
            _remove_empty(made)
            raise
        released = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, released), daemon=True)
        beat.start()
        try:
            yield
        finally:
            released.set()
            beat.join()
            path.unlink(missing_ok=True)
            os.close(descriptor)
            _remove_empty(made)
    finally:
        del _held[path]


def require_free(path: Path, what: str) -> None:
    """Raise a UsdError as `locked` does where a process holds the lock file now; another may take it at any time."""
    path = Path(path).resolve()
    if (holder := holder_of(path)) is not None:
        raise _busy(path, what, holder)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:  # the innermost first
        with contextlib.suppress(OSError):
            folder.rmdir()


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock file `path` now; None where nobody does, or where its holder has ended."""
    path = Path(path).resolve()
    if (own := _held.get(path)) is not None:  # one step, as another thread may be giving it back
        return own
    holder = _read(path)
    if holder is None or _has_ended(path, holder):
        return None
    return holder


def _acquire(path: Path, what: str) -> int:
    """Descriptor of the lock file, locked and with this process as its holder."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            supported = _lock(descriptor)
            # Between opening and locking the former holder may have removed the file.
            if not _is_same(descriptor, path):
                os.close(descriptor)
                continue
            former = _read(path, descriptor)
            local = former is not None and former.host == platform.node()
            # A record lock that was had tells that no process of this machine holds the file.
            if former is not None and not (supported and local) and not _has_ended(path, former):
                raise _busy(path, what, former)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(_this_process())).encode(), 0)
        except BlockingIOError:
            former = _read(path, descriptor)
            os.close(descriptor)
            raise _busy(path, what, former) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(descriptor: int) -> bool:
    """Take the record lock; False where there are none.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        # Not flock: its locks would live on in worker processes that were forked, and NFS may keep them on one machine.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            raise BlockingIOError(error.errno, error.strerror) from error
        return False
    return True


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path, descriptor: int | None = None) -> Holder | None:
    """The holder that a lock file names; None where it names none (yet).

    A file that this process has locked is read by its descriptor: closing another one would end the record lock.
    """
    try:
        content = path.read_bytes() if descriptor is None else os.pread(descriptor, 4096, 0)
        return Holder(**json.loads(content))
    except (OSError, ValueError, TypeError):
        return None


def _this_process() -> Holder:
    return Holder(platform.node(), os.getpid(), _start_time(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S"))


def _start_time(pid: int) -> float:
    """When a process of this machine started; -1 where there is no such process."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return -1.0


def _has_ended(path: Path, holder: Holder) -> bool:
    if holder.host == platform.node():
        return abs(_start_time(holder.pid) - holder.started) > 1  # a number is given to another process in time
    return _age_s(path) > EXPIRY_S


def _age_s(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system, which may be another than ours."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as fresh:
            return os.fstat(fresh.fileno()).st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _busy(path: Path, what: str, holder: Holder | None) -> UsdError:
    if holder is None:
        return UsdError(f"another program is working on {what}; wait until it has ended (it holds {path}).")
    where = f"this machine ({holder.host})" if holder.host == platform.node() else holder.host
    expires = f" Had it been killed, {path} would expire {EXPIRY_S / 60:g} minutes after that."
    return UsdError(
        f"process {holder.pid} on {where} has been working on {what} since {holder.since}; wait until it has ended, or "
        f"stop it, and run the command again.{'' if holder.host == platform.node() else expires}"
    )
