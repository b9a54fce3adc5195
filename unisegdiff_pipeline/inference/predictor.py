"""Prediction of arrays with a trained model, one or several folds.

Folds are averaged in probability. The samples asked for are shared out over the folds, sample i to fold i modulo
their number, so that five folds cost five segmenter passes but no more denoiser calls than one; a fold that gets no
sample stands for its p_det.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry, Volume
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.label_fusion import Combination, require_combinable
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.model_folder import (
    ModelFolder,
    choose_folds,
    load_fold,
    open_model_folder,
)
from unisegdiff_pipeline.inference.restoring import restore_masks, restore_probabilities
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.inference.uncertainty_parts import require_splittable
from unisegdiff_pipeline.inference.volume_sampler import CasePrediction, SamplingFacts, can_sample, predict_case
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_image
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map


@dataclass(frozen=True)
class Prediction:
    """Prediction of an array, on the array's own grid; the Z axis is missing where the image had none.

    Attributes:
        mask: label map (Z, Y, X).
        probabilities: (K, Z, Y, X), half precision; channels as in `LabelScheme`.
        samples: label map of each drawn mask (N, Z, Y, X).
        uncertainty: normalised entropy (Z, Y, X), 0 to 1.
        between_folds, within_samples, single_samples: where uncertainty comes from, (Z, Y, X), as in
            `UncertaintyParts`; None where it was not asked for or cannot be told.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    samples: np.ndarray
    uncertainty: np.ndarray
    between_folds: np.ndarray | None = None
    within_samples: np.ndarray | None = None
    single_samples: np.ndarray | None = None


class Predictor:
    """A trained model, loaded once.

    Args:
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION.
        folds: None takes all finished ones.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        mirror: average the segmenter over flips along the plan's `mirror_axes`, as nnU-Net does along all axes; costs
            up to 4 (2D) or 8 (3D) times its time.
        decision: how probabilities become the mask, "half" or "dice"; None takes what most folds chose.
    """

    def __init__(
        self,
        model_folder: Path | str,
        folds: Sequence[str | int] | str | int | None = None,
        device: str = "auto",
        mirror: bool = False,
        decision: Decision | None = None,
    ) -> None:
        self.model: ModelFolder = open_model_folder(Path(model_folder))
        self.folds = choose_folds(self.model, folds)
        self.device = resolve_device(device)
        self.mirror_axes = self.model.configuration.patch_mirror_axes if mirror else ()
        self.networks: list[tuple[StagedModel, InferenceSettings]] = [
            load_fold(self.model, fold, self.device) for fold in self.folds
        ]
        by_dice = sum(settings.decision == "dice" for _, settings in self.networks)
        self.decision: Decision = decision or ("dice" if 2 * by_dice > len(self.networks) else "half")

    @property
    def labels(self) -> LabelScheme:
        """What channels and label values mean."""
        return self.model.plans.labels

    def num_samples(self, wanted: int | None) -> int:
        """Samples that will be drawn a case: those asked for, else the settings'; 0 where no fold has a denoiser."""
        if not any(can_sample(network, settings) for network, settings in self.networks):
            return 0
        return self.networks[0][1].num_samples if wanted is None else wanted

    def predict(
        self,
        image: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        case_id: str = "array",
        combine: Combination = "mean",
        uncertainty_parts: bool = False,
        direction: Sequence[float] | None = None,
    ) -> Prediction:
        """Predict an array.

        Args:
            image: (C, Z, Y, X), or (C, Y, X) for a 2D image, as it was acquired: not normalised, not resampled.
            spacing_mm: distance of voxels (Z, Y, X), or (Y, X) for a 2D image.
            num_samples: masks to draw; None takes the model's number.
            seed, case_id: name the noise; equal names give equal samples.
            combine: what the mask is made of: the mean probability, or the drawn masks; see `combining`.
            uncertainty_parts: also say where uncertainty comes from; see `uncertainty_parts`.
            direction: of the axes x, y, z, as in `Geometry`; without it the array must lie as the training images do.

        Raises:
            UsdError: wrong number of channels, NaN or infinite values; masks to combine or uncertainty to split where
                nothing is drawn.
        """
        self.require_possible(combine, uncertainty_parts, self.num_samples(num_samples))
        preprocessing = self.model.configuration.preprocessing
        direction = preprocessing.direction if direction is None else direction
        volume = _volume_of(image, spacing_mm, IDENTITY_DIRECTION if direction is None else direction)
        require_finite(volume.array, case_id)
        prepared, properties = preprocess_image(volume, preprocessing, case_id)
        found = self.predict_preprocessed(prepared, properties, num_samples=num_samples, seed=seed)
        mask, drawn = restore_masks(found, properties, self.labels, combine)
        samples = list(drawn)
        coding = self.labels.coding
        arrays = {
            "mask": mask,
            "samples": np.stack(samples) if samples else np.empty((0, *mask.shape), mask.dtype),
            "uncertainty": restore_map(found.uncertainty(coding), properties)[0],
            "probabilities": restore_probabilities(found.probabilities, properties, self.labels),
        }
        if uncertainty_parts:
            arrays |= {name: restore_map(part, properties) for name, part in found.uncertainty_parts(coding).items()}
        if image.ndim == 3:
            arrays = {name: array[..., 0, :, :] for name, array in arrays.items()}
        return Prediction(**arrays)

    def require_possible(self, combine: Combination, uncertainty_parts: bool, num_samples: int) -> None:
        """Refuse what cannot be had from this many samples and these folds.

        Raises:
            ValueError, UsdError: see `require_combinable` and `require_splittable`.
        """
        require_combinable(combine, num_samples)
        if uncertainty_parts:
            require_splittable(len(self.folds), num_samples)

    def predict_preprocessed(
        self,
        image: np.ndarray,
        properties: CaseProperties,
        *,
        num_samples: int | None = None,
        seed: int = 0,
        memory_gb: float | None = None,
        scratch: Scratch | None = None,
    ) -> EnsemblePrediction:
        """Predict an image (C, Z, Y, X) on the plan's grid by all folds.

        Args:
            memory_gb: that may be taken on a CPU besides the arrays of `scratch`; None takes a part of what is free.
            scratch: where arrays of the volume's size live; None keeps them in memory.
        """
        count = self.num_samples(num_samples)
        limits, scratch = find_limits(self.device, memory_gb), scratch or Scratch()
        several = len(self.networks) > 1
        total: Tensor | None = None
        members: list[CasePrediction] = []
        places: list[tuple[int, int, int]] = []  # (sample, member, index in the member)
        for index, (network, settings) in enumerate(self.networks):
            ids = range(index, count, len(self.networks))
            member = predict_case(
                image,
                network,
                settings,
                patch_size=self.model.configuration.network.patch_size,
                case_id=properties.case_id,
                seed=seed,
                sample_ids=ids,
                spacing_mm=properties.spacing_mm,
                limits=limits,
                mirror_axes=self.mirror_axes,
                scratch=scratch,
            )
            places += [(sample, index, i) for i, sample in enumerate(list(ids)[: member.num_samples])]
            if several:
                total = torch.from_numpy(scratch.zeros(member.p_det.shape)) if total is None else total
                member = _added(member, total, scratch)
            members.append(member)
        if total is not None:
            for row in range(total.shape[1]):
                total[:, row] /= len(members)
        ordered = tuple((member, i) for _, member, i in sorted(places))
        found = EnsemblePrediction(tuple(members), ordered, _sum_facts(members), total, scratch=scratch)
        if self.decision == "half":
            return found
        return dataclasses.replace(found, threshold=found.best_threshold(self.labels))


def _added(member: CasePrediction, total: Tensor, scratch: Scratch) -> CasePrediction:
    """Add a fold's probabilities to those of others; from here on its p_det, in 16 bits, only backs its samples."""
    half = torch.from_numpy(scratch.empty(member.p_det.shape, np.float16))
    for row in range(total.shape[1]):
        part = member.rows(row, row + 1)
        total[:, row] += part.probabilities()[:, 0]
        half[:, row] = part.p_det[:, 0]
        scratch.release()
    return dataclasses.replace(member, p_det=half)


def _volume_of(image: np.ndarray, spacing_mm: Sequence[float], direction: Sequence[float]) -> Volume:
    if image.ndim not in (3, 4):
        raise ValueError(f"image has shape {image.shape}; expected (C, Z, Y, X), or (C, Y, X) for a 2D image")
    if len(spacing_mm) != image.ndim - 1 and not (image.ndim == 3 and len(spacing_mm) == 3):
        raise ValueError(f"spacing_mm {tuple(spacing_mm)} has {len(spacing_mm)} values for an image {image.shape}")
    z, y, x = (1.0, *spacing_mm) if len(spacing_mm) == 2 else spacing_mm
    array = image[:, None] if image.ndim == 3 else image
    spacing, cosines = (float(z), float(y), float(x)), np.asarray(direction, float).ravel()
    if cosines.size != 9 or not np.isfinite(cosines).all():
        raise ValueError(f"direction is {direction}; expected are the nine cosines of the axes x, y, z, row major")
    geometry = Geometry(spacing, direction=tuple(cosines.tolist()), is_2d=image.ndim == 3)
    return Volume(array.astype(np.float32), geometry)


def require_finite(array: np.ndarray, name: str) -> None:
    """Raise a UsdError where an image holds NaN or infinite values; `name` says which image."""
    # The sum of finite floats is finite here far before it overflows, and costs no copy of the volume.
    if not np.isfinite(array.sum(dtype=np.float64)):
        count = int(array.size - np.isfinite(array).sum())
        raise UsdError(
            f"{name} holds {count} voxels that are NaN or infinite; replace them, or export the image again."
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
