"""What a fold keeps: the best weights where the cases bear it out, and what counts as finished."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.selection.choosing import Choice
from unisegdiff_pipeline.training import fold_settings
from unisegdiff_pipeline.training.fold import is_finished, require_weights, take_best, write_choice
from unisegdiff_pipeline.training.interrupt import StopRequest, _TimeIsUp
from unisegdiff_pipeline.training.time_budget import Costs
from unisegdiff_pipeline.training.trainers.trainer import Trainer


@pytest.mark.parametrize(
    ("best", "last", "groups", "kept"),
    [
        ((0.9, 0.8, 0.7, 0.6), (0.8, 0.7, 0.6, 0.5), "abcd", "best"),  # better in every case
        ((0.9, 0.9, 0.9, 0.2), (0.2, 0.8, 0.8, 0.8), "abcd", "ema"),  # by luck in one
        ((0.9, 0.9, 0.9, 0.9, 0.7, 0.7), (0.7,) * 6, "abcdef", "best"),
        ((0.9, 0.9, 0.9, 0.9, 0.7, 0.7), (0.7,) * 6, "aaaabb", "ema"),  # by luck in one of two patients
        ((0.804, 0.704, 0.604), (0.8, 0.7, 0.6), "abc", "ema"),  # by next to nothing
        ((0.9, 0.8, 0.7), (0.8, 0.7), "ab", "best"),  # a later session looked at fewer cases
        ((0.9,), (0.8,), "a", "ema"),
    ],
)
def test_earlier_weights_replace_the_last_only_where_the_cases_bear_it_out(
    best: tuple[float, ...], last: tuple[float, ...], groups: str, kept: str
) -> None:
    loaded: list[object] = []
    trainer: Any = SimpleNamespace(
        best=best,
        last=last,
        groups=tuple(groups),
        sources=(),
        best_weights={},
        ema=SimpleNamespace(network=SimpleNamespace(load_state_dict=loaded.append)),
        run=SimpleNamespace(log=SimpleNamespace(say=lambda line: None)),
    )
    trainer.gain_of_best = lambda: Trainer.gain_of_best(trainer)
    assert take_best(trainer) == kept
    assert len(loaded) == (kept == "best")


def test_weights_are_chosen_by_the_mean_over_sources() -> None:
    trainer: Any = SimpleNamespace(
        best=(0.9, 0.9, 0.8, 0.2),
        last=(0.8, 0.8, 0.7, 0.6),
        groups=("US__0", "US__1", "US__2", "CT__0"),
        sources=("US", "US", "US", "CT"),
    )
    gain, error = Trainer.gain_of_best(trainer)  # 0.1 on three cases of one source, -0.4 on one of the other
    assert gain == pytest.approx(-0.15)
    assert error == pytest.approx(0.0)
    trainer.sources = ()
    assert Trainer.gain_of_best(trainer)[0] == pytest.approx(-0.025)


def test_the_lesion_filter_is_chosen_on_all_held_out_cases_that_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = InferenceSettings(lam_a=-6.0, lam_c=-1.0, calibration=LogitCalibration(2.0, 2.0))
    of_others = {"a": LogitCalibration(3.0, 3.0)}
    examined, said, chosen_of = {}, [], []

    def find(held_out: Any, model: Any, settings: Any, cases: dict[str, LogitCalibration]) -> Iterator[str]:
        for case_id, calibration in cases.items():
            if case_id == "c":
                raise _TimeIsUp
            examined[case_id] = calibration
            yield case_id

    monkeypatch.setattr(fold_settings, "affordable_cases", lambda *_: (("a",), 60.0))
    monkeypatch.setattr(fold_settings, "choose_settings", lambda *_: iter([Choice(settings, of_others, (), (), "few")]))
    monkeypatch.setattr(fold_settings, "find_in_held_out", find)
    monkeypatch.setattr(fold_settings, "numbers_of_objects", lambda _: {})
    monkeypatch.setattr(fold_settings, "choose_lesions", lambda found, *_: chosen_of.extend(found))
    with StopRequest() as stop:
        run: Any = SimpleNamespace(
            holdout_cases=("a", "b", "c", "d"),
            is_asked_to_end=False,
            configuration=SimpleNamespace(sources=None),
            held_out=None,
            stop=stop,
            watch=SimpleNamespace(seconds=0.0),
            log=SimpleNamespace(say=said.append),
            plans=SimpleNamespace(labels=SimpleNamespace(names=("lesion",))),
        )
        fold_settings.choose_on_hold_out(run, None, settings, Costs())  # type: ignore[arg-type]
        assert examined == {**of_others, "b": settings.calibration}
        assert chosen_of == ["a", "b"]
        assert said[-1] == "the lesion filter is chosen on 2 of 4 held-out cases, for lack of time (--max-time)"
        run.holdout_cases = ("c", "d")
        fold_settings.choose_on_hold_out(run, None, settings, Costs())  # type: ignore[arg-type]
        assert said[-1] == "no lesion filter is chosen, for lack of time (--max-time)"
        run.is_asked_to_end = True
        examined.clear()
        fold_settings.choose_on_hold_out(run, None, settings, Costs())  # type: ignore[arg-type]
        assert list(examined) == ["a"]


def test_a_fold_is_finished_with_weights_and_scores(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    with pytest.raises(UsdError, match="train it first, without --val"):
        require_weights(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    require_weights(tmp_path)
    assert not is_finished(tmp_path)
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation/summary.json").touch()
    assert is_finished(tmp_path)


def test_a_choice_is_written_with_what_was_tried(tmp_path: Path) -> None:
    settings = InferenceSettings(lam_a=-6.0, lam_c=-1.0, num_samples=3)
    write_choice(tmp_path, settings, None)
    assert read_settings(tmp_path) == settings
    assert json.loads((tmp_path / "candidates.json").read_text()) == {}


NOTHING = "nothing, for lack of time: all settings are the defaults"


def settings_of_fold_all(model: Path, said: list[str]) -> tuple[InferenceSettings, InferenceSettings]:
    """What fold "all" takes over for phase 1 and for prediction."""
    stages = SimpleNamespace(lam_a=-5.0, lam_c=0.0, input_scale=())
    run: Any = SimpleNamespace(
        folder=model / "fold_all",
        holdout_cases=(),
        configuration=SimpleNamespace(stages=stages),
        log=SimpleNamespace(say=said.append),
    )
    network: Any = None
    of_phase_1, _ = fold_settings.settings_of_phase_1(run, network, two_phases=True)
    return of_phase_1, fold_settings.settings_of_another_fold(run, replace(of_phase_1, segmenter_weight=0.5))


def finish(folder: Path, **chosen: Any) -> None:
    folder.mkdir()
    write_settings(folder, InferenceSettings(lam_a=-6.0, lam_c=-1.0, **chosen))
    (folder / "weights.safetensors").touch()


def test_fold_all_takes_over_settings_of_a_fold_that_has_chosen_them(tmp_path: Path) -> None:
    finish(tmp_path / "fold_0", segmenter_weight=1.0, num_samples=0)  # ended by the stop file in phase 1
    finish(tmp_path / "fold_1", segmenter_weight=0.5, chosen_on=NOTHING)
    finish(tmp_path / "fold_2", segmenter_weight=0.25, chosen_on="9 cases of the inner hold-out: a, b")
    said: list[str] = []
    of_phase_1, settings = settings_of_fold_all(tmp_path, said)
    assert of_phase_1.lam_a == -6.0
    assert (settings.segmenter_weight, settings.num_samples) == (0.25, 8)
    assert settings.chosen_on == "fold_2, as there"
    assert not said


def test_fold_all_says_that_the_other_folds_chose_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "fold_0", segmenter_weight=1.0, num_samples=0)
    said: list[str] = []
    of_phase_1, settings = settings_of_fold_all(tmp_path, said)
    assert of_phase_1.lam_a == -5.0
    assert (settings.segmenter_weight, settings.chosen_on) == (0.5, "nothing: all settings are the defaults")
    assert "how to predict is left at the defaults" in said[-1]
    finish(tmp_path / "fold_1", segmenter_weight=0.5, filter_in_words=("lesion: all stay",), chosen_on=NOTHING)
    _, settings = settings_of_fold_all(tmp_path, said)
    assert settings.chosen_on == NOTHING
    assert settings.filter_in_words == ("lesion: all stay",)  # which is chosen on fewer cases than the others
    assert f"fold_1 has chosen {NOTHING}" in said[-1]


def test_a_segmenter_on_every_case_takes_over_what_phase_1_of_another_fold_found(tmp_path: Path) -> None:
    finish(tmp_path / "fold_0", segmenter_weight=1.0, num_samples=0)
    run: Any = SimpleNamespace(folder=tmp_path / "fold_all")
    assert fold_settings._finished_fold(run, two_phases=False) == tmp_path / "fold_0"
