"""Wording that messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def listed(items: Iterable[object], most: int = 20, separator: str = ", ") -> str:
    """The first items, and how many more there are: "a, b, and 3 more"; "; " separates sentences."""
    texts = [str(item) for item in items]
    rest = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return separator.join([*texts[:most], *rest])


def joined(texts: Sequence[str]) -> str:
    """All of them: "a", "a and b", "a, b and c"."""
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)
