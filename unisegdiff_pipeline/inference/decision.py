"""Which mask to commit to, given calibrated probabilities and several plausible masks.

Calibrated probabilities above 0.5 make the mask with the fewest wrong voxels, not the one with the highest Dice: where
an object is unsure as a whole, hardly any voxel reaches 0.5 although a lower threshold would overlap well whenever the
object is there. The samples say how masks of this case may look, so that the Dice of any threshold can be expected:

    t* = argmax_t  mean over samples s and classes c of  Dice({r_c > t}, s_c)

with r_c the probability that decides the class. A sample in which a class is empty says nothing about its Dice (both
empty = undefined, as in every score here) and is left out. For one class this is the plug-in rule of Lewis 1995 and
Dembczynski et al. 2011 for F-measures, over the family of thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.inference.settings import Decision

THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
NEUTRAL = 0.5  # shifts nothing


def decided_probabilities(
    probabilities: Tensor, samples: Iterable[np.ndarray], scheme: LabelScheme, decision: Decision
) -> Tensor:
    """Probabilities (K, Z, Y, X) to decode into the mask; see `best_threshold` for the arguments."""
    if decision == "half":
        return probabilities
    return shift_threshold(probabilities, best_threshold(probabilities, samples, scheme), scheme.coding)


def best_threshold(probabilities: Tensor, samples: Iterable[np.ndarray], scheme: LabelScheme) -> float:
    """The threshold of `THRESHOLDS` with the highest expected Dice; 0.5 where no sample holds anything.

    Args:
        probabilities: (K, Z, Y, X), any float type.
        samples: label map (Z, Y, X) of each drawn mask, taken one at a time.
        scheme: what channels and label values mean.
    """
    dice = ExpectedDice(scheme)
    dice.add(probabilities, samples)
    return dice.best()


class ExpectedDice:
    """Counts voxels of a case part by part, and then says which threshold promises the highest Dice.

    Args:
        scheme: what channels and label values mean.
    """

    def __init__(self, scheme: LabelScheme) -> None:
        self._scheme = scheme
        self._predicted = np.zeros((len(scheme.names), len(THRESHOLDS)))  # voxels of the class's mask at each threshold
        self._common: list[np.ndarray] = []  # for each sample, of these that it holds too
        self._drawn: list[np.ndarray] = []  # for each sample, voxels of each class

    def add(self, probabilities: Tensor, samples: Iterable[np.ndarray]) -> None:
        """Count a part of the case (K, Z, Y, X) in all samples (Z, Y, X), every time in the same order."""
        limits = torch.tensor(THRESHOLDS)
        bins = [np.asarray(torch.bucketize(r, limits)) for r in _deciding(probabilities.float(), self._scheme)]
        self._predicted += [_above(b) for b in bins]
        for number, labels in enumerate(samples):
            if number == len(self._common):
                self._common.append(np.zeros_like(self._predicted))
                self._drawn.append(np.zeros(len(bins)))
            masks = [mask for _, mask in self._scheme.class_masks(labels)]
            self._common[number] += [_above(b[mask]) for b, mask in zip(bins, masks, strict=True)]
            self._drawn[number] += [np.count_nonzero(mask) for mask in masks]

    def best(self) -> float:
        """The threshold of the highest mean Dice, the one nearest to 0.5 of several; 0.5 without any object."""
        dice = [
            2 * common / (size + voxels)
            for counts, drawn in zip(self._common, self._drawn, strict=True)
            for common, size, voxels in zip(counts, self._predicted, drawn, strict=True)
            if voxels
        ]
        if not dice:
            return NEUTRAL
        mean = np.mean(dice, axis=0)
        near = [t for t, value in zip(THRESHOLDS, mean, strict=True) if value >= mean.max() - 1e-6]
        return min(near, key=lambda t: abs(t - NEUTRAL))


def shift_threshold(probabilities: Tensor, threshold: float, coding: Coding) -> Tensor:
    """Probabilities (K, ...) that the default decision thresholds as the given ones are at `threshold`.

    The odds of foreground are multiplied by (1 - t) / t: a sigmoid channel at t moves to 0.5, and a softmax class
    that has the fraction t of itself and the background draws level with the background.
    """
    if threshold == NEUTRAL:
        return probabilities
    p, factor = probabilities.float(), (1 - threshold) / threshold
    if coding == "softmax":
        raised = torch.cat([p[:1], p[1:] * factor])
        return raised / raised.sum(dim=0, keepdim=True)
    return p * factor / (p * factor + (1 - p))


def _deciding(p: Tensor, scheme: LabelScheme) -> list[Tensor]:
    """r_c (Z, Y, X) of each class: above t exactly where the shifted probabilities decide for it."""
    if scheme.coding != "softmax":
        return list(p)
    likeliest = p[1:].argmax(dim=0)
    fraction = p[1:].amax(dim=0)
    fraction = fraction / (fraction + p[0]).clamp_min(1e-12)
    return [torch.where(likeliest == index, fraction, 0.0) for index in range(len(p) - 1)]


def _above(bins: np.ndarray) -> np.ndarray:
    """How many voxels lie above each threshold, from the number of thresholds below them."""
    counts = np.bincount(bins.ravel(), minlength=len(THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:].astype(np.float64)
