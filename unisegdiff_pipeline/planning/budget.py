"""The machine that a plan is made to fit."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Literal

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.plans import MEMORY_GB, Budget, PresetName
from unisegdiff_pipeline.planning.presets import PRESETS

CUDA_TARGET_GB = 8.0  # nnU-Net's default: larger networks hardly help on lesions, and plans stay comparable
_CUDA_USABLE_FRACTION = 0.9


def detect_budget(
    device: Literal["auto", "cpu", "cuda"] = "auto", memory_gb: float | None = None, preset: PresetName | None = None
) -> Budget:
    """Find out what there is to plan for.

    Example:
        >>> usd.detect_budget("cpu", memory_gb=8.0).memory_gb
        8.0

    Args:
        device: "auto" takes the first CUDA device where there is one, else the CPU.
        memory_gb: memory of the device that training may use; by default all available memory of a CPU, and of a
            GPU 90 % of what it has but at most CUDA_TARGET_GB, and with a preset the memory of that.
        preset: one of nnU-Net's residual encoder presets; it plans for a GPU, also on a machine that has none.

    Raises:
        UsdError: for a memory that plans.json may not hold, "cuda" without a CUDA device and without `memory_gb`, a
            preset that is unknown or asked for together with "cpu".
    """
    if memory_gb is not None and not MEMORY_GB.allows(memory_gb):
        raise UsdError(f"the memory budget is {memory_gb:g} GB, it must be {MEMORY_GB}; give it as --memory-gb 8.")
    if device not in ("auto", "cpu", "cuda"):
        raise UsdError(f"the device is {device!r}, allowed are auto, cpu and cuda; correct --device.")
    if preset is not None:
        return _preset_budget(device, memory_gb, preset)
    from unisegdiff_pipeline.core.parallel import available_memory_gb, usable_cores

    cores = usable_cores()
    found_gb = None if device == "cpu" else cuda_memory_gb()
    if device == "cpu" or (device == "auto" and found_gb is None):
        return Budget("cpu", memory_gb if memory_gb is not None else round(available_memory_gb(), 1), cores)
    if memory_gb is None:
        if found_gb is None:
            raise UsdError(
                "no CUDA device was found to plan for; give the memory of the GPU that will train as --memory-gb 8, "
                "or plan for this machine with --device cpu."
            )
        memory_gb = round(min(CUDA_TARGET_GB, _CUDA_USABLE_FRACTION * found_gb), 1)
    return Budget("cuda", memory_gb, cores)


def _preset_budget(device: str, memory_gb: float | None, preset: PresetName) -> Budget:
    if preset not in PRESETS:
        raise UsdError(f"the preset is {preset!r}, allowed are {', '.join(PRESETS)}; correct --preset.")
    if device == "cpu":
        raise UsdError(
            f"--preset {preset} plans for a GPU of {PRESETS[preset].memory_gb:g} GB, and --device cpu for a CPU; leave "
            f"one of them out. A plan for a GPU can be trained on a CPU, only slowly."
        )
    from unisegdiff_pipeline.core.parallel import usable_cores

    return Budget("cuda", memory_gb or PRESETS[preset].memory_gb, usable_cores(), preset)


def cuda_memory_gb() -> float | None:
    """Total memory of the first CUDA device, None without one."""
    if not has_gpu_driver():  # importing torch takes longer than planning, and many a plan needs nothing else of it
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30


def has_gpu_driver() -> bool:
    """Whether this machine has a driver by which torch could reach a GPU: NVIDIA's, or on Linux AMD's."""
    if Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
