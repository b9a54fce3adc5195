"""Which predicted lesions match which reference lesions, by an explicit rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.components import Components, Connectivity, find_runs
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.dilation import SPACING_ROUNDING, dilated

Criterion = Literal["overlap", "iou", "dilated"]


@dataclass(frozen=True)
class MatchingRule:
    """When a predicted lesion counts as matched to a reference lesion.

    Example:
        >>> rule = usd.MatchingRule("iou", threshold=0.5)
        >>> one, other = np.array([[1, 1, 1, 0]]), np.array([[0, 0, 1, 1]])  # IoU 1 / 4
        >>> usd.metrics.lesions(one, other, (1.0, 1.0), rule).num_detected
        0

    Attributes:
        criterion: "overlap": they share at least one voxel. "iou": they share at least one voxel and their
            intersection over union, pair by pair, is at least `threshold`. "dilated": a voxel centre of one lies
            within `dilation_mm` of a voxel centre of the other, as if one of them had been dilated by a ball.
            Dilating decides on matching only; lesions are not joined by it and overlaps are not changed by it.
        threshold: smallest IoU, 0 to 1; used by "iou" alone.
        dilation_mm: largest distance in mm; used by "dilated" alone.
        one_to_one: False: every pair that meets the criterion is matched, so that several predicted lesions may
            share a reference lesion and the other way round. True: each lesion has at most one partner, chosen so
            that as many pairs as possible are matched and, among those choices, the sum of their IoU is largest.
        connectivity: voxels that share a face (6), also an edge (18), or also a corner (26) are one lesion; in a 2D
            image 6 means 4 neighbours, and 18 and 26 mean 8.

    Raises:
        ValueError: for a value outside what is allowed.
    """

    criterion: Criterion = "overlap"
    threshold: float = 0.0
    dilation_mm: float = 3.0
    one_to_one: bool = False
    connectivity: Connectivity = 26

    def __post_init__(self) -> None:
        if self.criterion not in get_args(Criterion):
            raise ValueError(f"criterion is {self.criterion!r}; choose one of {', '.join(get_args(Criterion))}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; an IoU lies between 0 and 1")
        if not 0 <= self.dilation_mm < math.inf:
            raise ValueError(f"dilation_mm is {self.dilation_mm}; give a distance in mm of 0 or more")
        if self.connectivity not in get_args(Connectivity):
            raise ValueError(f"connectivity is {self.connectivity}; choose 6, 18 or 26 (in 2D: 4, 8 or 8 neighbours)")

    def describe(self, units: Units = VOLUMES) -> str:
        """The rule in words, for settings and reports; distances are in these units."""
        criterion = {
            "overlap": f"they share a {units.element}",
            "iou": f"their IoU is at least {self.threshold:g}",
            "dilated": f"they come within {units.length_text(self.dilation_mm)} of each other",
        }[self.criterion]
        partners = "each at most once (one-to-one)" if self.one_to_one else "any number of times (many-to-many)"
        planar = 4 if self.connectivity == 6 else 8
        return f"lesions ({self.connectivity}-connected, {planar} in 2D) match where {criterion}, {partners}"


@dataclass(frozen=True)
class Pairs:
    """Pairs of a reference lesion and a predicted lesion, ordered by both; each array is (n,).

    Attributes:
        reference, predicted: their numbers, from 1.
        voxels: how many they share.
    """

    reference: np.ndarray
    predicted: np.ndarray
    voxels: np.ndarray

    def kept(self, keep: np.ndarray) -> Pairs:
        return Pairs(self.reference[keep], self.predicted[keep], self.voxels[keep])

    def swapped(self) -> Pairs:
        """The same pairs with the sides exchanged, so that what describes one side describes the other."""
        order = np.lexsort((self.reference, self.predicted))
        return Pairs(self.predicted[order], self.reference[order], self.voxels[order])


def find_overlaps(both: np.ndarray, reference: Components, predicted: Components) -> Pairs:
    """All pairs that share a voxel. A run of the intersection lies in one lesion of each side."""
    runs = find_runs(both)
    base = len(predicted) + 1
    keys, of_run = np.unique(
        reference.numbers_at(runs.first) * base + predicted.numbers_at(runs.first), return_inverse=True
    )
    voxels = np.bincount(of_run, weights=runs.length, minlength=len(keys)).astype(np.int64)
    return Pairs(keys // base, keys % base, voxels)


def match_lesions(
    overlaps: Pairs, reference: Components, predicted: Components, rule: MatchingRule, spacing_mm: Sequence[float]
) -> Pairs:
    """The pairs that the rule matches, out of those that share voxels and, if it dilates, those that come near."""
    pairs = overlaps
    if rule.criterion == "dilated":
        pairs = _with_near_pairs(overlaps, reference, predicted, rule.dilation_mm, spacing_mm)
    union = reference.voxels[pairs.reference - 1] + predicted.voxels[pairs.predicted - 1] - pairs.voxels
    iou = pairs.voxels / union
    if rule.criterion == "iou":
        pairs, iou = pairs.kept(iou >= rule.threshold), iou[iou >= rule.threshold]
    return pairs.kept(_best_partners(pairs, iou)) if rule.one_to_one else pairs


def _best_partners(pairs: Pairs, iou: np.ndarray) -> np.ndarray:
    """Which pairs to keep so that each lesion has one partner at most: the most pairs, then the largest sum of IoU."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keep = np.zeros(len(iou), bool)
    if not len(iou):
        return keep
    shift, size = int(pairs.reference.max()), int(pairs.reference.max() + pairs.predicted.max()) + 1
    links = coo_array((np.ones(len(iou)), (pairs.reference, pairs.predicted + shift)), shape=(size, size))
    cluster = connected_components(links, directed=False)[1][pairs.reference]
    # Lesions that compete for partners form small clusters, each of which is solved on its own.
    order = np.argsort(cluster, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        rows, row = np.unique(pairs.reference[members], return_inverse=True)
        columns, column = np.unique(pairs.predicted[members], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = 1 + iou[members] / (min(gain.shape) + 1)  # all IoU together weigh less than one more pair
        partner = np.full(len(rows), -1)
        chosen_rows, chosen_columns = linear_sum_assignment(gain, maximize=True)
        partner[chosen_rows] = chosen_columns
        keep[members] = partner[row] == column
    return keep


def _with_near_pairs(
    overlaps: Pairs, reference: Components, predicted: Components, distance_mm: float, spacing_mm: Sequence[float]
) -> Pairs:
    """Add the pairs that share no voxel and come within `distance_mm` of each other, by voxel centres."""
    near = [overlaps]
    margin = np.floor(distance_mm * (1 + SPACING_ROUNDING) / np.asarray(spacing_mm)).astype(np.int64)
    predicted_boxes = predicted.boxes()
    for number, (low, high) in enumerate(np.moveaxis(reference.boxes(), 2, 1), start=1):
        low, high = np.maximum(low - margin, 0), np.minimum(high + margin, reference.shape)
        reached = np.all((predicted_boxes[..., 1] > low) & (predicted_boxes[..., 0] < high), axis=1)
        reached[overlaps.predicted[overlaps.reference == number] - 1] = False
        if not reached.any():
            continue
        around = tuple(zip(low.tolist(), high.tolist(), strict=True))
        grown = dilated(reference.within(around) == number, distance_mm, spacing_mm)
        touched = np.unique(predicted.within(around)[grown])
        found = touched[(touched > 0) & reached[touched - 1]]
        near.append(Pairs(np.full(len(found), number), found, np.zeros(len(found), np.int64)))
    joined = [np.concatenate([getattr(p, side) for p in near]) for side in ("reference", "predicted", "voxels")]
    order = np.lexsort((joined[1], joined[0]))
    return Pairs(*(side[order] for side in joined))
