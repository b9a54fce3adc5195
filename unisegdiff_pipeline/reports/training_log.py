"""The run log of a training as its reports read it: JSON lines, one entry each, told apart by their "kind"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"
Entry = dict[str, Any]


def read_log(path: Path) -> list[Entry]:
    """All entries of a log file, none where there is no file; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def of_kind(entries: Sequence[Entry], kind: str, phase: int | None = None) -> list[Entry]:
    """Entries of one kind, of one phase or of all, in the order in which they were written."""
    return [e for e in entries if e["kind"] == kind and phase in (None, e.get("phase"))]


def value(entry: Entry, key: str) -> float:
    """A number of an entry; NaN where it is missing or undefined."""
    found = entry.get(key)
    return float("nan") if found is None else float(found)


def thinned(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most `most` entries, evenly spread, the last one among them."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(i * (len(entries) - 1) / (most - 1))] for i in range(most)]
