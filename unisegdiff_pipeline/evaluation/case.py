"""All scores of one case: each class against the reference, the raters, the probabilities and the samples.

Each file is read once. Samples and raters are kept as the boxes around their foreground and looked at one after the
other; distances and lesions are computed within the box of the class, so that time and memory go by the size of the
lesions rather than of the image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unisegdiff_pipeline.core.boxes import (
    Box,
    CroppedLabels,
    box_slices,
    grow_box,
    join_boxes,
    nonzero_box,
    whole_box,
)
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.units import measured_grid, voxel_size
from unisegdiff_pipeline.evaluation.boundary import BoundaryScore, boundary_score, rater_tolerance_mm
from unisegdiff_pipeline.evaluation.calibration import CaseCalibration, case_calibration, evaluation_region
from unisegdiff_pipeline.evaluation.diversity import DiversityScore, mean_agreement, score_samples
from unisegdiff_pipeline.evaluation.inputs import CaseInputs
from unisegdiff_pipeline.evaluation.lesions import LesionScore, ScoredLesion, score_lesions
from unisegdiff_pipeline.evaluation.metrics import ClassScore, score_masks
from unisegdiff_pipeline.evaluation.options import CaseSettings
from unisegdiff_pipeline.evaluation.profiles.profile import ProfileCase, ProfileScore
from unisegdiff_pipeline.evaluation.profiles.registry import find_profile
from unisegdiff_pipeline.evaluation.reading import (
    Probabilities,
    crop_geometry,
    other_values,
    read_mask,
    read_masks,
    read_reference,
    read_uncertainty,
    require_axes_of_mask,
)
from unisegdiff_pipeline.evaluation.summary import CaseScores
from unisegdiff_pipeline.evaluation.unified import SourceLabels


@dataclass(frozen=True, eq=False)
class ClassResult:
    """Scores of one class (or region) in one case.

    Attributes:
        overlap, boundary, lesion_score: against the reference.
        surface_dice_rater: surface Dice at the distance between raters; NaN without raters.
        lesions: all lesions of both sides.
        calibration: None without probabilities.
        diversity: None without samples and with a single rater only.
        confidence: of the case, before its reference is known; see `options.CASE_CONFIDENCE`. NaN where unknown.
        sample_volumes_ml: volume of each sample, of 2D images its area, as `overlap` has them.
        profiles: scores by the rules of challenges, by name of the profile.
    """

    overlap: ClassScore
    boundary: BoundaryScore
    surface_dice_rater: float
    lesion_score: LesionScore
    lesions: tuple[ScoredLesion, ...]
    calibration: CaseCalibration | None
    diversity: DiversityScore | None
    confidence: float
    sample_volumes_ml: tuple[float, ...]
    profiles: Mapping[str, ProfileScore] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CaseResult:
    """The scored classes of one case, in the order of the label scheme.

    Attributes:
        case_id: name of the case.
        group: the case itself where none is known.
        classes: all of them, but for those that the source of the case does not annotate.
        source: of a case of a unified data set.
        other_values: label values of reference and prediction that are no class, where such are allowed.
    """

    case_id: str
    group: str
    classes: tuple[ClassResult, ...]
    source: str | None = None
    other_values: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def of_class(self, name: str) -> ClassResult | None:
        """Scores of the class of this name; None where it is not scored."""
        return next((result for result in self.classes if result.overlap.class_name == name), None)

    @property
    def scores(self) -> tuple[ClassScore, ...]:
        """Overlap of each class."""
        return tuple(result.overlap for result in self.classes)

    @property
    def overlap(self) -> CaseScores:
        """Overlap of all classes, in the form that `summary.summarise` takes."""
        return CaseScores(self.case_id, self.scores)


def class_names(cases: Iterable[CaseResult]) -> list[str]:
    """Classes that are scored in any of the cases."""
    return list(dict.fromkeys(result.overlap.class_name for case in cases for result in case.classes))


def groups_of_class(cases: Iterable[CaseResult], name: str) -> list[str]:
    """Group of each case where a class is scored."""
    return [case.group for case in cases if case.of_class(name) is not None]


def of_class(cases: Iterable[CaseResult], name: str) -> list[ClassResult]:
    """Scores of one class in the cases where it is scored."""
    return [result for case in cases if (result := case.of_class(name)) is not None]


def score_case_fully(case: CaseInputs, settings: CaseSettings) -> CaseResult:
    """Read one case and compute everything that its files allow.

    Raises:
        UsdError: a file that is unreadable, on another grid than the reference, or holds unknown label values.
    """
    volumes, source = CaseVolumes.read(case, settings), case.source
    if source is not None:
        tolerances = settings.source_tolerances_mm.get(source.name, settings.rater_tolerances_mm)
        settings = dataclasses.replace(settings, spacing_known=source.spacing_known, rater_tolerances_mm=tolerances)
    return score_volumes(case.case_id, case.group, volumes, settings, source)


def score_volumes(
    case_id: str, group: str | None, volumes: CaseVolumes, settings: CaseSettings, source: SourceLabels | None = None
) -> CaseResult:
    """Compute everything that the arrays of a case allow; of the classes those that its source annotates."""
    names = settings.scheme.names
    scored = [index for index, name in enumerate(names) if source is None or name in source.annotated]
    results = tuple(_score_class(volumes, index, settings) for index in scored)
    result = CaseResult(case_id, group or case_id, results, None if source is None else source.name)
    if settings.check_values:
        return result
    reference, predicted = (other_values(mask, settings.scheme) for mask in (volumes.reference, volumes.predicted))
    return dataclasses.replace(result, other_values=(reference, predicted))


def rater_distances_mm(case: CaseInputs, settings: CaseSettings) -> tuple[float, ...]:
    """Distance between the raters of one case, per class (`boundary.rater_tolerance_mm`); NaN where undefined."""
    scheme = settings.scheme
    reference = read_reference(case, scheme, settings.check_values)
    valid = None if scheme.ignore_value is None else ~scheme.ignored(reference.array[0])
    raters = read_masks(case.raters, scheme, reference, settings.check_values, case.source)
    box = _bordered([rater.box for rater in raters], reference.array.shape[1:])
    spacing_mm = measured_grid(reference.geometry, settings.units).spacing_mm
    return tuple(
        rater_tolerance_mm([_mask(rater, scheme, index, box, valid) for rater in raters], spacing_mm)
        if case.source is None or name in case.source.annotated
        else math.nan
        for index, name in enumerate(scheme.names)
    )


@dataclass(frozen=True, eq=False)
class CaseVolumes:
    """Everything that belongs to a case, read and checked, all of one shape (Z, Y, X).

    Attributes:
        reference, predicted: label maps.
        geometry: of the grid that sizes and distances are measured on.
        valid: voxels that count; None = everywhere.
        samples, raters: further label maps.
        uncertainty: map from 0 to 1.
        probabilities: of the classes.
        is_nominal: it is a 2D image measured as a volume, because others are volumes.
        file_spacing_mm: of the file, where sizes and distances are measured in pixels because others have no spacing.
    """

    reference: np.ndarray
    predicted: np.ndarray
    geometry: Geometry
    valid: np.ndarray | None = None
    samples: Sequence[CroppedLabels] = ()
    raters: Sequence[CroppedLabels] = ()
    uncertainty: np.ndarray | None = None
    probabilities: Probabilities | None = None
    is_nominal: bool = False
    file_spacing_mm: tuple[float, float, float] | None = None

    @classmethod
    def read(cls, case: CaseInputs, settings: CaseSettings) -> CaseVolumes:
        """Read the files of a case."""
        scheme, check = settings.scheme, settings.check_values
        reference = read_reference(case, scheme, check)
        labels = reference.array[0]
        predicted = read_mask(case.prediction, scheme, reference, check).array[0]
        probabilities = None if case.probability is None else Probabilities(case.probability, scheme, reference)
        if probabilities is not None and case.has_foreign_arrays:
            foreground = np.logical_or.reduce([mask for _, mask in scheme.class_masks(predicted)])
            require_axes_of_mask(probabilities, case.prediction, foreground)
        return cls(
            reference=labels,
            predicted=predicted,
            geometry=measured_grid(reference.geometry, settings.units),
            valid=None if scheme.ignore_value is None else ~scheme.ignored(labels),
            samples=read_masks(case.samples, scheme, reference, check),
            raters=read_masks(case.raters, scheme, reference, check, case.source),
            uncertainty=None if case.uncertainty is None else read_uncertainty(case.uncertainty, reference),
            probabilities=probabilities,
            is_nominal=reference.geometry.is_2d and settings.units.size == "ml",
            file_spacing_mm=reference.geometry.spacing_mm,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reference.shape

    @property
    def whole(self) -> Box:
        return whole_box(self.shape)


def _score_class(volumes: CaseVolumes, index: int, settings: CaseSettings) -> ClassResult:
    scheme = settings.scheme
    reference = _valid(scheme.class_mask(index, volumes.reference), volumes.valid)
    predicted = _valid(scheme.class_mask(index, volumes.predicted), volumes.valid)
    voxel_ml = voxel_size(volumes.geometry)
    is_nominal = volumes.is_nominal or not settings.spacing_known
    overlap = score_masks(
        scheme.names[index], reference, predicted, volumes.valid, voxel_ml, volumes_nominal=is_nominal
    )
    box = _bordered([nonzero_box(reference, predicted)], volumes.shape)
    probability = None if volumes.probabilities is None else volumes.probabilities.of_class(index)
    boundary, surface_dice_rater = _boundary(reference, predicted, box, volumes, index, settings)
    case = _in_box(reference, predicted, probability, box, volumes, index, settings)
    lesion_score, lesions = score_lesions(
        case.reference,
        case.predicted,
        case.geometry,
        settings.rule,
        samples=case.samples or None,
        probability=case.probability,
    )
    diversity = _diversity(reference, volumes, index, scheme)
    region = None if probability is None else _region(reference, predicted, volumes, index, settings)
    return ClassResult(
        overlap=overlap,
        boundary=boundary,
        surface_dice_rater=surface_dice_rater,
        lesion_score=lesion_score,
        lesions=lesions,
        calibration=_calibration(probability, reference, region, volumes, index, scheme),
        diversity=diversity,
        confidence=_confidence(volumes, index, probability, diversity, settings),
        sample_volumes_ml=tuple(
            voxel_ml * int(np.count_nonzero(_mask(sample, scheme, index, sample.box, volumes.valid)))
            for sample in volumes.samples
        ),
        profiles={name: find_profile(name).score(case) for name in settings.profiles},
    )


def _boundary(
    reference: np.ndarray,
    predicted: np.ndarray,
    box: Box,
    volumes: CaseVolumes,
    index: int,
    settings: CaseSettings,
) -> tuple[BoundaryScore, float]:
    """The score at the tolerances of the user, and surface Dice at the distance between raters."""
    further = settings.rater_tolerances_mm[index : index + 1]
    further = tuple(value for value in further if not math.isnan(value))
    where = box_slices(box)
    score = boundary_score(
        reference[where], predicted[where], volumes.geometry.spacing_mm, (*settings.tolerances_mm, *further)
    )
    own = len(settings.tolerances_mm)
    rater = score.surface_dice[own] if further else math.nan
    return dataclasses.replace(score, surface_dice=score.surface_dice[:own]), rater


def _in_box(
    reference: np.ndarray,
    predicted: np.ndarray,
    probability: np.ndarray | None,
    box: Box,
    volumes: CaseVolumes,
    index: int,
    settings: CaseSettings,
) -> ProfileCase:
    """What lesions and the rules of challenges are scored on: the part of the image that holds the class."""
    where = box_slices(box)
    samples = volumes.samples if settings.lesion_confidence == "samples" else ()
    if settings.lesion_confidence != "probabilities":
        probability = None
    return ProfileCase(
        reference=reference[where],
        predicted=predicted[where],
        geometry=crop_geometry(volumes.geometry, box),
        samples=[_mask(sample, settings.scheme, index, box, volumes.valid) for sample in samples],
        probability=None if probability is None else probability[where],
        has_confidence=settings.lesion_confidence is not None,
        tolerance_mm=min(settings.tolerances_mm, default=1.0),
        min_lesion_ml=settings.min_lesion_ml,
    )


def _region(
    reference: np.ndarray, predicted: np.ndarray, volumes: CaseVolumes, index: int, settings: CaseSettings
) -> np.ndarray:
    if volumes.raters:
        reference = np.logical_or.reduce(list(_raters(reference, volumes, index, settings.scheme, volumes.whole)))
    spacing_mm = volumes.file_spacing_mm or volumes.geometry.spacing_mm
    return evaluation_region(reference, predicted, spacing_mm, settings.spacing_known)


def _calibration(
    probability: np.ndarray | None,
    reference: np.ndarray,
    region: np.ndarray | None,
    volumes: CaseVolumes,
    index: int,
    scheme: LabelScheme,
) -> CaseCalibration | None:
    if probability is None or region is None:
        return None
    raters = list(_raters(reference, volumes, index, scheme, volumes.whole))
    return case_calibration(probability, raters, region, volumes.valid)


def _diversity(reference: np.ndarray, volumes: CaseVolumes, index: int, scheme: LabelScheme) -> DiversityScore | None:
    if not volumes.samples and len(volumes.raters) < 2:
        return None
    # Overlaps need the box of the foreground only. Maps are correlated over the whole image, which is defined with
    # several raters alone: the variance of one is 0.
    box = volumes.whole
    if len(volumes.raters) < 2:
        boxes = [labels.box for labels in (*volumes.samples, *volumes.raters)]
        box = _bordered([*boxes, nonzero_box(reference)], volumes.shape)
    where = box_slices(box)
    return score_samples(
        (_mask(sample, scheme, index, box, volumes.valid) for sample in volumes.samples),
        _raters(reference, volumes, index, scheme, box),
        None if volumes.uncertainty is None else volumes.uncertainty[where],
        None if volumes.valid is None else volumes.valid[where],
    )


def _confidence(
    volumes: CaseVolumes,
    index: int,
    probability: np.ndarray | None,
    diversity: DiversityScore | None,
    settings: CaseSettings,
) -> float:
    """Of the prediction alone: neither the reference nor the voxels that it leaves out (ignore label) may change it."""
    scheme = settings.scheme
    if settings.confidence == "samples":
        if diversity is None or len(volumes.samples) < 2:
            return math.nan
        if volumes.valid is None:
            return diversity.sample_agreement
        box = _bordered([sample.box for sample in volumes.samples], volumes.shape)
        return mean_agreement(_mask(sample, scheme, index, box, None) for sample in volumes.samples)
    predicted = scheme.class_mask(index, volumes.predicted)
    if settings.confidence == "probabilities" and probability is not None:
        inside, total = float(probability[predicted].sum(dtype=np.float64)), float(probability.sum(dtype=np.float64))
        size = int(np.count_nonzero(predicted))
        return 2 * inside / (total + size) if total + size else math.nan
    if settings.confidence == "uncertainty" and volumes.uncertainty is not None and predicted.any():
        return 1 - float(volumes.uncertainty[predicted].mean(dtype=np.float64))
    return math.nan


def _raters(
    reference: np.ndarray, volumes: CaseVolumes, index: int, scheme: LabelScheme, box: Box
) -> Iterator[np.ndarray]:
    """Masks of the raters within a box; of a case without raters the reference."""
    if not volumes.raters:
        yield reference[box_slices(box)]
    for rater in volumes.raters:
        yield _mask(rater, scheme, index, box, volumes.valid)


def _mask(labels: CroppedLabels, scheme: LabelScheme, index: int, box: Box, valid: np.ndarray | None) -> np.ndarray:
    """One class of a label map within a box; False where the reference is ignored."""
    return _valid(scheme.class_mask(index, labels.within(box)), None if valid is None else valid[box_slices(box)])


def _valid(mask: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    return mask if valid is None else mask & valid


def _bordered(boxes: Sequence[Box | None], shape: Sequence[int]) -> Box:
    """Box around all boxes with a voxel more on each side, so that a lesion in one slice is not taken for a 2D image.

    Without any voxel it holds the first ones of the image.
    """
    box = join_boxes(boxes) or ((0, 1),) * len(shape)
    return grow_box(box, (1,) * len(shape), shape)
