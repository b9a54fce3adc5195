"""ULS23, universal lesion segmentation: Dice, and the long and the short axis that radiologists measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.evaluation.boundary import surface
from unisegdiff_pipeline.evaluation.profiles.profile import Profile, ProfileCase, ProfileScore, dice_of, mean_of

ROWS_AT_ONCE = 256
WEIGHTS = {"dice": 0.8, "long_axis_error": 0.05, "short_axis_error": 0.05}


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    reference, predicted = axes_of(case.reference), axes_of(case.predicted)
    return ProfileScore(
        {
            "dice": dice_of(case.reference, case.predicted, both_empty=0.0),
            "long_axis_error": relative_error(reference[0], predicted[0]),
            "short_axis_error": relative_error(reference[1], predicted[1]),
        }
    )


def pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """The challenge's score without the tenth for consistency; at most 0.9."""
    means = {name: mean_of(scores, name) for name in WEIGHTS}
    parts = (weight * (means[n] if n == "dice" else 1 - min(1.0, means[n])) for n, weight in WEIGHTS.items())
    return {"score_without_consistency": math.fsum(parts)}


def relative_error(one: float, other: float) -> float:
    """|a - b| / (a + b); 0 where both are 0."""
    return abs(one - other) / (one + other) if one + other else 0.0


def axes_of(mask: np.ndarray) -> tuple[float, float]:
    """Long and short axis of a mask (Z, Y, X) in pixels, both in one slice across Z.

    Of each slice the largest component counts (pixels that share an edge). The long axis is the largest distance
    between two of its outline pixels, in the slice where that is largest; the short axis the largest distance between
    two of them whose line is perpendicular to the long axis within 1 degree, or within the least whole number of
    degrees that gives any. A single pixel and an empty mask have axes of 0.
    """
    longest, points, ends = 0.0, np.empty((0, 2)), (0, 0)
    for plane in mask:
        if not plane.any():
            continue
        outline = np.argwhere(surface(find_components(plane[None], 6).numbers()[0] == 1)).astype(float)
        length, pair = _farthest(outline)
        if length > longest:
            longest, points, ends = length, outline, pair
    if longest == 0:
        return 0.0, 0.0
    return longest, _perpendicular(points, points[ends[1]] - points[ends[0]])


def _farthest(points: np.ndarray) -> tuple[float, tuple[int, int]]:
    """Largest distance between two points (n, 2), and the first pair that has it."""
    best, pair = 0.0, (0, 0)
    for start, squared, _ in _pairs(points, np.zeros(2)):
        if squared.max(initial=0.0) > best:
            best = float(squared.max())
            i, j = np.unravel_index(int(squared.argmax()), squared.shape)
            pair = (start + int(i), int(j))
    return math.sqrt(best), pair


def _perpendicular(points: np.ndarray, axis: np.ndarray) -> float:
    """Largest distance between two points whose line is as good as perpendicular to the axis."""
    least = min(float(off.min()) for _, _, off in _pairs(points, axis))
    limit = math.floor(least) + 1
    return math.sqrt(max(float(squared[off < limit].max(initial=0.0)) for _, squared, off in _pairs(points, axis)))


def _pairs(points: np.ndarray, axis: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows of all pairs: the first row, squared distances, and degrees by which a line misses a right angle."""
    for start in range(0, len(points), ROWS_AT_ONCE):
        lines = points[None, :, :] - points[start : start + ROWS_AT_ONCE, None, :]
        squared = (lines**2).sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine = lines @ axis / np.sqrt(squared * (axis @ axis))
        off = np.abs(np.degrees(np.arccos(np.clip(cosine, -1, 1))) - 90)
        yield start, squared, np.where(squared > 0, off, np.inf)


ULDS = Profile(
    name="ulds",
    title="ULS23, universal lesion segmentation",
    source="evaluation/ of github.com/DIAGNijmegen/ULS23; uls23.grand-challenge.org",
    rule="Dice of all voxels, 0 for two empty masks. The long axis is the largest distance within a slice between "
    "two outline pixels of the slice's largest component (pixels that share an edge); the short axis is the "
    "longest line of that slice perpendicular to it within 1 degree. Errors are |a - b| / (a + b). Score: 0.8 "
    "Dice + 0.05 (1 - long axis error) + 0.05 (1 - short axis error), of means over cases; the 0.1 for "
    "consistency under shifts of the volume needs further predictions and is left out, so that 0.9 is the "
    "best. The challenge scores one lesion a case.",
    columns={
        "dice": "Dice of all voxels",
        "long_axis_error": "relative error of the long axis",
        "short_axis_error": "relative error of the short axis",
    },
    score=score,
    pooled=pooled,
)
