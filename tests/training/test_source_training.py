"""What a training does by source: noise levels, losses of partial labels, hold-out and scores."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.networks.test_networks import PLAN_2D
from tests.training.data.test_source_draw import REGIONS, unified
from tests.training.test_time_budget import run_of
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.losses import mask_loss, noise_loss, over_batch, refinement_loss
from unisegdiff_pipeline.diffusion.schedule import StageEdges, channel_lam, noise_mask
from unisegdiff_pipeline.diffusion.stages import StageDraw
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.summary import CaseScores
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.io.sources import in_turn
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.sources import TABLE
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, StagePlan
from unisegdiff_pipeline.training.data.patches import Batch
from unisegdiff_pipeline.training.data.splits import inner_holdout_by_source
from unisegdiff_pipeline.training.source_scores import annotated_scores, by_source
from unisegdiff_pipeline.training.time_budget import Costs
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer, source_scales
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer, segmentation_loss

SETTINGS = InferenceSettings(lam_a=-3.0, lam_c=1.0)


def scaled(b: float) -> ConfigurationPlan:
    """Two sources, the second with stages of its own."""
    configuration = unified()
    sources = configuration.sources
    assert sources is not None
    own = StagePlan(-3.0, 1.0, (b,), ())
    plans = {"US": sources.plans["US"], "CT": replace(sources.plans["CT"], stages=own)}
    return replace(configuration, network=PLAN_2D, sources=replace(sources, plans=plans))


def test_settings_of_a_source_have_its_input_scale() -> None:
    configuration = scaled(2.0)
    assert SETTINGS.for_source(configuration.sources, "CT").input_scale == (2.0,)
    for source in ("US", None):
        assert SETTINGS.for_source(configuration.sources, source) == SETTINGS
    assert SETTINGS.for_source(None, None) == SETTINGS
    assert source_scales(configuration, SETTINGS, 1).tolist() == [[1.0], [1.0], [2.0]]
    assert source_scales(scaled(1.0), SETTINGS, 1) is None


def test_an_example_is_noised_by_the_scale_of_its_source() -> None:
    configuration = scaled(2.0)
    model = build_model(configuration, replace(REGIONS, names=("a",), members=((1,),), write_values=(1,)), True)
    mask = torch.ones(2, 1, 16, 24)
    batch = Batch(torch.zeros_like(mask), mask, mask, ("US__a", "CT__c"), torch.tensor([1, 2]))
    draw = StageDraw(torch.tensor([0.0, 0.0]), torch.tensor([1, 1]), torch.tensor([False, False]))
    trainer = SimpleNamespace(
        run=SimpleNamespace(device=torch.device("cpu")),
        network=model,
        calibration=SETTINGS.denoiser_calibration,
        edges=SETTINGS.edges,
        source_scales=source_scales(configuration, SETTINGS, 1),
    )
    condition = Condition(torch.zeros(2, 1, 16, 24), ())
    generator = torch.Generator().manual_seed(0)
    example = DiffusionTrainer.noised_examples(trainer, batch, condition, draw, generator)  # type: ignore[arg-type]
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    for row, scale in enumerate(((), (2.0,))):
        lam = channel_lam(torch.zeros(1), StageEdges(-3.0, 1.0, scale))
        assert torch.allclose(example.x_t[row], noise_mask(mask[row : row + 1], lam, noise[row : row + 1])[0])
    assert not torch.equal(example.x_t[1], noise_mask(mask, torch.zeros(2), noise)[1])


@pytest.mark.parametrize("pretrained", [None, "start"])
def test_what_is_of_single_sources_learns_at_a_rate_of_its_own(pretrained: str | None) -> None:
    configuration = replace(unified(learning_rate_factor=4.0, channel_rule="adapter"), network=PLAN_2D)
    model = build_model(configuration, replace(REGIONS, names=("a",), members=((1,),), write_values=(1,)), True)
    assert model.denoiser is not None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    run = SimpleNamespace(configuration=configuration, request=SimpleNamespace(pretrained=pretrained))
    trainer: Any = SimpleNamespace(run=run, plan=configuration.training)
    trainer.network_groups = lambda network, span: SegmentationTrainer.network_groups(trainer, network, span)
    groups = SegmentationTrainer.segmenter_groups(trainer, model.segmenter, (0.0, 1.0), warmup=0.0)
    groups += trainer.network_groups(model.denoiser, (0.0, 1.0))
    moved = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(moved) == sorted(names.values()), "each parameter is in one group"
    faster = [names[id(p)] for group in groups if group.get("factor") == 4.0 for p in group["params"]]
    assert sorted(faster) == sorted(name for name in moved if name.endswith(TABLE))
    assert any("adapter" in name for name in faster), faster
    assert any(name.startswith("denoiser") for name in faster), faster
    plain = replace(configuration, sources=replace(configuration.sources, learning_rate_factor=1.0))
    trainer.run = SimpleNamespace(configuration=plain, request=run.request)
    assert len(trainer.network_groups(model.segmenter, (0.0, 1.0))) == 1, "as before there were such rates"
    untold = replace(configuration, sources=replace(configuration.sources, conditioning="none"))
    trainer.run = SimpleNamespace(configuration=untold, request=run.request)
    bare = torch.nn.Linear(1, 1)  # without any table
    assert trainer.network_groups(bare, (0.0, 1.0)) == [{"params": list(bare.parameters()), "span": (0.0, 1.0)}]


def test_a_channel_that_is_not_annotated_gets_no_gradient() -> None:
    configuration = unified(annotated=((True, False), (True, True)))
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    target = (torch.rand(2, 2, 8, 8) > 0.5).float()
    valid = torch.ones(2, 2, 8, 8)
    valid[0, 1] = 0
    losses = (
        segmentation_loss([logits], Batch(logits, target, valid, ("a", "b")), configuration, "regions").loss,
        mask_loss(logits, target, valid, "regions", 1.0, pooling=over_batch).sum(),
        noise_loss(logits, valid).sum(),
        refinement_loss(torch.zeros(2), logits, logits.tanh(), target, valid, "regions").sum(),
    )
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, logits)
        assert not gradient[0, 1].any()
        assert gradient[0, 0].any()
        assert gradient[1, 1].any()


def test_large_lesions_of_one_source_do_not_hide_small_ones_of_another() -> None:
    configuration = replace(unified(), training=replace(unified().training, batch_dice=True))
    target = torch.zeros(2, 1, 32, 32)
    target[0, 0, :2, :2] = 1
    target[1, 0, :, :31] = 1
    logits = torch.where(target > 0, 5.0, -5.0)
    logits[0] = -5  # what is large is found, what is small is not
    losses = []
    for ids in (("CT__a", "US__b"), ("US__a", "US__b")):
        batch = Batch(logits, target, torch.ones_like(target), ids)
        losses.append(segmentation_loss([logits], batch, configuration, "binary").loss.item())
    assert losses[0] - losses[1] == pytest.approx(0.5, abs=0.01)  # Dice 0 and 1 by source, nearly 1 over both


def test_annotated_classes_are_those_of_the_source_and_all_of_a_softmax() -> None:
    regions = LabelScheme(("a", "b"), ((1,), (2,)), "regions", (1, 2))
    sources = unified(annotated=((True, False), (True, True))).sources
    assert sources is not None
    assert [sources.annotated_classes(name, regions) for name in ("US", "CT", None)] == [{"a"}, {"a", "b"}, {"a", "b"}]
    softmax = replace(regions, coding="softmax")
    sources = unified(annotated=((True,) * 3, (True,) * 3)).sources  # a flag for the background, too
    assert sources is not None
    assert sources.annotated_classes("US", softmax) == {"a", "b"}


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_valid_by_channel_is_the_same_loss_where_all_is_annotated(dice_weight: float) -> None:
    logits, target = torch.randn(2, 2, 8, 8), (torch.rand(2, 2, 8, 8) > 0.5).float()
    one, each = (mask_loss(logits, target, torch.ones(2, k, 8, 8), "regions", dice_weight) for k in (1, 2))
    assert torch.allclose(one, each, atol=1e-6)
    unknown = mask_loss(logits, target, torch.zeros(2, 2, 8, 8), "regions", dice_weight)
    assert unknown.tolist() == [0.0, 0.0]


def test_every_source_with_two_groups_is_held_out_in_turn() -> None:
    train = [*(f"US__{i}" for i in range(20)), *(f"CT__{i}" for i in range(4)), "MR__0"]
    kept, held = inner_holdout_by_source(train, {})
    assert sorted([*kept, *held]) == sorted(train)
    assert [case[:2] for case in held] == ["CT", "US", "US", "US"]
    assert "MR__0" in kept


def test_cases_of_sources_come_in_turn() -> None:
    assert in_turn([["a0", "a1", "a2"], ["b0"], ["c0", "c1"]]) == ("a0", "b0", "c0", "a1", "c1", "a2")
    assert in_turn([]) == ()


def test_a_short_time_still_scores_a_case_of_each_source() -> None:
    run = run_of(200)
    run.holdout_cases = ("A__0", "B__0", "C__0", "D__0", "E__0", "A__1")
    costs = Costs(segment_s=0.5)  # there is time for two cases
    assert len(costs.monitored_cases(run)) == 3
    run.configuration.sources = unified().sources
    assert len(costs.monitored_cases(run)) == 5


def test_scores_by_source_leave_out_what_a_source_does_not_annotate() -> None:
    sources = unified(annotated=((True, False), (True, True))).sources
    assert sources is not None
    reference = torch.tensor([[[0, 1, 2, 2]]]).numpy()
    right = score_case(reference, reference, REGIONS, (1.0, 1.0, 1.0), True)
    wrong = score_case(reference, reference * 0, REGIONS, (1.0, 1.0, 1.0), True)
    assert [s.class_name for s in annotated_scores(sources, "US", REGIONS, right)] == ["whole"]
    assert (
        len(annotated_scores(sources, "CT", REGIONS, right)) == len(annotated_scores(None, None, REGIONS, right)) == 2
    )
    cases = [CaseScores(f"US__{i}", tuple(right)) for i in range(3)] + [CaseScores("CT__0", tuple(wrong))]
    found = by_source(sources, cases)
    assert found is not None
    assert [(s.source, s.num_cases, s.mean_dice) for s in found.sources] == [("US", 3, 1.0), ("CT", 1, 0.0)]
    assert found.macro_mean_dice == 0.5
    assert "US 1.000 (3)" in found.describe()
    free = score_case(reference * 0, reference * 0, REGIONS, (1.0, 1.0, 1.0), True)
    alone = by_source(sources, [CaseScores("US__0", tuple(free))])
    assert alone is not None
    assert alone.describe() == "Dice by source (cases): US - (1)  mean over sources -"
    assert by_source(None, cases) is None
