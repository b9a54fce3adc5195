"""Cases that lack some of their channels: how a network is told which ones are there.

Where a plan lets channels be missing, the network's input holds the channels of the image and, after them, the
presence of each: 1 where the channel is there, 0 where it is missing. A missing channel is 0, what z-score makes of an
average voxel, so that without its presence it would be taken for a flat image. Beyond the borders of the image all of
them are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.planning.plans import PreprocessingPlan


def for_channels(plan: PreprocessingPlan, channels: Sequence[int] | None) -> PreprocessingPlan:
    """The plan of an image that has these channels alone; None has all of them."""
    if channels is None:
        return plan
    return replace(
        plan,
        normalization=tuple(plan.normalization[i] for i in channels),
        use_nonzero_mask=tuple(plan.use_nonzero_mask[i] for i in channels),
        intensities=tuple(plan.intensities[i] for i in channels) if plan.intensities else (),
    )


def with_presence(
    image: np.ndarray, channels: Sequence[int] | None, count: int, scratch: Scratch | None = None
) -> np.ndarray:
    """The network's input (2 count, ...) of a preprocessed image (P, ...) that has these of `count` channels."""
    scratch = scratch or Scratch()
    result = scratch.zeros((2 * count, *image.shape[1:]), image.dtype)
    for channel, values in zip(range(count) if channels is None else channels, image, strict=True):
        result[channel], result[count + channel] = values, 1
        scratch.release()
    return result


def drop_channels(patch: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Take channels out of a network's input (2 count, ...) at random, in place; one of those that are there stays.

    What augmentation made of missing channels becomes 0 again.
    """
    count = len(patch) // 2
    there = [i for i in range(count) if patch[count + i].any()]
    kept = [i for i in there if rng.random() >= probability]
    if there and not kept:
        kept = [int(rng.choice(there))]
    gone = [i for i in range(count) if i not in kept]
    patch[gone] = 0
    patch[[count + i for i in gone]] = 0
