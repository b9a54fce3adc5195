"""One case with everything: each score equals that of its own module on the whole, uncropped masks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.boundary import boundary_score, rater_tolerance_mm
from unisegdiff_pipeline.evaluation.calibration import case_calibration, evaluation_region
from unisegdiff_pipeline.evaluation.case import rater_distances_mm, score_case_fully
from unisegdiff_pipeline.evaluation.diversity import score_samples
from unisegdiff_pipeline.evaluation.inputs import CaseInputs
from unisegdiff_pipeline.evaluation.lesions import score_lesions
from unisegdiff_pipeline.evaluation.options import CaseSettings
from unisegdiff_pipeline.io.images import write_labels, write_map

TWO = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
IGNORING = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2), ignore_value=3)
TURNED = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
GEOMETRY = Geometry((4.0, 1.5, 1.0), (10.0, -20.0, 30.0), TURNED)


def blobs(rng: np.random.Generator, shape: tuple[int, ...], values: tuple[int, ...] = (1, 2)) -> np.ndarray:
    """A label map of a few boxes, none at the border, so that there is something to crop."""
    labels = np.zeros(shape, np.uint8)
    for value in values:
        corner = [int(rng.integers(0, max(1, size - 4))) for size in shape]
        labels[tuple(slice(c, c + int(rng.integers(1, 4))) for c in corner)] = value
    return labels


@dataclasses.dataclass(frozen=True)
class Case:
    """Arrays of a case and the files that hold them."""

    inputs: CaseInputs
    reference: np.ndarray
    predicted: np.ndarray
    samples: list[np.ndarray]
    raters: list[np.ndarray]
    probabilities: np.ndarray
    uncertainty: np.ndarray


def make_case(folder: Path, shape: tuple[int, ...], num_raters: int, ignored: bool = False, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    names = ["reference", "predicted", *(f"s{i}" for i in range(3)), *(f"r{i}" for i in range(num_raters))]
    arrays = [blobs(rng, shape) for _ in names]
    if ignored:
        arrays[0][:, 2:5, 2:5] = 3
    paths = [folder / f"{name}.nii.gz" for name in names]
    for path, array in zip(paths, arrays, strict=True):
        write_labels(path, array, GEOMETRY)
    probabilities = rng.random((2, *shape)).astype(np.float16)
    np.savez(folder / "p.npz", probabilities=probabilities)
    uncertainty = rng.random(shape).astype(np.float32)
    write_map(folder / "u.nii.gz", uncertainty, GEOMETRY)
    inputs = CaseInputs(
        "case", paths[0], paths[1], folder / "p.npz", tuple(paths[2:5]), tuple(paths[5:]), folder / "u.nii.gz"
    )
    return Case(inputs, arrays[0], arrays[1], arrays[2:5], arrays[5:], probabilities.astype(np.float32), uncertainty)


@pytest.mark.parametrize("num_raters", [0, 1, 3])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("shape", [(6, 12, 14), (1, 16, 18)])
def test_scores_are_those_of_the_modules(
    tmp_path: Path, shape: tuple[int, ...], ignored: bool, num_raters: int
) -> None:
    case = make_case(tmp_path, shape, num_raters, ignored, seed=num_raters)
    scheme = IGNORING if ignored else TWO
    settings = CaseSettings(
        scheme, rater_tolerances_mm=(2.5, math.nan), confidence="samples", lesion_confidence="samples"
    )
    result = score_case_fully(case.inputs, settings)
    valid = case.reference != 3
    for index, found in enumerate(result.classes):
        reference, predicted, *others = (
            np.isin(array, scheme.members[index]) & valid
            for array in (case.reference, case.predicted, *case.samples, *case.raters)
        )
        samples, raters = others[:3], others[3:] or [reference]
        boundary = boundary_score(reference, predicted, GEOMETRY.spacing_mm, (1.0, 2.0, 2.5))
        assert astuple(found.boundary) == pytest.approx(
            (boundary.hd_mm, boundary.hd95_mm, boundary.assd_mm, *boundary.surface_dice[:2]), nan_ok=True
        )
        expected = boundary.surface_dice[2] if index == 0 else math.nan
        assert found.surface_dice_rater == pytest.approx(expected, nan_ok=True)
        probability = case.probabilities[index]
        score, lesions = score_lesions(reference, predicted, GEOMETRY, settings.rule, samples, probability)
        assert astuple(found.lesion_score) == pytest.approx(astuple(score), nan_ok=True)
        assert len(found.lesions) == len(lesions)
        for one, other in zip(found.lesions, lesions, strict=True):
            assert one.centroid_mm == pytest.approx(other.centroid_mm)
            same = {"centroid_mm": (0.0, 0.0, 0.0), "confidence": 0.0}
            assert dataclasses.replace(one, **same) == dataclasses.replace(other, **same)  # type: ignore[arg-type]
            assert one.confidence == pytest.approx(other.confidence, nan_ok=True)
        region = evaluation_region(np.logical_or.reduce(raters), predicted, GEOMETRY.spacing_mm)
        calibration = case_calibration(probability, raters, region, valid)
        assert found.calibration is not None
        assert (found.calibration.nll, found.calibration.brier) == (calibration.nll, calibration.brier)
        diversity = score_samples(samples, raters, case.uncertainty, valid)
        assert found.diversity is not None
        assert astuple(found.diversity) == pytest.approx(astuple(diversity), nan_ok=True)
        whole = [np.isin(sample, scheme.members[index]) for sample in case.samples]
        assert found.confidence == pytest.approx(score_samples(whole, raters).sample_agreement)
        voxel_ml = 4 * 1.5 * 1 / 1000
        assert found.sample_volumes_ml == pytest.approx([s.sum() * voxel_ml for s in samples])
        assert found.overlap.tp == np.count_nonzero(reference & predicted)
        assert found.overlap.tp + found.overlap.fp + found.overlap.fn + found.overlap.tn == valid.sum()


def astuple(score: object) -> tuple[float, ...]:
    """All numbers of a score in one row."""
    values = dataclasses.astuple(score)  # type: ignore[call-overload]
    return tuple(x for value in values for x in (value if isinstance(value, tuple) else (value,)))


def test_distance_between_raters_is_that_of_the_boundary_module(tmp_path: Path) -> None:
    case = make_case(tmp_path, (6, 12, 14), 3)
    expected = [rater_tolerance_mm([r == value for r in case.raters], GEOMETRY.spacing_mm) for value in (1, 2)]
    assert rater_distances_mm(case.inputs, CaseSettings(TWO)) == pytest.approx(expected)


def test_a_lesion_in_one_slice_of_a_volume_is_no_2d_image(tmp_path: Path) -> None:
    labels = np.zeros((5, 9, 9), np.uint8)
    labels[2, 3:6, 3:6] = 1
    for name in ("reference", "predicted"):
        write_labels(tmp_path / f"{name}.nii.gz", labels, GEOMETRY)
    inputs = CaseInputs("case", tmp_path / "reference.nii.gz", tmp_path / "predicted.nii.gz")
    first, second = score_case_fully(inputs, CaseSettings(TWO)).classes
    assert [lesion.area_mm2 for lesion in first.lesions] == [None, None]
    assert (second.overlap.outcome, second.lesions) == ("both_empty", ())
    assert (first.calibration, first.diversity) == (None, None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("probabilities", 2 * (0.9 + 0.5) / (0.9 + 0.5 + 0.4 + 0.2 + 2)),  # 0.2 far away; mask: the first two voxels
        ("uncertainty", 1 - (0.1 + 0.3) / 2),
        (None, math.nan),
    ],
)
def test_confidence_of_a_case_by_hand(tmp_path: Path, kind: str | None, expected: float) -> None:
    geometry = Geometry((1.0, 1.0, 1.0))
    row = np.array([[[1, 1, 0] + [0] * 5]], np.uint8)
    write_labels(tmp_path / "m.nii.gz", row, geometry)
    p = np.array([0.9, 0.5, 0.4] + [0.0] * 4 + [0.2], np.float32).reshape(1, 1, 1, 8)
    np.savez(tmp_path / "p.npz", probabilities=p)
    write_map(tmp_path / "u.nii.gz", np.array([[[0.1, 0.3] + [0.9] * 6]], np.float32), geometry)
    binary = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    path = tmp_path / "m.nii.gz"
    inputs = CaseInputs("c", path, path, tmp_path / "p.npz", uncertainty=tmp_path / "u.nii.gz")
    settings = CaseSettings(binary, confidence=kind)  # type: ignore[arg-type]
    (found,) = score_case_fully(inputs, settings).classes
    assert found.confidence == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("kind", ["samples", "probabilities", "uncertainty"])
@pytest.mark.parametrize("ignored", [False, True])
def test_confidence_does_not_know_the_reference(tmp_path: Path, kind: str, ignored: bool) -> None:
    """One prediction and two references, with and without voxels to ignore in the mask: one value."""
    case = make_case(tmp_path, (6, 12, 14), 0)
    other = np.zeros_like(case.reference)
    other[5, 11, 13] = 1
    other[0, :, :7] = 3 if ignored else 0
    write_labels(tmp_path / "other.nii.gz", other, GEOMETRY)
    settings = CaseSettings(IGNORING, confidence=kind)  # type: ignore[arg-type]
    pair = (case.inputs, dataclasses.replace(case.inputs, reference=tmp_path / "other.nii.gz"))
    values = [[found.confidence for found in score_case_fully(inputs, settings).classes] for inputs in pair]
    assert values[0] == values[1]
    assert not any(map(math.isnan, values[0]))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_case_of_several_raters_without_samples_has_no_confidence(tmp_path: Path, ignored: bool) -> None:
    """As of a run without samples that is compared with one that has them."""
    case = make_case(tmp_path, (6, 12, 14), 3, ignored)
    inputs = dataclasses.replace(case.inputs, samples=())
    for found in score_case_fully(inputs, CaseSettings(IGNORING, confidence="samples")).classes:
        assert math.isnan(found.confidence)
        assert found.diversity is not None
        assert found.diversity.rater_diversity > 0


def test_lesions_in_a_single_line_are_told_apart(tmp_path: Path) -> None:
    """The box around them has one axis only, where the labelling library fails for 26 neighbours."""
    labels = np.zeros((3, 7, 9), np.uint8)
    labels[1, 3, [1, 3, 4, 6]] = 1
    write_labels(tmp_path / "m.nii.gz", labels, GEOMETRY)
    inputs = CaseInputs("c", tmp_path / "m.nii.gz", tmp_path / "m.nii.gz")
    assert score_case_fully(inputs, CaseSettings(TWO)).classes[0].lesion_score.num_reference_lesions == 3
    score, _ = score_lesions(labels == 1, labels == 1, GEOMETRY, CaseSettings(TWO).rule)
    assert score.num_reference_lesions == 3
