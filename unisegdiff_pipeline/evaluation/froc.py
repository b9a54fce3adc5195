"""FROC: lesion sensitivity against false positives per case as the threshold on the lesions' confidence falls.

A free-response operating characteristic (Bunch et al. 1978) of the lesions of a fixed mask: lesions below the threshold
are dropped whole, they are not segmented anew, and matches are those of the full mask. The curve therefore ends at the
sensitivity and the false positives of the mask itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisegdiff_pipeline.evaluation.lesions import ScoredLesion

LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Froc:
    """A FROC curve; one point for each distinct confidence that changes it, highest first.

    Attributes:
        confidence_thresholds: lesions of at least this confidence are kept.
        sensitivity: detected over all reference lesions, all cases pooled.
        false_positives_per_case: mean over all cases, also those without any lesion.
        mean_sensitivity: mean of `sensitivity_at_rates` (Setio et al. 2017, LUNA16, Medical Image Analysis 42).
        rates: false positives per case at which the curve is read.
        sensitivity_at_rates: the curve at `rates`: linear between its points, starting from (0, 0); beyond the last
            point the last sensitivity, as in LUNA16.
        num_cases, num_reference_lesions: what the curve rests on.
    """

    confidence_thresholds: tuple[float, ...]
    sensitivity: tuple[float, ...]
    false_positives_per_case: tuple[float, ...]
    mean_sensitivity: float
    rates: tuple[float, ...]
    sensitivity_at_rates: tuple[float, ...]
    num_cases: int
    num_reference_lesions: int


def froc(cases: Sequence[Sequence[ScoredLesion]], rates: Sequence[float] = LUNA16_RATES) -> Froc | None:
    """The FROC curve of one class over cases, each the lesions of `lesions.score_lesions`.

    A reference lesion counts as detected at a threshold where one of its matched predicted lesions is kept; a
    predicted lesion without a match is a false positive where it is kept.

    Returns:
        None where the curve is undefined: no reference lesion in any case, or a predicted lesion whose confidence is
        unknown. Without any predicted lesion the curve has no point and a mean sensitivity of 0.
    """
    num_reference, detected, false_positives = 0, [], []
    for lesions in cases:
        confidence = {lesion.lesion_id: lesion.confidence for lesion in lesions if lesion.side == "prediction"}
        if any(math.isnan(value) for value in confidence.values()):
            return None
        for lesion in lesions:
            if lesion.side == "prediction":
                false_positives += [lesion.confidence] * (not lesion.matched_ids)
            else:
                num_reference += 1
                detected += [max(confidence[i] for i in lesion.matched_ids)] if lesion.matched_ids else []
    if num_reference == 0:
        return None
    thresholds = np.unique(np.array(detected + false_positives))[::-1]
    sensitivity = num_at_least(detected, thresholds) / num_reference
    false_positives_per_case = num_at_least(false_positives, thresholds) / len(cases)
    at_rates = _read_curve(false_positives_per_case, sensitivity, rates)
    return Froc(
        confidence_thresholds=tuple(thresholds.tolist()),
        sensitivity=tuple(sensitivity.tolist()),
        false_positives_per_case=tuple(false_positives_per_case.tolist()),
        mean_sensitivity=math.fsum(at_rates) / len(at_rates),
        rates=tuple(rates),
        sensitivity_at_rates=at_rates,
        num_cases=len(cases),
        num_reference_lesions=num_reference,
    )


def num_at_least(values: Sequence[float], thresholds: np.ndarray) -> np.ndarray:
    """How many of the values reach each threshold."""
    return len(values) - np.searchsorted(np.sort(np.asarray(values, np.float64)), thresholds, side="left")


def _read_curve(x: np.ndarray, y: np.ndarray, at: Sequence[float]) -> tuple[float, ...]:
    """Linear between the points, of which (0, 0) is the first; where several have this x, the last counts."""
    return tuple(np.interp(at, np.concatenate([[0.0], x]), np.concatenate([[0.0], y])).tolist())
