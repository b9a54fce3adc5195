"""The lesion filter chosen from a table of lesions, and its operating points."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.lesion_filter import NO_RULE, LesionRule
from unisegdiff_pipeline.inference.utility import OperatingPoint, Utility, best_point, filter_for
from unisegdiff_pipeline.selection.lesion_filter import LARGEST, FoundLesion, LesionCase, choose_filter, choose_rule

TRUE = FoundLesion(size=8.0, confidence=1.0, probability=0.9, voxels=8, common=8, matched=(1,))
FALSE = FoundLesion(size=2.0, confidence=0.25, probability=0.55, voxels=2, common=0, matched=())


def case(number: int, *lesions: FoundLesion, reference: int = 1, plain: int = 0, source: str = "") -> LesionCase:
    return LesionCase(f"patient{number}", "lesion", lesions, 8 * reference, reference, plain, source=source)


def test_scores_of_keeping_every_lesion_by_hand() -> None:
    # One true lesion of 8 voxels and a false one of 2: Dice 2 * 8 / (10 + 8); one lesion-free case with a false one.
    choice = choose_rule([case(0, TRUE, FALSE), case(1, FALSE, reference=0, plain=1)])
    assert choice.unfiltered.dice == pytest.approx(16 / 18)
    assert choice.unfiltered.lesion_f1 == pytest.approx(2 * 1 / (2 * 1 + 2))
    assert choice.unfiltered.sensitivity == 1
    assert choice.unfiltered.fp_per_case == 1
    assert choice.unfiltered.false_alarms == 1
    assert choice.plain_false_alarms == 1
    assert (choice.num_patients, choice.num_cases, choice.num_lesion_free) == (1, 2, 1)


def test_false_lesions_of_low_confidence_are_removed_where_patients_agree() -> None:
    # Not alike, so that the gain has a standard error: every other patient has no false lesion.
    cases = [case(i, TRUE, *[FALSE] * (i % 2)) for i in range(12)]
    choice = choose_filter(cases, ["lesion"], "ml")
    rule = choice.lesion_filter.rules["lesion"]
    assert rule.kept([8.0, 2.0], [1.0, 0.25], [0.9, 0.55]).tolist() == [True, False]
    found = choice.classes["lesion"]
    assert found.best.dice == 1
    assert found.best.lesion_f1 == 1
    assert found.gain == pytest.approx(6 * (1 - 16 / 18) / 12 + 1 - 24 / 30)
    assert found.gain > 2 * found.gain_error > 0
    (sentence,) = choice.describe()
    assert "Dice from 0.944 to 1.000" in sentence


def test_scores_of_a_unified_data_set_are_means_over_its_sources_by_hand() -> None:
    # Three cases without a fault, a case with a false lesion; lesion-free cases: two quiet ones, one with two alarms.
    cases = [case(i, TRUE, source="a") for i in range(3)] + [case(3, TRUE, FALSE, source="b")]
    cases += [case(i, reference=0, source="a") for i in (4, 5)]
    cases += [case(6, FALSE, FALSE, reference=0, plain=1, source="b"), case(7, TRUE, source="c")]
    choice = choose_rule(cases)
    assert choice.unfiltered.dice == pytest.approx((1 + 16 / 18 + 1) / 3)
    assert choice.unfiltered.lesion_f1 == pytest.approx((1 + 2 / (2 + 3) + 1) / 3)
    assert choice.unfiltered.sensitivity == 1
    assert choice.unfiltered.fp_per_case == pytest.approx((0 + 3 / 2 + 0) / 3)
    assert choice.unfiltered.false_alarms == pytest.approx((0 + 2) / 2)  # the third source has no lesion-free case
    assert choice.plain_false_alarms == pytest.approx((0 + 1) / 2)
    assert "(8 held-out cases, 3 of them free of it, means over 3 sources;" in choice.describe("lesion")


def test_a_large_source_does_not_choose_the_rule_of_small_ones() -> None:
    """Second lesions, unsure ones, are false in many cases of one source, and true in few cases of two others."""
    second = FoundLesion(size=2.0, confidence=0.25, probability=0.55, voxels=8, common=8, matched=(2,))
    large = [case(i, TRUE, *[FALSE] * (i % 2), source="large") for i in range(40)]
    small = [case(40 + i, TRUE, second, reference=2, source="small") for i in range(3)]
    third = [case(50 + i, TRUE, second, reference=2, source="third") for i in range(3)]
    cases = large + small + third
    as_one = [replace(one, source="") for one in cases]
    assert not choose_filter(as_one, ["lesion"], "ml").lesion_filter.keeps_all
    assert choose_filter(cases, ["lesion"], "ml").lesion_filter.keeps_all
    assert not choose_filter(large, ["lesion"], "ml").lesion_filter.keeps_all


def test_a_few_lucky_cases_choose_nothing() -> None:
    # The same in five patients, and in many of whom one alone gains.
    few = choose_filter([case(i, TRUE, *[FALSE] * (i % 2)) for i in range(5)], ["lesion"], "ml")
    assert few.lesion_filter.keeps_all
    assert "5 patients with it are too few" in few.describe()[0]
    lucky = choose_filter([case(i, TRUE, *[FALSE] * (i == 0)) for i in range(12)], ["lesion"], "ml")
    assert lucky.lesion_filter.keeps_all
    assert "on patients that it was not chosen on" in lucky.describe()[0]


def test_of_an_organ_the_largest_piece_stays_unless_held_out_cases_say_otherwise() -> None:
    lucky = [case(i, TRUE, *[FALSE] * (i == 0)) for i in range(12)]
    choice = choose_filter(lucky, ["lesion"], "ml", {"lesion": [1] * 20})
    assert choice.lesion_filter.rules == {"lesion": LARGEST}
    (sentence,) = choice.describe()
    assert "is the largest" in sentence
    assert "because all 32 annotated cases hold one alone. On 12 held-out cases" in sentence
    assert "lesion F1 from 0.960 to 1.000." in sentence
    # a case with two; 19 cases with a lesion, which are too few to tell
    assert choose_filter(lucky, ["lesion"], "ml", {"lesion": [1] * 40 + [2]}).lesion_filter.keeps_all
    assert choose_filter(lucky, ["lesion"], "ml", {"lesion": [1] * 7}).lesion_filter.keeps_all
    assert choose_filter(lucky, ["lesion"], "ml", {"other": [1] * 20}).lesion_filter.keeps_all
    # a held-out case of two lesions, the smaller of which would go
    second = replace(TRUE, matched=(2,), common=4)
    two = [*lucky[:11], case(11, TRUE, second, reference=2)]
    assert choose_filter(two, ["lesion"], "ml", {"lesion": [1] * 20}).lesion_filter.keeps_all
    # What annotators drew is known on however few held-out patients; one of a single piece shows nothing against it.
    few = choose_filter(lucky[:1], ["lesion"], "ml", {"lesion": [1] * 20})
    assert few.lesion_filter.rules == {"lesion": LARGEST}
    assert choose_filter(two[11:], ["lesion"], "ml", {"lesion": [1] * 20}).lesion_filter.keeps_all
    # Nor do those whose masks hold a single piece, as new ones need not; two pieces of one annotated object do.
    assert choose_filter(lucky[1:], ["lesion"], "ml", {"lesion": [1] * 20}).lesion_filter.rules == {"lesion": LARGEST}
    torn = [case(0, TRUE, replace(TRUE, size=1.0)), *lucky[1:]]
    assert choose_filter(torn, ["lesion"], "ml", {"lesion": [1] * 20}).lesion_filter.keeps_all


def test_of_rules_nearly_as_good_the_one_that_removes_least_is_taken() -> None:
    """A threshold just below the surest lesions left out those of new patients, which were a little less sure."""
    surer = [replace(TRUE, probability=0.8 + 0.01 * i) for i in range(12)]
    false = [replace(FALSE, probability=0.55 + 0.01 * (i % 2)) for i in range(12)]
    cases = [case(i, surer[i], *[false[i]] * (i % 3 > 0)) for i in range(12)]
    rule = choose_filter(cases, ["lesion"], "ml").lesion_filter.rules["lesion"]
    # every threshold from 0.57 to 0.8 removes just the false ones
    assert rule == LesionRule(min_probability=0.57)


def test_cases_of_a_patient_count_as_one() -> None:
    # Six gains of a single patient are no proof; of six patients they are.
    others = [case(i, TRUE) for i in range(1, 7)]
    assert choose_filter([*[case(0, TRUE, FALSE)] * 6, *others], ["lesion"], "ml").lesion_filter.keeps_all
    several = [case(10 + i, TRUE, FALSE) for i in range(6)]
    assert not choose_filter([*several, *others], ["lesion"], "ml").lesion_filter.keeps_all


def test_no_more_false_alarms_than_the_plain_segmenter() -> None:
    # A false lesion as sure as the smaller true ones: Dice would keep it, but the plain segmenter gives no alarm.
    small = FoundLesion(2.0, 0.5, 0.6, 2, 2, (1,))
    alarm = FoundLesion(2.0, 0.5, 0.55, 2, 0, ())
    with_lesion = [case(i, TRUE, *[small] * (i == 0)) for i in range(10)]
    free = [case(20 + i, *[alarm] * (i % 2), reference=0, plain=0) for i in range(10)]
    choice = choose_filter([*with_lesion, *free], ["lesion"], "ml")
    assert choice.classes["lesion"].best.false_alarms == 0
    assert choice.classes["lesion"].unfiltered.false_alarms == 0.5
    assert not choice.lesion_filter.rules["lesion"].kept([2.0], [0.5], [0.55]).any()


def test_without_samples_or_common_units_only_what_is_known_is_used() -> None:
    unsure = FoundLesion(2.0, math.nan, 0.55, 2, 0, ())
    true = FoundLesion(8.0, math.nan, 0.9, 8, 8, (1,))
    choice = choose_rule([case(i, true, *[unsure] * (i % 2)) for i in range(12)], with_sizes=False)
    assert choice.rule.min_confidence == 0
    assert choice.rule.min_size == 0
    assert choice.rule.kept([8.0, 2.0], [math.nan] * 2, [0.9, 0.55]).tolist() == [True, False]


def test_nothing_annotated_chooses_nothing() -> None:
    choice = choose_filter([case(i, FALSE, reference=0, plain=1) for i in range(12)], ["lesion", "other"], "ml")
    assert choice.lesion_filter.keeps_all
    assert choice.points["lesion"] == ()


def point(name: float, sensitivity: float, false: float, dice: float = 0.5, f1: float = 0.5) -> OperatingPoint:
    return OperatingPoint(LesionRule(min_probability=name), dice, f1, sensitivity, false, 0.0)


POINTS = [point(0.9, 0.5, 0.1, f1=0.6), point(0.6, 0.9, 0.5), point(0.3, 0.95, 1.0, dice=0.6), point(0.0, 0.95, 2.0)]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("dice", 0.3),
        ("lesion_f1", 0.9),
        ("sensitivity=0.9", 0.6),
        ("sensitivity=0.95", 0.3),
        ("sensitivity=1", 0.3),
        ("fp_per_case=0.5", 0.6),
        ("fp_per_case=0", 0.9),
    ],
)
def test_the_point_that_serves_a_utility(text: str, chosen: float) -> None:
    assert best_point(POINTS, Utility.parse(text)).rule.min_probability == chosen
    assert str(Utility.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sensitivity=0.95", ""),
        ("sensitivity=1", "0: no lesion filter of lesion reaches sensitivity=1; the nearest has a sensitivity of 0.95"),
        ("fp_per_case=0.1", ""),
        ("fp_per_case=0", "reaches fp_per_case=0; the nearest has 0.10 false positives a case on held-out cases"),
        ("dice", ""),
    ],
)
def test_a_level_that_no_point_reaches_is_said(text: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    filter_for({"lesion": POINTS}, "ml", Utility.parse(text), "fold 0")
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def test_what_a_utility_chooses_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    filter_for({"lesion": POINTS}, "ml", Utility.parse("sensitivity=0.9"), "fold 0")
    assert (
        "sensitivity=0.9: a lesion of lesion stays where its mean probability is at least 0.60; on held-out cases Dice "
        "0.50, lesion F1 0.50, sensitivity 0.90, 0.50 false positives a case"
    ) in caplog.text


def test_the_points_offer_every_trade_that_there_is() -> None:
    unsure = FoundLesion(4.0, 0.5, 0.6, 4, 4, (1,))
    choice = choose_rule([case(0, TRUE), case(1, unsure), case(2, FALSE, reference=0)])
    curve = [(p.sensitivity, p.fp_per_case) for p in choice.points]
    assert (1.0, 0.0) in curve
    assert curve == sorted(curve)
    assert best_point(choice.points, Utility.parse("sensitivity=0.9")).fp_per_case == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recall", "utility is 'recall'"),
        ("sensitivity", "needs a level"),
        ("dice=0.5", "takes no level"),
        ("sensitivity=1.5", "sensitivity is 1.5"),
        ("fp_per_case=-1", "fp_per_case is -1"),
        ("sensitivity=nan", "sensitivity is nan"),
        ("sensitivity=high", "'high' is no number"),
    ],
)
def test_utilities_that_there_are_not(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Utility.parse(text)


def test_a_model_without_points_says_so() -> None:
    with pytest.raises(UsdError, match=r"fold_0/inference\.json holds no operating points"):
        filter_for({}, "ml", Utility("dice"), "fold_0/inference.json")
    found = filter_for({"lesion": POINTS, "other": [point(0.0, 1.0, 0.0)]}, "mm2", Utility("dice"), "")
    assert found.rules == {"lesion": LesionRule(min_probability=0.3)}
    assert found.unit == "mm2"
    assert found.rule("lesion", "mm2") != NO_RULE
