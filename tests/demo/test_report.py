"""The demo's probability against the truth that its images were made by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.demo import report
from unisegdiff_pipeline.demo.phantoms import true_probability
from unisegdiff_pipeline.demo.report import (
    LEAST_LIKELY,
    DemoResult,
    calibration_against_truth,
    fractions_by_truth,
    score_truth,
    spread_section,
    truth_section,
    write_report,
)
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.raw_dataset import RawDataset, open_raw_dataset
from unisegdiff_pipeline.reports.calibration_words import calibration_in_words


@pytest.fixture
def raw(phantom_2d: Path) -> RawDataset:
    return open_raw_dataset(phantom_2d)


def cases_of(raw: RawDataset) -> list[str]:
    return sorted(path.stem.removesuffix("_0000") for path in (raw.folder / "imagesTs").iterdir())[:2]


def predict(raw: RawDataset, folder: Path, change: float) -> Path:
    """The true probability, changed, as the prediction of every case."""
    (folder / "probabilities").mkdir()
    for case in cases_of(raw):
        p = np.clip(true_probability(raw.folder, case) + change, 0, 1)
        np.savez(folder / "probabilities" / f"{case}.npz", probabilities=p[None].astype(np.float32))
    return folder


def test_the_truth_is_calibrated(raw: RawDataset, tmp_path: Path) -> None:
    curve = calibration_against_truth(raw, predict(raw, tmp_path, 0.0), cases_of(raw))
    assert curve.ece == pytest.approx(0, abs=1e-6)
    assert "face value" in calibration_in_words({"lesion": curve})[0]
    truth = np.stack([true_probability(raw.folder, case) for case in cases_of(raw)])
    assert sum(b.count for b in curve.bins) == np.count_nonzero(truth > LEAST_LIKELY)


def test_too_high_by_a_tenth(raw: RawDataset, tmp_path: Path) -> None:
    curve = calibration_against_truth(raw, predict(raw, tmp_path, 0.1), cases_of(raw))
    assert 0.05 < curve.ece <= 0.1 + 1e-6  # no more than 1 can be predicted
    assert "too high" in calibration_in_words({"lesion": curve})[0]


def test_fractions_by_hand() -> None:
    truth, fraction = np.array([0.0, 0.005, 0.2, 0.25, 0.95]), np.array([1.0, 1.0, 0.5, 0.25, 0.75])
    assert fractions_by_truth(truth, fraction) == [
        (pytest.approx(0.225), pytest.approx(0.375), 2),
        (pytest.approx(0.95), pytest.approx(0.75), 1),
    ]


def test_samples_without_a_lesion_in_the_truth_have_no_curve(
    raw: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "true_probability", lambda folder, case: np.zeros((1, 48, 48)))
    for case in cases_of(raw):
        write_labels(
            tmp_path / "samples" / f"{case}_sample1.png", np.zeros((1, 48, 48), np.uint8), Geometry(is_2d=True)
        )
    assert truth_section(raw, tmp_path, cases_of(raw)) is None


def test_samples_are_set_against_truth_and_annotators(raw: RawDataset, tmp_path: Path) -> None:
    """Samples that are the truth above 0.5: where it is high all of them mark a voxel."""
    folder, cases = predict(raw, tmp_path, 0.0), cases_of(raw)
    assert truth_section(raw, folder, cases) is None
    assert spread_section(raw, folder, cases) is None
    for case in cases:
        mask = (true_probability(raw.folder, case) > 0.5).astype(np.uint8)
        for number in (1, 2):
            write_labels(folder / "samples" / f"{case}_sample{number}.png", mask, Geometry(is_2d=True))
    section = truth_section(raw, folder, cases)
    assert section is not None
    assert "100% of the samples mark a pixel" in section.body[0]
    spread = spread_section(raw, folder, cases)
    assert spread is not None
    assert spread.title == "Spread of the samples"


def test_scores_are_tables_that_no_edge_cuts_off(raw: RawDataset, tmp_path: Path) -> None:
    folder, cases = predict(raw, tmp_path, 0.0), cases_of(raw)
    for case in cases:
        mask = (true_probability(raw.folder, case) > 0.5).astype(np.uint8)
        for name in (
            f"{case}.png",
            f"samples/{case}_sample00.png",
            f"samples/{case}_sample01.png",
            f"samples/{case}_sample02.png",
        ):
            write_labels(folder / name, mask, Geometry(is_2d=True))
        write_map(folder / "uncertainty" / f"{case}.png", mask.astype(np.float32), Geometry(is_2d=True))
    summary = score_truth(raw, cases)
    page = tmp_path / "page"
    page.mkdir()
    text = write_report(page, raw, folder, DemoResult(summary, summary), {}, 60.0).read_text(encoding="utf-8")
    scores = text[text.index("<h2>Scores") :]
    assert scores.count("<table") == 2
    assert "<pre" not in scores
    assert scores.count("Dice and IoU are means over the cases whose reference holds the class (scored).") == 2
