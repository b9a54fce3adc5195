"""What choosing on held-out cases needs of a training, and how such a case is predicted and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.metrics import ClassScore, score_case
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import sample_case
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.sources import UNKNOWN
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, SourcesPlan
from unisegdiff_pipeline.preprocessing.cascade_inputs import with_mask
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder, StoredCase


@dataclass(frozen=True)
class HoldOut:
    """Where preprocessed cases lie, how they are predicted, and when to stop looking at them.

    Attributes:
        data: the preprocessed cases.
        labels: what channels and label values mean.
        configuration: the plan of the network.
        spacing_known: of the data set; sources of a unified one have their own (`ConfigurationPlan.knows_spacing`).
        train_cases: cases that weights are learned from.
        device: where the network predicts.
        seed: what every random number follows from.
        leave_if_asked: raises where the training is to stop; called between two cases.
    """

    data: PreprocessedFolder
    labels: LabelScheme
    configuration: ConfigurationPlan
    spacing_known: bool
    train_cases: tuple[str, ...]
    device: torch.device
    seed: int
    leave_if_asked: Callable[[], None]


def sources_of_cases(sources: SourcesPlan | None, case_ids: Iterable[str]) -> tuple[str, ...]:
    """The source of each case of a unified data set, over which means are taken; empty for an ordinary one."""
    return () if sources is None else tuple(map(source_of_case, case_ids))


def annotated_classes(held_out: HoldOut, stored: StoredCase) -> frozenset[str]:
    """The classes that the labels of a case say anything about: all, but of sources with partial labels."""
    sources, names = held_out.configuration.sources, held_out.labels.names
    return frozenset(names) if sources is None else sources.annotated_classes(stored.properties.source, held_out.labels)


def open_channels(held_out: HoldOut, stored: StoredCase) -> list[int]:
    """The coded channels that the labels of a case say nothing about; these are regions, a channel for each class."""
    annotated = annotated_classes(held_out, stored)
    return [channel for channel, name in enumerate(held_out.labels.names) if name not in annotated]


def planned_settings(configuration: ConfigurationPlan) -> InferenceSettings:
    """Settings before anything has been chosen: the plan's edges and the samplers' defaults."""
    stages = configuration.stages
    assert stages is not None
    return InferenceSettings(
        lam_a=stages.lam_a, lam_c=stages.lam_c, input_scale=stages.input_scale, segmenter_weight=0.0
    )


def predict_stored(
    held_out: HoldOut,
    model: StagedModel,
    stored: StoredCase,
    settings: InferenceSettings,
    num_samples: int | None,
    keep_samples: bool = False,
) -> CasePrediction:
    """Predict one preprocessed case; the samples are kept where the decision needs them, or the caller does."""
    training = model.training
    try:
        return sample_tiles(
            held_out,
            tiled(held_out, model, stored),
            settings if num_samples is None else replace(settings, num_samples=num_samples),
            stored,
            keep_samples=keep_samples or settings.decision == "dice",
        )
    finally:
        model.train(training)


def tiled(held_out: HoldOut, model: StagedModel, stored: StoredCase) -> TiledCase:
    """A preprocessed case under a model, which is put into eval mode."""
    model.eval()
    patch_size, image = held_out.configuration.network.patch_size, stored.image[...]
    if stored.mask is not None:
        image = with_mask(image, stored.mask[...][0], held_out.labels)
    sources = held_out.configuration.sources
    row = UNKNOWN if sources is None else sources.index(stored.properties.source)
    return TiledCase(torch.as_tensor(image), model, patch_size, find_limits(held_out.device), source=row)


def score_on_plan_grid(held_out: HoldOut, stored: StoredCase, probabilities: torch.Tensor) -> list[ClassScore]:
    """Scores against the labels (row 0) on the plan's grid, which need no resampling."""
    predicted = held_out.labels.decode(probabilities.numpy())
    reference = stored.labels[0:1][0]
    return score_case(reference, predicted, held_out.labels, stored.properties.spacing_mm, held_out.spacing_known)


def sample_tiles(
    held_out: HoldOut,
    tiles: TiledCase,
    settings: InferenceSettings,
    stored: StoredCase,
    *,
    keep_samples: bool = True,
    keep_soft: bool = False,
    first_sample: int = 0,
) -> CasePrediction:
    """Predict the tiles of a case with the number of samples of the settings, counted from `first_sample` on."""
    return sample_case(
        tiles,
        settings.for_source(held_out.configuration.sources, stored.properties.source),
        case_id=stored.case_id,
        seed=held_out.seed,
        sample_ids=range(first_sample, first_sample + settings.num_samples),
        spacing_mm=held_out.configuration.field_spacing_mm(stored.properties.spacing_mm),
        keep_samples=keep_samples,
        keep_soft=keep_soft,
    )
