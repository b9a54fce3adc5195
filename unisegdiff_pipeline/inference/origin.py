"""Where a prediction comes from: what saving it needs to know besides its arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unisegdiff_pipeline.core.files import file_hash, text_hash
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.label_fusion import Combination
from unisegdiff_pipeline.io.images import files_read
from unisegdiff_pipeline.io.raw_dataset import RawCase

UNNAMED = "array"  # the case of an image in memory that got no other name


@dataclass(frozen=True)
class Origin:
    """Model, settings and image of a prediction.

    Attributes:
        model: the model's folder, for messages.
        made_of: everything that the mask depends on besides the image and the device.
        device: that it was computed on.
        folds: of the model.
        file_ending: of the files that are written.
        spacing_known: False marks millimetres as nominal.
        combine: what the mask is made of; see `label_fusion`.
        paths, hashes: the files of the image and what `input_hashes` makes of them; empty for an image in memory.
    """

    model: str
    made_of: Mapping[str, Any]
    device: str
    folds: tuple[str, ...]
    file_ending: str
    spacing_known: bool
    combine: Combination
    paths: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()


def request_hash(made_of: Mapping[str, Any]) -> str:
    """Hash of what predictions are made of; equal hashes give equal masks."""
    return text_hash(json.dumps(to_jsonable(made_of), sort_keys=True))


def input_hashes(case: RawCase) -> tuple[str, ...]:
    """What a mask depends on of its image: the content of the files and, where some are missing, their channels."""
    channels = () if case.channels is None else (f"channels {' '.join(map(str, case.channels))}",)
    return (*map(file_hash, files_read(case.image_paths)), *channels)
