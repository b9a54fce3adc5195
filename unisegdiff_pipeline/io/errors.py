"""Errors that a user can mend."""

from __future__ import annotations

from pathlib import Path


class UsdError(Exception):
    """A problem in the input, the settings or the machine; the message is one paragraph that ends in the remedy.

    Commands print the message without a traceback and exit with code 1. Faults of this package's own are never
    raised as UsdError, so that they keep their traceback.
    """


def unreadable(path: Path, error: BaseException) -> UsdError:
    """The error of a file that a library could not read, with what the library said."""
    reason = " ".join(str(error).split())[-300:] or type(error).__name__
    return UsdError(f"{path} cannot be read, it seems to be truncated or damaged ({reason}); copy or export it again.")
