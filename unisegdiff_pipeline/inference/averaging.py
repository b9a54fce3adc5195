"""The mean of what several predictions say of a case, on the grid of its image, with the samples of all of them.

It takes the form of a prediction on the plan's grid, where that grid is the image's own, so that decision, uncertainty,
tables and files are those of every other prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.boxes import CroppedLabels, box_slices, join_boxes
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry, Shape, Volume, geometry_differences
from unisegdiff_pipeline.core.labels import LabelScheme, classes_in_words
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.reading import read_masks
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, PackedMasks, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter
from unisegdiff_pipeline.inference.prediction_folder import PredictionFolder
from unisegdiff_pipeline.inference.settings import Decision
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

NOTHING_COMPUTED = SamplingFacts(0, 0, 0, 0.0, 0.0)


def require_same_classes(members: Sequence[PredictionFolder]) -> None:
    """Raise a UsdError where members differ in their classes, naming the folder."""
    first = members[0]
    for member in members[1:]:
        a, b = classes_in_words(first.labels), classes_in_words(member.labels)
        if a != b:
            raise UsdError(
                f"{member.folder} has the classes {b}, {first.folder} has {a}; only predictions of the same classes "
                f"can be averaged. Where only the names differ, --dataset-json FILE says what they mean in all."
            )


def require_same_grids(members: Sequence[PredictionFolder], case_ids: Sequence[str]) -> None:
    """Raise a UsdError that names every case that lies on another grid in one member than in the first, and both."""
    first, problems = members[0], []
    for case_id in case_ids:
        shape, geometry = first.grid(case_id)
        for member in members[1:]:
            other_shape, other = member.grid(case_id)
            if other_shape != shape:
                shapes = f"shape {other_shape} (Z, Y, X) in {member.folder}, {shape} in {first.folder}"
                problems.append(f"{case_id}: {shapes}")
            elif differences := geometry_differences(geometry, other, shape):
                problems.append(f"{case_id}: {'; '.join(differences)} (first {first.folder}, then {member.folder})")
    if problems:
        raise UsdError(
            f"members lie on different grids, so that their probabilities cannot be averaged: "
            f"{listed(problems, separator='; ')}. Predict the same images with all of them."
        )


def have_samples(members: Sequence[PredictionFolder], case_ids: Sequence[str]) -> bool:
    """Whether all members have samples of all cases, which are pooled then."""
    return all(member.samples.get(case_id) for member in members for case_id in case_ids)


def average_case(
    members: Sequence[PredictionFolder],
    case_id: str,
    fractions: Sequence[float],
    decision: Decision,
    *,
    pooling: bool,
    lesion_filter: LesionFilter = NO_FILTER,
    scratch: Scratch | None = None,
) -> tuple[EnsemblePrediction, CaseProperties]:
    """What the members say together of a case that all of them hold on one grid.

    Args:
        members: of the same classes.
        case_id: name of the case.
        fractions: of the members in the mean; together 1.
        decision: "half", or "dice" by the samples.
        pooling: take the samples of all members, which must have some.
        lesion_filter: which lesions of the mask stay in it.
        scratch: where arrays of the volume's size live.

    Raises:
        UsdError: a file of the case cannot be read or does not fit.
    """
    scratch = scratch or Scratch()
    shape, geometry = members[0].grid(case_id)
    scheme = members[0].labels
    mean = _mean(members, case_id, fractions, (shape, geometry), scratch)
    paths = [path for member in members for path in member.samples[case_id]] if pooling else []
    samples = _samples(paths, scheme, mean, geometry)
    places = tuple((0, index) for index in range(samples.num_samples))
    found = EnsemblePrediction((samples,), places, NOTHING_COMPUTED, mean, lesion_filter=lesion_filter, scratch=scratch)
    if decision == "dice":
        found = replace(found, threshold=found.best_threshold(scheme))
    return found, _on_own_grid(case_id, shape, geometry)


def _mean(
    members: Sequence[PredictionFolder],
    case_id: str,
    fractions: Sequence[float],
    grid: tuple[Shape, Geometry],
    scratch: Scratch,
) -> Tensor:
    """Mean probabilities (K, Z, Y, X), one member in memory at a time."""
    scheme = members[0].labels
    mean = scratch.zeros((scheme.num_channels, *grid[0]))
    for member, fraction in zip(members, fractions, strict=True):
        probabilities = member.open(case_id, *grid)
        if scheme.coding == "softmax":
            mean[0] += fraction * probabilities.of_background()
        for index in range(len(scheme.names)):
            mean[index + scheme.foreground_offset] += fraction * probabilities.of_class(index)
            scratch.release()
    return torch.from_numpy(mean)


def _samples(paths: Sequence[Path], scheme: LabelScheme, mean: Tensor, geometry: Geometry) -> CasePrediction:
    """Sampled masks as a prediction that says nothing besides them: background wherever none of them has a lesion."""
    depth, height, width = mean.shape[1:]
    shape = (depth, height, width)
    grid = Volume(_nothing(scheme, shape)[:1].numpy(), geometry)
    masks = read_masks(paths, scheme, grid)
    box = join_boxes(mask.box for mask in masks)
    boxes: tuple[SampledBox, ...] = ()
    if box is not None:
        packed = PackedMasks(torch.stack([_packed(mask, box, scheme) for mask in masks]), box[-1][1] - box[-1][0])
        inner = tuple(high - low for low, high in box)
        z, y, x = box_slices(box)
        boxes = (SampledBox((z, y, x), torch.ones(inner, dtype=torch.bool), mean[:, z, y, x], packed),)
    return CasePrediction(_nothing(scheme, shape), boxes, len(masks), 0.0, NOTHING_COMPUTED)


def _packed(mask: CroppedLabels, box: tuple[tuple[int, int], ...], scheme: LabelScheme) -> Tensor:
    """Channels of a mask in a box, eight voxels a byte."""
    return torch.from_numpy(np.packbits(scheme.encode(mask.within(box)), axis=-1))


def _nothing(scheme: LabelScheme, shape: Shape) -> Tensor:
    """Background everywhere (K, Z, Y, X), in no memory."""
    channels = torch.zeros(scheme.num_channels)
    channels[: scheme.foreground_offset] = 1
    return channels[:, None, None, None].expand(-1, *shape)


def _on_own_grid(case_id: str, shape: Shape, geometry: Geometry) -> CaseProperties:
    """The way of a case that is on the grid of its image already."""
    z, y, x = shape
    return CaseProperties(
        case_id=case_id,
        group=None,
        geometry=geometry,
        shape_original=(z, y, x),
        axis_order=(0, 1, 2),
        crop_box=((0, z), (0, y), (0, x)),
        shape_cropped=(z, y, x),
        shape=(z, y, x),
        spacing_mm=geometry.spacing_mm,
    )
