"""The lesion table on masks small enough to count by eye."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from unisegdiff_pipeline.core import components
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.cases import CaseCounter
from unisegdiff_pipeline.inference.lesions import LesionCounter
from unisegdiff_pipeline.inference.volumes import VolumeCounter

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def two_lesions() -> np.ndarray:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, 0, 0] = 1  # one voxel
    labels[2:4, 1:3, 3:6] = 1  # 2 x 2 x 3 = 12 voxels
    return labels


def test_sizes_boxes_and_confidence_by_hand() -> None:
    labels = two_lesions()
    counter = LesionCounter(labels, BINARY)
    only_small, only_large, nothing = np.zeros_like(labels), np.zeros_like(labels), np.zeros_like(labels)
    only_small[0, 0, 0] = 1
    only_large[3, 2, 5] = 1  # one shared voxel is an overlap
    for sample in (only_small, only_large, only_large, nothing):
        counter.add_sample(sample)
    probability = np.where(labels == 1, 0.75, 0.1)
    probability[0, 0, 0] = 0.6
    counter.add_probability(0, probability)
    large, small = counter.rows("c", (2.0, 0.5, 1.0))
    assert (large.lesion, large.voxels, large.volume_mm3, large.volume_ml) == (1, 12, 12.0, 0.012)
    assert (large.z_min, large.z_max, large.y_min, large.y_max, large.x_min, large.x_max) == (2, 4, 1, 3, 3, 6)
    assert large.confidence == 0.5
    assert large.mean_probability == pytest.approx(0.75)
    assert (small.lesion, small.voxels, small.volume_mm3) == (2, 1, 1.0)
    assert small.confidence == 0.25
    assert small.mean_probability == pytest.approx(0.6)
    assert small.area_mm2 is None
    assert large.longest_diameter_mm == pytest.approx((2.0**2 + 0.5**2 + 2.0**2) ** 0.5)  # 1, 1 and 2 voxels apart
    assert small.longest_diameter_mm == 0


def test_diagonal_neighbours_are_one_lesion_in_2d() -> None:
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[0, 1, 1] = 1
    (row,) = LesionCounter(labels, BINARY).rows("c", (1.0, 0.5, 0.5), is_2d=True)
    assert (row.voxels, row.area_mm2, row.volume_mm3, row.confidence) == (2, 0.5, None, None)
    assert row.longest_diameter_mm == pytest.approx(0.5**0.5)
    (row,) = LesionCounter(labels, BINARY).rows("c", (1.0, 1.0, 1.0), is_2d=True, spacing_known=False)
    assert row.longest_diameter_mm is None


def test_regions_have_lesions_each() -> None:
    labels = np.zeros((1, 5, 5), np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[0, 2, 2] = 2
    counter = LesionCounter(labels, REGIONS)
    sample = np.zeros_like(labels)
    sample[0, 1, 1] = 1  # touches the whole, not the core
    counter.add_sample(sample)
    rows = counter.rows("c", (1, 1, 1))
    assert [(r.class_name, r.voxels, r.confidence) for r in rows] == [("whole", 9, 1.0), ("core", 1, 0.0)]


def test_empty_mask_has_no_rows() -> None:
    counter = LesionCounter(np.zeros((2, 3, 3), np.uint8), BINARY)
    counter.add_sample(np.ones((2, 3, 3), np.uint8))
    counter.add_probability(0, np.zeros((2, 3, 3)))
    assert counter.rows("c", (1, 1, 1)) == []


def test_counting_takes_next_to_no_memory_beside_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "SLAB_VOXELS", 1 << 14)
    labels = np.zeros((128, 64, 64), np.uint8)
    labels[5:8, 3:60, 3:9] = labels[100:120, 40:44, 50:60] = 1  # far apart, so that no box around them helps
    LesionCounter(labels[:4], BINARY)  # what is imported counts for nothing
    tracemalloc.start()
    try:
        lesions, cases, volumes = LesionCounter(labels, BINARY), CaseCounter(BINARY), VolumeCounter(BINARY)
        lesions.add_sample(labels)
        cases.add_sample(labels)
        volumes.add_sample(labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < labels.nbytes / 2
    assert [row.voxels for row in lesions.rows("a", (1.0, 1.0, 1.0))] == [3 * 57 * 6, 20 * 4 * 10]
