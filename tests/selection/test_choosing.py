"""What a fold predicts with: what is chosen, and what too few patients leave at its default."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.selection.by_hand import EIGHT, objects, own_spacing, trial
from unisegdiff_pipeline.core.progress import is_or_are
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.selection import choosing
from unisegdiff_pipeline.selection.calibration import FEWEST_FOR_CALIBRATION, FittedCalibration
from unisegdiff_pipeline.selection.choosing import FEWEST_FOR_SETTINGS, choose_settings, chosen_on, too_few
from unisegdiff_pipeline.selection.sampler import STAGE_A_CALL
from unisegdiff_pipeline.selection.segmenter_weight import DEFAULT_SEGMENTER_WEIGHT, MeanTrial


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
    first, second, last = choose_settings(run, run, InferenceSettings(lam_a=-3.0, lam_c=0.5), ["a"])
    chosen = last.settings
    assert (chosen.segmenter_weight, chosen.calibration) == (best, fitted.of_all)
    assert (chosen.sampler, chosen.mask_sampler) == ((EIGHT, None) if best == 1 else (STAGE_A_CALL, EIGHT))
    assert last.left_at_default == ""
    # whoever runs out of time before has what was chosen by then, and the defaults
    assert first.settings == InferenceSettings(lam_a=-3.0, lam_c=0.5, calibration=fitted.of_all)
    assert first.left_at_default.startswith("sampler, segmenter weight")
    assert (second.settings.mask_sampler, second.settings.segmenter_weight) == (EIGHT, DEFAULT_SEGMENTER_WEIGHT)
    assert second.left_at_default == "segmenter weight and threshold of the mask"


def test_cases_are_predicted_with_the_calibration_of_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    of_all = FittedCalibration(LogitCalibration(2.0), {"MR__1": LogitCalibration(5.0), "CT__1": LogitCalibration(6.0)})
    of_mr = {"MR": LogitCalibration(3.0)}
    fitted = FittedCalibration(of_mr["MR"], dict.fromkeys(("MR__1", "MR__2"), LogitCalibration(4.0)))
    tried = {"MR__1": LogitCalibration(4.0), "CT__1": LogitCalibration(6.0)}

    def samplers(run: object, model: object, settings: InferenceSettings, cases: object, search: object) -> list[Any]:
        assert (settings.source_calibrations, cases) == (of_mr, tried)
        return [trial(EIGHT, 0.5)]

    monkeypatch.setattr(choosing, "choose_calibration", lambda *args: of_all)
    monkeypatch.setattr(choosing, "choose_source_calibrations", lambda *args: {"MR": fitted})
    monkeypatch.setattr(choosing, "try_samplers", samplers)
    monkeypatch.setattr(choosing, "try_means", lambda *args: [MeanTrial(EIGHT, 1.0, "half", (0.9,), (0.5,))])
    monkeypatch.setattr(choosing, "num_informative", lambda *args: FEWEST_FOR_SETTINGS)
    run: Any = None
    first, second, *_, last = choose_settings(
        run, run, InferenceSettings(lam_a=-3.0, lam_c=0.5), list(tried), source_cases=["MR__2"]
    )
    # whoever runs out of time for those of single sources has that of all
    assert (first.settings.calibration, first.settings.source_calibrations) == (of_all.of_all, {})
    assert (first.calibrations, second.settings.source_calibrations) == (of_all.of_others, of_mr)
    assert last.settings.source_calibrations == of_mr
    assert last.calibrations == tried | {"MR__2": LogitCalibration(4.0)}


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
    (choice,) = choose_settings(run, run, before, list(stored))
    kept = NO_CALIBRATION if patients < FEWEST_FOR_CALIBRATION else fitted.of_all
    assert choice.settings == replace(before, calibration=kept)
    assert (choice.samplers, choice.means) == ((), ())
    assert choice.warning.startswith(f"{left}, segmenter weight, threshold" if left == "sampler" else left)
    assert f"{patients} held-out patient" in choice.warning
    assert f"{is_or_are(patients)} too few" in choice.warning


def test_enough_patients_leave_nothing_at_its_default() -> None:
    assert too_few(FEWEST_FOR_SETTINGS) == ""


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        (2, "nothing: temperature, sampler, segmenter weight, threshold and spread of the samples are the defaults, "),
        (4, "temperature on 2 cases of the inner hold-out: a, b; sampler, segmenter weight, threshold and spread of "),
        (6, "2 cases of the inner hold-out: a, b"),
    ],
)
def test_what_was_chosen_on_which_cases_is_said_without_contradiction(patients: int, expected: str) -> None:
    assert chosen_on(["a", "b"], too_few(patients)).startswith(expected)


def test_what_was_chosen_before_time_ran_out_is_said() -> None:
    said = chosen_on(["a", "b"], "segmenter weight and threshold of the mask are the defaults, for lack of time")
    assert said.startswith("temperature and sampler on 2 cases of the inner hold-out: a, b; segmenter weight and thr")
