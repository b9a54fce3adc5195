"""Signals that are held back while processes start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from unisegdiff_pipeline.core.signals import held_back


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Numbers of the SIGTERMs that this process hears of, one after another."""
    numbers: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, former)


def test_a_signal_comes_when_the_start_has_ended(heard: list[int]) -> None:
    with held_back(signal.SIGTERM):
        signal.raise_signal(signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_a_signal_is_not_lost_where_the_start_fails(heard: list[int]) -> None:
    """It goes to a whole group: the process that was being started ends, and its parent fails to talk with it."""

    def start() -> None:
        with held_back(signal.SIGTERM):
            signal.raise_signal(signal.SIGTERM)
            raise EOFError("unexpected EOF")

    with pytest.raises(EOFError):
        start()
    assert heard == [signal.SIGTERM]


def test_no_signal_is_made_up(heard: list[int]) -> None:
    with pytest.raises(EOFError), held_back(signal.SIGTERM):
        raise EOFError
    assert heard == []
