"""How the probability that a case holds any lesion is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.evaluation.case_probability import report_case_probability
from unisegdiff_pipeline.evaluation.evaluate import evaluate_folders
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.overview import evaluation_table
from unisegdiff_pipeline.io.images import write_labels


def write(path: Path, *rows: str) -> Path:
    (path / "cases.csv").write_text("\n".join(["case,probability", *rows]) + "\n")
    return path


def test_scores_by_hand(tmp_path: Path) -> None:
    holds = {"a": True, "b": True, "c": False, "d": False, "e": True}
    report = report_case_probability(write(tmp_path, "a,0.9", "b,0.5", "c,0.5", "d,0.1"), holds)
    assert report is not None
    assert (report.num_with, report.num_without, report.num_unknown) == (2, 2, 1)
    assert report.auroc == pytest.approx(3.5 / 4)  # of four pairs one is a tie
    assert report.brier == pytest.approx((0.01 + 0.25 + 0.25 + 0.01) / 4)
    assert report.brier_of_prevalence == 0.25
    assert [(b.mean_probability, b.fraction_with_lesion, b.num_cases) for b in report.bins] == [
        (0.1, 0.0, 1),
        (0.5, 0.5, 2),
        (0.9, 1.0, 1),
    ]


def test_without_table_or_lesion_free_cases_nothing_is_said(tmp_path: Path) -> None:
    assert report_case_probability(tmp_path, {"a": True, "b": False}) is None
    write(tmp_path, "a,0.9", "b,0.5")
    assert report_case_probability(tmp_path, {"a": True, "b": True}) is None
    assert report_case_probability(tmp_path, {"x": True, "y": False}) is None


@pytest.mark.parametrize("row", ["a,", "a,1.5", "a,high", "a"])
def test_a_damaged_table_is_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(UsdError, match=r"cases\.csv, line 2: probability is"):
        report_case_probability(write(tmp_path, row), {"a": True, "b": False})
    (tmp_path / "cases.csv").write_text("case,p\na,1\n")
    with pytest.raises(UsdError, match="no columns case and probability"):
        report_case_probability(tmp_path, {"a": True, "b": False})


def test_a_case_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"line 4: the case 'a' stands there twice"):
        report_case_probability(write(tmp_path, "a,0.75", "b,0.25", "a,0.5"), {"a": True, "b": False})


def test_it_is_part_of_an_evaluation(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    scheme = LabelScheme(("lesion",), ((1,),), "binary", (1,))
    for name, value in (("a", 1), ("b", 0)):
        labels = np.full((2, 3, 4), value, np.uint8)
        for folder in (reference, prediction):
            write_labels(folder / f"{name}.nii.gz", labels, Geometry((1.0, 1.0, 1.0)))
    meaning = Meaning(scheme, True)
    assert evaluate_folders(reference, prediction, meaning).report.case_probability is None
    write(prediction, "a,0.75", "b,0.25")
    evaluation = evaluate_folders(reference, prediction, meaning)
    assert evaluation.report.case_probability is not None
    assert evaluation.report.case_probability.auroc == 1
    assert "Probability of any lesion: AUROC 1.000, Brier score 0.062 (0.250" in evaluation_table(evaluation.report)
    assert '"case_probability"' in evaluation.write(tmp_path / "out").summary.read_text()
