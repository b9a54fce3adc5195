"""The lesion filter chosen anew on the validation cases of all folds, and what it is worth on folds not chosen on.

A filter is chosen on all folds but one and applied to that one, for each fold in turn: the scores over all folds are
then those of filters that have not seen the cases they are scored on. The filter for new images is chosen on all folds
by the same rule (`selection.lesion_filter`). It is taken where the scores of the former did not fall: Dice + lesion F1,
or, where false alarms became fewer, Dice by more than chance. In a unified data set all scores are means over sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.comparison import macro_interval, paired_comparison
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, NO_RULE, LesionFilter, SizeUnit
from unisegdiff_pipeline.inference.recipe import FilterEvidence
from unisegdiff_pipeline.selection.lesion_filter import LesionCase, RuleOutcome, choose_filter


@dataclass(frozen=True)
class RechosenFilter:
    """The filter to predict with, and the evidence for it or against any."""

    lesion_filter: LesionFilter
    evidence: FilterEvidence


@dataclass(frozen=True)
class _Scores:
    """Over all cases and classes."""

    dice: float
    lesion_f1: float
    false_alarms: float

    @property
    def utility(self) -> float:
        return self.dice + self.lesion_f1


def rechoose_filter(
    folds: Mapping[str, Sequence[LesionCase]],
    classes: Sequence[str],
    unit: SizeUnit | None,
    units: Units = VOLUMES,
) -> RechosenFilter | None:
    """Choose the filter on all folds, and score the choice on folds that it was not made on.

    Args:
        folds: the validation cases of each fold, one entry for each case and class.
        classes: names of all classes.
        unit: of the sizes; None where they have several.
        units: of what is said.

    Returns:
        None with fewer than two folds, or without a lesion, where nothing can be told.
    """
    everything = [case for cases in folds.values() for case in cases]
    if len(folds) < 2 or not any(case.num_reference for case in everything):
        return None
    choice = choose_filter(everything, classes, unit)
    before, after = [], []
    for fold, own in folds.items():
        others = [case for other, cases in folds.items() if other != fold for case in cases]
        chosen = choose_filter(others, classes, unit).lesion_filter
        for case in own:
            before.append(case.outcome(NO_RULE))
            after.append(case.outcome(chosen.rules.get(case.class_name, NO_RULE)))
    groups = [case.group for case in everything]
    gain = _gain(everything, before, after)
    plain, filtered = _scores(everything, before), _scores(everything, after)
    fewer_alarms = filtered.false_alarms < plain.false_alarms
    worth = filtered.utility >= plain.utility or (fewer_alarms and not gain.high < 0)
    taken = not choice.lesion_filter.keeps_all and worth
    evidence = FilterEvidence(
        num_folds=len(folds),
        num_groups=len({*groups}),
        num_with=sum(case.num_reference > 0 for case in everything),
        num_without=sum(case.num_reference == 0 for case in everything),
        dice=plain.dice,
        dice_filtered=filtered.dice,
        difference=gain.mean,
        low=gain.low,
        high=gain.high,
        lesion_f1=plain.lesion_f1,
        lesion_f1_filtered=filtered.lesion_f1,
        false_alarms=plain.false_alarms,
        false_alarms_filtered=filtered.false_alarms,
        is_taken=taken,
        in_words=(*choice.describe(units), _in_words(plain, filtered, len(folds), taken, choice.lesion_filter)),
    )
    return RechosenFilter(choice.lesion_filter if taken else NO_FILTER, evidence)


@dataclass(frozen=True)
class _Gain:
    """Of Dice, and its 95 % interval."""

    mean: float
    low: float
    high: float


def _gain(cases: Sequence[LesionCase], before: Sequence[RuleOutcome], after: Sequence[RuleOutcome]) -> _Gain:
    a, b = [one.dice for one in after], [one.dice for one in before]
    groups, sources = [case.group for case in cases], [case.source for case in cases]
    if any(sources):
        return _Gain(*macro_interval(a, b, groups, sources))
    pairs = paired_comparison(a, b, groups)
    return _Gain(pairs.mean_difference, pairs.ci_low, pairs.ci_high)


def _scores(cases: Sequence[LesionCase], outcomes: Sequence[RuleOutcome]) -> _Scores:
    parts: dict[str, list[tuple[LesionCase, RuleOutcome]]] = {}
    for case, one in zip(cases, outcomes, strict=True):
        parts.setdefault(case.source, []).append((case, one))
    of_parts = [_scores_of_part(own) for own in parts.values()]
    return _Scores(*(mean_of_defined(getattr(s, f.name) for s in of_parts) for f in fields(_Scores)))


def _scores_of_part(outcomes: Sequence[tuple[LesionCase, RuleOutcome]]) -> _Scores:
    """Of one source, or of an ordinary data set; NaN for what it has no case of."""
    reference = sum(case.num_reference for case, _ in outcomes)
    detected, false = sum(one.detected for _, one in outcomes), sum(one.false for _, one in outcomes)
    return _Scores(
        dice=mean_of_defined(one.dice for _, one in outcomes),
        lesion_f1=2 * detected / (detected + false + reference) if reference else math.nan,
        false_alarms=mean_of_defined(one.false for case, one in outcomes if not case.num_reference),
    )


def _in_words(plain: _Scores, filtered: _Scores, num_folds: int, taken: bool, chosen: LesionFilter) -> str:
    alarms = ""
    if not math.isnan(plain.false_alarms):
        alarms = f", false alarms per lesion-free case from {plain.false_alarms:.2f} to {filtered.false_alarms:.2f}"
    verdict = "it is taken" if taken else "every lesion stays" if chosen.keeps_all else "it is not taken"
    return (
        f"Each of {counted(num_folds, 'fold')} filtered by what the others choose: Dice from {plain.dice:.3f} to "
        f"{filtered.dice:.3f}, lesion F1 from {plain.lesion_f1:.3f} to {filtered.lesion_f1:.3f}{alarms}; {verdict}."
    )
