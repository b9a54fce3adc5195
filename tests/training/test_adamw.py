"""AdamW: the numbers and the saved state of torch's own, without torch's compiler."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.adamw import AdamW

ROOT = Path(__file__).resolve().parents[2]


class Training:
    """Steps of a small network, one of whose weights gets no gradient in the first steps."""

    def __init__(self, ours: bool) -> None:
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 3, 3))
        self.network.to(memory_format=torch.channels_last)
        self.late = nn.Parameter(torch.full((3, 1, 1), 0.5))
        groups: list[dict[str, Any]] = [
            {"params": list(self.network.parameters()), "span": (0.0, 1.0)},
            {"params": [self.late], "weight_decay": 0.0, "span": (0.0, 0.5)},
        ]
        self.optimizer: Any = (
            AdamW(groups, 0.01, 0.03) if ours else torch.optim.AdamW(groups, 0.01, weight_decay=0.03, fused=True)
        )

    def run(self, first: int, last: int) -> None:
        for i in range(first, last):
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 / (1 + i) * group["span"][1]
            self.optimizer.zero_grad()
            generator = torch.Generator().manual_seed(i)
            out = self.network(torch.randn(2, 2, 9, 8, generator=generator))
            (out * self.late if i >= 2 else out).square().mean().backward()
            self.optimizer.step()

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach() for p in (*self.network.parameters(), self.late)]


def resumed(former: Training, stored: dict[str, Any] | None = None) -> Training:
    """A training of ours with weights and optimiser as a checkpoint of the former one, or `stored`, holds them."""
    content = io.BytesIO()
    torch.save(stored or former.optimizer.state_dict(), content)
    content.seek(0)
    training = Training(True)
    with torch.no_grad():
        for own, other in zip(training.weights, former.weights, strict=True):
            own.copy_(other)
    training.optimizer.load_state_dict(torch.load(content, weights_only=True))
    return training


def equal(a: Training, b: Training) -> bool:
    return all(map(torch.equal, a.weights, b.weights))


def test_weights_are_those_of_torch_to_the_bit() -> None:
    ours, torchs = Training(True), Training(False)
    start = [w.clone() for w in ours.weights]
    for step in range(6):
        ours.run(step, step + 1)
        torchs.run(step, step + 1)
        assert equal(ours, torchs)
        assert torch.equal(ours.weights[-1], start[-1]) == (step < 2)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("ours_before", [True, False])
def test_a_checkpoint_of_either_is_continued(ours_before: bool, steps: int) -> None:
    former = Training(ours_before)
    former.run(0, steps)
    continued = resumed(former)
    for training in (former, continued):
        training.run(steps, 7)
    assert equal(former, continued)


def test_moments_of_another_device_come_into_the_order_of_their_weights() -> None:
    """A GPU keeps them contiguous; the kernel of a CPU would give them to other weights."""
    former = Training(True)
    former.run(0, 3)
    stored = former.optimizer.state_dict()
    assert not all(moment.is_contiguous() for state in stored["state"].values() for moment in state.values())
    for state in stored["state"].values():
        state.update({name: value.contiguous() for name, value in state.items()})
    continued = resumed(former, stored)
    for training in (former, continued):
        training.run(3, 7)
    assert equal(former, continued)


def test_a_checkpoint_of_other_groups_is_refused() -> None:
    stored = Training(True).optimizer.state_dict()
    other = AdamW([{"params": [nn.Parameter(torch.zeros(1))]}], 0.01, 0.0)
    with pytest.raises(UsdError, match=r"groups of \[6, 1\] parameters.*\[1\]"):
        other.load_state_dict(stored)


def test_a_step_imports_no_compiler() -> None:
    code = """
import sys
sys.modules["torch._dynamo"] = None
import torch
from unisegdiff_pipeline.training.adamw import AdamW
weight = torch.nn.Parameter(torch.ones(1))
optimizer = AdamW([{"params": [weight]}], 0.1, 0.0)
weight.grad = torch.ones(1)
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
optimizer.zero_grad()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
