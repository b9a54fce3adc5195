"""Converters of published data sets into the raw layout; one module a data set, each with `convert`.

    convert(source: Path, raw_root: Path, dataset_id: int | None) -> Path

reads the data set as it was published and returns the new folder DatasetXXX_Name in `raw_root`. It writes either the
whole folder or nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from dataset_conversion import msd
from unisegdiff_pipeline.core.errors import UsdError

Converter = Callable[[Path, Path, int | None], Path]
CONVERTERS: dict[str, Converter] = {"msd": msd.convert}


def converter(name: str) -> Converter:
    """The converter of that name; an unknown one is a UsdError that lists them."""
    if name in CONVERTERS:
        return CONVERTERS[name]
    near = difflib.get_close_matches(name.lower(), CONVERTERS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ";"
    raise UsdError(f"there is no converter {name!r}{hint} known are {', '.join(sorted(CONVERTERS))}.")
