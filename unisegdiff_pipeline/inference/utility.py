"""What a user wants of a lesion filter, and which of a model's operating points serves it best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from unisegdiff_pipeline.core.bounds import FloatOrNaN
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.inference.lesion_filter import NO_RULE, LesionFilter, LesionRule, SizeUnit

LOGGER = logging.getLogger(__name__)
UtilityKind = Literal["default", "dice", "lesion_f1", "sensitivity", "fp_per_case"]
WITH_LEVEL = ("sensitivity", "fp_per_case")


@dataclass(frozen=True)
class OperatingPoint:
    """A rule of one class and its scores on the cases that it was chosen on.

    Attributes:
        dice: mean over the cases with a lesion.
        lesion_f1, sensitivity: of all lesions; a lesion is found where the mask shares a voxel with it.
        fp_per_case: lesions of the mask that share no voxel with a reference lesion, per case.
        false_alarms: the same per lesion-free case; NaN without one.
    """

    rule: LesionRule = field(default_factory=LesionRule)
    dice: FloatOrNaN = math.nan
    lesion_f1: FloatOrNaN = math.nan
    sensitivity: FloatOrNaN = math.nan
    fp_per_case: FloatOrNaN = math.nan
    false_alarms: FloatOrNaN = math.nan


@dataclass(frozen=True)
class Utility:
    """What is wanted.

    Attributes:
        kind: "default": the highest Dice + lesion F1; "dice" and "lesion_f1": the highest of these; "sensitivity": the
            fewest false positives at a sensitivity of at least `level`; "fp_per_case": the highest sensitivity with at
            most `level` false positives per case.
        level: for the last two.

    Raises:
        ValueError: another kind, or a level that is missing, not wanted or impossible.
    """

    kind: UtilityKind
    level: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(UtilityKind):
            raise ValueError(f"utility is {self.kind!r}; allowed are {', '.join(get_args(UtilityKind))}")
        if (self.kind in WITH_LEVEL) != (self.level is not None):
            need = "needs a level, as in" if self.kind in WITH_LEVEL else "takes no level, unlike"
            raise ValueError(f"utility {self.kind} {need} sensitivity=0.9 and fp_per_case=0.5")
        if self.level is not None and not 0 <= self.level <= (1 if self.kind == "sensitivity" else math.inf):
            raise ValueError(f"{self.kind} is {self.level:g}; allowed is 0 or more, for a sensitivity up to 1")

    @classmethod
    def parse(cls, text: str) -> Utility:
        """The utility that a text such as "dice" or "sensitivity=0.9" names."""
        kind, given, level = text.partition("=")
        try:
            number = float(level) if given else None
        except ValueError:
            raise ValueError(f"utility is {text!r}; {level!r} is no number") from None
        return cls(kind, number)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.kind if self.level is None else f"{self.kind}={self.level:g}"


DEFAULT_UTILITY = Utility("default")


def best_point(points: Sequence[OperatingPoint], utility: Utility) -> OperatingPoint:
    """The point that serves best; where none reaches the level, the nearest to it. Ties go to the higher Dice.

    Raises:
        ValueError: no point at all.
    """
    if not points:
        raise ValueError("there are no operating points to choose from")

    def order(point: OperatingPoint) -> tuple[float, float, float]:
        dice = _or_0(point.dice)
        if utility.kind == "sensitivity":
            assert utility.level is not None
            missing = max(0.0, utility.level - _or_0(point.sensitivity))
            return -missing, -point.fp_per_case, dice
        if utility.kind == "fp_per_case":
            assert utility.level is not None
            return -max(0.0, point.fp_per_case - utility.level), _or_0(point.sensitivity), dice
        wanted = {"dice": dice, "lesion_f1": _or_0(point.lesion_f1), "default": dice + _or_0(point.lesion_f1)}
        return wanted[utility.kind], dice, -point.fp_per_case

    return max(points, key=order)


def filter_for(
    points: Mapping[str, Sequence[OperatingPoint]], unit: SizeUnit, utility: Utility, where: str
) -> LesionFilter:
    """The filter that serves a utility best, from the operating points of each class.

    A level that no point reaches is logged with what the nearest one has.

    Raises:
        UsdError: the model has none; `where` names the file.
    """
    if not any(points.values()):
        raise UsdError(
            f"{where} holds no operating points to choose from for --utility {utility}: they are made at the end of a "
            f"training that holds out cases with lesions. Leave --utility out, or train the fold again."
        )
    chosen = {name: best_point(own, utility) for name, own in points.items() if own}
    for name, point in chosen.items():
        kept = f"where {point.rule.describe(Units(size=unit))}" if point.rule != NO_RULE else "whatever it is like"
        LOGGER.info(
            "%s: a lesion of %s stays %s; on held-out cases Dice %.2f, lesion F1 %.2f, sensitivity %.2f, %.2f false "
            "positives a case",
            utility,
            name,
            kept,
            point.dice,
            point.lesion_f1,
            point.sensitivity,
            point.fp_per_case,
        )
        if shortfall := _shortfall(point, utility):
            LOGGER.warning("%s: no lesion filter of %s reaches %s; the nearest has %s", where, name, utility, shortfall)
    rules = {name: point.rule for name, point in chosen.items() if point.rule != NO_RULE}
    return LesionFilter(rules=rules, unit=unit)


def _shortfall(point: OperatingPoint, utility: Utility) -> str:
    """What a point has instead of the level that is asked for, in words; empty where it reaches it."""
    if utility.level is None:
        return ""
    if utility.kind == "sensitivity":
        found = _or_0(point.sensitivity)
        return f"a sensitivity of {found:.2f} on held-out cases" if found < utility.level else ""
    found = point.fp_per_case
    return f"{found:.2f} false positives a case on held-out cases" if found > utility.level else ""


def _or_0(value: float) -> float:
    return 0.0 if math.isnan(value) else value
