"""Which lesions of a decided mask stay in it: a rule for each class, on their confidence, size and number.

Training chooses the rules on held-out cases (`selection.lesion_filter`) and keeps them in inference.json. They are
applied on the grid of the image after the mask is decided and before it is written; samples and probabilities stay as
they are. A lesion is a connected component (26 neighbours, 8 in 2D) of its class.

Where regions lie within one another, a voxel that leaves a region leaves those inside it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike

from unisegdiff_pipeline.core.bounds import Fraction, NotNegative, Range
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.core.words import joined

SizeUnit = Literal["ml", "mm2", "pixels2"]
ROUNDING = 1e-9  # of fractions of samples and of sizes


@dataclass(frozen=True, kw_only=True)
class LesionRule:
    """What a lesion of one class must be to stay.

    Attributes:
        min_confidence: smallest fraction of samples that overlap it; a lesion of unknown confidence (no samples) stays.
        min_probability: smallest mean of the class's probability over the lesion.
        min_size: smallest size, in the unit of the filter.
        max_lesions: the largest ones of those left stay, at most so many; None for any number.
    """

    min_confidence: Fraction = 0.0
    min_probability: Fraction = 0.0
    min_size: NotNegative = 0.0
    max_lesions: Annotated[int, Range(1, 1_000_000)] | None = None

    def kept(self, sizes: ArrayLike, confidences: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
        """Which lesions of a case stay, boolean (n,), given those of a class, largest first; NaN is unknown."""
        kept = np.asarray(sizes, float) >= self.min_size * (1 - ROUNDING)
        for values, least in ((confidences, self.min_confidence), (probabilities, self.min_probability)):
            known = np.asarray(values, float)
            kept &= np.isnan(known) | (known >= least - ROUNDING)
        return kept if self.max_lesions is None else kept & (np.cumsum(kept) <= self.max_lesions)

    def describe(self, units: Units) -> str:
        """The rule in words, after "A lesion stays"; empty where every lesion stays."""
        parts = []
        if self.min_confidence > 0:
            parts.append(f"at least {self.min_confidence:.0%} of the samples overlap it")
        if self.min_probability > 0:
            parts.append(f"its mean probability is at least {self.min_probability:.2f}")
        if self.min_size > 0:
            parts.append(f"its {units.size_word} is at least {units.size_shown(self.min_size)}")
        text = joined(parts)
        if self.max_lesions is None:
            return text
        largest = "largest one" if self.max_lesions == 1 else f"{self.max_lesions} largest ones"
        if text:
            return f"{text}; only the {largest} of a case"
        return "it is the largest of its case" if self.max_lesions == 1 else f"it is one of the {largest} of its case"


NO_RULE = LesionRule()


@dataclass(frozen=True, kw_only=True)
class LesionFilter:
    """The rules of a model.

    Attributes:
        rules: by class; of a class that is not named every lesion stays.
        unit: of sizes; `min_size` does not hold for images whose sizes have another one.
    """

    rules: Mapping[str, LesionRule] = field(default_factory=dict)
    unit: SizeUnit = "ml"

    def rule(self, class_name: str, unit: SizeUnit) -> LesionRule:
        """What holds for a class in an image whose sizes have this unit."""
        rule = self.rules.get(class_name, NO_RULE)
        if unit == self.unit or rule.min_size == 0:
            return rule
        return replace(rule, min_size=0.0)

    @property
    def keeps_all(self) -> bool:
        """Whether no lesion can be removed."""
        return all(rule == NO_RULE for rule in self.rules.values())

    def void_without_samples(self) -> str:
        """What does not hold where no samples are there, in words; empty where nothing is lost."""
        names = [name for name, rule in self.rules.items() if rule.min_confidence > 0]
        if not names:
            return ""
        return (
            f"the lesion filter of {', '.join(names)} asks for a fraction of the samples that overlap a lesion, but "
            f"there are no samples: that part of it removes nothing"
        )

    def void_in(self, unit: SizeUnit) -> str:
        """What does not hold for an image whose sizes have this unit, in words; empty where nothing is lost."""
        names = [name for name, rule in self.rules.items() if rule.min_size > 0]
        if not names or unit == self.unit:
            return ""
        return (
            f"the lesion filter of {', '.join(names)} asks for a smallest size in {self.unit}, but this image is "
            f"measured in {unit}: that part of it removes nothing"
        )


NO_FILTER = LesionFilter()


def combined_filter(filters: Sequence[LesionFilter]) -> LesionFilter:
    """One filter for the mean of several folds: the lower median of each number, where "every lesion stays" counts too.

    So a rule holds where more than half of the folds have one. Folds of different units have no smallest size together.
    """
    names = list(dict.fromkeys(name for one in filters for name in one.rules))
    units = {one.unit for one in filters if any(rule.min_size > 0 for rule in one.rules.values())}
    unit: SizeUnit = next(iter(units)) if len(units) == 1 else filters[0].unit
    middle = (len(filters) - 1) // 2
    rules = {}
    for name in names:
        own = [one.rules.get(name, NO_RULE) for one in filters]
        most = sorted((np.inf if rule.max_lesions is None else rule.max_lesions for rule in own), reverse=True)[middle]
        rule = LesionRule(
            min_confidence=sorted(rule.min_confidence for rule in own)[middle],
            min_probability=sorted(rule.min_probability for rule in own)[middle],
            min_size=sorted(rule.min_size for rule in own)[middle] if len(units) == 1 else 0.0,
            max_lesions=None if np.isinf(most) else int(most),
        )
        if rule != NO_RULE:
            rules[name] = rule
    return LesionFilter(rules=rules, unit=unit)


def value_without(value: int, class_name: str, scheme: LabelScheme) -> int:
    """The label value of a voxel that leaves a class: that of most of its other regions, 0 where none is left."""
    left = set(scheme.regions_of(value)) - {class_name}
    fitting = [v for v in scheme.allowed_values if v != scheme.ignore_value and set(scheme.regions_of(v)) <= left]
    return max(sorted(fitting), key=lambda v: len(scheme.regions_of(v)))


def can_filter(scheme: LabelScheme) -> bool:
    """Whether a lesion can leave any class without taking voxels from classes that do not lie within it.

    It cannot where regions overlap and neither lies within the other, and no value stands for what would be left.
    """
    inside = {name: {name} for name in scheme.names}
    for inner, outer in scheme.nesting:
        inside[scheme.names[outer]].add(scheme.names[inner])
    return all(
        set(scheme.regions_of(value_without(value, name, scheme))) == set(scheme.regions_of(value)) - inside[name]
        for value in {v for group in scheme.members for v in group}
        for name in scheme.regions_of(value)
    )
