"""One mask out of several drawn ones, by vote or by STAPLE, instead of from their mean probability.

The masks combined are those that prediction writes into samples/, on the grid of the image. Masks of all folds count
alike; a fold that drew none has no say. Uncertainty and probabilities are not concerned: they stay those of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.boxes import Box, CroppedLabels, box_slices, join_boxes
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.staple import staple

Combination = Literal["mean", "majority", "staple"]


def require_combinable(combine: str, num_samples: int) -> None:
    """Refuse an unknown rule, and one that needs masks where none are drawn.

    Raises:
        ValueError: unknown rule.
        UsdError: no masks to combine.
    """
    if combine not in get_args(Combination):
        raise ValueError(f"combine is {combine!r}; allowed are {', '.join(get_args(Combination))}")
    if combine != "mean" and num_samples == 0:
        raise UsdError(
            f"the masks are to be combined by {combine}, but 0 samples are drawn; ask for some (--samples N, "
            f"num_samples=N) from a model that was trained in both phases, or combine by mean."
        )


def combine_masks(masks: Sequence[CroppedLabels], scheme: LabelScheme, combine: Combination) -> np.ndarray:
    """The label map (Z, Y, X) that several drawn ones of the same case make.

    "majority": in each voxel the class with the most votes; a tie goes to the background, else to the class that is
    named first. Regions are voted on one by one, and take more than half of the votes; nested ones stay nested.
    "staple": the class that STAPLE finds likeliest; for regions, those that it gives more than 0.5, one by one.
    """
    if not masks:
        raise ValueError("there are no masks to combine; draw at least one")
    box = join_boxes(mask.box for mask in masks) or masks[0].box
    patterns, counts, where, which = _patterns(masks, box)
    if combine == "majority":
        support = scheme.encode(patterns).mean(axis=2)  # (K, P)
    elif combine == "staple":
        support = _staple(scheme.encode(patterns), counts, scheme)
    else:
        raise ValueError(f"combine is {combine!r}; masks are combined by majority or staple")
    decided = scheme.decode(support)  # (P,); on a tie decode takes the first channel, and no region at 0.5
    labels = np.zeros(masks[0].shape, decided.dtype)
    labels[box_slices(box)][where] = decided[which]
    return labels


def _staple(votes: np.ndarray, counts: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Support (K, P) from votes (K, P, J) of 0 and 1."""
    if scheme.coding == "softmax":
        return staple(votes.argmax(axis=0), counts, len(votes))
    return np.stack([staple(channel, counts, 2)[1] for channel in votes])


def _patterns(masks: Sequence[CroppedLabels], box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What the masks say together, each combination of labels once.

    Returns the labels (P, J) of each combination, background by all last; their numbers of voxels in the whole volume
    (P,); the voxels of the box that any mask marks, boolean; and for each of these the row of its combination.
    """
    where = np.zeros([high - low for low, high in box], bool)
    for mask in masks:
        where |= mask.within(box) != 0
    given = np.stack([mask.within(box)[where] for mask in masks], axis=1)  # (M, J)
    _, first, which, counts = np.unique(_codes(given), return_index=True, return_inverse=True, return_counts=True)
    background = np.zeros((1, len(masks)), given.dtype)
    rest = int(np.prod(masks[0].shape, dtype=np.int64)) - len(given)
    return np.concatenate([given[first], background]), np.append(counts, rest), where, which


def _codes(rows: np.ndarray) -> np.ndarray:
    """One number for each row (M, J) of labels, equal for equal rows; sorting the rows themselves is far slower."""
    base = int(rows.max(initial=0)) + 1
    codes = np.zeros(len(rows), np.int64)
    for column in rows.T:
        if codes.max(initial=0) > np.iinfo(np.int64).max // base - 1:
            codes = np.unique(codes, return_inverse=True)[1]
        codes = codes * base + column
    return codes
