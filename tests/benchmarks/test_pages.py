"""Benchmark pages are what their result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.pages import PAGES, render_page, render_table, result_files


def result_table(**changes: Any) -> dict[str, Any]:
    conditions = {
        "n": "20 cases",
        "seeds": "0",
        "machine": "one core",
        "versions": "torch 2.13.0",
        "date": "2026-11-01",
    }
    return {"columns": ["set", "Dice"], "rows": [["A", "0.5"]], "conditions": conditions} | changes


@pytest.mark.parametrize("path", result_files(), ids=lambda path: path.stem)
def test_a_page_is_what_its_result_file_says(path: Path) -> None:
    page = (PAGES / f"{path.stem}.md").read_text("utf-8")
    assert page == render_page(json.loads(path.read_text("utf-8")), path.name), "run python -m tests.benchmarks.pages"


def test_no_page_is_written_by_hand() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == {path.stem for path in result_files()}


def test_a_table_ends_in_its_conditions() -> None:
    assert render_table(result_table()).splitlines() == [
        "| set | Dice |",
        "|---|---|",
        "| A | 0.5 |",
        "",
        "<sub>n: 20 cases · seeds: 0 · machine: one core · versions: torch 2.13.0 · date: 2026-11-01</sub>",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of another length"):
        render_table(result_table(rows=[["A", "0.5"], ["B"]]))


def test_a_table_without_its_date_is_refused() -> None:
    with pytest.raises(ValueError, match="conditions"):
        render_table(result_table(conditions={"n": "20", "seeds": "0", "machine": "one core", "versions": "2"}))
