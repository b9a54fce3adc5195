"""Blocks that networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.networks.blocks import CONV, ConvNorm, FilmConv, ResidualBlock


def test_block_is_convolution_norm_and_activation() -> None:
    block = ConvNorm(2, 3, 6, (3, 3), (2, 2))
    x = torch.randn(2, 3, 8, 10)
    expected = nn.functional.conv2d(x, block[0].weight, stride=2, padding=1)
    expected = nn.functional.leaky_relu(nn.functional.instance_norm(expected, eps=1e-5), 0.01)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_no_bias_in_front_of_a_norm() -> None:
    blocks = (ConvNorm(3, 2, 4, (3, 3, 3), (1, 1, 1)), ResidualBlock(3, 2, 4, (3, 3, 3), (2, 2, 2)))
    convolutions = [m for block in blocks for m in block.modules() if isinstance(m, nn.Conv3d)]
    assert len(convolutions) == 4
    assert all(convolution.bias is None for convolution in convolutions)


def test_film_scales_behind_the_norm() -> None:
    block = FilmConv(2, 3, 4, (3, 3), (1, 1), embedding=8)
    x, embedded = torch.randn(2, 3, 6, 6), torch.randn(2, 8)
    scale, shift = block.film(embedded).chunk(2, dim=1)
    normed: Tensor = nn.functional.instance_norm(nn.functional.conv2d(x, block.conv.weight, padding=1))
    expected = normed * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(block(x, embedded), nn.functional.leaky_relu(expected, 0.01), atol=1e-5, rtol=1e-4)


def test_a_single_patch_is_convolved_alike_with_and_without_gradients() -> None:
    convolution = CONV[3](4, 6, (3, 3, 3), (2, 2, 2), padding=(1, 1, 1))
    x = torch.randn(1, 4, 6, 8, 6)
    expected = nn.functional.conv3d(x, convolution.weight, convolution.bias, 2, 1)
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(convolution(x), expected, atol=1e-5, rtol=1e-4)


def test_a_single_patch_is_convolved_in_the_format_of_the_others() -> None:
    convolution = CONV[3](4, 6, (3, 3, 3), (2, 2, 2), padding=(1, 1, 1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone, one_of_two = (convolution(torch.randn(batch, 4, 6, 8, 6)) for batch in (1, 2))
    assert alone.dtype == one_of_two.dtype == torch.bfloat16
