from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unisegdiff_pipeline.diffusion.coding import probabilities_from_logits
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.training import choosing
from unisegdiff_pipeline.training.choosing import (
    MeanTrial,
    SamplerTrial,
    fit_temperature,
    rank_means,
    rank_samplers,
)

TWO, EIGHT = SamplerSettings(num_calls=2), SamplerSettings(num_calls=8)
THREE = SamplerSettings(num_calls=3)
NONE = SamplerSettings(num_calls=0, draw=True, correlation_length_mm=4.0)


def test_the_best_energy_score_wins() -> None:
    trials = [SamplerTrial(TWO, 0.80), SamplerTrial(EIGHT, 0.75), SamplerTrial(NONE, 0.9)]
    assert rank_samplers(trials)[0].sampler == EIGHT


def test_of_about_equal_samplers_the_one_with_the_fewest_calls_wins() -> None:
    trials = [SamplerTrial(EIGHT, 0.750), SamplerTrial(TWO, 0.764), SamplerTrial(NONE, 0.766)]
    assert [t.sampler for t in rank_samplers(trials)] == [TWO, EIGHT, NONE]


def test_draws_without_calls_have_to_be_no_worse_than_the_sampler_that_is_taken_else() -> None:
    assert rank_samplers([SamplerTrial(NONE, 0.751), SamplerTrial(EIGHT, 0.750)])[0].sampler == EIGHT
    assert rank_samplers([SamplerTrial(NONE, 0.750), SamplerTrial(EIGHT, 0.750)])[0].sampler == NONE
    eight, two = SamplerTrial(EIGHT, 0.750), SamplerTrial(TWO, 0.760)
    assert [t.sampler for t in rank_samplers([eight, SamplerTrial(NONE, 0.755), two])] == [NONE, TWO, EIGHT]


def test_draws_are_compared_with_trajectories_by_other_samples_than_chose_their_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[list[SamplerSettings], int]] = []

    def score(
        run: object, model: object, settings: object, samplers: Sequence[SamplerSettings], cases: object,
        first_sample: int = 0,
    ) -> tuple[dict[SamplerSettings, list[float]], dict[SamplerSettings, dict[float, float]]]:  # fmt: skip
        asked.append((list(samplers), first_sample))
        lucky = 0.7 if first_sample == 0 else 0.9
        return {s: [0.8 if s.total_calls or s.correlation_length_mm != 8 else lucky] for s in samplers}, {}

    stored = SimpleNamespace(properties=SimpleNamespace(spacing_mm=(1.0, 1.0, 1.0)))
    run: Any = SimpleNamespace(
        data=SimpleNamespace(open=lambda case: stored),
        configuration=SimpleNamespace(network=SimpleNamespace(dims=2)),
    )
    monkeypatch.setattr(choosing, "score_samplers", score)
    model: Any = None
    ranked, _ = choosing._try_samplers(run, model, InferenceSettings(-3.0, 0.5), ["a"], choosing.QUICK_SEARCH)
    (lengths, first), (final, fresh) = asked
    assert (len(lengths), first) == (len(choosing.LENGTHS_VOXELS), 0)
    assert ([s.total_calls for s in final], fresh) == ([0, 1], 8)
    assert {s.correlation_length_mm for s in final} == {8.0}
    assert ranked[0].sampler.total_calls == 1  # the draws' 0.7 was luck
    assert len(ranked) == 1 + len(choosing.LENGTHS_VOXELS)


def test_of_about_equal_draws_the_one_with_the_longest_field_wins() -> None:
    long = replace(NONE, correlation_length_mm=64.0)
    assert rank_samplers([SamplerTrial(NONE, 0.750), SamplerTrial(long, 0.760)])[0].sampler == long
    assert rank_samplers([SamplerTrial(NONE, 0.750), SamplerTrial(long, 0.770)])[0].sampler == NONE


@pytest.mark.parametrize("winner", [NONE, THREE])
def test_where_another_sampler_makes_the_mean_the_first_still_draws_the_masks(
    monkeypatch: pytest.MonkeyPatch, winner: SamplerSettings
) -> None:
    """THREE has the likeliest mean, whatever its masks; the final decides by Dice as well."""
    ranked = [SamplerTrial(NONE, 0.750), SamplerTrial(TWO, 0.755), SamplerTrial(THREE, 0.9)]
    losses = {TWO: {0.5: 0.49, 1.0: 0.5}, THREE: {0.5: 0.48, 1.0: 0.5}}

    def means(run: object, model: object, settings: InferenceSettings, cases: object) -> list[MeanTrial]:
        assert settings.sampler in (NONE, THREE)
        loss = 0.4 if settings.sampler == winner else 0.5
        assert settings.mask_sampler == (None if settings.sampler == NONE else NONE)
        return [MeanTrial(settings.sampler, 1.0, "half", (0.8, 0.9), loss)]

    monkeypatch.setattr(choosing, "_try_samplers", lambda *args: (ranked, losses))
    monkeypatch.setattr(choosing, "try_means", means)
    before = InferenceSettings(-3.0, 0.5, mask_sampler=TWO)  # what an earlier choice left counts no more
    chosen = choosing.choose_settings(None, None, before, ["a", "b"]).settings  # type: ignore[arg-type]
    assert chosen.sampler == winner
    assert chosen.mask_sampler == (None if winner == NONE else NONE)


@pytest.mark.parametrize(
    ("first", "losses"),
    [
        (TWO, {(TWO, 0.5): 0.4}),
        (TWO, {(THREE, 0.5): 0.499}),  # hardly likelier than p_det
        (TWO, {(THREE, 0.5): 0.45, (TWO, 0.5): 0.4}),
        (replace(TWO, draw=False), {(TWO, 0.5): 0.4}),  # cut or drawn: the mean is the same
        (TWO, {(EIGHT, 0.5): 0.4}),  # ten calls together are more than the longest sampler takes
    ],
)
def test_a_mean_that_is_no_likelier_or_too_dear_adds_no_sampler(
    monkeypatch: pytest.MonkeyPatch, first: SamplerSettings, losses: dict[tuple[SamplerSettings, float], float]
) -> None:
    found = {
        replace(s, draw=True, correlation_length_mm=4.0): {w: losses.get((s, w), 0.5) for w in (0.5, 1.0)}
        for s in (EIGHT, THREE, TWO)
    }
    tried = []

    def means(run: object, model: object, settings: InferenceSettings, cases: object) -> list[MeanTrial]:
        tried.append(settings.sampler)
        return [MeanTrial(settings.sampler, 1.0, "half", (0.8, 0.9), 0.4)]

    monkeypatch.setattr(choosing, "_try_samplers", lambda *args: ([SamplerTrial(first, 0.75)], found))
    monkeypatch.setattr(choosing, "try_means", means)
    chosen = choosing.choose_settings(None, None, InferenceSettings(-3.0, 0.5), ["a"]).settings  # type: ignore[arg-type]
    assert tried == [first]
    assert (chosen.sampler, chosen.mask_sampler) == (first, None)


def test_energy_scores_below_zero_are_ranked_alike() -> None:
    assert rank_samplers([SamplerTrial(EIGHT, -0.100), SamplerTrial(TWO, -0.0985)])[0].sampler == TWO
    assert rank_samplers([SamplerTrial(EIGHT, -0.100), SamplerTrial(TWO, -0.0975)])[0].sampler == EIGHT


def mean_trial(w: float, decision: Decision, dice: Sequence[float], nll: float) -> MeanTrial:
    return MeanTrial(TWO, w, decision, tuple(dice), nll)


PLAIN = mean_trial(1.0, "half", (0.9, 0.7, 0.8, 0.6), 0.9)


def test_gain_is_the_mean_difference_case_by_case_with_its_standard_error() -> None:
    other = mean_trial(0.5, "half", (0.92, 0.70, 0.81, math.nan), 0.5)
    gain, error = other.gain(PLAIN)
    assert gain == pytest.approx(0.01)
    assert error == pytest.approx(0.01 / 3**0.5)  # differences 0.02, 0, 0.01: standard deviation 0.01


def test_among_equal_dice_the_likeliest_wins() -> None:
    honest = mean_trial(0.5, "half", (0.89, 0.71, 0.79, 0.61), 0.5)
    assert rank_means([PLAIN, honest]) == [honest, PLAIN]


def test_likelihood_does_not_buy_a_loss_of_dice() -> None:
    likelier = mean_trial(0.0, "half", (0.87, 0.67, 0.77, 0.57), 0.1)  # three points lower in every case
    assert rank_means([likelier, PLAIN])[0] == PLAIN


def test_a_loss_of_dice_that_the_cases_leave_open_is_not_risked() -> None:
    likelier = mean_trial(0.0, "half", (0.99, 0.60, 0.90, 0.50), 0.1)  # 0.0 on average, 0.06 the standard error
    assert rank_means([likelier, PLAIN])[0] == PLAIN


def test_a_gain_of_dice_in_every_case_wins_against_likelihood() -> None:
    better = mean_trial(0.5, "half", (0.93, 0.72, 0.83, 0.63), 0.95)
    assert rank_means([PLAIN, better])[0] == better


def test_the_cut_for_dice_has_to_earn_its_place() -> None:
    lucky = mean_trial(1.0, "dice", (0.99, 0.69, 0.79, 0.59), 0.9)  # one case makes all of its gain
    earned = mean_trial(1.0, "dice", (0.92, 0.73, 0.82, 0.62), 0.9)
    assert rank_means([lucky, PLAIN])[0] == PLAIN
    assert rank_means([PLAIN, earned])[0] == earned


def test_without_any_defined_dice_the_likelihood_decides() -> None:
    nothing = (math.nan, math.nan)
    first, second = mean_trial(1.0, "half", nothing, 0.2), mean_trial(0.25, "half", nothing, 0.1)
    assert rank_means([first, second])[0] == second


def test_an_empty_hold_out_leaves_the_plain_segmenter() -> None:
    nothing = [mean_trial(w, d, (math.nan,), math.nan) for w in (0.0, 0.5, 1.0) for d in ("half", "dice")]
    assert rank_means(nothing)[0] == nothing[4]


def test_temperatures_of_a_segmenter_that_is_too_sure_of_its_objects_only() -> None:
    """Foreground of which a quarter of the log odds is true, at all of them; background as sure as it says, e^-3."""
    sure, right = torch.linspace(0.1, 12, 1000).repeat(20), torch.full((1000,), -3.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(sure), generator=generator) < (sure / 4).sigmoid()
    target = torch.cat([drawn, torch.arange(1000) < 47]).float()
    logits = torch.cat([sure, right])[None, None]
    found = fit_temperature(logits, target[None, None], torch.ones(21_000), "binary")
    assert found.ceiling is None
    assert found.foreground == pytest.approx(4.0, rel=0.06)  # the grid's steps are 9 % wide
    assert found.background == pytest.approx(1.0, rel=0.06)


def test_objects_that_are_there_in_doubt_get_a_ceiling() -> None:
    """Whole objects that readers mark in seven of ten cases: sure in the middle, unsure at the edge, both 0.7."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 1, 4000).uniform_(0.5, 9.0, generator=generator)
    target = (torch.rand(4000, generator=generator) < 0.7).float()
    found = fit_temperature(logits, target[None, None], torch.ones(4000), "binary")
    assert found.ceiling in (0.75, 1.0)  # log(0.7 / 0.3) = 0.85
    p = probabilities_from_logits(logits, "binary", found)
    assert (p - 0.7).abs().mean() < 0.03


def test_a_segmenter_that_finds_nothing_keeps_its_temperature_of_foreground() -> None:
    found = fit_temperature(torch.full((1, 1, 100), -2.0), torch.zeros(1, 1, 100), torch.ones(100), "binary")
    assert (found.foreground, found.ceiling) == (1.0, None)
    assert found.background == 0.5


@pytest.mark.parametrize("coding", ["softmax", "regions"])
def test_a_ceiling_is_found_for_several_channels_too(coding: str) -> None:
    """One object, in doubt as a whole; which class it is, is known."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 2, 4000).uniform_(1.0, 9.0, generator=generator)
    there = (torch.rand(4000, generator=generator) < 0.7).float()
    target = torch.stack([there, there])[None]
    if coding == "softmax":
        logits = torch.cat([torch.zeros(1, 1, 4000), logits[:, :1], torch.full((1, 1, 4000), -9.0)], dim=1)
        target = torch.stack([1 - there, there, torch.zeros(4000)])[None]
    found = fit_temperature(logits, target, torch.ones(4000), coding)  # type: ignore[arg-type]
    assert found.ceiling in (0.75, 1.0)


def test_temperatures_without_any_voxel_are_one() -> None:
    found = fit_temperature(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0), torch.zeros(0), "softmax")
    assert (found.foreground, found.background) == (1.0, 1.0)
