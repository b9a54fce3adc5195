"""What a profile is: the rule of a challenge as functions of one class in one case, and of all cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.core.components import Components, find_components
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import Units, voxel_size
from unisegdiff_pipeline.evaluation.lesion_matching import Pairs, find_overlaps
from unisegdiff_pipeline.evaluation.summary import mean_of_defined


@dataclass(frozen=True, eq=False)
class ProfileCase:
    """One class in one case, as a profile sees it.

    Attributes:
        reference, predicted: boolean masks (Z, Y, X), Z = 1 in 2D, ignored voxels False in both. They may be a part of
            the image that holds all voxels of both.
        geometry: of the grid that sizes and distances are measured on.
        samples: masks of the samples behind the prediction, each (Z, Y, X); empty where there are none.
        probability: of the class, (Z, Y, X); None where unknown.
        has_confidence: cases of this evaluation have samples or probabilities, so that a lesion of a case without any
            has no confidence that could be compared with theirs.
        tolerance_mm: of surface Dice; used by profiles that leave it to the user.
        min_lesion_ml: smaller lesions do not count, ml, in 2D an area; used by the profile panoptic.
    """

    reference: np.ndarray
    predicted: np.ndarray
    geometry: Geometry
    samples: Sequence[np.ndarray] = ()
    probability: np.ndarray | None = None
    has_confidence: bool = False
    tolerance_mm: float = 1.0
    min_lesion_ml: float = 0.0

    @property
    def voxel_ml(self) -> float:
        """Size of a voxel: ml, of 2D images an area (`core.units`)."""
        return voxel_size(self.geometry)

    def lesions(self) -> tuple[Components, Components, Pairs]:
        """Lesions of the reference and of the prediction, and all pairs of them that share a voxel."""
        reference, predicted = find_components(self.reference), find_components(self.predicted)
        return reference, predicted, find_overlaps(self.reference & self.predicted, reference, predicted)


@dataclass(frozen=True)
class ProfileScore:
    """Scores of one class in one case by the rule of a profile.

    Attributes:
        values: by name of the column; NaN where undefined.
        lesions: values of single lesions, for scores over the lesions of all cases.
    """

    values: Mapping[str, float]
    lesions: tuple[Mapping[str, float], ...] = ()


def no_notes(scores: Sequence[ProfileScore]) -> tuple[str, ...]:
    """For profiles that have nothing to say about the data."""
    return ()


@dataclass(frozen=True)
class Profile:
    """The rule of a challenge.

    `{length}` and `{size}` in the texts of rule and columns stand for the unit of lengths and that of small sizes.

    Attributes:
        name: of the flag, of the file and of the key.
        title: the challenge.
        source: where its rule is published.
        rule: what is counted, in words: components, matching, minimum sizes, empty masks.
        columns: what each column of `ProfileScore.values` means.
        score: scores of one class in one case.
        pooled: scores of one class over all cases that are no means over cases.
        notes: how to read them on these cases, in sentences.
    """

    name: str
    title: str
    source: str
    rule: str
    columns: Mapping[str, str]
    score: Callable[[ProfileCase], ProfileScore]
    pooled: Callable[[Sequence[ProfileScore]], Mapping[str, float]]
    notes: Callable[[Sequence[ProfileScore]], tuple[str, ...]] = no_notes

    def rule_in(self, units: Units) -> str:
        """The rule with the units of the data."""
        return _in_units(self.rule, units)

    def meaning(self, column: str, units: Units) -> str:
        """What a column means, with the units of the data."""
        return _in_units(self.columns[column], units)


def _in_units(text: str, units: Units) -> str:
    """Challenges set sizes in mm3; of 2D images the same numbers are areas, of unknown pixel size in pixels."""
    return text.format(length=units.length, size="mm3" if units.size == "ml" else units.size_text)


def nothing_pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """For profiles whose scores over all cases are means over cases."""
    return {}


def total(scores: Sequence[ProfileScore], name: str) -> float:
    """Sum of a column over the cases where it is defined."""
    return math.fsum(value for score in scores if not math.isnan(value := score.values[name]))


def mean_of(scores: Sequence[ProfileScore], name: str) -> float:
    """Mean of a column over the cases where it is defined; NaN without one."""
    return mean_of_defined(score.values[name] for score in scores)


def ratio(part: float, whole: float) -> float:
    """part / whole; NaN over 0."""
    return part / whole if whole else math.nan


def dice_of(reference: np.ndarray, predicted: np.ndarray, both_empty: float = math.nan) -> float:
    """Dice of two masks; `both_empty` where neither has a voxel."""
    size = int(np.count_nonzero(reference)) + int(np.count_nonzero(predicted))
    return 2 * int(np.count_nonzero(reference & predicted)) / size if size else both_empty
