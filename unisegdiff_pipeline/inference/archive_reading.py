"""Reading the archive of a model that somebody else made: everything is checked before a file is written.

Of each entry its name, kind and size are checked, then it is read once without being kept: what it holds must be what
the manifest says, JSON must be JSON and weights must begin as safetensors do. Only then is it unpacked.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import from_jsonable, parse_json
from unisegdiff_pipeline.inference.archive_format import (
    MANIFEST_NAME,
    Manifest,
    is_weights,
    largest_bytes,
    not_allowed,
)

MAX_ENTRIES = 10_000
MAX_RATIO = 200  # of the sizes declared to the size of the archive; JSON comes to about 10, weights to 1
LARGEST_HEADER_BYTES = 100 * 2**20  # of a safetensors file, as its library has it
_BLOCK_BYTES = 2**20
_REMEDY = "It was not made by usd_export, or has been changed or damaged since: get it again from whoever made it."


def read_manifest(path: Path) -> Manifest:
    """The manifest of an archive, all of whose entries have been checked; nothing is written.

    Raises:
        UsdError: no zip file, a manifest that is missing or of another version, an entry that is none of a model
            archive, is named twice, is a link, device or absolute name, leads out of the archive, is encrypted, is
            larger than allowed or than declared, or holds something else than the manifest says.
    """
    with checked_archive(path) as archive:
        return archive.manifest


def unpack(path: Path, folder: Path) -> Path:
    """Check an archive and unpack its model into `folder`; returns folder/MODEL.

    Raises:
        UsdError: as `read_manifest`; then nothing has been written.
    """
    with checked_archive(path) as archive:
        return archive.unpack(folder)


@dataclass(frozen=True)
class CheckedArchive:
    """An archive that is open, and all of whose entries have been checked."""

    path: Path
    archive: zipfile.ZipFile
    manifest: Manifest

    def unpack(self, folder: Path) -> Path:
        """Unpack the model into `folder`; returns folder/MODEL."""
        target = folder / self.manifest.model
        for name in self.manifest.files:
            file = target.joinpath(*PurePosixPath(name).parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "xb") as stream:
                for block in _blocks(self.path, self.archive, self.archive.getinfo(self.manifest.root + name)):
                    stream.write(block)
        return target


@contextmanager
def checked_archive(path: Path) -> Iterator[CheckedArchive]:
    """Open an archive and check it, once for its manifest and for unpacking it; raises as `read_manifest`."""
    with _opened(path) as archive:
        yield CheckedArchive(path, archive, _checked(path, archive))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UsdError(f"{path} is no archive of a model: {error}. {_REMEDY}") from None
    except OSError as error:
        raise UsdError(f"{path} cannot be read ({error.strerror}); it must be an archive that you may read.") from error
    with archive:
        yield archive


def _checked(path: Path, archive: zipfile.ZipFile) -> Manifest:
    entries = _entries(path, archive)
    if MANIFEST_NAME not in entries:
        raise UsdError(f"{path} holds no {MANIFEST_NAME}, so it is no archive of a model. {_REMEDY}")
    content = b"".join(_blocks(path, archive, entries.pop(MANIFEST_NAME)))
    try:
        manifest = from_jsonable(Manifest, parse_json(content, MANIFEST_NAME))
    except UsdError as error:
        raise UsdError(f"{path}: {MANIFEST_NAME}: {error}") from None
    folders = {str(parent) for name in manifest.files for parent in PurePosixPath(manifest.root + name).parents}
    known = {manifest.root + file for file in manifest.files}
    for name in list(entries):
        if name.endswith("/") and name[:-1] in folders and not entries[name].file_size:
            del entries[name]
        elif name not in known:
            raise _refused(path, name, not_allowed(name).removesuffix("."))
    for file, record in manifest.files.items():
        entry = entries.get(manifest.root + file)
        if entry is None:
            raise UsdError(f"{path} lacks {manifest.root}{file}, which its {MANIFEST_NAME} names. {_REMEDY}")
        if entry.file_size != record.num_bytes:
            raise _refused(path, entry.filename, f"has {entry.file_size} bytes, its manifest says {record.num_bytes}")
    for file, record in manifest.files.items():  # sizes of all first: reading takes long
        _check_content(path, archive, entries[manifest.root + file], record.sha256)
    return manifest


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, none of which is of a wrong kind, name or size."""
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise UsdError(f"{path} holds {len(infos)} entries; allowed are {MAX_ENTRIES}. {_REMEDY}")
    size = path.stat().st_size
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if problem := _problem(info):
            raise _refused(path, name, problem)
        if name in entries:
            raise _refused(path, name, "stands there twice")
        if info.file_size > largest_bytes(name):
            raise _refused(path, name, f"declares {info.file_size} bytes; allowed are {largest_bytes(name)}")
        entries[name] = info
    declared, packed = (sum(getattr(i, part) for i in infos) for part in ("file_size", "compress_size"))
    if declared > MAX_RATIO * size or packed > size:
        raise UsdError(
            f"{path} has {size} bytes, but its entries declare {declared} ({packed} packed); allowed is {MAX_RATIO} "
            f"times its size. {_REMEDY}"
        )
    return entries


def _problem(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with an entry's name or kind; None where nothing is."""
    name = info.filename
    if name != info.orig_filename or not name.isprintable():
        return "has a name with characters that are none of a name"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "has an absolute name, or one of another system"
    parts = name.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "has a name that leads out of the archive or is none"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
        return "is a link, a device or another thing that is no file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; allowed are none (0) and deflate (8)"
    return None


def _refused(path: Path, name: str, problem: str) -> UsdError:
    return UsdError(f"{path} is refused: its entry {name[:200]!r} {problem}. {_REMEDY}")


def _blocks(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The content of an entry, at most as many bytes as it declares."""
    try:
        with archive.open(info) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _refused(path, info.filename, f"cannot be read ({error})") from None


def _check_content(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, sha256: str) -> None:
    """Read an entry once and compare it with the manifest."""
    digest, head, num_bytes = hashlib.sha256(), b"", 0
    weights = is_weights(info.filename)
    for block in _blocks(path, archive, info):
        digest.update(block)
        num_bytes += len(block)
        if not weights or len(head) < 8 + min(int.from_bytes(head[:8], "little"), LARGEST_HEADER_BYTES):
            head += block
    if digest.hexdigest() != sha256 or num_bytes != info.file_size:
        raise _refused(path, info.filename, "is not what its manifest says (SHA-256 or size differ)")
    name = f"{path}: {info.filename}"
    if weights:
        length = int.from_bytes(head[:8], "little")
        if not 0 < length <= min(LARGEST_HEADER_BYTES, num_bytes - 8) or head[8:9] != b"{":
            raise _refused(path, info.filename, "is no safetensors file")
        parse_json(head[8 : 8 + length], f"{name}, header,")
    elif info.filename.endswith(".json"):
        parse_json(head, name)
    else:
        try:
            head.decode("utf-8")
        except UnicodeDecodeError:
            raise _refused(path, info.filename, "is no text in UTF-8") from None
