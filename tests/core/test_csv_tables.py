"""CSV tables: no formulas, exact round trips, and errors that name the line."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.csv_tables import read_csv, write_csv
from unisegdiff_pipeline.core.errors import UsdError

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "'=1", "''@a", "=\n1", "-")
PLAIN = ("a", "", "'", "'a'", "-1.5", "+2e3", "1-2", "a=b", 'ü,"')


def test_a_text_that_a_spreadsheet_would_run_is_defused_and_read_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["case", "=x"], [(text, 1) for text in (*FORMULAS, *PLAIN)], 6)
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["case", "'=x"]
    assert [row[0] for row in rows] == [*(f"'{text}" for text in FORMULAS), *PLAIN]
    assert [row for _, row in read_csv(tmp_path / "t.csv")] == [["case", "=x"], *([t, "1"] for t in FORMULAS + PLAIN)]


def test_numbers_and_empty_cells(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a", "b", "c", "d"], [(-1.23456789, math.nan, None, -7)], 4)
    assert (tmp_path / "t.csv").read_text() == "a,b,c,d\n-1.235,,,-7\n"


def test_lines_are_those_of_the_file_and_empty_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfcase,group\n\n , \n"a\nb",g\n')
    assert read_csv(tmp_path / "t.csv") == [(1, ["case", "group"]), (5, ["a\nb", "g"])]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("case,group\nPrüfung,a\n".encode("cp1252"), "is not UTF-8"),
        (b"case,group\na," + b"x" * 200_000, "after line 1"),
        (b"case,group\na,\x00\xff", "is not UTF-8"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UsdError, match=words) as caught:
        read_csv(tmp_path / "t.csv")
    assert str(tmp_path / "t.csv") in str(caught.value)
