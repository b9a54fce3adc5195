"""The table of lesions of a held-out case, from a prediction made by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.data.test_source_draw import unified
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION
from unisegdiff_pipeline.inference.case_prediction import CasePrediction, SampledBox, SamplingFacts
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.selection.found_lesions import choose_lesions, find_in_held_out, held_out_case

BINARY = LabelScheme(("lesion",), ((1,),), "binary", (1,), ignore_value=9)
SETTINGS = InferenceSettings(lam_a=-3.0, lam_c=0.5)
ORDINARY = SimpleNamespace(sources=None, knows_spacing=lambda _, of_data_set: of_data_set)
HELD_OUT: Any = SimpleNamespace(labels=BINARY, spacing_known=False, configuration=ORDINARY)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, None, None]  # (K, Z, Y, X)


def stored(*labels: int, group: str = "p", pixel: float = 1.0) -> Any:
    """A case whose plan has pixels of 2 x 1 of those of the image."""
    geometry = Geometry((1.0, pixel, pixel), is_2d=True)
    properties = SimpleNamespace(geometry=geometry, spacing_mm=(1.0, 2 * pixel, pixel), source="US")
    return SimpleNamespace(
        labels=np.array(labels, np.uint8).reshape(1, 1, 1, -1), properties=properties, group=group, case_id="a"
    )


def prediction(p_det: torch.Tensor, *samples: torch.Tensor) -> CasePrediction:
    """The mean of the samples makes the mask; `p_det` is the plain segmenter's."""
    size = p_det.shape[-1]
    drawn = torch.stack(samples)
    everywhere = (slice(0, 1), slice(0, 1), slice(0, size))
    box = SampledBox(everywhere, torch.ones(1, 1, size, dtype=torch.bool), drawn.mean(dim=0), drawn)
    return CasePrediction(p_det, (box,), len(samples), 0.0, SamplingFacts(1, 1, 0, 0.0, 0.0))


def test_lesions_beside_the_reference() -> None:
    # Mean of the samples 1 1 .75 0 .75; the mask has lesions of three pixels and of one.
    samples = (row(1, 1, 1, 0, 1), row(1, 1, 1, 0, 1), row(1, 1, 1, 0, 1), row(1, 1, 0, 0, 0))
    plain = prediction(row(0.9, 0, 0.9, 0, 0.9), *samples)
    found = held_out_case(HELD_OUT, SETTINGS, stored(0, 1, 1, 0, 0), plain)
    (case,) = found.classes
    assert (case.reference_voxels, case.num_reference) == (2, 1)
    large, small = case.lesions
    assert (large.voxels, large.common, large.matched, large.confidence) == (3, 2, (1,), 1.0)
    assert large.probability == pytest.approx((1 + 1 + 0.75) / 3)
    assert large.size == 6  # pixels of 2 x 1 nominal ones, in those of the image
    assert (small.voxels, small.common, small.matched, small.confidence) == (1, 0, (), 0.75)
    assert case.plain_false_alarms == 2  # its pixels 0 and 4; pixel 2 lies in the reference
    assert found.holds_lesion
    assert found.highest == 1
    assert found.units.size == "pixels2"


def test_sizes_in_pixels_are_those_of_the_image_whatever_spacing_its_header_names() -> None:
    samples = (row(1, 1, 1, 0, 1),) * 2
    found = held_out_case(
        HELD_OUT, SETTINGS, stored(0, 1, 1, 0, 0, pixel=0.3), prediction(row(1, 1, 1, 0, 1), *samples)
    )
    assert [lesion.size for lesion in found.classes[0].lesions] == pytest.approx([6, 2])


def test_sizes_of_a_unified_data_set_are_in_mm_where_the_source_knows_its_spacing() -> None:
    plan = unified()
    assert plan.sources is not None
    us = plan.sources.plans["US"]
    samples = (row(1, 1, 1, 0, 1),) * 2
    case = stored(0, 1, 1, 0, 0, pixel=0.5)
    for known, unit, size in ((True, "mm2", 3 * 0.5 * 1.0), (False, "pixels2", 6)):
        plans = plan.sources.plans | {"US": replace(us, spacing_known=known)}
        configuration = replace(plan, sources=replace(plan.sources, plans=plans))
        held_out: Any = SimpleNamespace(labels=BINARY, spacing_known=False, configuration=configuration)
        found = held_out_case(held_out, SETTINGS, case, prediction(row(1, 1, 1, 0, 1), *samples))
        assert (found.units.size, found.classes[0].lesions[0].size) == (unit, pytest.approx(size))


def test_a_class_that_the_source_does_not_annotate_is_no_lesion_free_case() -> None:
    scheme = LabelScheme(("a", "b"), ((1,), (2,)), "regions", (1, 2))
    plan = unified(annotated=((True, False), (True, True)))
    held_out: Any = SimpleNamespace(labels=scheme, spacing_known=False, configuration=plan)
    drawn = torch.cat([row(1, 0, 0), row(0, 0, 1)])
    found = held_out_case(held_out, SETTINGS, stored(1, 0, 0), prediction(drawn, drawn, drawn))
    assert [case.class_name for case in found.classes] == ["a"]


def test_the_case_probability_is_fitted_to_what_the_reference_says_anything_of() -> None:
    scheme = LabelScheme(("a", "b"), ((1,), (2,)), "regions", (1, 2), ignore_value=9)
    drawn = torch.cat([row(0.25, 1, 0.5), row(0, 0, 0.75)])
    for annotated, highest in (((True, False), 0.5), ((True, True), 0.75)):  # US does not annotate b, or does
        plan = unified(annotated=(annotated, (True, True)))
        held_out: Any = SimpleNamespace(labels=scheme, spacing_known=False, configuration=plan)
        found = held_out_case(held_out, SETTINGS, stored(0, 9, 0), prediction(drawn, drawn, drawn))
        assert (found.highest, found.holds_lesion) == (highest, False)
    found = held_out_case(held_out, SETTINGS, stored(9, 9, 9), prediction(drawn, drawn, drawn))
    assert (found.highest, found.holds_lesion) == (0.0, False)


def test_a_lesion_free_case_and_ignored_pixels() -> None:
    found = held_out_case(HELD_OUT, SETTINGS, stored(0, 9, 0), prediction(row(0.9, 0.9, 0), row(0, 1, 1), row(0, 1, 1)))
    (case,) = found.classes
    assert not found.holds_lesion
    assert case.plain_false_alarms == 1
    assert [(lesion.voxels, lesion.matched) for lesion in case.lesions] == [(1, ())]
    choice = choose_lesions([found], BINARY.names)
    assert choice is not None
    assert choice.case_calibration is None
    settings = choice.settings(SETTINGS)
    assert settings.lesion_filter.keeps_all
    assert settings.filter_in_words == (
        "lesion: every lesion stays (1 held-out case, 1 of them free of it; 0 patients with it are too few, 6 are "
        "needed).",
    )


def test_regions_that_cannot_be_filtered_choose_nothing() -> None:
    scheme = LabelScheme(("a", "b", "c"), ((1, 2), (2, 3), (3,)), "regions", (1, 2, 3))
    held_out: Any = SimpleNamespace(labels=scheme)
    assert not list(find_in_held_out(held_out, None, SETTINGS, {"c": NO_CALIBRATION}))  # type: ignore[arg-type]
