"""Trainers to compare the staged one with: one target for all noise levels, or stages that no data set was asked for.

They differ from `StagedDiffusionTrainer` in target and edges alone: network, noise levels a patch, examples and budget
are the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.losses import mask_loss, noise_loss
from unisegdiff_pipeline.diffusion.schedule import Target
from unisegdiff_pipeline.diffusion.stages import StageDraw, draw_unstaged
from unisegdiff_pipeline.diffusion.targets import noise_error, v_error
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.denoiser import DenoiserOutput
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer, NoisedExamples, StagedDiffusionTrainer
from unisegdiff_pipeline.training.trainers.trainer import StepResult

FIXED_THIRDS_LAM = 1.0986  # lam of the cosine schedule, -2 ln tan(pi t / 2), at t = 1/3; at t = 2/3 its negative


class UnstagedDiffusionTrainer(DiffusionTrainer):
    """Noise levels are uniform over the range of all three stages, and every example weighs the same."""

    def draw_levels(self, num_patches: int, levels: int, generator: torch.Generator) -> StageDraw:
        return draw_unstaged(num_patches, levels, self.edges, generator)

    def weigh(self, losses: Tensor, stage: Tensor) -> StepResult:
        return StepResult(losses.mean(), {})


class X0DiffusionTrainer(UnstagedDiffusionTrainer):
    """Predicts the mask at every noise level, with the mask's loss of the staged trainer."""

    target: ClassVar[Target] = "x0"

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        return mask_loss(output.x0_logits, example.target, example.valid, self.coding)


class VDiffusionTrainer(UnstagedDiffusionTrainer):
    """Predicts v = a e - s x_0 (Salimans & Ho 2022, section 4) with its mean square error."""

    target: ClassVar[Target] = "v"

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        x0 = mask_to_x(probabilities_from_logits(output.x0_logits, self.coding))
        error = v_error(example.mask_lam, x0, output.noise_correction, example.x0)
        return noise_loss(error, example.valid)


class EpsilonDiffusionTrainer(UnstagedDiffusionTrainer):
    """Predicts the noise (Ho et al. 2020, eq. 14) with its mean square error."""

    target: ClassVar[Target] = "epsilon"

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        x0 = mask_to_x(probabilities_from_logits(output.x0_logits, self.coding))
        error = noise_error(example.mask_lam, x0, output.noise_correction, example.x0)
        return noise_loss(error, example.valid)


class FixedThirdsDiffusionTrainer(StagedDiffusionTrainer):
    """The staged trainer with the edges at a third and two thirds of the cosine schedule, whatever the data set."""

    @classmethod
    def own_settings(cls, settings: InferenceSettings) -> InferenceSettings:
        return replace(super().own_settings(settings), lam_a=-FIXED_THIRDS_LAM, lam_c=FIXED_THIRDS_LAM, input_scale=())
