"""Phase 2: the denoiser learns on top of the segmenter, which goes on learning from the same patches."""

from __future__ import annotations

import abc
import contextlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.diffusion.coding import mask_to_x, probabilities_from_logits
from unisegdiff_pipeline.diffusion.losses import (
    LOG_VARIANCE_LIMIT,
    mask_loss,
    noise_loss,
    refinement_loss,
    weight_by_log_variance,
)
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel, Target, channel_lam, expand_to, noise_mask
from unisegdiff_pipeline.diffusion.stages import StageDraw, draw_stages
from unisegdiff_pipeline.diffusion.targets import (
    STAGE_A,
    STAGE_B,
    STAGE_C,
    STAGE_NAMES,
    Estimate,
    final_probabilities,
    noise_error,
    state_estimate,
)
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.denoiser import Condition, Denoiser, DenoiserOutput, repeat_examples
from unisegdiff_pipeline.networks.precision import autocast
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_denoiser
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.selection.choosing import default_settings
from unisegdiff_pipeline.training.bands import BandMeter, LamBands, LastLayerGradients, mask_dice
from unisegdiff_pipeline.training.data.patches import Batch, PatchSource, drawn
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.schedule import Allowance, PhaseBudget
from unisegdiff_pipeline.training.trainers.segmentation import segmentation_loss
from unisegdiff_pipeline.training.trainers.trainer import StepResult, Trainer
from unisegdiff_pipeline.training.validation import HeldOutDice, validate_cases

# Noised masks a step: on a CPU more take longer than the segmenter's step and teach little more. On a GPU they cost a
# fifth more (small patches); their voxels are bounded, since the plan counts the segmenter's memory alone.
MOST_EXAMPLES = 24
MOST_VOXELS_ON_GPU = 4_000_000
NUM_VALIDATION_SAMPLES = 4
LEVELS_STREAM = 0x5EED
MEASURE_EVERY = 8  # every so many iterations loss, gradient and Dice of each example are looked at
NUM_BAND_ENTRIES = 24  # in the log of the phase
HELD_OUT_PATCHES = 4  # each noised to all bands of lam
HELD_OUT_FRACTION = 0.01  # of the time may go into looking at them


class DiffusionTrainer(Trainer, abc.ABC):
    """Noises masks, conditions on the segmenter once a patch, and leaves the denoiser's loss to its subclasses.

    The segmenter goes on with the loss of phase 1 and the rest of its schedule; the denoiser's loss does not reach it.

    Args:
        run, budget: as for `Trainer`.
        segmenter: of phase 1.
        settings: what phase 1 left for prediction: refined edges of the stages, temperature of p_det.
    """

    phase: ClassVar[int] = 2
    num_validations: ClassVar[int] = 3
    target: ClassVar[Target] = "staged"
    # Fraction of the examples that must do without the segmenter's logits, so that the noised mask is really read.
    hidden_fraction: ClassVar[float] = 0.2
    network: StagedModel

    def __init__(
        self, run: FoldRun, budget: PhaseBudget, segmenter: SegmentationUNet, settings: InferenceSettings
    ) -> None:
        # Held-out cases are looked at with these.
        self.settings = default_settings(run.held_out, self.own_settings(settings))
        self.edges = self.settings.edges
        self.calibration = settings.denoiser_calibration
        self.source_scales = source_scales(run.configuration, self.settings, run.plans.labels.num_channels)
        self.log_variances = nn.Parameter(torch.zeros(len(STAGE_NAMES), device=run.device))
        self._segmenter = segmenter.requires_grad_(True)
        super().__init__(run, budget)
        self.bands = LamBands.of_edges(self.edges)
        self._meter = BandMeter(self.bands, run.device)
        self._bands_recorded_at = 0.0
        self._held_out_allowance = Allowance(HELD_OUT_FRACTION)

    @classmethod
    def own_settings(cls, settings: InferenceSettings) -> InferenceSettings:
        """The settings with what this trainer decides about them: what is predicted, and where the stages lie."""
        return replace(settings, target=cls.target)

    def draw_levels(self, num_patches: int, levels: int, generator: torch.Generator) -> StageDraw:
        """Noise levels of a batch, patch-major."""
        return draw_stages(num_patches, levels, self.edges, generator)

    def build_network(self) -> nn.Module:
        labels = self.run.plans.labels
        return StagedModel(self._segmenter, build_denoiser(self.run.configuration, labels), labels)

    @property
    def denoiser(self) -> Denoiser:
        """The part of the network that is new in this phase."""
        assert self.network.denoiser is not None
        return self.network.denoiser

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            *self.network_groups(self.denoiser, (0.0, 1.0)),
            *self.segmenter_groups(self.network.segmenter, (self.plan.phase_1_fraction, 1.0), warmup=0.0),
        ]

    def compiled_networks(self) -> list[nn.Module]:
        return [self.network.segmenter, self.denoiser]

    def extra_parameters(self) -> list[nn.Parameter]:
        return [self.log_variances]

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_variances.clamp_(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    @abc.abstractmethod
    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        """Loss of each example (B,), by what the trainer lets the network predict.

        All are `Denoiser.blocks`; a loss that looks at neighbours needs them `whole`.
        """

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        segmented = self.network.segmenter(batch.image, batch.source)
        segmentation = segmentation_loss(
            segmented.logits, batch, self.run.configuration, self.coding, self.run.ranks
        ).of_part(batch.part)
        self.descend(segmentation.loss)  # now, and on its own: the denoiser's loss is not to reach the segmenter
        logits, features = segmented.logits[0].detach(), [f.detach() for f in segmented.features]
        del segmented
        levels = self.run.configuration.denoiser.noise_levels_per_patch
        # Drawn on the CPU, like all that decides which examples there are: the same for every device; and from a stream
        # of its own, so that no noise repeats the numbers that chose its level.
        own_stream = torch.Generator().manual_seed(generator.initial_seed() ^ LEVELS_STREAM)
        most = MOST_EXAMPLES
        if self.run.device.type == "cuda":
            most = max(most, MOST_VOXELS_ON_GPU // batch.target[0, 0].numel())
        num_patches = len(batch.image) if batch.part is None else batch.part.total
        count = min(num_patches, max(1, most // levels))
        chosen, part = batch.find(torch.randperm(num_patches, generator=own_stream)[:count])
        draw = self.draw_levels(count, levels, own_stream)
        logged = {"loss_segmenter": segmentation.loss.detach()}
        if len(chosen) == 0:  # of several processes this one has none of the patches
            nothing = self.weigh(logits.new_zeros(0), draw.stage[:0]).of_part(part)
            return StepResult(nothing.loss.detach(), {**logged, **nothing.logged}, summed=True)
        projected = self.denoiser.project_features([f[chosen] for f in features])
        examined = replace(batch.select(chosen), part=part)
        examined, condition = self._in_blocks(examined, Condition(logits[chosen].float(), projected, examined.source))
        of_examples = None if part is None else part.repeated(levels)
        if of_examples is not None:
            draw = draw.each(of_examples.of)
        example = self.noised_examples(examined, condition, draw, generator)
        device = self.run.device
        chance = drawn(of_examples, len(example.lam), lambda n: torch.rand(n, generator=generator, device=device))
        keep = (chance >= self.hidden_fraction).float()
        measured = self.bf16 is not None and self.iteration % MEASURE_EVERY == 0  # not while a step is timed
        watching = LastLayerGradients(self.denoiser.head, self.is_compiled) if measured else contextlib.nullcontext()
        with watching as gradients:
            output = self._denoise(self.network, example, condition, keep)
        losses = self.example_losses(example, output)
        if gradients is not None:
            self._measure(example, output, losses.detach(), gradients, count * levels)
        result = self.weigh(losses, example.stage).of_part(part)
        return replace(result, logged={**logged, **result.logged})

    def _in_blocks(self, batch: Batch, condition: Condition) -> tuple[Batch, Condition]:
        """Both as the denoiser packs masks: packed once a patch, not for each noise level."""
        blocks = self.denoiser.blocks
        batch = replace(batch, target=blocks(batch.target), valid=blocks(batch.valid))
        return batch, replace(condition, det_logits=blocks(condition.det_logits))

    def noised_examples(
        self, batch: Batch, condition: Condition, draw: StageDraw, generator: torch.Generator
    ) -> NoisedExamples:
        levels = len(draw.lam) // len(batch.image)
        draw = draw.each(lambda values: values.to(self.run.device))
        target, valid = repeat_examples(batch.target, levels), repeat_examples(batch.valid, levels)
        mean = self.network.det_probabilities(condition, self.calibration)
        masks = mask_to_x(torch.where(batch.valid > 0, batch.target, mean))  # ignored voxels: what the segmenter says
        x0 = repeat_examples(masks, levels)
        from_mean = expand_to(draw.from_mean.unflatten(0, (-1, levels)), x0.ndim + 1)
        clean = torch.where(from_mean, mask_to_x(mean)[:, None], masks[:, None]).flatten(0, 1)
        part = None if batch.part is None else batch.part.repeated(levels)
        noise = drawn(
            part, len(x0), lambda n: torch.randn((n, *x0.shape[1:]), generator=generator, device=self.run.device)
        )
        mask_lam = channel_lam(draw.lam, self.edges)
        if self.source_scales is not None and batch.source is not None:
            scales = self.source_scales.to(self.run.device)[repeat_examples(batch.source, levels)]
            mask_lam = draw.lam[:, None] + 2 * scales.log()
        x_t = noise_mask(clean, mask_lam, noise)
        return NoisedExamples(x_t, x0, target, valid, draw.lam, draw.stage, draw.from_mean, mask_lam)

    def _denoise(
        self, model: StagedModel, example: NoisedExamples, condition: Condition, keep: Tensor | None = None
    ) -> DenoiserOutput:
        levels = len(example.lam) // len(condition.det_logits)
        guide = model.guide(condition, self.calibration).each(lambda values: repeat_examples(values, levels))
        if keep is not None:
            guide = guide.hidden(keep, self.coding)
        return model.denoiser_output(example.x_t, NoiseLevel(example.lam, example.mask_lam), guide)

    @torch.no_grad()
    def _measure(
        self,
        example: NoisedExamples,
        output: DenoiserOutput,
        losses: Tensor,
        gradients: LastLayerGradients,
        num_examples: int,
    ) -> None:
        """Count unweighted losses, gradient norms and Dice by band of lam, once the backward pass has been made.

        `num_examples` are there in all processes together.
        """
        band = self.bands.index(example.lam, example.from_mean)
        dice = self._dice(example, output)
        # The loss descended is a mean over examples, each with the weight of its stage; take both out again.
        scale = num_examples * self.log_variances.detach()[example.stage].exp()
        gradients.then(lambda norms: self._meter.add(band, losses, dice, norms * scale))

    def _dice(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        """Dice of the masks that a sampler would end with, were this its last call (B,)."""
        estimate = Estimate(probabilities_from_logits(output.x0_logits, self.coding), output.noise_correction)
        p = final_probabilities(example.lam, estimate, self.edges, self.coding, example.mask_lam)
        return mask_dice(p, example.target, example.valid, self.coding)

    @torch.no_grad()
    def measure_held_out(self) -> None:
        """Log losses and Dice by band of lam on patches of held-out cases.

        The patches and the noise are the same each time, and for all trainings of a fold with the same seed.
        """
        run = self.run
        plan = replace(self.plan, batch_size=min(self.plan.batch_size, HELD_OUT_PATCHES), foreground_fraction=1.0)
        configuration = replace(run.configuration, training=plan)
        source = PatchSource(
            run.data, run.holdout_cases, configuration, run.plans.labels, run.seed, False, memory_budget_gb=0
        )
        batch, draw = source.batch(0).to(run.device), self.bands.grid(plan.batch_size)
        model, meter = self.model_for_prediction(), BandMeter(self.bands, run.device)
        with autocast(run.device, self.bf16):
            batch, condition = self._in_blocks(batch, model.condition(batch.image, batch.source))
            example = self.noised_examples(batch, condition, draw, run.generator("bands"))
            output = self._denoise(model, example, condition)
            losses = self.example_losses(example, output)
            meter.add(self.bands.index(example.lam, example.from_mean), losses, self._dice(example, output))
        self._record_bands(meter, "held_out")

    def _record_bands(self, meter: BandMeter, cases: str) -> None:
        seconds = self.run.watch.seconds
        self.run.log.record(
            "bands", phase=self.phase, iteration=self.iteration, seconds=seconds, cases=cases, **meter.take()
        )

    def _log(self, sums: dict[str, list[Tensor]], seconds: float) -> None:
        super()._log(sums, seconds)
        if self.progress >= 1 or self.progress - self._bands_recorded_at >= 1 / NUM_BAND_ENTRIES:
            self._bands_recorded_at = self.progress
            self.run.ranks.ask_for_statistics()
            self.gather_statistics()
            self._record_bands(self._meter, "training")

    def gather_statistics(self) -> None:
        self.run.ranks.sum_(self._meter.sums)
        if not self.run.ranks.leads:
            self._meter.sums.zero_()

    def weigh(self, losses: Tensor, stage: Tensor) -> StepResult:
        """Loss to descend from that of each example, with the learned weights of the stages."""
        weighted = weight_by_log_variance(losses, self.log_variances[stage])
        logged = {}
        for index, name in enumerate(STAGE_NAMES):
            logged[f"loss_{name.lower()}"] = losses[stage == index].mean().detach()
            logged[f"log_variance_{name.lower()}"] = self.log_variances[index].detach()
        return StepResult(weighted.mean(), logged)

    def model_for_prediction(self) -> StagedModel:
        model = self.ema.network
        assert isinstance(model, StagedModel)
        return model

    def validate(self) -> HeldOutDice:
        if self._held_out_allowance.is_due or self.progress >= 1:
            with self._held_out_allowance.spent():
                self.measure_held_out()
        # Thresholded for Dice: calibrated probabilities of objects in doubt hardly reach 0.5, and the calibration that
        # decides how many do is fitted again only at the end.
        return validate_cases(
            self.run,
            self.model_for_prediction(),
            num_samples=NUM_VALIDATION_SAMPLES,
            settings=replace(self.settings, decision="dice"),
            picture=self.moment,
        )


def source_scales(configuration: ConfigurationPlan, settings: InferenceSettings, num_channels: int) -> Tensor | None:
    """`input_scale` by row of the source (rows, C), as examples are predicted with; None where all have the same.

    Row 0, of an unknown or hidden source, is that of the settings.
    """
    if configuration.sources is None:
        return None
    names = (None, *configuration.sources.plans)
    scales = [settings.for_source(configuration.sources, name).input_scale for name in names]
    rows = [scale or (1.0,) * num_channels for scale in scales]
    return None if all(row == rows[0] for row in rows) else torch.tensor(rows)


@dataclass(frozen=True)
class NoisedExamples:
    """One batch of noised masks, B = patches x noise levels.

    Attributes:
        x_t: noised masks (B, C, *patch); in a step all of these are `Denoiser.blocks`.
        x0: clean masks in [-1, 1]; ignored voxels hold the segmenter's mean.
        target, valid: (B, C, *patch) and (B, 1, *patch), or (B, C, *patch) as in `Batch`.
        lam, stage, from_mean: (B,), see `StageDraw`.
        mask_lam: lam of each channel, (B, C) where channels are scaled, else (B,).
    """

    x_t: Tensor
    x0: Tensor
    target: Tensor
    valid: Tensor
    lam: Tensor
    stage: Tensor
    from_mean: Tensor
    mask_lam: Tensor


class StagedDiffusionTrainer(DiffusionTrainer):
    """The target changes with the stage: mask (A), mask and noise (B), noise with the mask it implies (C).

    The mask's loss is cross-entropy alone, a proper score. With Dice beside it the network learns to be surer than it
    may be, and all samples to be nearly one (figures: documentation/benchmarks/staged_diffusion_choices.md). How
    calibrated probabilities become a mask of good Dice is decided afterwards (`inference.decision`).
    """

    def example_losses(self, example: NoisedExamples, output: DenoiserOutput) -> Tensor:
        losses = torch.zeros(len(example.lam), device=example.lam.device)
        for stage in (STAGE_A, STAGE_B, STAGE_C):
            rows = (example.stage == stage).nonzero()[:, 0]
            logits, target, valid = output.x0_logits[rows], example.target[rows], example.valid[rows]
            lam, correction = example.lam[rows], output.noise_correction[rows]
            level = example.mask_lam[rows]
            if stage == STAGE_A:
                loss = mask_loss(logits, target, valid, self.coding)
            elif stage == STAGE_B:
                # The noise is learned by its correction alone: through x_0 it would pull the mask head along.
                p = probabilities_from_logits(logits.detach(), self.coding)
                error = noise_error(level, mask_to_x(p), correction, example.x0[rows])
                loss = mask_loss(logits, target, valid, self.coding) + 0.3 * noise_loss(error, valid)
            else:
                # Here the noise is the target, and the mask head, which has no other in this stage, a part of it.
                p = probabilities_from_logits(logits, self.coding)
                error = noise_error(level, mask_to_x(p), correction, example.x0[rows])
                inverted = state_estimate(lam, Estimate(p, correction), self.edges, level)
                loss = refinement_loss(level, error, inverted, target, valid, self.coding)
            losses = losses.index_put((rows,), loss)
        return losses
