"""The archive of a model: a zip file that holds tensors, JSON and a page of text, and nothing that could be run.

    manifest.json                                    SHA-256 and size of every other file
    DATASET/MODEL/plans.json  dataset.json  scores.json  model_card.md    (cv_summary.json  best.json)
    DATASET/MODEL/fold_0/weights.safetensors  inference.json
    DATASET/MODEL/3d_lowres/plans.json  dataset.json  fold_0/...     of a cascade: the model whose masks it refines

Unpacked by any program, DATASET/MODEL is a model folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from unisegdiff_pipeline.core.bounds import Length, Range
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import require_name
from unisegdiff_pipeline.inference.model_name import parse_model_name

MANIFEST_NAME = "manifest.json"
SCORES_NAME = "scores.json"
CARD_NAME = "model_card.md"
BEST_NAME = "best.json"
FORMAT = "unisegdiff_pipeline model"
VERSION = 1
ENDING = ".zip"
REQUIRED = ("plans.json", "dataset.json", SCORES_NAME, CARD_NAME)
OPTIONAL = ("cv_summary.json", BEST_NAME)
OF_A_FOLD = ("weights.safetensors", "inference.json")
LARGEST_TEXT_BYTES = 64 * 2**20  # of a file of JSON or text; plans.json of many sources has some megabytes
LARGEST_WEIGHTS_BYTES = 32 * 2**30
OF_MASKS = ("plans.json", "dataset.json")
_FOLD = re.compile(r"\d{1,6}|all")
_FOLD_OF_MASKS = re.compile(rf"([^/]+)/fold_({_FOLD.pattern})/[^/]+")


@dataclass(frozen=True)
class FileRecord:
    """SHA-256 (hexadecimal) and size of a file."""

    sha256: Annotated[str, Length(64, 64)]
    num_bytes: Annotated[int, Range(0, LARGEST_WEIGHTS_BYTES)]


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself.

    Attributes:
        format, version: FORMAT and VERSION.
        made_by: version of the package that made it.
        dataset, model: names of the model's folders.
        folds: names of its folds, "0", "1", ..., "all".
        files: by path inside the model folder, "/" between its parts.
    """

    format: str
    version: int
    made_by: str
    dataset: str
    model: str
    folds: Annotated[tuple[str, ...], Length(1, 1000)]
    files: dict[str, FileRecord]

    def __post_init__(self) -> None:
        if self.format != FORMAT or self.version != VERSION:
            raise UsdError(
                f"it is of format {self.format[:80]!r}, version {self.version}, made by {self.made_by[:40]}; this "
                f"program reads {FORMAT!r}, version {VERSION}. Update the package, or get another archive."
            )
        require_name(self.dataset, "the data set of the archive")
        require_name(self.model, "the model of the archive")
        if parse_model_name(self.model) is None:
            raise UsdError(f"model is {self.model!r}; it must be TRAINER__CONFIGURATION.")
        if wrong := [fold for fold in self.folds if not _FOLD.fullmatch(fold)]:
            raise UsdError(f"folds holds {wrong[0][:80]!r}; allowed are numbers and 'all'.")
        required = {*REQUIRED, *(f"fold_{fold}/{name}" for fold in self.folds for name in OF_A_FOLD)}
        required |= self._required_for_masks()
        allowed = required | {*OPTIONAL}
        if unknown := sorted(self.files.keys() - allowed):
            raise UsdError(f"files names {unknown[0][:200]!r}, {not_allowed(unknown[0])}")
        if missing := sorted(required - self.files.keys()):
            raise UsdError(f"files lacks {', '.join(missing)}; a model archive holds all of its files.")

    def _required_for_masks(self) -> set[str]:
        """Files of the model whose masks a cascade refines, where the archive names one of its folds."""
        found = {(m[1], m[2]) for m in map(_FOLD_OF_MASKS.fullmatch, self.files) if m is not None}
        models = sorted({model for model, _ in found})
        if len(models) > 1:
            raise UsdError(f"files names two models within the model, {models[0]!r:.80} and {models[1]!r:.80}.")
        for model in models:
            require_name(model, "the model whose masks a cascade refines")
        own = {f"{model}/{name}" for model in models for name in OF_MASKS}
        return own | {f"{model}/fold_{fold}/{name}" for model, fold in found for name in OF_A_FOLD}

    @property
    def root(self) -> str:
        """What the names of all files begin with in the archive."""
        return f"{self.dataset}/{self.model}/"


def is_weights(name: str) -> bool:
    """Whether a file of a model is one of tensors; all others are texts."""
    return name.endswith(".safetensors")


def largest_bytes(name: str) -> int:
    """Size that a file of this name may have."""
    return LARGEST_WEIGHTS_BYTES if is_weights(name) else LARGEST_TEXT_BYTES


def not_allowed(name: str) -> str:
    """Why a file is none of an archive, for messages."""
    kind = " (a pickle can run code when it is read)" if re.search(r"\.(pt|pth|pkl|pickle|ckpt|bin)$", name) else ""
    allowed = ", ".join((*REQUIRED, *OPTIONAL, *(f"fold_K/{file}" for file in OF_A_FOLD)))
    return f"which is no file of a model archive{kind}; allowed are {allowed}."
