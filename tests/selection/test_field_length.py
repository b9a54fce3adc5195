"""The length of the field, planned from objects of known size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.selection.by_hand import objects, own_spacing
from unisegdiff_pipeline.core.serialization import from_jsonable, to_jsonable
from unisegdiff_pipeline.diffusion.samplers import LENGTH_PER_REACH, SamplerSettings
from unisegdiff_pipeline.selection.field_length import LENGTHS_VOXELS, field_lengths_mm, planned_length_mm
from unisegdiff_pipeline.selection.sampler import SAMPLES_ALONE, SURFACE_PARTS, drawing


@pytest.mark.parametrize(
    ("case", "dims", "expected"),
    [
        (objects((1, 64, 64), (1.0, 1.0, 1.0), 50, 50, 5000), 2, 16.0),  # radius 4.0
        (objects((1, 64, 64), (1.0, 2.0, 2.0), 50, 50, 5000), 2, 32.0),  # 8.0 mm
        (objects((1, 64, 64), (1.0, 1.0, 1.0), 5000, 50, 5000, 50, rows=2), 2, 16.0),  # row 0 is the annotators' vote
        (objects((32, 64, 64), (1.0, 1.0, 1.0), 2000), 3, 32.0),  # a ball of radius 7.8
        (objects((1, 64, 64), (1.0, 1.0, 1.0), 10), 2, 8.0),
        (objects((1, 64, 64), (1.0, 1.0, 1.0), 10**5), 2, 64.0),  # the longest there is
        (objects((1, 64, 64), (1.0, 1.0, 1.0)), 2, 16.0),  # nothing is annotated
    ],
)
def test_the_field_is_planned_from_the_radius_of_the_objects(case: Any, dims: int, expected: float) -> None:
    run: Any = SimpleNamespace(
        train_cases=("a",),
        data=SimpleNamespace(open=lambda name: case),
        configuration=own_spacing(dims),
    )
    assert planned_length_mm(run) == expected


@pytest.mark.parametrize("pixel_mm", [5e-6, 2.5e-4, 0.0123, 0.3, 1.7, 1e4])
def test_fields_are_as_many_voxels_long_whatever_a_voxel_measures(pixel_mm: float) -> None:
    case = objects((1, 64, 64), (1.0, pixel_mm, pixel_mm), 50)
    held_out: Any = SimpleNamespace(configuration=own_spacing(2))
    lengths_mm = field_lengths_mm(held_out, case)
    assert [length / pixel_mm for length in lengths_mm] == pytest.approx(LENGTHS_VOXELS, rel=1e-3)
    for part in SURFACE_PARTS:
        sampler = drawing(SAMPLES_ALONE, lengths_mm[-1], part)
        assert sampler.surface_length_mm == pytest.approx(64 * pixel_mm * part, rel=1e-3)
        assert from_jsonable(SamplerSettings, to_jsonable(sampler)) == sampler


def test_a_large_source_does_not_choose_the_field_of_small_ones() -> None:
    """Radii of 4.0 in three cases of one source, 16.0 in the single case of another: twice their mean is 20."""
    small, large = (objects((1, 64, 64), (1.0, 1.0, 1.0), n, n, n) for n in (50, 804))
    cases = {"a__1": small, "a__2": small, "a__3": small, "b__1": large}
    configuration = own_spacing(2)
    run: Any = SimpleNamespace(
        train_cases=tuple(cases), data=SimpleNamespace(open=cases.get), configuration=configuration
    )
    assert planned_length_mm(run) == 8.0 * LENGTH_PER_REACH / 2
    configuration.sources = "any"
    assert planned_length_mm(run) == 16.0 * LENGTH_PER_REACH / 2
