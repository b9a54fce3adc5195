"""Exponential moving average of weights, which is what prediction uses."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A copy of a network that follows its weights slowly.

    The decay grows from 0.1 to its final value, min(decay, (1 + i) / (10 + i)), so that short trainings do not carry
    their random start along.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, iteration: int) -> None:
        """Move towards the weights of `network` after iteration number `iteration` (from 0)."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)


def cpu_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU, that later training does not touch."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
