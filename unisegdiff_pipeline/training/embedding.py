"""Weights of a narrower network inside of a wider one, and of a 2D network inside of a 3D one.

The first outputs of a wider convolution are the former ones, and read the former inputs alone. The norm after it works
on each channel by itself, so that they answer as they did; outputs that are new keep their random weights, and what
reads them learns to. In 3D a kernel lies in the central slice, and an upsampling repeats it: slices are answered to as
by the 2D network, but for norms over the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def embedded(name: str, source: Tensor, value: Tensor) -> Tensor | None:
    """A tensor of a segmenter with another network's in it; None where it has no place for it.

    Args:
        name: of the tensor in `StagedModel.state_dict()`, which says what its axes are.
        source: of the narrower network.
        value: of the wider one, with its initial values.
    """
    part, _, *rest = name.split(".")[1:]  # segmenter.decoder.2.0.0.weight
    if source.ndim == 1:  # of a norm, or a bias
        return None if len(source) > len(value) else torch.cat([source.to(value.dtype), value[len(source) :]])
    inflated = _inflated(source, value.shape[2:], repeated=part == "up")
    if inflated is None:
        return None
    by_outputs = 1 if part == "up" else 0  # transposed convolutions have their inputs first
    inflated, result = inflated.movedim(by_outputs, 0), value.clone().movedim(by_outputs, 0)
    if any(there > here for there, here in zip(inflated.shape, result.shape, strict=True)):
        return None
    known = result[: len(inflated)].zero_()
    read = 2 if part == "decoder" and rest[:2] == ["0", "0"] else 1  # what came up, and the skip
    for former, now in zip(inflated.chunk(read, dim=1), known.chunk(read, dim=1), strict=True):
        now[:, : former.shape[1]] = former
    return result.movedim(0, by_outputs)


def _inflated(source: Tensor, kernel: Sequence[int], repeated: bool) -> Tensor | None:
    """A weight (F, C, *kernel) for a kernel with an axis more in front; None where the others differ."""
    if tuple(source.shape[2:]) == tuple(kernel):
        return source
    if source.ndim - 1 != len(kernel) or tuple(source.shape[2:]) != tuple(kernel[1:]):
        return None
    slices = source.unsqueeze(2).repeat_interleave(kernel[0], dim=2)
    if not repeated:
        slices[:, :, torch.arange(kernel[0]) != kernel[0] // 2] = 0
    return slices
