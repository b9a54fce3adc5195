"""What is shown of a held-out case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, SamplingFacts
from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.training.pictures import shown_slice, snapshot

CLASSES = LabelScheme(("liver", "tumour"), ((5,), (7,)), "softmax", (5, 7), ignore_value=9)


def stored(labels: np.ndarray, channels: int = 1) -> Any:
    image = np.arange(channels * labels.size, dtype=np.float32).reshape(channels, *labels.shape)
    return SimpleNamespace(labels=labels[None], image=image, case_id="case")


def run_with(normalization: tuple[str, ...]) -> Any:
    preprocessing = SimpleNamespace(normalization=normalization)
    return SimpleNamespace(
        plans=SimpleNamespace(labels=CLASSES), configuration=SimpleNamespace(preprocessing=preprocessing)
    )


def prediction(p: torch.Tensor) -> CasePrediction:
    return CasePrediction(p, (), 0, 1.0, SamplingFacts(1, 0, 0, 0.0, 0.0))


def test_the_slice_with_most_foreground_is_shown_and_ignored_voxels_do_not_count() -> None:
    labels = np.zeros((4, 3, 3), np.uint8)
    labels[1, 0] = 5
    labels[2] = 9
    labels[3, :2] = 7
    assert shown_slice(CLASSES, stored(labels)) == 3


def test_classes_are_numbered_in_the_order_of_their_names() -> None:
    labels = np.array([[[0, 5, 7, 9]]], np.uint8)
    p = torch.tensor([[0.5, 0.1, 0.2, 1.0], [0.3, 0.8, 0.1, 0.0], [0.2, 0.1, 0.7, 0.0]])[:, None, None]
    shown = snapshot(run_with(("zscore",)), stored(labels), prediction(p), 0)
    assert shown.reference.tolist() == [[0, 1, 2, 0]]
    assert np.allclose(shown.segmenter, [[0.5, 0.9, 0.8, 0.0]])
    assert shown.image.tolist() == [[0, 1, 2, 3]]
    assert shown.mean is None
    assert shown.samples == ()


def test_colours_are_shown_as_such() -> None:
    labels = np.zeros((1, 2, 2), np.uint8)
    p = torch.full((3, 1, 2, 2), 1 / 3)
    case = stored(labels, channels=3)
    assert snapshot(run_with(("rgb_to_0_1",) * 3), case, prediction(p), 0).image.shape == (2, 2, 3)
    assert snapshot(run_with(("zscore",) * 3), case, prediction(p), 0).image.shape == (2, 2)
