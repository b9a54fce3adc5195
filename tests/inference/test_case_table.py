"""Tables that are written case by case and joined."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.inference.case_table import join_rows, write_rows


@dataclass(frozen=True)
class Row:
    case: str
    size: float
    known: bool
    share: float | None = None


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_cells(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", Row, [Row("case, one", 1 / 3, False), Row("case, one", 4.0, True, 0.5)])
    assert read(tmp_path / "a.csv") == [
        {"case": "case, one", "size": "0.333333", "known": "no", "share": ""},
        {"case": "case, one", "size": "4", "known": "yes", "share": "0.5"},
    ]


def test_joined_files_are_one_table(tmp_path: Path) -> None:
    """A part that is not there, as in a folder of an earlier version, leaves its rows out."""
    for case in "ab":
        write_rows(tmp_path / f"{case}.csv", Row, [Row(case, 1.0, True), Row(case, 2.0, True)])
    join_rows(tmp_path / "all.csv", Row, [tmp_path / f"{case}.csv" for case in "abc"])
    assert [(row["case"], row["size"]) for row in read(tmp_path / "all.csv")] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
        ("b", "2"),
    ]


def test_a_table_without_rows_has_a_header(tmp_path: Path) -> None:
    join_rows(tmp_path / "all.csv", Row, [])
    assert (tmp_path / "all.csv").read_text() == "case,size,known,share\n"


def test_parts_of_earlier_versions_may_lack_the_last_columns(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("case,size,known\na,1,yes\n")
    write_rows(tmp_path / "new.csv", Row, [Row("b", 2.0, True, 0.5)])
    join_rows(tmp_path / "all.csv", Row, [tmp_path / "old.csv", tmp_path / "new.csv"])
    assert [(row["case"], row["share"]) for row in read(tmp_path / "all.csv")] == [("a", ""), ("b", "0.5")]


@pytest.mark.parametrize("content", ["", "case,size\na,1\n", "case,size,known\na,1\n", "case,size,known,share,more\n"])
def test_damaged_parts_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "part.csv").write_text(content)
    with pytest.raises(UsdError, match=r"part\.csv is damaged"):
        join_rows(tmp_path / "all.csv", Row, [tmp_path / "part.csv"])
