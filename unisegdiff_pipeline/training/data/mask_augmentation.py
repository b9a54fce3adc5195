"""nnU-Net's augmentation of the mask that a cascade refines: in training it has to be as wrong as on new images.

The mask comes from a network that has seen other cases of the same data set, so that it is better, and its errors are
more alike, than on images from elsewhere. As in nnU-Net (batchgeneratorsv2: ApplyRandomBinaryOperatorTransform and
RemoveRandomConnectedComponentFromOneHotEncodingTransform, of a cascade's training transforms), in two of five examples
each class is opened, closed, dilated or eroded by a ball, and in one of five each class loses one of its components.

What differs: balls are applied by distances, which take the same time whatever the radius; what lies beyond the patch
does not count, so that nothing is eroded from its border; all numbers are drawn first, from the example's generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, grow_box, nonzero_box
from unisegdiff_pipeline.core.components import label_components

Operation = Literal["dilate", "erode", "close", "open"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
P_OPERATION = 0.4
P_REMOVAL = 0.2
RADII_VOX = (1, 7)
LARGEST_REMOVED = 0.15  # of the patch


@dataclass(frozen=True)
class MaskDraw:
    """The numbers drawn for one example.

    Attributes:
        operations: (channel, what is done to it, radius in voxels), in this order; empty for none.
        removals: of each channel where among its components, 0 to 1, the one lies that is removed; empty for none.
    """

    operations: tuple[tuple[int, Operation, int], ...]
    removals: tuple[float, ...]


def draw_mask_augmentation(num_channels: int, rng: np.random.Generator) -> MaskDraw:
    """Draw what happens to the mask of one example."""
    operations: list[tuple[int, Operation, int]] = []
    if rng.random() < P_OPERATION:
        for channel in rng.permutation(num_channels):
            operation = OPERATIONS[rng.integers(len(OPERATIONS))]
            operations.append((int(channel), operation, int(rng.integers(RADII_VOX[0], RADII_VOX[1] + 1))))
    removals = rng.random(num_channels) if rng.random() < P_REMOVAL else ()
    return MaskDraw(tuple(operations), tuple(float(place) for place in removals))


def augment_mask(channels: np.ndarray, draw: MaskDraw) -> None:
    """Change the channels (classes, *patch) of a mask in place; boolean, and without overlap before and afterwards."""
    for channel, operation, radius in draw.operations:
        changed = BY_NAME[operation](channels[channel], radius)
        channels[:, changed & ~channels[channel]] = False  # what a class gains, others lose
        channels[channel] = changed
    for mask, place in zip(channels, draw.removals, strict=False):
        remove_component(mask, place)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """All voxels within `radius` of the mask."""
    from scipy.ndimage import distance_transform_edt

    result = np.zeros_like(mask)
    if (box := nonzero_box(mask)) is not None:
        inner = box_slices(grow_box(box, (radius,) * mask.ndim, mask.shape))
        result[inner] = distance_transform_edt(~mask[inner]) <= radius
    return result


def erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """The voxels of the mask from which no voxel outside of it, but within the patch, lies within `radius`."""
    box = nonzero_box(mask)
    if box is None:
        return mask.copy()
    inner = box_slices(grow_box(box, (1,) * mask.ndim, mask.shape))  # holds the nearest voxel outside of each inside
    result = np.zeros_like(mask)
    result[inner] = mask[inner] & ~dilate(~mask[inner], radius)
    return result


def remove_component(mask: np.ndarray, place: float) -> None:
    """Remove one component (26 neighbours) of at most LARGEST_REMOVED of the patch, in place; `place` says which."""
    labels = label_components(mask)
    sizes = np.bincount(labels.ravel())
    small = np.flatnonzero(sizes[1:] <= LARGEST_REMOVED * mask.size) + 1
    if len(small):
        mask[labels == small[int(place * len(small))]] = False


BY_NAME: dict[Operation, Callable[[np.ndarray, int], np.ndarray]] = {
    "dilate": dilate,
    "erode": erode,
    "close": lambda mask, radius: erode(dilate(mask, radius), radius),
    "open": lambda mask, radius: dilate(erode(mask, radius), radius),
}
