"""Whether a PNG is whole: Pillow stops at the last pixel and leaves the checksum after it unread."""

from __future__ import annotations

import zlib
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError

SIGNATURE_BYTES = 8
BLOCK_BYTES = 1 << 20


def require_whole(path: Path) -> None:
    """Compare the checksum of every critical chunk up to the last (PNG specification, sections 5.3 and 5.4).

    Raises:
        UsdError: a chunk is cut short or damaged, or the last one is missing.
    """
    with open(path, "rb") as stream:
        stream.seek(SIGNATURE_BYTES)
        kind = b""
        while kind != b"IEND":
            start = stream.read(8)
            left, kind = int.from_bytes(start[:4], "big"), start[4:]
            checksum = zlib.crc32(kind)
            while left and (block := stream.read(min(left, BLOCK_BYTES))):
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
            is_right = stream.read(4) == checksum.to_bytes(4, "big") or kind[:1].islower()  # comments and the like
            if len(start) < 8 or left or not is_right:
                raise UsdError(
                    f"{path} is cut short or damaged (a chunk of the PNG does not have its checksum); copy or export "
                    f"it again."
                )
