"""Tables by source: the unknown source is the network without them, and stays so."""

from __future__ import annotations

import pytest
import torch

from tests.networks.test_networks import BINARY, PLAN_2D, PLAN_3D, level_of
from unisegdiff_pipeline.networks.denoiser import Denoiser
from unisegdiff_pipeline.networks.sources import ChannelAdapter, SourceConditioning, SourceFilm
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import DenoiserPlan, NetworkPlan

WIDTHS = DenoiserPlan(features=(4, 6, 8))


def make_model(plan: NetworkPlan, conditioning: SourceConditioning | None) -> StagedModel:
    torch.manual_seed(0)
    segmenter = SegmentationUNet(plan, 1, conditioning=conditioning)
    return StagedModel(segmenter, Denoiser(plan, WIDTHS, 1, conditioning), BINARY).eval()


def answers(model: StagedModel, image: torch.Tensor, source: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        condition = model.condition(image, source)
        x_t = torch.ones(len(image), 1, *image.shape[2:])
        return condition.det_logits, model.denoise(x_t, level_of(0.0), condition).probabilities


def test_film_scales_and_shifts_each_example_by_its_source() -> None:
    film = SourceFilm(2, 1)
    with torch.no_grad():
        film.table.known.copy_(torch.tensor([[1.0, 10.0], [-1.0, 0.5]]))
    x = torch.full((3, 1, 1, 2), 3.0)
    assert film(x, torch.tensor([0, 1, 2]))[:, 0, 0, 0].tolist() == [3.0, 16.0, 0.5]
    assert film(x.bfloat16(), torch.tensor([0, 1, 2])).dtype == torch.bfloat16


def test_an_adapter_mixes_the_channels_of_known_sources_alone() -> None:
    adapter = ChannelAdapter(1, 2)
    with torch.no_grad():
        adapter.table.known.copy_(torch.tensor([[0.0, 2.0, -1.0, -1.0]]))  # rows of D: (0, 2), (-1, -1)
    image = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1).expand(2, 2, 1, 1)
    assert adapter(image, torch.tensor([0, 1])).flatten(1).tolist() == [[3.0, 5.0], [13.0, -3.0]]


@pytest.mark.parametrize("plan", [PLAN_2D, PLAN_3D], ids=["2d", "3d"])
def test_the_unknown_source_is_the_network_without_tables_and_stays_so(plan: NetworkPlan) -> None:
    plain, unified = make_model(plan, None), make_model(plan, SourceConditioning(2, True, True))
    image = torch.randn(2, plan.num_input_channels, *plan.patch_size)
    unknown, both = torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2])
    assert plain.state_dict().keys() < unified.state_dict().keys()
    for a, b in zip(answers(plain, image, None), answers(unified, image, both), strict=True):
        assert torch.allclose(a, b, atol=1e-6)  # all tables begin as the identity

    optimizer = torch.optim.AdamW(unified.parameters(), 0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        condition = unified.condition(image, torch.tensor([0, 2]))
        output = unified.denoiser_output(torch.ones(2, 1, *plan.patch_size), level_of(0.0), unified.guide(condition))
        (condition.det_logits.mean() + output.x0_logits.square().mean()).backward()
        optimizer.step()
    tables = {name: value for name, value in unified.named_parameters() if name.endswith("known")}
    assert len(tables) == 2 * len(plan.levels) - 1 + 2  # encoder, decoder, adapter and denoiser
    for name, table in tables.items():
        assert not table[0].any(), name  # source 1 was not seen
        assert table[1].any(), name
    plain.load_state_dict({name: unified.state_dict()[name] for name in plain.state_dict()})
    for source in (None, unknown[:1]):
        for a, b in zip(answers(plain, image, None), answers(unified, image, source), strict=True):
            assert torch.equal(a, b)
    assert torch.allclose(answers(plain, image, None)[1], answers(unified, image, unknown)[1], atol=1e-6)
    assert not torch.equal(answers(plain, image, None)[0], answers(unified, image, both)[0])


def test_only_what_the_plan_asks_for_is_built() -> None:
    names = set(make_model(PLAN_2D, SourceConditioning(2, False, True)).state_dict())
    assert names - set(make_model(PLAN_2D, None).state_dict()) == {"segmenter.adapter.table.known"}
