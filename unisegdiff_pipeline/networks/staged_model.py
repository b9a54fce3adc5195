"""Segmenter and denoiser as one model: condition once, denoise as often as wanted."""

from __future__ import annotations

from torch import Tensor, nn

from unisegdiff_pipeline.core.labels import Coding, LabelScheme
from unisegdiff_pipeline.diffusion.coding import (
    NO_CALIBRATION,
    LogitCalibration,
    bounded_logits,
    probabilities_from_logits,
)
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel
from unisegdiff_pipeline.diffusion.targets import Estimate
from unisegdiff_pipeline.networks.denoiser import Condition, Denoiser, DenoiserOutput, Guide
from unisegdiff_pipeline.networks.sources import SourceConditioning
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import ConfigurationPlan


class StagedModel(nn.Module):
    """The whole network of one fold.

    Args:
        segmenter: the pre-trained U-Net.
        denoiser: None for a model of phase 1 only.
        labels: what the channels are.
    """

    def __init__(self, segmenter: SegmentationUNet, denoiser: Denoiser | None, labels: LabelScheme) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.denoiser = denoiser
        self.labels = labels
        self.coding: Coding = labels.coding

    def condition(self, image: Tensor, source: Tensor | None = None) -> Condition:
        """Run the segmenter once on a patch (B, C, *patch) of sources (B,) or (1,); None: unknown ones."""
        output = self.segmenter(image, source)
        projected = () if self.denoiser is None else self.denoiser.project_features(output.features)
        return Condition(output.logits[0].float(), projected, source)

    def det_probabilities(self, condition: Condition, calibration: LogitCalibration = NO_CALIBRATION) -> Tensor:
        """p_det (B, C, *patch): the segmenter's own answer at a temperature chosen on held-out cases."""
        return probabilities_from_logits(condition.det_logits, self.coding, calibration)

    def denoise(
        self, x_t: Tensor, level: NoiseLevel, condition: Condition, calibration: LogitCalibration = NO_CALIBRATION
    ) -> Estimate:
        """Estimate mask and noise in x_t (B, C, *patch), fp32, which is as noisy as `level` says."""
        return self.denoise_guided(x_t, level, self.guide(condition, calibration))

    def guide(self, condition: Condition, calibration: LogitCalibration = NO_CALIBRATION) -> Guide:
        """What the denoiser takes of a condition at every call."""
        return Guide.of(condition, bounded_logits(condition.det_logits, self.coding, calibration), self.coding)

    def denoise_guided(self, x_t: Tensor, level: NoiseLevel, guide: Guide, corrected: bool = True) -> Estimate:
        """As `denoise`; without `corrected` the correction of the noise is 0."""
        output = self.denoiser_output(x_t, level, guide, corrected)
        return Estimate(probabilities_from_logits(output.x0_logits, self.coding), output.noise_correction)

    def denoiser_output(self, x_t: Tensor, level: NoiseLevel, guide: Guide, corrected: bool = True) -> DenoiserOutput:
        """As `denoise_guided`, but with the logits of x_0, for losses."""
        if self.denoiser is None:
            raise ValueError("this model has no denoiser: it was trained by SegmentationTrainer; use num_samples=0")
        output: DenoiserOutput = self.denoiser(x_t, level, guide, corrected)
        return output


def build_model(configuration: ConfigurationPlan, labels: LabelScheme, with_denoiser: bool) -> StagedModel:
    """Untrained model of a plan; initial weights come from torch's global generator, seed it first."""
    segmenter = build_segmenter(configuration, labels)
    return StagedModel(segmenter, build_denoiser(configuration, labels) if with_denoiser else None, labels)


def build_segmenter(configuration: ConfigurationPlan, labels: LabelScheme) -> SegmentationUNet:
    """Untrained segmenter of a plan, as `build_model`."""
    conditioning = SourceConditioning.of(configuration.sources)
    deep_supervision = configuration.training.deep_supervision
    return SegmentationUNet(configuration.network, labels.num_channels, deep_supervision, conditioning)


def build_denoiser(configuration: ConfigurationPlan, labels: LabelScheme) -> Denoiser:
    """Untrained denoiser of a plan, as `build_model`."""
    conditioning = SourceConditioning.of(configuration.sources)
    return Denoiser(configuration.network, configuration.denoiser, labels.num_channels, conditioning)
