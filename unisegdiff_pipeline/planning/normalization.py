"""Which intensity normalisation a channel gets: by its name, with a reason, and a warning for a likely misspelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from unisegdiff_pipeline.planning.plans import Normalization

SCHEMES: tuple[Normalization, ...] = get_args(Normalization)
CROP_FRACTION_FOR_MASK = 0.75
_RGB = (frozenset({"r", "g", "b"}), frozenset({"red", "green", "blue"}))
_NEAR_MISS = 0.75
_NO_MISSPELLING = frozenset({"oct"})  # optical coherence tomography, a letter from "ct"


@dataclass(frozen=True)
class ChannelNormalization:
    """Scheme of one channel with its reason; `warning` is None unless the name looks like a misspelt scheme."""

    scheme: Normalization
    reason: str
    warning: str | None = None


def choose_normalizations(channel_names: Sequence[str], natural_images: bool) -> tuple[ChannelNormalization, ...]:
    """Scheme of each channel.

    Args:
        channel_names: as in dataset.json; a name that equals a scheme, in any case, chooses it.
        natural_images: the files are pictures (PNG, JPG, BMP, TIFF), so that channels R, G and B are 8-bit colours.
    """
    folded = [name.casefold() for name in channel_names]
    is_rgb = natural_images and frozenset(folded) in _RGB
    return tuple(_choose(name, is_rgb) for name in channel_names)


def choose_nonzero_mask(schemes: Sequence[Normalization], median_crop_fraction: float) -> tuple[bool, ...]:
    """Whether z-score takes its statistics inside the non-zero region only, as nnU-Net does for cropped images."""
    return tuple(scheme == "zscore" and median_crop_fraction < CROP_FRACTION_FOR_MASK for scheme in schemes)


def _choose(name: str, is_rgb: bool) -> ChannelNormalization:
    folded = name.casefold()
    for scheme in SCHEMES:
        if folded == scheme:
            return ChannelNormalization(scheme, f"channel {name!r} names the scheme {scheme}")
    if is_rgb:
        return ChannelNormalization("rgb_to_0_1", f"channel {name!r} is a colour of natural images: divided by 255")
    # "CT scan" and "CT_" mean the scheme; a number, as in "CT_8bit", says that the values are others.
    words = [] if any(c.isdigit() for c in folded) else re.split(r"[^a-z]+", folded)
    near: list[str] = [scheme for scheme in SCHEMES if scheme in words]
    near = near or difflib.get_close_matches(folded, SCHEMES, n=1, cutoff=_NEAR_MISS)
    reason = f"channel {name!r} names no scheme: z-score per image"
    if not near or folded in _NO_MISSPELLING:
        return ChannelNormalization("zscore", reason)
    warning = (
        f"channel name {name!r} looks like the normalisation {near[0]!r} but does not equal it, so the channel gets "
        f"z-score; if {near[0]!r} is meant, write it so under channel_names in dataset.json and plan again"
    )
    return ChannelNormalization("zscore", f"{reason}; it looks like {near[0]!r} but does not equal it", warning)
