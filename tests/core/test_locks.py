"""Locks: the second is refused with the first one's process and machine, and a crash leaves nothing for ever."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from unisegdiff_pipeline.core import locks
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.locks import EXPIRY_S, holder_of, locked, require_free

HOLD = """
import sys, time
from pathlib import Path
from unisegdiff_pipeline.core.locks import locked
with locked(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / ".lock"


def refused(path: Path, message: str) -> None:
    with pytest.raises(UsdError, match=message), locked(path, "fold 0"):
        pass


def test_a_lock_is_gone_afterwards_whatever_happened(path: Path) -> None:
    with locked(path, "fold 0"):
        assert holder_of(path) is not None
    assert not path.parent.exists()  # it was made for the lock
    path.parent.mkdir()
    with pytest.raises(RuntimeError, match="inside"), locked(path, "fold 0"):
        raise RuntimeError("inside")
    assert not path.exists()
    assert path.parent.exists()


def test_the_same_process_is_refused_too(path: Path) -> None:
    require_free(path, "fold 0")
    with locked(path, "fold 0"):
        with pytest.raises(UsdError, match="has been working on fold 0"):
            require_free(path, "fold 0")
        refused(path, rf"process {os.getpid()} on this machine .* has been working on fold 0")
        assert path.exists()


def test_asking_for_a_lock_of_this_process_leaves_it_locked_for_others(path: Path) -> None:
    with locked(path, "fold 0"):
        assert holder_of(path) is not None
        with pytest.raises(UsdError):
            require_free(path, "fold 0")
        refused(path, "has been working on fold 0")
        other = subprocess.run([sys.executable, "-c", HOLD, str(path)], capture_output=True, text=True, timeout=60)
        assert other.stdout == ""
        assert f"process {os.getpid()} on this machine" in other.stderr
        assert path.exists()


def test_the_same_process_is_refused_by_another_way_to_the_folder(path: Path) -> None:
    path.parent.mkdir()
    link = path.parent.with_name("link")
    link.symlink_to(path.parent)
    with locked(path, "fold 0"):
        for other in (link / path.name, path.parent / ".." / path.parent.name / path.name):
            refused(other, "has been working on fold 0")
            assert holder_of(other) is not None
        assert path.exists()


def test_of_two_threads_at_once_one_is_refused(path: Path) -> None:
    path.parent.mkdir()
    for _ in range(5):
        together, ended = threading.Barrier(2), threading.Barrier(2)

        def hold(_: int, together: threading.Barrier = together, ended: threading.Barrier = ended) -> bool:
            together.wait()
            try:
                with locked(path, "fold 0"):
                    ended.wait()
            except UsdError:
                ended.wait()
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(hold, range(2))) == [False, True]
        assert not path.exists()


def test_another_process_is_named_and_its_death_frees_the_lock(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused(path, rf"process {other.pid} on this machine \({platform.node()}\)")
        other.send_signal(signal.SIGKILL)
    assert path.exists()  # nobody could remove it
    assert holder_of(path) is None
    with locked(path, "fold 0"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def stale(path: Path, **changes: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": platform.node(), "pid": 1, "started": 5.0, "since": "then", **changes}))


@pytest.fixture
def no_record_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks on this file system")

    monkeypatch.setattr("fcntl.lockf", refuse)


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_the_process_that_is_named_decides(path: Path) -> None:
    stale(path, started=psutil.Process(1).create_time())
    refused(path, "process 1 on this machine")
    path.write_text(path.read_text().replace('"pid": 1', '"pid": 999999999'))
    with locked(path, "fold 0"):
        pass


@pytest.mark.usefixtures("no_record_locks")
def test_of_a_number_that_was_given_again_the_start_time_tells(path: Path) -> None:
    stale(path, started=5.0)  # process 1 is there, and started at another time
    with locked(path, "fold 0"):
        pass


def test_the_lock_of_another_machine_counts_until_it_expires(path: Path) -> None:
    stale(path, host="node7", pid=321)
    refused(path, r"process 321 on node7 has been working on fold 0 since then.*expire 5 minutes")
    old = path.stat().st_mtime - EXPIRY_S - 10
    os.utime(path, (old, old))
    with locked(path, "fold 0"):
        pass


def test_the_holder_touches_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    with locked(path, "fold 0"):
        os.utime(path, (1, 1))
        for _ in range(500):
            if path.stat().st_mtime > 1:
                break
            signal.sigtimedwait([], 0.01)
        assert path.stat().st_mtime > 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 3}', b"\xff"])
def test_a_lock_file_without_a_holder_holds_nothing(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert holder_of(path) is None
    with locked(path, "fold 0"):
        pass


def test_forked_children_do_not_keep_the_lock(path: Path) -> None:
    fork = 'import os\n    if os.fork() == 0:\n        time.sleep(5); os._exit(0)\n    print("held"'
    code = HOLD.replace('print("held"', fork)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
        other.stdout.close()
        other.wait()
        with locked(path, "fold 0"):
            pass
