"""Which number format to compute in: bf16 where the device is faster with it, else fp32."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable

import torch

from unisegdiff_pipeline.core.errors import UsdError

CPU_PROBE_ROUNDS = 3


def autocast(device: torch.device, bf16: bool | None = None) -> contextlib.AbstractContextManager[object]:
    """Autocast to bf16, or a context that does nothing; without `bf16` the hardware decides."""
    if bf16_in_hardware(device.type) if bf16 is None else bf16:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@functools.lru_cache
def bf16_in_hardware(device_type: str) -> bool:
    """True where bf16 products are instructions of the device; elsewhere they are emulated, and far slower than fp32.

    Prediction goes by this alone, so that it gives the same masks whatever else the machine is doing.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private names, absent in some versions
        return any(getattr(torch.cpu, name, lambda: False)() for name in probes)
    return False


def is_faster_in_bf16(device: torch.device, step: Callable[[], object]) -> bool:
    """Whether a training step is at least a tenth faster in bf16: by the clock on a CPU, by the hardware elsewhere.

    On CPUs with bf16 instructions the backward pass of narrow convolutions may still be slower than in fp32, so the
    step itself has to be timed. The best of several turns each is compared, for machines that are busy.
    """
    if device.type != "cpu" or not bf16_in_hardware("cpu"):
        return bf16_in_hardware(device.type)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(CPU_PROBE_ROUNDS):  # the first turn of each warms up
        for low in (False, True):
            start = time.perf_counter()
            with autocast(device, low):
                step()
            seconds[low].append(time.perf_counter() - start)
    return min(seconds[True]) < 0.9 * min(seconds[False])


def resolve_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1" or "mps" to a device; "auto" takes the first GPU if there is one.

    Raises:
        UsdError: a device that is not there.
        ValueError: another name.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device is {name!r}; allowed are auto, cpu, cuda, cuda:N and mps")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) >= torch.cuda.device_count():
        raise UsdError(
            f"--device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices, counted from 0; "
            f"use one of them, or --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsdError(f"--device {name} was asked for, but this machine has no MPS device; use --device cpu.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsdError(
            f"--device {name} was asked for, but torch {torch.__version__} sees no CUDA device here; "
            f"install a CUDA build of torch and check the driver, or use --device cpu."
        )
    return device
