"""Wording that messages share."""

from __future__ import annotations

from collections.abc import Iterable


def listed(items: Iterable[object], most: int = 20, separator: str = ", ") -> str:
    """The first items, and how many more there are: "a, b, and 3 more"; "; " separates sentences."""
    texts = [str(item) for item in items]
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join([*texts[:most], *rest])
