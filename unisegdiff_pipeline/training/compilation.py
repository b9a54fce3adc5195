"""Networks compiled by torch for training: fewer kernels, where launching each of them keeps a GPU waiting."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # modules of the errors of a compiler
LEAST_CAPABILITY = (7, 0)  # of a GPU that Triton makes kernels for
# Compiling takes a minute or more in each phase, beside which a training has to be long; the steps of small networks
# that have been timed on a GPU took 27 and 64 ms in the two phases, so that these iterations are 12 minutes at least.
LEAST_S = 1800.0
LEAST_ITERATIONS = 20_000


def is_worthwhile(device: torch.device, max_time_s: float | None, iterations: int | None) -> bool:
    """Whether a training is compiled whose user does not say: a long one, on a GPU for which kernels can be made.

    Args:
        device: of the training.
        max_time_s, iterations: its length, both phases together; one of the two is None.
    """
    is_long = iterations >= LEAST_ITERATIONS if iterations is not None else (max_time_s or 0.0) >= LEAST_S
    return (
        is_long
        and device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
        and importlib.util.find_spec("triton") is not None
    )


def compile_in_place(networks: Iterable[nn.Module]) -> None:
    """Let these networks compile their forward and backward passes when they are first called.

    Parameters, their names and what is saved stay as they are; copies are not compiled.
    """
    # Not by mode="reduce-overhead", which replays CUDA graphs (documentation/benchmarks/speed.md, "On a GPU").
    for network in networks:
        network.compile(dynamic=False)


def undo_compilation(networks: Iterable[nn.Module]) -> None:
    """Let these networks compute step by step again; what a compiler left behind is not called any more."""
    for network in networks:
        network._compiled_call_impl = None  # which torch has no public way to take back


@contextlib.contextmanager
def compiler_errors() -> Iterator[None]:
    """Tell an error of the compiler from one of the training.

    Raises:
        UsdError: what a network was to be compiled with is missing or fails.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(_COMPILERS):
            raise
        raise UsdError(
            f"--compile: torch cannot compile the network here ({' '.join(str(error).split())[:200]}). It needs a C++ "
            f"compiler, and Triton on a GPU; or train without --compile."
        ) from error
