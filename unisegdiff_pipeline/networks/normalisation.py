"""Instance norm with the leaky ReLU after it, in the form that is fastest on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-5
LEAKY_SLOPE = 0.01
NO_ACTIVATION = 1.0
# With channels innermost torch's group norm reads a channel value by value below 1024 of them, and no vector is full
# with fewer channels than 16.
SMALL_MAP, FEW_CHANNELS = 1024, 16

aten = torch.ops.aten


class InstanceNorm(nn.Module):
    """Instance norm (Ulyanov et al. 2016) over the spatial axes of (B, C, *spatial), then a leaky ReLU.

    Args:
        features: C.
        affine: with a learned scale and shift a channel.
        slope: of the leaky ReLU for negative values; 1 leaves it out.
    """

    def __init__(self, features: int, affine: bool = True, slope: float = NO_ACTIVATION) -> None:
        super().__init__()
        self.slope = slope
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None

    def forward(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Normalise; `weight` and `bias` (C,), fp32, stand in for the learned ones."""
        if weight is None:
            weight, bias = self.weight, self.bias
        if x.device.type == "cpu" and not torch.compiler.is_exporting():
            result: Tensor = _CpuInstanceNorm.apply(x, weight, bias, self.slope)
            return result
        x = nn.functional.instance_norm(x, weight=weight, bias=bias, eps=EPSILON)
        return x if self.slope == NO_ACTIVATION else nn.functional.leaky_relu_(x, self.slope)


class _CpuInstanceNorm(torch.autograd.Function):
    """Instance norm as group norm of one channel a group, whose kernel is twice as fast as `instance_norm`'s.

    Its backward pass is slow for channels that lie innermost in memory, its forward pass where they are few or have
    few values. There each example goes through batch norm, which is the same for a batch of one. The activation works
    in place and is undone by its own sign, so that no third tensor is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float) -> Tensor:
        if not _is_channels_last(x):
            x = x.contiguous()
        batch, channels = x.shape[:2]
        if weight is None and x.dtype.itemsize < 4:
            # The kernels keep mean and deviation in the type of the scale; bf16 rounds them to two or three digits.
            weight = torch.ones(channels, device=x.device)
        size = x[0, 0].numel()
        if _is_channels_last(x) and (size < SMALL_MAP or channels < FEW_CHANNELS):
            y, mean, scale = _by_example(x, weight, bias)
        else:
            y, mean, scale = aten.native_group_norm(x, weight, bias, batch, channels, size, channels, EPSILON)
        if slope != NO_ACTIVATION:
            nn.functional.leaky_relu_(y, slope)
        ctx.slope = slope
        ctx.save_for_backward(x, y if slope != NO_ACTIVATION else None, weight, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, scale = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        channels_last = _is_channels_last(x)
        gradient = gradient.contiguous(memory_format=_channels_last(x) if channels_last else torch.contiguous_format)
        if not channels_last:
            if y is not None:
                gradient = aten.leaky_relu_backward(gradient, y, ctx.slope, True)
            batch, channels = x.shape[:2]
            sizes = (batch, channels, x[0, 0].numel(), channels)
            return *aten.native_group_norm_backward(gradient, x, mean, scale, weight, *sizes, wanted), None
        at_x = torch.empty_like(x)
        at_weight, at_bias = (torch.zeros_like(weight) if weight is not None else None for _ in range(2))
        for n in range(len(x)):
            one = slice(n, n + 1)
            g = gradient[one]
            if y is not None:
                g = aten.leaky_relu_backward(g, y[one], ctx.slope, True)
            of_x, of_weight, of_bias = aten.native_batch_norm_backward(
                g, x[one], weight, None, None, mean[n], scale[n], True, EPSILON, wanted
            )
            if of_x is not None:
                at_x[one] = of_x
            if at_weight is not None and at_bias is not None and of_weight is not None:
                at_weight += of_weight
                at_bias += of_bias
        gradients = zip((at_x, at_weight, at_bias), wanted, strict=True)
        return *(gradient if is_wanted else None for gradient, is_wanted in gradients), None


def _by_example(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As group norm of one channel a group: the normalised x, means and inverse standard deviations (B, C)."""
    y, means, scales = torch.empty_like(x), [], []
    for n in range(len(x)):
        one = slice(n, n + 1)
        y[one], mean, scale = aten.native_batch_norm(x[one], weight, bias, None, None, True, 0.0, EPSILON)
        means.append(mean)
        scales.append(scale)
    return y, torch.stack(means), torch.stack(scales)


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=_channels_last(x))
