"""What a user asks of a prediction, in one dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:  # these import torch, which takes seconds
    from unisegdiff_pipeline.inference.label_fusion import Combination
    from unisegdiff_pipeline.inference.settings import Decision


@dataclass(frozen=True)
class PredictRequest:
    """What is asked of the prediction of a folder: images, output, model, and what is written.

    Example:
        >>> request = usd.PredictRequest(images, output, model_folder, num_samples=8, save_samples=True)
        >>> request.seed, request.combine
        (0, 'mean')

    Attributes:
        source: folder, file or list of files, named as in the raw layout.
        output: folder for masks; made if missing.
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION, or the archive of one (usd_export).
        folds: whose networks are averaged: one or several of "0", "1", ..., or "all"; None takes all finished ones.
        num_samples: masks drawn a case; None takes the model's number.
        source_name: source of a unified data set that all images are like; None where they are of no known one.
        seed: with the name of a case it names the noise; equal seeds give equal samples.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        mirror: average the segmenter over flips along the plan's `mirror_axes`.
        combine: what masks are made of: "mean", "majority" or "staple"; see `label_fusion`.
        decision: threshold of the mean probability, "half" or "dice", see `decision`; None takes what most folds chose.
        max_memory_gb: that the process may take on a CPU, all told; arrays beyond it live in temporary files in
            `output`. None takes half of what is free. No mask depends on it; see `memory`.
        save_probabilities, save_samples, save_uncertainty_parts: what is written beside masks, uncertainty and tables;
            see `export`.
        overwrite: predict finished cases again, and remove those of another model or other settings.
        num_parts, part_id: of the sorted cases this run takes every `num_parts`-th, beginning with `part_id`.

    Raises:
        UsdError: no part at all, or `part_id` is none of the parts.
        ValueError: a seed or number of samples that is no whole number from 0 on.
    """

    source: Path | Sequence[Path]
    output: Path
    model_folder: Path
    folds: Sequence[str | int] | str | int | None = None
    _: KW_ONLY
    num_samples: int | None = None
    source_name: str | None = None
    seed: int = 0
    device: str = "auto"
    mirror: bool = False
    combine: Combination = "mean"
    decision: Decision | None = None
    max_memory_gb: float | None = None
    save_probabilities: bool = False
    save_samples: bool = False
    save_uncertainty_parts: bool = False
    overwrite: bool = False
    num_parts: int = 1
    part_id: int = 0

    def __post_init__(self) -> None:
        if self.num_parts < 1:
            raise UsdError(f"num_parts is {self.num_parts}; allowed is 1 or more.")
        require_whole("seed", self.seed)
        if self.num_samples is not None:
            require_whole("num_samples", self.num_samples)
        if not 0 <= self.part_id < self.num_parts:
            raise UsdError(
                f"part_id is {self.part_id} of {self.num_parts} parts; allowed is 0 to {self.num_parts - 1}."
            )


def require_whole(name: str, value: object) -> None:
    """Raise a ValueError where a seed or a number of samples is no whole number from 0 on."""
    if not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name} is {value!r}; allowed is 0 or more, a whole number")
