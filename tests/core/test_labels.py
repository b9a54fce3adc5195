"""Label schemes: coding and decoding by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unisegdiff_pipeline.core.labels import LabelScheme

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,), ignore_value=2)
SOFTMAX = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core", "active"), ((1, 2, 3), (1, 3), (3,)), "regions", (2, 1, 3))


def test_channels():
    assert [scheme.num_channels for scheme in (BINARY, SOFTMAX, REGIONS)] == [1, 3, 3]
    assert [scheme.foreground_offset for scheme in (BINARY, SOFTMAX, REGIONS)] == [0, 1, 0]
    assert BINARY.allowed_values == {0, 1, 2}
    assert REGIONS.allowed_values == {0, 1, 2, 3}


def test_encode_by_hand():
    labels = np.array([0, 1, 2, 3])
    assert BINARY.encode(labels[:3]).tolist() == [[0, 1, 0]]
    assert SOFTMAX.encode(labels[:3]).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert REGIONS.encode(labels).tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("scheme", [BINARY, SOFTMAX, REGIONS])
def test_decoding_undoes_encoding(scheme):
    values = sorted(scheme.allowed_values - {scheme.ignore_value})
    labels = np.random.default_rng(0).choice(values, (3, 4, 5))
    decoded = scheme.decode(scheme.encode(labels).astype(np.float32))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, labels)


def test_softmax_takes_the_largest_and_sigmoids_half():
    assert SOFTMAX.decode(np.array([[0.4], [0.35], [0.25]])).tolist() == [0]
    assert SOFTMAX.decode(np.array([[0.3], [0.3], [0.4]])).tolist() == [2]
    assert BINARY.decode(np.array([[0.5, 0.51]])).tolist() == [0, 1]


def test_later_regions_overwrite_earlier_ones():
    assert REGIONS.decode(np.array([[0.9], [0.9], [0.1]])).tolist() == [1]
    assert REGIONS.decode(np.array([[0.9], [0.1], [0.8]])).tolist() == [3]


def test_foreground_is_what_lies_in_a_class():
    labels = np.array([[0, 1, 2, 3], [4, 5, 5, 9]])
    scheme = LabelScheme(("a", "b"), ((2, 4), (3,)), "softmax", (2, 3), ignore_value=9, background_values=(1, 5))
    assert scheme.foreground(labels).tolist() == [[False, False, True, True], [True, False, False, False]]
    for scheme in (BINARY, SOFTMAX, REGIONS):
        labels = np.array(sorted(scheme.allowed_values))
        in_classes = np.any([mask for _, mask in scheme.class_masks(labels)], axis=0)
        np.testing.assert_array_equal(scheme.foreground(labels), in_classes)


def test_ignored_voxels():
    labels = np.array([0, 1, 2])
    assert BINARY.ignored(labels).tolist() == [False, False, True]
    assert not SOFTMAX.ignored(labels).any()
    assert [(name, mask.tolist()) for name, mask in REGIONS.class_masks(np.array([2, 3]))] == [
        ("whole", [True, True]),
        ("core", [False, True]),
        ("active", [False, True]),
    ]


def test_nesting_pairs_each_region_with_those_around_it() -> None:
    scheme = LabelScheme(("core", "whole", "edge", "other"), ((3,), (1, 2, 3), (2, 3), (4,)), "regions", (3, 1, 2, 4))
    assert scheme.nesting == ((2, 1), (0, 1), (0, 2))
    assert LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2)).nesting == ()


def test_an_order_that_overwrites_a_region_is_named_with_one_that_works():
    regions = LabelScheme(("whole", "core", "enhancing"), ((1, 2, 3, 4), (1, 2, 3), (1,)), "regions", (1, 2, 3))
    assert regions.order_problem() == (
        "[1, 2, 3] for whole, core, enhancing: voxels of the value 1, which is in whole, core, enhancing, would be "
        "written as 3, which is in whole, core; [4, 2, 1] would keep the regions of every value."
    )
    assert replace(regions, write_values=(4, 2, 1)).order_problem() is None
    assert replace(regions, write_values=(4, 3, 1)).order_problem() is None


@pytest.mark.parametrize("seed", range(20))
def test_no_problem_means_that_every_value_keeps_its_regions(seed):
    """Against decode(encode(v)) over random regions and orders."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        members = tuple(tuple((np.flatnonzero(rng.random(4) < 0.5) + 1).tolist()) or (1,) for _ in range(3))
        scheme = LabelScheme(("a", "b", "c"), members, "regions", tuple(rng.integers(1, 5, 3).tolist()), 5)
        values = np.array(sorted({v for group in members for v in group}))
        again = scheme.decode(scheme.encode(values))
        keeps = [scheme.regions_of(v) for v in values] == [scheme.regions_of(v) for v in again]
        assert (scheme.order_problem() is None) == keeps


def test_larger_regions_must_come_first():
    regions = LabelScheme(("core", "whole"), ((2,), (1, 2)), "regions", (2, 1))
    assert "list the regions as whole, core, with regions_class_order [1, 2]." in (regions.order_problem() or "")
    assert LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2)).order_problem() is None


def test_regions_that_overlap_need_a_region_of_what_they_share():
    overlap = LabelScheme(("a", "b"), ((1, 2), (2, 3)), "regions", (1, 3))
    assert "no order keeps" in (overlap.order_problem() or "")
    assert LabelScheme(("a", "b", "both"), ((1, 2), (2, 3), (2,)), "regions", (1, 3, 2)).order_problem() is None


def test_regions_overlap_where_they_share_values_and_neither_lies_within_the_other():
    overlap = LabelScheme(("a", "b", "both"), ((1, 2), (2, 3), (2,)), "regions", (1, 3, 2))
    assert overlap.overlap
    assert overlap.combinations == ((0, 1, 2), (0,), (1,))
    nested = LabelScheme(("whole", "core", "edge"), ((1, 2), (2,), (1,)), "regions", (1, 2, 1))
    assert not nested.overlap
    assert nested.combinations == ((0, 1), (0, 2))
    assert not LabelScheme(("a", "again"), ((1,), (1,)), "regions", (1, 1)).overlap
