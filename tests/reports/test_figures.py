"""Figures: colours that follow the page, names that do not clash, images that lose nothing."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from unisegdiff_pipeline.reports.figures import (
    INK,
    SERIES,
    box_and_points,
    draw,
    legend_above,
    series_color,
    shorter_path,
    wrapped,
)


def two_lines(figure: Any) -> None:
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], label="a")
    axis.plot([0, 1], [1, 0], label="b & c")
    axis.set_xlabel("Dice < 1")
    axis.legend()


def embedded(svg: str) -> np.ndarray:
    (data,) = re.findall(r"data:image/\w+;base64,([^\"]+)", svg)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_colours_are_those_of_the_page() -> None:
    svg = draw(two_lines, "two lines").lower()
    for color in (INK, SERIES[0], SERIES[1]):
        assert color not in svg
    for variable in ("--ink", "--series-1", "--series-2", "--rule"):
        assert f"var({variable})" in svg


def test_text_is_text_and_the_alternative_is_escaped() -> None:
    svg = draw(two_lines, 'lines of "a" < b')
    assert "<title>lines of &quot;a&quot; &lt; b</title>" in svg
    assert ">Dice &lt; 1</text>" in svg
    assert svg.startswith("<svg ")
    assert "<metadata" not in svg


def test_equal_figures_are_equal_and_others_share_no_names() -> None:
    def shifted(figure: Any) -> None:
        two_lines(figure)
        figure.axes[0].plot([0, 1], [0.5, 0.5])

    first, again, other = draw(two_lines, "x"), draw(two_lines, "x"), draw(shifted, "x")
    assert first == again
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, other)]
    assert names[0]
    assert not names[0] & names[1]
    for svg, known in zip((first, other), names, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg)) == known


def test_size_in_pixels_of_the_page() -> None:
    svg = draw(two_lines, "x", 4.0, 2.0)
    assert 'width="384" height="192"' in svg


@pytest.mark.parametrize("num_channels", [1, 3])
def test_grey_pictures_and_few_colours_lose_nothing(num_channels: int) -> None:
    rng = np.random.default_rng(0)
    colors = np.broadcast_to(rng.integers(0, 256, (200, num_channels)), (200, 3)).astype(np.uint8)
    array = colors[rng.integers(0, 200, (20, 30))]

    def paint(figure: Any) -> None:
        axis = figure.add_axes((0, 0, 1, 1))
        axis.imshow(array, interpolation="none")
        axis.set_axis_off()

    shown = embedded(draw(paint, "x", constrained=False))
    assert np.array_equal(shown, array) or np.array_equal(shown[::-1], array)  # the file may be turned over


def test_photographs_become_jpeg() -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)

    def paint(figure: Any) -> None:
        figure.add_axes((0, 0, 1, 1)).imshow(array, interpolation="none")

    assert "data:image/jpeg;base64," in draw(paint, "x", constrained=False)


@pytest.mark.parametrize("names", [["a", "b"], [f"class number {i:02d}" for i in range(20)], ["a long name " * 8, "b"]])
def test_a_legend_takes_nothing_from_the_axes_and_is_not_cut(names: list[str]) -> None:
    drawn: list[Figure] = []

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        for name in names:
            axis.plot([0, 1], [0, 1], label=name)
        legend_above(figure)
        drawn.append(figure)

    draw(paint, "x", 3.45, 2.75)
    (figure,) = drawn
    (axis,), (legend,) = figure.axes, figure.legends
    assert axis.get_position().height * figure.get_figheight() > 1.7
    place = legend.get_window_extent()
    assert place.x0 >= 0
    assert place.x1 <= figure.bbox.x1


def test_long_names_are_wrapped() -> None:
    assert wrapped(["liver", "left lower lobe", ""], 10) == ["liver", "left lower\nlobe", ""]


def test_groups_without_values_keep_their_place() -> None:
    groups = {"a": [0.1, float("nan"), 0.3], "b": [], "c": [0.5]}

    def paint(figure: Any) -> None:
        axis = figure.subplots()
        box_and_points(axis, groups)
        assert axis.get_xlim() == (-0.5, 2.5)

    svg = draw(paint, "x")
    assert re.findall(r">(n = \d)<", svg) == ["n = 2", "n = 0", "n = 1"]
    assert ">none<" in svg


def test_long_names_of_neighbouring_groups_do_not_overlap() -> None:
    names = ("below 4400 pixels²", "4400 to 16000 pixels²", "16000 pixels² and more")
    drawn = Figure(figsize=(4.6, 3.1))
    axis = drawn.subplots()
    box_and_points(axis, {name: [0.5] for name in names})
    drawn.canvas.draw()
    spans = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(spans))


def test_series_colours_repeat() -> None:
    assert series_color(0) == series_color(len(SERIES)) != series_color(1)


LABELS = (r"$\frac{$", "a$b$", 'data:image/png;base64,xx"', ' id="x" href="#', "<script>", "#0072b2", "url(#a)", "%s")


def test_labels_are_shown_as_they_are_whatever_they_read_like() -> None:
    def paint(drawn: Figure) -> None:
        axis = drawn.subplots()
        for name in LABELS:
            axis.plot([1, 2], [1, 2], label=name)
        axis.set(title=LABELS[0], xlabel=LABELS[1], ylabel=LABELS[2])
        axis.set_yticks(range(len(LABELS)), LABELS)
        axis.legend()

    shown = [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", draw(paint, "x"))]
    for name in LABELS:
        assert shown.count(name.strip()) + shown.count(name) >= 2, name


def test_logarithmic_axes_have_labels_without_formulas() -> None:
    def paint(drawn: Figure) -> None:
        axis, other = drawn.subplots(2)
        axis.plot([0.01, 1e6], [1, 2])
        axis.set_xscale("log")
        other.plot([1, 2], [-1e5, 1e5])
        other.set_yscale("symlog", linthresh=10)

    texts = re.findall(r"<text[^>]*>([^<]*)</text>", draw(paint, "x"))
    assert {"0.01", "1", "10⁶", "\N{MINUS SIGN}10⁵"} <= set(texts)
    assert not any("$" in text for text in texts)


def test_paths_are_shortened_and_lead_to_the_same_places() -> None:
    path = "M 0 0 \nL 202.524545 0 \nM 1.5 2 \nL 1.5 7.126 \nM 0 0 \nL 1 2 \nC 1.004 2 3 4 5 6 \nz\n"
    assert shorter_path(path) == "M0 0H202.52 M1.5 2V7.13 M 0 0 L 1 2 C 1 2 3 4 5 6 z"
    assert shorter_path("M 1 2 \nL 10 20 \nL 10 30") == "M 1 2 L 10 20 L 10 30"
