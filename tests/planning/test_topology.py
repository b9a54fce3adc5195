"""Pooling, patch sizes and costs against nnU-Net's published plans and sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unisegdiff_pipeline.planning.plans import LevelPlan, NetworkPlan
from unisegdiff_pipeline.planning.topology import (
    build_network,
    denoiser_multiply_adds,
    feature_map_values,
    fit_patch,
    initial_patch,
    level_shapes,
    multiply_adds,
    pooling_topology,
    shrink_patch,
)


def two_levels() -> NetworkPlan:
    """4 x 4 patch, one input channel, 2 features at full and 4 at half resolution."""
    return NetworkPlan(2, (4, 4), 1, (LevelPlan(2, (1, 1), (3, 3), 2), LevelPlan(4, (2, 2), (3, 3), 2)))


def test_hippocampus_is_halved_three_times() -> None:
    topology = pooling_topology((1, 1, 1), (36, 50, 35))
    assert topology.patch_size == (40, 56, 40)
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert topology.divisor == (8, 8, 8)


def test_anisotropic_axis_waits_with_pooling_and_kernels() -> None:
    topology = pooling_topology((10.0, 1.6, 1.6), (16, 256, 256))
    # in-plane spacing doubles to 3.2, 6.4: within a factor of 2 of 10 mm from the third halving on
    assert topology.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert topology.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


def test_single_axis_needs_three_times_the_smallest_edge() -> None:
    assert pooling_topology((1, 1), (4, 11)).divisor == (1, 1)
    assert pooling_topology((1, 1), (4, 12)).divisor == (1, 2)


def test_small_patch_has_one_level_and_is_kept() -> None:
    topology = pooling_topology((1, 1), (5, 5))
    assert (topology.patch_size, topology.strides, topology.kernels) == ((5, 5), ((1, 1),), ((3, 3),))


def test_initial_patch_has_the_aspect_of_the_spacing_within_the_image() -> None:
    assert initial_patch((1, 1, 1), (1000, 1000, 1000)) == (256, 256, 256)
    assert initial_patch((4, 1, 1), (1000, 1000, 1000)) == (102, 406, 406)
    assert initial_patch((1, 1), (471.5, 559.0)) == (472, 559)


def test_shrinking_does_not_skip_sizes_with_one_halving_less() -> None:
    start = pooling_topology((1, 1), (256, 256))
    smaller = shrink_patch((1, 1), start, (300, 300))
    assert start.divisor == (64, 64)
    assert smaller is not None
    assert smaller.patch_size == (256, 224)


def test_short_axes_are_kept_when_asked() -> None:
    start = pooling_topology((1.0, 1.4, 1.4), (20, 256, 256))

    def first_axis(keep: bool) -> int:
        topology = start
        for _ in range(25):
            smaller = shrink_patch((1.0, 1.4, 1.4), topology, (20, 256, 256), keep_short_axes=keep)
            assert smaller is not None
            topology = smaller
        return topology.patch_size[0]

    assert first_axis(keep=True) == 20
    assert first_axis(keep=False) < 20


def test_shrinking_ends_at_the_smallest_patch() -> None:
    network = fit_patch((1, 1), (64, 64), lambda t: build_network(t, 1, 8, 8), lambda _: False)
    assert max(network.patch_size) <= 8


def test_features_double_up_to_the_cap() -> None:
    network = build_network(pooling_topology((1, 1), (64, 64)), 3, 16, 64)
    assert [level.features for level in network.levels] == [16, 32, 64, 64, 64]
    assert level_shapes(network) == ((64, 64), (32, 32), (16, 16), (8, 8), (4, 4))


def test_multiply_adds_by_hand() -> None:
    encoder = 16 * 9 * (1 * 2 + 2 * 2) + 4 * 9 * (2 * 4 + 4 * 4)
    decoder = 16 * 4 * 2 + 16 * 9 * (4 * 2 + 2 * 2)
    head = 16 * 2 * 3
    assert multiply_adds(two_levels(), num_outputs=3) == encoder + decoder + head


def test_feature_map_values_by_hand() -> None:
    # encoder 2 convolutions a level, decoder one up-convolution and 2 convolutions, 3 output channels
    assert feature_map_values(two_levels(), num_outputs=3) == 2 * 2 * 16 + 2 * 4 * 4 + 3 * 2 * 16 + 3 * 16


def test_denoiser_multiply_adds_by_hand() -> None:
    # one level on 2 x 2 cells: 3 inputs of 4 channels, width 5, two heads of 4 channels
    expected = 4 * (3 * 4 * 5 + 9 * 5 * 5 + 5 * 2 * 4)
    assert denoiser_multiply_adds(two_levels(), (5, 10, 20), num_channels=1) == expected


def test_a_network_of_one_level_has_no_denoiser() -> None:
    one_level = replace(two_levels(), levels=two_levels().levels[:1])
    assert denoiser_multiply_adds(one_level, (5, 10, 20), num_channels=1) == 0


def test_whole_network_of_nnunet_costs_what_is_known() -> None:
    """128^3 with 32 to 320 features: 477 GMAC with deep supervision left out, all but 1 % of it convolutions."""
    network = build_network(pooling_topology((1, 1, 1), (128, 128, 128)), 1, 32, 320)
    assert multiply_adds(network, 2) / 1e9 == pytest.approx(477, rel=0.01)
