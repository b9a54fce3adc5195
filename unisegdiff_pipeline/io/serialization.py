"""Strict JSON for frozen dataclasses: what is written is what is read, and a wrong key is named with its path."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import atomic_path

T = TypeVar("T")


def to_jsonable(value: Any) -> Any:
    """Turn dataclasses, tuples and numpy scalars into what json can write; NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return to_jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_jsonable(cls: type[T], data: Any, path: str = "") -> T:
    """Build `cls` (a dataclass, or a type such as tuple[int, ...]) from parsed JSON.

    Raises:
        UsdError: for a missing key, an unknown key or a value of another type, with the path of the key.
    """
    return typing.cast(T, _convert(cls, data, path or "(top level)"))


def _convert(annotation: Any, data: Any, path: str) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        return _convert_union(args, data, path)
    if origin is typing.Literal:
        if data not in args:
            raise UsdError(f"{path} is {data!r}, allowed is one of {', '.join(map(repr, args))}; correct the value.")
        return data
    if dataclasses.is_dataclass(annotation):
        return _convert_dataclass(typing.cast(type, annotation), data, path)
    if origin is tuple:
        _require(isinstance(data, list), path, "a list", data)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(data))
        _require(len(data) == len(args), path, f"a list of {len(args)} values", data)
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, data, strict=True)))
    if origin in (dict, Mapping):
        _require(isinstance(data, dict), path, "an object", data)
        return {k: _convert(args[1], v, f"{path}.{k}") for k, v in data.items()}
    if annotation is float:
        _require(isinstance(data, (int, float)) and not isinstance(data, bool), path, "a number", data)
        return float(data)
    if annotation is int:
        _require(isinstance(data, int) and not isinstance(data, bool), path, "a whole number", data)
        return data
    if annotation in (str, bool):
        _require(isinstance(data, annotation), path, f"a {'text' if annotation is str else 'true or false'}", data)
        return data
    if annotation is type(None):
        _require(data is None, path, "null", data)
        return None
    raise TypeError(f"{annotation} at {path} has no JSON form")


def _convert_union(args: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in args:
        return None
    failure: UsdError | None = None
    for candidate in args:
        if candidate is type(None):
            continue
        try:
            return _convert(candidate, data, path)
        except UsdError as error:
            failure = error
    raise failure or UsdError(f"{path} must not be {data!r}.")


def _convert_dataclass(cls: type, data: Any, path: str) -> Any:
    _require(isinstance(data, dict), path, "an object", data)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    prefix = "" if path == "(top level)" else f"{path}."
    for key in data:
        if key not in fields:
            raise UsdError(f"unknown key {prefix}{key}; allowed here: {', '.join(fields)}. Remove or rename it.")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{prefix}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsdError(f"missing key {prefix}{name}; add it, or let the command that made the file write it again.")
    try:
        return cls(**values)
    except ValueError as error:  # what the dataclass itself does not allow
        raise UsdError(f"{prefix and path + ': '}{error}; correct the value.") from None


def _require(condition: bool, path: str, expected: str, data: Any) -> None:
    if not condition:
        raise UsdError(f"{path} must be {expected}, not {data!r}; correct the value.")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing file or a syntax error is a UsdError that names the file and the line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsdError(f"{path} does not exist; check the path, or run the command that writes it first.") from None
    except json.JSONDecodeError as error:
        raise UsdError(
            f"{path} is no valid JSON: {error.msg} in line {error.lineno}, column {error.colno}; mend that line."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write dataclasses, dicts and lists as indented JSON, atomically; short lists of numbers stay on one line."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(_dumps(to_jsonable(value)) + "\n", encoding="utf-8")


def read_dataclass(cls: type[T], path: Path) -> T:
    """Read `path` as an instance of `cls`; errors name the file and the key."""
    try:
        return from_jsonable(cls, read_json(path))
    except UsdError as error:
        raise UsdError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _dumps(value: Any, indent: int = 0) -> str:
    compact = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(compact) + indent <= 120:
        return compact
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {_dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if all(not isinstance(v, (dict, list)) for v in value):
        return compact
    return "[\n" + ",\n".join(pad + _dumps(v, indent + 1) for v in value) + "\n" + " " * indent + "]"
