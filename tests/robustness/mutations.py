"""Seeded damage to a file: what disks, transfers, editors and strangers do to bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np

Mutation = Callable[[bytes, np.random.Generator], bytes]

HEAD_BYTES = 512  # half of the damage is done here, where headers lie
NUMBERS = (
    b"-1",
    b"0",
    b"1e308",
    b"nan",
    b"-inf",
    b"99999999",
    b"2147483648",
    b"18446744073709551615",
    b"9" * 400,
    b"",
    b"x",
)
WORDS = (
    b"\x00" * 8,
    b"\xff" * 8,
    struct.pack("<i", 2**31 - 1),
    struct.pack("<h", 2**15 - 1),
    struct.pack("<h", -1),
    struct.pack("<f", np.nan),
    struct.pack("<f", 1e30),
    struct.pack("<d", -np.inf),
    struct.pack(">i", 2**30),
)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` with one to three kinds of damage; never the same bytes."""
    damaged = content
    while damaged == content:
        for _ in range(int(rng.integers(1, 4))):
            damaged = MUTATIONS[int(rng.integers(len(MUTATIONS)))](damaged, rng)
    return damaged


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits are the other way round."""
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 9)) if damaged else 0):
        damaged[_place(damaged, rng)] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def overwrite_run(content: bytes, rng: np.random.Generator) -> bytes:
    """A run of up to 64 bytes is zeros, ones or noise."""
    size = int(rng.integers(1, 65))
    kinds = (b"\x00" * size, b"\xff" * size, rng.bytes(size))
    return _put(content, kinds[int(rng.integers(3))], rng)


def overwrite_word(content: bytes, rng: np.random.Generator) -> bytes:
    """A binary number becomes an extreme one."""
    return _put(content, WORDS[int(rng.integers(len(WORDS)))], rng, aligned=2)


def replace_number(content: bytes, rng: np.random.Generator) -> bytes:
    """A number written in digits, as in text headers and JSON, becomes an extreme one or none."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:4096]))
    if not found:
        return content
    match = found[int(rng.integers(len(found)))]
    return content[: match.start()] + NUMBERS[int(rng.integers(len(NUMBERS)))] + content[match.end() :]


def cut_short(content: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: _place(content, rng)] if content else content


def append_noise(content: bytes, rng: np.random.Generator) -> bytes:
    """Something stands behind the end."""
    return content + rng.bytes(int(rng.integers(1, 257)))


def delete_run(content: bytes, rng: np.random.Generator) -> bytes:
    """A run of up to 64 bytes is missing."""
    start = _place(content, rng)
    return content[:start] + content[start + int(rng.integers(1, 65)) :]


def repeat_run(content: bytes, rng: np.random.Generator) -> bytes:
    """A run of up to 64 bytes stands twice."""
    start = _place(content, rng)
    end = start + int(rng.integers(1, 65))
    return content[:end] + content[start:]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    overwrite_run,
    overwrite_word,
    replace_number,
    cut_short,
    append_noise,
    delete_run,
    repeat_run,
)


def _place(content: bytes | bytearray, rng: np.random.Generator) -> int:
    most = len(content) if rng.random() < 0.5 else min(len(content), HEAD_BYTES)
    return int(rng.integers(max(1, most)))


def _put(content: bytes, piece: bytes, rng: np.random.Generator, aligned: int = 1) -> bytes:
    start = _place(content, rng) // aligned * aligned
    return content[:start] + piece[: len(content) - start] + content[start + len(piece) :]
