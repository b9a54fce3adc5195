"""Sampling under an affine map against torch's grid_sample and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.training.data.affine import affine_box, sample_image, sample_labels
from unisegdiff_pipeline.training.data.augmentation import rotation_matrix


def take(array: np.ndarray, start, patch, matrix):
    """Run the whole way of one array (*case): box, reading with zeros outside, sampling."""
    box = affine_box(start, patch, matrix, array.shape)
    source = np.zeros(box.shape, array.dtype)
    for index in np.ndindex(*box.shape):
        position = tuple(i + o for i, o in zip(index, box.origin, strict=True))
        if all(0 <= p < n for p, n in zip(position, array.shape, strict=True)):
            source[index] = array[position]
    if array.dtype == np.float32:
        return sample_image(torch.from_numpy(source)[None], box, patch)[0].numpy()
    return sample_labels(source, box, patch)


def reference(array: np.ndarray, start, patch, matrix) -> np.ndarray:
    """The same by torch.nn.functional.grid_sample."""
    index = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in patch], indexing="ij"), -1)
    position = index @ matrix.T + np.array(start) + (np.array(patch) - 1) / 2
    grid = (2 * position + 1) / np.array(array.shape) - 1
    grid = torch.from_numpy(grid[..., ::-1].astype(np.float32).copy())[None]
    source = torch.from_numpy(array.astype(np.float32))[None, None]
    return torch.nn.functional.grid_sample(source, grid, align_corners=False)[0, 0].numpy()


CASES = [
    ((9, 12), (6, 8), (2, 1), rotation_matrix([0.7]) * 1.3),
    ((9, 12), (6, 8), (-3, 7), rotation_matrix([2.5]) * 0.8),
    ((6, 7, 8), (5, 4, 6), (0, 1, 2), rotation_matrix([0.4, -0.3, 0.5]) * 1.4),
    ((4, 7, 3), (8, 4, 6), (-2, 5, -2), rotation_matrix([-0.5, 0.2, 0.1]) * 0.7),
]


@pytest.mark.parametrize(("case", "patch", "start", "matrix"), CASES)
def test_image_equals_grid_sample(case, patch, start, matrix) -> None:
    array = np.random.default_rng(0).normal(size=case).astype(np.float32)
    np.testing.assert_allclose(take(array, start, patch, matrix), reference(array, start, patch, matrix), atol=2e-5)


@pytest.mark.parametrize(("case", "patch", "start", "matrix"), CASES)
def test_labels_are_those_of_largest_interpolated_weight(case, patch, start, matrix) -> None:
    labels = np.random.default_rng(1).integers(0, 4, case).astype(np.uint8)
    foreground = np.stack([reference(labels == value, start, patch, matrix) for value in (1, 2, 3)])
    scores = np.concatenate([1 - foreground.sum(0, keepdims=True), foreground])
    np.testing.assert_array_equal(take(labels, start, patch, matrix), scores.argmax(0))


@pytest.mark.parametrize("scale", [1 - 1e-9, 1 + 1e-9])
def test_a_span_that_rounds_up_to_a_whole_number_stays_in_its_box(scale: float) -> None:
    array = np.random.default_rng(2).normal(size=(9, 12)).astype(np.float32)
    np.testing.assert_allclose(take(array, (0, 0), (9, 12), scale * np.eye(2)), array, atol=1e-5)
    labels = (array > 0).astype(np.uint8)
    np.testing.assert_array_equal(take(labels, (0, 0), (9, 12), scale * np.eye(2)), labels)


def test_identity_reads_the_plain_patch_and_zeros_outside() -> None:
    array = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(take(array, (1, 2), (3, 3), np.eye(2)), [[7, 8, 0], [11, 12, 0], [0, 0, 0]])


def test_quarter_turn() -> None:
    array = np.array([[1, 2], [3, 4]], np.float32)
    # A = [[0, -1], [1, 0]]: the upper left voxel (-1/2, -1/2) looks at (1/2, -1/2), the lower left one, which is 3.
    turned = take(array, (0, 0), (2, 2), rotation_matrix([np.pi / 2]))
    np.testing.assert_allclose(turned, [[3, 1], [4, 2]], atol=1e-6)


def test_shrinking_by_two_averages_pairs() -> None:
    array = np.array([[0, 1, 2, 3, 4, 5]], np.float32)
    # patch voxels 0, 1, 2 at factor 2 about voxel 2: positions 0, 2, 4
    np.testing.assert_allclose(take(array, (0, 1), (1, 3), np.eye(2) * 2), [[0, 2, 4]])


def test_a_patch_far_outside_is_empty() -> None:
    array = np.ones((4, 4), np.float32)
    assert np.all(take(array, (40, -30), (3, 3), rotation_matrix([0.3])) == 0)
    assert np.all(take(np.ones((4, 4), np.uint8), (40, -30), (3, 3), rotation_matrix([0.3])) == 0)
