"""Modules import only from their own layer or lower ones, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unisegdiff_pipeline"
LAYERS = (  # from the ground up; rooms that stand side by side do not import from each other
    ("core",),
    ("io",),
    ("fingerprint", "diffusion", "evaluation"),
    ("planning",),
    ("networks", "preprocessing", "reports"),
    ("inference",),
    ("selection",),
    ("training",),
    ("pipeline",),
    ("demo", "synthetic"),
    ("commands",),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
READERS = {"SimpleITK", "nibabel", "PIL"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(dotted: str) -> str | None:
    """Room of a module of this package; None for other packages and for the package itself."""
    parts = dotted.split(".")
    if parts[0] != "unisegdiff_pipeline" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    return parts[1]


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, at module level or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}; write the full name"
            assert node.module is not None
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(path: Path) -> list[str]:
    own = room_of(dotted_name(path))
    found = []
    for line, module in imports(ast.parse(path.read_text("utf-8"))):
        other = room_of(module)
        if own is None or other is None or other == own:
            continue
        assert other in HEIGHT, f"{path}:{line} imports {module}, whose room has no place in LAYERS"
        if HEIGHT[other] >= HEIGHT[own]:
            found.append(f"{path.relative_to(ROOT)}:{line} imports from {other}, which lies beside or above {own}")
    return list(dict.fromkeys(found))


def circles(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports between modules for every module that can reach itself."""
    result = []
    for start in graph:
        came_from: dict[str, str] = {}
        open_ = [start]
        while open_ and start not in came_from:
            module = open_.pop()
            for other in graph[module] - came_from.keys():
                came_from[other] = module
                open_.append(other)
        if start in came_from:
            way = [start]
            while (before := came_from[way[-1]]) != start:
                way.append(before)
            result.append(" <- ".join([*way, start]))
    return result


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_imports_go_down_only(path: Path) -> None:
    assert violations(path) == []


def test_an_upward_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "unisegdiff_pipeline" / "io" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("def f():\n    from unisegdiff_pipeline.training import run\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert len(violations(wrong)) == 1


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {dotted_name(path).removesuffix(".__init__"): path for path in MODULES}
    graph = {
        name: {module for _, module in imports(ast.parse(path.read_text("utf-8")))}
        & names.keys() - {"unisegdiff_pipeline"}
        for name, path in names.items()
    }
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b <- c <- b", "c <- b <- c"]


def test_every_top_level_module_has_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert {name for name in names if not name.startswith("__")} <= HEIGHT.keys()


@pytest.mark.parametrize("layer", ["training", "inference"])
def test_no_reader_is_named_in(layer: str) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        named = {module.split(".")[0] for _, module in imports(ast.parse(path.read_text("utf-8")))}
        assert not named & READERS, f"{path} imports {named & READERS}; readers belong to io"


def modules_after(statement: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(run.stdout.split())


def test_importing_the_trainer_loads_no_reader() -> None:
    loaded = modules_after("import unisegdiff_pipeline.training.run")
    assert not loaded & READERS, f"training loads {loaded & READERS}"


def test_predicting_arrays_loads_no_file_writer() -> None:
    loaded = modules_after("import unisegdiff_pipeline.inference.predictor")
    names = ("case_table", "export", "folder_run", "output_folder")
    writers = {f"unisegdiff_pipeline.inference.{name}" for name in names}
    assert not loaded & (writers | READERS)


def test_importing_the_package_is_light() -> None:
    loaded = modules_after("import unisegdiff_pipeline")
    assert not loaded & {"numpy", "torch", *READERS}


def test_libraries_that_few_runs_need_are_loaded_by_these() -> None:
    modules = ("pipeline", "training.run", "inference.folder_run", "evaluation.evaluate")
    loaded = modules_after("; ".join(f"import unisegdiff_pipeline.{name}" for name in modules))
    assert not loaded & {"acvl_utils", "batchgenerators", "batchgeneratorsv2", "skimage", "sklearn", "pandas"}


def test_parsers_of_all_commands_import_nothing_heavy() -> None:
    names = sorted(p.stem for p in (PACKAGE / "commands").glob("*.py") if "\ndef build_parser(" in p.read_text("utf-8"))
    assert len(names) == 15
    loaded = modules_after(
        "; ".join(f"import unisegdiff_pipeline.commands.{name} as c; c.build_parser()" for name in names)
    )
    assert not loaded & {"numpy", "torch", "scipy", "matplotlib", "tqdm", *READERS}


def prints(tree: ast.AST) -> list[int]:
    """Lines that print, or write to a standard stream."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    written = ("print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write")
    return [call.lineno for call in calls if ast.unparse(call.func) in written]


def is_command(path: Path) -> bool:
    return room_of(dotted_name(path)) == "commands" or path.name == "__main__.py"


@pytest.mark.parametrize("path", [p for p in MODULES if not is_command(p)], ids=dotted_name)
def test_only_commands_print(path: Path) -> None:
    assert prints(ast.parse(path.read_text("utf-8"))) == []


def test_a_print_is_found() -> None:
    assert prints(ast.parse("import sys\nprint(1)\nsys.stderr.write('a')\nmask_print(2)\n")) == [2, 3]
