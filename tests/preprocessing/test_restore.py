"""Predictions back on the grid of the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.geometry import Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.planning.plans import IntensityStatistics, PreprocessingPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image, preprocess_labels
from unisegdiff_pipeline.preprocessing.resample import GridMap
from unisegdiff_pipeline.preprocessing.restore import restore_labels, restore_map

SOFTMAX = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
STATISTICS = IntensityStatistics(0, 1, 0, 0, 1, 0, 1)


def plan(spacing: tuple = (1.0, 1.0, 1.0), order: tuple = (0, 1, 2)) -> PreprocessingPlan:
    return PreprocessingPlan(order, spacing, ("nonorm",), (False,), (STATISTICS,))


def ball_case(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> tuple[Volume, np.ndarray]:
    """Image with an empty border, labels of two nested balls, (1, Z, Y, X) each."""
    z, y, x = np.mgrid[:20, :24, :30]
    distance = np.sqrt((z - 10) ** 2 + (y - 12) ** 2 + (x - 16) ** 2)
    labels = ((distance < 7).astype(np.uint8) + (distance < 3))[None]
    image = np.zeros((1, 20, 24, 30), np.float32)
    image[:, 1:19, 2:22, 5:28] = 1 + labels[:, 1:19, 2:22, 5:28]
    return Volume(image, Geometry(spacing_mm=spacing)), labels


@pytest.mark.parametrize("scheme", [SOFTMAX, REGIONS])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_without_resampling_labels_come_back_exactly(scheme: LabelScheme, order: tuple[int, int, int]) -> None:
    volume, labels = ball_case()
    image, properties = preprocess_image(volume, plan(order=order))
    rows = preprocess_labels(labels, properties)
    assert properties.crop_box != ((0, 20), (0, 24), (0, 30))
    assert image.shape[1:] == rows.shape[1:] == properties.shape
    assert image.shape[1] == (18, 20, 23)[order[0]]
    restored = restore_labels(scheme.encode(rows[0]).astype(np.float16), properties, scheme)
    np.testing.assert_array_equal(restored, labels[0])
    assert restored.dtype == np.uint8


@pytest.mark.parametrize("target", [(0.5, 0.5, 0.5), (1.5, 1.5, 1.5), (2.0, 1.0, 3.0)])
def test_after_resampling_labels_come_back_nearly(target: tuple[float, float, float]) -> None:
    volume, labels = ball_case()
    _, properties = preprocess_image(volume, plan(target))
    rows = preprocess_labels(labels, properties)
    restored = restore_labels(torch.from_numpy(SOFTMAX.encode(rows[0]).astype(np.float32)), properties, SOFTMAX)
    assert restored.shape == labels[0].shape
    overlap = 2 * np.count_nonzero((restored > 0) & (labels[0] > 0))
    assert overlap / (np.count_nonzero(restored) + np.count_nonzero(labels)) > 0.9


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = ball_case()
    _, properties = preprocess_image(volume, plan((0.7, 0.8, 0.9)))
    probabilities = np.random.default_rng(0).random((3, *properties.shape), np.float32)
    whole = restore_labels(probabilities, properties, SOFTMAX)
    monkeypatch.setattr(GridMap, "slabs", lambda self, *_: [(i, i + 1) for i in range(self.shape_out[0])])
    np.testing.assert_array_equal(restore_labels(probabilities, properties, SOFTMAX), whole)


def test_coarse_axis_is_not_interpolated() -> None:
    volume, _ = ball_case((5.0, 1.0, 1.0))
    _, properties = preprocess_image(volume, plan((2.5, 1.0, 1.0)))
    assert properties.separate_axis == 0
    probabilities = np.zeros((1, *properties.shape), np.float32)
    probabilities[0, 10:12] = 0.9  # two plan slices are one slice of the file
    restored = restore_labels(probabilities, properties, BINARY)
    assert np.flatnonzero(restored.any(axis=(1, 2))).tolist() == [6]  # 5 and the first row of the crop box


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_thick_slices_of_any_axis_get_what_lies_in_their_middle(coarse: int) -> None:
    spacing = tuple(8.0 if axis == coarse else 1.0 for axis in range(3))
    _, properties = preprocess_image(Volume(np.ones((1, 9, 9, 9), np.float32), Geometry(spacing)), plan())
    assert (properties.separate_axis, properties.shape[coarse]) == (coarse, 72)
    position = np.indices(properties.shape, np.float32)[coarse]
    restored = np.moveaxis(restore_map(position, properties), coarse, 0)
    np.testing.assert_array_equal(restored[:, 4, 4], 8 * np.arange(9) + 4)


def test_map_is_filled_outside_of_the_box() -> None:
    volume, _ = ball_case()
    _, properties = preprocess_image(volume, plan((2.0, 2.0, 2.0)))
    restored = restore_map(np.full(properties.shape, 0.25, np.float16), properties, fill=-1)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored[1:19, 2:22, 5:28], 0.25)
    assert (restored[0] == -1).all()
    stack = restore_map(torch.ones((2, *properties.shape)), properties)
    assert stack.shape == (2, 20, 24, 30)
    assert stack.sum() == pytest.approx(2 * 18 * 20 * 23)


def test_slices_keep_their_axis() -> None:
    volume, labels = ball_case((3.0, 1.0, 1.0))
    _, properties = preprocess_image(volume, plan((None, 2.0, 2.0)))
    assert properties.shape == (18, 10, 12)
    assert properties.spacing_mm == (3.0, 2.0, 2.0)
    assert preprocess_labels(labels, properties).shape == (1, 18, 10, 12)


def test_wrong_shapes_are_named() -> None:
    _, properties = preprocess_image(ball_case()[0], plan())
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 4\)"):
        restore_map(np.zeros((1, 2, 3, 4), np.float32), properties)
    with pytest.raises(ValueError, match="2 channels, the labels need 3"):
        restore_labels(np.zeros((2, *properties.shape), np.float32), properties, SOFTMAX)


def test_the_image_of_the_caller_is_not_changed() -> None:
    volume, _ = ball_case()
    before = volume.array.copy()
    scaled = PreprocessingPlan((0, 1, 2), (1.0, 1.0, 1.0), ("zscore",), (True,), (STATISTICS,))
    image, _ = preprocess_image(volume, scaled)
    np.testing.assert_array_equal(volume.array, before)
    assert abs(float(image.mean())) < 1e-5
