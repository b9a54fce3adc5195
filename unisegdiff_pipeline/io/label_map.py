"""Label files with values of their own (0 and 255, 7 alone): what a `label_map` makes of the labels of a dataset.json.

The map says which value of the files stands for which label. No array is changed by it: classes are described by the
values of the files, so that files are read as they are, and predictions are written in the same values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import MAX_LABEL, LabelScheme
from unisegdiff_pipeline.core.serialization import read_object
from unisegdiff_pipeline.io.sources import BACKGROUND, IGNORE

LabelMap = Mapping[str, int | str]


def in_file_values(scheme: LabelScheme, label_map: Any) -> LabelScheme:
    """The scheme of `labels`, in the values that files hold.

    Args:
        scheme: as `labels` gives it.
        label_map: value of the files (a text, as keys of JSON are) => value of `labels`, or the name of a class,
            "background" or "ignore". Of several values for one class the first is written into predictions.

    Raises:
        UsdError: names the key, what it holds and what is allowed.
    """
    if not isinstance(label_map, Mapping) or not label_map:
        raise UsdError(f'label_map is {label_map!r:.80}; it must map values of the files, as in {{"255": 1}}.')
    files: dict[int, list[int]] = {0: [0]}
    for key, target in label_map.items():
        value, label = _file_value(key), _label(scheme, key, target)
        if value == 0 and label != 0:
            raise UsdError(
                f"label_map.0 is {target!r}, but 0 is the background in every file; correct the label files."
            )
        if value != 0:
            files.setdefault(label, []).append(value)
    ignore = files.pop(scheme.ignore_value, []) if scheme.ignore_value is not None else []
    missing = [name for name, values in zip(scheme.names, scheme.members, strict=True) if not files.keys() & {*values}]
    if missing or (scheme.ignore_value is not None and not ignore):
        raise UsdError(
            f'label_map has no value for {", ".join(missing or [IGNORE])}; map one, as in {{"255": '
            f'"{(missing or [IGNORE])[0]}"}}. A value that is not in the map is in no file.'
        )
    if len(ignore) > 1:
        raise UsdError(f"label_map maps {', '.join(map(str, ignore))} to {IGNORE}; allowed is one value.")
    members = tuple(tuple(v for label in values for v in files.get(label, ())) for values in scheme.members)
    if unwritten := [v for v in scheme.write_values if v not in files]:
        raise UsdError(f"label_map has no value for the label {unwritten[0]}, which predictions write; map one.")
    mapped = replace(
        scheme,
        members=members,
        write_values=tuple(files[value][0] for value in scheme.write_values),
        ignore_value=ignore[0] if ignore else None,
        background_values=tuple(files[0][1:]),
    )
    if scheme.coding == "regions" and (problem := mapped.order_problem()):
        raise UsdError(f"with label_map, regions_class_order is {problem}")
    return mapped


def read_label_map(path: Path) -> dict[str, int | str]:
    """A JSON file that holds a label map; what it maps to is checked with the labels, by `in_file_values`.

    Raises:
        UsdError: names the file and the key that is wrong.
    """
    content = read_object(path)
    for key, target in content.items():
        if not re.fullmatch(r"\d{1,5}", key) or isinstance(target, bool) or not isinstance(target, (int, str)):
            raise UsdError(
                f"{path}: {key[:80]!r} is {target!r:.80}; a label map has values of the files as keys, and labels "
                f'as values, as in {{"255": 1}} or {{"7": "lesion"}}.'
            )
    return content


def _file_value(key: object) -> int:
    if not isinstance(key, str) or not re.fullmatch(r"\d{1,5}", key) or int(key) > MAX_LABEL or str(int(key)) != key:
        raise UsdError(
            f"label_map has the key {key!r:.80}; allowed are values of the files, whole numbers from 0 to {MAX_LABEL}."
        )
    return int(key)


def _label(scheme: LabelScheme, key: str, target: object) -> int:
    """Value of `labels` that a value of the files stands for."""
    named: dict[object, int] = {BACKGROUND: 0}
    for name, values in zip(scheme.names, scheme.members, strict=True):
        if len(values) == 1:  # a region of several values could be any of them
            named[name] = values[0]
    if scheme.ignore_value is not None:
        named[IGNORE] = scheme.ignore_value
    allowed = sorted(scheme.allowed_values)
    if isinstance(target, str) and target in named:
        return named[target]
    if isinstance(target, int) and not isinstance(target, bool) and target in allowed:
        return target
    raise UsdError(
        f"label_map.{key} is {target!r:.80}; allowed are the values {', '.join(map(str, allowed))} and the names "
        f"{', '.join(map(str, named))} of labels."
    )
