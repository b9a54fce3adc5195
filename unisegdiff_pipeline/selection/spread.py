"""Sampled masks of one case beside its annotators', on the plan's grid: what `evaluation.spread` is computed from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.spread import CaseSpread, case_spread
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.preprocessing.storage import StoredCase


def annotators(stored: StoredCase) -> np.ndarray:
    """Label maps of the annotators of a case (R, Z, Y, X), or the one there is."""
    labels = stored.labels[...]
    return labels[1:] if stored.num_rows > 1 else labels[:1]


def spread_of_case(
    prediction: CasePrediction, raters: np.ndarray, scheme: LabelScheme, case_id: str, annotated: frozenset[str]
) -> list[CaseSpread]:
    """One entry for each annotated class, of the voxels that are not ignored; none where no samples were drawn.

    Args:
        prediction: with samples.
        raters: label maps of the annotators (R, Z, Y, X), or the one there is.
        scheme: what channels and label values mean.
        case_id: named in the result.
        annotated: classes that the annotators' label maps say anything about.
    """
    if prediction.num_samples == 0:
        return []
    valid = ~scheme.ignored(raters[0])
    p = prediction.probabilities().numpy().max(axis=(1, 2, 3), initial=0.0, where=valid)  # (K,)
    masks = masks_by_class(prediction.masks(scheme), scheme)
    references = masks_by_class(raters, scheme)
    return [
        case_spread(
            case_id,
            name,
            [mask[valid] for mask in masks[name]],
            [mask[valid] for mask in references[name]],
            float(p[scheme.foreground_offset + index]),
        )
        for index, name in enumerate(scheme.names)
        if name in annotated
    ]


def masks_by_class(labels: Iterable[np.ndarray], scheme: LabelScheme) -> dict[str, list[np.ndarray]]:
    """The masks (Z, Y, X) of each class, one of every label map (Z, Y, X)."""
    result: dict[str, list[np.ndarray]] = {name: [] for name in scheme.names}
    for one in labels:
        for name, mask in scheme.class_masks(one):
            result[name].append(mask)
    return result
