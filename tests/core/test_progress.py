"""Who is told of progress, and numbers in words."""

from __future__ import annotations

import threading

import pytest

from unisegdiff_pipeline.core.progress import Progress, counted, format_duration, progress, telling


def test_the_listener_is_told_of_every_item() -> None:
    heard: list[Progress] = []
    with telling(heard.append):
        assert list(progress("ab", 2, "reading")) == ["a", "b"]
    assert [(state.done, state.total, state.is_finished) for state in heard] == [
        (0, 2, False),
        (1, 2, False),
        (2, 2, False),
        (2, 2, True),
    ]
    assert {state.description for state in heard} == {"reading"}


def test_none_leaves_the_listener_and_other_threads_have_none() -> None:
    heard: list[Progress] = []
    with telling(heard.append):
        with telling(None):
            list(progress("a", 1, "inner"))
        thread = threading.Thread(target=lambda: list(progress("a", 1, "elsewhere")))
        thread.start()
        thread.join()
    list(progress("a", 1, "afterwards"))
    assert {state.description for state in heard} == {"inner"}


def test_without_a_listener_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress("ab", None, "reading")) == ["a", "b"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (59.9, "59.9 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_counted_nouns() -> None:
    assert [counted(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
