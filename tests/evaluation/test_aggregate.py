"""All cases together: means over classes, intervals, pooled counts, and what is left out where files are missing."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.aggregate import summarise_metric
from unisegdiff_pipeline.evaluation.evaluate import Evaluation, evaluate_folders
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.overview import comparison_table, evaluation_table
from unisegdiff_pipeline.evaluation.tables import metric_row, metric_values
from unisegdiff_pipeline.io.images import write_labels

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,))
TWO = LabelScheme(("a", "b"), ((1,), (2,)), "softmax", (1, 2))
GEOMETRY = Geometry((10.0, 10.0, 10.0))  # 1 ml a voxel
OPTIONS = EvaluationOptions(resamples=200, workers=0)


def write(folder: Path, case: str, text: str) -> None:
    write_labels(folder / f"{case}.nii.gz", np.array([[[int(c) for c in text]]], np.uint8), GEOMETRY)


def evaluate(
    root: Path, cases: dict[str, tuple[str, str]], scheme: LabelScheme = BINARY, **options: object
) -> Evaluation:
    for case, (reference, predicted) in cases.items():
        write(root / "labelsTs", case, reference)
        write(root / "pred", case, predicted)
    chosen = dataclasses.replace(OPTIONS, **options)  # type: ignore[arg-type]
    return evaluate_folders(root / "labelsTs", root / "pred", Meaning(scheme), chosen)


CASES = {
    "one": ("1100000", "1000000"),  # Dice 2/3
    "two": ("1110110", "0110001"),  # Dice 4/8; lesion of 3 ml found, of 2 ml touched at no voxel, one false
    "three": ("0000000", "0000000"),
    "four": ("0000000", "0000111"),  # 3 ml false
}


def test_one_class_by_hand(tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path, CASES, strata_edges_ml=(2.5,))
    (report,) = evaluation.report.classes
    assert dataclasses.astuple(report.outcomes) == (2, 1, 1)
    assert report.case_specificity == 0.5
    dice = report.metrics["dice"]
    assert (dice.mean, dice.median, dice.n, dice.n_undefined) == (pytest.approx(7 / 12), pytest.approx(7 / 12), 2, 2)
    assert dice.std == pytest.approx(1 / 6 / math.sqrt(2))
    assert report.metrics["num_false_positive"].mean == pytest.approx(2 / 4)
    assert report.metrics["false_positive_ml"].mean == pytest.approx((0 + 1 + 0 + 3) / 4)
    pooled = report.pooled
    assert (pooled.tp, pooled.fp, pooled.fn) == (3, 4, 4)
    assert pooled.dice == pytest.approx(6 / 14)
    assert pooled.false_positive_ml == 3
    assert (pooled.num_reference_lesions, pooled.num_predicted_lesions, pooled.num_detected) == (3, 4, 2)
    assert (pooled.num_false_positive, pooled.false_positives_per_case) == (2, 0.5)
    assert pooled.lesion_f1 == pytest.approx(4 / (4 + 2 + 1))
    assert [(s.num_reference, s.num_detected) for s in report.strata] == [(2, 1), (1, 1)]
    assert report.froc is None
    assert report.reliability is None
    assert report.volume_coverage is None
    assert report.rank_histogram is None
    assert report.failure_detection is None
    assert evaluation.report.mean == report.metrics


def test_mean_over_classes_is_that_of_class_means(tmp_path: Path) -> None:
    cases = {"x": ("1120000", "1020000"), "y": ("1100000", "1100000"), "z": ("0000000", "0000000")}
    report = evaluate(tmp_path, cases, TWO).report
    a, b = (entry.metrics["dice"] for entry in report.classes)
    assert (a.mean, b.mean) == (pytest.approx((2 / 3 + 1) / 2), 1.0)
    mean = report.mean["dice"]
    assert mean.mean == pytest.approx((a.mean + b.mean) / 2)
    assert mean.median == pytest.approx(((2 / 3 + 1) / 2 + 1) / 2)  # of the cases' means over their classes
    assert (mean.n, mean.n_undefined) == (2, 1)
    assert mean.ci_low <= mean.mean <= mean.ci_high


def test_interval_over_classes_equals_a_plain_bootstrap(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    cases = {f"c{i}": tuple("".join(map(str, rng.integers(0, 3, 7))) for _ in range(2)) for i in range(8)}
    evaluation = evaluate(tmp_path, cases, TWO)  # type: ignore[arg-type]
    values = np.array([[score.dice for score in case.scores] for case in evaluation.cases])
    draws = np.random.default_rng(OPTIONS.seed).integers(0, 8, (OPTIONS.resamples, 8))
    means = [np.nanmean([np.nanmean(column) for column in values[draw].T]) for draw in draws]
    found = evaluation.report.mean["dice"]
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))


def test_intervals_can_be_left_out() -> None:
    values, groups = [0.1, 0.5, 0.6], ["a", "b", "c"]
    found = summarise_metric(values, groups, dataclasses.replace(OPTIONS, resamples=0))
    assert math.isnan(found.ci_low)
    assert found.mean == pytest.approx(0.4)


def add_samples(root: Path, cases: dict[str, list[str]]) -> None:
    for case, samples in cases.items():
        for number, text in enumerate(samples):
            write(root / "pred" / "samples", f"{case}_sample{number}", text)


def test_samples_give_confidence_coverage_and_ranks(tmp_path: Path) -> None:
    add_samples(tmp_path, {"one": ["1100000"] * 3, "two": ["1110000", "0110001", "0010001"], "three": ["0000000"] * 3})
    add_samples(tmp_path, {"four": ["0000111", "0000110", "0000000"]})
    evaluation = evaluate(tmp_path, CASES)
    (report,) = evaluation.report.classes
    assert report.volume_coverage is not None
    assert [entry.level for entry in report.volume_coverage] == [0.5, 0.8, 0.9]
    assert report.volume_coverage[0].n == 3  # reference and all samples of "three" are empty
    assert report.rank_histogram is not None
    assert sum(report.rank_histogram) == 3
    assert report.failure_detection is not None
    assert report.failure_detection.score == "mean Dice between the samples of the case"
    assert report.failure_detection.risk == pytest.approx((1 / 3, (1 / 3 + 1 / 2) / 2))  # "one" is the surer case
    assert report.froc is not None
    assert report.froc.sensitivity[-1] == pytest.approx(2 / 3)
    assert report.froc.false_positives_per_case[-1] == 0.5
    assert evaluation.report.settings["samples_per_case"] == [3, 3]
    assert evaluation.report.settings["lesion_confidence"] == "fraction of the samples that overlap the lesion"


def test_raters_give_a_further_tolerance(tmp_path: Path) -> None:
    for rater, text in enumerate(("1100000", "1111000")):  # the ends of the two lie 20 mm apart
        write(tmp_path / "ratersTs", f"one_rater{rater}", text)
    write(tmp_path / "ratersTs", "two_rater1", "1110110")
    evaluation = evaluate(tmp_path, CASES)
    tolerance = evaluation.report.settings["rater_tolerances_mm"]["lesion"]
    assert 0 < tolerance <= 20
    assert "surface_dice_rater" in evaluation.report.mean
    assert evaluation.report.settings["raters"]["cases"] == 2


def test_other_runs_on_the_same_cases(tmp_path: Path) -> None:
    for case, (reference, _) in CASES.items():
        write(tmp_path / "best", case, reference)
        write(tmp_path / "none", case, "0000000")
    evaluation = evaluate(tmp_path, CASES, against=(tmp_path / "best", tmp_path / "none"))
    report = evaluation.report
    assert [run.name for run in report.ranking] == ["best", "pred", "none"]
    assert [run.mean_rank for run in report.ranking] == [1, 2, 3]
    assert [run.num_best for run in report.ranking] == [2, 0, 0]
    best, none = report.against
    dice = next(row for row in best.classes if row.metric == "dice")
    assert (dice.n, dice.n_undefined, dice.wins, dice.losses) == (2, 2, 0, 2)
    assert dice.mean_difference == pytest.approx(-5 / 12)
    assert dice.effect_size == -1
    assert dice.p_holm == pytest.approx(min(1, 2 * dice.p_wilcoxon))  # two runs, one class
    distance = next(row for row in best.classes if row.metric == "hd95_mm")
    assert distance.losses == distance.n  # smaller is better
    assert next(row for row in none.classes if row.metric == "dice").wins == 2
    assert "hd95_mm" not in {row.metric for row in none.classes}  # undefined for an empty prediction
    text = comparison_table(report)
    assert "mean rank" in text
    assert "best" in text


def test_a_run_that_lacks_a_case_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other", "one", "1100000")
    with pytest.raises(UsdError, match=r"--against .*other lacks predictions of 3 of 4 cases: four, three, two"):
        evaluate(tmp_path, CASES, against=(tmp_path / "other",))


@pytest.mark.parametrize(
    ("scored", "other", "words"),
    [
        ("pred", "nowhere", "nowhere does not exist; give a folder"),
        ("pred", "pred/one.nii.gz", r"one\.nii\.gz is a file; give a folder"),
        ("pred/one.nii.gz", "pred", "pred is a folder; give a file"),
    ],
)
def test_a_run_of_another_kind_is_named(tmp_path: Path, scored: str, other: str, words: str) -> None:
    evaluate(tmp_path, CASES)
    reference = tmp_path / ("labelsTs" if scored == "pred" else "labelsTs/one.nii.gz")
    options = dataclasses.replace(OPTIONS, against=(tmp_path / other,))
    with pytest.raises(UsdError, match=f"--against .*{words}"):
        evaluate_folders(reference, tmp_path / scored, Meaning(BINARY), options)


def test_a_run_with_more_cases_is_compared_on_those_that_are_scored(tmp_path: Path) -> None:
    for case in ("one", "two", "three", "unknown"):
        write(tmp_path / "more", case, "1100000")
    evaluate(tmp_path, CASES)
    (tmp_path / "pred" / "two.nii.gz").unlink()
    (tmp_path / "pred" / "three.nii.gz").unlink()
    options = EvaluationOptions(subset=True, against=(tmp_path / "more",), workers=0)
    evaluation = evaluate_folders(tmp_path / "labelsTs", tmp_path / "pred", Meaning(BINARY), options)
    assert [case.overlap.case_id for case in evaluation.cases] == ["one"]  # "four" is in pred only
    assert evaluation.not_predicted == ("four", "three", "two")
    assert {run.num_cases for run in evaluation.report.ranking} == {1}


def test_a_subset_without_a_common_case_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "other", "two", "1100000")
    evaluate(tmp_path, CASES)
    (tmp_path / "pred" / "two.nii.gz").unlink()
    options = EvaluationOptions(subset=True, against=(tmp_path / "other",), workers=0)
    with pytest.raises(UsdError, match="pred, other have no case in common"):
        evaluate_folders(tmp_path / "labelsTs", tmp_path / "pred", Meaning(BINARY), options)


def test_runs_of_equal_folder_names_are_told_apart(tmp_path: Path) -> None:
    for case, (reference, _) in CASES.items():
        write(tmp_path / "x" / "pred", case, reference)
    evaluation = evaluate(tmp_path, CASES, against=(tmp_path / "x" / "pred",))
    assert {run.name for run in evaluation.report.ranking} == {f"{tmp_path.name}/pred", "x/pred"}


def test_table_names_false_positives_and_the_rule(tmp_path: Path) -> None:
    report = evaluate(tmp_path, CASES, rule=MatchingRule("iou", threshold=0.25)).report
    text = evaluation_table(report)
    assert text.splitlines()[2].split()[:2] == ["lesion", "0.583"]
    assert "the mean Dice is 0.389" in text  # (2/3 + 1/2 + 0) / 3
    assert "IoU is at least 0.25" in text


def test_summary_json_is_strict(tmp_path: Path) -> None:
    """Undefined values are null: NaN is no JSON."""
    files = evaluate(tmp_path, CASES).write(tmp_path / "out")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    stored = json.loads(files.summary.read_text(), parse_constant=refuse)
    assert stored["settings"]["lesion_matching"]["criterion"] == "overlap"
    assert stored["classes"][0]["strata"][-1]["high_ml"] is None


def test_values_and_columns_agree(tmp_path: Path) -> None:
    result = evaluate(tmp_path, {"one": CASES["one"]}).cases[0].classes[0]
    row, values = metric_row(result, (1.0, 2.0)), metric_values(result, (1.0, 2.0))
    assert values["dice"] == row["dice"]
    assert math.isnan(values["nll"])
    assert "nll" not in row
