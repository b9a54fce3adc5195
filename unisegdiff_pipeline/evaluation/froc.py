"""FROC: lesion sensitivity against false positives per case as the threshold on the lesions' confidence falls.

A free-response operating characteristic (Bunch et al. 1978) of the lesions of a fixed mask: lesions below the threshold
are dropped whole, they are not segmented anew, and matches are those of the full mask. The curve therefore ends at the
sensitivity and the false positives of the mask itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unisegdiff_pipeline.evaluation.lesions import Lesion

LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Froc:
    """A FROC curve; one point a distinct confidence, highest first.

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


def froc(cases: Sequence[Sequence[Lesion]], rates: Sequence[float] = LUNA16_RATES) -> Froc | None:
    """The FROC curve of one class over cases, each the lesions of `lesions.score_lesions`.

    A reference lesion counts as detected at a threshold where one of its matched predicted lesions is kept; a
    predicted lesion without a match is a false positive where it is kept.

    Returns:
        None where the curve is undefined: no reference lesion in any case, or a predicted lesion whose confidence is
        unknown. Without any predicted lesion the curve has no point and a mean sensitivity of 0.
    """
    raise NotImplementedError
