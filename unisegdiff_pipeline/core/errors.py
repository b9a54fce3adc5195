"""Errors that a user can fix."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path


class UsdError(Exception):
    """A problem in the input, the settings or the machine; the message is one paragraph that ends in the remedy.

    Commands print the message without a traceback and exit with code 1. Faults of this package's own are never
    raised as UsdError, so that they keep their traceback.

    Example:
        >>> try:
        ...     usd.Predictor("nowhere")
        ... except usd.UsdError as error:
        ...     print(error)
        nowhere is no folder; name a model folder, RESULTS/DATASET/TRAINER__CONFIGURATION.
    """


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it or was being handled when it was raised, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def unreadable(path: Path, error: BaseException) -> UsdError:
    """The error of a file that a library could not read, with what the library said."""
    reason = " ".join(str(error).split())[-300:] or type(error).__name__
    return UsdError(f"{path} cannot be read, it seems to be truncated or damaged ({reason}); copy or export it again.")


def describe_failure(error: BaseException) -> str:
    """What went wrong with one of many cases: the message of a UsdError, else the type and the place of the error."""
    if isinstance(error, UsdError):
        return str(error)
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory ran out{f' ({message})' if message else ''}; free memory, or take a machine with more."
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}{f': {message}' if message else ''}{place}"
