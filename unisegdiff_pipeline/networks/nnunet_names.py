"""Weights by the names of nnU-Net's library (dynamic_network_architectures) brought to those of `SegmentationUNet`.

The library's `PlainConvUNet` and `ResidualEncoderUNet` compute what our encoders "plain" and "resenc" do, under
other names. Convolutions in front of an instance norm have a bias there, which the norm takes off again: it is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan

_PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.)+")  # of torch.compile and of training on several devices
# The library registers each convolution and norm a second time in `all_modules`, and the encoder within the decoder.
_DUPLICATE = re.compile(r"\.all_modules\.|^decoder\.encoder\.")
_PLAIN = re.compile(r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(.+)")
_STEM = re.compile(r"encoder\.stem\.convs\.0\.(.+)")
_BLOCK = re.compile(r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.(conv1|conv2|skip\.[01])\.(.+)")
_UP = re.compile(r"decoder\.transpconvs\.(\d+)\.(weight|bias)")
_DECODER = re.compile(r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(.+)")
_HEAD = re.compile(r"decoder\.seg_layers\.(\d+)\.(weight|bias)")
_CONV_NORM = {"conv.weight": "0.weight", "norm.weight": "1.weight", "norm.bias": "1.bias"}
_SECOND = {"conv.weight": "second.weight", "norm.weight": "norm.weight", "norm.bias": "norm.bias"}
_LISTED = 3

Encoder = Literal["plain", "resenc"]


def without_duplicates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of the library with each parameter once, without prefixes of torch.compile and parallel training."""
    short = {_PREFIXES.sub("", name): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in short.items() if not _DUPLICATE.search(name)}


def network_of(
    weights: Mapping[str, Tensor], patch_size: tuple[int, ...], strides: Sequence[tuple[int, ...]] | None = None
) -> NetworkPlan:
    """The architecture that weights were made for, by their names and shapes.

    Args:
        weights: without duplicates, by the library's names.
        patch_size: what it was trained on; shapes do not tell.
        strides: of the levels of an encoder without decoder; the kernels of a decoder tell them else.

    Raises:
        UsdError: it is neither of the two, or nothing tells the strides.
    """
    encoder = _encoder_of(weights)
    first = "0.convs.0.conv.weight" if encoder == "plain" else "blocks.0.conv1.conv.weight"
    kernels: list[Tensor] = []
    while (name := f"encoder.stages.{len(kernels)}.{first}") in weights:
        kernels.append(weights[name])
    entrance = kernels[0] if encoder == "plain" else weights["encoder.stem.convs.0.conv.weight"]
    dims = entrance.ndim - 2
    if strides is None or has_decoder(weights):
        strides = _strides_of_decoder(weights, len(kernels), dims)
    elif len(strides) != len(kernels):
        raise UsdError(f"it has {len(kernels)} levels, and its plans strides for {len(strides)}.")
    levels = []
    for i, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
        inner = r"0\.convs\.(\d+)\.conv\.weight" if encoder == "plain" else r"blocks\.(\d+)\.conv1\.conv\.weight"
        count = sum(re.fullmatch(rf"encoder\.stages\.{i}\.{inner}", name) is not None for name in weights)
        levels.append(LevelPlan(kernel.shape[0], stride, tuple(kernel.shape[2:]), count))
    return NetworkPlan(dims, patch_size, entrance.shape[1], tuple(levels), encoder)


def has_decoder(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights hold more than an encoder."""
    return any(name.startswith("decoder.") for name in weights)


def _strides_of_decoder(weights: Mapping[str, Tensor], num_levels: int, dims: int) -> list[tuple[int, ...]]:
    strides = [(1,) * dims]
    for i in reversed(range(num_levels - 1)):  # the decoder goes up from the deepest level
        up = weights.get(f"decoder.transpconvs.{i}.weight")
        if up is None:
            raise UsdError(f"decoder.transpconvs.{i}.weight is missing: without a decoder nothing tells the strides.")
        strides.append(tuple(up.shape[2:]))
    return strides


def translated(weights: Mapping[str, Tensor], network: NetworkPlan) -> dict[str, Tensor]:
    """Weights by the names of `SegmentationUNet`, fp32; heads may be missing, and the whole decoder with them.

    Args:
        weights: without duplicates, by the library's names.
        network: the architecture that they are of.

    Raises:
        UsdError: names or shapes are not those of the architecture; the first of them are named.
    """
    found: dict[str, Tensor] = {}
    foreign = []
    for name, tensor in weights.items():
        own = _own_name(name, len(network.levels))
        if own is not None:
            found[own] = tensor.detach().float()
        elif not _is_bias_before_norm(name):
            foreign.append(name)
    if foreign:
        raise UsdError(
            f"the weights hold {listed(foreign, _LISTED)}, which nnU-Net's PlainConvUNet and ResidualEncoderUNet do "
            f"not have: they are of another network."
        )
    heads = found.get("heads.0.weight")
    with torch.device("meta"):
        expected = SegmentationUNet(network, 1 if heads is None else heads.shape[0]).state_dict()
    absent = () if heads is not None else ("heads.",) if has_decoder(weights) else ("heads.", "decoder.", "up.")
    expected = {name: tensor for name, tensor in expected.items() if not name.startswith(absent)}
    for i in range(len(network.levels) - 1):  # with conv_bias false the library has no bias there either
        if f"up.{i}.weight" in found:
            found.setdefault(f"up.{i}.bias", torch.zeros(found[f"up.{i}.weight"].shape[1]))
    different = [
        f"{name} {list(found[name].shape) if name in found else 'missing'} for {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in found or found[name].shape != tensor.shape
    ]
    different += [f"{name} beyond what it has" for name in found if name not in expected]
    if different:
        raise UsdError(f"the weights do not fit the network that they seem to be of: {listed(different, _LISTED)}.")
    return found


def _encoder_of(weights: Mapping[str, Tensor]) -> Encoder:
    if "encoder.stages.0.0.convs.0.conv.weight" in weights:
        return "plain"
    if {"encoder.stem.convs.0.conv.weight", "encoder.stages.0.blocks.0.conv1.conv.weight"} <= set(weights):
        return "resenc"
    raise UsdError(
        f"the weights are not those of nnU-Net's PlainConvUNet or ResidualEncoderUNet (their names begin with "
        f"{listed(weights, _LISTED) or 'nothing'})."
    )


def _own_name(name: str, num_levels: int) -> str | None:
    """Our name of a parameter; None for one that we do not have."""
    if match := _PLAIN.fullmatch(name):
        level, conv, part = match.groups()
        return _joined(f"encoder.{level}.{conv}", _CONV_NORM.get(part))
    if match := _STEM.fullmatch(name):
        return _joined("encoder.0.0", _CONV_NORM.get(match[1]))
    if match := _BLOCK.fullmatch(name):
        level, block, place, part = match.groups()
        head = f"encoder.{level}.{int(block) + (level == '0')}"  # after the stem
        if place == "conv1":
            return _joined(f"{head}.first", _CONV_NORM.get(part))
        if place == "conv2":
            return _joined(head, _SECOND.get(part))
        step = int(place[-1])  # 1 where a pooling stands in front
        return _joined(f"{head}.skip", {k: f"{step + int(v[0])}{v[1:]}" for k, v in _CONV_NORM.items()}.get(part))
    if match := _UP.fullmatch(name):
        return f"up.{num_levels - 2 - int(match[1])}.{match[2]}"
    if match := _DECODER.fullmatch(name):
        stage, conv, part = match.groups()
        return _joined(f"decoder.{num_levels - 2 - int(stage)}.{conv}", _CONV_NORM.get(part))
    if match := _HEAD.fullmatch(name):
        return f"heads.{num_levels - 2 - int(match[1])}.{match[2]}"
    return None


def _joined(head: str, tail: str | None) -> str | None:
    return None if tail is None else f"{head}.{tail}"


def _is_bias_before_norm(name: str) -> bool:
    patterns = (_PLAIN, _STEM, _BLOCK, _DECODER)
    return any(match[match.lastindex or 0] == "conv.bias" for p in patterns if (match := p.fullmatch(name)))
