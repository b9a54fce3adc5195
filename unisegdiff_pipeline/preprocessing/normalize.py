"""Intensity normalisation, in place, by the scheme of each channel."""

from __future__ import annotations

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.planning.plans import IntensityStatistics, Normalization, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.crop import nonzero_mask

SMALLEST_SCALE = 1e-8


def normalize_image(image: np.ndarray, plan: PreprocessingPlan, case_id: str = "") -> None:
    """Normalise each channel of `image` (C, Z, Y, X), float32, in place.

    Raises:
        UsdError: where the image has another number of channels than the plan, or a channel does not suit its scheme.
    """
    if len(image) != len(plan.normalization):
        raise UsdError(
            f"case {case_id!r} has {len(image)} channels, the plan was made for {len(plan.normalization)}; give all "
            f"channels of channel_names in dataset.json, in that order."
        )
    mask = nonzero_mask(image) if any(_uses_mask(plan, c) for c in range(len(image))) else None
    for index, (channel, scheme) in enumerate(zip(image, plan.normalization, strict=True)):
        statistics = plan.intensities[index] if scheme == "ct" else None
        try:
            normalize_channel(channel, scheme, statistics, mask if _uses_mask(plan, index) else None)
        except UsdError as error:
            raise UsdError(f"case {case_id!r}, channel {index}: {error}") from None


def _uses_mask(plan: PreprocessingPlan, channel: int) -> bool:
    return plan.normalization[channel] == "zscore" and plan.use_nonzero_mask[channel]


def normalize_channel(
    channel: np.ndarray,
    scheme: Normalization,
    statistics: IntensityStatistics | None = None,
    mask: np.ndarray | None = None,
) -> None:
    """Normalise one channel (Z, Y, X), float32, in place.

    Args:
        channel: the image.
        scheme: "ct" clips to the data set's foreground percentiles 0.5 and 99.5 and scales by its mean and standard
            deviation; "zscore" uses the image's own; "rescale_to_0_1" maps minimum..maximum to 0..1; "rgb_to_0_1"
            divides by 255; "nonorm" does nothing.
        statistics: of the data set; needed by "ct".
        mask: with "zscore": voxels that give mean and deviation and are scaled; the others keep their value (zero).
    """
    if scheme == "ct":
        _scale_ct(channel, statistics)
    elif scheme == "zscore":
        _scale_zscore(channel, mask)
    elif scheme == "rescale_to_0_1":
        channel -= channel.min()
        channel /= max(float(channel.max()), SMALLEST_SCALE)
    elif scheme == "rgb_to_0_1":
        _scale_rgb(channel)


def _scale_ct(channel: np.ndarray, statistics: IntensityStatistics | None) -> None:
    if statistics is None:
        raise ValueError("the scheme 'ct' needs the intensity statistics of the data set; pass statistics")
    np.clip(channel, statistics.percentile_00_5, statistics.percentile_99_5, out=channel)
    channel -= np.float32(statistics.mean)
    channel /= np.float32(max(statistics.std, SMALLEST_SCALE))


def _scale_zscore(channel: np.ndarray, mask: np.ndarray | None) -> None:
    if mask is None:
        mean, std = mean_and_std(channel)
        channel -= np.float32(mean)
        channel /= np.float32(max(std, SMALLEST_SCALE))
    elif mask.any():
        inside = channel[mask]
        mean, std = mean_and_std(inside)
        channel[mask] = (inside - np.float32(mean)) / np.float32(max(std, SMALLEST_SCALE))


def _scale_rgb(channel: np.ndarray) -> None:
    lowest, highest = float(channel.min()), float(channel.max())
    if lowest < 0 or highest > 255:
        raise UsdError(
            f"values run from {lowest:g} to {highest:g}, but rgb_to_0_1 is for 8-bit pictures (0 to 255); name the "
            f"channel rescale_to_0_1 or zscore in channel_names of dataset.json and plan again."
        )
    channel /= np.float32(255)


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation in float64, block by block: a float64 copy of a CT would take another 2 GB."""
    flat = values.reshape(-1)
    block = 1 << 20
    blocks = [flat[i : i + block] for i in range(0, flat.size, block)]
    mean = sum(float(b.sum(dtype=np.float64)) for b in blocks) / flat.size
    variance = sum(float(np.square(b - mean, dtype=np.float64).sum()) for b in blocks) / flat.size
    return mean, float(np.sqrt(variance))
