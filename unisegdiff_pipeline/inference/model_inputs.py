"""Which images a model takes, and how they become its input; by the source of the images where there are several.

An ordinary model takes images of its data set's ending and channels. One of a unified data set takes images of any
ending, with as many channels as its source has, or where the source is not known with up to as many as the network has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference.model_folder import ModelFolder
from unisegdiff_pipeline.io.bids import find_bids_cases, is_bids_folder
from unisegdiff_pipeline.io.images import is_picture_ending, spacing_known
from unisegdiff_pipeline.io.mixed_cases import ending_of, find_mixed_cases, num_channels_to_read
from unisegdiff_pipeline.io.raw_dataset import RawCase, find_cases
from unisegdiff_pipeline.planning.plans import PreprocessingPlan, SourcesPlan
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.presence import for_channels, with_presence
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.source_inputs import preprocessing_of, to_network_channels


@dataclass(frozen=True)
class ModelInputs:
    """The images that a model is given, all of one source.

    Attributes:
        model: the trained model.
        source: of a model of a unified data set what all images are like; None for images of no known source.
        suffixes: of the images of each channel in BIDS folders; empty where they are the names of the channels.

    Raises:
        UsdError: the model was not trained on a source of this name.
    """

    model: ModelFolder
    source: str | None = None
    suffixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.source is None:
            return
        if self._sources is None:
            raise UsdError(
                f"--source is {self.source}, but {self.model.place} was trained on one data set, "
                f"{self.model.plans.dataset_name}, and has no sources; leave --source (source) out."
            )
        if self.source not in self._sources.plans:
            raise UsdError(
                f"--source is {self.source}, which is none of the sources of {self.model.place}; allowed are "
                f"{', '.join(self._sources.plans)}. Leave --source (source) out for images of another kind."
            )

    @property
    def of_masks(self) -> ModelInputs | None:
        """Of a cascade, the inputs of the model whose masks it refines; the images are the same."""
        return None if self.model.masks_from is None else ModelInputs(self.model.masks_from)

    @property
    def _sources(self) -> SourcesPlan | None:
        return self.model.configuration.sources

    @property
    def preprocessing(self) -> PreprocessingPlan:
        """The plan of the source's training images, without one that of images of no known source."""
        if self._sources is None or self.source is None:
            return self.model.configuration.preprocessing
        return self._sources.plans[self.source].preprocessing

    def find_cases(self, paths: Path | Sequence[Path]) -> tuple[RawCase, ...]:
        """The cases of a folder, a file or a list of files that the model may predict.

        Raises:
            UsdError: see `io.raw_dataset.find_cases`, for a model of a unified data set `find_mixed_cases`, and for a
                BIDS folder `find_bids_cases`.
        """
        if isinstance(paths, (str, Path)) and is_bids_folder(Path(paths)):
            return self._find_bids_cases(Path(paths))
        if self.suffixes:
            raise UsdError(f"--suffixes goes with a BIDS folder, which {paths} is not; leave it out.")
        if self._sources is not None:
            return find_mixed_cases(paths)
        plans, preprocessing = self.model.plans, self.model.configuration.preprocessing
        return find_cases(paths, plans.file_ending, len(plans.channel_names), preprocessing.missing_channels)

    def _find_bids_cases(self, folder: Path) -> tuple[RawCase, ...]:
        plans, sources = self.model.plans, self._sources
        names = plans.channel_names
        if sources is not None:
            names = () if self.source is None else sources.plans[self.source].channel_names
        elif is_picture_ending(plans.file_ending):
            raise UsdError(f"{folder} is a BIDS folder of volumes, but {self.model.place} takes {plans.file_ending}.")
        suffixes = self.suffixes or names
        if not suffixes or (names and len(suffixes) != len(names)):
            raise UsdError(
                f"--suffixes names {counted(len(suffixes), 'channel')} of the images in {folder}; give the suffix of "
                f"each channel of the model ({', '.join(names) or 'as many as the images have'})."
            )
        return find_bids_cases(folder, suffixes, self.model.configuration.preprocessing.missing_channels)

    def num_channels(self, case: RawCase) -> int | None:
        """Channels that the files of a case must hold; None for as many as there are.

        Raises:
            UsdError: of several files of a case, one is missing.
        """
        if self._sources is None:
            return case.num_channels(len(self.model.plans.channel_names))
        found = num_channels_to_read(case.image_paths)
        if self.source is None:
            return found
        wanted = len(self._sources.plans[self.source].channel_names)
        return (
            wanted if len(case.image_paths) == wanted else None
        )  # `plan_for` says whether they are those of the source

    def file_ending(self, paths: Sequence[Path]) -> str:
        """Ending of the files of a case, which decides on that of its mask."""
        return self.model.plans.file_ending if self._sources is None else ending_of(paths)

    def knows_spacing(self, paths: Sequence[Path]) -> bool:
        """Whether millimetres of a case are real ones; False marks them as nominal."""
        if self._sources is None:
            return self.model.plans.spacing_known
        return spacing_known(paths) if self.source is None else self._sources.plans[self.source].spacing_known

    def plan_for(self, volume: Volume, case: RawCase) -> PreprocessingPlan:
        """The plan that an image is preprocessed by.

        Raises:
            UsdError: an image of no known source has more channels than the network, or one of a known source others
                than that; one lacks channels that the model needs; a 2D image for a network of volumes.
        """
        case_id, configuration = case.case_id, self.model.configuration
        if configuration.network.dims == 3 and volume.geometry.is_2d:
            raise UsdError(
                f"case {case_id!r} is a 2D image, but {configuration.name} of {self.model.place} takes volumes; "
                f"choose a 2D configuration (-c 2d), or store it as a volume of one slice if that is what it is."
            )
        plan = preprocessing_of(configuration, self.source, volume, case_id)
        if case.channels is not None:
            if not plan.missing_channels:
                raise UsdError(
                    f"case {case_id!r} lacks channels, but {self.model.place} takes all of "
                    f"{', '.join(self.model.plans.channel_names)}; give them, or let cases lack channels: "
                    f"missing_channels true in dataset.json before planning and training."
                )
            plan = for_channels(plan, case.channels)
        if self.source is not None and len(plan.normalization) != volume.array.shape[0]:
            raise UsdError(
                f"case {case_id!r} has {counted(volume.array.shape[0], 'channel')}, images of the source {self.source} "
                f"have {len(plan.normalization)}; predict it with its own source, or without one."
            )
        return plan

    def prepare(
        self, plan: PreprocessingPlan, volume: Volume, case: RawCase, scratch: Scratch | None = None
    ) -> tuple[np.ndarray, CaseProperties]:
        """The network's input (C, Z, Y, X) on the plan's grid, and its way back, with the source in the properties.

        Raises:
            UsdError: see `preprocess_image` and `to_network_channels`.
        """
        image, properties = preprocess_image(volume, plan, case.case_id, case.group, "cpu", scratch)
        if plan.missing_channels:
            names = self.model.plans.channel_names
            image = with_presence(image, case.channels, len(names), scratch)
            properties = replace(properties, missing_channels=case.missing(names))
        if self._sources is None:
            return image, properties
        width = self.model.configuration.network.num_input_channels
        return to_network_channels(image, width, case.case_id), replace(properties, source=self.source)

    def prepare_for_masks(
        self, volume: Volume, case: RawCase, scratch: Scratch | None = None
    ) -> tuple[np.ndarray, CaseProperties] | None:
        """Of a cascade, what `prepare` makes of the image for the model whose masks it refines."""
        inputs = self.of_masks
        if inputs is None:
            return None
        return inputs.prepare(inputs.plan_for(volume, case), volume, case, scratch)
