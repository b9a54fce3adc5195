"""The order of memory on a CPU: channels innermost, from the first convolution to the last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.networks.layout import CHANNELS_INNERMOST, channels_innermost, to_device
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan

CONVOLUTIONS = {4: nn.Conv2d, 5: nn.Conv3d}


def is_innermost(x: Tensor) -> bool:
    """Not merely as torch says, for which a single channel lies in both orders."""
    return x.stride(1) == 1


@pytest.mark.parametrize("ndim", [4, 5])
def test_weights_have_their_channels_innermost(ndim: int) -> None:
    network = to_device(nn.Sequential(CONVOLUTIONS[ndim](4, 6, 3)), torch.device("cpu"))
    assert is_innermost(network[0].weight)


@pytest.mark.parametrize("ndim", [4, 5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_flows_through_convolutions_follows_the_input(ndim: int, channels: int, dtype: torch.dtype) -> None:
    layers = (CONVOLUTIONS[ndim](channels, 4, 3, padding=1), CONVOLUTIONS[ndim](4, 6, 3, stride=2, padding=1))
    network = to_device(nn.Sequential(*layers), torch.device("cpu")).to(dtype)
    x = torch.randn(2, channels, *(8,) * (ndim - 2), dtype=dtype)
    first = network[0](channels_innermost(x))
    assert is_innermost(first)
    assert is_innermost(network[1](first))
    torch.testing.assert_close(channels_innermost(x), x)


@pytest.mark.parametrize("ndim", [4, 5])
def test_gradients_pass_the_change_of_order(ndim: int) -> None:
    x = torch.randn(2, 3, *(4,) * (ndim - 2), requires_grad=True)
    weights = torch.randn(x.shape).contiguous(memory_format=CHANNELS_INNERMOST[ndim])
    (channels_innermost(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_single_channel_does_not_turn_the_first_convolution_of_a_network(dims: int) -> None:
    levels = tuple(LevelPlan(4, (stride,) * dims, (3,) * dims, 2) for stride in (1, 2))
    plan = NetworkPlan(dims, (8,) * dims, 1, levels)
    network = to_device(SegmentationUNet(plan, 1), torch.device("cpu"))
    orders = []
    network.encoder[0][0].register_forward_hook(lambda _, inputs, output: orders.append(is_innermost(output)))
    network(torch.randn(2, 1, *plan.patch_size))
    assert orders == [True]
