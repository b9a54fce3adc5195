"""Which number format to compute in: bf16 where the device is faster with it, else fp32."""

from __future__ import annotations

import contextlib
import functools
import time

import torch
from torch import nn


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast to bf16 where that pays on `device`, else a context that does nothing."""
    if bf16_pays(device.type):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@functools.lru_cache
def bf16_pays(device_type: str) -> bool:
    """True where bf16 is faster: on CUDA if the chip has it; on a CPU by a probe of under a second.

    CPUs differ by more than tenfold here: with AVX512-BF16 or AMX instructions bf16 convolutions are faster than
    fp32, without them they are emulated and far slower, and no flag tells both apart reliably.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    return _probe_cpu() < 0.9


def _probe_cpu(rounds: int = 6) -> float:
    """Seconds of a small training step in bf16 over those in fp32; the best of several turns each."""
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv3d(16, 32, 3, padding=1), nn.Conv3d(32, 32, 3, padding=1))
        x = torch.randn(1, 16, 24, 32, 32)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):  # the first turn of each warms up
            for low in (False, True):
                start = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                    loss = net(x).float().square().mean()
                loss.backward()
                seconds[low].append(time.perf_counter() - start)
    return min(seconds[True]) / min(seconds[False])


def resolve_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda", "cuda:1" or "mps" to a device; "auto" takes the first GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        from unisegdiff_pipeline.io.errors import UsdError

        raise UsdError(
            f"--device {name} was asked for, but torch {torch.__version__} sees no CUDA device here; "
            f"install a CUDA build of torch and check the driver, or use --device cpu."
        )
    return device
