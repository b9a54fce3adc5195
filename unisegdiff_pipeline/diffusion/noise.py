"""Noise that belongs to (seed, case, sample) and a place, not to a batch, a tile or a device.

Every name has a Philox key of its own and every place counters of its own, so that any part of a volume can be made
alone and is bitwise the same (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). Noise is made on the
CPU and moved to the device that needs it.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PER_COUNTER = 16  # numbers of 16 bits that Philox makes of one counter
ORIGIN = 1 << 40  # counter of number 0 at a place: those before it have counters, too
STEPS = 512  # numbers are whole multiples of 1 / STEPS


class NamedNoise:
    """Random bits of places that are named by whole numbers.

    Args:
        seed, case, sample, stream: name the noise; independent for each, equal for equal ones.
    """

    def __init__(self, seed: int, case: str, sample: int, stream: str) -> None:
        name = f"{seed}|{case}|{sample}|{stream}"
        self._key = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)

    def bits(self, place: Sequence[int], first: int, count: int) -> np.ndarray:
        """Some of the endless sequence of random numbers of 16 bits at a place, (count,) uint16.

        Args:
            place: three whole numbers.
            first: of the sequence, which goes on before 0, too; a multiple of `PER_COUNTER`, as `count`.
        """
        assert first % PER_COUNTER == count % PER_COUNTER == 0
        counter = [number % (1 << 64) for number in (ORIGIN + first // PER_COUNTER, *place)]
        generator, state = _of_thread()
        state["state"]["counter"][:], state["state"]["key"][:] = np.array(counter, np.uint64), self._key
        generator.state = state
        return generator.random_raw(count // 4).view(np.uint16)


_kept = threading.local()


def _of_thread() -> tuple[np.random.Philox, Any]:
    """A generator, and the state of a fresh one: set anew for each place, which costs less than a new generator."""
    if not hasattr(_kept, "generator"):
        generator = np.random.Philox(key=np.zeros(2, np.uint64))
        _kept.generator = generator, generator.state
    found: tuple[np.random.Philox, Any] = _kept.generator
    return found


def standard_normal(bits: np.ndarray) -> Tensor:
    """Standard normal numbers of random ones of 16 bits (uint16), fp32: by the quantiles of their 65536 values.

    So none lies beyond 4.33, a probability of 8e-6 on either side; numpy's own numbers take five times as long.
    """
    indices = torch.from_numpy(bits.astype(np.int32).ravel())
    return _quantiles().index_select(0, indices).reshape(bits.shape)


@functools.cache
def _quantiles() -> Tensor:
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return ((torch.special.ndtri(middles) * STEPS).round() / STEPS).float()
