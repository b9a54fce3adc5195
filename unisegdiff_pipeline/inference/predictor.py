"""Prediction of arrays with a trained model, one or several folds.

Folds are averaged in probability. The samples asked for are shared out over the folds, sample i to fold i modulo
their number, so that five folds cost five segmenter passes but no more denoiser calls than one; a fold that gets no
sample stands for its p_det.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.bounds import MAX_SAMPLES
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.geometry import Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import require_name
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SamplingFacts
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.label_fusion import Combination, require_combinable
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter, can_filter, combined_filter
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.measuring import final_mask
from unisegdiff_pipeline.inference.model_folder import (
    SETTINGS_NAME,
    WEIGHTS_NAME,
    ModelFolder,
    choose_folds,
    load_fold,
    open_model_folder,
    plan_hash,
)
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.origin import UNNAMED, Origin, input_hashes
from unisegdiff_pipeline.inference.prediction import Prediction
from unisegdiff_pipeline.inference.request import require_whole
from unisegdiff_pipeline.inference.settings import DECISIONS, OF_LESIONS, Decision, InferenceSettings, decision_of_folds
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.uncertainty_parts import require_splittable
from unisegdiff_pipeline.inference.utility import Utility, filter_for
from unisegdiff_pipeline.inference.volume_sampler import can_sample, sample_case
from unisegdiff_pipeline.io.image_objects import is_path, volume_of
from unisegdiff_pipeline.io.images import read_image
from unisegdiff_pipeline.io.raw_dataset import RawCase, case_of_channels
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.cascade_inputs import mask_on_grid, with_mask
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

ImageLike: TypeAlias = Any  # an array, a path, a SimpleITK or nibabel image, a Volume, or a list of these


class Predictor:
    """A trained model, loaded once; `predict` may then be called from several threads at once.

    Example:
        >>> model = usd.Predictor(model_folder, device="cpu")
        >>> prediction = model.predict(image, spacing_mm=(1.0, 1.0))  # image: (channels, Y, X), as acquired
        >>> prediction.mask.shape == image.shape[1:]
        True

    Args:
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION, or the archive of one; or as `open_model_folder` gives it.
        folds: None takes all finished ones.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        mirror: average the segmenter over flips along the plan's `mirror_axes`, as nnU-Net does along all axes; costs
            up to 4 (2D) or 8 (3D) times its time.
        decision: how probabilities become the mask, "half" or "dice"; None takes what most folds chose.
        utility: which lesions stay in the mask: those of the filter that served "dice", "lesion_f1", "sensitivity=0.9"
            or "fp_per_case=0.5" best on held-out cases; None takes the filter that training chose.
        lesion_filter: False keeps every lesion, and a filter takes the place of the one that training chose.

    Raises:
        UsdError: no such model or fold, damaged weights, a device that is not there, or a utility for which a fold
            holds no operating points.
        ValueError: another device, decision or utility than these.
    """

    def __init__(
        self,
        model_folder: Path | str | ModelFolder,
        folds: Sequence[str | int] | str | int | None = None,
        device: str = "auto",
        mirror: bool = False,
        decision: Decision | None = None,
        utility: str | None = None,
        lesion_filter: LesionFilter | bool = True,
    ) -> None:
        if decision is not None and decision not in DECISIONS:
            raise ValueError(f"decision is {decision!r}; allowed are {', '.join(DECISIONS)}, or None for the model's")
        wanted = None if utility is None else Utility.parse(utility)
        if wanted is not None and lesion_filter is not True:
            raise ValueError(
                f"utility is {utility!r} and lesion_filter {lesion_filter}; a utility chooses the filter, keep one"
            )
        self.model = model_folder if isinstance(model_folder, ModelFolder) else open_model_folder(Path(model_folder))
        self.folds = choose_folds(self.model, folds)
        self.device = resolve_device(device)
        self.mirror_axes = self.model.configuration.patch_mirror_axes if mirror else ()
        self.networks: list[tuple[StagedModel, InferenceSettings]] = [
            load_fold(self.model, fold, self.device) for fold in self.folds
        ]
        self.masks_from = self._of_masks(device, mirror)
        self.weights = {fold: file_hash(self.model.fold_folder(fold) / WEIGHTS_NAME) for fold in self.folds}
        self.decision: Decision = decision or decision_of_folds(settings.decision for _, settings in self.networks)
        self._is_decision_asked_for = decision is not None
        self.lesion_filter = self._filter(wanted, lesion_filter)

    def _of_masks(self, device: str, mirror: bool) -> Predictor | None:
        """Of a cascade, what makes the masks that it refines: the same folds, or all where it has none of these."""
        model = self.model.masks_from
        if model is None:
            return None
        return Predictor(model, [fold for fold in self.folds if fold in model.folds] or None, device, mirror)

    def _filter(self, utility: Utility | None, asked: LesionFilter | bool) -> LesionFilter:
        """What is asked for, else what all folds make of a utility, or what they chose."""
        if asked is False:
            return NO_FILTER
        if asked is not True:
            return self._possible(asked)
        filters = []
        for fold, (_, settings) in zip(self.folds, self.networks, strict=True):
            own = settings.lesion_filter
            if utility is not None:
                where = str(self.model.fold_folder(fold) / SETTINGS_NAME)
                own = filter_for(settings.operating_points, own.unit, utility, where)
            filters.append(own)
        return self._possible(combined_filter(filters))

    def _possible(self, found: LesionFilter) -> LesionFilter:
        """A filter that the labels allow; a UsdError otherwise."""
        if not found.keeps_all and not can_filter(self.labels):
            raise UsdError(
                f"{self.model.folder} has a lesion filter, but the regions of its labels overlap so that a lesion of "
                f"one cannot be taken out without voxels of another; predict without it (--no-filter)."
            )
        return found

    @property
    def labels(self) -> LabelScheme:
        """What channels and label values mean."""
        return self.model.plans.labels

    def num_samples(self, wanted: int | None) -> int:
        """Samples that will be drawn a case: those asked for, else the settings'; 0 where no fold has a denoiser.

        Raises:
            ValueError: no whole number from 0 to MAX_SAMPLES is asked for.
        """
        if wanted is not None:
            require_whole("num_samples", wanted, MAX_SAMPLES)
        if not any(can_sample(network, settings) for network, settings in self.networks):
            return 0
        return self.networks[0][1].num_samples if wanted is None else wanted

    def predict(
        self,
        image: ImageLike,
        spacing_mm: Sequence[float] | None = None,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        case_id: str | None = None,
        combine: Combination = "mean",
        uncertainty_parts: bool = False,
        direction: Sequence[float] | None = None,
        source: str | None = None,
    ) -> Prediction:
        """Predict one image.

        Args:
            image: as it was acquired, neither normalised nor resampled: a numpy array (C, Z, Y, X), or (C, Y, X) for a
                2D image; a path; a SimpleITK or nibabel image; a `Volume`; or a list of these, one for each channel,
                arrays without C then. None in such a list is a channel that the image lacks, where the plan allows it;
                the place of each file then says its channel, whatever its name.
            spacing_mm: of an array: distance of voxels (Z, Y, X), or (Y, X) for a 2D image. All other images know it.
                It may be left out where the model, or the source that is named, was trained on images of unknown
                spacing.
            num_samples: masks to sample; None takes the model's number.
            seed, case_id: name the noise; equal names give equal samples. By default the case is named after its file,
                as usd_predict does, and an image in memory is "array".
            combine: what the mask is made of: the mean probability, or the samples by "majority" or "staple".
            uncertainty_parts: also say where uncertainty comes from; see `uncertainty_parts`.
            direction: of an array: nine cosines of the axes x, y, z, as in `Geometry`; without it the array must lie as
                the training images do, those of the source where one is named.
            source: of a model of a unified data set: the source that the image is like; None where it is of no known
                one.

        Raises:
            UsdError: a file that cannot be read, wrong number of channels, NaN or infinite values, a spacing that
                cannot be right; masks to combine or uncertainty to split where nothing is sampled.
            ValueError, TypeError: an argument of another kind, shape or value than described here.
        """
        require_whole("seed", seed)
        inputs = ModelInputs(self.model, source)
        count = self.num_samples(num_samples)
        self.require_possible(combine, uncertainty_parts, count)
        is_nominal = spacing_mm is None and _nominal_spacing_mm(image) is not None
        case, volume = self._read(image, spacing_mm, direction, inputs)
        case_id = str(case_id or (case.case_id if case is not None else UNNAMED))
        require_name(case_id, "the case")
        names = [f"image {case_id!r}"] if case is None else [str(path) for path in case.image_paths]
        require_finite(volume.array, names)
        origin = Origin(
            model=str(self.model.place.resolve()),
            made_of=self.made_of(count, seed, combine, source),
            device=str(self.device),
            folds=self.folds,
            file_ending=_ending(inputs, case, volume),
            spacing_known=_knows_spacing(inputs, case, volume, is_nominal),
            combine=combine,
            paths=() if case is None else tuple(map(str, case.image_paths)),
            hashes=() if case is None else input_hashes(case),
        )
        channels = _given_channels(image, self.model.plans.channel_names) if case is None else case.channels
        named = RawCase(case_id, (), channels=channels)
        prepared, properties = inputs.prepare(inputs.plan_for(volume, named), volume, named)
        for_masks = inputs.prepare_for_masks(volume, named)
        found = self.predict_preprocessed(prepared, properties, num_samples=num_samples, seed=seed, for_masks=for_masks)
        return Prediction(found, properties, self.labels, origin, uncertainty_parts)

    def made_of(
        self, num_samples: int, seed: int, combine: Combination, source: str | None = None
    ) -> dict[str, object]:
        """Everything that a mask depends on besides the image and the device."""
        sources = self.model.configuration.sources
        of_source = {} if sources is None else {"source": source}
        return of_source | {
            "plan_hash": plan_hash(self.model.configuration),
            "folds": list(self.folds),
            "weights": self.weights,
            "settings": {
                fold: {
                    name: value
                    for name, value in to_jsonable(settings.for_source(sources, source)).items()
                    if name not in OF_LESIONS
                }
                for fold, (_, settings) in zip(self.folds, self.networks, strict=True)
            },
            "num_samples": num_samples,
            "seed": seed,
            "mirror_axes": list(self.mirror_axes),
            "combine": combine,
            "decision": self.decision if num_samples else "half",
            **({} if self.masks_from is None else {"masks_from": self.masks_from.made_of_masks(seed)}),
            **({} if self.lesion_filter.keeps_all else {"lesion_filter": to_jsonable(self.lesion_filter)}),
        }

    def mask_of(
        self,
        image: np.ndarray,
        properties: CaseProperties,
        *,
        seed: int,
        memory_gb: float | Callable[[], float] | None,
        scratch: Scratch,
    ) -> np.ndarray:
        """The mask alone (Z, Y, X), on the image's grid, of an image on the plan's grid."""
        found = self.predict_preprocessed(image, properties, seed=seed, memory_gb=memory_gb, scratch=scratch)
        return final_mask(found, properties, self.labels, self.model.plans.spacing_known)

    def made_of_masks(self, seed: int) -> dict[str, object]:
        """As `made_of`, of masks that a cascade refines: by the model's own settings."""
        return self.made_of(self.num_samples(None), seed, "mean")

    def __repr__(self) -> str:
        plans, network = self.model.plans, self.model.configuration.network
        channels, classes = ", ".join(plans.channel_names), ", ".join(self.labels.names)
        return (
            f"Predictor({self.model.folder.name} of {plans.dataset_name}, folds {' '.join(self.folds)}, "
            f"channels: {channels}, classes: {classes}, patch {tuple(network.patch_size)}, {self.device})"
        )

    def _read(
        self,
        image: ImageLike,
        spacing_mm: Sequence[float] | None,
        direction: Sequence[float] | None,
        inputs: ModelInputs,
    ) -> tuple[RawCase | None, Volume]:
        """The files of an image, where it lies in files, and its voxels."""
        plans, configuration = self.model.plans, self.model.configuration
        channels = _given_channels(image, plans.channel_names)
        given = image if channels is None else [image[i] for i in channels]
        if not is_path(given):
            known = configuration.knows_spacing(inputs.source, plans.spacing_known)
            if spacing_mm is None and not known:
                spacing_mm = _nominal_spacing_mm(image)
            if spacing_mm is not None and direction is None:
                direction = inputs.preprocessing.direction
            return None, volume_of(given, spacing_mm, direction)
        if spacing_mm is not None or direction is not None:
            raise ValueError("spacing_mm and direction go with arrays; a file says them itself, leave them out")
        if channels is not None:
            case = case_of_channels([Path(path) for path in given], channels, plans.file_ending)
            return case, read_image(case.image_paths, len(channels))
        source = [Path(path) for path in image] if isinstance(image, (list, tuple)) else Path(image)
        cases = inputs.find_cases(source)
        if len(cases) != 1:
            names = ", ".join(case.case_id for case in cases)
            raise UsdError(f"{image} holds {len(cases)} cases ({names}); name one, or predict the folder.")
        if isinstance(source, list) and len(source) not in (1, len(cases[0].image_paths)):
            raise UsdError(
                f"image is a list of {len(source)} files, but case {cases[0].case_id} has {len(cases[0].image_paths)}; "
                f"name the file of each channel once."
            )
        return cases[0], read_image(cases[0].image_paths, inputs.num_channels(cases[0]))

    def require_possible(self, combine: Combination, uncertainty_parts: bool, num_samples: int) -> None:
        """Refuse what cannot be had from this many samples and these folds.

        Raises:
            ValueError, UsdError: see `require_combinable` and `require_splittable`; a decision by samples that is asked
                for where none are drawn.
        """
        require_combinable(combine, num_samples)
        if self.decision == "dice" and self._is_decision_asked_for and num_samples == 0:
            raise UsdError(
                "the decision is to be 'dice', which goes by samples, but 0 are drawn; ask for some (--samples N, "
                "num_samples=N) from a model that was trained in both phases, or decide by 'half'."
            )
        if uncertainty_parts:
            require_splittable(len(self.folds), num_samples)

    def predict_preprocessed(
        self,
        image: np.ndarray,
        properties: CaseProperties,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        memory_gb: float | Callable[[], float] | None = None,
        scratch: Scratch | None = None,
        for_masks: tuple[np.ndarray, CaseProperties] | None = None,
    ) -> EnsemblePrediction:
        """Predict an image (C, Z, Y, X) on the plan's grid by all folds; `properties.source` names its source.

        Args:
            memory_gb: that may be taken on a CPU besides the arrays of `scratch`, or a function that says so, which a
                cascade asks again after the other model; None takes a part of what is free.
            scratch: where arrays of the volume's size live; None keeps them in memory.
            for_masks: to a cascade, and to no other model, the image as `ModelInputs.prepare_for_masks` gives it.
        """
        count, scratch = self.num_samples(num_samples), scratch or Scratch()
        if self.masks_from is not None:
            if for_masks is None:
                raise ValueError("for_masks is None; a cascade needs the image prepared for the other model, too")
            mask = self.masks_from.mask_of(*for_masks, seed=seed, memory_gb=memory_gb, scratch=scratch)
            image = with_mask(image, mask_on_grid(mask, properties), self.labels, scratch)
        limits = find_limits(self.device, memory_gb() if callable(memory_gb) else memory_gb)
        patch_size, several = self.model.configuration.network.patch_size, len(self.networks) > 1
        sources = self.model.configuration.sources
        table_row = 0 if sources is None else sources.index(properties.source)
        total: Tensor | None = None
        members: list[CasePrediction] = []
        places: list[tuple[int, int, int]] = []  # (sample, member, index in the member)
        for index, (network, settings) in enumerate(self.networks):
            ids = range(index, count, len(self.networks))
            tiles = TiledCase(torch.as_tensor(image), network, patch_size, limits, self.mirror_axes, scratch, table_row)
            member = sample_case(
                tiles,
                settings.for_source(sources, properties.source),
                case_id=properties.case_id,
                seed=seed,
                sample_ids=ids,
                spacing_mm=self.model.configuration.field_spacing_mm(properties.spacing_mm),
            )
            places += [(sample, index, i) for i, sample in enumerate(list(ids)[: member.num_samples])]
            if several:
                total = torch.from_numpy(scratch.zeros(member.p_det.shape)) if total is None else total
                member = _added(member, total, scratch)
            members.append(member)
        if total is not None:
            for row in scratch.rows(total.shape[1]):
                total[:, row] /= len(members)
        ordered = tuple((member, i) for _, member, i in sorted(places))
        result = EnsemblePrediction(
            tuple(members), ordered, _sum_facts(members), total, lesion_filter=self.lesion_filter, scratch=scratch
        )
        if not several:  # of the mean of several, no fold's calibration holds
            result = dataclasses.replace(result, case_calibration=self.networks[0][1].case_calibration)
        if self.decision == "half":
            return result
        return dataclasses.replace(result, threshold=result.best_threshold(self.labels))


def _given_channels(image: ImageLike, names: Sequence[str]) -> tuple[int, ...] | None:
    """Numbers of the channels in a list that lacks some of these; None of any other image."""
    if not isinstance(image, (list, tuple)) or all(part is not None for part in image):
        return None
    if len(image) != len(names) or all(part is None for part in image):
        raise ValueError(
            f"image is a list of {counted(len(image), 'value')}, {sum(part is None for part in image)} of them None; a "
            f"list with None has one value for each of the channels {', '.join(names)}, and at least one image"
        )
    return tuple(i for i, part in enumerate(image) if part is not None)


def _ending(inputs: ModelInputs, case: RawCase | None, volume: Volume) -> str:
    if case is not None:
        return inputs.file_ending(case.image_paths)
    if inputs.model.configuration.sources is None:
        return inputs.model.plans.file_ending
    return ".png" if volume.geometry.is_2d else ".nii.gz"  # an image in memory has no ending of its own


def _nominal_spacing_mm(image: ImageLike) -> tuple[float, ...] | None:
    """What stands for the spacing of arrays that come without one; None of images that know theirs."""
    parts = [part for part in image if part is not None] if isinstance(image, (list, tuple)) else [image]
    if not parts or not all(isinstance(part, np.ndarray) for part in parts):
        return None
    return (1.0,) * (parts[0].ndim - (parts[0] is image))  # in a list arrays have no axis of channels


def _knows_spacing(inputs: ModelInputs, case: RawCase | None, volume: Volume, is_nominal: bool) -> bool:
    if case is None and inputs.source is None and inputs.model.configuration.sources is not None:
        return not is_nominal and not volume.geometry.is_2d
    return inputs.knows_spacing(() if case is None else case.image_paths)


def _added(member: CasePrediction, total: Tensor, scratch: Scratch) -> CasePrediction:
    """Add a fold's probabilities to those of others; from here on its p_det, in 16 bits, only backs its samples."""
    half = torch.from_numpy(scratch.empty(member.p_det.shape, np.float16))
    for row in range(total.shape[1]):
        part = member.rows(row, row + 1)
        total[:, row] += part.probabilities()[:, 0]
        half[:, row] = part.p_det[:, 0]
        scratch.release()
    return dataclasses.replace(member, p_det=half)


def require_finite(array: np.ndarray, names: Sequence[str]) -> None:
    """Raise a UsdError where an image (C, Z, Y, X) holds NaN or infinite values.

    `names` says which image it is: one for each channel, or one for all.
    """
    for channel, values in enumerate(array):
        # The sum of finite floats is finite here far before it overflows, and costs no copy of the volume.
        if not np.isfinite(values.sum(dtype=np.float64)):
            count = int(values.size - np.isfinite(values).sum())
            raise UsdError(
                f"{names[channel if len(names) == len(array) else 0]} holds {counted(count, 'value')} of NaN or "
                f"infinity; replace them, or export the image again."
            )


def _sum_facts(members: Sequence[CasePrediction]) -> SamplingFacts:
    facts = [member.facts for member in members]
    return SamplingFacts(
        facts[0].num_tiles,
        max(f.num_active_tiles for f in facts),
        sum(f.num_recomputed for f in facts),
        sum(f.seconds_segmenter for f in facts),
        sum(f.seconds_samples for f in facts),
    )
