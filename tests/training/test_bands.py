"""Bands of lam and what is measured in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, StageEdges
from unisegdiff_pipeline.diffusion.stages import draw_stages
from unisegdiff_pipeline.diffusion.targets import stage_of
from unisegdiff_pipeline.training.bands import BandMeter, LamBands, LastLayerGradients, mask_dice

EDGES = StageEdges(-6.0, 0.0)
BANDS = LamBands.of_edges(EDGES)


def test_bands_meet_at_the_edges_of_the_stages() -> None:
    assert BANDS.limits == (-10.0, -8.0, -6.0, -4.5, -3.0, -1.5, 0.0, 2.0, 4.0)
    assert len(BANDS) == 10  # eight intervals, pure noise, and the start from the segmenter's mean


def test_wide_and_narrow_stages_have_a_bounded_number_of_bands() -> None:
    assert len(LamBands.of_edges(StageEdges(-15.0, 5.0)).limits) == 6 + 2 + 2 + 1
    assert len(LamBands.of_edges(StageEdges(-2.0, 0.0)).limits) == 2 + 2 + 2 + 1


def test_every_level_has_its_band() -> None:
    lam = torch.tensor([PURE_NOISE, -12.0, -8.0, -6.1, -6.0, -6.0, -0.1, 0.0, 9.0])
    from_mean = torch.tensor([False] * 5 + [True] + [False] * 3)
    assert BANDS.index(lam, from_mean).tolist() == [0, 1, 2, 2, 3, 9, 6, 7, 8]


def test_the_grid_holds_every_band_once_a_patch() -> None:
    draw = BANDS.grid(2)
    assert BANDS.index(draw.lam, draw.from_mean).tolist() == [*range(10), *range(10)]
    assert torch.equal(draw.stage, stage_of(draw.lam, EDGES))


def test_no_band_of_the_training_draws_mixes_stages() -> None:
    draw = draw_stages(500, 6, EDGES, torch.Generator().manual_seed(0))
    band = BANDS.index(draw.lam, draw.from_mean)
    assert set(band.tolist()) == set(range(10))
    for index in range(len(BANDS)):
        assert len(draw.stage[band == index].unique()) == 1


def test_the_meter_gives_means_and_begins_again() -> None:
    meter = BandMeter(BANDS, torch.device("cpu"))
    nan = math.nan
    meter.add(torch.tensor([0, 0, 3]), torch.tensor([1.0, 3.0, 5.0]), torch.tensor([nan, 0.5, nan]))
    meter.add(torch.tensor([3]), torch.tensor([6.0]), torch.tensor([0.25]), torch.tensor([2.0]))
    taken = meter.take()
    assert taken["num_examples"] == [2, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    assert taken["loss"][0] == 2.0
    assert taken["loss"][3] == 5.5
    assert taken["dice"][0] == 0.5
    assert taken["dice"][3] == 0.25
    assert taken["gradient_norm"][0] is None
    assert taken["gradient_norm"][3] == 2.0
    assert taken["loss"][1] is None
    assert meter.take()["num_examples"] == [0] * 10


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_norms_are_those_of_separate_backward_passes(dims: int) -> None:
    torch.manual_seed(0)
    conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
    head = conv(3, 2, 1)
    network = nn.Sequential(conv(1, 3, 3, padding=1), nn.ReLU(), head)
    x, weights = torch.randn(4, 1, *(5,) * dims), torch.tensor([0.5, 1.0, 2.0, 4.0])
    found: list[torch.Tensor] = []
    with LastLayerGradients(head) as gradients:
        output = network(x)
    losses = output.square().flatten(1).mean(dim=1)
    gradients.then(found.append)
    (weights * losses).mean().backward()
    unweighted = found[0] * 4 / weights
    for i in range(4):
        loss = network(x[i : i + 1]).square().mean()
        (expected,) = torch.autograd.grad(loss, head.weight)
        assert torch.isclose(unweighted[i], expected.norm(), rtol=1e-5)


def test_measuring_leaves_no_hook_behind() -> None:
    head = nn.Conv2d(1, 1, 1)
    with LastLayerGradients(head):
        head(torch.zeros(1, 1, 2, 2))
    assert not head._forward_hooks


def test_what_is_measured_is_not_compiled_and_what_follows_is_even_after_an_error() -> None:
    graphs: list[torch.fx.GraphModule] = []
    head, x = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(head, backend=backend)
    with pytest.raises(RuntimeError, match="to have 1 channels"), LastLayerGradients(head, compiled=True):
        compiled(torch.zeros(1, 2, 2, 2))
    with LastLayerGradients(head, compiled=True):
        compiled(x)
    assert not graphs
    compiled(x)
    assert len(graphs) == 1


def test_dice_of_the_estimated_mask() -> None:
    target = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.0]]]])
    p = torch.tensor([[[[0.9, 0.4, 0.6, 0.1]]], [[[0.9, 0.9, 0.9, 0.9]]]])
    valid = torch.ones_like(target)
    dice = mask_dice(p, target, valid, "binary")
    assert dice[0] == 0.5  # one of two found, one false
    assert dice[1].isnan()  # nothing to find
    valid[0, 0, 0, 2] = 0
    assert torch.isclose(mask_dice(p, target, valid, "binary")[0], torch.tensor(2 / 3))


def test_dice_of_several_classes_is_averaged_over_those_present() -> None:
    one_hot = torch.eye(4)[torch.tensor([0, 1, 1, 2])].T.reshape(1, 4, 1, 4)
    p = torch.eye(4)[torch.tensor([3, 1, 2, 2])].T.reshape(1, 4, 1, 4)
    dice = mask_dice(p, one_hot, torch.ones(1, 1, 1, 4), "softmax")
    assert torch.isclose(dice[0], torch.tensor((2 / 3 + 2 / 3) / 2))  # the third class is not there
