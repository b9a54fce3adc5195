"""Docstrings name what there is: arguments of their function, and constants of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import unisegdiff_pipeline

MODULES = sorted(Path(unisegdiff_pipeline.__file__).parent.rglob("*.py"))
ELSEWHERE = ("TRAINER__", "CASE_0", "SOURCE__", "SLURM_")  # placeholders in names of files, and SLURM's variables
CONSTANT = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b")
ARGUMENTS = re.compile(r"\n *Args:\n(.*?)(?:\n\n|\Z)", re.DOTALL)


def unknown_arguments(tree: ast.AST) -> list[str]:
    """Names under "Args" that are no parameters of the function, or of the constructor of the class."""
    unknown = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        section = ARGUMENTS.search("\n" + (ast.get_docstring(node) or ""))
        if section is None:
            continue
        lines = (re.match(r"    (\w[\w, *]*):", line) for line in section[1].splitlines())
        named = {name.strip(" *") for line in lines if line for name in line[1].split(",")}
        unknown += sorted(f"{node.name}: {name}" for name in named - _parameters(node))
    return unknown


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    if isinstance(node, ast.ClassDef):
        fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        made_by = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return fields | {name for function in made_by for name in _parameters(function)}
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return {argument.arg for argument in every if argument is not None}


def _texts(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def test_an_argument_that_was_renamed_is_noticed() -> None:
    source = 'def f(a, *b):\n    """Say.\n\n    Args:\n        a, b: there.\n        share: not there.\n    """\n'
    assert unknown_arguments(ast.parse(source)) == ["f: share"]


def test_arguments_are_those_of_the_function() -> None:
    unknown = {path.name: unknown_arguments(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert {name: arguments for name, arguments in unknown.items() if arguments} == {}


def test_constants_exist() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in MODULES}
    names = {
        name
        for source in sources.values()
        for node in ast.walk(ast.parse(source))
        for name in (getattr(node, "id", None), getattr(node, "attr", None))
    }
    unknown = [
        f"{path.name}: {name}"
        for path, source in sources.items()
        for text in _texts(source)
        for name in CONSTANT.findall(text)
        if name not in names and not name.startswith(ELSEWHERE)
    ]
    assert unknown == []
