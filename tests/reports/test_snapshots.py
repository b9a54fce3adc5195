"""Pictures of a held-out case while training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unisegdiff_pipeline.reports.case_pictures import CLASS_COLORS
from unisegdiff_pipeline.reports.snapshots import (
    DRAWN_SIDE,
    Snapshot,
    colors_of_pictures,
    grey_picture,
    mask_layer,
    moment,
    probability_layer,
    shown_box,
    write_snapshot,
)


def disc(shape: tuple[int, int], center: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.indices(shape)
    return ((y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2).astype(np.uint8)


def test_the_part_shown_lies_around_the_foreground_and_within_the_image() -> None:
    assert shown_box(np.zeros((50, 70))) == ((0, 50), (0, 70))
    assert shown_box(disc((512, 512), (100, 300), 30)) == ((9, 192), (209, 392))  # 61 * 3 wide
    assert shown_box(disc((512, 512), (5, 510), 3)) == ((0, 64), (448, 512))  # a corner
    assert shown_box(disc((40, 200), (20, 100), 10)) == ((0, 40), (68, 132))  # an image lower than the square


def test_all_layers_have_the_size_of_the_image(tmp_path: Path) -> None:
    reference = disc((56, 40), (30, 20), 6)
    p = reference * 0.9
    image = np.random.default_rng(0).normal(size=reference.shape)
    layers = write_snapshot(tmp_path, "phase_2_0000007", Snapshot(image, reference, p, p, (reference, reference * 0)))
    assert layers == ("segmenter", "mean", "sample_1", "sample_2")
    names = {"image", "reference", *(f"phase_2_0000007_{layer}" for layer in layers)}
    assert {path.stem for path in tmp_path.iterdir()} == names
    sizes = {Image.open(path).size for path in tmp_path.iterdir()}
    assert len(sizes) == 1
    assert 0.7 * DRAWN_SIDE <= max(*sizes.pop()) <= 1.5 * DRAWN_SIDE
    assert np.asarray(Image.open(tmp_path / "phase_2_0000007_sample_2.png")).max() == 0  # nothing was drawn


def test_phase_1_has_no_samples(tmp_path: Path) -> None:
    reference = disc((64, 64), (30, 20), 6)
    colours = np.zeros((64, 64, 3))
    assert write_snapshot(tmp_path, "phase_1_0000007", Snapshot(colours, reference, reference)) == ("segmenter",)
    assert Image.open(tmp_path / "image.png").mode == "RGB"


@pytest.mark.parametrize(("shape", "pixel_mm"), [((30, 60), (2, 1)), ((60, 30), (0.5, 1)), ((400, 500), (1, 0.8))])
def test_pixels_that_are_not_square_keep_their_proportions(
    tmp_path: Path, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> None:
    zeros = np.zeros(shape, np.uint8)
    write_snapshot(tmp_path, "phase_1_0000001", Snapshot(zeros * 1.0, zeros, zeros, pixel_mm=pixel_mm))
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            width, height = picture.size
        assert height / width == pytest.approx(shape[0] * pixel_mm[0] / (shape[1] * pixel_mm[1]), rel=0.02)
        assert 200 < width < 430


def test_classes_are_told_apart_by_colour_and_outlined() -> None:
    numbers = np.zeros((20, 20), np.uint8)
    numbers[2:10, 2:10] = 1
    numbers[12:19, 12:19] = 2
    layer = mask_layer(numbers)
    assert (layer[0, 0] == 0).all()
    assert layer[2, 2, 3] == 255 > layer[5, 5, 3] > 0
    assert (layer[2, 2, :3] != layer[12, 12, :3]).any()


def test_probabilities_grow_denser_and_are_outlined_at_a_half() -> None:
    p = np.tile(np.linspace(0, 1, 41), (41, 1))
    layer = probability_layer(p)
    assert layer[5, 0, 3] == 0
    assert 0 < layer[5, 10, 3] < layer[5, 40, 3]
    white = (layer[5] == 255).all(axis=1).nonzero()[0]
    assert white.min() == 21  # the first pixel above one half


def test_grey_pictures_bear_constant_and_extreme_images() -> None:
    assert grey_picture(np.full((4, 4), 7.0)).max() == 0
    values = np.linspace(0, 1, 10_000).reshape(100, 100)
    values[0, 0] = 1e9
    assert grey_picture(values)[50, 50] in range(120, 136)


def test_an_empty_sample_is_called_so_and_sides_are_marked(tmp_path: Path) -> None:
    reference = disc((56, 40), (30, 20), 6)
    shown = Snapshot(reference * 1.0, reference, reference * 0.9, None, (reference, reference * 0))
    layers = write_snapshot(tmp_path, "now", shown)
    text = moment(tmp_path, "now", layers, "now", ("R", "A"))
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == ["segmenter", "sample 1", "sample 2, empty"]
    assert text.count("<b class=side-left>R</b><b class=side-top>A</b>") == 3
    assert "side-" not in moment(tmp_path, "now", layers, "now")


def test_colours_are_explained_in_the_order_of_the_classes() -> None:
    text = colors_of_pictures(["liver", "<tumour>"])
    assert text.index("0 to 1") < text.index("liver") < text.index("&lt;tumour&gt;")
    assert text.index(CLASS_COLORS[0]) < text.index(CLASS_COLORS[1])
