"""One unit for one thing: what columns, keys and texts of a data set are called."""

from __future__ import annotations

import pytest

from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import VOLUMES, Units, measured_grid, units_of, units_of_files, voxel_size

PIXELS = units_of(is_2d=True, spacing_known=False)
AREAS = units_of(is_2d=True, spacing_known=True)


@pytest.mark.parametrize(
    ("name", "in_areas", "in_pixels"),
    [
        ("reference_ml", "reference_mm2", "reference_pixels2"),
        ("hd95_mm", "hd95_mm", "hd95_pixels"),
        ("area_mm2", "area_mm2", "area_pixels2"),
        ("surface_dice_1.5mm", "surface_dice_1.5mm", "surface_dice_1.5pixels"),
        ("surface_dice_rater", "surface_dice_rater", "surface_dice_rater"),
        ("volume_error_percent", "volume_error_percent", "volume_error_percent"),
    ],
)
def test_names(name: str, in_areas: str, in_pixels: str) -> None:
    assert (VOLUMES.name(name), AREAS.name(name), PIXELS.name(name)) == (name, in_areas, in_pixels)


def test_keys_of_json_and_the_metrics_that_it_names() -> None:
    stored = {"mean": {"hd_mm": {"mean": 1.0}}, "against": [{"metric": "assd_mm", "n": 2}], "edges_ml": (1.0,)}
    assert PIXELS.named(stored) == {
        "mean": {"hd_pixels": {"mean": 1.0}},
        "against": [{"metric": "assd_pixels", "n": 2}],
        "edges_pixels2": [1.0],
    }


def test_names_of_classes_have_no_unit() -> None:
    stored = {"classes": {"nodule_6_mm": {"baseline_ml": 1.0}}}
    assert PIXELS.named(stored, ["nodule_6_mm"]) == {"classes": {"nodule_6_mm": {"baseline_pixels2": 1.0}}}


def test_2d_images_beside_volumes_have_made_up_volumes() -> None:
    assert units_of_files([True, True], True) == AREAS
    assert units_of_files([False, False], True) == VOLUMES
    assert units_of_files([True, False], True) == Units(nominal=True)
    assert units_of_files([False, True], False) == Units(nominal=True)


def test_texts() -> None:
    assert (VOLUMES.size_shown(2.314), AREAS.size_shown(2.314), PIXELS.size_shown(1204.0)) == (
        "2.31 ml",
        "2.31 mm\N{SUPERSCRIPT TWO}",
        "1204 pixels\N{SUPERSCRIPT TWO}",
    )
    assert (PIXELS.length_text(1), PIXELS.length_text(2), AREAS.length_text(1)) == ("1 pixel", "2 pixels", "1 mm")
    assert (VOLUMES.size_word, AREAS.size_word, PIXELS.size_word) == ("volume", "area", "area")


@pytest.mark.parametrize(
    ("units", "is_2d", "size"),
    [(VOLUMES, False, 0.01), (VOLUMES, True, 0.01), (AREAS, True, 10.0), (PIXELS, True, 1.0)],
)
def test_size_of_a_voxel(units: Units, is_2d: bool, size: float) -> None:
    """A voxel of 1 x 2 x 5 mm is 10 mm3, 0.01 ml; in 2D it covers 10 mm2, or one pixel."""
    grid = measured_grid(Geometry((1.0, 2.0, 5.0), is_2d=is_2d), units)
    assert voxel_size(grid) == pytest.approx(size)
    assert grid.spacing_mm == ((1.0, 1.0, 1.0) if units is PIXELS else (1.0, 2.0, 5.0))


def test_volumes_of_unknown_voxels_stay_nominal() -> None:
    assert units_of(is_2d=False, spacing_known=False) == Units(nominal=True)
