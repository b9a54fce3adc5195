"""Which images a model takes, and how they become its input; by the source of the images where there are several.

An ordinary model takes images of its data set's ending and channels. One of a unified data set takes images of any
ending, with as many channels as its source has, or where the source is not known with up to as many as the network has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference.model_folder import ModelFolder
from unisegdiff_pipeline.io.images import spacing_known
from unisegdiff_pipeline.io.mixed_cases import ending_of, find_mixed_cases, num_channels_to_read
from unisegdiff_pipeline.io.raw_dataset import RawCase, find_cases
from unisegdiff_pipeline.planning.plans import PreprocessingPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.source_inputs import preprocessing_of, to_network_channels


def require_source(model: ModelFolder, source_name: str | None) -> None:
    """Raise a UsdError where a model was not trained on a source of this name; None is no known source."""
    sources = model.configuration.sources
    if source_name is None:
        return
    if sources is None:
        raise UsdError(
            f"--source is {source_name}, but {model.place} was trained on one data set, {model.plans.dataset_name}, "
            f"and has no sources; leave --source (source) out."
        )
    if source_name not in sources.plans:
        raise UsdError(
            f"--source is {source_name}, which is none of the sources of {model.place}; allowed are "
            f"{', '.join(sources.plans)}. Leave --source (source) out for images of another kind."
        )


def find_input_cases(model: ModelFolder, source: Path | Sequence[Path]) -> tuple[RawCase, ...]:
    """The cases of a folder, a file or a list of files that the model may predict.

    Raises:
        UsdError: see `find_cases`, and for a model of a unified data set `find_mixed_cases`.
    """
    if model.configuration.sources is not None:
        return find_mixed_cases(source)
    return find_cases(source, model.plans.file_ending, len(model.plans.channel_names))


def channels_to_read(model: ModelFolder, source_name: str | None, paths: Sequence[Path]) -> int | None:
    """Channels that the files of a case must hold; None for as many as there are.

    Raises:
        UsdError: of several files of a case, one is missing.
    """
    sources = model.configuration.sources
    if sources is None:
        return len(model.plans.channel_names)
    found = num_channels_to_read(paths)
    return found if source_name is None else len(sources.plans[source_name].channel_names)


def input_ending(model: ModelFolder, paths: Sequence[Path]) -> str:
    """Ending of the files of a case, which decides on that of its mask."""
    return model.plans.file_ending if model.configuration.sources is None else ending_of(paths)


def knows_spacing(model: ModelFolder, source_name: str | None, paths: Sequence[Path]) -> bool:
    """Whether millimetres of a case are real ones; False marks them as nominal."""
    sources = model.configuration.sources
    if sources is None:
        return model.plans.spacing_known
    return sources.plans[source_name].spacing_known if source_name is not None else spacing_known(paths)


def plan_for(model: ModelFolder, source_name: str | None, volume: Volume, case_id: str) -> PreprocessingPlan:
    """The plan that an image is preprocessed by.

    Raises:
        UsdError: an image of no known source has more channels than the network, or one of a known source others than
            that.
    """
    plan = preprocessing_of(model.configuration, source_name, volume, case_id)
    if source_name is not None and len(plan.normalization) != volume.array.shape[0]:
        raise UsdError(
            f"case {case_id!r} has {volume.array.shape[0]} channels, images of the source {source_name} have "
            f"{len(plan.normalization)}; predict it with its own source, or without one."
        )
    return plan


def prepare_input(
    model: ModelFolder,
    plan: PreprocessingPlan,
    volume: Volume,
    case: RawCase,
    scratch: Scratch | None = None,
) -> tuple[np.ndarray, CaseProperties]:
    """The network's input (C, Z, Y, X) on the plan's grid, and its way back; `case.source` is kept in the properties.

    Raises:
        UsdError: see `preprocess_image` and `to_network_channels`.
    """
    image, properties = preprocess_image(volume, plan, case.case_id, case.group, scratch=scratch)
    if model.configuration.sources is None:
        return image, properties
    width = model.configuration.network.num_input_channels
    return to_network_channels(image, width, case.case_id), replace(properties, source=case.source)
