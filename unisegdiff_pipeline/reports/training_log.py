"""The run log of a training as its reports read it: JSON lines, one entry each, told apart by their "kind"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import read_json_lines

LOG_NAME = "log.jsonl"
MOST_POINTS = 400  # of a curve
PHASES = {1: "segmenter", 2: "diffusion"}
Entry = dict[str, Any]
# Keys that more than a figure depends on: key, types, in words. Only the first has to be there.
_KEYS = (
    ("kind", (str,), "a text"),
    ("phase", (int,), "a whole number"),
    ("iteration", (int,), "a whole number"),
    ("seconds", (int, float), "a number"),
)


def read_log(path: Path) -> list[Entry]:
    """All entries of a log file, none where there is no file; a last line cut off by a kill is left out.

    Raises:
        UsdError: a line that is no entry; names the file, the line and the remedy.
    """
    entries = read_json_lines(path)
    for number, entry in enumerate(entries, start=1):
        for key, kinds, expected in _KEYS:
            found = entry.get(key)
            if (found is None and key == "kind") or not isinstance(found, (*kinds, type(None))) or found is True:
                raise UsdError(
                    f"{path}: {key} of entry {number} is {found!r:.80}, it must be {expected}; delete that line."
                )
    return entries


def of_kind(entries: Sequence[Entry], kind: str, phase: int | None = None) -> list[Entry]:
    """Entries of one kind, of one phase or of all, in the order in which they were written."""
    return [e for e in entries if e["kind"] == kind and phase in (None, e.get("phase"))]


def value(entry: Entry, key: str) -> float:
    """A number of an entry; NaN where it is missing or undefined."""
    found = entry.get(key)
    return float("nan") if found is None else float(found)


def thinned(entries: Sequence[Entry], most: int = MOST_POINTS) -> list[Entry]:
    """At most `most` entries, evenly spread, the last one among them."""
    if len(entries) <= most:
        return list(entries)
    return [entries[round(i * (len(entries) - 1) / (most - 1))] for i in range(most)]


def held_out_dice(entry: Entry) -> float:
    """Dice of a "validation" entry by which weights are chosen: of a unified data set the mean over its sources."""
    found = entry.get("by_source")
    return value(found, "macro_mean_dice") if isinstance(found, dict) else value(entry, "dice_mean")


def dice_by_source(scores: object) -> dict[str, float]:
    """Source => Dice of a "by_source", as logs and summary.json hold it; empty of an ordinary data set."""
    sources = scores.get("sources") if isinstance(scores, dict) else None
    return {str(entry["source"]): value(entry, "mean_dice") for entry in sources or ()}
