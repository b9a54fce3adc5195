"""What tells a network which source of a unified data set an image comes from.

Index 0 is the unknown source. Its row is no parameter but zeros that are put in front of the table, so that neither
gradients nor weight decay move it: for an image of no known source the network is the one without any table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from unisegdiff_pipeline.diffusion.schedule import expand_to
from unisegdiff_pipeline.planning.plans import SourcesPlan

UNKNOWN = 0
TABLE = ".known"  # how the names of tensors with a row for each known source end


@dataclass(frozen=True)
class SourceConditioning:
    """Which tables a network has.

    Attributes:
        num_sources: known ones.
        film: features are scaled and shifted by source, and the denoiser embeds it.
        adapter: the channels of the image are mixed by a matrix of the source's own.
    """

    num_sources: int
    film: bool
    adapter: bool

    @classmethod
    def of(cls, sources: SourcesPlan | None) -> SourceConditioning | None:
        """What a plan asks for; None where that is nothing."""
        if sources is None:
            return None
        film, adapter = sources.conditioning == "film", sources.channel_rule == "adapter"
        return cls(len(sources.plans), film, adapter) if film or adapter else None


class SourceTable(nn.Module):
    """A vector for each source, zeros for the unknown one and for all at the start."""

    def __init__(self, num_sources: int, width: int) -> None:
        super().__init__()
        self.known = nn.Parameter(torch.zeros(num_sources, width))

    def forward(self, source: Tensor) -> Tensor:
        """source (B,) int64, 0 to the number of sources => (B, width)."""
        return functional.pad(self.known, (0, 0, 1, 0))[source]


def source_parameters(network: nn.Module) -> list[nn.Parameter]:
    """What a network learns of single sources: the numbers of all of its tables."""
    return [module.known for module in network.modules() if isinstance(module, SourceTable)]


class SourceFilm(nn.Module):
    """Scale and shift of every channel by source (Perez et al. 2018, FiLM): y = x (1 + s_i) + t_i."""

    def __init__(self, num_sources: int, channels: int) -> None:
        super().__init__()
        self.table = SourceTable(num_sources, 2 * channels)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """x (B, C, *spatial), source (B,) or (1,) => as x, in its type."""
        scale, shift = (expand_to(v.to(x.dtype), x.ndim) for v in self.table(source).chunk(2, dim=1))
        return x * (1 + scale) + shift


class ChannelAdapter(nn.Module):
    """A matrix over the channels of an image for each source: y = x + D_i x, with D_i zero at the start."""

    def __init__(self, num_sources: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.table = SourceTable(num_sources, channels * channels)

    def forward(self, image: Tensor, source: Tensor) -> Tensor:
        """image (B, C, *spatial), source (B,) or (1,) => as image."""
        matrix = self.table(source).to(image.dtype).unflatten(1, (self.channels, self.channels))
        return image + torch.einsum("bij,bj...->bi...", matrix, image).to(image.dtype)
