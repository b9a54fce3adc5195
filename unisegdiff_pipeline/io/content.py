"""The content of a file that may be compressed: what its first bytes say counts, not its name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from unisegdiff_pipeline.core.errors import UsdError

GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 18  # of a file at a time
_PART = 1 << 22  # of the content at a time: more than a block becomes, so that little input is left over


class Content(Protocol):
    """A stream of which `read` returns at most `limit` bytes, and b"" only at the end."""

    def read(self, limit: int, /) -> bytes: ...


def is_gzip(path: Path) -> bool:
    """Whether a file is compressed by gzip."""
    with open(path, "rb") as stream:
        return stream.read(2) == GZIP_MAGIC


@contextmanager
def open_content(path: Path) -> Iterator[Content]:
    """Open a file for reading once, decompressed where it is a gzip file of any number of members."""
    with open(path, "rb") as stream:
        compressed = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        yield decompressed(stream) if compressed else stream


def decompressed(stream: BinaryIO) -> Content:
    """The data in gzip's or zlib's format that follow in a stream."""
    return _Decompressed(stream)


def read_exactly(content: Content, view: memoryview) -> None:
    """Fill `view` from the content, without a copy of the whole.

    Raises:
        EOFError: the content ends before.
    """
    done = 0
    while done < len(view):
        part = content.read(min(_PART, len(view) - done))
        if not part:
            raise EOFError(f"it ends {len(view) - done} bytes too early")
        view[done : done + len(part)] = part
        done += len(part)


def skip(content: Content, size: int) -> None:
    """Read `size` bytes and drop them; EOFError where the content ends before."""
    while size > 0:
        part = content.read(min(_PART, size))
        if not part:
            raise EOFError(f"it ends {size} bytes too early")
        size -= len(part)


def require_end(path: Path, content: Content, sizes: Sequence[int], bytes_per_value: int) -> None:
    """Read on to the end of the content, so that its checksum is compared, but no further than the size of a slice.

    Zero bytes and less than a slice after the voxels are padding. A slice or more of data is an image that is larger
    than its header says, or a file made to fill the memory.

    Args:
        path: the file, for the message.
        content: has been read up to the end of the voxels.
        sizes: of the axes of the voxels, the fastest first; a slice is one step of the last axis that has several.
        bytes_per_value: of one value.

    Raises:
        UsdError: data of a slice or more.
    """
    last = next((size for size in reversed(sizes) if size > 1), 1)
    slice_bytes = math.prod(sizes) * bytes_per_value // last
    surplus = b""
    while len(surplus) < slice_bytes and (part := content.read(slice_bytes - len(surplus))):
        surplus += part
    if len(surplus) >= slice_bytes and surplus.strip(b"\0"):
        raise UsdError(
            f"{path} holds more data than the shape in its header has voxels; its header is wrong, export it again."
        )


class _Decompressed:
    """Decompresses no more than is asked for; zlib compares the checksum at the end of each member."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._member, self._input = stream, _new_member(), b""

    def read(self, limit: int, /) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            self._input = self._input or self._stream.read(_BLOCK)
            if not self._input:
                raise EOFError("the compressed data end too early")
            output = self._member.decompress(self._input, limit)
            self._input = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if output:
                return output

    def _next_member(self) -> bool:
        """Go to the next member; False at the end of the file. Zero bytes are padding."""
        while not (rest := self._input.lstrip(b"\0")):
            self._input = self._stream.read(_BLOCK)
            if not self._input:
                return False
        self._input, self._member = rest, _new_member()
        return True


def _new_member() -> zlib._Decompress:
    return zlib.decompressobj(wbits=47)  # with the header and the checksum of gzip or zlib
