"""Samples of a case beside its annotators, from a prediction made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.selection.test_found_lesions import BINARY, prediction, row
from unisegdiff_pipeline.evaluation.spread import empty_samples
from unisegdiff_pipeline.selection.spread import spread_of_case


@pytest.mark.parametrize(
    ("labels", "confidence", "voxels", "marked"),
    [
        ((0, 0, 1), 1.0, (1, 1, 1), (0, 1, 0)),
        ((0, 9, 1), 0.5, (1, 1, 0), (0, 1, 0)),
        ((9, 9, 9), 0.0, (0, 0, 0), (0, 0, 0)),
    ],
)
def test_ignored_voxels_count_nowhere(
    labels: tuple[int, ...], confidence: float, voxels: tuple[int, ...], marked: tuple[float, ...]
) -> None:
    """Pixel 1 is in both samples, pixel 2 in one of them; 9 is ignored."""
    drawn = prediction(row(0, 1, 0.5), row(0, 1, 0), row(0, 1, 1))
    raters = np.array(labels, np.uint8).reshape(1, 1, 1, 3)
    (found,) = spread_of_case(drawn, raters, BINARY, "a", frozenset({"lesion"}))
    assert (found.confidence, found.voxels, found.marked) == (confidence, voxels, marked)
    assert found.volumes == (voxels[2], voxels[1] + voxels[2])
    # a sample that is empty but for ignored pixels is none of a case that the model is sure of
    assert empty_samples([found], 0.9) == ((0, 2) if confidence == 1 else (0, 0))
