"""Operating points of a lesion filter in the training report."""

from __future__ import annotations

from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.inference.utility import OperatingPoint
from unisegdiff_pipeline.reports.operating_points import best_points, operating_points


def test_points_are_drawn_and_listed() -> None:
    strict = OperatingPoint(LesionRule(min_probability=0.75, max_lesions=1), 0.7, 0.6, 0.5, 0.25)
    weak = OperatingPoint(LesionRule(), 0.65, 0.55, 0.9, 1.5, 2.0)
    points = {"lesion": (strict, weak)}
    chosen = to_jsonable({"lesion_filter": LesionFilter(unit="pixels2"), "operating_points": points})
    drawn, listed = operating_points(chosen)
    assert "operating points of lesion" in drawn
    assert "All 2 operating points" in listed
    for shown in ("0.75", "0.25", "1.50", "2.00", "size, pixels\N{SUPERSCRIPT TWO}"):
        assert shown in listed


def test_points_of_more_classes_than_colours_are_listed() -> None:
    point = OperatingPoint(LesionRule(), 0.65, 0.55, 0.9, 1.5, 2.0)
    drawn, listed = operating_points(to_jsonable({"operating_points": {f"c{i}": (point,) for i in range(9)}}))
    assert ">c7</text>" in drawn
    assert ">c8</text>" not in drawn
    assert "Figures show the first 8 of 9 classes." in drawn
    assert ">c8</td>" in listed


def test_a_filter_that_another_one_beats_is_not_on_the_line() -> None:
    points = [(0.25, 0.05), (0.0, 0.14), (0.25, 0.64), (0.12, 0.14), (0.25, 0.4), (0.38, 0.8), (0.5, 0.8)]
    assert best_points(points) == [(0.0, 0.14), (0.25, 0.64), (0.38, 0.8)]


def test_models_without_points_show_nothing() -> None:
    assert operating_points({}) == []
    assert operating_points({"operating_points": {"lesion": []}}) == []
