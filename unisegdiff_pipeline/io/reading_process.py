"""Images read in a process of their own: a file that crashes a native reader, or needs too much memory, ends it alone.

One process reads file after file; it is started anew where one has ended it. It is a plain interpreter that runs this
module, so that whoever calls from a script needs no guard around it. Requests are lines of JSON, answers a line of JSON
and, after it, the voxels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.serialization import from_jsonable, to_jsonable
from unisegdiff_pipeline.io.dicom import Series, find_series

CHUNK_BYTES = 1 << 24

Allocate = Callable[[tuple[int, ...]], np.ndarray]


def _in_memory(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.float32)


class ReadingProcess:
    """Reads images as `read_image` does, and DICOM series.

    Not for two threads at once. Close it, or use it in a `with` statement.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._start()  # at once: it imports while the caller does other things

    def __enter__(self) -> ReadingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Number of the process; None where it has been ended."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def read_image(
        self, paths: Sequence[Path], allocate: Allocate = _in_memory, num_channels: int | None = None
    ) -> Volume:
        """Image (C, Z, Y, X), float32, of one case.

        Args:
            paths: files in channel order.
            allocate: makes the array that is filled, given its shape.
            num_channels: channels that the case must have, not checked where it is None.

        Raises:
            UsdError: as `read_image`; or the process ended.
        """
        request = {"paths": [os.fspath(path) for path in paths], "num_channels": num_channels}
        return self._volume(request, ", ".join(map(str, paths)), allocate)

    def read_series(self, series: Series) -> Volume:
        """Volume of a DICOM series.

        Raises:
            UsdError: as `Series.read`; or the process ended.
        """
        return self._volume({"series": to_jsonable(series)}, f"the series in {series.folder}", _in_memory)

    def find_series(self, source: Path) -> tuple[tuple[Series, ...], tuple[str, ...]]:
        """As `io.dicom.find_series`.

        Raises:
            UsdError: as there; or the process ended.
        """
        answer, _ = self._exchange({"source": os.fspath(source)}, str(source), _in_memory)
        return from_jsonable(tuple[Series, ...], answer["found"]), tuple(answer["left_out"])

    def _volume(self, request: dict[str, Any], name: str, allocate: Allocate) -> Volume:
        answer, array = self._exchange(request, name, allocate)
        assert array is not None
        return Volume(array, from_jsonable(Geometry, answer["geometry"]))

    def _exchange(
        self, request: dict[str, Any], name: str, allocate: Allocate
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """What the process says, and the voxels where it sends any; `name` of the input is for messages."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._process is not None
        try:
            answer = _ask(self._process, request)
            array = allocate(tuple(answer["shape"])) if "shape" in answer else None
            if array is not None:
                assert self._process.stdout is not None
                _fill(array, self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = self._process.wait()
            self.close()
            raise UsdError(
                f"{name}: the process that read it {_how_ended(code)}; it is damaged, or larger than the free memory. "
                f"Export it again, or free memory."
            ) from error
        except BaseException:  # what is left of the answer would be taken for the next one
            self.close()
            raise
        if "error" in answer:
            # What ran out of memory is described, with its remedy, where it happened.
            raise (ReadingError if answer["kind"] == "fault" else UsdError)(answer["error"])
        return answer, array

    def _start(self) -> None:
        code = f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2])]!r}; from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONFAULTHANDLER": ""},
            start_new_session=True,  # Ctrl-C is for the one who asks
        )


class ReadingError(Exception):
    """A fault of this package's own while reading; the message names type and place."""


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    return answer


def _fill(array: np.ndarray, stream: IO[bytes]) -> None:
    view = array.reshape(-1).data.cast("B")
    for start in range(0, len(view), CHUNK_BYTES):
        part = view[start : start + CHUNK_BYTES]
        while len(part):
            count = stream.readinto(part)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            part = part[count:]


def _how_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was ended by {name}" + (" (mostly because memory ran out)" if name == "SIGKILL" else "")


# ------------------------------------------------------------------------------------------------- in the process


def serve() -> None:
    """Answer requests until there are no more; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        _answer(answers, json.loads(line))
        answers.flush()


def _answer(stream: IO[bytes], request: dict[str, Any]) -> None:
    from unisegdiff_pipeline.core.errors import describe_failure
    from unisegdiff_pipeline.io.images import read_image

    try:
        if "source" in request:
            found, left_out = find_series(Path(request["source"]))
            _write_line(stream, {"found": to_jsonable(found), "left_out": left_out})
            return
        if "series" in request:
            volume = from_jsonable(Series, request["series"]).read()
        else:
            volume = read_image([Path(path) for path in request["paths"]], request["num_channels"])
    except Exception as error:
        kind = "user" if isinstance(error, (UsdError, MemoryError)) else "fault"
        _write_line(stream, {"error": describe_failure(error), "kind": kind})
        return
    array = np.ascontiguousarray(volume.array, np.float32)
    geometry = {f.name: to_jsonable(getattr(volume.geometry, f.name)) for f in dataclasses.fields(volume.geometry)}
    _write_line(stream, {"shape": array.shape, "geometry": geometry})
    view = array.reshape(-1).data.cast("B")
    for start in range(0, len(view), CHUNK_BYTES):
        stream.write(view[start : start + CHUNK_BYTES])


def _write_line(stream: IO[bytes], content: dict[str, Any]) -> None:
    stream.write(json.dumps(content).encode() + b"\n")
