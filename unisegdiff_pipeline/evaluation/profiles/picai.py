"""PI-CAI: average precision of lesion candidates, AUROC of cases, and their mean, which ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unisegdiff_pipeline.evaluation.froc import num_at_least
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule, match_lesions
from unisegdiff_pipeline.evaluation.lesions import component_confidence
from unisegdiff_pipeline.evaluation.profiles.profile import Profile, ProfileCase, ProfileScore, total

MIN_IOU = 0.1
ANY_HIT = MatchingRule("iou", threshold=MIN_IOU)
BEST_HIT = MatchingRule("iou", threshold=MIN_IOU, one_to_one=True)


def score(case: ProfileCase) -> ProfileScore:
    """Scores of one case."""
    reference, predicted, overlaps = case.lesions()
    hits, best = (
        match_lesions(overlaps, reference, predicted, rule, case.geometry.spacing_mm) for rule in (ANY_HIT, BEST_HIT)
    )
    confidences = component_confidence(predicted, case.predicted, case.samples, case.probability)
    if not case.has_confidence:
        confidences = np.where(np.isnan(confidences), 1.0, confidences)
    # A candidate that hits a lesion which another candidate hits better is neither right nor wrong.
    wrong = np.setdiff1d(np.arange(1, len(predicted) + 1), hits.predicted)
    lesions = [
        *({"is_lesion": 1.0, "confidence": float(confidences[i - 1])} for i in best.predicted.tolist()),
        *({"is_lesion": 1.0, "confidence": 0.0} for _ in range(len(reference) - len(best.reference))),
        *({"is_lesion": 0.0, "confidence": float(confidences[i - 1])} for i in wrong.tolist()),
    ]
    return ProfileScore(
        {
            "case_confidence": float(confidences.max(initial=0.0)),
            "holds_lesion": float(len(reference) > 0),
            "num_tp": len(best.reference),
            "num_fp": len(wrong),
            "num_fn": len(reference) - len(best.reference),
        },
        tuple(lesions),
    )


def pooled(scores: Sequence[ProfileScore]) -> dict[str, float]:
    """Average precision over the lesions of all cases, AUROC over the cases, and their mean."""
    lesions = [(lesion["confidence"], lesion["is_lesion"] > 0) for score in scores for lesion in score.lesions]
    precision = average_precision(lesions)
    area = auroc([(score.values["case_confidence"], score.values["holds_lesion"] > 0) for score in scores])
    return {
        "average_precision": precision,
        "case_auroc": area,
        "picai_score": (precision + area) / 2,
        "num_lesions": total(scores, "num_tp") + total(scores, "num_fn"),
    }


def notes(scores: Sequence[ProfileScore]) -> tuple[str, ...]:
    """Why scores over all cases are undefined where cases lack what confidences are taken from."""
    unknown = sum(math.isnan(score.values["case_confidence"]) for score in scores)
    if not unknown:
        return ()
    return (
        f"{unknown} of {len(scores)} cases have lesions without a confidence, because they lack the samples (or "
        f"probabilities) of the others: scores that order lesions or cases of all cases are undefined.",
    )


def average_precision(candidates: Sequence[tuple[float, bool]]) -> float:
    """Sum over the distinct confidences, highest first, of precision times the gain in recall.

    Args:
        candidates: (confidence, right) of each candidate, and (0, True) for each lesion without one.

    Returns:
        NaN without a lesion, and where a confidence is not known.
    """
    num_lesions = sum(right for _, right in candidates)
    if not num_lesions or any(math.isnan(confidence) for confidence, _ in candidates):
        return math.nan
    thresholds = np.unique([confidence for confidence, _ in candidates if confidence > 0])[::-1]
    right = num_at_least([confidence for confidence, is_right in candidates if is_right], thresholds)
    kept = num_at_least([confidence for confidence, _ in candidates], thresholds)
    return float((right / kept * np.diff(right, prepend=0)).sum() / num_lesions)


def auroc(cases: Sequence[tuple[float, bool]]) -> float:
    """Probability that a positive case has the higher value than a negative one, ties counting half (Mann-Whitney).

    Args:
        cases: (value, positive) of each case.

    Returns:
        NaN without a positive or without a negative case, and where a value is not known.
    """
    positive = np.array([value for value, is_positive in cases if is_positive])
    negative = np.array([value for value, is_positive in cases if not is_positive])
    if not len(positive) or not len(negative):
        return math.nan
    wins = np.sign(positive[:, None] - negative[None, :])
    return float((wins.mean() + 1) / 2)


PICAI = Profile(
    name="picai",
    title="PI-CAI (2022)",
    source="github.com/DIAGNijmegen/picai_eval 1.4; Saha et al. 2024, Lancet Oncology 25:879",
    rule="Components have 26 neighbours (8 in 2D). "
    "Candidates and lesions are matched one to one at an IoU of at least 0.1, "
    "as many as possible and then with the largest overlap; a candidate that reaches 0.1 and is not chosen "
    "counts neither way. The confidence of a candidate is the fraction of samples that hold a voxel of it, "
    "else its mean probability, else 1, the same for all cases; that of a case is the largest of its candidates, 0 "
    "without one. The score is the mean of average precision and AUROC.",
    columns={
        "case_confidence": "largest confidence of a candidate",
        "holds_lesion": "1 where the reference holds a lesion",
        "num_tp": "lesions with a candidate",
        "num_fp": "candidates that hit no lesion",
        "num_fn": "lesions without a candidate",
    },
    score=score,
    pooled=pooled,
    notes=notes,
)
