"""Our instance norm against torch's, values and gradients, in both orders of memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unisegdiff_pipeline.networks.normalisation import InstanceNorm

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float) -> Tensor:
    return nn.functional.leaky_relu(nn.functional.instance_norm(x, weight=weight, bias=bias, eps=1e-5), slope)


# The last one has enough channels and values for group norm, the others for batch norm of each example.
SHAPES = [(2, 5, 7, 6), (1, 3, 9, 4), (3, 4, 5, 6, 7), (2, 1, 4, 4, 4), (2, 16, 32, 33)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("slope", [0.01, 1.0])
def test_equals_torch(shape: tuple[int, ...], channels_last: bool, affine: bool, slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = InstanceNorm(shape[1], affine, slope).double()
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2.0, generator)
        nn.init.normal_(norm.bias, generator=generator)
    x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    ours = x.detach().contiguous(memory_format=FORMATS[x.ndim] if channels_last else torch.contiguous_format)
    ours.requires_grad_()
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = [x, *norm.parameters()]
    expected = torch.autograd.grad(reference(x, norm.weight, norm.bias, slope), inputs, gradient)
    y = norm(ours)
    got = torch.autograd.grad(y, [ours, *norm.parameters()], gradient)
    torch.testing.assert_close(y, reference(x, norm.weight, norm.bias, slope))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("channels_last", [False, True])
def test_frozen_weights_get_no_gradient_but_pass_it_on(channels_last: bool) -> None:
    norm = InstanceNorm(3, slope=0.01).requires_grad_(False)
    x = torch.randn(2, 3, 4, 5, 6)
    x = (x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x).requires_grad_()
    norm(x).square().sum().backward()
    expected = x.detach().contiguous().requires_grad_()
    reference(expected, None, None, 0.01).square().sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None
    torch.testing.assert_close(x.grad, expected.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_activations_with_fp32_weights(channels_last: bool) -> None:
    norm = InstanceNorm(4, slope=0.01)
    x = torch.randn(2, 4, 6, 6, 6).bfloat16()
    x = (x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert norm.weight.grad.dtype == torch.float32
    full = x.detach().float().requires_grad_()
    expected = reference(full, norm.weight, norm.bias, 0.01)
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=0.02)
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad.float(), full.grad, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_without_a_learned_scale_keeps_its_statistics_in_fp32(shape: tuple[int, ...], channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + 10).bfloat16()  # a mean that bf16 rounds by a part of the deviation
    gradient = torch.randn(shape, generator=generator)
    full = x.float().requires_grad_()
    expected = reference(full, None, None, 1.0)
    ours = x.contiguous(memory_format=FORMATS[x.ndim] if channels_last else torch.contiguous_format).requires_grad_()
    y = InstanceNorm(shape[1], affine=False)(ours)
    for got, wanted in (
        (y, expected),
        (torch.autograd.grad(y, ours, gradient.bfloat16())[0], torch.autograd.grad(expected, full, gradient)[0]),
    ):
        assert (got.float() - wanted).norm() < 5e-3 * wanted.norm()


def test_an_input_that_is_neither_order_is_taken() -> None:
    x = torch.randn(2, 6, 5, 4)[:, ::2].requires_grad_()
    y = InstanceNorm(3, slope=0.01)(x)
    torch.testing.assert_close(y, reference(x, None, None, 0.01), atol=1e-5, rtol=1e-4)
