"""Signals that end a training at once, but between steps; and time limits of a step."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from unisegdiff_pipeline.training import interrupt
from unisegdiff_pipeline.training.interrupt import StopRequest, TrainingInterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once(number: signal.Signals) -> None:
    def work() -> None:
        with StopRequest():
            signal.raise_signal(number)
            time.sleep(60)

    start = time.monotonic()
    with pytest.raises(TrainingInterrupted, match=number.name) as caught:
        work()
    assert caught.value.signal_number == number
    assert time.monotonic() - start < 30


def test_a_signal_while_an_object_is_cleaned_away_says_nothing_and_is_obeyed_at_the_next_check(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Signals:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = sys.unraisablehook
    with StopRequest() as stop:
        Signals()
        assert capsys.readouterr().err == ""
        with pytest.raises(TrainingInterrupted, match="SIGTERM"):
            stop.check()
    assert sys.unraisablehook is before


def test_other_errors_while_an_object_is_cleaned_away_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ValueError("told")

    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(str(lost.exc_value)))
    with StopRequest():
        Fails()
    assert told == ["told"]


def test_what_forgives_errors_does_not_swallow_it() -> None:
    assert not issubclass(TrainingInterrupted, Exception)


def test_a_step_is_finished_first() -> None:
    done = []

    def work() -> None:
        with StopRequest() as stop:
            with stop.deferred():
                signal.raise_signal(signal.SIGTERM)
                with stop.deferred():
                    done.append("inner")
                done.append("outer")
            done.append("behind")

    with pytest.raises(TrainingInterrupted):
        work()
    assert done == ["inner", "outer"]


def test_a_second_ctrl_c_does_not_wait() -> None:
    def work() -> None:
        with StopRequest() as stop, stop.deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_former_handlers_come_back() -> None:
    former = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != former[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == former


def test_a_step_ends_when_its_time_is_over() -> None:
    start = time.monotonic()
    with StopRequest() as stop:
        with stop.limited(0.05) as limit:
            time.sleep(60)
        assert limit.exceeded
        with stop.limited(60) as limit:  # and the next one has its own
            pass
        assert not limit.exceeded
        with stop.limited(None) as limit:
            pass
        assert not limit.exceeded
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("entered", [interrupt, contextlib])
def test_time_that_is_over_while_the_limit_is_entered_does_not_leave_it(
    monkeypatch: pytest.MonkeyPatch, entered: ModuleType
) -> None:
    """As on a loaded machine, where the alarm of the least limit may ring before the step begins."""

    arm, naps = signal.setitimer, [0.02]

    def arm_and_wait(which: int, seconds: float, arm: Any = arm, wait: Any = time.sleep, naps: Any = naps) -> None:
        arm(which, seconds)
        wait(naps.pop() if naps else 0)

    there = FunctionType(arm_and_wait.__code__, {"__name__": entered.__name__}, None, arm_and_wait.__defaults__)
    begun = []
    with StopRequest() as stop:
        monkeypatch.setattr(interrupt.signal, "setitimer", there)
        with stop.limited(0.0) as limit:
            begun.append("step")
            time.sleep(60)
        assert limit.exceeded
    assert begun == ["step"]


def test_a_package_is_imported_whole_before_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would stay in sys.modules, and whoever imports it later would get an AttributeError."""
    package = tmp_path / "imported_in_parts"
    package.mkdir()
    (package / "part.py").write_text("from imported_in_parts import first\n")
    (package / "__init__.py").write_text("import time\nfirst = 1\nfrom . import part\ntime.sleep(0.05)\nsecond = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with StopRequest() as stop:
        with stop.limited(0.01) as limit:
            importlib.import_module("imported_in_parts")
            time.sleep(60)
        assert limit.exceeded
    assert sys.modules.pop("imported_in_parts").second == 2
    del sys.modules["imported_in_parts.part"]


def test_a_deferred_step_is_not_cut_by_its_time() -> None:
    done = []
    with StopRequest() as stop:
        with stop.limited(0.01) as limit:
            with stop.deferred():
                time.sleep(0.05)
                done.append("written")
            done.append("behind")
        assert limit.exceeded
    assert done == ["written"]


def test_a_signal_goes_through_a_time_limit() -> None:
    with pytest.raises(TrainingInterrupted), StopRequest() as stop, stop.limited(60):
        signal.raise_signal(signal.SIGINT)


def test_without_listening_there_is_no_limit() -> None:
    with StopRequest().limited(0.001) as limit:
        time.sleep(0.01)
    assert not limit.exceeded
