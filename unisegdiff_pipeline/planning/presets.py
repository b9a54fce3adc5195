"""nnU-Net's presets of residual encoder U-Nets, each for the memory of a kind of GPU (Isensee et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unisegdiff_pipeline.planning.plans import PresetName

RESENC_BLOCKS = (1, 3, 4, 6)  # of the levels from the finest down; further ones have the last number


@dataclass(frozen=True)
class Preset:
    """What a preset is made to fit.

    Attributes:
        memory_gb: of the GPU.
        feature_map_values: dims => values in the feature maps of one example that this memory holds in a batch of
            nnU-Net's size (12 in 2D, 2 in 3D), as nnU-Net measured them.
    """

    memory_gb: float
    feature_map_values: Mapping[int, int]


PRESETS: dict[PresetName, Preset] = {
    "M": Preset(8.0, {2: 135_000_000, 3: 680_000_000}),
    "L": Preset(24.0, {2: 380_000_000, 3: 2_100_000_000}),
    "XL": Preset(40.0, {2: 560_000_000, 3: 3_600_000_000}),
}
