"""Blocks that networks are made of."""

from __future__ import annotations

import torch

from unisegdiff_pipeline.networks.blocks import Activation, ConvNorm


def test_activation_copies_no_gradient_on_a_cpu() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    block = ConvNorm(2, 3, 6, (3, 3), (1, 1))
    assert type(block(x).grad_fn).__name__ == "LeakyReluBackward0"  # CopySlices in place on the view


def test_activation_works_in_place_in_prediction() -> None:
    x = torch.tensor([-1.0, 2.0])
    with torch.no_grad():
        y = Activation()(x)
    assert y.data_ptr() == x.data_ptr()
    torch.testing.assert_close(y, torch.tensor([-0.01, 2.0]))
