"""Phase 2: the denoiser learns on top of the frozen segmenter of phase 1."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.losses import (
    LOG_VARIANCE_LIMIT,
    noise_loss,
    refinement_loss,
    segmentation_loss,
    weight_by_log_variance,
)
from unisegdiff_pipeline.diffusion.schedule import StageEdges, channel_lam, expand_to, noise_mask
from unisegdiff_pipeline.diffusion.stages import StageDraw, draw_stages
from unisegdiff_pipeline.diffusion.targets import (
    STAGE_A,
    STAGE_B,
    STAGE_C,
    STAGE_NAMES,
    Estimate,
    noise_error,
    state_estimate,
)
from unisegdiff_pipeline.networks.denoiser import Denoiser, DenoiserOutput, repeat_examples
from unisegdiff_pipeline.networks.staged_model import Condition, StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.training.patches import Batch
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainer import FoldRun, StepResult, Trainer
from unisegdiff_pipeline.training.validation import validate_cases

HIDE_DET_SHARE = 0.2  # examples that must do without the segmenter's logits, so that the noised mask is really read
NUM_VALIDATION_SAMPLES = 4
LEVELS_STREAM = 0x5EED


class DiffusionTrainer(Trainer, abc.ABC):
    """Noises masks, conditions on the segmenter once a patch, and leaves the loss to its subclasses.

    Args:
        run, budget: as for `Trainer`.
        segmenter: of phase 1, used frozen and in eval mode.
        temperature: of p_det, chosen on the inner hold-out after phase 1.
    """

    phase: ClassVar[int] = 2
    network: Denoiser

    def __init__(self, run: FoldRun, budget: PhaseBudget, segmenter: SegmentationUNet, temperature: float) -> None:
        stages = run.configuration.stages
        assert stages is not None
        self.edges = StageEdges(stages.lam_a, stages.lam_c, stages.input_scale)
        self.temperature = temperature
        self.log_variances = nn.Parameter(torch.zeros(len(STAGE_NAMES), device=run.device))
        super().__init__(run, budget)
        self.segmenter = segmenter.to(run.device).eval().requires_grad_(False)
        self.model = StagedModel(self.segmenter, self.network, self.coding)
        self.segmenter.eval()

    def build_network(self) -> nn.Module:
        configuration = self.run.configuration
        labels = self.run.plans.labels
        return Denoiser(configuration.network, configuration.denoiser, labels.num_channels, labels.coding)

    def extra_parameters(self) -> list[nn.Parameter]:
        return [self.log_variances]

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_variances.clamp_(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    @abc.abstractmethod
    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        """Loss of each example (B,), by what the trainer lets the network predict."""

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        with torch.no_grad():
            output = self.segmenter(batch.image)
        condition = Condition(output.logits[0].float(), self.network.project_features(output.features))
        levels = self.run.configuration.denoiser.noise_levels_per_patch
        example = self._noise(batch, condition, levels, generator)
        features = tuple(repeat_examples(f, levels) for f in condition.features)
        keep = (torch.rand(len(example.lam), generator=generator, device=self.run.device) >= HIDE_DET_SHARE).float()
        output = self.model.denoiser_output(
            example.x_t, example.lam, example.det_logits, features, self.temperature, keep
        )
        losses = self.example_losses(example, output)
        return self._weigh(losses, example.stage)

    def _noise(self, batch: Batch, condition: Condition, levels: int, generator: torch.Generator) -> NoisedExamples:
        count = len(batch.image)
        # Drawn on the CPU, like all that decides which examples there are: the same for every device; and from a stream
        # of its own, so that no noise repeats the numbers that chose its level.
        own_stream = torch.Generator().manual_seed(generator.initial_seed() ^ LEVELS_STREAM)
        draw = draw_stages(count, levels, self.edges, own_stream)
        draw = StageDraw(*(v.to(self.run.device) for v in (draw.lam, draw.stage, draw.from_mean)))
        det_logits = repeat_examples(condition.det_logits, levels)
        target, valid = repeat_examples(batch.target, levels), repeat_examples(batch.valid, levels)
        mean = self.model.det_probabilities(Condition(det_logits, ()), self.temperature)
        x0 = mask_to_x(torch.where(valid > 0, target, mean))  # ignored voxels: what the segmenter says
        source = torch.where(expand_to(draw.from_mean, x0.ndim), mask_to_x(mean), x0)
        noise = torch.randn(x0.shape, generator=generator, device=self.run.device)
        x_t = noise_mask(source, channel_lam(draw.lam, self.edges), noise)
        return NoisedExamples(x_t, x0, target, valid, draw.lam, draw.stage, det_logits)

    def _weigh(self, losses: Tensor, stage: Tensor) -> StepResult:
        weighted = weight_by_log_variance(losses, self.log_variances[stage])
        logged = {}
        for index, name in enumerate(STAGE_NAMES):
            logged[f"loss_{name.lower()}"] = losses[stage == index].mean().detach()
            logged[f"log_variance_{name.lower()}"] = self.log_variances[index].detach()
        return StepResult(weighted.mean(), logged)

    def model_for_prediction(self) -> StagedModel:
        denoiser = self.ema.network
        assert isinstance(denoiser, Denoiser)
        return StagedModel(self.segmenter, denoiser, self.coding).eval()

    def validate(self) -> dict[str, float]:
        return validate_cases(
            self.run, self.model_for_prediction(), num_samples=NUM_VALIDATION_SAMPLES, temperature=self.temperature
        )


@dataclass(frozen=True)
class NoisedExamples:
    """One batch of noised masks, B = patches x noise levels.

    Attributes:
        x_t: noised masks (B, C, *patch).
        x0: clean masks in [-1, 1]; ignored voxels hold the segmenter's mean.
        target, valid: (B, C, *patch) and (B, 1, *patch).
        lam, stage: (B,).
        det_logits: the segmenter's (B, C, *patch).
    """

    x_t: Tensor
    x0: Tensor
    target: Tensor
    valid: Tensor
    lam: Tensor
    stage: Tensor
    det_logits: Tensor

    def of_stage(self, stage: int) -> Tensor:
        """Indices of the examples of one stage."""
        return (self.stage == stage).nonzero()[:, 0]


class StagedDiffusionTrainer(DiffusionTrainer):
    """The target changes with the stage: mask (A), mask and noise (B), noise with the mask it implies (C)."""

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        losses = torch.zeros(len(example.lam), device=example.lam.device)
        for stage in (STAGE_A, STAGE_B, STAGE_C):
            rows = example.of_stage(stage)
            logits, target, valid = output.x0_logits[rows], example.target[rows], example.valid[rows]
            if stage == STAGE_A:
                loss = segmentation_loss(logits, target, valid, self.coding)
            else:
                lam, correction = example.lam[rows], output.noise_correction[rows]
                # The noise is learned by its correction alone: through x_0 it would pull the mask head along.
                p = probabilities_from_logits(logits.detach(), self.coding)
                level = channel_lam(lam, self.edges)
                error = noise_error(level, mask_to_x(p), correction, example.x0[rows])
                if stage == STAGE_B:
                    loss = segmentation_loss(logits, target, valid, self.coding, dice_weight=0.3)
                    loss = loss + 0.3 * noise_loss(error, valid)
                else:
                    inverted = state_estimate(lam, Estimate(p, correction), self.edges)
                    loss = refinement_loss(level, error, inverted, target, valid, self.coding)
            losses = losses.index_put((rows,), loss)
        return losses

