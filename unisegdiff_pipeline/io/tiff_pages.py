"""Pages of a TIFF, counted in the file itself: a reader that stops at a broken link would lose slices silently."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import BinaryIO

from unisegdiff_pipeline.core.errors import UsdError

_MAX_PAGES = 1_000_000


def count(path: Path) -> int:
    """Number of pages of a TIFF or BigTIFF.

    Raises:
        UsdError: the chain of pages leads out of the file or back to an earlier page.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(16)
        order = "<" if start[:2] == b"II" else ">"
        big = struct.unpack(f"{order}H", start[2:4])[0] == 43
        offset = struct.unpack(f"{order}Q", start[8:16])[0] if big else struct.unpack(f"{order}I", start[4:8])[0]
        seen: set[int] = set()
        while offset:
            if offset in seen or offset >= size or len(seen) >= _MAX_PAGES:
                raise _cut_short(path, len(seen))
            seen.add(offset)
            try:
                offset = _next_page(stream, offset, order, big)
            except struct.error:
                raise _cut_short(path, len(seen)) from None
    return len(seen)


def check_description(path: Path, description: object, pages: int) -> None:
    """Compare the pages with what ImageJ, tifffile and OME write about them into the first page.

    Raises:
        UsdError: other pages than described, or pages that are channels or time points instead of slices.
    """
    text = str(description or "")
    described: int | None = None
    mixed = False
    if text.startswith("ImageJ="):
        numbers = {key: int(value) for key, value in re.findall(r"^(images|channels|frames)=(\d{1,9})\s*$", text, re.M)}
        described = numbers.get("images")
        mixed = max(numbers.get("channels", 1), numbers.get("frames", 1)) > 1
    elif text.startswith('{"shape"'):
        described = _pages_of_shape(text)
    elif "<OME" in text:
        mixed = any(int(value) > 1 for value in re.findall(r'\bSize[CT]="(\d{1,9})"', text)) and pages > 1
    if described is not None and described != pages:
        raise UsdError(
            f"{path} says that it holds {described} images, but has {pages} page{'s' if pages > 1 else ''}; it was cut "
            "short or written in a way that only its own program reads, so export it again with one page a slice."
        )
    if mixed:
        raise UsdError(
            f"{path} mixes channels or time points with slices in its {pages} pages; save each channel as a file of "
            "its own (CASE_0000.tif, CASE_0001.tif)."
        )


def _pages_of_shape(text: str) -> int | None:
    """Pages that tifffile's description {"shape": [Z, Y, X]} calls for; None for shapes that say nothing of slices."""
    try:
        shape = json.loads(text)["shape"]
        return math.prod(shape[:-2]) if len(shape) == 3 and shape[-1] > 4 else None
    except (ValueError, KeyError, TypeError):
        return None


def _next_page(stream: BinaryIO, offset: int, order: str, big: bool) -> int:
    """Offset of the page after the one at `offset`; 0 after the last."""
    stream.seek(offset)
    entries = struct.unpack(f"{order}{'Q' if big else 'H'}", stream.read(8 if big else 2))[0]
    stream.seek(offset + (8 + 20 * entries if big else 2 + 12 * entries))
    return int(struct.unpack(f"{order}{'Q' if big else 'I'}", stream.read(8 if big else 4))[0])


def _cut_short(path: Path, pages: int) -> UsdError:
    return UsdError(
        f"{path} seems to be truncated or damaged: after {pages} pages its list of pages leads nowhere; copy or export "
        "it again."
    )
