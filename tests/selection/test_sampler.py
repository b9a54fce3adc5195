"""The sampler of the masks, by energy scores written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.selection.by_hand import EIGHT, NONE, TWO, own_spacing, trial
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.selection.field_length import LENGTHS_VOXELS
from unisegdiff_pipeline.selection.sampler import DEFAULT_SAMPLER, FULL_SEARCH, drawing, rank_samplers, try_samplers


def test_the_default_sampler_stays_where_another_is_hardly_better() -> None:
    default, better = trial(TWO, 0.8, 0.7, 0.6), trial(EIGHT, 0.6, 0.71, 0.61)  # 0.06 better, 0.07 the standard error
    assert [t.sampler for t in rank_samplers([better, trial(NONE, 0.9, 0.9, 0.9), default], TWO)] == [TWO, EIGHT, NONE]


@pytest.mark.parametrize("other", [EIGHT, NONE])
def test_a_significantly_better_sampler_takes_its_place(other: SamplerSettings) -> None:
    default, better = trial(TWO, 0.8, 0.7, 0.6), trial(other, 0.75, 0.66, 0.55)
    assert [t.sampler for t in rank_samplers([default, better], TWO)] == [other, TWO]


def test_better_in_all_cases_of_two_patients_is_not_significant_where_one_of_them_gains_nothing() -> None:
    groups = ("a", "a", "a", "a", "b", "b")
    default = trial(TWO, *[0.8] * 6, groups=groups)
    better = trial(EIGHT, 0.7, 0.71, 0.7, 0.71, 0.79, 0.8, groups=groups)
    assert rank_samplers([default, better], TWO)[0].sampler == TWO


def test_a_large_source_does_not_choose_the_sampler_of_small_ones() -> None:
    """Twenty cases where eight calls are better by 0.1, two and two where they are worse by 0.12 and 0.04."""
    sources = ("large",) * 20 + ("small",) * 2 + ("third",) * 2
    default = [0.8] * 24
    other = [0.7] * 10 + [0.71] * 10 + [0.92, 0.93] + [0.84, 0.85]
    whole = trial(TWO, *default), trial(EIGHT, *other)
    assert whole[1].energy == pytest.approx((10 * 0.7 + 10 * 0.71 + 0.92 + 0.93 + 0.84 + 0.85) / 24)
    assert rank_samplers(whole, TWO)[0].sampler == EIGHT
    by_source = trial(TWO, *default, sources=sources), trial(EIGHT, *other, sources=sources)
    assert by_source[1].energy == pytest.approx((0.705 + 0.925 + 0.845) / 3)
    assert rank_samplers(by_source, TWO)[0].sampler == TWO
    assert by_source[1].significantly_above(by_source[0])
    assert not by_source[0].significantly_above(by_source[1])


def test_a_single_case_replaces_nothing() -> None:
    assert rank_samplers([trial(TWO, 0.9), trial(EIGHT, 0.1)], TWO)[0].sampler == TWO


def test_draws_are_compared_with_trajectories_by_other_samples_than_chose_their_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[SamplerSettings], int]] = []

    def score(
        run: object,
        model: object,
        settings: object,
        samplers: Sequence[SamplerSettings],
        cases: object,
        first_sample: int = 0,
    ) -> dict[SamplerSettings, list[float]]:
        asked.append((list(samplers), first_sample))
        lucky = 0.7 if first_sample == 0 else 0.9
        return {
            s: [0.8, 0.82] if s.total_calls or s.correlation_length_mm != 8 else [lucky, lucky + 0.03] for s in samplers
        }

    def stored(case: str) -> Any:
        return SimpleNamespace(properties=SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0)), group=case)

    run: Any = SimpleNamespace(data=SimpleNamespace(open=stored), configuration=own_spacing(2))
    monkeypatch.setattr("unisegdiff_pipeline.selection.sampler.score_samplers", score)
    model: Any = None
    planned = drawing(DEFAULT_SAMPLER, 16.0)
    settings = InferenceSettings(lam_a=-3.0, lam_c=0.5, mask_sampler=planned)
    cases = {"a": NO_CALIBRATION, "b": NO_CALIBRATION}
    ranked = try_samplers(run, model, settings, cases, FULL_SEARCH)
    (lengths, first), (final, fresh) = asked
    assert (len(lengths), first) == (len(LENGTHS_VOXELS), 0)
    assert ([s.total_calls for s in final], fresh) == ([0, 2, 1, 2, 3, 4], 8)
    assert {s.correlation_length_mm for s in final} == {8.0}
    assert (ranked[0].sampler.start, ranked[0].sampler.total_calls) == ("stage_a", 2)
    assert len(ranked) == 5 + len(LENGTHS_VOXELS)
    asked.clear()
    try_samplers(run, model, replace(settings, target="epsilon"), cases, FULL_SEARCH)
    assert [s.total_calls for s in asked[1][0]] == [0, 2, 4]  # pure noise holds no mask that could be inverted
