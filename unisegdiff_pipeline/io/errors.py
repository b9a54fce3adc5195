"""Errors that a user can mend."""

from __future__ import annotations


class UsdError(Exception):
    """A problem in the input, the settings or the machine; the message is one paragraph that ends in the remedy.

    Commands print the message without a traceback and exit with code 1. Faults of this package's own are never
    raised as UsdError, so that they keep their traceback.
    """
