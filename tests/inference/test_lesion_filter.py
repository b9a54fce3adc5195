"""What a lesion rule keeps, how folds' filters are combined, and what a voxel is without a class."""

from __future__ import annotations

import math

import pytest

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.inference.lesion_filter import (
    NO_FILTER,
    LesionFilter,
    LesionRule,
    can_filter,
    combined_filter,
    value_without,
)

NESTED = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
OVERLAPPING = LabelScheme(("left", "right"), ((1, 2), (2, 3)), "regions", (1, 3))
CLASSES = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (LesionRule(), [True, True, True]),
        (LesionRule(min_confidence=0.5), [True, False, True]),
        (LesionRule(min_probability=0.6), [False, True, True]),
        (LesionRule(min_size=3.0), [True, True, False]),
        (LesionRule(max_lesions=1), [True, False, False]),
        (LesionRule(min_probability=0.6, max_lesions=1), [False, True, False]),
    ],
)
def test_what_a_rule_keeps(rule: LesionRule, kept: list[bool]) -> None:
    assert rule.kept([9.0, 3.0, 2.0], [0.5, 0.25, math.nan], [0.5, 0.6, 0.9]).tolist() == kept


def test_a_rule_in_words() -> None:
    rule = LesionRule(min_confidence=0.5, min_probability=0.6, min_size=12.0, max_lesions=1)
    assert rule.describe(units_of(True, False)) == (
        "at least 50% of the samples overlap it, its mean probability is at least 0.60 and its area is at least "
        "12 pixels\N{SUPERSCRIPT TWO}; only the largest one of a case"
    )


def test_sizes_of_another_unit_do_not_count() -> None:
    found = LesionFilter(rules={"lesion": LesionRule(min_size=3.0, max_lesions=2)}, unit="ml")
    assert found.rule("lesion", "ml").min_size == 3
    assert found.rule("lesion", "pixels2") == LesionRule(max_lesions=2)
    assert found.rule("another", "ml") == LesionRule()
    assert found.void_in("ml") == ""
    assert LesionFilter(rules={"lesion": LesionRule(max_lesions=2)}, unit="ml").void_in("pixels2") == ""
    assert found.void_in("pixels2") == (
        "the lesion filter of lesion asks for a smallest size in ml, but this image is measured in pixels2: that part "
        "of it removes nothing"
    )


def test_what_a_filter_cannot_do_without_samples_is_said() -> None:
    assert LesionFilter(rules={"a": LesionRule(min_probability=0.5)}).void_without_samples() == ""
    found = LesionFilter(rules={"a": LesionRule(min_confidence=0.5), "b": LesionRule(min_size=1.0)})
    assert found.void_without_samples().startswith("the lesion filter of a asks for a fraction of the samples")


def test_folds_have_the_lower_median_of_their_rules() -> None:
    def one(value: float, most: int | None) -> LesionFilter:
        return LesionFilter(rules={"lesion": LesionRule(min_probability=value, max_lesions=most)}, unit="mm2")

    assert combined_filter([one(0.5, 1), one(0.7, None), one(0.6, 3)]).rules["lesion"] == LesionRule(
        min_probability=0.6, max_lesions=3
    )
    assert combined_filter([one(0.5, 1), NO_FILTER]).keeps_all  # one of two folds is no majority
    assert combined_filter([one(0.5, 1)]) == one(0.5, 1)
    in_pixels = LesionFilter(rules={"lesion": LesionRule(min_size=3.0)}, unit="pixels2")
    in_ml = LesionFilter(rules={"lesion": LesionRule(min_size=3.0)}, unit="ml")
    assert combined_filter([in_pixels, in_ml]).keeps_all
    assert combined_filter([in_pixels, in_pixels]) == in_pixels


def test_a_voxel_that_leaves_a_region_leaves_those_inside() -> None:
    assert value_without(2, "core", NESTED) == 1
    assert value_without(2, "whole", NESTED) == 0
    assert value_without(1, "whole", NESTED) == 0
    assert value_without(2, "b", CLASSES) == 0


def test_schemes_whose_lesions_cannot_leave_alone() -> None:
    assert can_filter(CLASSES)
    assert can_filter(NESTED)
    assert can_filter(OVERLAPPING)  # 2 without left is 3
    # A voxel of 2 that leaves a is in b alone, and no value says so: 3 is in c too.
    assert not can_filter(LabelScheme(("a", "b", "c"), ((1, 2), (2, 3), (3,)), "regions", (1, 2, 3)))
