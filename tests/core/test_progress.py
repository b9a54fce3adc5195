"""Plain progress lines."""

from __future__ import annotations

import pytest

from unisegdiff_pipeline.core import progress as module
from unisegdiff_pipeline.core.progress import counted, format_duration, progress


def test_lines_say_how_much_is_left(monkeypatch, capsys):
    clock = iter([0.0, 6.0, 12.0, 18.0, 24.0, 24.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    assert list(progress("abcd", 4, "Reading")) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 2 of 4, about 12.0 s left",
        "Reading: 4 done in 24.0 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (59.9, "59.9 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_counted_nouns() -> None:
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
