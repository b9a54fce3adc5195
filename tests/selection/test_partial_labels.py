"""Choosing on cases of a source that does not annotate every class."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.selection.test_found_lesions import prediction, stored
from tests.training.data.test_source_draw import unified
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.selection import calibration, segmenter_weight
from unisegdiff_pipeline.selection.calibration import held_out_logits
from unisegdiff_pipeline.selection.sampler import _energy
from unisegdiff_pipeline.selection.segmenter_weight import FLOOR, try_means
from unisegdiff_pipeline.selection.spread import spread_of_case

SCHEME = LabelScheme(("a", "b"), ((1,), (2,)), "regions", (1, 2))
# Reference: class a in pixels 1 and 2. The mask has it there, and class b in pixel 0.
MASK = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 0]])[:, None, None]


def case(source: str) -> Any:
    found = stored(0, 1, 1, 0)
    found.properties.source, found.num_rows = source, 1
    return found


def held_out(source: str) -> Any:
    configuration = SimpleNamespace(sources=unified(annotated=((True, False), (True, True))).sources)
    return SimpleNamespace(
        labels=SCHEME,
        spacing_known=False,
        configuration=configuration,
        data=SimpleNamespace(open=lambda name: case(source)),
        leave_if_asked=lambda: None,
        seed=0,
    )


@pytest.mark.parametrize(("source", "loss_of_b"), [("US", math.log(2)), ("CT", -math.log(FLOOR) / 4)])
def test_weight_and_threshold_are_chosen_by_annotated_classes(
    source: str, loss_of_b: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmenter_weight, "tiled", lambda *args: None)
    monkeypatch.setattr(segmenter_weight, "sample_tiles", lambda *args: prediction(MASK, MASK, MASK))
    settings, model = InferenceSettings(lam_a=-3.0, lam_c=0.5), None
    trials = try_means(held_out(source), model, settings, {f"{source}__1": NO_CALIBRATION})  # type: ignore[arg-type]
    for trial in trials:
        assert trial.dice == 1.0
        assert trial.nll == pytest.approx((0 + loss_of_b) / 2, abs=1e-3)
        assert trial.sources == (source,)


def test_samples_are_compared_by_annotated_classes() -> None:
    raters, samples = np.array([[[[0, 1, 1, 0]]]]), [MASK, MASK]
    assert _energy(held_out("US"), raters, iter(samples), frozenset({"a"})) == 0
    assert _energy(held_out("CT"), raters, iter(samples), frozenset({"a", "b"})) == 1.0  # of 0 and 2
    found = spread_of_case(prediction(MASK, MASK, MASK), raters, SCHEME, "1", frozenset({"a"}))
    assert [one.class_name for one in found] == ["a"]


@pytest.mark.parametrize(("source", "expected"), [("US", [0.0] * 4), ("CT", [3.0, -3.0, -3.0, -3.0])])
def test_the_temperature_is_fitted_to_annotated_classes(
    source: str, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = SimpleNamespace(det_logits=lambda: 6 * MASK - 3, grid=SimpleNamespace(inner=(slice(None),) * 3))
    monkeypatch.setattr(calibration, "tiled", lambda *args: tiles)
    logits, _, _, _ = held_out_logits(held_out(source), None, [f"{source}__1"])  # type: ignore[arg-type]
    assert logits[0, 0].tolist() == [-3.0, 3.0, 3.0, -3.0]
    assert logits[0, 1].tolist() == expected
