"""A step of the training loop by hand: gradient, clipping, optimiser, moving average; targets of deep supervision."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.plans import TrainingPlan
from unisegdiff_pipeline.training.data.patches import Batch
from unisegdiff_pipeline.training.ranks import ALONE
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainers.trainer import StepResult, Trainer, pool_targets

BATCH = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), ("a", "b"))


class OneWeight(Trainer):
    """Learns one weight w from 0, by the loss (slope * w), whose gradient is the slope."""

    phase = 1
    num_validations = 0
    slope = -2.0

    def build_network(self) -> nn.Module:
        network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.weight)
        return network

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        return StepResult(self.slope * self.network.weight.sum(), {"slope": torch.tensor(self.slope)})

    def model_for_prediction(self) -> Any:
        raise NotImplementedError

    def validate(self) -> Any:
        raise NotImplementedError


def make(slope: float = -2.0) -> OneWeight:
    plan = TrainingPlan(1, optimizer="sgd", learning_rate=0.5, weight_decay=0.0, ema_decay=0.9)
    run: Any = SimpleNamespace(
        configuration=SimpleNamespace(training=plan, sources=None),
        plans=SimpleNamespace(labels=SimpleNamespace(coding="binary")),
        watch=SimpleNamespace(seconds=0.0),
        compiled=False,
        seed=0,
        device=torch.device("cpu"),
        stop=SimpleNamespace(deferred=nullcontext),
        generator=lambda *key: torch.Generator(),
        derived_seed=lambda *key: 0,
        ranks=ALONE,
    )
    trainer = OneWeight(run, PhaseBudget(iterations=100))
    trainer.slope, trainer.bf16 = slope, False
    return trainer


def test_a_step_by_hand() -> None:
    trainer = make()
    logged = trainer.iterate(BATCH)
    # The first of 20 warm-up steps: rate 0.5 / 20; Nesterov momentum of 0.99 takes the gradient -2 as -2 * 1.99.
    weight = 0.5 / 20 * 2 * 1.99
    assert trainer.network.weight.item() == pytest.approx(weight)
    assert trainer.ema.network.weight.item() == pytest.approx(0.9 * weight)  # a decay of 0.1 at first
    assert trainer.iteration == 1
    assert {name: value.item() for name, value in logged.items()} == {"loss": 0.0, "gradient_norm": 2.0, "slope": -2.0}


def test_long_gradients_are_clipped_but_logged_as_they_were() -> None:
    trainer = make(slope=-24.0)
    assert trainer.iterate(BATCH)["gradient_norm"].item() == 24
    assert trainer.network.weight.item() == pytest.approx(0.5 / 20 * 12 * 1.99)


def test_a_gradient_that_is_no_number_ends_the_training_and_names_the_cases() -> None:
    trainer = make(slope=float("nan"))
    with pytest.raises(UsdError, match=r"iteration 0, cases a, b: the training has diverged\. Lower --lr \(now 0\.5\)"):
        trainer.iterate(BATCH)
    assert trainer.network.weight.item() == 0


def test_weights_hang_on_the_seed_alone_and_torch_is_left_as_it_was() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    make()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_deep_supervision_targets_are_means() -> None:
    target = torch.tensor([[[[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]])
    valid = torch.tensor([[[[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]])
    targets, masks = pool_targets(target, torch.ones_like(target), [(2, 2)])
    assert targets[1].tolist() == [[[[0.25, 1.0]]]]
    targets, masks = pool_targets(target, valid, [(2, 2)])  # three of the first four voxels are ignored
    assert targets[1].tolist() == [[[[1.0, 1.0]]]]
    assert masks[1].tolist() == [[[[0.25, 1.0]]]]
