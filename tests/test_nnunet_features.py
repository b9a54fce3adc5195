"""The page of nnU-Net's features: every row names a test that exists, or says why there is none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "documentation/reference/nnunet-features.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(page: str) -> list[list[str]]:
    """Cells of all rows, without the heads of the tables."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| nnU-Net |")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def problems(row: list[str], tests: Path) -> list[str]:
    """What is wrong with a row: a cell missing, neither test nor reason, or a test that does not exist."""
    if len(row) != 3 or not all(row):
        return [f"{row} has not the three cells of its table"]
    named = NAMED.findall(row[2])
    if not named:
        return [] if row[1].startswith("not there: ") else [f"{row[0]}: neither a test nor a reason"]
    return [f"{row[0]}: {file}::{name} does not exist" for file, name in named if name not in functions(tests / file)]


def functions(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", rows(PAGE.read_text("utf-8")), ids=lambda row: row[0])
def test_a_feature_has_a_test_or_a_reason(row: list[str]) -> None:
    assert problems(row, ROOT / "tests") == []


def test_a_row_without_either_is_found() -> None:
    here = f"`test_nnunet_features.py::{test_a_row_without_either_is_found.__name__}`"
    assert problems(["x", "the same", here], ROOT / "tests") == []
    assert problems(["x", "not there: no one asked", "-"], ROOT / "tests") == []
    assert problems(["x", "the same", "-"], ROOT / "tests") == ["x: neither a test nor a reason"]
    assert problems(["x", "the same", "`no.py::test_x`"], ROOT / "tests") == ["x: no.py::test_x does not exist"]
    assert problems(["x", "the same"], ROOT / "tests")
