"""What commands show of the library's log and progress, and where."""

from __future__ import annotations

import logging
import re

import pytest

from unisegdiff_pipeline.commands import terminal
from unisegdiff_pipeline.core.progress import progress


def test_lines_say_how_much_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 6.0, 12.0, 18.0, 24.0, 24.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.showing():
        list(progress("abcd", 4, "Reading"))
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 2 of 4, about 12.0 s left",
        "Reading: 4 done in 24.0 s",
    ]


def test_a_training_says_the_time_of_day_and_a_prediction_speaks_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.showing():
        logging.getLogger("unisegdiff_pipeline.training.log").info("%s", "100 % of it")
        logging.getLogger("unisegdiff_pipeline.pipeline").info("planned")
        logging.getLogger("unisegdiff_pipeline.inference.folder_run").info("3 are left")
        logging.getLogger("unisegdiff_pipeline.pipeline").warning("too few")
    out, err = capsys.readouterr()
    timed, plain = out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  100 % of it", timed)
    assert plain == "planned"
    assert err.splitlines() == ["3 are left", "warning: too few"]


def test_a_bar_that_an_error_ends_leaves_the_line_to_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True, raising=False)

    @terminal.showing()
    def fail() -> None:
        for item in progress("abcd", 4, "Reading"):
            if item == "c":
                raise KeyError(item)

    with pytest.raises(KeyError):
        fail()
    bar = capsys.readouterr().err
    assert "2/4" in bar
    assert bar.endswith("\n")


def test_behind_the_command_the_library_is_silent_again(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.showing():
        pass
    logging.getLogger("unisegdiff_pipeline.training.log").info("unheard")
    assert capsys.readouterr() == ("", "")
