"""Strict JSON: round trips, and errors with the path of the key."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import (
    formerly,
    from_jsonable,
    read_dataclass,
    read_json,
    read_json_lines,
    read_object,
    to_jsonable,
    write_json,
)


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    rate: float


@dataclass(frozen=True)
class Outer:
    name: str
    inner: dict[str, Inner]
    mode: Literal["x", "y"] = "x"
    limit: float | None = None
    values: tuple[float, ...] = ()
    flag: bool = False


OUTER = Outer("n", {"k": Inner((1, 2), 0.5)}, "y", 3.0, (1.0, 2.5), True)


def test_round_trip(tmp_path):
    write_json(tmp_path / "o.json", OUTER)
    assert read_dataclass(Outer, tmp_path / "o.json") == OUTER
    assert from_jsonable(Outer, {"name": "n", "inner": {}}) == Outer("n", {})


def test_undefined_numbers_become_null_and_numpy_plain():
    value = {"a": float("nan"), "b": np.float32(0.5), "c": np.array([1, 2]), "d": (np.inf, 1)}
    assert to_jsonable(value) == {"a": None, "b": 0.5, "c": [1, 2], "d": [None, 1]}
    with pytest.raises(TypeError, match="set has no JSON form"):
        to_jsonable({1})


def test_long_lists_of_numbers_stay_on_one_line(tmp_path):
    write_json(tmp_path / "l.json", {"curve": list(range(100)), "names": {"a": 1}})
    text = (tmp_path / "l.json").read_text()
    assert json.loads(text) == {"curve": list(range(100)), "names": {"a": 1}}
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "n"}, ["unknown key nmae", "name, inner"]),
        ({"inner": {"k": {"size": [1, 2]}}}, ["missing key inner.k.rate"]),
        ({"inner": {"k": {"size": [1], "rate": 1}}}, ["inner.k.size must be a list of 2 values"]),
        ({"inner": {"k": {"size": [1, 2.5], "rate": 1}}}, ["inner.k.size[1] must be a whole number, not 2.5"]),
        ({"inner": {"k": {"size": [1, 2], "rate": "fast"}}}, ["inner.k.rate must be a number, not 'fast'"]),
        ({"mode": "z"}, ["mode is 'z'", "'x', 'y'"]),
        ({"flag": 1}, ["flag must be a true or false"]),
        ({"limit": "x"}, ["limit must be a number"]),
        ({"inner": []}, ["inner must be an object"]),
    ],
)
def test_errors_name_file_and_key(tmp_path, change, words):
    path = tmp_path / "o.json"
    path.write_text(json.dumps({"name": "n", "inner": {}} | change))
    with pytest.raises(UsdError) as caught:
        read_dataclass(Outer, path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_whole_numbers_are_numbers_but_booleans_are_not():
    assert from_jsonable(Inner, {"size": [1, 2], "rate": 1}).rate == 1.0
    with pytest.raises(UsdError, match="rate must be a number, not True"):
        from_jsonable(Inner, {"size": [1, 2], "rate": True})


def test_read_json_errors(tmp_path):
    with pytest.raises(UsdError, match="does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{\n "a": 1,\n')
    with pytest.raises(UsdError, match="in line 3"):
        read_json(tmp_path / "a.json")


BAD_JSON = {
    b'{"a": "Pr\xfcfung"}': "is not UTF-8: byte 0xfc in line 1",
    '{"a": 1}'.encode("utf-16"): "is not UTF-8",
    b"[" * 2000 + b"]" * 2000: "over 50 deep",
    b"[" * 100_000 + b"]" * 100_000: "over 50 deep",
    b'{"a": ' + b"9" * 5000 + b"}": "too many digits",
    b'{"a": NaN}': "NaN is no number",
    b'{"a": -Infinity}': "-Infinity is no number",
    b'{"a": 1e999}': "1e999 is larger",
    b'{"a": 1, "a": 2}': "the key 'a' stands twice",
    b'{"a": "\\ud800"}': "half a surrogate pair",
    b"": "no valid JSON",
    b"\x00": "no valid JSON",
    b'{"a": 1} x': "line 1, column 10",
}


@pytest.mark.parametrize("content", BAD_JSON)
def test_damaged_json_is_named_with_file_and_place(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UsdError, match=re.escape(BAD_JSON[content])) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 500


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}')
    assert read_object(tmp_path / "a.json") == {"a": "\U0001f600"}


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_another_shape_than_an_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsdError, match=r"a\.json must hold a JSON object"):
        read_object(tmp_path / "a.json")


def test_numbers_too_large_for_a_float_are_refused():
    with pytest.raises(UsdError, match="rate must be a number that can be stored"):
        from_jsonable(Inner, {"size": [1, 2], "rate": 10**400})


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsdError, match="must be a readable file"):
        read_json(tmp_path)


def test_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": ')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    for damage in ('{"a": ', "[1]", '{"a": NaN}'):
        path.write_text('{"a": 1}\n' + damage + '\n{"a": 3}\n')
        with pytest.raises(UsdError, match=r"log\.jsonl, line 2,"):
            read_json_lines(path)


@dataclass(frozen=True)
class Renamed:
    weight: float = field(metadata=formerly("w"))


def test_a_field_is_read_under_its_former_name() -> None:
    assert from_jsonable(Renamed, {"w": 0.5}) == from_jsonable(Renamed, {"weight": 0.5}) == Renamed(0.5)
    assert to_jsonable(Renamed(0.5)) == {"weight": 0.5}
    with pytest.raises(UsdError, match="unknown key w"):
        from_jsonable(Renamed, {"w": 0.5, "weight": 0.25})
