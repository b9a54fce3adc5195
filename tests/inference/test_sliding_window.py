"""Tiles, weights and blending, with values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.inference import sliding_window as sw


def test_starts_by_hand() -> None:
    # 10 voxels, window 4, half steps of 2: 0 2 4 6 end exactly at 10
    assert sw.tile_starts(10, 4, 0.5) == [0, 2, 4, 6]
    # 11 voxels: 7 / 2 rounds up to 4 steps, spread over 7 voxels: 0, 1.75, 3.5, 5.25, 7
    assert sw.tile_starts(11, 4, 0.5) == [0, 2, 4, 5, 7]
    assert sw.tile_starts(4, 4) == [0]
    assert sw.tile_starts(3, 1, 0.5) == [0, 1, 2]


@pytest.mark.parametrize(
    ("size", "window", "step", "word"), [(3, 4, 0.5, "exceeds"), (8, 4, 0.0, "step"), (8, 4, 1.5, "step")]
)
def test_bad_starts_are_named(size: int, window: int, step: float, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        sw.tile_starts(size, window, step)


@pytest.mark.parametrize(
    ("patch", "shape", "divisor", "window"),
    [
        ((128, 112), (1, 128, 128), (16, 16), (1, 128, 128)),
        ((112, 128), (1, 118, 140), (16, 16), (1, 128, 144)),  # rounded up to what the network takes
        ((128, 112), (30, 100, 300), (16, 16), (1, 128, 112)),  # 304 is over twice 112; slices stay slices
        ((128, 112), (1, 256, 224), (16, 16), (1, 256, 224)),
        ((32, 40, 32), (36, 50, 35), (8, 8, 8), (40, 56, 40)),
        ((32, 32, 32), (64, 64, 64), (8, 8, 8), (32, 64, 64)),  # all three would be eight patches; four are the most
        ((16, 64, 64), (9, 64, 60), (1, 16, 16), (16, 64, 64)),  # nothing is smaller than the patch
    ],
)
def test_window_by_hand(patch, shape, divisor, window) -> None:
    assert sw.prediction_window(patch, shape, divisor) == window


def test_small_volume_is_padded_evenly_and_recovered() -> None:
    grid = sw.plan_tiles((1, 3, 6), (1, 6, 4))
    assert grid.padded_shape == (1, 6, 6)
    assert grid.pad_before == (0, 1, 0)  # 3 voxels short: 1 before, 2 after
    assert grid.starts == ((0, 0, 0), (0, 0, 2))
    volume = torch.arange(18.0).reshape(1, 1, 3, 6)
    first, second = (sw.cut_padded(volume, start, grid, value=-1.0)[0, 0] for start in grid.starts)
    assert first.shape == second.shape == (6, 4)
    assert torch.equal(first[1:4], volume[0, 0, :, :4])
    assert torch.equal(second[1:4], volume[0, 0, :, 2:])
    assert (first[0] == -1).all()
    assert (first[4:] == -1).all()


def test_every_voxel_is_covered() -> None:
    grid = sw.plan_tiles((7, 23, 31), (4, 8, 16))
    tiles = ((start, torch.ones(1, *grid.window)) for start in grid.starts)
    for _, mean, total in sw.blend(tiles, torch.ones(grid.window), grid.padded_shape):
        assert total.min() >= 1
        assert (mean == 1).all()


def test_weights_are_a_product_of_gaussians() -> None:
    weights = sw.gaussian_weights((1, 9, 17))
    assert weights.shape == (1, 9, 17)
    assert weights.max() == 1
    assert weights[0, 4, 8] == 1
    # two voxels off the centre of 17: exp(-0.5 * (2 / (17 / 8))^2) = exp(-0.442907)
    assert float(weights[0, 4, 10]) == pytest.approx(0.642166, abs=1e-5)
    assert float(weights.min()) == pytest.approx(1e-4)  # the corner, e^-13.4, is raised


def test_blend_is_the_weighted_mean_by_hand() -> None:
    weights = torch.tensor([1.0, 3.0]).reshape(1, 1, 2)
    starts = [(0, 0, 0), (0, 0, 1)]
    values = [torch.tensor([2.0, 4.0]).reshape(1, 1, 1, 2), torch.tensor([8.0, 6.0]).reshape(1, 1, 1, 2)]
    ((first, out, total),) = sw.blend(zip(starts, values, strict=True), weights, (1, 1, 4))
    assert first == 0
    assert total.flatten().tolist() == [1, 4, 3, 0]
    assert out.flatten().tolist() == [2.0, (3 * 4 + 8) / 4, 6.0, 0.0]


def test_blending_tiles_of_a_volume_gives_it_back() -> None:
    grid = sw.plan_tiles((5, 13, 9), (4, 8, 8))
    volume = torch.randn(2, *grid.padded_shape)
    weights = sw.gaussian_weights(grid.window)
    tiles = ((grid.starts[i], volume[(slice(None), *grid.slices(i))]) for i in range(len(grid.starts)))
    rows = []
    for first, mean, _ in sw.blend(tiles, weights, grid.padded_shape):
        rows += range(first, first + mean.shape[1])
        assert torch.allclose(mean, volume[:, first : first + mean.shape[1]], atol=1e-5)
    assert rows == list(range(grid.padded_shape[0]))
