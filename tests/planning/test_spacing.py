"""Target spacing and order of the axes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.fingerprint import CaseFingerprint, Fingerprint
from unisegdiff_pipeline.planning.spacing import plan_spacing, resampled_shapes

Triple = tuple[float, float, float]


def fingerprint_of(*cases: tuple[tuple[int, int, int], Triple], is_2d: bool = False) -> Fingerprint:
    facts = tuple(
        CaseFingerprint(str(i), None, shape, spacing, shape, 0.1, False, ()) for i, (shape, spacing) in enumerate(cases)
    )
    return Fingerprint("Dataset001_Made", is_2d, (), 0.0, 1.0, (), (), (), facts, None)


def test_median_spacing_and_resampled_shape() -> None:
    plan = plan_spacing(
        fingerprint_of(
            ((10, 20, 20), (1.0, 1.0, 1.0)), ((10, 20, 20), (2.0, 1.0, 1.0)), ((10, 20, 20), (2.0, 1.0, 1.0))
        )
    )
    assert plan.spacing_mm == (2.0, 1.0, 1.0)
    assert plan.median_shape == (10, 20, 20)  # 5, 10 and 10 slices
    assert plan.median_shape_unresampled == (10, 20, 20)


def test_few_thick_slices_keep_the_finer_cases() -> None:
    cases = [((10, 200, 200), (z, 1.0, 1.0)) for z in (5.0, *[10.0] * 9)]
    plan = plan_spacing(fingerprint_of(*cases))
    assert plan.spacing_mm[0] == pytest.approx(np.percentile([5.0, *[10.0] * 9], 10))
    assert "10th percentile" in plan.spacing_reason


def test_the_coarse_axis_does_not_become_finer_than_the_others() -> None:
    cases = [((10, 200, 200), (z, 1.0, 1.0)) for z in (0.5, 0.5, *[10.0] * 8)]
    assert plan_spacing(fingerprint_of(*cases)).spacing_mm[0] == pytest.approx(1.0, abs=1e-4)


def test_many_thick_slices_take_the_median() -> None:
    cases = [((100, 200, 200), (z, 1.0, 1.0)) for z in (5.0, *[10.0] * 9)]
    assert plan_spacing(fingerprint_of(*cases)).spacing_mm[0] == 10.0


def test_the_coarsest_axis_comes_first() -> None:
    plan = plan_spacing(fingerprint_of(((256, 256, 30), (1.0, 1.1, 5.0))))
    assert plan.axis_order == (2, 0, 1)
    assert plan.spacing_mm == (5.0, 1.0, 1.1)
    assert plan.median_shape == (30, 256, 256)


def test_axes_stay_where_none_stands_out() -> None:
    """Axial slices of 1.4 mm pixels that lie 1 mm apart stay axial slices."""
    assert plan_spacing(fingerprint_of(((20, 256, 256), (1.0, 1.4, 1.4)))).axis_order == (0, 1, 2)
    assert plan_spacing(fingerprint_of(((1, 99, 50), (1.0, 1.0, 3.0)), is_2d=True)).axis_order == (0, 1, 2)


def test_shapes_round_to_whole_voxels_and_never_vanish() -> None:
    shapes = resampled_shapes(np.array([[1, 10, 11]]), np.array([[1.0, 0.5, 0.5]]), (3.0, 1.0, 1.0))
    assert shapes.tolist() == [[1, 5, 6]]
