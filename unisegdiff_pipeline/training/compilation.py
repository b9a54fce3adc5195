"""Networks compiled by torch for training: fewer kernels, where launching each of them keeps a GPU waiting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from unisegdiff_pipeline.core.errors import UsdError

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # modules of the errors of a compiler


def compile_in_place(networks: Iterable[nn.Module]) -> None:
    """Let these networks compile their forward and backward passes when they are first called.

    Parameters, their names and what is saved stay as they are; copies are not compiled.
    """
    for network in networks:
        network.compile(dynamic=False)


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
