"""Surface distances worked out by hand, against MONAI and medpy, and under what must not change them."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from medpy.metric import binary as medpy
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from unisegdiff_pipeline.evaluation import boundary
from unisegdiff_pipeline.evaluation.boundary import BoundaryScore, boundary_score, rater_tolerance_mm, surface

UNIT = (1.0, 1.0, 1.0)
ANISOTROPIC = (5.0, 0.7, 1.3)
TOLERANCES = (0.0, 0.99, 1.49, 3.7)  # none lies at a distance between two voxels of these grids, 0 excepted


def voxels(shape: tuple[int, int, int], *places: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def cube(size: int, side: int) -> np.ndarray:
    """A cube in the middle of a cubic image."""
    mask = np.zeros((size,) * 3, bool)
    inside = slice((size - side) // 2, (size + side) // 2)
    mask[inside, inside, inside] = True
    return mask


def blob(seed: int, shape: tuple[int, int, int], fraction: float) -> np.ndarray:
    """Smooth random objects, several and cut off by the border, filling about a fraction of the image."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = gaussian_filter(noise, [min(2.0, n / 4) for n in shape], mode="wrap")
    return smooth > np.quantile(smooth, 1 - fraction)


def noise(seed: int, shape: tuple[int, int, int], fraction: float) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < fraction


SHAPE = (9, 14, 11)
FULL = np.ones(SHAPE, bool)
CORNERS = voxels(SHAPE, *itertools.product((0, 8), (0, 13), (0, 10)))
LINE = voxels(SHAPE, *((4, 6, x) for x in range(11)))
PLANE = voxels(SHAPE, *itertools.product((3,), range(14), range(11)))
PAIRS = {
    "blobs": (blob(1, SHAPE, 0.3), blob(2, SHAPE, 0.2)),
    "few blobs": (blob(3, SHAPE, 0.05), blob(4, SHAPE, 0.5)),
    "overlapping blobs": (blob(5, SHAPE, 0.3), blob(5, SHAPE, 0.4)),
    "noise": (noise(1, SHAPE, 0.5), noise(2, SHAPE, 0.5)),
    "dense noise": (noise(3, SHAPE, 0.95), noise(4, SHAPE, 0.9)),
    "single voxels": (noise(5, SHAPE, 0.01), noise(6, SHAPE, 0.02)),
    "one voxel against everything": (voxels(SHAPE, (4, 7, 5)), FULL),
    "one voxel in the corner": (voxels(SHAPE, (8, 13, 10)), blob(1, SHAPE, 0.3)),
    "disconnected, on every corner": (CORNERS, voxels(SHAPE, (4, 6, 5))),
    "line against plane": (LINE, PLANE),
    "identical": (blob(1, SHAPE, 0.3), blob(1, SHAPE, 0.3)),
    "2D blobs": (blob(7, (1, 30, 25), 0.3), blob(8, (1, 30, 25), 0.3)),
    "2D overlapping": (blob(9, (1, 30, 25), 0.3), blob(9, (1, 30, 25), 0.25)),
    "2D pixel in the corner": (voxels((1, 30, 25), (0, 0, 24)), blob(8, (1, 30, 25), 0.3)),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
each_spacing = pytest.mark.parametrize("spacing", [UNIT, ANISOTROPIC], ids=["isotropic", "anisotropic"])


def values(score: BoundaryScore) -> list[float]:
    return [score.hd_mm, score.hd95_mm, score.assd_mm, *score.surface_dice]


# By hand


@pytest.mark.parametrize(("place", "distance"), [((1, 1, 4), 3.0), ((3, 1, 1), 10.0), ((1, 3, 4), 5.0)])
def test_two_voxels(place: tuple[int, int, int], distance: float) -> None:
    shape, spacing = (5, 5, 5), (5.0, 2.0, 1.0)
    score = boundary_score(voxels(shape, (1, 1, 1)), voxels(shape, place), spacing, (distance - 0.1, distance))
    assert score == BoundaryScore(distance, distance, distance, (0.0, 1.0))


def test_one_voxel_against_a_row_of_twenty() -> None:
    # Distances of the row are 0, 1, ..., 19, that of the voxel is 0. The 95th percentile of the row lies at position
    # 0.95 * 19 = 18.05; pooling both sets, as medpy does, would give position 0.95 * 20 of 21 values, 18.
    shape = (3, 3, 22)
    row = voxels(shape, *((1, 1, x) for x in range(1, 21)))
    score = boundary_score(voxels(shape, (1, 1, 1)), row, UNIT)
    assert values(score) == pytest.approx([19, 18.05, 190 / 21, 3 / 21, 4 / 21])


@pytest.mark.parametrize("size", [5, 9], ids=["cut off by the image", "inside"])
def test_cube_in_a_cube(size: int) -> None:
    # Every of the 26 surface voxels of the inner cube has distance 1. Of the 98 of the outer one 6 * 9 lie on faces
    # (distance 1), 12 * 3 on edges (sqrt 2) and 8 on corners (sqrt 3).
    score = boundary_score(cube(size, 5), cube(size, 3), UNIT, (0.5, 1.0, 1.5, 2.0))
    assd = (26 + 54 + 36 * math.sqrt(2) + 8 * math.sqrt(3)) / 124
    expected = [math.sqrt(3), math.sqrt(3), assd, 0, 80 / 124, 116 / 124, 1]
    assert values(score) == pytest.approx(expected)


def test_square_in_a_square_in_2d() -> None:
    # Outlines of 8 and 16 pixels; on the outer one 12 pixels have distance 1 and 4 corners sqrt 2.
    outer, inner = np.ones((1, 5, 5), bool), np.zeros((1, 5, 5), bool)
    inner[0, 1:4, 1:4] = True
    score = boundary_score(outer, inner, (40.0, 1.0, 1.0), (1.0,))
    assd = (8 + 12 + 4 * math.sqrt(2)) / 24
    assert values(score) == pytest.approx([math.sqrt(2), math.sqrt(2), assd, 20 / 24])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice_of_any_direction_is_2d(axis: int) -> None:
    """The same pixels in the same plane; along another axis than Z every voxel was taken for surface."""
    one, other = np.zeros((2, 12, 14), bool)
    one[2:8, 2:8], other[4:10, 2:8] = True, True
    plane = boundary_score(one[None], other[None], (9.0, 2.0, 3.0))
    spacing = np.insert([2.0, 3.0], axis, 7.0)
    found = boundary_score(np.expand_dims(one, axis), np.expand_dims(other, axis), spacing)
    assert found == plane
    assert found.assd_mm > 1


def test_holes_have_a_surface() -> None:
    hollow = cube(9, 7) & ~cube(9, 1)
    score = boundary_score(cube(9, 7), hollow, UNIT)
    # The six voxels around the hole lie at distance 2 from the outer surface, the only one of the full cube.
    assert (score.hd_mm, score.hd95_mm) == (2.0, 0.0)
    assert score.assd_mm == pytest.approx(12 / (218 + 224))


# Empty masks, bad arguments


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5)])
def test_empty_masks(shape: tuple[int, int, int]) -> None:
    empty, some = np.zeros(shape, bool), voxels(shape, (0, 2, 2))
    undefined = [math.nan] * 3
    np.testing.assert_equal(values(boundary_score(empty, empty, UNIT)), [*undefined, math.nan, math.nan])
    np.testing.assert_equal(values(boundary_score(empty, some, UNIT)), [*undefined, math.nan, math.nan])
    np.testing.assert_equal(values(boundary_score(some, empty, UNIT)), [*undefined, 0.0, 0.0])


def test_without_tolerances_there_is_no_surface_dice() -> None:
    assert boundary_score(cube(5, 3), cube(5, 1), UNIT, ()).surface_dice == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted": cube(5, 3)[:4]}, r"shape \(5, 5, 5\) and prediction \(4, 5, 5\)"),
        ({"reference": cube(5, 3)[0], "predicted": cube(5, 3)[0]}, r"must be equal, \(Z, Y, X\)"),
        ({"predicted": cube(5, 3).astype(np.uint8)}, "both must be bool"),
        ({"spacing_mm": (1.0, 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "three numbers above 0"),
        ({"spacing_mm": (1.0, math.nan, 1.0)}, "three numbers above 0"),
        ({"tolerances_mm": (1.0, -1.0)}, "a number from 0 on"),
        ({"tolerances_mm": (math.nan,)}, "a number from 0 on"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"reference": cube(5, 3), "predicted": cube(5, 3), "spacing_mm": UNIT}
    with pytest.raises(ValueError, match=message):
        boundary_score(**{**arguments, **change})  # type: ignore[arg-type]


# Against others


@each_pair
def test_surface_is_that_of_a_binary_erosion(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for mask in pair:
        np.testing.assert_array_equal(surface(mask), mask & ~binary_erosion(mask))


@each_pair
@each_spacing
def test_all_pairs_of_surface_voxels_by_brute_force(
    pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]
) -> None:
    masks = [mask[0] if len(mask) == 1 else mask for mask in pair]
    positions = [np.argwhere(mask & ~binary_erosion(mask)) * spacing[-mask.ndim :] for mask in masks]
    between = cdist(*positions)
    there, back = between.min(axis=1), between.min(axis=0)
    both = np.concatenate([there, back])
    expected = [
        both.max(),
        max(np.percentile(there, 95), np.percentile(back, 95)),
        both.mean(),
        *(np.mean(both <= tolerance) for tolerance in TOLERANCES),
    ]
    assert values(boundary_score(*pair, spacing, TOLERANCES)) == pytest.approx(expected)


@each_pair
@each_spacing
@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
def test_against_monai(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    masks = [torch.from_numpy(mask[0] if len(mask) == 1 else mask)[None, None] for mask in pair]
    common = {"include_background": True, "spacing": list(spacing[-masks[0].ndim + 2 :])}
    expected = [
        compute_hausdorff_distance(*masks, **common).item(),
        compute_hausdorff_distance(*masks, percentile=95, **common).item(),
        compute_average_surface_distance(*masks, symmetric=True, **common).item(),
        *(compute_surface_dice(*masks, class_thresholds=[limit], **common).item() for limit in TOLERANCES),
    ]
    assert values(boundary_score(*pair, spacing, TOLERANCES)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@each_pair
@each_spacing
def test_against_medpy(pair: tuple[np.ndarray, np.ndarray], spacing: tuple[float, float, float]) -> None:
    one, other = (mask[0] if len(mask) == 1 else mask for mask in pair)
    score = boundary_score(*pair, spacing)
    in_plane = spacing[-one.ndim :]
    assert score.hd_mm == pytest.approx(medpy.hd(one, other, in_plane))
    sizes = [np.count_nonzero(surface(mask)) for mask in (one, other)]
    means = [medpy.asd(one, other, in_plane), medpy.asd(other, one, in_plane)]
    assert score.assd_mm == pytest.approx(np.average(means, weights=sizes))
    surfaces = [surface(mask) for mask in (one, other)]
    pooled = [boundary.surface_distances_mm(*order, in_plane) for order in (surfaces, surfaces[::-1])]
    assert np.percentile(np.concatenate(pooled), 95) == pytest.approx(medpy.hd95(one, other, in_plane))


# What must not change the scores


@each_pair
def test_swap(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert values(boundary_score(*pair, ANISOTROPIC)) == pytest.approx(values(boundary_score(*pair[::-1], ANISOTROPIC)))


@each_pair
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1, 2)])
def test_flip(pair: tuple[np.ndarray, np.ndarray], axes: tuple[int, ...]) -> None:
    flipped = [np.flip(mask, axes) for mask in pair]
    assert values(boundary_score(*flipped, ANISOTROPIC)) == pytest.approx(values(boundary_score(*pair, ANISOTROPIC)))


@pytest.mark.parametrize("name", ["blobs", "noise", "line against plane", "2D blobs"])
def test_transpose(name: str) -> None:
    pair = PAIRS[name]
    orders: list[tuple[int, int, int]] = [(0, 2, 1)]
    if len(pair[0]) > 1:
        orders += [(2, 1, 0), (1, 2, 0)]
    for order in orders:
        turned = [mask.transpose(order) for mask in pair]
        spacing = tuple(ANISOTROPIC[axis] for axis in order)
        assert values(boundary_score(*turned, spacing)) == pytest.approx(values(boundary_score(*pair, ANISOTROPIC)))


@each_pair
def test_empty_margin(pair: tuple[np.ndarray, np.ndarray]) -> None:
    margin = [(0, 0) if len(pair[0]) == 1 else (3, 1), (0, 4), (2, 5)]
    padded = [np.pad(mask, margin) for mask in pair]
    assert values(boundary_score(*padded, ANISOTROPIC)) == pytest.approx(values(boundary_score(*pair, ANISOTROPIC)))


@each_pair
def test_distances_scale_with_the_spacing(pair: tuple[np.ndarray, np.ndarray]) -> None:
    score = boundary_score(*pair, ANISOTROPIC, TOLERANCES)
    doubled = boundary_score(*pair, [2 * mm for mm in ANISOTROPIC], [2 * mm for mm in TOLERANCES])
    expected = [2 * score.hd_mm, 2 * score.hd95_mm, 2 * score.assd_mm, *score.surface_dice]
    assert values(doubled) == pytest.approx(expected)


@each_pair
@pytest.mark.parametrize("limit", [1, 40])
def test_searching_in_blocks(pair: tuple[np.ndarray, np.ndarray], limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = boundary_score(*pair, ANISOTROPIC)
    monkeypatch.setattr(boundary, "BLOCK_VOXELS", limit)
    assert values(boundary_score(*pair, ANISOTROPIC)) == pytest.approx(values(whole))


def test_masks_are_left_as_they_were() -> None:
    pair = [blob(seed, SHAPE, 0.3) for seed in (1, 2)]
    copies = [mask.copy() for mask in pair]
    for mask in pair:
        mask.flags.writeable = False
    first, again = (boundary_score(*pair, ANISOTROPIC) for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(pair, copies)


def test_tolerance_forgives_the_rounding_of_float32_headers() -> None:
    mm = float(np.float32(0.4))
    assert 5 * mm > 2
    pair = voxels((3, 3, 9), (1, 1, 1)), voxels((3, 3, 9), (1, 1, 6))
    assert boundary_score(*pair, (1.0, 1.0, mm), (2.0,)).surface_dice == (1.0,)


# Memory


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_small_objects_in_a_large_image_need_little_memory() -> None:
    pair = [np.zeros((60, 400, 400), bool) for _ in range(2)]
    pair[0][10:20, 100:110, 100:110] = True
    pair[1][12:20, 105:110, 100:115] = True
    boundary_score(*pair, UNIT)  # imports what it needs
    assert peak_bytes(lambda: boundary_score(*pair, UNIT)) < pair[0].size / 20


def test_memory_follows_the_box_in_bytes_not_in_floats() -> None:
    z, y, x = np.ogrid[-80:80, -80:80, -80:80]
    pair = [z**2 + y**2 + x**2 < radius**2 for radius in (76, 78)]
    # Two surfaces of the box, one combination of them, and the search among 60 000 voxels; a distance transform of
    # the box alone would hold 20 bytes a voxel and more.
    assert peak_bytes(lambda: boundary_score(*pair, UNIT)) < 6 * pair[0].size


# Between raters


def test_tolerance_is_the_median_over_pairs_of_raters() -> None:
    raters = [voxels((3, 3, 9), (1, 1, x)) for x in (0, 1, 5)]
    assert rater_tolerance_mm(raters, (1.0, 1.0, 2.0)) == 8.0  # pairs: 2, 10 and 8 mm
    assert rater_tolerance_mm(raters[:2], (1.0, 1.0, 2.0)) == 2.0


def test_raters_who_marked_nothing_are_left_out() -> None:
    raters = [voxels((3, 3, 9), (1, 1, x)) for x in (0, 1)]
    empty = np.zeros((3, 3, 9), bool)
    assert rater_tolerance_mm([empty, raters[0], empty, raters[1]], UNIT) == 1.0
    assert math.isnan(rater_tolerance_mm([empty, raters[0]], UNIT))
    assert math.isnan(rater_tolerance_mm([empty, empty], UNIT))


def test_too_few_raters_have_no_tolerance() -> None:
    assert math.isnan(rater_tolerance_mm([cube(5, 3)], UNIT))
    assert math.isnan(rater_tolerance_mm([], UNIT))


def test_agreeing_raters_have_tolerance_0() -> None:
    assert rater_tolerance_mm([cube(5, 3)] * 3, UNIT) == 0.0


def test_tolerance_of_an_order_of_raters_is_the_same() -> None:
    raters = [blob(seed, SHAPE, 0.3) for seed in (1, 2, 3, 4)]
    expected = np.median([boundary_score(*pair, ANISOTROPIC).assd_mm for pair in itertools.combinations(raters, 2)])
    assert rater_tolerance_mm(raters, ANISOTROPIC) == pytest.approx(expected)
    assert rater_tolerance_mm(raters[::-1], ANISOTROPIC) == pytest.approx(expected)
