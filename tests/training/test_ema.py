"""The moving average of weights, by hand."""

from __future__ import annotations

import torch
from torch import nn

from unisegdiff_pipeline.training.ema import Ema, cpu_state


def one_weight(value: float) -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def test_the_decay_grows_to_its_final_value() -> None:
    average, network = Ema(one_weight(0.0), decay=0.5), one_weight(1.0)
    average.update(network, iteration=0)  # decay 1 / 10
    assert average.network.weight.item() == torch.tensor(0.9).item()
    average.update(network, iteration=8)  # 9 / 18 = 0.5: 0.9 + (1 - 0.9) / 2
    assert abs(average.network.weight.item() - 0.95) < 1e-6
    average.update(network, iteration=98)  # 99 / 108 would be more than 0.5
    assert abs(average.network.weight.item() - 0.975) < 1e-6


def test_buffers_are_copied_and_the_average_learns_nothing() -> None:
    network = nn.BatchNorm1d(1)
    average = Ema(network, decay=0.9)
    network(torch.tensor([[1.0], [3.0]]))  # moves the running mean by a tenth of 2
    average.update(network, iteration=0)
    assert abs(average.network.running_mean.item() - 0.2) < 1e-6
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_a_kept_state_is_not_moved_by_later_training() -> None:
    network = one_weight(1.0)
    kept = cpu_state(network)
    nn.init.constant_(network.weight, 5.0)
    assert kept["weight"].item() == 1.0
