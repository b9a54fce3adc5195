"""Strict JSON for frozen dataclasses: what is written is what is read, and a wrong key is named with its path."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from unisegdiff_pipeline.core.bounds import Undefined
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path

T = TypeVar("T")

FORMERLY = "formerly"  # key of a field's metadata
MAX_DEPTH = 50  # of lists and objects in one another; the deepest file of this package, plans.json, has 8


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
    origin, args, is_dataclass = _form_of(annotation)
    if annotation is Any:
        return data
    if origin is typing.Annotated:
        if data is None and Undefined() in args[1:]:
            return math.nan
        value = _convert(args[0], data, path)
        for rule in args[1:]:
            if not rule.allows(value):
                raise UsdError(f"{path} is {_shown(data)}, allowed is {rule}; correct the value.")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert_union(args, data, path)
    if origin is typing.Literal:
        if not any(type(data) is type(allowed) and data == allowed for allowed in args):
            raise UsdError(
                f"{path} is {_shown(data)}, allowed is one of {', '.join(map(repr, args))}; correct the value."
            )
        return data
    if is_dataclass:
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
        _require(abs(data) <= sys.float_info.max, path, "a number that can be stored", data)
        return float(data)
    if annotation is int:
        _require(isinstance(data, int) and not isinstance(data, bool), path, "a whole number", data)
        return data
    if annotation in (str, bool):
        _require(isinstance(data, annotation), path, f"a {'text' if annotation is str else 'true or false'}", data)
        return data
    if annotation is Path:
        _require(isinstance(data, str), path, "a path", data)
        return Path(data)
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
    raise failure or UsdError(f"{path} must not be {_shown(data)}.")


def formerly(name: str) -> dict[str, str]:
    """Metadata of a dataclass field that files of earlier versions call `name`; it is read under both names.

    Example: `segmenter_weight: float = field(default=0.5, metadata=formerly("w"))`.
    """
    return {FORMERLY: name}


def former_names(cls: type) -> dict[str, str]:
    """The present name of each field that files of earlier versions call otherwise."""
    return {f.metadata[FORMERLY]: f.name for f in dataclasses.fields(cls) if FORMERLY in f.metadata}


def _convert_dataclass(cls: type, data: Any, path: str) -> Any:
    _require(isinstance(data, dict), path, "an object", data)
    hints = _type_hints(cls)
    fields, names = _fields_of(cls)
    data = {key if names.get(key) in (None, *data) else names[key]: value for key, value in data.items()}
    prefix = "" if path == "(top level)" else f"{path}."
    for key in data:
        if key not in fields:
            raise UsdError(f"unknown key {prefix}{key[:80]}; allowed here: {', '.join(fields)}. Remove or rename it.")
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


# Files of many cases ask the same few types thousands of times.
@functools.cache
def _form_of(annotation: Any) -> tuple[Any, tuple[Any, ...], bool]:
    return typing.get_origin(annotation), typing.get_args(annotation), dataclasses.is_dataclass(annotation)


@functools.cache
def _fields_of(cls: type) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, str]]:
    """Fields of a dataclass by name, and present names by former ones."""
    return {f.name: f for f in dataclasses.fields(cls)}, former_names(cls)


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _require(condition: bool, path: str, expected: str, data: Any) -> None:
    if not condition:
        raise UsdError(f"{path} must be {expected}, not {_shown(data)}; correct the value.")


def _shown(value: Any) -> str:
    """A value for a message, short whatever it is."""
    writer = reprlib.Repr()
    writer.maxstring = writer.maxlong = writer.maxother = 80
    return writer.repr(value)


def read_json(path: Path) -> Any:
    """Parse a JSON file; every state and settings file is read here.

    A byte order mark is skipped. JSON's extensions are not read: NaN, infinities, and a key that stands twice in one
    object, of which a parser would silently keep the last.

    Raises:
        UsdError: missing, unreadable, not UTF-8 or no such JSON; names the file, and the line or key at fault.
    """
    return parse_json(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """What a settings file holds.

    Raises:
        UsdError: missing or unreadable; names the file.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UsdError(f"{path} does not exist; check the path, or run the command that writes it first.") from None
    except OSError as error:
        raise UsdError(f"{path} cannot be read ({error.strerror}); it must be a readable file.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object; see `read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UsdError(f"{path} must hold a JSON object {{...}}, not {_shown(value)}; restore or rewrite it.")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines, none where there is no file; a last line cut off by a kill is left out.

    Raises:
        UsdError: unreadable, or a line other than the last is no JSON object; names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        return []
    try:
        *lines, last = path.read_bytes().split(b"\n")  # complete lines end in a line break
    except OSError as error:
        raise UsdError(f"{path} cannot be read ({error.strerror}); it must be a readable file.") from error
    result = []
    for number, line in enumerate([*lines, last], start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, name := f"{path}, line {number},")
            if not isinstance(value, dict):
                raise UsdError(f"{name} must hold a JSON object {{...}}, not {_shown(value)}; delete that line.")
        except UsdError:
            if line is last:
                break
            raise
        result.append(value)
    return result


def parse_json(content: bytes, name: str) -> Any:
    """Parse JSON text that lies in no file of its own, as `read_json` does; `name` begins every message."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsdError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save the file as UTF-8."
        ) from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsdError(f"{name} is no valid JSON: {error.msg} in {place}; correct that line.") from None
    except RecursionError:
        raise UsdError(_too_deep(name)) from None
    except ValueError as error:  # of the three functions above, and Python's own limit of digits
        problem = "a number has too many digits" if "digits" in str(error) else str(error)
        raise UsdError(f"{name} cannot be used: {problem}; correct it.") from None
    if _depth(value) > MAX_DEPTH:
        raise UsdError(_too_deep(name))
    try:
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UsdError(f"{name} holds half a surrogate pair (\\ud800 to \\udfff), correct that text.") from None
    return value


def _too_deep(name: str) -> str:
    return f"{name} nests lists and objects over {MAX_DEPTH} deep; no file of this program does, restore or rewrite it."


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted up to MAX_DEPTH + 1."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [v for c in level if isinstance(c, (dict, list)) for v in (c.values() if isinstance(c, dict) else c)]
        depth += 1
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_shown(twice)} stands twice in one object, keep one")
    return result


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is larger than any number that can be stored")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write dataclasses, dicts and lists as indented JSON, atomically; short lists of numbers stay on one line."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return _dumps(to_jsonable(value)) + "\n"


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
