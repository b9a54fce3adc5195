"""Trainings with compiled networks: when they are, that nothing else changes, and what a missing compiler does."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.training import run
from unisegdiff_pipeline.training.compilation import is_worthwhile
from unisegdiff_pipeline.training.ranks import ALONE
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import train
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer

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


GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "capability", "triton", "max_time_s", "iterations", "expected"),
    [
        (GPU, (7, 0), True, None, 20000, True),
        (GPU, (9, 0), True, 1800.0, None, True),
        (GPU, (6, 1), True, None, 20000, False),
        (GPU, (9, 0), False, None, 20000, False),
        (GPU, (9, 0), True, None, 19999, False),
        (GPU, (9, 0), True, 1799.0, None, False),
        (torch.device("cpu"), (9, 0), True, None, 20000, False),
        (torch.device("mps"), (9, 0), True, 36000.0, None, False),
    ],
)
def test_long_trainings_on_a_gpu_with_triton_are_compiled(
    device: torch.device,
    capability: tuple[int, int],
    triton: bool,
    max_time_s: float | None,
    iterations: int | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda asked: {GPU: capability}[asked])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {"triton": object() if triton else None}[name])
    assert is_worthwhile(device, max_time_s, iterations) is expected


@pytest.mark.parametrize(
    ("asked", "deterministic", "processes", "expected"),
    [
        (None, None, 1, True),
        (None, True, 1, False),
        (None, None, 2, False),
        (True, None, 2, True),
        (False, None, 1, False),
    ],
)
def test_a_flag_decides_before_device_and_length(
    asked: bool | None, deterministic: bool | None, processes: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "is_worthwhile", lambda device, max_time_s, iterations: iterations == 30000)
    request = SimpleNamespace(
        compile=asked, deterministic=deterministic, max_time_s=None, iterations=30000, epochs=None
    )
    fold: Any = SimpleNamespace(request=request, ranks=replace(ALONE, size=processes), device=GPU)
    assert run._is_compiled(fold) is expected


@pytest.fixture
def plain(request_: TrainRequest) -> dict[str, torch.Tensor]:
    """The weights of the training without a compiler."""
    return load_file(train(replace(request_, compile=False, run="plain")).folds[0].folder / WEIGHTS_NAME)


@pytest.fixture
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that leave it open are compiled, as on a GPU."""
    monkeypatch.setattr(run, "is_worthwhile", lambda *_: True)


@pytest.mark.usefixtures("_on_a_gpu")
def test_what_is_left_open_is_compiled_and_what_is_forbidden_is_not(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_by(backend, monkeypatch)
    caplog.set_level(logging.INFO)
    train(replace(request_, compile=False, run="forbidden"))
    assert not graphs
    train(request_)
    assert len(graphs) == 2
    assert "phase 1: torch compiles the networks at the first iterations" in caplog.text


@pytest.mark.usefixtures("_on_a_gpu")
@pytest.mark.parametrize("failing", [1, 2], ids=["the segmenter", "the denoiser"])
def test_a_compiler_that_nobody_asked_for_and_that_fails_is_done_without(
    failing: int,
    request_: TrainRequest,
    plain: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        if len(graphs) == failing:
            raise RuntimeError("Cannot find a working triton installation")
        return graph.forward

    compile_by(backend, monkeypatch)
    caplog.set_level(logging.INFO)
    learned = load_file(train(request_).folds[0].folder / WEIGHTS_NAME)
    assert len(graphs) == failing  # and no further attempt
    assert caplog.text.count("warning: torch cannot compile the networks here") == 1
    assert "Cannot find a working triton installation" in caplog.text
    torch.testing.assert_close(learned, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_on_a_gpu")
def test_what_was_compiled_and_fails_backwards_is_done_without(
    request_: TrainRequest,
    plain: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Gradients that the failed pass has added already are not counted twice."""

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel image is available")

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
            return [Failing.apply(output) for output in graph.forward(*inputs)]

        return call

    compile_by(backend, monkeypatch)
    caplog.set_level(logging.INFO)
    learned = load_file(train(request_).folds[0].folder / WEIGHTS_NAME)
    assert "RuntimeError: no kernel image is available" in caplog.text
    torch.testing.assert_close(learned, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_on_a_gpu")
def test_an_error_of_the_training_itself_is_not_taken_for_one_of_the_compiler(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("of the training")

    compile_by(lambda graph, _: graph.forward, monkeypatch)
    monkeypatch.setattr(SegmentationTrainer, "training_step", fail)
    with pytest.raises(ValueError, match="of the training"):
        train(request_)
