"""Label schemes: coding and decoding by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unisegdiff_pipeline.io.labels import LabelScheme

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


def test_ignored_voxels():
    labels = np.array([0, 1, 2])
    assert BINARY.ignored(labels).tolist() == [False, False, True]
    assert not SOFTMAX.ignored(labels).any()
    assert [(name, mask.tolist()) for name, mask in REGIONS.class_masks(np.array([2, 3]))] == [
        ("whole", [True, True]), ("core", [False, True]), ("active", [False, True])
    ]  # fmt: skip


def test_nesting_pairs_each_region_with_those_around_it() -> None:
    scheme = LabelScheme(("core", "whole", "edge", "other"), ((3,), (1, 2, 3), (2, 3), (4,)), "regions", (3, 1, 2, 4))
    assert scheme.nesting == ((2, 1), (0, 1), (0, 2))
    assert LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2)).nesting == ()
