"""Blocks that 2D and 3D networks share; `dims` chooses the operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu_

from unisegdiff_pipeline.diffusion.schedule import LAM_EMBEDDED_FOR_PURE_NOISE
from unisegdiff_pipeline.networks.normalisation import LEAKY_SLOPE, InstanceNorm


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that computes a single small patch by oneDNN too.

    In prediction one patch is often all there is; below some size torch then takes kernels of its own for fp32 on a
    CPU, which are several times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # first of all: comparing the batch's size would fix it in the export
            return super().forward(x)
        alone = len(x) == 1 and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        followed = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")  # by torch's operation, not by oneDNN's
        if alone and not followed and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(
                x, self.weight, self.bias, tuple(map(int, self.padding)), self.stride, self.dilation, self.groups
            )
        return super().forward(x)


class Upsampling2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of a kernel as large as its stride, in prediction on a CPU as a 1x1 convolution.

    Nothing overlaps there, so that each input pixel becomes a block of outputs; oneDNN takes twice as long for it.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        plain = x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting()
        if plain or output_size is not None:
            return super().forward(x, output_size)
        to_blocks = self.weight.permute(1, 2, 3, 0).flatten(0, 2)[..., None, None]  # (outputs * block, inputs, 1, 1)
        bias = None if self.bias is None else self.bias.repeat_interleave(math.prod(self.kernel_size))
        return depth_to_space(conv2d(x, to_blocks, bias), self.stride)


CONV: dict[int, Callable[..., nn.Module]] = {2: nn.Conv2d, 3: Conv3d}
TRANSPOSED_CONV: dict[int, Callable[..., nn.Module]] = {2: Upsampling2d, 3: nn.ConvTranspose3d}
AVERAGE_POOL: dict[int, Callable[..., nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def convolution(dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Module:
    """A convolution in front of an instance norm: padded to keep the size at stride 1, and without a bias, which the
    norm would take off again.
    """
    padding = tuple(k // 2 for k in kernel)
    return CONV[dims](inputs, outputs, tuple(kernel), tuple(stride), padding=padding, bias=False)


class ConvNorm(nn.Sequential):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(
            convolution(dims, inputs, outputs, kernel, stride),
            InstanceNorm(outputs, slope=LEAKY_SLOPE),
        )


class ResidualBlock(nn.Module):
    """Two convolutions with a skip (He et al. 2016); the skip is pooled and projected where the shape changes.

    With `norm_skip` the projection has an instance norm after it: the block of nnU-Net's residual encoders (ResNet-D,
    He et al. 2019, figure 2c).
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        norm_skip: bool = False,
    ) -> None:
        super().__init__()
        ones = (1,) * dims
        self.first = ConvNorm(dims, inputs, outputs, kernel, stride)
        self.second = convolution(dims, outputs, outputs, kernel, ones)
        self.norm = InstanceNorm(outputs)
        pool: list[nn.Module] = []
        if any(s > 1 for s in stride):
            pool.append(AVERAGE_POOL[dims](tuple(stride), tuple(stride)))
        if inputs != outputs:
            pool.append(CONV[dims](inputs, outputs, ones, bias=False))
            if norm_skip:
                pool.append(InstanceNorm(outputs))
        self.skip = nn.Sequential(*pool)

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu_(self.norm(self.second(self.first(x))) + self.skip(x), LEAKY_SLOPE)


class LamEmbedding(nn.Module):
    """lam (B,) => (B, width): sines and cosines of lam / 4 at octaves, then a small MLP.

    -inf is embedded as -20 and everything is clamped to [-20, 20]. The slowest wave turns less than once over that
    range, so the order of noise levels is kept.
    """

    num_octaves = 5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * self.num_octaves, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, lam: Tensor) -> Tensor:
        bounded = lam.float().nan_to_num(neginf=LAM_EMBEDDED_FOR_PURE_NOISE).clamp(-20, 20)
        octaves = 2.0 ** torch.arange(self.num_octaves, device=lam.device, dtype=torch.float32)
        phase = bounded[:, None] / 10 * octaves  # (B, octaves)
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=1))


class FilmConv(nn.Module):
    """Convolution, instance norm, scale and shift from the noise level, leaky ReLU.

    The scale and shift stand AFTER the norm: the norm removes the amplitude that tells noise levels apart, so lam has
    to enter again after it. Where all examples have one noise level, as in a sampler's call, they are the norm's own.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], embedding: int
    ) -> None:
        super().__init__()
        self.conv = convolution(dims, inputs, outputs, kernel, stride)
        self.norm = InstanceNorm(outputs, affine=False)
        self.film = nn.Linear(embedding, 2 * outputs)

    def forward(self, x: Tensor, embedded_lam: Tensor) -> Tensor:
        """x (B, inputs, *spatial); embedded_lam (B, embedding), or (1, embedding) for all."""
        x = self.conv(x)
        scale, shift = self.film(embedded_lam).chunk(2, dim=1)  # (B, C) each
        if len(scale) == 1:
            return leaky_relu_(self.norm(x, 1 + scale[0].float(), shift[0].float()), LEAKY_SLOPE)
        x = self.norm(x)
        shape = scale.shape + (1,) * (x.ndim - 2)
        scale, shift = (v.to(x.dtype).reshape(shape) for v in (scale, shift))
        return leaky_relu_(torch.addcmul(shift, x, 1 + scale), LEAKY_SLOPE)


def space_to_depth(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, C, *spatial) => (B, C * prod(stride), *(spatial / stride)); spatial must divide."""
    batch, channels, *spatial = x.shape
    shape: list[int] = []
    for length, step in zip(spatial, stride, strict=True):
        shape += [length // step, step]
    x = x.reshape(batch, channels, *shape)
    dims = len(spatial)
    outer, inner = [2 + 2 * i for i in range(dims)], [3 + 2 * i for i in range(dims)]
    x = x.permute(0, 1, *inner, *outer)
    return x.reshape(batch, -1, *(n // s for n, s in zip(spatial, stride, strict=True)))


def depth_to_space(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    batch, _, *coarse = x.shape
    dims = len(coarse)
    x = x.reshape(batch, -1, *stride, *coarse)
    order = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    x = x.permute(0, 1, *order)
    return x.reshape(batch, x.shape[1], *(n * s for n, s in zip(coarse, stride, strict=True)))
