"""Lesions that a filter takes out of a mask before it is written, and what the tables say then."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.inference.by_hand import SOFTMAX, case_by_hand, prediction_by_hand
from tests.inference.test_predictor import GEOMETRY_3D, make_model, make_pictures
from tests.inference.test_predictor import SOFTMAX as TWO_CLASSES
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.inference import predictor
from unisegdiff_pipeline.inference.cases import CaseCounter, PresenceCalibration
from unisegdiff_pipeline.inference.export import OutputOptions, PredictionRecord, write_prediction, write_record
from unisegdiff_pipeline.inference.export import write_summary as write_tables
from unisegdiff_pipeline.inference.folder_run import predict_folder
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.inference.lesions import LesionCounter
from unisegdiff_pipeline.inference.limits import Limits
from unisegdiff_pipeline.inference.origin import Origin
from unisegdiff_pipeline.inference.prediction import Prediction
from unisegdiff_pipeline.inference.predictor import Predictor
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import read_settings, write_settings
from unisegdiff_pipeline.inference.utility import OperatingPoint
from unisegdiff_pipeline.io.images import read_labels, write_map

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
NESTED = LabelScheme(("whole", "core"), ((1, 2), (2,)), "regions", (1, 2))
CLASSES = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
SPACING = (1.0, 1.0, 1.0)


def one_row(*values: int) -> np.ndarray:
    return np.array([[values]], np.uint8)


def kept(labels: np.ndarray, scheme: LabelScheme, samples: list[np.ndarray], **rules: LesionRule) -> LesionCounter:
    """The counter after the filter has changed `labels`; sizes are ml of voxels of 1 mm3."""
    counter = LesionCounter(labels, scheme)
    for sample in samples:
        counter.add_sample(sample)
    counter.keep_only(LesionFilter(rules=rules, unit="ml"), labels, SPACING)
    return counter


def test_lesions_of_low_confidence_leave_the_mask_and_the_table() -> None:
    labels = one_row(1, 1, 1, 0, 1, 1, 0, 1)
    samples = [one_row(1, 1, 1, 0, 0, 0, 0, 1), one_row(1, 0, 0, 0, 0, 1, 0, 0)]  # all, half, half
    rows = kept(labels, BINARY, samples, lesion=LesionRule(min_confidence=0.75)).rows("a", SPACING)
    assert labels.ravel().tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert [(row.lesion, row.voxels, row.confidence) for row in rows] == [(1, 3, 1.0)]


def test_small_ones_and_all_but_the_largest() -> None:
    labels = one_row(1, 0, 1, 1, 0, 1, 1, 1)
    rows = kept(labels, BINARY, [], lesion=LesionRule(min_size=0.002)).rows("a", SPACING)
    assert labels.ravel().tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    assert [(row.lesion, row.voxels, row.x_min) for row in rows] == [(1, 3, 5), (2, 2, 2)]
    labels = one_row(1, 0, 1, 1, 0, 1, 1, 1)
    kept(labels, BINARY, [], lesion=LesionRule(max_lesions=1))
    assert labels.ravel().tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_each_class_has_its_own_rule() -> None:
    labels = one_row(1, 2, 2, 0, 1, 1, 0, 2)
    counter = kept(labels, CLASSES, [], a=LesionRule(min_size=0.002), b=LesionRule())
    assert labels.ravel().tolist() == [0, 2, 2, 0, 1, 1, 0, 2]
    assert [(row.class_name, row.voxels) for row in counter.rows("x", SPACING)] == [("a", 2), ("b", 2), ("b", 1)]


def test_with_a_region_go_those_inside_it_and_not_those_around() -> None:
    labels = one_row(1, 2, 1, 0, 2, 0, 1, 1)
    counter = kept(labels, NESTED, [], whole=LesionRule(min_size=0.002))
    assert labels.ravel().tolist() == [1, 2, 1, 0, 0, 0, 1, 1]  # the whole of one voxel goes, its core too
    assert [(row.class_name, row.voxels) for row in counter.rows("x", SPACING)] == [
        ("whole", 3),
        ("whole", 2),
        ("core", 1),
    ]
    labels = one_row(1, 2, 1, 0, 2, 2, 1, 1)
    kept(labels, NESTED, [], core=LesionRule(min_size=0.002))
    assert labels.ravel().tolist() == [1, 1, 1, 0, 2, 2, 1, 1]


def test_a_lesion_within_the_box_of_another_stays() -> None:
    ring = np.ones((1, 5, 5), np.uint8)
    ring[0, 1:4, 1:4] = 0
    ring[0, 2, 2] = 1
    kept(ring, BINARY, [], lesion=LesionRule(min_size=0.002))
    assert ring.sum() == 16
    ring[0, 2, 2] = 1
    samples = [np.zeros_like(ring)]
    samples[0][0, 2, 2] = 1
    kept(ring, BINARY, samples, lesion=LesionRule(min_confidence=0.5))
    assert np.argwhere(ring[0]).tolist() == [[2, 2]]


NOTHING = LesionFilter(rules={"lesion": LesionRule(min_probability=0.8)}, unit="ml")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_an_empty_mask_is_written_where_no_lesion_stays(tmp_path: Path) -> None:
    # Its probability is 3/4 (see `by_hand`). Samples, and what the tables say of them, stay as they are.
    found = replace(prediction_by_hand(), lesion_filter=NOTHING)
    options = OutputOptions(".nii.gz", True, save_samples=True)
    assert write_prediction(tmp_path, found, case_by_hand(), SOFTMAX, options) == 0
    write_record(tmp_path, PredictionRecord("a", "same", (), (), {}, {}))
    write_tables(tmp_path, {"request": "same"})
    assert not read_labels(tmp_path / "a.nii.gz").array.any()
    assert read_labels(tmp_path / "samples/a_sample00.nii.gz").array.any()
    assert table(tmp_path / "lesions.csv") == []
    (volume,) = table(tmp_path / "volumes.csv")
    assert (volume["volume"], volume["expected_volume"]) == ("0", "0.015")
    (case,) = table(tmp_path / "cases.csv")
    assert (case["probability"], case["calibrated"], case["highest_probability"]) == ("1", "no", "0.75")
    assert (case["num_lesions"], case["expected_number"]) == ("0", "1")
    assert (case["unit"], case["volume"], case["expected_volume"]) == ("ml", "0", "0.015")
    assert (case["volume_05"], case["volume_95"]) == ("0.01", "0.02")


def test_the_python_interface_shows_the_same_mask() -> None:
    origin = Origin("model", {}, "cpu", ("0",), ".nii.gz", True, "mean")
    found = prediction_by_hand()
    assert Prediction(found, case_by_hand(), SOFTMAX, origin).mask.any()
    filtered = Prediction(replace(found, lesion_filter=NOTHING), case_by_hand(), SOFTMAX, origin)
    assert not filtered.mask.any()
    assert filtered.lesions == ()
    assert filtered.samples.any()
    assert filtered.case.num_lesions == 0
    first_the_table = Prediction(replace(found, lesion_filter=NOTHING), case_by_hand(), SOFTMAX, origin)
    assert first_the_table.case.volume == 0
    assert not first_the_table.mask.any()


def test_a_case_counts_lesions_of_any_class_together() -> None:
    counter = CaseCounter(CLASSES)
    for sample in (one_row(1, 2, 0, 2), one_row(0, 0, 0, 0), one_row(0, 0, 0, 1)):
        counter.add_sample(sample)
    row = counter.row("a", one_row(1, 2, 0, 0), 0.9, None, (1.0, 1.0, 2.0), is_2d=True)
    assert (row.num_lesions, row.expected_number, row.number_05, row.number_95) == (1, 1.0, 0.0, 2.0)
    assert row.probability == pytest.approx(2 / 3)
    assert (row.unit, row.volume, row.expected_volume) == ("mm2", 4.0, pytest.approx(8 / 3))
    calibrated = counter.row("a", one_row(0, 0, 0, 0), 0.9, PresenceCalibration(0.0, 0.5, 6, 6), SPACING)
    assert calibrated.probability == pytest.approx(0.75)  # odds 9, their root 3
    assert calibrated.calibrated
    without = CaseCounter(CLASSES).row("a", one_row(0, 1, 0, 0), 0.9, None, SPACING)
    assert (without.probability, without.expected_number, without.volume_05) == (0.9, None, None)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_folder_is_predicted_with_the_filter_of_most_folds(tmp_path: Path, dims: int) -> None:
    model, images = make_model(tmp_path, dims, folds=("0", "1")), make_inputs(tmp_path / "in", dims)
    plain = tables_and_masks(images, tmp_path / "plain", model)
    assert any(mask.any() for mask in plain.values())
    names = BINARY.names if dims == 2 else TWO_CLASSES.names
    strict = LesionFilter(rules=dict.fromkeys(names, LesionRule(min_probability=1.0)), unit="ml")
    weak = OperatingPoint(LesionRule(), 0.6, 0.5, 1.0, 2.0)
    named = OperatingPoint(LesionRule(min_probability=1.0), 0.5, 0.5, 0.5, 0.0)

    def give(folds: str, lesion_filter: LesionFilter, **others: object) -> None:
        for fold in folds:
            settings = read_settings(model / f"fold_{fold}")
            write_settings(model / f"fold_{fold}", replace(settings, lesion_filter=lesion_filter, **others))

    give("0", strict)  # one of two folds is no majority
    assert_same(tables_and_masks(images, tmp_path / "one", model), plain)
    give("01", strict, operating_points=dict.fromkeys(names, (named, weak)))
    filtered = tables_and_masks(images, tmp_path / "both", model)
    assert not any(mask.any() for mask in filtered.values())
    assert_same(tables_and_masks(images, tmp_path / "none", model, lesion_filter=False), plain)
    assert_same(tables_and_masks(images, tmp_path / "sensitive", model, utility="sensitivity=0.9"), plain)
    assert_same(tables_and_masks(images, tmp_path / "few", model, utility="fp_per_case=0.5"), filtered)
    with pytest.raises(UsdError, match="lesion_filter"):  # the folder holds masks of another filter
        tables_and_masks(images, tmp_path / "none", model)


def test_what_cannot_be_asked_of_a_filter(tmp_path: Path) -> None:
    model = make_model(tmp_path, 2, folds=("0",))
    with pytest.raises(UsdError, match=r"fold_0/inference\.json holds no operating points"):
        Predictor(model, device="cpu", utility="dice")
    with pytest.raises(ValueError, match="keep one"):
        Predictor(model, device="cpu", utility="dice", lesion_filter=False)
    with pytest.raises(ValueError, match="utility is 'recall'"):
        Predictor(model, device="cpu", utility="recall")


def make_inputs(folder: Path, dims: int) -> Path:
    if dims == 2:
        return make_pictures(folder, 1)
    write_map(folder / "case0_0000.nii.gz", np.random.default_rng(0).normal(size=(10, 18, 20)), GEOMETRY_3D)
    return folder


def tables_and_masks(images: Path, out: Path, model: Path, **asked: object) -> dict[str, np.ndarray]:
    predict_folder(PredictRequest(images, out, model, device="cpu", **asked))
    ending = next(path.suffixes for path in sorted(images.iterdir()))
    masks = {path.name: read_labels(path).array for path in sorted(out.glob(f"*{''.join(ending)}"))}
    lesions = table(out / "lesions.csv")
    assert bool(lesions) == any(mask.any() for mask in masks.values())
    return masks


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert np.array_equal(found[name], mask)


def test_no_order_of_tiles_and_no_limit_of_memory_changes_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = make_model(tmp_path, 3, folds=("0",)), make_inputs(tmp_path / "in", 3)
    all_lesions = tables_and_masks(images, tmp_path / "all", model)
    probabilities = sorted(float(row["mean_probability"]) for row in table(tmp_path / "all/lesions.csv"))
    assert len(probabilities) > 2
    middle = LesionRule(min_probability=(probabilities[0] + probabilities[-1]) / 2)
    settings = read_settings(model / "fold_0")
    rules = dict.fromkeys(TWO_CLASSES.names, middle)
    write_settings(model / "fold_0", replace(settings, lesion_filter=LesionFilter(rules=rules)))
    expected = tables_and_masks(images, tmp_path / "some", model)
    assert 0 < np.count_nonzero(expected["case0.nii.gz"]) < np.count_nonzero(all_lesions["case0.nii.gz"])
    monkeypatch.setattr(predictor, "find_limits", lambda device, memory_gb=None: Limits(0.0, 0.0))
    assert_same(tables_and_masks(images, tmp_path / "tight", model, max_memory_gb=100.0), expected)
