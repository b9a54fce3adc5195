"""What is shown of a held-out case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SamplingFacts
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.reports.case_pictures import Plane
from unisegdiff_pipeline.training.pictures import Moment, keep_pictures, shown_plane, shown_slice, snapshot

FLAT = Plane(0, 0, False, False, False, (1.0, 1.0))
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
    assert shown_slice(replace(CLASSES, background_values=(3,)), stored(np.where(labels == 0, 3, labels))) == 3


def test_classes_are_numbered_in_the_order_of_their_names() -> None:
    labels = np.array([[[0, 5, 7, 9]]], np.uint8)
    p = torch.tensor([[0.5, 0.1, 0.2, 1.0], [0.3, 0.8, 0.1, 0.0], [0.2, 0.1, 0.7, 0.0]])[:, None, None]
    shown = snapshot(run_with(("zscore",)), stored(labels), prediction(p), FLAT)
    assert shown.reference.tolist() == [[0, 1, 2, 0]]
    assert np.allclose(shown.segmenter, [[0.5, 0.9, 0.8, 0.0]])
    assert shown.image.tolist() == [[0, 1, 2, 3]]
    assert shown.mean is None
    assert shown.samples == ()


def test_colours_are_shown_as_such() -> None:
    labels = np.zeros((1, 2, 2), np.uint8)
    p = torch.full((3, 1, 2, 2), 1 / 3)
    case = stored(labels, channels=3)
    assert snapshot(run_with(("rgb_to_0_1",) * 3), case, prediction(p), FLAT).image.shape == (2, 2, 3)
    assert snapshot(run_with(("zscore",) * 3), case, prediction(p), FLAT).image.shape == (2, 2)


def properties(direction: tuple[float, ...], axis_order: tuple[int, int, int], flipped: tuple[bool, bool, bool]) -> Any:
    geometry = Geometry((1.0, 1.0, 1.0), direction=direction)
    box = ((0, 2), (0, 3), (0, 4))
    return CaseProperties(
        "c", None, geometry, (2, 3, 4), axis_order, box, (2, 3, 4), (2, 3, 4), (1.0, 1.0, 1.0), None, flipped
    )


RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
KEPT, ORDER = (False, False, False), (0, 1, 2)


def test_pictures_are_turned_as_radiologists_see_them() -> None:
    """Axial slices: rows go to the back, columns to the patient's left, so that R is on the left and A on top."""
    as_lps = shown_plane(properties((1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), ORDER, KEPT), 1, True)
    assert (as_lps.flip_rows, as_lps.flip_columns, as_lps.letters) == (False, False, ("R", "A"))
    as_ras = shown_plane(properties(RAS, ORDER, KEPT), 1, True)
    assert (as_ras.flip_rows, as_ras.flip_columns, as_ras.letters) == (True, True, ("R", "A"))
    turned = shown_plane(properties(RAS, ORDER, (False, True, True)), 1, True)  # preprocessing has turned it already
    assert (turned.flip_rows, turned.flip_columns) == (False, False)
    assert shown_plane(properties(RAS, ORDER, KEPT), 1, False).letters == ()


@pytest.mark.parametrize("known", [True, False])
def test_directions_are_trusted_by_the_source_of_the_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """A unified model knows the spacing only where all of its sources do."""
    asked, records = [], []

    def knows_spacing(source: str | None, of_data_set: bool) -> bool:
        asked.append((source, of_data_set))
        return known

    labels = np.zeros((2, 3, 4), np.uint8)
    labels[1, 0, 0] = 5
    case = stored(labels)
    case.properties = replace(properties(RAS, ORDER, KEPT), source="CT")
    run = run_with(("zscore",))
    run.configuration.knows_spacing = knows_spacing
    run.plans.spacing_known = False
    run.folder, run.watch = tmp_path, SimpleNamespace(seconds=1.0)
    run.log = SimpleNamespace(record=lambda kind, **values: records.append(values), say=pytest.fail)
    p = torch.full((3, 2, 3, 4), 1 / 3)
    keep_pictures(run, Moment(1, 5), case, prediction(p))
    assert asked == [("CT", False)]
    assert records[0]["letters"] == (("R", "A") if known else ())


def test_all_layers_are_turned_alike() -> None:
    labels = np.array([[[5, 0], [0, 0]]], np.uint8)
    p = torch.tensor([[[0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])[:, None]
    plane = Plane(0, 0, False, True, True, (1.0, 1.0), ("R", "A"))
    shown = snapshot(run_with(("zscore",)), stored(labels), prediction(p), plane)
    assert shown.reference.tolist() == [[0, 0], [0, 1]]
    assert shown.segmenter.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert shown.image.tolist() == [[3, 2], [1, 0]]
