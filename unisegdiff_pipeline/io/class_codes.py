"""Coded names of classes, for files that name what they show by a terminology, as DICOM-SEG does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import require_text
from unisegdiff_pipeline.core.serialization import from_jsonable

KEY = "class_codes"
MAX_VALUE, MAX_MEANING = 16, 64  # characters that DICOM allows


@dataclass(frozen=True)
class ClassCode:
    """A concept of a coding scheme: SCT is SNOMED CT."""

    value: str = "52988006"
    meaning: str = "Lesion"
    scheme: str = "SCT"

    def __post_init__(self) -> None:
        limits = {"value": MAX_VALUE, "meaning": MAX_MEANING, "scheme": MAX_VALUE}
        for name, limit in limits.items():
            text = getattr(self, name)
            require_text(text, name)
            if not 1 <= len(text) <= limit or "\\" in text:
                raise ValueError(f"{name} is {text!r:.80}; allowed are 1 to {limit} characters without \\")


def parse_class_codes(raw: Mapping[str, Any], names: Sequence[str]) -> dict[str, ClassCode]:
    """The code of each class by the `class_codes` of a dataset.json; a class that it leaves out is a lesion.

    Raises:
        UsdError: names the key, its value and what is allowed.
    """
    codes = raw.get(KEY, {})
    if not isinstance(codes, dict) or (unknown := [name for name in codes if name not in names]):
        what = f"names {', '.join(unknown)}" if isinstance(codes, dict) else f"is {codes!r:.80}"
        raise UsdError(f"{KEY} {what}; it must map classes ({', '.join(names)}) to codes.")
    for name, code in codes.items():
        if not isinstance(code, dict) or not {"value", "meaning"} <= code.keys():
            raise UsdError(
                f"{KEY}.{name} is {code!r:.80}; it must hold value and meaning, and scheme where that is not SCT, as "
                f'in {{"value": "108369006", "meaning": "Neoplasm"}}.'
            )
    return {name: from_jsonable(ClassCode, codes.get(name, {}), f"{KEY}.{name}") for name in names}
