"""Guarantees of a model from its validation cases, which neither training nor its choices have seen.

See `evaluation.conformal` for the methods, `inference.guarantees` for what a prediction makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.units import Units, size_of_voxel, units_of
from unisegdiff_pipeline.evaluation.conformal import (
    MaskVolumes,
    lesion_scores,
    lesion_threshold,
    mask_thresholds,
    mask_volumes,
    volume_margin,
)
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.guarantees import (
    KINDS,
    RATES,
    ClassGuarantees,
    GuaranteeKind,
    Guarantees,
    kind_in_words,
    size_root,
)
from unisegdiff_pipeline.inference.restoring import restore_samples
from unisegdiff_pipeline.planning.plans import SourcesPlan
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.restore import restore_map


@dataclass(frozen=True)
class ClassEvidence:
    """What a validation case says of one class.

    Attributes:
        lesions: score of each lesion of the reference.
        masks: its masks at all thresholds.
        sampled: root of the size of each sample, see `size_root`.
        reference: the same of the reference; None where ignored voxels leave its size unknown.
    """

    lesions: np.ndarray
    masks: MaskVolumes
    sampled: tuple[float, ...]
    reference: float | None


@dataclass(frozen=True)
class CaseEvidence:
    """What a validation case of a patient says of each class, by name; `source` is that of a unified data set."""

    patient: str
    units: Units
    classes: Mapping[str, ClassEvidence]
    source: str = ""


def case_evidence(
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    reference: np.ndarray,
    patient: str,
    *,
    spacing_known: bool,
    sources: SourcesPlan | None = None,
) -> CaseEvidence:
    """Compare the probabilities and samples of a case with its reference (Z, Y, X), on the grid of the image.

    Probabilities are taken in half precision, as predictions are when they are compared with a threshold. Of a unified
    data set a case says something of the classes that its source annotates.
    """
    annotated = scheme.names if sources is None else sources.annotated_classes(properties.source, scheme)
    geometry = properties.geometry
    units = units_of(geometry.is_2d, spacing_known)
    per_voxel = size_of_voxel(geometry.spacing_mm, units)
    ignored = scheme.ignored(reference)
    counts = [
        [int(np.count_nonzero(mask)) for _, mask in scheme.class_masks(sample)]
        for sample in restore_samples(found, properties, scheme)
    ]
    classes = {}
    for index, (name, truth) in enumerate(scheme.class_masks(reference)):
        if name not in annotated:
            continue
        channel = index + scheme.foreground_offset
        p = restore_map(found.probabilities[channel : channel + 1], properties)[0].astype(np.float16)
        p[ignored] = 0  # they count nowhere
        size = size_root(int(np.count_nonzero(truth)) * per_voxel, units)
        classes[name] = ClassEvidence(
            lesion_scores(p, truth),
            mask_volumes(p, truth, per_voxel),
            tuple(size_root(of_sample[index] * per_voxel, units) for of_sample in counts),
            None if ignored.any() else size,
        )
    return CaseEvidence(patient, units, classes, "" if sources is None else properties.source or "")


def calibrate(
    cases: Sequence[CaseEvidence], weights: Sequence[str], calibrated_on: str, source: str | None = None
) -> Guarantees:
    """The guarantees of a model at all rates that its validation patients allow, for each class by itself.

    Args:
        cases: one or more, with one class or more.
        weights: hashes of the weights of all networks that the guarantees are for.
        calibrated_on: the model and the cases, in words.
        source: that all cases are of, of a unified data set.
    """
    names = list(cases[0].classes)
    patients: dict[str, list[CaseEvidence]] = {}
    for case in cases:
        patients.setdefault(case.patient, []).append(case)
    units = {case.units.size for case in cases}
    classes = {
        name: _of_class({patient: [case.classes[name] for case in own] for patient, own in patients.items()}, units)
        for name in names
    }
    return Guarantees(
        num_patients=len(patients),
        num_samples=len(cases[0].classes[names[0]].sampled),
        weights=tuple(sorted(weights)),
        unit=cases[0].units.size,
        classes=classes,
        in_words=(
            f"Calibrated on {counted(len(patients), 'patient')}{'' if source is None else f' of the source {source}'}: "
            f"{calibrated_on}.",
            *_in_words(classes),
        ),
    )


def calibrate_for(
    sources: SourcesPlan | None, cases: Sequence[CaseEvidence], weights: Sequence[str], calibrated_on: str
) -> tuple[Guarantees | None, dict[str, Guarantees]]:
    """As `calibrate`; in a unified data set for each source by its own cases instead: new images are of one source.

    A source that annotates no class has none.

    Returns:
        `guarantees` and `source_guarantees`, as inference.json and best.json hold them: one of both.
    """
    if sources is None:
        return calibrate(cases, weights, calibrated_on), {}
    of_source: dict[str, list[CaseEvidence]] = {}
    for case in cases:
        if case.classes:
            of_source.setdefault(case.source, []).append(case)
    return None, {source: calibrate(own, weights, calibrated_on, source) for source, own in of_source.items()}


def _of_class(patients: Mapping[str, Sequence[ClassEvidence]], units: Collection[str]) -> ClassGuarantees:
    scores = {patient: np.concatenate([case.lesions for case in own]) for patient, own in patients.items()}
    makers: dict[GuaranteeKind, Callable[[float], Any]] = {
        "lesions": lambda rate: lesion_threshold(scores, round(1 - rate, 6)),
        "masks": lambda rate: mask_thresholds(_masks(patients, units), round(1 - rate, 6)),
        "volume": lambda rate: volume_margin(_sizes(patients, units), rate),
    }
    made: dict[GuaranteeKind, list[Any]] = {kind: [] for kind in KINDS}
    refused = {}
    for kind, make in makers.items():
        for rate in RATES:
            try:
                made[kind].append(make(rate))
            except UsdError as error:
                refused[f"{kind}={rate:g}"] = str(error)
    return ClassGuarantees(**{kind: tuple(found) for kind, found in made.items()}, refused=refused)


def _masks(patients: Mapping[str, Sequence[ClassEvidence]], units: Collection[str]) -> dict[str, list[MaskVolumes]]:
    """Masks of all images, where their sizes can be compared."""
    _require_known_sizes(patients, units)
    return {patient: [case.masks for case in own] for patient, own in patients.items()}


def _require_known_sizes(patients: Mapping[str, Sequence[ClassEvidence]], units: Collection[str]) -> None:
    if len(units) > 1:
        raise UsdError(f"validation cases are measured in {' and '.join(sorted(units))}, which do not add up.")
    if any(case.reference is None for own in patients.values() for case in own):
        raise UsdError("references hold voxels of the ignore label, so that their volumes are not known.")


def _sizes(
    patients: Mapping[str, Sequence[ClassEvidence]], units: Collection[str]
) -> dict[str, list[tuple[tuple[float, ...], float]]]:
    """Sizes of samples and reference of all images, where they can be compared."""
    _require_known_sizes(patients, units)
    numbers = {len(case.sampled) for own in patients.values() for case in own}
    if numbers == {0}:
        raise UsdError("the model samples no masks, so that there are no volumes to make an interval of.")
    if len(numbers) > 1:
        raise UsdError(
            f"validation cases have {', '.join(map(str, sorted(numbers)))} samples; give all folds one num_samples in "
            f"inference.json, and validate again (usd_train --val)."
        )
    result: dict[str, list[tuple[tuple[float, ...], float]]] = {}
    for patient, own in patients.items():
        for case in own:
            assert case.reference is not None
            result.setdefault(patient, []).append((case.sampled, case.reference))
    return result


def _in_words(classes: Mapping[str, ClassGuarantees]) -> list[str]:
    """What is promised at the highest rate of each kind, and why no higher one is."""
    lines = []
    for name, own in classes.items():
        for kind in KINDS:
            rates = own.rates(kind)
            if rates:
                lines.append(f"{name}, up to {kind}={rates[-1]:g}: {kind_in_words(kind, rates[-1])}.")
            else:
                lines.append(f"{name}, {own.why_none(kind)}")
    return lines
