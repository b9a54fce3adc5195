"""Phase 1: the segmenter; alone it is the equivalent of nnU-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.losses import Pooling, mask_loss, over_batch, over_groups
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_segmenter
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.training.data.patches import Batch, PatchSource
from unisegdiff_pipeline.training.ranks import ALONE, Ranks
from unisegdiff_pipeline.training.trainers.trainer import StepResult, Trainer, pool_targets
from unisegdiff_pipeline.training.validation import HeldOutDice, validate_cases

COUNTED_PATCHES = 64  # for the prior of the untrained network


class SegmentationTrainer(Trainer):
    """Dice + cross-entropy with deep supervision."""

    phase: ClassVar[int] = 1
    num_validations: ClassVar[int] = 6
    network: SegmentationUNet

    def build_network(self) -> nn.Module:
        run = self.run
        configuration, labels = run.configuration, run.plans.labels
        network = build_segmenter(configuration, labels)
        source = PatchSource(run.data, run.train_cases, configuration, labels, run.seed, False, 0.0)
        network.start_from(source.channel_fractions(COUNTED_PATCHES), labels.coding)
        return network

    def parameter_groups(self) -> list[dict[str, Any]]:
        warmup = self.plan.pretrained_warmup_fraction
        return self.segmenter_groups(self.network, (0.0, self.schedule_end), warmup)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        logits = self.network(batch.image, batch.source).logits
        return segmentation_loss(logits, batch, self.run.configuration, self.coding, self.run.ranks)

    def model_for_prediction(self) -> StagedModel:
        segmenter = self.ema.network
        assert isinstance(segmenter, SegmentationUNet)
        return StagedModel(segmenter, None, self.run.plans.labels).eval()

    def validate(self) -> HeldOutDice:
        settings = planned_settings(self.run.configuration)
        return validate_cases(self.run, self.model_for_prediction(), 0, settings, picture=self.moment)


def segmentation_loss(
    logits: Sequence[Tensor],
    batch: Batch,
    configuration: ConfigurationPlan,
    coding: Coding,
    ranks: Ranks = ALONE,
) -> StepResult:
    """Dice + cross-entropy of a segmenter's logits (B, C, ...), one tensor a resolution, the finest first."""
    levels = configuration.network.levels[1 : len(logits)]
    targets, masks = pool_targets(batch.target, batch.valid, [level.stride for level in levels])
    # nnU-Net's weights 1, 1/2, 1/4, ... with the coarsest level left out, unless it is the only one.
    count = max(1, len(logits) - 1)
    weights = [0.5**i for i in range(count)]
    pooling = dice_pooling(batch, configuration, ranks)
    losses = [mask_loss(logits[i], targets[i], masks[i], coding, 1.0, pooling).mean() for i in range(count)]
    total = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)
    return StepResult(total, {"loss_full_resolution": losses[0].detach()})


def dice_pooling(batch: Batch, configuration: ConfigurationPlan, ranks: Ranks = ALONE) -> Pooling | None:
    """Over which examples the Dice of the loss is taken, those of the other processes included.

    Of unified data sets over those of one source: in a sum over all, lesions of some thousand voxels hide those of some
    hundred, and the sources with small ones are not learned.
    """
    if not configuration.training.batch_dice:
        return None
    pooling: Pooling = over_batch
    if configuration.sources is not None:
        names = list(configuration.sources.plans)
        numbers = [names.index(source_of_case(case_id)) for case_id in batch.case_ids]
        pooling = over_groups(ranks.gather(torch.tensor(numbers, device=batch.target.device), batch.part))
    if (part := batch.part) is None:
        return pooling

    def shared(sums: Tensor) -> Tensor:
        whole = ranks.gather(sums.movedim(-2, 0), part).movedim(0, -2)
        return pooling(whole)[..., part.rows.to(sums.device), :]

    return shared
