"""Tables over cases, written case by case and joined: CSV with a header, a row a dataclass, empty cells for None."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.csv_tables import read_csv, write_csv
from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DIGITS = 6


def write_rows(path: Path, row_type: type[DataclassInstance], rows: Iterable[DataclassInstance]) -> None:
    """Write a table atomically; numbers with six significant digits, truth values as yes and no."""
    write_csv(path, _header(row_type), ([_cell(value) for value in asdict(row).values()] for row in rows), DIGITS)


def join_rows(path: Path, row_type: type[DataclassInstance], parts: Iterable[Path]) -> None:
    """Write a table from those that `write_rows` wrote, one after the other, atomically; missing ones are left out.

    Columns with a default, which are the last ones, may be lacking in parts of earlier versions; they stay empty there.

    Raises:
        UsdError: a part is damaged; names it and the remedy.
    """
    header, rows = _header(row_type), []
    required = sum(f.default is MISSING for f in fields(row_type))
    for part in parts:
        if part.is_file():
            found = [row for _, row in read_csv(part)]
            width = max(required, len(found[0]) if found else 0)
            if found[:1] != [header[:width]] or any(len(row) != width for row in found):
                raise UsdError(
                    f"{part} is damaged, it does not hold the table that was written; delete it and predict that case "
                    f"again with --overwrite."
                )
            rows += [[*row, *[""] * (len(header) - width)] for row in found[1:]]
    write_csv(path, header, rows, DIGITS)


def _header(row_type: type[DataclassInstance]) -> list[str]:
    return [f.name for f in fields(row_type)]


def _cell(value: object) -> object:
    return ("yes" if value else "no") if isinstance(value, bool) else value
