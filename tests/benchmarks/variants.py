"""Ways to train that were tried and are not the product's, each the staged trainer but for one thing.

    PYTHONPATH=tests/benchmarks usd_train DATASET FOLD --trainer variants:NearestDrawTrainer ...
    python tests/benchmarks/staged_diffusion.py train DATASET CONFIG --work FOLDER --arms variants:NearestDrawTrainer
    python tests/benchmarks/staged_diffusion.py holdout DATASET CONFIG --work FOLDER --arms ...

What they were worth stands in documentation/benchmarks/staged_diffusion_choices.md.
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.fields import kernel_radius, smooth_field
from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.losses import soft_dice
from unisegdiff_pipeline.diffusion.samplers import coherent_sample
from unisegdiff_pipeline.diffusion.schedule import channel_lam, expand_to, noise_mask
from unisegdiff_pipeline.diffusion.stages import StageDraw
from unisegdiff_pipeline.diffusion.targets import STAGE_C
from unisegdiff_pipeline.networks.denoiser import Condition, DenoiserOutput, repeat_examples
from unisegdiff_pipeline.training.data.patches import Batch
from unisegdiff_pipeline.training.trainers.diffusion import NoisedExamples, StagedDiffusionTrainer

MASKS_STREAM = 0x0DD


class LogitsNeverHiddenTrainer(StagedDiffusionTrainer):
    """Every example sees the segmenter's logits."""

    hidden_fraction: ClassVar[float] = 0.0


class DiceBesideTrainer(StagedDiffusionTrainer):
    """Dice of each example beside the mask's cross-entropy in stages A and B."""

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        losses = super().example_losses(example, output)
        p = probabilities_from_logits(output.x0_logits, self.coding)
        dice = soft_dice(p, example.target, example.valid, self.coding)
        return losses + torch.where(example.stage == STAGE_C, 0.0, 1 - dice)


class TrueMasksAtLamATrainer(StagedDiffusionTrainer):
    """No example is made from the segmenter's mean: those at lam_a hold the label under the noise, as all others do."""

    def draw_levels(self, num_patches: int, levels: int, generator: torch.Generator) -> StageDraw:
        draw = super().draw_levels(num_patches, levels, generator)
        return replace(draw, from_mean=torch.zeros_like(draw.from_mean))


class FrozenSegmenterTrainer(StagedDiffusionTrainer):
    """The segmenter of phase 1 stays what it is."""

    def build_network(self) -> nn.Module:
        network = super().build_network()
        network.segmenter.requires_grad_(False)
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        return super().parameter_groups()[:1]

    def descend(self, loss: Tensor) -> None:
        if loss.requires_grad:
            super().descend(loss)


class OtherMasksTrainer(StagedDiffusionTrainer, abc.ABC):
    """Some examples hold another mask than the label under the noise; held-out patches do not."""

    other_fraction: ClassVar[float]
    _looks_at_held_out = False

    @abc.abstractmethod
    def other_masks(self, batch: Batch, p_det: Tensor, generator: torch.Generator) -> Tensor:
        """Masks beside those of the patches, (B, C, *patch) as p_det."""

    def measure_held_out(self) -> None:
        self._looks_at_held_out = True
        super().measure_held_out()
        self._looks_at_held_out = False

    def noised_examples(
        self, batch: Batch, condition: Condition, draw: StageDraw, generator: torch.Generator
    ) -> NoisedExamples:
        example = super().noised_examples(batch, condition, draw, generator)
        if self._looks_at_held_out:
            return example
        # A stream of its own: all else that is drawn stays what it is without other masks.
        own = torch.Generator(self.run.device).manual_seed(generator.initial_seed() ^ MASKS_STREAM)
        levels = len(example.lam) // len(batch.image)
        p_det = self.network.det_probabilities(condition, self.calibration)  # in blocks, as all of the batch
        whole = replace(batch, target=self.denoiser.whole(batch.target), valid=self.denoiser.whole(batch.valid))
        masks = self.denoiser.blocks(self.other_masks(whole, self.denoiser.whole(p_det), own))
        other = torch.where(batch.valid > 0, masks, p_det)
        chosen = torch.rand(len(example.lam), generator=own, device=self.run.device) < self.other_fraction
        chosen &= ~example.from_mean
        noise = torch.randn(example.x0.shape, generator=own, device=self.run.device)
        x_t = noise_mask(mask_to_x(repeat_examples(other, levels)), channel_lam(example.lam, self.edges), noise)
        return replace(example, x_t=torch.where(expand_to(chosen, x_t.ndim), x_t, example.x_t))


class NearestDrawTrainer(OtherMasksTrainer):
    """A quarter of the examples hold the nearest of four coherent samples from p_det: what samplers go on from."""

    other_fraction: ClassVar[float] = 0.25
    num_draws: ClassVar[int] = 4
    length_voxels: ClassVar[float] = 4.0

    def other_masks(self, batch: Batch, p_det: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.stack([self._draw(p_det, generator) for _ in range(self.num_draws)])
        nearest = ((draws - batch.target).abs() * batch.valid).flatten(2).sum(dim=2).argmin(dim=0)
        return draws[nearest, torch.arange(len(p_det), device=p_det.device)]

    def _draw(self, p: Tensor, generator: torch.Generator) -> Tensor:
        margin = 2 * kernel_radius(self.length_voxels)
        size = [length + margin for length in p.shape[2:]]
        white = torch.randn((p.shape[0] * p.shape[1], *size), generator=generator, device=p.device)
        field = smooth_field(white.cpu().numpy(), [self.length_voxels] * len(size))
        return coherent_sample(p, torch.as_tensor(field, device=p.device).reshape(p.shape), self.coding)


class MovedLabelTrainer(OtherMasksTrainer):
    """Half of the examples hold the label moved by -1, 0 or 1 voxels along each axis (around the patch).

    Of sigmoid channels a third is dilated and a third eroded as well.
    """

    other_fraction: ClassVar[float] = 0.5

    def other_masks(self, batch: Batch, p_det: Tensor, generator: torch.Generator) -> Tensor:
        target = batch.target
        axes = tuple(range(1, target.ndim - 1))
        pool = functional.max_pool2d if target.ndim == 4 else functional.max_pool3d
        moved = []
        for mask in target:
            shift, (how,) = (
                torch.randint(low, high, (count,), generator=generator, device=target.device).tolist()
                for low, high, count in ((-1, 2, len(axes)), (0, 3, 1))
            )
            mask = torch.roll(mask, shift, axes)
            if self.coding != "softmax" and how == 1:
                mask = pool(mask, 3, 1, 1)
            elif self.coding != "softmax" and how == 2:
                mask = 1 - pool(1 - mask, 3, 1, 1)
            moved.append(mask)
        return torch.stack(moved)
