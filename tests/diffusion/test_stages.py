from __future__ import annotations

import pytest
import torch

from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges
from unisegdiff_pipeline.diffusion.stages import STAGE_MARGIN, draw_stages, draw_unstaged

EDGES = StageEdges(-4.0, 0.5)


def test_every_patch_sees_every_stage_equally() -> None:
    draw = draw_stages(5, 6, EDGES, torch.Generator().manual_seed(0))
    assert (draw.stage.reshape(5, 6).sort(dim=1).values == torch.tensor([0, 0, 1, 1, 2, 2])).all()


def test_ranges_and_shares() -> None:
    draw = draw_stages(4000, 3, EDGES, torch.Generator().manual_seed(1))
    a, b, c = (draw.lam[draw.stage == i] for i in range(3))
    pure = a == PURE_NOISE
    assert pure.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert a[~pure].min() >= -8
    assert a[~pure].max() <= -4
    assert b.min() >= -4
    assert b.max() <= 0.5
    assert c.min() >= 0.5
    assert c.max() <= 4.5
    start = draw.from_mean[draw.stage == 1]
    assert start.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (draw.lam[draw.from_mean] == -4.0).all()
    assert not draw.from_mean[draw.stage != 1].any()


def test_same_generator_state_same_draw() -> None:
    first = draw_stages(3, 6, EDGES, torch.Generator().manual_seed(7))
    second = draw_stages(3, 6, EDGES, torch.Generator().manual_seed(7))
    assert torch.equal(first.lam, second.lam)
    assert torch.equal(first.from_mean, second.from_mean)


def test_levels_must_divide_by_three() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        draw_stages(1, 4, EDGES, torch.Generator())


def test_without_stages_lam_is_uniform_and_pure_noise_as_frequent_as_with_them() -> None:
    draw = draw_unstaged(3000, 6, EDGES, torch.Generator().manual_seed(2))
    pure = draw.lam == PURE_NOISE
    assert pure.float().mean().item() == pytest.approx(1 / 6, abs=0.01)
    low, high = EDGES.lam_a - STAGE_MARGIN, EDGES.lam_c + STAGE_MARGIN
    counts = torch.histc(draw.lam[~pure], bins=5, min=low, max=high)
    assert counts.sum() == (~pure).sum()
    assert (counts / counts.mean() - 1).abs().max() < 0.05
    assert not draw.from_mean.any()
    # a patch sees every sixth of the range once, as far as it is not pure noise
    place = ((draw.lam - low) / (high - low) * 6).floor().reshape(3000, 6)
    assert (torch.where(pure.reshape(3000, 6), torch.arange(6.0), place) == torch.arange(6.0)).all()
