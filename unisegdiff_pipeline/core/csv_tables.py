"""CSV tables: one writer that no spreadsheet takes for formulas, and the reader that undoes it.

A text that begins with = + - @ or a tab is run as a formula by spreadsheets, even where it came out of a file name. The
writer puts an apostrophe before it, which spreadsheets take as "this is text"; numbers stay as they are. Texts that
begin with apostrophes before such a sign get one more, so that reading gives back what was written.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_DEFUSED = re.compile(r"'+[=+\-@\t\r]")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], digits: int) -> None:
    """Write a table atomically, in UTF-8; None and NaN are empty cells, real numbers have `digits` significant ones."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([_cell(name, digits) for name in header])
        writer.writerows([_cell(value, digits) for value in row] for row in rows)


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a table with the line that each ends in, the header among them; rows of empty cells are left out.

    Raises:
        UsdError: unreadable, not UTF-8, or no CSV (such as a cell of more than 131,072 characters); names the line.
    """
    rows, line = [], 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for row in reader:
                line = reader.line_num
                if any(cell.strip() for cell in row):
                    rows.append((line, [_text(cell) for cell in row]))
    except UnicodeDecodeError:
        raise UsdError(f'{path} is not UTF-8; save it as CSV in UTF-8 (spreadsheets: "CSV UTF-8").') from None
    except csv.Error as error:
        raise UsdError(f"{path} is no CSV table after line {line} ({error}); correct that line.") from None
    except OSError as error:
        raise UsdError(f"{path} cannot be read ({error.strerror}); it must be a readable file.") from error
    return rows


def _cell(value: object, digits: int) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def _text(cell: str) -> str:
    return cell[1:] if _DEFUSED.match(cell) else cell


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text, re.ASCII) is not None
