"""Every converter of a published data set has its row in the documentation, and a test on a miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_conversion import CONVERTERS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "documentation/reference/datasets.md"
GENERAL = {"folder", "bids"}  # for files of one's own


@pytest.mark.parametrize("name", sorted(CONVERTERS.keys() - GENERAL))
def test_its_row_says_where_to_get_it_its_licence_cases_quirks_and_what_was_verified(name: str) -> None:
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|") and f"`{name} " in line
    ]
    assert len(rows) == 1
    command, origin, cases, quirks, structure = (cell.strip() for cell in rows[0].strip("|").split("|"))
    assert "http" in origin
    assert origin.rpartition(")")[2].strip(", ")  # the terms stand behind the address
    assert all((command, cases, quirks, structure))


@pytest.mark.parametrize("name", sorted(CONVERTERS))
def test_it_is_tested(name: str) -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py") if path.name != Path(__file__).name
    )
    assert f'"{name}"' in tests or f"{name}.find" in tests
