from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.schedule import PURE_NOISE, NoiseLevel, StageEdges, alpha_sigma, channel_lam
from unisegdiff_pipeline.diffusion.targets import state_estimate
from unisegdiff_pipeline.networks.blocks import TRANSPOSED_CONV, depth_to_space, space_to_depth
from unisegdiff_pipeline.networks.denoiser import Condition, Denoiser, Guide, voxel_evidence
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import DenoiserPlan, LevelPlan, NetworkPlan
from unisegdiff_pipeline.planning.topology import denoiser_multiply_adds, multiply_adds

LEVELS_3D = (
    LevelPlan(4, (1, 1, 1), (1, 3, 3), 2),
    LevelPlan(6, (1, 2, 2), (3, 3, 3), 2),
    LevelPlan(8, (2, 2, 2), (3, 3, 3), 2),
    LevelPlan(10, (2, 2, 2), (3, 3, 3), 2),
)
PLAN_3D = NetworkPlan(3, (8, 16, 16), 2, LEVELS_3D)
PLAN_2D = NetworkPlan(
    2,
    (16, 24),
    1,
    (LevelPlan(4, (1, 1), (3, 3), 2), LevelPlan(6, (2, 2), (3, 3), 2), LevelPlan(8, (2, 2), (3, 3), 2)),
)


BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
SOFTMAX = LabelScheme(("edge", "core"), ((1,), (2,)), "softmax", (1, 2))
REGIONS = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))


def level_of(lam: float) -> NoiseLevel:
    """One level for all masks, of channels that are not scaled."""
    return NoiseLevel.of(torch.tensor([lam]), StageEdges(-3.0, 1.0))


def make_model(plan: NetworkPlan, labels: LabelScheme) -> StagedModel:
    torch.manual_seed(0)
    widths = DenoiserPlan(features=(4, 6, 8))
    channels = labels.num_channels
    segmenter = SegmentationUNet(plan, channels)
    model = StagedModel(segmenter, Denoiser(plan, widths, channels), labels)
    return model.eval()


@pytest.mark.parametrize("plan", [PLAN_2D, PLAN_3D])
@pytest.mark.parametrize("labels", [BINARY, SOFTMAX])
def test_masks_in_blocks_are_denoised_as_whole_ones(plan: NetworkPlan, labels: LabelScheme) -> None:
    model = make_model(plan, labels)
    denoiser = model.denoiser
    assert denoiser is not None
    for layer in (denoiser.head, denoiser.gain):
        torch.nn.init.normal_(layer.weight)
    image = torch.randn(2, plan.num_input_channels, *plan.patch_size)
    guide = model.guide(model.condition(image))
    x_t = torch.randn(2, labels.num_channels, *plan.patch_size)
    in_blocks = dataclasses.replace(
        guide, det_logits=denoiser.blocks(guide.det_logits), x_det=denoiser.blocks(guide.x_det)
    )
    assert torch.equal(denoiser.whole(denoiser.blocks(x_t)), x_t)
    for corrected in (True, False):
        expected = model.denoiser_output(x_t, level_of(0.5), guide, corrected)
        found = model.denoiser_output(denoiser.blocks(x_t), level_of(0.5), in_blocks, corrected)
        torch.testing.assert_close(denoiser.whole(found.x0_logits), expected.x0_logits, atol=1e-4, rtol=1e-4)
        noise = expected.noise_correction
        torch.testing.assert_close(denoiser.whole(found.noise_correction), noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2), (2, 2, 2)])
def test_depth_to_space_undoes_space_to_depth(stride: tuple[int, ...]) -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8) if len(stride) == 3 else torch.randn(2, 3, 6, 8)
    packed = space_to_depth(x, stride)
    assert packed.shape[2:] == tuple(n // s for n, s in zip(x.shape[2:], stride, strict=True))
    assert torch.equal(depth_to_space(packed, stride), x)


def test_space_to_depth_keeps_neighbours_together() -> None:
    x = torch.tensor([[[[0.0, 1.0, 10.0, 11.0], [2.0, 3.0, 12.0, 13.0]]]])
    assert space_to_depth(x, (2, 2))[0, :, 0, 1].tolist() == [10.0, 11.0, 12.0, 13.0]


@pytest.mark.parametrize("encoder", ["plain", "residual", "resenc"])
def test_unet_shapes(encoder: str) -> None:
    plan = dataclasses.replace(PLAN_3D, encoder=encoder)
    net = SegmentationUNet(plan, 3)
    image = torch.randn(2, 2, 8, 16, 16)
    output = net(image)
    assert [tuple(v.shape[1:]) for v in output.logits] == [(3, 8, 16, 16), (3, 8, 8, 8), (3, 4, 4, 4)]
    assert [tuple(v.shape[1:]) for v in output.features] == [(6, 8, 8, 8), (8, 4, 4, 4), (10, 2, 2, 2)]
    assert len(net.eval()(image).logits) == 1


@pytest.mark.parametrize("encoder", ["plain", "residual", "resenc"])
def test_a_pass_of_the_segmenter_costs_as_much_as_planning_estimates(encoder: str) -> None:
    plan = dataclasses.replace(PLAN_3D, encoder=encoder)
    with FlopCounterMode(display=False) as counter:
        SegmentationUNet(plan, 3)(torch.randn(1, 2, 8, 16, 16))
    assert counter.get_total_flops() == 2 * multiply_adds(plan, 3)


def test_blocks_of_nnunets_residual_encoder_begin_as_their_skips() -> None:
    net = SegmentationUNet(dataclasses.replace(PLAN_3D, encoder="resenc"), 3)
    block = net.encoder[1][1]
    x = torch.rand(1, 6, 4, 4, 4)
    assert torch.equal(block(x), x)
    assert not torch.equal(SegmentationUNet(dataclasses.replace(PLAN_3D, encoder="residual"), 3).encoder[1][1](x), x)


@pytest.mark.parametrize(
    ("labels", "fractions"), [(BINARY, [0.02]), (REGIONS, [0.3, 0.0]), (SOFTMAX, [0.90, 0.08, 0.02])]
)
def test_an_untrained_segmenter_answers_with_given_shares(labels: LabelScheme, fractions: list[float]) -> None:
    torch.manual_seed(0)
    net = SegmentationUNet(PLAN_2D, len(fractions))
    net.start_from(torch.tensor(fractions), labels.coding)
    for logits in net(torch.randn(4, 1, 16, 24)).logits:
        found = probabilities_from_logits(logits, labels.coding).mean(dim=(0, 2, 3))
        # a fraction of 0 is one of a thousandth, so that its logit is finite
        assert torch.allclose(found, torch.tensor(fractions).clamp_min(1e-3), rtol=0.3)


@pytest.mark.parametrize(
    ("plan", "labels"),
    [(PLAN_3D, SOFTMAX), (PLAN_2D, BINARY), (PLAN_3D, REGIONS)],
)
def test_untrained_denoiser_says_what_the_segmenter_says(plan: NetworkPlan, labels: LabelScheme) -> None:
    """Mask head, inverted noise and their blend all equal 2 p_det - 1, at every noise level."""
    model = make_model(plan, labels)
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, plan.num_input_channels, *plan.patch_size, generator=generator)
    edges = StageEdges(-3.0, 1.0)
    with torch.no_grad():
        condition = model.condition(image)
        expected = mask_to_x(model.det_probabilities(condition))
        for lam in (float("-inf"), -5.0, -1.0, 0.5, 3.0):
            level = torch.full((3,), lam)
            x_t = torch.randn(expected.shape, generator=generator)
            estimate = model.denoise(x_t, NoiseLevel.of(level, edges), condition)
            assert (mask_to_x(estimate.probabilities) - expected).abs().max() < 1e-5
            assert (state_estimate(level, estimate, edges) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("stride", [(2, 2), (1, 2)])
def test_upsampling_in_prediction_is_that_of_training(stride: tuple[int, int]) -> None:
    up, x = TRANSPOSED_CONV[2](6, 4, stride, stride), torch.randn(3, 6, 5, 7)
    expected = up(x)
    assert expected.shape == (3, 4, 5 * stride[0], 7 * stride[1])
    with torch.inference_mode():
        assert torch.allclose(up(x), expected, atol=1e-6)


@pytest.mark.parametrize(("plan", "labels"), [(PLAN_3D, SOFTMAX), (PLAN_2D, REGIONS)])
def test_one_noise_level_for_all_is_that_level_for_each(plan: NetworkPlan, labels: LabelScheme) -> None:
    model = make_model(plan, labels)
    assert model.denoiser is not None
    torch.nn.init.normal_(model.denoiser.head.weight)
    edges = StageEdges(-3.0, 1.0, tuple(1.0 + 0.5 * i for i in range(labels.num_channels)))
    with torch.no_grad():
        condition = model.condition(torch.randn(3, plan.num_input_channels, *plan.patch_size))
        x_t = torch.randn_like(condition.det_logits)
        for lam in (float("-inf"), -1.0, 3.0):
            levels = torch.full((3,), lam)
            each, one = (model.denoise(x_t, NoiseLevel.of(v, edges), condition) for v in (levels, levels[:1]))
            assert torch.allclose(each.probabilities, one.probabilities, atol=1e-5)
            assert torch.allclose(each.correction, one.correction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("plan", "labels"), [(PLAN_2D, BINARY), (PLAN_3D, SOFTMAX)], ids=["2d", "3d"])
def test_a_call_costs_as_much_as_planning_reckons(plan: NetworkPlan, labels: LabelScheme) -> None:
    model = make_model(plan, labels)
    condition = model.condition(torch.randn(1, plan.num_input_channels, *plan.patch_size))
    x_t = torch.randn(1, labels.num_channels, *plan.patch_size)
    with FlopCounterMode(display=False) as counter:
        model.denoise(x_t, level_of(0.0), condition)
    flops = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert flops == 2 * denoiser_multiply_adds(plan, (4, 6, 8), labels.num_channels)


def test_hidden_logits_leave_one_half() -> None:
    model = make_model(PLAN_2D, BINARY)
    with torch.no_grad():
        condition = model.condition(torch.randn(2, 1, 16, 24))
        x_t = torch.randn(2, 1, 16, 24)
        keep = torch.tensor([0.0, 1.0])
        guide = model.guide(condition).hidden(keep, "binary")
        p = model.denoiser_output(x_t, level_of(0.0), guide).x0_logits.sigmoid()
    assert torch.allclose(p[0], torch.full_like(p[0], 0.5))
    assert not torch.allclose(p[1], torch.full_like(p[1], 0.5))


@pytest.mark.parametrize(("plan", "labels"), [(PLAN_3D, SOFTMAX), (PLAN_2D, REGIONS)])
def test_a_call_whose_correction_is_not_read_gives_the_same_mask(plan: NetworkPlan, labels: LabelScheme) -> None:
    model = make_model(plan, labels)
    assert model.denoiser is not None
    torch.nn.init.normal_(model.denoiser.head.weight)
    with torch.no_grad():
        guide = model.guide(model.condition(torch.randn(2, plan.num_input_channels, *plan.patch_size)))
        x_t = torch.randn_like(guide.det_logits)
        whole, mask_alone = (model.denoise_guided(x_t, level_of(0.0), guide, corrected) for corrected in (True, False))
    assert torch.equal(whole.probabilities, mask_alone.probabilities)
    assert whole.correction.abs().min() > 0
    assert mask_alone.correction.shape == whole.correction.shape
    assert not mask_alone.correction.any()


def test_denoiser_reads_mask_and_noise_level_after_a_step() -> None:
    model = make_model(PLAN_2D, BINARY)
    torch.nn.init.normal_(model.denoiser.head.weight)  # type: ignore[union-attr]
    with torch.no_grad():
        condition = model.condition(torch.randn(1, 1, 16, 24))
        x = torch.randn(1, 1, 16, 24)
        answers = [
            model.denoise(v, level_of(lam), condition).probabilities for v, lam in ((x, 0.0), (-x, 0.0), (x, 2.0))
        ]
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2])


def test_scaled_channels_are_read_at_their_own_noise_level() -> None:
    """A mask scaled by b is one at lam + 2 ln b: its evidence and the noise it implies are those of that level."""
    model = make_model(PLAN_3D, SOFTMAX)
    denoiser = model.denoiser
    assert denoiser is not None
    torch.nn.init.normal_(denoiser.head.weight)
    torch.nn.init.normal_(denoiser.gain.weight)
    lam, b = torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 2.0, 0.5])
    mask_lam = channel_lam(lam, StageEdges(-3.0, 1.0, tuple(b.tolist())))
    with torch.no_grad():
        condition = model.condition(torch.randn(2, 2, *PLAN_3D.patch_size))
        x_t = torch.randn(condition.det_logits.shape)
        guide = Guide.of(condition, condition.det_logits, "softmax")
        own = denoiser(x_t, NoiseLevel(lam, mask_lam), guide)
        shared = denoiser(x_t, NoiseLevel(lam, lam), guide)
        inputs = denoiser.inputs(x_t, mask_lam, guide.x_det)
        a, s = (v[:, :, None, None, None] for v in alpha_sigma(lam[:, None] + 2 * b.log()))
        x_det = mask_to_x(condition.det_logits.softmax(dim=1))
    torch.testing.assert_close(inputs[:, 6:], ((x_t - a * x_det) / s).clamp(-8, 8), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(own.x0_logits, shared.x0_logits)


def test_a_model_without_denoiser_says_so() -> None:
    model = StagedModel(SegmentationUNet(PLAN_2D, 1), None, BINARY)
    with pytest.raises(ValueError, match="no denoiser"):
        model.denoise(torch.zeros(1, 1, 16, 24), level_of(0.0), Condition(torch.zeros(1, 1, 16, 24), ()))


def test_evidence_of_a_voxel_is_the_difference_of_log_densities() -> None:
    lam = torch.tensor([-2.0, 1.0])
    x_t = torch.tensor([0.7, -1.3]).reshape(2, 1, 1)
    a, s = alpha_sigma(lam)
    normal = torch.distributions.Normal
    expected = normal(a, s).log_prob(x_t.flatten()) - normal(-a, s).log_prob(x_t.flatten())
    assert torch.allclose(voxel_evidence(x_t, lam).flatten(), expected, atol=1e-5)
    assert voxel_evidence(x_t[:1], torch.tensor([PURE_NOISE])).item() == 0


def test_evidence_is_bayes_rule_for_one_hot_classes() -> None:
    """softmax(log prior + E) is the posterior of a voxel, as the densities of all classes have it."""
    lam = torch.tensor([0.3])
    a, s = alpha_sigma(lam)
    prior = torch.tensor([0.5, 0.3, 0.2])
    x_t = torch.tensor([0.4, -0.9, 0.2])
    codes = 2 * torch.eye(3) - 1  # row = class
    densities = torch.distributions.Normal(a * codes, s).log_prob(x_t).sum(dim=1).exp()
    posterior = prior * densities / (prior * densities).sum()
    found = (prior.log() + voxel_evidence(x_t.reshape(1, 3, 1), lam).flatten()).softmax(0)
    assert torch.allclose(found, posterior, atol=1e-5)
