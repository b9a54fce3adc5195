"""AdamW by torch's fused kernel alone: what `torch.optim` puts around it imports torch's compiler, for seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.errors import UsdError

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with the numbers of `torch.optim.AdamW(fused=True)`, whose checkpoints it takes.

    Args:
        groups: dicts with "params", on one device and of one type, and "weight_decay" where it is another one; other
            keys are kept for the caller.
        learning_rate: "lr" of each group, which the caller may change before any step.
        weight_decay: of the groups that name none; decoupled from the gradient.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], learning_rate: float, weight_decay: float) -> None:
        settings = {"lr": learning_rate, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
        self.param_groups = [{**settings, **group} for group in groups]
        self.state: dict[int, dict[str, Tensor]] = {}  # by the place of a parameter among those of all groups

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter that has a gradient."""
        first = 0
        for group in self.param_groups:
            places = [first + i for i, p in enumerate(group["params"]) if p.grad is not None]
            parameters = [p for p in group["params"] if p.grad is not None]
            first += len(group["params"])
            if not parameters:
                continue
            for place, parameter in zip(places, parameters, strict=True):
                if place not in self.state:
                    self.state[place] = _fresh(parameter)
            steps, means, squares = (
                [self.state[place][name] for place in places] for name in ("step", "exp_avg", "exp_avg_sq")
            )
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                means,
                squares,
                [],  # of AMSGrad
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """Moments and settings, in the layout of torch's optimisers."""
        groups, first = [], 0
        for group in self.param_groups:
            places = list(range(first, first + len(group["params"])))
            groups.append({**group, "params": places})
            first += len(places)
        return {"state": {place: dict(state) for place, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, stored: dict[str, Any]) -> None:
        """Take over moments and settings, also those that `torch.optim.AdamW` has saved.

        Raises:
            UsdError: they are of other groups of parameters.
        """
        sizes = [len(group["params"]) for group in self.param_groups]
        found = [len(group["params"]) for group in stored["param_groups"]]
        if found != sizes:
            raise UsdError(
                f"the checkpoint is of an optimiser with groups of {found} parameters, but this training has {sizes}; "
                f"begin again with --restart."
            )
        own = [group["params"] for group in self.param_groups]
        self.param_groups = [
            {**group, "params": params} for group, params in zip(stored["param_groups"], own, strict=True)
        ]
        parameters = self._parameters()
        self.state = {
            place: {name: _like(parameters[place], value) for name, value in state.items()}
            for place, state in stored["state"].items()
        }

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """A stored number or moment on the device of its parameter, and in its order in memory.

    The fused kernel of a CPU goes through memory whatever the strides say, and weights lie with channels last on a CPU,
    but not on a GPU, where the checkpoint may come from.
    """
    if value.shape != parameter.shape:  # the number of steps
        return value.to(parameter.device, torch.float32)
    return torch.empty_like(parameter, dtype=torch.float32, memory_format=torch.preserve_format).copy_(value)


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    """Moments of a parameter that has not been moved yet."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }
