"""Values that the tests of other packages hold, of inputs small enough to be written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unisegdiff_pipeline.evaluation.boundary import boundary_score, surface
from unisegdiff_pipeline.evaluation.calibration import CaseCalibration, calibration_error, case_calibration
from unisegdiff_pipeline.evaluation.froc import froc
from unisegdiff_pipeline.evaluation.lesions import ScoredLesion


def calibration(p: list[float], y: list[int]) -> CaseCalibration:
    shape = (1, 1, len(p))
    truth = np.array(y, bool).reshape(shape)
    return case_calibration(np.array(p, np.float64).reshape(shape), truth, np.ones(shape, bool))


@pytest.mark.parametrize(("num_bins", "expected"), [(2, 0.109), (5, 0.315), (10, 0.359)])
def test_calibration_error_of_ten_voxels(num_bins: int, expected: float) -> None:
    p = [0.22, 0.48, 0.49, 0.96, 0.55, 0.64, 0.78, 0.82, 0.34, 0.87]
    found = calibration(p, [0, 1, 0, 0, 1, 1, 1, 1, 1, 0])
    assert calibration_error(found.counts, num_bins) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [
        ([0.7, 0.3, 0.1, 0.9], [1, 0, 0, 1], 0.2),
        ([0.7, 0.3, 0.5, 0.5], [0, 1, 1, 0], 0.35),
        ([0.1, 0.1, 0.9, 0.7], [0, 0, 1, 1], 0.15),
    ],
)
def test_calibration_error_in_five_bins(p: list[float], y: list[int], expected: float) -> None:
    assert calibration_error(calibration(p, y).counts, 5) == pytest.approx(expected, abs=1e-6)


def test_likelihood_and_brier_score_of_two_voxels() -> None:
    found = calibration([0.8, 0.6], [1, 0])
    assert found.nll == pytest.approx(0.5697, abs=5e-5)
    assert found.brier == pytest.approx(0.2)


def square(first: int, last: int) -> np.ndarray:
    mask = np.zeros((1, 14, 14), bool)
    mask[0, first:last, first:last] = True
    return mask


@pytest.mark.parametrize(
    ("predicted", "hd", "assd", "surface_dice"),
    [(square(6, 8), math.sqrt(2), 1.10, 0.75), (square(4, 10), math.sqrt(2), 1.05, 0.875)],
)
def test_squares_within_each_other(predicted: np.ndarray, hd: float, assd: float, surface_dice: float) -> None:
    found = boundary_score(square(5, 9), predicted, (1.0, 1.0, 1.0), (1.0,))
    assert found.hd_mm == pytest.approx(hd)
    assert found.assd_mm == pytest.approx(assd, abs=5e-3)
    assert found.surface_dice == pytest.approx((surface_dice,))


def ball(
    radius_mm: float, centre_mm: tuple[float, ...], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> np.ndarray:
    grids = np.ogrid[:99, :99, :99]
    squares = ((grid * spacing - c) ** 2 for grid, spacing, c in zip(grids, spacing_mm, centre_mm, strict=True))
    return np.asarray(sum(squares) <= radius_mm**2)


def test_a_ball_moved_along_the_diagonal() -> None:
    found = boundary_score(ball(20, (20, 20, 20)), ball(20, (19, 19, 19)), (1.0, 1.0, 1.0))
    assert found.hd_mm == pytest.approx(math.sqrt(3))


def test_a_ball_within_another() -> None:
    """MONAI publishes the mean distance from the small ball to the large one; ours pools it with the way back."""
    small, large = ball(20, (20, 33, 22)), ball(40, (20, 33, 22))
    found = boundary_score(small, large, (1.0, 1.0, 1.0))
    assert found.hd_mm == pytest.approx(20.2237, abs=5e-5)
    assert found.hd95_mm == pytest.approx(20.0998, abs=5e-5)
    assert found.assd_mm == pytest.approx(15.117741, abs=5e-6)
    there, back = int(surface(small).sum()), int(surface(large).sum())
    way_back = (found.assd_mm * (there + back) - 12.0400 * there) / back
    assert way_back == pytest.approx(15.9113, abs=1e-4)


def test_balls_with_an_anisotropic_spacing() -> None:
    spacing_mm = (0.85, 1.2, 0.9)
    small, large = (ball(radius, (20, 33, 22), spacing_mm) for radius in (15, 30))
    assert boundary_score(small, large, spacing_mm).hd_mm == pytest.approx(15.62594, abs=5e-6)
    one, other = (ball(20, centre, spacing_mm) for centre in ((20, 20, 20), (19, 19, 19)))
    assert boundary_score(one, other, spacing_mm).hd_mm == pytest.approx(2.2671568, abs=5e-7)


def test_froc_of_two_cases() -> None:
    cases = []
    for found, false in ((1.0, 0.8), (0.8, 0.6)):
        lesions = [_lesion("reference", 1, math.nan, 1), _lesion("reference", 2, math.nan, 2)]
        lesions += [_lesion("prediction", 1, found, 1), _lesion("prediction", 2, found, 2)]
        cases.append([*lesions, _lesion("prediction", 3, false)])
    curve = froc(cases, rates=(0.25, 0.5, 1, 2, 4, 8))
    assert curve is not None
    assert curve.mean_sensitivity == pytest.approx(0.958333, abs=5e-7)


def _lesion(side: str, number: int, confidence: float, *matched: int) -> ScoredLesion:
    return ScoredLesion(side, number, 1, 0.001, None, 0.0, (0, 0, 0), matched, 0.5, 0.5, confidence)  # type: ignore[arg-type]
