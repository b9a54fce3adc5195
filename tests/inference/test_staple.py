"""STAPLE by hand, and against SimpleITK's on whole volumes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from unisegdiff_pipeline.inference.staple import staple


def rows_of(masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct rows, their counts, and the row of each voxel."""
    rows, which, counts = np.unique(
        np.stack([m.ravel() for m in masks], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    return rows, counts, which.reshape(masks[0].shape)


def noisy_balls(count: int, seed: int) -> list[np.ndarray]:
    """A ball with a core as several careless readers see it, {0, 1, 2} (Z, Y, X)."""
    rng = np.random.default_rng(seed)
    axes = np.mgrid[:20, :24, :22]
    masks = []
    for _ in range(count):
        centre = np.array([10, 12, 11]) + rng.normal(size=3)
        distance = np.sqrt(((axes - centre[:, None, None, None]) ** 2).sum(axis=0))
        mask = (distance < 8 + rng.normal()).astype(np.uint8) + (distance < 4 + rng.normal())
        masks.append(np.where(rng.random(mask.shape) < 0.01, 0, mask).astype(np.uint8))
    return masks


def test_the_result_is_a_fixed_point_of_the_two_equations() -> None:
    """Two maps that agree but for one voxel in ten; sensitivities p, specificities q and W in plain numbers."""
    rows, counts = np.array([[0, 0], [1, 1], [1, 0]]), np.array([5, 4, 1])
    w = staple(rows, counts, 2)[1]
    inside, outside = 5 * w[0] + 4 * w[1] + w[2], 5 * (1 - w[0]) + 4 * (1 - w[1]) + 1 - w[2]
    p = (4 * w[1] + w[2]) / inside, 4 * w[1] / inside
    q = 5 * (1 - w[0]) / outside, (5 * (1 - w[0]) + 1 - w[2]) / outside
    prior = (5 + 4) / 20
    a, b = prior * p[0] * (1 - p[1]), (1 - prior) * (1 - q[0]) * q[1]
    assert w[2] == pytest.approx(a / (a + b), abs=1e-6)
    assert w[0] < 1e-6
    assert w[1] > 1 - 1e-6


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (4, 1), (8, 2)])
def test_two_labels_are_simpleitk_s(count: int, seed: int) -> None:
    masks = [(mask > 0).astype(np.uint8) for mask in noisy_balls(count, seed)]
    rows, counts, which = rows_of(masks)
    expected = sitk.GetArrayFromImage(sitk.STAPLE([sitk.GetImageFromArray(mask) for mask in masks], 1.0, 1))
    found = staple(rows, counts, 2)[1][which]
    assert np.abs(found - expected).max() < 1e-4
    assert np.array_equal(found > 0.5, expected > 0.5)


def test_several_labels_agree_with_simpleitk_s() -> None:
    """Its filter for several labels starts from a vote and stops sooner, so a few voxels may differ."""
    masks = noisy_balls(5, 3)
    rows, counts, which = rows_of(masks)
    weights = staple(rows, counts, 3)
    assert np.allclose(weights.sum(axis=0), 1)
    expected = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(mask) for mask in masks], 9))
    found = weights.argmax(axis=0)[which]
    assert np.mean(found != expected) < 1e-3


def test_a_careless_map_counts_less() -> None:
    """Two good maps among three that are wrong in 40 % of the voxels, and sometimes outvote the two."""
    rng = np.random.default_rng(5)
    truth = (np.arange(4000) < 1000).astype(np.int64)
    good = [truth ^ (rng.random(4000) < 0.02) for _ in range(2)]
    bad = [truth ^ (rng.random(4000) < 0.4) for _ in range(3)]
    rows, counts, which = rows_of([*good, *bad])
    found = staple(rows, counts, 2).argmax(axis=0)[which]
    vote = np.mean([*good, *bad], axis=0) > 0.5
    assert np.mean(found != truth) < np.mean(vote != truth) / 2


def test_a_row_without_voxels_takes_no_part() -> None:
    """Background by both, which a map that marks everything never gives."""
    rows, counts = np.array([[1, 0], [1, 1], [0, 0]]), np.array([6, 4, 0])
    found = staple(rows, counts, 2)
    assert np.array_equal(found[:, :2], staple(rows[:2], counts[:2], 2))
    assert np.allclose(found[:, 2], [0.3, 0.7])


def test_labels_that_no_map_gives() -> None:
    assert staple(np.zeros((1, 3), np.int64), np.array([7]), 2).tolist() == [[1.0], [0.0]]
    weights = staple(np.array([[0, 0], [2, 2]]), np.array([3, 3]), 3)
    assert np.allclose(weights, [[1, 0], [0, 0], [0, 1]])
