"""The lesions that a model finds in held-out cases, as the table that a lesion filter is chosen from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import Units, size_of_voxel, units_of
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.evaluation.lesion_matching import find_overlaps
from unisegdiff_pipeline.inference.active_region import foreground
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.cases import PresenceCalibration
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.lesion_filter import can_filter
from unisegdiff_pipeline.inference.lesions import LesionCounter, PredictedLesion
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import SourcesPlan
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.case_probability import fit_case_calibration
from unisegdiff_pipeline.selection.hold_out import HoldOut, open_channels, sample_tiles, tiled
from unisegdiff_pipeline.selection.lesion_filter import FilterChoice, FoundLesion, LesionCase, choose_filter


@dataclass(frozen=True)
class HeldOutCase:
    """What a lesion filter and the calibration of the case probability are chosen from.

    Attributes:
        group: its patient.
        classes: one entry for each class.
        highest: highest foreground probability of the classes, in the voxels, that the reference says anything of.
        holds_lesion: whether the reference holds any foreground there.
        units: of the sizes.
    """

    group: str
    classes: tuple[LesionCase, ...]
    highest: float
    holds_lesion: bool
    units: Units


@dataclass(frozen=True)
class LesionChoice:
    """What was chosen of lesions: the filter with its operating points, and the calibration of the case probability."""

    choice: FilterChoice
    case_calibration: PresenceCalibration | None
    units: Units

    def settings(self, settings: InferenceSettings) -> InferenceSettings:
        """The settings with what was chosen."""
        return replace(
            settings,
            lesion_filter=self.choice.lesion_filter,
            filter_in_words=tuple(self.choice.describe(self.units)),
            operating_points=self.choice.points,
            case_calibration=self.case_calibration,
        )


def find_in_held_out(
    held_out: HoldOut, model: StagedModel, settings: InferenceSettings, cases: Mapping[str, LogitCalibration]
) -> Iterator[HeldOutCase]:
    """What the model finds in held-out cases, one after the other; a caller that runs out of time keeps those it has.

    None where lesions of one class cannot be taken out without voxels of another (`can_filter`).

    Args:
        held_out, model: as trained.
        settings: all else that was chosen.
        cases: the calibration that each case is predicted with.
    """
    if not can_filter(held_out.labels):
        return
    for case_id, calibration in cases.items():
        held_out.leave_if_asked()
        stored = held_out.data.open(case_id)
        tried = settings.calibrated(calibration)
        prediction = sample_tiles(held_out, tiled(held_out, model, stored), tried, stored)
        yield held_out_case(held_out, settings, stored, prediction)


def choose_lesions(
    found: Sequence[HeldOutCase], classes: tuple[str, ...], trained: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> LesionChoice | None:
    """Choose the lesion filter and calibrate the case probability; None without any case.

    Args:
        found: what the model finds in held-out cases.
        classes: names of all classes.
        trained: as of `choose_filter`.
    """
    if not found:
        return None
    units = {case.units for case in found}
    lesions = [lesions for case in found for lesions in case.classes]
    calibration = fit_case_calibration(
        [case.highest for case in found], [case.holds_lesion for case in found], [case.group for case in found]
    )
    one = next(iter(units))
    choice = choose_filter(lesions, classes, one.size if len(units) == 1 else None, trained)
    return LesionChoice(choice, calibration, one)


def held_out_case(
    held_out: HoldOut, settings: InferenceSettings, stored: StoredCase, prediction: CasePrediction
) -> HeldOutCase:
    """Compare the lesions of a prediction, with its samples, with the reference, on the plan's grid."""
    scheme = held_out.labels
    reference = stored.labels[0:1][0]
    samples = list(prediction.masks(scheme))
    p = prediction.probabilities()
    labels = scheme.decode(decided_probabilities(p, samples, scheme, settings.decision).numpy())
    plain = scheme.decode(prediction.p_det.numpy())
    ignored = scheme.ignored(reference)
    labels[ignored], plain[ignored] = 0, 0
    counter = LesionCounter(labels, scheme)
    for sample in samples:
        counter.add_sample(sample)
    for index in counter.classes_present:
        counter.add_probability(index, p[index + scheme.foreground_offset].numpy())
    geometry = stored.properties.geometry
    is_2d = geometry.is_2d
    known = held_out.configuration.knows_spacing(stored.properties.source, held_out.spacing_known)
    units = units_of(is_2d, known)
    spacing_mm = stored.properties.spacing_mm
    rows = counter.rows(stored.case_id, spacing_mm, is_2d=is_2d, spacing_known=known)
    # Sizes are those of the image, whose grid is finer or coarser than the plan's.
    per_voxel = size_of_voxel(geometry.spacing_mm, units) * math.prod(spacing_mm) / geometry.voxel_volume_mm3
    classes = compare_lesions(scheme, (reference, labels, plain), rows, per_voxel, (stored.group, stored.case_id))
    classes = of_source(classes, held_out.configuration.sources, stored.properties.source, scheme)
    holds = any(case.num_reference for case in classes)
    p[open_channels(held_out, stored)] = 0.0  # else what nobody annotated counts as false alarm
    highest = foreground(p, scheme.coding).numpy().max(initial=0.0, where=~ignored)
    return HeldOutCase(stored.group, classes, float(highest), holds, units)


def of_source(
    cases: tuple[LesionCase, ...], sources: SourcesPlan | None, source: str | None, scheme: LabelScheme
) -> tuple[LesionCase, ...]:
    """The entries of a case of a unified data set: of the classes that its source annotates, and with its name."""
    if sources is None or source is None:
        return cases
    annotated = sources.annotated_classes(source, scheme)
    return tuple(replace(case, source=source) for case in cases if case.class_name in annotated)


def compare_lesions(
    scheme: LabelScheme,
    masks: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: Sequence[PredictedLesion],
    per_voxel: float,
    names: tuple[str, str],
) -> tuple[LesionCase, ...]:
    """The lesions of a case's mask beside those of its reference, an entry for each class.

    Args:
        scheme: what label values mean.
        masks: label maps (Z, Y, X): the reference, the mask, and the one whose false alarms no filter may exceed; both
            background where the reference is ignored.
        rows: the lesions of the mask, as its table has them before any filter.
        per_voxel: size of a voxel, in the unit of the filter.
        names: of the group (patient) and of the case.
    """
    reference, labels, plain = masks
    classes = []
    of_classes = zip(scheme.class_masks(reference), scheme.class_masks(labels), scheme.class_masks(plain), strict=True)
    for (name, in_reference), (_, in_mask), (_, in_plain) in of_classes:
        true, drawn = find_components(in_reference), find_components(in_mask)
        pairs = find_overlaps(in_reference & in_mask, true, drawn)
        common = np.bincount(pairs.predicted - 1, weights=pairs.voxels, minlength=len(drawn))
        own = [row for row in rows if row.class_name == name]
        found = tuple(
            FoundLesion(
                size=row.voxels * per_voxel,
                confidence=np.nan if row.confidence is None else row.confidence,
                probability=np.nan if row.mean_probability is None else row.mean_probability,
                voxels=row.voxels,
                common=int(common[number]),
                matched=tuple(pairs.reference[pairs.predicted == number + 1].tolist()),
            )
            for number, row in enumerate(own)
        )
        alarms = find_components(in_plain)
        false = len(alarms) - len(np.unique(find_overlaps(in_plain & in_reference, true, alarms).predicted))
        size = int(np.count_nonzero(in_reference))
        classes.append(LesionCase(names[0], name, found, size, len(true), false, names[1]))
    return tuple(classes)
