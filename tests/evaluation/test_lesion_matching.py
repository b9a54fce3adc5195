"""Matching rules by hand, and against trying every possibility."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from skimage import measure

from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule, Pairs, find_overlaps, match_lesions

SPACING = (3.0, 0.8, 1.1)
SKIMAGE_CONNECTIVITY: dict[Literal[6, 18, 26], int] = {6: 1, 18: 2, 26: 3}


def matched(reference: np.ndarray, predicted: np.ndarray, rule: MatchingRule) -> list[tuple[int, int, int]]:
    """Matched pairs as (reference, predicted, shared voxels)."""
    a, b = find_components(reference, rule.connectivity), find_components(predicted, rule.connectivity)
    pairs = match_lesions(find_overlaps(reference & predicted, a, b), a, b, rule, SPACING)
    return list(zip(pairs.reference.tolist(), pairs.predicted.tolist(), pairs.voxels.tolist(), strict=True))


def row(text: str) -> np.ndarray:
    return np.array([[[c == "#" for c in text]]])


# One reference lesion of six voxels, split in two by the prediction, and one of two voxels that is only neared.
REFERENCE = row("######....##....")
PREDICTED = row(".###.##.#....###")


def test_overlap_is_many_to_many() -> None:
    assert matched(REFERENCE, PREDICTED, MatchingRule()) == [(1, 1, 3), (1, 3, 1)]
    both = row("##########")
    assert matched(both, row("#..#..#..."), MatchingRule()) == [(1, 1, 1), (1, 2, 1), (1, 3, 1)]
    assert matched(row("#..#..#..."), both, MatchingRule()) == [(1, 1, 1), (2, 1, 1), (3, 1, 1)]


def test_iou_is_taken_pair_by_pair() -> None:
    assert matched(REFERENCE, PREDICTED, MatchingRule("iou", 3 / 6)) == [(1, 1, 3)]  # 3 / 6 meets 3 / 6
    assert matched(REFERENCE, PREDICTED, MatchingRule("iou", 0.51)) == []
    assert matched(REFERENCE, PREDICTED, MatchingRule("iou", 1 / 7)) == [(1, 1, 3), (1, 3, 1)]
    assert matched(REFERENCE, PREDICTED, MatchingRule("iou", 0.0)) == [(1, 1, 3), (1, 3, 1)]  # no overlap, no match


def test_dilation_reaches_to_the_distance_and_no_farther() -> None:
    near = [(1, 1, 3), (1, 3, 1)]
    # Centres are 1.1 mm apart. Reference 2 (10, 11) to prediction 4 (8): two steps; to prediction 2 (13 on): two steps.
    assert matched(REFERENCE, PREDICTED, MatchingRule("dilated", dilation_mm=2.19)) == near
    assert matched(REFERENCE, PREDICTED, MatchingRule("dilated", dilation_mm=2.2)) == [*near, (2, 2, 0), (2, 4, 0)]
    # Reference 1 ends at 5, prediction 4 lies at 8: three steps.
    assert matched(REFERENCE, PREDICTED, MatchingRule("dilated", dilation_mm=3.3))[2] == (1, 4, 0)
    assert matched(REFERENCE, PREDICTED, MatchingRule("dilated", dilation_mm=0)) == near


def test_one_to_one_takes_the_better_partner() -> None:
    assert matched(REFERENCE, PREDICTED, MatchingRule(one_to_one=True)) == [(1, 1, 3)]


def test_one_to_one_prefers_more_pairs_to_a_better_one() -> None:
    #        reference 1 overlaps predictions 1 and 2, reference 2 overlaps prediction 1 only
    reference = row("#####.##....")
    predicted = row("#.#####.....")
    assert matched(reference, predicted, MatchingRule()) == [(1, 1, 3), (1, 2, 1), (2, 1, 1)]
    assert matched(reference, predicted, MatchingRule(one_to_one=True)) == [(1, 2, 1), (2, 1, 1)]


@pytest.mark.parametrize(("connectivity", "components"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity(connectivity: Literal[6, 18, 26], components: int) -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[1, 2, 2] = True  # joined by an edge, then by a corner
    assert len(matched(mask, mask, MatchingRule(connectivity=connectivity))) == components


def test_planar_connectivity() -> None:
    mask = np.eye(3, dtype=bool)[None]
    assert [len(matched(mask, mask, MatchingRule(connectivity=c))) for c in (6, 18, 26)] == [3, 1, 1]


# ----------------------------------------------------------------------------------- against an independent matching


def brute_force(
    reference: np.ndarray, predicted: np.ndarray, rule: MatchingRule
) -> dict[tuple[frozenset[int], frozenset[int]], float]:
    """IoU of all pairs that meet the criterion, lesions as sets of voxels, each pair compared voxel by voxel."""
    sides = []
    for mask in (reference, predicted):
        labels = measure.label(mask, connectivity=SKIMAGE_CONNECTIVITY[rule.connectivity])
        sides.append([frozenset(np.flatnonzero(labels == i).tolist()) for i in range(1, labels.max() + 1)])
    pairs = {}
    for a, b in itertools.product(*sides):
        iou = len(a & b) / len(a | b)
        points = [np.transpose(np.unravel_index(sorted(s), reference.shape)) * SPACING for s in (a, b)]
        meets = {
            "overlap": bool(a & b),
            "iou": bool(a & b) and iou >= rule.threshold,
            "dilated": cdist(*points).min() <= rule.dilation_mm + 1e-5,
        }
        if meets[rule.criterion]:
            pairs[a, b] = iou
    return pairs


def as_sets(reference: np.ndarray, predicted: np.ndarray, rule: MatchingRule) -> dict[object, float]:
    a, b = find_components(reference, rule.connectivity), find_components(predicted, rule.connectivity)
    pairs: Pairs = match_lesions(find_overlaps(reference & predicted, a, b), a, b, rule, SPACING)
    everywhere = np.arange(reference.size)
    in_a, in_b = a.numbers_at(everywhere), b.numbers_at(everywhere)
    result: dict[object, float] = {}
    for i, j, voxels in zip(pairs.reference, pairs.predicted, pairs.voxels, strict=True):
        first, second = (frozenset(np.flatnonzero(n == k).tolist()) for n, k in ((in_a, i), (in_b, j)))
        assert voxels == len(first & second)
        result[first, second] = voxels / len(first | second)
    assert len(result) == len(pairs.voxels)
    return result


def masks(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared, own, other = (gaussian_filter(rng.standard_normal(shape), 1.0, mode="wrap") for _ in range(3))
    return (shared + own) > np.quantile(shared + own, 0.85), (shared + other) > np.quantile(shared + other, 0.8)


RULES = [
    MatchingRule(),
    MatchingRule(connectivity=6),
    MatchingRule("iou", 0.2),
    MatchingRule("iou", 0.5, connectivity=18),
    MatchingRule("dilated", dilation_mm=0.0),
    MatchingRule("dilated", dilation_mm=1.6),
    MatchingRule("dilated", dilation_mm=3.3, connectivity=6),
    MatchingRule("dilated", dilation_mm=100.0),
]
SHAPES = [(7, 11, 12), (1, 20, 21), (1, 1, 30), (9, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_matches_are_those_of_comparing_all_pairs(rule: MatchingRule, shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        reference, predicted = masks(shape, seed)
        assert as_sets(reference, predicted, rule) == brute_force(reference, predicted, rule)


@pytest.mark.parametrize("rule", RULES)
def test_noise_and_empty_masks_match_as_all_pairs_do(rule: MatchingRule) -> None:
    rng = np.random.default_rng(5)
    noise, full, empty = rng.random((4, 6, 5)) > 0.75, np.ones((4, 6, 5), bool), np.zeros((4, 6, 5), bool)
    corner, opposite = empty.copy(), empty.copy()
    corner[0, 0, 0] = opposite[-1, -1, -1] = True
    for reference, predicted in itertools.product((noise, full, empty, corner, opposite), repeat=2):
        assert as_sets(reference, predicted, rule) == brute_force(reference, predicted, rule)


def best_one_to_one(pairs: dict[tuple[frozenset[int], frozenset[int]], float]) -> tuple[int, float]:
    """Most pairs, then largest sum of IoU, over every choice of a partner (or none) for every reference lesion."""
    partners: dict[frozenset[int], list[frozenset[int]]] = {}
    for a, b in pairs:
        partners.setdefault(a, []).append(b)

    def best(rest: list[frozenset[int]], taken: frozenset[frozenset[int]]) -> tuple[int, float]:
        if not rest:
            return 0, 0.0
        choices = [best(rest[1:], taken)]
        for b in set(partners[rest[0]]) - taken:
            count, total = best(rest[1:], taken | {b})
            choices.append((count + 1, total + pairs[rest[0], b]))
        return max(choices)

    return best(list(partners), frozenset())


@pytest.mark.parametrize(
    "rule",
    [
        MatchingRule(one_to_one=True, connectivity=6),
        MatchingRule("iou", 0.1, one_to_one=True),
        MatchingRule("dilated", dilation_mm=1.2, one_to_one=True),
    ],
)
def test_one_to_one_is_the_best_of_all_choices(rule: MatchingRule) -> None:
    for seed in range(6):
        reference, predicted = masks((1, 16, 16), seed)
        found = as_sets(reference, predicted, rule)
        assert len({a for a, _ in found}) == len({b for _, b in found}) == len(found)  # type: ignore[misc]
        candidates = brute_force(reference, predicted, rule)
        assert found.items() <= candidates.items()
        count, total = best_one_to_one(candidates)
        assert (len(found), sum(found.values())) == (count, pytest.approx(total))


# -------------------------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"criterion": "touch"}, "overlap, iou, dilated"),
        ({"threshold": 1.5}, r"threshold is 1\.5"),
        ({"threshold": float("nan")}, "between 0 and 1"),
        ({"dilation_mm": -1.0}, "0 or more"),
        ({"dilation_mm": float("inf")}, "0 or more"),
        ({"connectivity": 8}, "6, 18 or 26"),
    ],
)
def test_wrong_rules_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchingRule(**wrong)  # type: ignore[arg-type]


def test_rules_say_what_they_do() -> None:
    assert "26-connected, 8 in 2D" in MatchingRule().describe()
    assert "share a voxel, any number of times" in MatchingRule(threshold=0.5).describe()
    assert "share a pixel, any" in MatchingRule(threshold=0.5).describe(units_of(is_2d=True, spacing_known=True))
    text = MatchingRule("iou", 0.25, one_to_one=True, connectivity=6).describe()
    assert "IoU is at least 0.25" in text
    assert "one-to-one" in text
    assert "6-connected, 4 in 2D" in text
    assert "within 2.5 mm" in MatchingRule("dilated", dilation_mm=2.5).describe()
