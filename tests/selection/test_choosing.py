from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unisegdiff_pipeline.core.labels import Coding
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration, probabilities_from_logits
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.diffusion.schedule import Target
from unisegdiff_pipeline.evaluation.spread import CaseSpread, mean_place, size_score
from unisegdiff_pipeline.inference.settings import Decision, InferenceSettings
from unisegdiff_pipeline.preprocessing.components import ANNOTATED
from unisegdiff_pipeline.selection import choosing
from unisegdiff_pipeline.selection.calibration import FEWEST_FOR_CALIBRATION, FittedCalibration, fit_calibrations
from unisegdiff_pipeline.selection.choosing import FEWEST_FOR_SETTINGS, choose_settings, too_few
from unisegdiff_pipeline.selection.field_length import LENGTHS_VOXELS, planned_length_mm
from unisegdiff_pipeline.selection.sampler import (
    DEFAULT_SAMPLER,
    FULL_SEARCH,
    STAGE_A_CALL,
    SURFACE_PARTS,
    SamplerTrial,
    drawing,
    rank_samplers,
    try_samplers,
)
from unisegdiff_pipeline.selection.segmenter_weight import (
    DEFAULT_SEGMENTER_WEIGHT,
    MeanTrial,
    rank_means,
    with_samplers,
)
from unisegdiff_pipeline.selection.surface import rank_surfaces, try_surfaces

TWO, EIGHT = SamplerSettings(num_calls=2), SamplerSettings(num_calls=8)
NONE = SamplerSettings(num_calls=0, draw=True, correlation_length_mm=4.0)


def own_spacing(dims: int) -> SimpleNamespace:
    """A plan without sources, whose cases have their own voxel size."""
    return SimpleNamespace(network=SimpleNamespace(dims=dims), field_spacing_mm=lambda spacing_mm: spacing_mm)


def trial(sampler: SamplerSettings, *energies: float, groups: tuple[str, ...] | None = None) -> SamplerTrial:
    return SamplerTrial(sampler, energies, groups)


def test_the_usual_sampler_stays_where_another_is_hardly_better() -> None:
    default, better = trial(TWO, 0.8, 0.7, 0.6), trial(EIGHT, 0.6, 0.71, 0.61)  # 0.06 better, 0.07 the standard error
    assert [t.sampler for t in rank_samplers([better, trial(NONE, 0.9, 0.9, 0.9), default], TWO)] == [TWO, EIGHT, NONE]


@pytest.mark.parametrize("other", [EIGHT, NONE])
def test_a_clearly_better_sampler_takes_its_place(other: SamplerSettings) -> None:
    default, better = trial(TWO, 0.8, 0.7, 0.6), trial(other, 0.75, 0.66, 0.55)
    assert [t.sampler for t in rank_samplers([default, better], TWO)] == [other, TWO]


def test_better_in_all_cases_of_two_patients_is_not_clear_where_one_of_them_gains_nothing() -> None:
    groups = ("a", "a", "a", "a", "b", "b")
    default = trial(TWO, *[0.8] * 6, groups=groups)
    better = trial(EIGHT, 0.7, 0.71, 0.7, 0.71, 0.79, 0.8, groups=groups)
    assert rank_samplers([default, better], TWO)[0].sampler == TWO


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


def objects(shape: tuple[int, ...], spacing_mm: tuple[float, ...], *num_voxels: int, rows: int = 1) -> Any:
    """A stored case with annotated objects of these sizes; with several rows those of the first do not count."""
    row, last = np.arange(len(num_voxels)) % rows, len(num_voxels)
    table = SimpleNamespace(
        class_index=np.array([0] * last + [ANNOTATED]),
        row=np.append(row, 0),
        num_voxels=np.array([*num_voxels, 10**6]),
    )
    properties = SimpleNamespace(spacing_mm=spacing_mm)
    return SimpleNamespace(components=table, properties=properties, image=np.empty((1, *shape)), num_rows=rows)


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


@pytest.mark.parametrize(
    ("masks", "w", "target", "expected"),
    [
        (TWO, 0.25, "staged", (STAGE_A_CALL, TWO)),
        (NONE, 0.0, "v", (STAGE_A_CALL, NONE)),
        (TWO, 1.0, "staged", (TWO, None)),  # p_det alone: no mean is needed
        (TWO, 0.25, "epsilon", (TWO, None)),
        (replace(STAGE_A_CALL, draw=True, correlation_length_mm=4.0), 0.25, "staged", None),
    ],
)
def test_stage_a_makes_the_mean(
    masks: SamplerSettings, w: float, target: Target, expected: tuple[SamplerSettings, SamplerSettings | None] | None
) -> None:
    before = InferenceSettings(lam_a=-3.0, lam_c=0.5, target=target, mask_sampler=EIGHT)  # of an earlier choice
    found = with_samplers(before, masks, w)
    assert (found.sampler, found.mask_sampler) == (expected or (masks, None))
    assert found.segmenter_weight == w


@pytest.mark.parametrize("best", [1.0, 0.25])
def test_settings_hold_what_was_chosen(monkeypatch: pytest.MonkeyPatch, best: float) -> None:
    fitted = FittedCalibration(LogitCalibration(2.0, 3.0), {"a": LogitCalibration(5.0, 5.0)})

    def means(run: object, model: object, settings: InferenceSettings, cases: object) -> list[MeanTrial]:
        assert (settings.sampler, settings.mask_sampler, cases) == (STAGE_A_CALL, EIGHT, fitted.of_others)
        return [MeanTrial(STAGE_A_CALL, w, "half", (0.9 if w == best else 0.6, 0.8), (0.5, 0.4)) for w in (0.25, 1.0)]

    monkeypatch.setattr(choosing, "choose_calibration", lambda *args: fitted)
    monkeypatch.setattr(choosing, "try_samplers", lambda *args: [trial(EIGHT, 0.5)])
    monkeypatch.setattr(choosing, "try_means", means)
    monkeypatch.setattr(choosing, "num_informative", lambda *args: FEWEST_FOR_SETTINGS)
    run: Any = None
    chosen = choose_settings(run, run, InferenceSettings(lam_a=-3.0, lam_c=0.5), ["a"]).settings
    assert (chosen.segmenter_weight, chosen.calibration) == (best, fitted.of_all)
    assert (chosen.sampler, chosen.mask_sampler) == ((EIGHT, None) if best == 1 else (STAGE_A_CALL, EIGHT))


@pytest.mark.parametrize(
    ("patients", "left"), [(1, "temperature, sampler"), (3, "temperature, sampler"), (4, "sampler"), (5, "sampler")]
)
def test_too_few_patients_choose_nothing_and_say_so(monkeypatch: pytest.MonkeyPatch, patients: int, left: str) -> None:
    """One held-out case chose a temperature of 8, with which no probability was above 0.562."""

    def refuse(*args: object) -> None:
        raise AssertionError("nothing is to be tried on so few patients")

    stored = {
        f"{i}": SimpleNamespace(**vars(objects((1, 64, 64), (1.0, 1.0, 1.0), 50)), group=i) for i in range(patients)
    }
    stored["empty"] = SimpleNamespace(**vars(objects((1, 64, 64), (1.0, 1.0, 1.0))), group="another")
    run: Any = SimpleNamespace(data=SimpleNamespace(open=stored.__getitem__), configuration=own_spacing(2))
    fitted = FittedCalibration(LogitCalibration(2.0, 3.0), {})
    monkeypatch.setattr(choosing, "try_samplers", refuse)
    monkeypatch.setattr(choosing, "try_means", refuse)
    monkeypatch.setattr("unisegdiff_pipeline.selection.calibration.held_out_logits", refuse)
    if patients >= FEWEST_FOR_CALIBRATION:
        monkeypatch.setattr(choosing, "choose_calibration", lambda *args: fitted)
    before = InferenceSettings(lam_a=-3.0, lam_c=0.5, segmenter_weight=0.25, mask_sampler=EIGHT)
    choice = choose_settings(run, run, before, list(stored))
    kept = NO_CALIBRATION if patients < FEWEST_FOR_CALIBRATION else fitted.of_all
    assert choice.settings == replace(before, calibration=kept)
    assert (choice.samplers, choice.means) == ((), ())
    assert choice.warning.startswith(f"{left}, segmenter weight, threshold" if left == "sampler" else left)
    assert f"{patients} held-out patient" in choice.warning
    assert "are too few" in choice.warning


def test_enough_patients_leave_nothing_at_its_default() -> None:
    assert too_few(FEWEST_FOR_SETTINGS) == ""


def surface(
    part: float, sizes: Sequence[float], places: Sequence[float] = (), energy: Sequence[float] = (0.5, 0.5, 0.5)
) -> SamplerTrial:
    """A trial with so much of 16 mm for the surfaces."""
    return SamplerTrial(drawing(TWO, 16.0, part), tuple(energy), None, tuple(sizes), tuple(places))


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


def volumes_only(volumes: np.ndarray, reference: int) -> CaseSpread:
    counted = tuple(volumes.astype(int).tolist())
    return CaseSpread("a", "organ", counted, (reference,), 0.4, math.nan, 0.5, 0.9, (0,) * 9, (0.0,) * 9)


def test_sizes_do_not_buy_worse_masks() -> None:
    trials = [
        surface(1.0, (2.0, 2.1, 1.9)),
        surface(0.25, (3.0, 3.0, 3.0)),
        surface(0.125, (1.0, 1.2, 0.9), energy=(0.6, 0.62, 0.61)),
    ]
    assert [t.sampler.surface_length_mm for t in rank_surfaces(trials)] == [16.0, 4.0, 2.0]


def mean_trial(w: float, decision: Decision, dice: Sequence[float], nll: float | Sequence[float]) -> MeanTrial:
    losses = (nll,) * len(dice) if isinstance(nll, float) else tuple(nll)
    return MeanTrial(TWO, w, decision, tuple(dice), losses)


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


def test_what_the_luckiest_of_the_cuts_gains_rules_out_no_usual_weight() -> None:
    default = mean_trial(DEFAULT_SEGMENTER_WEIGHT, "half", (0.90, 0.68, 0.80, 0.60), 0.5)
    lucky = mean_trial(0.75, "half", (0.91, 0.72, 0.80, 0.61), 0.8)  # by 0.015, 1.7 standard errors
    assert rank_means([PLAIN, lucky, default])[0] == default


def test_a_tenth_of_a_point_of_dice_buys_no_likelihood_however_sure_it_is() -> None:
    likelier = mean_trial(0.5, "half", tuple(d - 0.001 for d in PLAIN.dice_of_cases), 0.5)
    lower = mean_trial(0.5, "half", tuple(d - 0.003 for d in PLAIN.dice_of_cases), 0.5)
    assert rank_means([PLAIN, likelier])[0] == likelier
    assert rank_means([PLAIN, lower])[0] == PLAIN


def test_the_cut_for_dice_has_to_earn_its_place() -> None:
    lucky = mean_trial(1.0, "dice", (0.99, 0.69, 0.79, 0.59), 0.9)  # one case makes all of its gain
    earned = mean_trial(1.0, "dice", (0.92, 0.73, 0.82, 0.62), 0.9)
    assert rank_means([lucky, PLAIN])[0] == PLAIN
    assert rank_means([PLAIN, earned])[0] == earned


def test_the_usual_weight_stays_where_another_is_hardly_likelier() -> None:
    default = mean_trial(DEFAULT_SEGMENTER_WEIGHT, "half", PLAIN.dice_of_cases, (0.5, 0.6, 0.7, 0.6))
    hardly = mean_trial(0.5, "half", PLAIN.dice_of_cases, (0.3, 0.7, 0.7, 0.6))  # 0.025 likelier, 0.06 the error
    clearly = mean_trial(0.0, "half", PLAIN.dice_of_cases, (0.4, 0.5, 0.65, 0.5))
    assert rank_means([PLAIN, hardly, default])[:2] == [default, hardly]
    assert rank_means([PLAIN, hardly, default, clearly])[0] == clearly


def test_without_any_defined_dice_the_likelihood_decides() -> None:
    nothing = (math.nan, math.nan)
    first, second = mean_trial(1.0, "half", nothing, 0.2), mean_trial(0.5, "half", nothing, 0.1)
    assert rank_means([first, second])[0] == second


def test_an_empty_hold_out_leaves_the_plain_segmenter() -> None:
    nothing = [mean_trial(w, d, (math.nan,), math.nan) for w in (0.0, 0.5, 1.0) for d in ("half", "dice")]
    assert rank_means(nothing)[0] == nothing[4]


def fit_calibration(logits: torch.Tensor, target: torch.Tensor, coding: Coding) -> LogitCalibration:
    """Of voxels that count alike and belong to one group."""
    num_voxels = logits.shape[2]
    weights, owners = torch.ones(num_voxels), torch.zeros(num_voxels, dtype=torch.long)
    return fit_calibrations(logits, target, weights, coding, owners, 1)[0]


def test_temperatures_of_a_segmenter_that_is_too_sure_of_its_objects_only() -> None:
    """Foreground of which a quarter of the log odds is true, at all of them; background as sure as it says, e^-3."""
    sure, right = torch.linspace(0.1, 12, 1000).repeat(20), torch.full((1000,), -3.0)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(len(sure), generator=generator) < (sure / 4).sigmoid()
    target = torch.cat([drawn, torch.arange(1000) < 47]).float()
    logits = torch.cat([sure, right])[None, None]
    found = fit_calibration(logits, target[None, None], "binary")
    assert found.soft_cap is None
    assert found.foreground == pytest.approx(4.0, rel=0.06)  # the grid's steps are 9 % wide
    assert found.background == pytest.approx(1.0, rel=0.06)


def test_objects_that_are_there_in_doubt_get_a_ceiling() -> None:
    """Whole objects that readers mark in seven of ten cases: sure in the middle, unsure at the edge, both 0.7."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 1, 4000).uniform_(0.5, 9.0, generator=generator)
    target = (torch.rand(4000, generator=generator) < 0.7).float()
    found = fit_calibration(logits, target[None, None], "binary")
    assert found.soft_cap in (0.75, 1.0)  # log(0.7 / 0.3) = 0.85
    p = probabilities_from_logits(logits, "binary", found)
    assert (p - 0.7).abs().mean() < 0.03


def test_a_segmenter_that_finds_nothing_keeps_its_temperature_of_foreground() -> None:
    found = fit_calibration(torch.full((1, 1, 100), -2.0), torch.zeros(1, 1, 100), "binary")
    assert (found.foreground, found.soft_cap) == (1.0, None)
    assert found.background == 0.5


@pytest.mark.parametrize("coding", ["softmax", "regions"])
def test_a_ceiling_is_found_for_several_channels_too(coding: Coding) -> None:
    """One object, in doubt as a whole; which class it is, is known."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(1, 2, 4000).uniform_(1.0, 9.0, generator=generator)
    there = (torch.rand(4000, generator=generator) < 0.7).float()
    target = torch.stack([there, there])[None]
    if coding == "softmax":
        logits = torch.cat([torch.zeros(1, 1, 4000), logits[:, :1], torch.full((1, 1, 4000), -9.0)], dim=1)
        target = torch.stack([1 - there, there, torch.zeros(4000)])[None]
    found = fit_calibration(logits, target, coding)
    assert found.soft_cap in (0.75, 1.0)


def test_temperatures_without_any_voxel_are_one() -> None:
    found = fit_calibration(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0), "softmax")
    assert (found.foreground, found.background) == (1.0, 1.0)


def test_a_group_is_judged_by_the_temperature_of_all_others() -> None:
    """Two groups are half as sure as they say; the third says the opposite of what is."""
    generator = torch.Generator().manual_seed(0)
    z = torch.linspace(-8, 8, 3000).repeat(3)
    target = (torch.rand(9000, generator=generator) < (z / 2).sigmoid()).float()
    owners = torch.arange(3).repeat_interleave(3000)
    target[owners == 2] = (z[owners == 2] < 0).float()
    data = z[None, None], target[None, None], torch.ones(9000), "binary", owners
    of_all, without = fit_calibrations(*data, 3)
    assert [t.foreground > 3 for t in (of_all, *without)] == [True, True, True, False]
    assert without[2].foreground == pytest.approx(2.0, rel=0.1)
    assert without[2].background == pytest.approx(2.0, rel=0.1)
    kept = owners != 2
    alone, _ = fit_calibrations(data[0][..., kept], data[1][..., kept], data[2][kept], "binary", owners[kept], 2)
    assert without[2] == alone


def test_what_only_one_group_shows_is_unknown_without_it() -> None:
    """The other group has nothing that is found, a third no voxel at all."""
    z, owners = torch.tensor([3.0] * 50 + [-3.0] * 50), torch.tensor([0] * 50 + [1] * 50)
    target = (z > 0).float()
    data = z[None, None], target[None, None], torch.ones(100), "binary", owners
    of_all, without = fit_calibrations(*data, 3)
    assert (of_all.foreground, of_all.background) == (0.5, 0.5)
    assert without[0] == LogitCalibration(1.0, 0.5)
    assert without[2] == of_all
    empty = (torch.zeros(1, 1, 0), torch.zeros(1, 1, 0), torch.zeros(0), "binary", torch.zeros(0, dtype=torch.long))
    assert fit_calibrations(*empty, 2) == (NO_CALIBRATION, [NO_CALIBRATION, NO_CALIBRATION])
