"""Components against scikit-image, and the longest distance against all pairs."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist
from skimage import measure

from unisegdiff_pipeline.core.boxes import box_slices
from unisegdiff_pipeline.core.components import (
    _first_of_linked,
    connect_runs,
    find_components,
    find_runs_in,
    label_components,
    longest_distance,
)

SPACING = (5.0, 0.7, 1.3)
SKIMAGE_CONNECTIVITY: dict[Literal[6, 18, 26], int] = {6: 1, 18: 2, 26: 3}


def blobs(shape: tuple[int, int, int], seed: int, sigma: float = 1.0) -> np.ndarray:
    """Smooth random objects that also touch the border; about a quarter of the voxels."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return noise > np.quantile(noise, 0.75)


MASKS = {
    "empty": np.zeros((3, 4, 5), bool),
    "full": np.ones((3, 4, 5), bool),
    "one voxel": np.arange(60).reshape(3, 4, 5) == 0,
    "noise": np.random.default_rng(3).random((5, 9, 8)) > 0.7,
    "checkerboard": np.indices((3, 4, 5)).sum(axis=0) % 2 == 0,
    "blobs": blobs((12, 20, 17), 1),
    "2D": blobs((1, 30, 40), 2),
    "one column": blobs((25, 1, 1), 4),
}


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("name", MASKS)
def test_components_are_those_of_scikit_image(name: str, connectivity: Literal[6, 18, 26]) -> None:
    mask = MASKS[name]
    found = find_components(mask, connectivity)
    labels = measure.label(mask, connectivity=SKIMAGE_CONNECTIVITY[connectivity])
    # Every component is one number, and the numbers are those of the same voxels.
    numbers = found.numbers_at(np.arange(mask.size)).reshape(mask.shape)
    assert len(np.unique(np.stack([labels[mask], numbers[mask]]), axis=1).T) == labels.max() == len(found)
    assert not numbers[~mask].any()
    regions = {int(numbers[tuple(region.coords[0])]): region for region in measure.regionprops(labels)}
    centroids, boxes, diameters = found.centroids(), found.boxes(), found.longest_diameters_mm(SPACING)
    for number, region in regions.items():
        assert found.voxels[number - 1] == region.area
        np.testing.assert_allclose(centroids[number - 1], region.centroid)
        np.testing.assert_array_equal(boxes[number - 1], np.reshape(region.bbox, (2, 3)).T)
        expected = pdist(region.coords * SPACING).max() if region.area > 1 else 0.0
        assert diameters[number - 1] == pytest.approx(expected)
    assert centroids.shape == (len(found), 3)
    assert boxes.shape == (len(found), 3, 2)


def test_largest_first_then_by_place() -> None:
    mask = np.zeros((2, 5, 5), bool)
    mask[1, 0, 0] = mask[0, 4, 0] = mask[0, 0, 4] = True
    mask[1, 2:4, 2] = True
    found = find_components(mask, 6)
    assert found.voxels.tolist() == [2, 1, 1, 1]
    places = [(1, 2, 2), (0, 0, 4), (0, 4, 0), (1, 0, 0)]
    flat = np.ravel_multi_index(np.transpose(places), mask.shape)
    assert found.numbers_at(flat).tolist() == [1, 2, 3, 4]


def test_of_equal_components_the_one_whose_box_begins_first_comes_first() -> None:
    mask = np.zeros((4, 8, 9), bool)
    mask[0, 0, 1:4] = mask[1, 0, 1:4] = mask[2, 0, 1] = True  # begins before the next one, and its box after it
    mask[0, 0:2, 5] = mask[0, 2, 0:5] = True
    mask[3, 4, 4] = mask[0, 7, 8] = mask[0, 4, 8] = True
    found = find_components(mask)
    assert found.voxels.tolist() == [7, 7, 1, 1, 1]
    assert found.boxes()[:2].tolist() == [[[0, 1], [0, 3], [0, 6]], [[0, 3], [0, 1], [1, 4]]]
    assert found.boxes()[2:, :, 0].tolist() == [[0, 4, 8], [0, 7, 8], [3, 4, 4]]
    assert found.first_voxels.tolist() == [5, 1, 44, 71, 256]


@pytest.mark.parametrize("name", MASKS)
def test_of_equal_size_and_box_the_one_with_the_first_voxel_comes_first(name: str) -> None:
    mask = MASKS[name]
    found, labels = find_components(mask), label_components(mask).ravel()
    keys = np.column_stack([-found.voxels, found.boxes()[..., 0], labels[found.first_voxels]])
    assert keys.tolist() == sorted(keys.tolist())


@pytest.mark.parametrize("name", MASKS)
def test_slabs_boxes_and_slices_hold_the_components_of_the_mask(name: str) -> None:
    mask = MASKS[name]
    whole = find_components(mask)
    numbers = whole.numbers()
    assert numbers.ravel().tolist() == whole.numbers_at(np.arange(mask.size)).tolist()
    found = connect_runs(find_runs_in(mask[first : first + 2] for first in range(0, len(mask), 2)), mask.shape)
    assert found.numbers().tolist() == numbers.tolist()
    box = tuple((size // 3, size - size // 4) for size in mask.shape)
    assert whole.within(box).tolist() == numbers[box_slices(box)].tolist()
    painted = np.zeros_like(numbers)
    for z, places, of_voxels in whole.slices():
        painted[z].ravel()[places] = of_voxels
    assert painted.tolist() == numbers.tolist()


def test_labels_follow_the_first_voxels() -> None:
    mask = np.zeros((2, 3, 4), bool)
    mask[1, 0, 0] = mask[0, 2, 3] = mask[0, 0, 2] = True
    assert np.argwhere(label_components(mask)).tolist() == [[0, 0, 2], [0, 2, 3], [1, 0, 0]]
    assert label_components(mask)[mask].tolist() == [1, 2, 3]
    assert not label_components(np.zeros((2, 0, 3), bool)).any()


def test_a_view_is_labelled_as_its_copy() -> None:
    mask = MASKS["blobs"]
    for view in (mask[::-1, :, ::2], mask.transpose(2, 0, 1)):
        numbers = [find_components(m).numbers_at(np.arange(m.size)) for m in (view, view.copy())]
        np.testing.assert_array_equal(*numbers)


def ball(radius: int) -> np.ndarray:
    grid = np.indices((2 * radius + 1,) * 3) - radius
    return np.argwhere((grid**2).sum(axis=0) <= radius**2).astype(float)


POINTS = {
    "none": np.zeros((0, 3)),
    "one": np.ones((1, 3)),
    "two": np.array([[0.0, 0, 0], [1, 2, 2]]),
    "all in one place": np.ones((600, 3)),
    "line": np.arange(700)[:, None] * np.array([[1.0, 0, 0]]),
    "oblique line": np.arange(700)[:, None] * np.array([[0.3, -0.7, 1.1]]),
    "plane": np.argwhere(np.ones((1, 30, 31))) * SPACING,
    "oblique plane": np.argwhere(np.ones((30, 31)))[:, [0, 0, 1]] * np.array(SPACING),
    "ball": ball(8) * SPACING,
    "cloud": np.random.default_rng(0).standard_normal((900, 3)),
    "two far clusters": np.concatenate([ball(5), ball(4) + np.array([300, 20, 0])]),
    "thin and long": np.argwhere(np.ones((2, 2, 900))) * [1e-3, 1e-3, 1.0],
}


@pytest.mark.parametrize("name", POINTS)
def test_longest_distance_is_that_of_all_pairs(name: str) -> None:
    points = POINTS[name]
    expected = pdist(points).max() if len(points) > 1 else 0.0
    assert longest_distance(points) == pytest.approx(expected, rel=1e-12)


def test_longest_distance_does_not_depend_on_axes_or_order() -> None:
    points = POINTS["ball"]
    expected = longest_distance(points)
    for order in itertools.permutations(range(3)):
        assert longest_distance(points[::-1, order] * [1, -1, 1]) == pytest.approx(expected, rel=1e-12)


def test_a_box_has_its_diagonal() -> None:
    found = find_components(np.ones((3, 5, 7), bool))
    assert found.longest_diameters_mm((5.0, 2.0, 1.0)).tolist() == [pytest.approx(np.sqrt(10**2 + 8**2 + 6**2))]


def test_links_lead_to_the_first_of_their_component() -> None:
    rng = np.random.default_rng(0)
    chain = np.arange(1, 300)
    cases = [(rng.integers(0, 200, 150), rng.integers(0, 200, 150), 200), (chain, chain - 1, 300)]
    cases.append((np.append(chain[::2], 0), np.append(chain[::2] - 1, 299), 300))
    for one, other, count in cases:
        links = coo_array((np.ones(len(one)), (one, other)), shape=(count, count))
        numbers = connected_components(links, directed=False)[1]
        assert np.array_equal(_first_of_linked(count, one, other), np.unique(numbers, return_index=True)[1][numbers])


def test_lesions_of_a_small_mask_are_found_and_measured_without_scipy() -> None:
    """Its import takes longer than a small case."""
    code = "import sys, numpy as np; from unisegdiff_pipeline.core.components import find_components; "
    code += "found = find_components(np.ones((9, 9, 9), bool)); found.longest_diameters_mm((1.0, 1.0, 1.0)); "
    subprocess.run([sys.executable, "-c", code + "assert 'scipy' not in sys.modules"], check=True)
