"""Headers of MHA, NRRD and GIPL files, checked before native code reads them.

SimpleITK reads what it is told: 99,999,999 dimensions end the interpreter, and a GIPL file that was cut short is filled
up with whatever lies in memory. Here the dimensions, the type and the size of the data are read from the header, and
the data in the file are counted.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.content import Content, decompressed, require_end, skip

_MAX_LINE_BYTES = 1 << 20
_MAX_LINES = 100_000
_MAX_COMPONENTS = 1024  # values of a voxel
_META_BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_LONG": 4,
    "MET_ULONG": 4,
    "MET_LONG_LONG": 8,
    "MET_ULONG_LONG": 8,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t"), 8),
    "float": 4,
    "double": 8,
}
_OTHER_LENGTHS = re.compile(
    r"([nuck]|\xb5|\u03bc|micro|nano|centi|kilo)?m(et(er|re)s?)?|microns?|inch(es)?|in", re.IGNORECASE
)
_GIPL_BYTES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
_GIPL_HEADER_BYTES = 256
_GIPL_MAGIC = (0xEFFFE9B0, 0x2AE389B8)


@dataclass(frozen=True)
class Declared:
    """What a header says about the data.

    Attributes:
        sizes: of the axes, the fastest first, values of a voxel included.
        bytes_per_value: of one value.
        open_data: gives the data as raw bytes from a stream that stands after the header; None where they are stored
            as text, which cannot be counted.
        offset: bytes before the data.
    """

    sizes: tuple[int, ...]
    bytes_per_value: int
    open_data: Callable[[BinaryIO], Content] | None
    offset: int


def read_declared(path: Path) -> Declared:
    """Parse and check the header of a file by its ending (.mha, .nrrd, .gipl).

    Raises:
        UsdError: names the file, what is wrong in the header, and the remedy.
    """
    with open(path, "rb") as stream:
        declared = _PARSERS[path.suffix.lower()](path, stream)
    if min(declared.sizes) < 1:
        raise UsdError(f"{path} declares the sizes {declared.sizes}, so it holds no voxels; export it again.")
    return declared


def require_data(path: Path, declared: Declared) -> None:
    """Check that a file holds all data that its header declares, and no more.

    Raises:
        UsdError: it holds more.
        EOFError, ValueError, zlib.error: the data are cut short or damaged.
    """
    if declared.open_data is None:
        return
    with open(path, "rb") as stream:
        stream.seek(declared.offset)
        content = declared.open_data(stream)
        skip(content, math.prod(declared.sizes) * declared.bytes_per_value)
        require_end(path, content, declared.sizes, declared.bytes_per_value)


def _parse_meta(path: Path, stream: BinaryIO) -> Declared:
    fields: dict[str, str] = {}
    for line in _lines(path, stream):
        key, separator, value = line.partition("=")
        if not separator:
            raise UsdError(f"{path} is no MHA file, or its header is damaged at {line[:40]!r}; export it again.")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            break
    dimensions = _whole(path, "NDims", fields, 2, 4)
    sizes = _sizes(path, "DimSize", fields, dimensions)
    components = _whole(path, "ElementNumberOfChannels", {"ElementNumberOfChannels": "1", **fields}, 1, _MAX_COMPONENTS)
    bytes_per_value = _bytes_of_type(path, "ElementType", fields, _META_BYTES)
    if fields.get("ElementDataFile", "").upper() != "LOCAL" or fields.get("HeaderSize", "0") != "0":
        raise UsdError(f"{path} keeps its voxels in another place; save header and voxels as one .mha file.")
    if _is_false(fields.get("BinaryData", "True")):
        raise UsdError(f"{path} stores its voxels as text, of which losses go unnoticed; save it as binary data.")
    if _is_false(fields.get("CompressedData", "False")):
        return Declared((components, *sizes), bytes_per_value, _as_it_is, stream.tell())
    # SimpleITK decompresses as many bytes as this says, and fills the rest with whatever lies in memory.
    found, said = path.stat().st_size - stream.tell(), fields.get("CompressedDataSize")
    if said != str(found):
        raise UsdError(
            f"{path} holds {found} bytes of compressed data, but CompressedDataSize in its header is {said}; it is "
            "truncated or damaged, copy or export it again."
        )
    return Declared((components, *sizes), bytes_per_value, decompressed, stream.tell())


def _parse_nrrd(path: Path, stream: BinaryIO) -> Declared:
    lines = _lines(path, stream)
    if not re.fullmatch(r"NRRD000\d", next(lines, "")):
        raise UsdError(f"{path} is no NRRD file, whatever its name says; check where it comes from.")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        key, separator, value = line.partition(":")
        if separator and not line.startswith("#") and not value.startswith("="):
            fields[key.strip().lower()] = value.strip()
    _require_mm(path, fields)
    dimensions = _whole(path, "dimension", fields, 2, 5)
    sizes = _sizes(path, "sizes", fields, dimensions)
    bytes_per_value = _bytes_of_type(path, "type", fields, _NRRD_BYTES)
    elsewhere = {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"} & fields.keys()
    if any(fields[key] != "0" for key in elsewhere):
        raise UsdError(f"{path} keeps its voxels in another place; save header and voxels as one .nrrd file.")
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        return Declared(sizes, bytes_per_value, decompressed, stream.tell())
    return Declared(sizes, bytes_per_value, _as_it_is if encoding == "raw" else None, stream.tell())


def _require_mm(path: Path, fields: Mapping[str, str]) -> None:
    """Refuse sizes of voxels in another unit than mm, which SimpleITK reads as if they were in mm."""
    for key in ("units", "space units"):
        for unit in re.findall(r'"([^"]*)"', _as_utf_8(fields.get(key, ""))):
            if _OTHER_LENGTHS.fullmatch(unit.strip()):
                raise UsdError(
                    f"{path}: {key} is {unit!r}, but sizes are read as mm; write origin and spacings (or space "
                    f'directions) in mm, with "mm" as the unit.'
                )


def _as_utf_8(text: str) -> str:
    """A value of a header, which is read as Latin-1, as UTF-8 if it is that."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def _parse_gipl(path: Path, stream: BinaryIO) -> Declared:
    block = stream.read(_GIPL_HEADER_BYTES)
    if len(block) < _GIPL_HEADER_BYTES or struct.unpack(">I", block[252:256])[0] not in _GIPL_MAGIC:
        raise UsdError(f"{path} is no GIPL file, whatever its name says; check where it comes from.")
    x, y, z, t, kind = struct.unpack(">5H", block[:10])
    if kind not in _GIPL_BYTES:
        raise UsdError(f"{path} holds voxels of type {kind}, allowed are {sorted(_GIPL_BYTES)}; convert the image.")
    return Declared((x, y, max(z, 1), max(t, 1)), _GIPL_BYTES[kind], _as_it_is, _GIPL_HEADER_BYTES)


_PARSERS: dict[str, Callable[[Path, BinaryIO], Declared]] = {
    ".mha": _parse_meta,
    ".nrrd": _parse_nrrd,
    ".gipl": _parse_gipl,
}


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    """Lines of a header, which leave the stream after the line that was taken last."""
    for _ in range(_MAX_LINES):
        line = stream.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise UsdError(f"{path} has no complete header; it is truncated or damaged, copy or export it again.")
        yield line.decode("latin-1").rstrip("\r\n")
    raise UsdError(f"{path} has a header of more than {_MAX_LINES} lines; it is damaged, export it again.")


def _whole(path: Path, key: str, fields: Mapping[str, str], low: int, high: int) -> int:
    text = fields.get(key, "")
    if not (re.fullmatch(r"\d{1,9}", text) and low <= int(text) <= high):
        raise UsdError(f"{path}: {key} is {text[:40]!r}, allowed is {low} to {high}; its header is damaged.")
    return int(text)


def _sizes(path: Path, key: str, fields: Mapping[str, str], dimensions: int) -> tuple[int, ...]:
    text = fields.get(key, "")
    words = text.split()
    if len(words) != dimensions or not all(re.fullmatch(r"\d{1,9}", word) for word in words):
        raise UsdError(f"{path}: {key} is {text[:60]!r}, expected are {dimensions} whole numbers.")
    return tuple(map(int, words))


def _bytes_of_type(path: Path, key: str, fields: Mapping[str, str], known: Mapping[str, int]) -> int:
    text = fields.get(key, "")
    if text not in known:
        raise UsdError(f"{path}: {key} is {text[:40]!r}, allowed are integers and real numbers; convert the image.")
    return known[text]


def _is_false(text: str) -> bool:
    return text[:1] in "FfNn0"


def _as_it_is(stream: BinaryIO) -> Content:
    return stream
