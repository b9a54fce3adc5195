#!/usr/bin/env python3
"""Figures about the code, for reviews: `python tools/code_metrics.py`, run from the root of the project.

Lengths of functions are lines of their bodies without the docstring. A circle is a set of modules that import one
another, imports under TYPE_CHECKING and inside functions included.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unisegdiff_pipeline"
MOST_PARAMETERS = 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, ast.Module]:
    """Syntax tree of each module of the package, by dotted name."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text("utf-8"))
    return trees


def functions(tree: ast.AST) -> Iterator[Function]:
    """Functions and methods, those inside others included."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines of a function's body, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def parameters(function: Function) -> list[ast.arg]:
    """Parameters other than self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument for argument in named if argument.arg not in ("self", "cls")]


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= inside or {node.module} & known
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected sets of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members: set[str] = set()
            while name not in members:
                members.add(stack.pop())
            if len(members) > 1:
                found.append(members)

    for name in graph:
        if name not in index:
            visit(name)
    return found


def privates_of_others(package: dict[str, ast.Module]) -> list[str]:
    """Private names of the package's modules and classes that tests touch, as file:line."""
    private = {
        node.name
        for tree in package.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | Function) and is_private(node.name)
    }
    private |= {
        target.id
        for tree in package.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and is_private(target.id)
    }
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            names = []
            if isinstance(node, ast.Attribute) and not own:
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unisegdiff_pipeline"):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
                names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in names if name in private]
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def main() -> None:
    package = modules()
    every = [function for tree in package.values() for function in functions(tree)]
    lengths = sorted(map(body_lines, every))
    arguments = [argument for function in every for argument in parameters(function)]
    typed = sum(argument.annotation is not None for argument in arguments)
    many = [f"{f.name} ({len(parameters(f))})" for f in every if len(parameters(f)) > MOST_PARAMETERS]
    graph = {name: imported(tree, set(package)) - {name} for name, tree in package.items()}
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    skips = sum(path.read_text("utf-8").count("# fmt: skip") for path in sources)
    touched = privates_of_others(package)
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    named = ("trainer", "fold", "resume", "tiled_case", "export", "ema")
    rows = {
        "modules": len(package),
        "lines of the package": sum(len(p.read_text("utf-8").splitlines()) for p in PACKAGE.rglob("*.py")),
        "functions": len(every),
        "lines a function, median / 90 % / most": (
            f"{statistics.median(lengths):g} / {lengths[int(0.9 * len(lengths))]} / {lengths[-1]}"
        ),
        "arguments with a type": f"{typed} of {len(arguments)}",
        f"functions of more than {MOST_PARAMETERS} parameters": ", ".join(many) or 0,
        "circles of imports": "; ".join(" ".join(sorted(members)) for members in circles(graph)) or 0,
        "private names that tests touch": len(touched),
        "# fmt: skip": skips,
        "without a test file of its own": ", ".join(name for name in named if name not in tested) or "none",
    }
    width = max(map(len, rows))
    for name, figure in rows.items():
        print(f"{name:{width}}  {figure}")
    for place in touched:
        print(f"  {place}")


if __name__ == "__main__":
    main()
