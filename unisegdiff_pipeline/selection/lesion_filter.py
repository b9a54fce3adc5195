"""The lesion filter and its operating points, chosen on held-out cases; a pure function of a table of lesions.

    choice = choose_filter(cases, classes)          # cases: LesionCase of every held-out case and class
    choice.lesion_filter, choice.points, choice.describe(units)

The utility is Dice over the cases with a lesion plus the F1 of all lesions, and a filter may give no more false alarms
per lesion-free case than the plain segmenter at 0.5 does. What the best of many rules gains on few cases is mostly
luck, so every lesion stays unless a filter shows its worth on patients that it was not chosen on:

- rules of one number alone are tried: a confidence, a probability, a size up to half of the smallest lesion that was
  found, or the largest lesion of a case (rules of several numbers and larger sizes lost Dice on other patients);
- a rule costs no Dice, and is the one that removes least of those whose utility is near the highest;
- each patient's lesions are filtered by the rule that is so chosen on all others (leave one patient out);
- the utility so reached must exceed that of keeping every lesion by GAIN_ERRORS standard errors (jackknife over
  patients), and Dice not fall; or, where keeping every lesion gives more false alarms than the plain segmenter, the
  false alarms must fall by as much, and the utility not fall by one standard error;
- at least FEWEST_PATIENTS patients have a lesion.

Where annotators drew a single lesion in all cases with any, as of an organ, those cases tell more than the held-out
ones: then only the largest lesion of a case stays, unless that is worse on the held-out cases. One rule that is known
beforehand is not the luckiest of many, so that it need not gain anything there, on however few patients.

In a unified data set all of these are means over its sources: a large one does not choose the rule of the small ones.
The rule is then the best on all patients. A user who asks for a certain sensitivity takes that risk knowingly:
operating points are of rules of two numbers too, and their scores of the cases that they were chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from unisegdiff_pipeline.core.progress import counted, is_or_are
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.inference.lesion_filter import NO_RULE, LesionFilter, LesionRule, SizeUnit
from unisegdiff_pipeline.inference.utility import DEFAULT_UTILITY, OperatingPoint, Utility, best_point

GAIN_ERRORS = 1.645  # standard errors that the gain on patients not chosen on must exceed: 5 % of one tail
WEAKER_ERRORS = 1.0  # standard errors of utility that a rule may have less, if it removes less (Breiman et al. 1984)
SIZE_FRACTION = 0.5  # of the smallest lesion that was found, that no smallest size may exceed
FEWEST_PATIENTS = 6  # with a lesion
CONFIDENCES = (0.25, 0.5, 0.75, 1.0)
NUM_STEPS = 15  # of probability and size that are tried, at quantiles of the lesions and of the false ones
MOST_POINTS = 30  # that are kept
ROUNDING = 1e-12  # of scores
FEWEST_ANNOTATED = 20  # cases with a lesion that can tell that there is one alone
LARGEST = LesionRule(max_lesions=1)


@dataclass(frozen=True)
class FoundLesion:
    """A lesion of the mask before any filter.

    Attributes:
        size: in the unit of the filter.
        confidence: fraction of samples that overlap it; NaN without samples.
        probability: mean of the class's probability over it.
        voxels, common: its voxels, and those of them that the reference holds.
        matched: numbers of the reference lesions that it shares a voxel with.
    """

    size: float
    confidence: float
    probability: float
    voxels: int
    common: int
    matched: tuple[int, ...]


@dataclass(frozen=True)
class LesionCase:
    """One class of a held-out case.

    Attributes:
        group: its patient.
        lesions: of the mask, largest first.
        reference_voxels, num_reference: of the reference, and its lesions; 0 where the case is free of the class.
        plain_false_alarms: lesions of the plain segmenter's mask at 0.5 that share no voxel with the reference.
        case_id: its name.
        source: in a unified data set.
    """

    group: str
    class_name: str
    lesions: tuple[FoundLesion, ...]
    reference_voxels: int
    num_reference: int
    plain_false_alarms: int
    case_id: str = ""
    source: str = ""

    def outcome(self, rule: LesionRule) -> RuleOutcome:
        """What is left by a rule."""
        kept = rule.kept(
            [lesion.size for lesion in self.lesions],
            [lesion.confidence for lesion in self.lesions],
            [lesion.probability for lesion in self.lesions],
        )
        left = [lesion for lesion, stays in zip(self.lesions, kept, strict=True) if stays]
        dice = math.nan
        if self.num_reference:
            voxels = sum(lesion.voxels for lesion in left) + self.reference_voxels
            dice = 2 * sum(lesion.common for lesion in left) / voxels
        detected = len({number for lesion in left for number in lesion.matched})
        return RuleOutcome(dice, detected, sum(not lesion.matched for lesion in left))


@dataclass(frozen=True)
class RuleOutcome:
    """What is left of one class of a case by a rule.

    Attributes:
        dice: NaN for a case that is free of the class.
        detected: lesions of the reference that the mask shares a voxel with.
        false: lesions of the mask that share no voxel with the reference.
    """

    dice: float
    detected: int
    false: int


@dataclass(frozen=True)
class RuleChoice:
    """What was found for one class.

    Attributes:
        rule: that was taken; `NO_RULE` keeps every lesion.
        best: the point of the best rule, taken or not, and `unfiltered` that of keeping every lesion, on all cases.
        gain, gain_error: of the utility on patients not chosen on, and its standard error; NaN where none could tell.
        dice_gain: of Dice alone, there.
        plain_false_alarms: of the plain segmenter at 0.5, per lesion-free case; NaN without such a case.
        num_patients, num_cases, num_lesion_free: that it was chosen on; the patients are those with a lesion.
        points: rules worth offering, by rising sensitivity; the first of them are strict.
        num_sources: that all scores are means over; 1 for an ordinary data set.
        num_annotated: cases with a lesion, trained on or held out.
        by_annotations: whether these, which all hold one alone, decided for the largest.
    """

    rule: LesionRule
    best: OperatingPoint
    unfiltered: OperatingPoint
    gain: float
    gain_error: float
    dice_gain: float
    plain_false_alarms: float
    num_patients: int
    num_cases: int
    num_lesion_free: int
    points: tuple[OperatingPoint, ...]
    num_sources: int = 1
    num_annotated: int = 0
    by_annotations: bool = False

    def describe(self, class_name: str, units: Units = VOLUMES) -> str:
        """What was chosen and what it gains, in a sentence or two."""
        told = f"{counted(self.num_cases, 'held-out case')}, {self.num_lesion_free} of them free of it"
        told += f", means over {self.num_sources} sources" * (self.num_sources > 1)
        gain = f"{self.gain:+.3f} (standard error {self.gain_error:.3f})"
        if self.rule == NO_RULE:
            if self.num_patients < FEWEST_PATIENTS:
                verb = is_or_are(self.num_patients)
                why = f"{counted(self.num_patients, 'patient')} with it {verb} too few, {FEWEST_PATIENTS} are needed"
            else:
                why = (
                    f"on patients that it was not chosen on the best rule gains {gain} of Dice + lesion F1, "
                    f"{self.dice_gain:+.3f} of Dice alone"
                )
            return f"{class_name}: every lesion stays ({told}; {why})."
        alarms = ""
        if self.num_lesion_free:
            alarms = (
                f", false alarms per lesion-free case from {self.unfiltered.false_alarms:.2f} to "
                f"{self.best.false_alarms:.2f}"
            )
        why, others = "", f"; on patients that it was not chosen on Dice + lesion F1 {gain}"
        if self.by_annotations:
            why = f", because all {counted(self.num_annotated, 'annotated case')} hold one alone"
            others = ""
        return (
            f"{class_name}: a lesion stays where {self.rule.describe(units)}{why}. On {told}: Dice from "
            f"{self.unfiltered.dice:.3f} to {self.best.dice:.3f}, lesion F1 from {self.unfiltered.lesion_f1:.3f} to "
            f"{self.best.lesion_f1:.3f}{alarms}{others}."
        )


@dataclass(frozen=True)
class FilterChoice:
    """The filter of all classes, and what was found for each."""

    lesion_filter: LesionFilter
    classes: dict[str, RuleChoice]

    def describe(self, units: Units = VOLUMES) -> list[str]:
        """A sentence or two for each class."""
        return [choice.describe(name, units) for name, choice in self.classes.items()]

    @property
    def points(self) -> dict[str, tuple[OperatingPoint, ...]]:
        """The operating points of each class."""
        return {name: choice.points for name, choice in self.classes.items()}


def choose_filter(
    cases: Sequence[LesionCase],
    classes: Sequence[str],
    unit: SizeUnit | None,
    trained: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> FilterChoice:
    """Choose the rule of every class; see the head of this module.

    Args:
        cases: one entry for each held-out case and class.
        classes: names of all classes; those without any case keep every lesion.
        unit: of the sizes; None where they have several, and no smallest size is tried.
        trained: how many lesions of each class annotators drew in each case trained on that has any.
    """
    found = {}
    for name in classes:
        own = [case for case in cases if case.class_name == name]
        if own:
            found[name] = choose_rule(own, trained.get(name, ()), with_sizes=unit is not None)
    rules = {name: choice.rule for name, choice in found.items() if choice.rule != NO_RULE}
    return FilterChoice(LesionFilter(rules=rules, unit=unit or "ml"), found)


def choose_rule(cases: Sequence[LesionCase], trained: Sequence[int] = (), *, with_sizes: bool = True) -> RuleChoice:
    """The rule of one class, and its operating points, from one entry of each held-out case.

    `trained` is how many lesions annotators drew in each case trained on that has any.
    """
    offered = offered_rules(cases, with_sizes=with_sizes)
    table = _Table(candidate_rules(offered), cases)
    everything = np.ones(table.num_groups)
    unfiltered, best = table.point(0, everything), table.point(table.best(everything), everything)
    num_patients = len({case.group for case in cases if case.num_reference})
    gain, gain_error, dice_gain, fewer, fewer_error = table.gains_on_others()
    plain = table.plain_false_alarms(everything)
    worth = gain_error > 0 and gain > GAIN_ERRORS * gain_error and dice_gain >= 0
    if unfiltered.false_alarms > plain and fewer_error > 0:
        worth = worth or (fewer > GAIN_ERRORS * fewer_error and gain > -gain_error)
    worth = worth and num_patients >= FEWEST_PATIENTS
    annotated = [*trained, *(case.num_reference for case in cases if case.num_reference)]
    is_single = len(annotated) >= FEWEST_ANNOTATED and set(annotated) == {1}
    by_annotations = False
    if is_single and not worth:  # a second annotated piece is rarer than a false one, of which fewer cases tell
        largest = _Table([LARGEST], cases).point(0, everything)
        if by_annotations := _is_no_worse(largest, unfiltered):
            best = largest
    return RuleChoice(
        rule=best.rule if worth or by_annotations else NO_RULE,
        best=best,
        unfiltered=unfiltered,
        gain=gain,
        gain_error=gain_error,
        dice_gain=dice_gain,
        plain_false_alarms=plain,
        num_patients=num_patients,
        num_cases=len(cases),
        num_lesion_free=sum(case.num_reference == 0 for case in cases),
        points=_worth_offering(_Table(offered, cases).points()),
        num_sources=len({case.source for case in cases}),
        num_annotated=len(annotated),
        by_annotations=by_annotations,
    )


def _is_no_worse(point: OperatingPoint, unfiltered: OperatingPoint) -> bool:
    """Whether a rule costs neither Dice nor F1 on the held-out cases, up to rounding."""
    return point.dice > unfiltered.dice - ROUNDING and point.lesion_f1 > unfiltered.lesion_f1 - ROUNDING


def candidate_rules(offered: Sequence[LesionRule]) -> list[LesionRule]:
    """Of the rules that are offered those of one number, which may be chosen unasked; the first keeps every lesion."""

    def numbers(rule: LesionRule) -> int:
        least = (rule.min_confidence, rule.min_probability, rule.min_size)
        return sum(value > 0 for value in least) + (rule.max_lesions is not None)

    return [rule for rule in offered if numbers(rule) <= 1]


def offered_rules(cases: Sequence[LesionCase], *, with_sizes: bool = True) -> list[LesionRule]:
    """All rules whose scores are worth knowing, the weakest of each kind first; the first keeps every lesion."""
    lesions = [lesion for case in cases for lesion in case.lesions]
    if all(lesion.matched for lesion in lesions):
        return [NO_RULE]
    false = [lesion.size for lesion in lesions if not lesion.matched]
    largest = SIZE_FRACTION * min((lesion.size for lesion in lesions if lesion.matched), default=0.0)
    sampled = any(not math.isnan(lesion.confidence) for lesion in lesions)
    several = any(len(case.lesions) > 1 for case in cases)
    probabilities = _steps([lesion.probability for lesion in lesions], digits=2)
    rules = [LesionRule(min_probability=value) for value in (0.0, *probabilities) if value <= 1]
    rules += [LesionRule(min_size=value) for value in _steps(false, digits=None) if with_sizes and value <= largest]
    rules += [LesionRule(min_confidence=value) for value in CONFIDENCES if sampled]
    return rules + [replace(rule, max_lesions=1) for rule in rules if several and not rule.min_size]


def _steps(values: Sequence[float], digits: int | None) -> list[float]:
    """Values just above quantiles of the given ones, rounded up to so many decimals or to two digits."""
    steps = set()
    if values:
        for quantile in np.quantile(np.asarray(values, float), np.arange(1, NUM_STEPS + 1) / NUM_STEPS):
            decimals = digits if digits is not None else 1 - math.floor(math.log10(max(quantile, 1e-300)))
            scale = 10.0**decimals
            steps.add(round((math.floor(quantile * scale) + 1) / scale, max(decimals, 0)))
    return sorted(steps)


class _Table:
    """What each rule does in each group of cases, so that any set of groups is summed up at once.

    Scores are means over the sources that they are defined for; an ordinary data set is one source.

    Attributes:
        rules: the candidates; the first keeps every lesion.
        num_groups: patients.
    """

    def __init__(self, rules: Sequence[LesionRule], cases: Sequence[LesionCase]) -> None:
        self.rules = rules
        groups = {name: number for number, name in enumerate(dict.fromkeys(case.group for case in cases))}
        self.num_groups = len(groups)
        source_of = {case.group: case.source for case in cases}
        sources = np.array([source_of[group] for group in groups])
        self._members = [(sources == source).astype(float) for source in dict.fromkeys(source_of.values())]
        shape = (len(rules), len(groups))
        self._dice, self._detected, self._false, self._alarms = (np.zeros(shape) for _ in range(4))
        self._with, self._reference, self._free, self._plain = (np.zeros(len(groups)) for _ in range(4))
        for case in cases:
            group = groups[case.group]
            self._with[group] += case.num_reference > 0
            self._reference[group] += case.num_reference
            self._free[group] += case.num_reference == 0
            self._plain[group] += case.plain_false_alarms if case.num_reference == 0 else 0
            for index, rule in enumerate(rules):
                outcome = case.outcome(rule)
                self._false[index, group] += outcome.false
                if case.num_reference:
                    self._dice[index, group] += outcome.dice
                    self._detected[index, group] += outcome.detected
                else:
                    self._alarms[index, group] += outcome.false

    def utilities(self, weights: np.ndarray) -> np.ndarray:
        """Dice over cases with a lesion + F1 of all lesions, of every rule; NaN without a case with a lesion."""
        return self._ratio(self._dice, self._with, weights) + self._f1(self._detected, self._false, weights)

    def false_alarms(self, weights: np.ndarray) -> np.ndarray:
        """Of every rule, per lesion-free case; 0 without one."""
        return np.nan_to_num(self._ratio(self._alarms, self._free, weights))

    def plain_false_alarms(self, weights: np.ndarray) -> float:
        """Of the plain segmenter, per lesion-free case; NaN without one."""
        return float(self._ratio(self._plain[None], self._free, weights)[0])

    def best(self, weights: np.ndarray) -> int:
        """The rule that removes least among those whose utility is near the highest, by WEAKER_ERRORS standard errors.

        Of rules that cost no Dice and, of these, have no more false alarms than the plain segmenter, or fewest. The
        highest utility of all is reached just below the last lesion that is still there: the next patient's is not.
        """
        dice, alarms = self._ratio(self._dice, self._with, weights), self.false_alarms(weights)
        able = ~(dice < dice[0] - ROUNDING)  # all of them where it is undefined
        limit = self.plain_false_alarms(weights)
        if not math.isnan(limit):
            able &= alarms <= max(limit, alarms[able].min()) + ROUNDING
        values = np.where(able, np.nan_to_num(self.utilities(weights)), -np.inf)
        highest = int(np.flatnonzero(values >= values.max() - ROUNDING)[0])
        if highest == 0:
            return 0
        near = values >= values[highest] - WEAKER_ERRORS * self._errors[:, highest] - ROUNDING
        near[0] = False  # whether anything is worth removing is asked on other patients
        stay = (self._detected + self._false) @ weights
        return int(np.argmax(np.where(near, stay, -np.inf)))

    @cached_property
    def _errors(self) -> np.ndarray:
        """Standard error of the difference in utility of each two rules (jackknife over groups)."""
        number = self.num_groups
        parts = np.nan_to_num(np.array([self.utilities(others) for others in self._one_left_out()]))
        parts -= parts.mean(axis=0)
        products = parts.T @ parts
        squares = np.diag(products)[:, None] + np.diag(products) - 2 * products
        return np.sqrt((number - 1) / number * squares.clip(min=0))

    def gains_on_others(self) -> tuple[float, float, float, float, float]:
        """Gain of utility over keeping every lesion on patients not chosen on and its standard error, the gain of Dice
        alone, and how many false alarms fewer there are and its standard error.

        NaN where there are fewer than three patients.
        """
        number = self.num_groups
        if number < 3 or not self._reference.any():
            return math.nan, math.nan, math.nan, math.nan, math.nan
        chosen = np.array([self.best(others) for others in self._one_left_out()])

        def difference(weights: np.ndarray) -> tuple[float, float, float]:
            own = chosen, np.arange(number)
            dice = self._ratio(self._dice[own] - self._dice[0], self._with, weights)
            fewer = self._ratio(self._alarms[0] - self._alarms[own], self._free, weights)
            detected, false = (np.stack([table[own], table[0]]) for table in (self._detected, self._false))
            filtered, everything = np.nan_to_num(self._f1(detected, false, weights))
            gain = float(np.nan_to_num(dice[0]))
            return gain + float(filtered - everything), gain, float(np.nan_to_num(fewer[0]))

        whole = difference(np.ones(number))
        parts = np.array([difference(others) for others in self._one_left_out()])
        errors = np.sqrt((number - 1) / number * ((parts - parts.mean(axis=0)) ** 2).sum(axis=0))
        return whole[0], float(errors[0]), whole[1], whole[2], float(errors[2])

    def _one_left_out(self) -> Iterator[np.ndarray]:
        """Weights of all groups but one, for each in turn."""
        for group in range(self.num_groups):
            weights = np.ones(self.num_groups)
            weights[group] = 0
            yield weights

    def points(self) -> list[OperatingPoint]:
        """Every rule with its scores on all cases."""
        return [self.point(index, np.ones(self.num_groups)) for index in range(len(self.rules))]

    def point(self, index: int, weights: np.ndarray) -> OperatingPoint:
        """A rule and its scores."""
        own = slice(index, index + 1)
        return OperatingPoint(
            rule=self.rules[index],
            dice=float(self._ratio(self._dice[own], self._with, weights)[0]),
            lesion_f1=float(self._f1(self._detected[own], self._false[own], weights)[0]),
            sensitivity=float(self._ratio(self._detected[own], self._reference, weights)[0]),
            fp_per_case=float(self._ratio(self._false[own], self._free + self._with, weights)[0]),
            false_alarms=float(self._ratio(self._alarms[own], self._free, weights)[0]),
        )

    def _ratio(self, counts: np.ndarray, of: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Mean over the sources of the sum of some groups' counts (N, num_groups) by the sum of `of`; (N,)."""
        counts = np.atleast_2d(counts)
        parts = [(counts @ own) / number for own in self._among(weights) if (number := float(of @ own))]
        return np.mean(parts, axis=0) if parts else np.full(len(counts), math.nan)

    def _f1(self, detected: np.ndarray, false: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Mean over the sources of the F1 of all lesions of some groups; (N,) of (N, num_groups)."""
        parts = []
        for own in self._among(weights):
            if reference := float(self._reference @ own):
                found = detected @ own
                parts.append(2 * found / (found + false @ own + reference))
        return np.mean(parts, axis=0) if parts else np.full(len(detected), math.nan)

    def _among(self, weights: np.ndarray) -> list[np.ndarray]:
        """The weights of the groups of each source, 0 elsewhere."""
        return [weights * members for members in self._members]


def _worth_offering(points: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """Of each sensitivity the point of fewest false positives, and those of the highest Dice, F1 and utility."""
    if not points or math.isnan(points[0].sensitivity):
        return ()
    front: dict[float, OperatingPoint] = {}
    for point in points:
        known = front.get(point.sensitivity)
        if known is None or (-point.fp_per_case, point.dice) > (-known.fp_per_case, known.dice):
            front[point.sensitivity] = point
    curve = [front[key] for key in sorted(front)]
    if len(curve) > MOST_POINTS:
        curve = [curve[i] for i in np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int)]
    named = [points[0], *(best_point(points, Utility(kind)) for kind in ("dice", "lesion_f1"))]
    named.append(best_point(points, DEFAULT_UTILITY))
    return tuple(sorted(dict.fromkeys([*curve, *named]), key=lambda p: (p.sensitivity, p.fp_per_case)))
