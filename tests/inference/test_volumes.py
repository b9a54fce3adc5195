"""The table of volumes by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference.volumes import VolumeCounter

REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))


def labels(ones: int, twos: int = 0) -> np.ndarray:
    out = np.zeros((1, 10, 10), np.uint8)
    out.ravel()[: ones + twos] = 1
    out.ravel()[:twos] = 2
    return out


def test_samples_of_a_volume() -> None:
    """Voxels of 2 * 0.5 * 10 = 10 mm3: 0.01 ml each. Regions: whole 5 in the mask, 2 4 6 in samples; core 1, 0 0 3."""
    counter = VolumeCounter(REGIONS)
    for ones, twos in ((2, 0), (4, 0), (3, 3)):
        counter.add_sample(labels(ones, twos))
    whole, core = counter.rows("c", labels(4, 1), (2.0, 0.5, 10.0))
    assert (whole.class_name, whole.unit, whole.num_samples, whole.spacing_known) == ("whole", "ml", 3, True)
    assert whole.volume == pytest.approx(0.05)
    assert whole.expected_volume == pytest.approx(0.04)
    assert whole.std == pytest.approx(0.02)  # sqrt((0.02^2 + 0 + 0.02^2) / 2)
    assert (whole.quantile_05, whole.quantile_95) == pytest.approx((0.02, 0.06))  # too few to reach further
    assert core.volume == pytest.approx(0.01)
    assert core.expected_volume == pytest.approx(0.01)
    assert core.std == pytest.approx(0.03 / np.sqrt(3))  # sqrt((0.01^2 + 0.01^2 + 0.02^2) / 2)


def test_quantiles_of_many_samples() -> None:
    """39 samples of 1 .. 39 voxels: positions 0.05 * 40 = 2 and 0.95 * 40 = 38."""
    counter = VolumeCounter(BINARY)
    for voxels in range(39, 0, -1):
        counter.add_sample(labels(voxels))
    (row,) = counter.rows("c", labels(7), (3.0, 1.0, 1.0), is_2d=True, spacing_known=False)
    assert (row.unit, row.spacing_known, row.volume) == ("pixels2", False, 7.0)
    (known,) = counter.rows("c", labels(7), (3.0, 2.0, 1.0), is_2d=True)
    assert (known.unit, known.volume) == ("mm2", 14.0)
    assert (row.quantile_05, row.quantile_95) == pytest.approx((2.0, 38.0))


def test_without_samples_and_with_one() -> None:
    counter = VolumeCounter(BINARY)
    (row,) = counter.rows("c", labels(7), (1, 1, 1))
    assert (row.volume, row.num_samples, row.expected_volume, row.quantile_05) == (0.007, 0, None, None)
    counter.add_sample(labels(5))
    (row,) = counter.rows("c", labels(7), (1, 1, 1))
    assert (row.expected_volume, row.std, row.quantile_05, row.quantile_95) == (0.005, None, None, None)
