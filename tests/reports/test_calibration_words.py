"""Calibration in words, by reliability curves made by hand."""

from __future__ import annotations

import pytest

from unisegdiff_pipeline.core.units import units_of
from unisegdiff_pipeline.evaluation.aggregate import ReliabilitySummary
from unisegdiff_pipeline.evaluation.calibration import ReliabilityBin
from unisegdiff_pipeline.reports.calibration_words import calibration_in_words


def curve(*pairs: tuple[float, float]) -> ReliabilitySummary:
    """Bins of 100 voxels each with this mean probability and frequency."""
    bins = tuple(ReliabilityBin(100, p, y) for p, y in pairs)
    ece = sum(abs(p - y) for p, y in pairs) / len(pairs)
    return ReliabilitySummary(bins, (), ece, ece)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0.1, 0.1), (0.9, 0.89)], "can be taken at face value: they are off by 0.5 percentage points"),
        ([(0.3, 0.1), (0.9, 0.7)], "are too high: they are off by 20.0 percentage points on average (ECE 0.200)"),
        ([(0.3, 0.33), (0.7, 0.73)], "are slightly too low"),
        ([(0.1, 0.3), (0.9, 0.7)], "are too sure of themselves"),
        ([(0.3, 0.1), (0.7, 0.9)], "are not sure enough"),
        (
            [(0.02, 0.03), (0.1, 0.1)],
            "more than 10%, so nothing is marked; probabilities are off by 0.5",
        ),
    ],
)
def test_sentences(pairs: list[tuple[float, float]], words: str) -> None:
    (text,) = calibration_in_words({"lesion": curve(*pairs)})
    assert words in text


def test_the_worst_bin_is_the_example_and_classes_are_named() -> None:
    first, second = calibration_in_words({"a": curve((0.2, 0.2), (0.8, 0.5)), "b": curve((0.5, 0.5))})
    assert first.startswith("a: ")
    assert first.endswith("Of the voxels given about 80%, 50% hold the class.")
    assert second.startswith("b: Probabilities can be taken at face value")


def test_nothing_judged() -> None:
    assert calibration_in_words({"a": ReliabilitySummary((), (), 0.0, 0.0)}) == [
        "No voxel with a probability was judged."
    ]


def test_2d_images_have_pixels() -> None:
    plane = units_of(is_2d=True, spacing_known=True)
    (text,) = calibration_in_words({"a": curve((0.2, 0.2), (0.8, 0.5))}, plane)
    assert text.endswith("Of the pixels given about 80%, 50% hold the class.")
