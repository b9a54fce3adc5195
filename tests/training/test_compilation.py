"""Trainings with compiled networks: what is compiled, that nothing else changes, and what a missing compiler says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train

Backend = Callable[[torch.fx.GraphModule, list[torch.Tensor]], Any]


@pytest.fixture
def request_(prepared: Path, tmp_path: Path) -> TrainRequest:
    roots = Roots(raw=None, preprocessed=prepared, results=tmp_path)
    return TrainRequest("902", "all", roots, iterations=6, batch_size=1, workers=0, device="cpu", seed=3)


def compile_by(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function of the test compile what torch has traced; no C++ compiler is needed."""
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=backend))


def test_compiled_networks_learn_the_same_weights(request_: TrainRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_by(backend, monkeypatch)
    compiled = train(replace(request_, compile=True, run="compiled")).folds[0].folder
    # The segmenter, which phase 2 does not compile again, and the denoiser; none of them in parts.
    assert len(graphs) == 2
    plain = train(replace(request_, run="plain")).folds[0].folder
    assert len(graphs) == 2
    learned, expected = (load_file(fold / WEIGHTS_NAME) for fold in (compiled, plain))
    torch.testing.assert_close(learned, expected, rtol=1e-4, atol=1e-6)


def test_a_compiler_that_fails_is_named_with_the_way_out(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(_: torch.fx.GraphModule, __: list[torch.Tensor]) -> Any:
        raise RuntimeError("Cannot find a working triton installation")

    compile_by(backend, monkeypatch)
    with pytest.raises(UsdError, match=r"--compile: .*working triton installation.* or train without --compile"):
        train(replace(request_, compile=True))


def test_compiled_and_deterministic_is_refused(request_: TrainRequest) -> None:
    with pytest.raises(UsdError, match="--compile chooses its kernels by the clock"):
        train(replace(request_, compile=True, deterministic=True))
