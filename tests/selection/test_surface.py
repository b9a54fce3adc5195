"""The length of the surfaces, by spreads written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.selection.by_hand import TWO
from unisegdiff_pipeline.evaluation.spread import CaseSpread, mean_place, size_score
from unisegdiff_pipeline.selection.sampler import SURFACE_PARTS, SamplerTrial, drawing
from unisegdiff_pipeline.selection.surface import rank_surfaces, try_surfaces


def surface(
    part: float, sizes: Sequence[float], places: Sequence[float] = (), energy: Sequence[float] = (0.5, 0.5, 0.5)
) -> SamplerTrial:
    """A trial with so much of 16 mm for the surfaces."""
    return SamplerTrial(drawing(TWO, 16.0, part), tuple(energy), None, tuple(sizes), tuple(places))


def volumes_only(volumes: np.ndarray, reference: int) -> CaseSpread:
    counted = tuple(volumes.astype(int).tolist())
    return CaseSpread("a", "organ", counted, (reference,), 0.4, math.nan, 0.5, 0.9, (0,) * 9, (0.0,) * 9)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((0.1, 0.2, 0.15), [2.0, 16.0, 1.0]),  # too wide: all are tried, by their sizes
        ((0.1, 0.5, 0.3), [16.0]),  # 0.3 on average, 0.12 the standard error
        ((0.6, 0.5, 0.55), [16.0]),  # too narrow, which no shorter field cures
    ],
)
def test_another_surface_is_tried_only_where_sampled_volumes_are_too_wide(
    monkeypatch: pytest.MonkeyPatch, places: Sequence[float], expected: list[float]
) -> None:
    sizes = {1.0: (2.0, 2.1, 1.9), 0.125: (1.8, 2.3, 1.7), 0.0625: (3.0, 3.0, 3.0)}
    trials = {t.sampler: t for t in (surface(part, sizes[part], places) for part in sizes)}
    monkeypatch.setattr(
        "unisegdiff_pipeline.selection.surface.score_surfaces", lambda *args: [trials[s] for s in args[3]]
    )
    nothing: Any = None
    ranked = try_surfaces(nothing, nothing, nothing, drawing(TWO, 16.0), {}, list(sizes))
    assert [t.sampler.surface_length_mm for t in ranked] == expected


def test_a_large_source_does_not_choose_the_surface_of_small_ones() -> None:
    """Volumes are too wide in twenty cases of one source, and too narrow in the two and two of two others."""
    sizes, places = (1.0,) * 20 + (3.0,) * 2 + (5.0,) * 2, (0.1, 0.12) * 10 + (0.5, 0.52) * 2
    whole = surface(1.0, sizes, places)
    assert whole.too_wide()
    by_source = replace(whole, sources=("large",) * 20 + ("small",) * 2 + ("third",) * 2)
    assert not by_source.too_wide()
    assert (whole.size, by_source.size) == (pytest.approx(1.5), pytest.approx(3.0))


def test_a_single_case_calls_no_spread_too_wide() -> None:
    assert not surface(1.0, (2.0,), (0.1,)).too_wide()


def test_the_surface_is_taken_whose_samples_spread_as_a_known_law() -> None:
    """Each part of the length makes sampled volumes so much wider or narrower than the truth's, 100 voxels."""
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(1000, 100, 200), rng.normal(0, 1, (200, 8))
    trials = []
    for part, sd in zip(SURFACE_PARTS, (400, 200, 140, 100, 60), strict=True):
        spreads = [volumes_only(np.rint(1000 + sd * row), round(true)) for row, true in zip(noise, truth, strict=True)]
        sizes, places = [size_score(spread, 1) for spread in spreads], [mean_place(spread) for spread in spreads]
        trials.append(surface(part, sizes, places, energy=[0.5] * 200))
    assert [trial.too_wide() for trial in trials] == [True, True, True, False, False]
    assert rank_surfaces(trials)[0] == trials[3]


def test_sizes_do_not_buy_worse_masks() -> None:
    trials = [
        surface(1.0, (2.0, 2.1, 1.9)),
        surface(0.25, (3.0, 3.0, 3.0)),
        surface(0.125, (1.0, 1.2, 0.9), energy=(0.6, 0.62, 0.61)),
    ]
    assert [t.sampler.surface_length_mm for t in rank_surfaces(trials)] == [16.0, 4.0, 2.0]
