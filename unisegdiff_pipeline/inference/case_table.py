"""Tables over cases, written case by case and joined: CSV with a header, a row a dataclass, empty cells for None."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.io.files import atomic_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_rows(path: Path, row_type: type[DataclassInstance], rows: Iterable[DataclassInstance]) -> None:
    """Write a table atomically; numbers with six significant digits, truth values as yes and no."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([f.name for f in fields(row_type)])
        for row in rows:
            writer.writerow([_cell(value) for value in asdict(row).values()])


def join_rows(path: Path, row_type: type[DataclassInstance], parts: Iterable[Path]) -> None:
    """Write a table from those that `write_rows` wrote, one after the other, atomically; missing ones are left out."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerow([f.name for f in fields(row_type)])
        for part in parts:
            if part.is_file():
                with open(part, newline="", encoding="utf-8") as rows:
                    next(rows)  # its header
                    stream.writelines(rows)


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else value
