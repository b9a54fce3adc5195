"""torch's deterministic algorithms for the time of a training: the same numbers from every run on one machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from unisegdiff_pipeline.core.errors import UsdError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS adds in a fixed order only where its workspace is set


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """In this context torch and cuDNN compute in a fixed order; all their settings are put back after it.

    Raises:
        UsdError: an operation that has no deterministic algorithm on this device.
    """
    if not wanted:
        yield
        return
    former = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    workspace = os.environ.get(_WORKSPACE)
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsdError(
            f"--deterministic cannot be kept on this device ({' '.join(str(error).split())[:200]}); train on a CPU, or "
            f"without the flag and with --run NAME."
        ) from error
    finally:
        torch.use_deterministic_algorithms(former[0], warn_only=former[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
