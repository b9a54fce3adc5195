"""YAML files of texts."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.yaml_objects import read_yaml_object


def written(folder: Path, text: str) -> Path:
    path = folder / "map.yaml"
    path.write_text(text, "utf-8")
    return path


def test_every_value_is_the_text_that_stands_there(tmp_path: Path) -> None:
    found = read_yaml_object(written(tmp_path, "A:\n  no: yes  # a class named no\n  1: 1.0\n  née: [a, 2]\nB: {}\n"))
    assert found == {"A": {"no": "yes", "1": "1.0", "née": ["a", "2"]}, "B": {}}


def test_tags_build_nothing(tmp_path: Path) -> None:
    text = f"A: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    assert read_yaml_object(written(tmp_path, text)) == {"A": [str(tmp_path / "made")]}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A: {a: b}\nB: {b: c}\nA: {a: c}\n", "line 3: the key 'A' stands twice"),
        ("A: {a: b\nB: {\n", "line 2: no YAML that can be read"),
        ("A: &x {a: b}\nB: *x\n", r"line 2: aliases \(\*name\)"),
        ("? [a, b]\n: c\n", "line 1: a key must be a text"),
        ("- A\n- B\n", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("# nothing yet\n---\n", "must hold a mapping"),
        ("\ufeff# nothing yet\n", "must hold a mapping"),
        ("[" * 5000, "no YAML that can be read"),
    ],
)
def test_what_is_no_mapping_of_texts_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsdError, match=problem):
        read_yaml_object(written(tmp_path, text))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsdError, match=r"absent\.yml does not exist"):
        read_yaml_object(tmp_path / "absent.yml")
    (tmp_path / "bytes.yml").write_bytes(b"A: \xff\xfe")
    with pytest.raises(UsdError, match=r"bytes.yml.*no YAML that can be read"):
        read_yaml_object(tmp_path / "bytes.yml")


def test_without_pyyaml_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsdError, match=r"needs pyyaml; install it \(pip install pyyaml\), or write the same as JSON"):
        read_yaml_object(written(tmp_path, "A: {a: b}"))
