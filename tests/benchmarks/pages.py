"""Write the benchmark pages from their result files: `python -m tests.benchmarks.pages`.

documentation/benchmarks/results/NAME.json holds what was measured and under which conditions, NAME.md beside the folder
is the page. To change a figure, change the result file and run the command; a test compares the two.

A result file has a `title`, an `introduction` and `sections`, each with a `heading`, a `level` and its `content` in the
order of the page: a text is a paragraph, `{"list": [...]}` its points, `{"code": "..."}` a command, and

    {"table": {"columns": [...], "rows": [[...], ...], "conditions": {"n": ..., "seeds": ..., "machine": ..., ...}}}

a table, whose conditions stand in its foot. A condition that nobody wrote down says "not recorded".
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "documentation/benchmarks"
RESULTS = PAGES / "results"
CONDITIONS = ("n", "seeds", "machine", "versions", "date")
WIDTH = 120
LIST_MARK = re.compile(r"^(?:[-+*#>]|1[.)])\s", re.M)


def result_files() -> list[Path]:
    return sorted(RESULTS.glob("*.json"))


def render_page(result: dict[str, Any], source: str) -> str:
    """The page of a result file; `source` is its name."""
    parts = [f"<!-- Written by `python -m tests.benchmarks.pages` from results/{source}: change that file. -->"]
    parts += [f"# {result['title']}", *map(render_paragraph, result["introduction"])]
    for section in result["sections"]:
        parts.append(f"{'#' * section['level']} {section['heading']}")
        parts += [render_content(content) for content in section["content"]]
    return "\n\n".join(parts) + "\n"


def render_content(content: str | dict[str, Any]) -> str:
    if isinstance(content, str):
        return render_paragraph(content)
    ((kind, value),) = content.items()
    if kind == "list":
        return "\n".join("- " + textwrap.indent(_wrap(point, WIDTH - 2), "  ").lstrip() for point in value)
    if kind == "code":
        return textwrap.indent(value, "    ")
    if kind == "table":
        return render_table(value)
    raise ValueError(f"content of kind {kind!r}; a page has texts, 'list', 'code' and 'table'")


def render_paragraph(text: str) -> str:
    return _wrap(text, WIDTH)


def render_table(table: dict[str, Any]) -> str:
    """Header, rows and foot; every row must be as long as the header, and every condition be named."""
    columns, rows, conditions = table["columns"], table["rows"], table["conditions"]
    if tuple(conditions) != CONDITIONS:
        raise ValueError(f"conditions {list(conditions)} of the table {columns}; they are {list(CONDITIONS)}")
    uneven = [row for row in rows if len(row) != len(columns)]
    if uneven:
        raise ValueError(f"rows of another length than the header {columns}: {uneven}")
    lines = [f"| {' | '.join(row)} |" for row in [columns, *rows]]
    lines.insert(1, "|" + "---|" * len(columns))
    foot = " · ".join(f"{name}: {value}" for name, value in conditions.items())
    return "\n".join(lines) + f"\n\n<sub>{foot}</sub>"


def _wrap(text: str, width: int) -> str:
    wrapped = "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))
    if LIST_MARK.search(wrapped):
        raise ValueError(f"a line of this text would be read as a list or heading, word it differently: {text[:60]!r}")
    return wrapped


def main() -> None:
    for path in result_files():
        page = PAGES / f"{path.stem}.md"
        page.write_text(render_page(json.loads(path.read_text("utf-8")), path.name), "utf-8")
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
