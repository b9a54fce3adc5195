"""What a user asks of a prediction, in one dataclass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.bounds import MAX_SAMPLES
from unisegdiff_pipeline.core.errors import UsdError

if TYPE_CHECKING:  # these import torch, which takes seconds
    from unisegdiff_pipeline.inference.guarantees import Promises
    from unisegdiff_pipeline.inference.label_fusion import Combination
    from unisegdiff_pipeline.inference.lesion_filter import LesionFilter
    from unisegdiff_pipeline.inference.settings import Decision


@dataclass(frozen=True)
class PredictRequest:
    """What is asked of the prediction of a folder: images, output, model, and what is written.

    Example:
        >>> request = usd.PredictRequest(images, output, model_folder, num_samples=8, save_samples=True)
        >>> request.seed, request.combine
        (0, 'mean')

    Attributes:
        source: folder, file or list of files, named as in the raw layout; or a folder of DICOM series, or of BIDS.
        output: folder for masks; made if missing.
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION, or the archive of one (usd_export).
        folds: whose networks are averaged: one or several of "0", "1", ..., or "all"; None takes all finished ones.
        num_samples: masks drawn a case; None takes the model's number.
        source_name: source of a unified data set that all images are like; None where they are of no known one.
        suffixes: of the images of each channel in a BIDS folder; empty where they are the names of the channels.
        seed: with the name of a case it names the noise; equal seeds give equal samples.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        mirror: average the segmenter over flips along the plan's `mirror_axes`.
        combine: what masks are made of: "mean", "majority" or "staple"; see `label_fusion`.
        decision: threshold of the mean probability, "half" or "dice", see `decision`; None takes what most folds chose.
        utility: which lesions stay: "dice", "lesion_f1", "sensitivity=0.9", "fp_per_case=0.5", or None for the filter
            that training chose; see `Predictor`.
        guarantees: that the prediction keeps: "lesions=0.9", "masks=0.9", "volume=0.9"; see `guarantees`.
        lesion_filter: False keeps every lesion, and a filter takes the place of the one that training chose.
        max_memory_gb: that the process may take on a CPU, all told; arrays beyond it live in temporary files in
            `output`. None takes half of what is free. No mask depends on it; see `memory`.
        save_probabilities, save_samples, save_uncertainty_parts: what is written beside masks, uncertainty and tables;
            see `export`.
        overwrite: predict finished cases again, and remove those of another model or other settings.
        num_parts, part_id: of the sorted cases this run takes every `num_parts`-th, beginning with `part_id`.
        needs_cases: a part that holds no case, because there are fewer cases than parts, is an error, not a warning.
        scheduler: address of a Dask scheduler whose workers predict, each one case at a time; they see the same files
            at the same paths.

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
    suffixes: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    mirror: bool = False
    combine: Combination = "mean"
    decision: Decision | None = None
    utility: str | None = None
    guarantees: Sequence[str] = ()
    lesion_filter: LesionFilter | bool = True
    max_memory_gb: float | None = None
    save_probabilities: bool = False
    save_samples: bool = False
    save_uncertainty_parts: bool = False
    overwrite: bool = False
    num_parts: int = 1
    part_id: int = 0
    needs_cases: bool = False
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.num_parts < 1:
            raise UsdError(f"num_parts is {self.num_parts}; allowed is 1 or more.")
        require_whole("seed", self.seed)
        if self.num_samples is not None:
            require_whole("num_samples", self.num_samples, MAX_SAMPLES)
        if not 0 <= self.part_id < self.num_parts:
            raise UsdError(
                f"part_id is {self.part_id} of {self.num_parts} parts; allowed is 0 to {self.num_parts - 1}."
            )


@dataclass(frozen=True)
class EnsembleRequest:
    """What is asked of an ensemble: folders of predictions whose probabilities are averaged, output, what is written.

    Example:
        >>> request = usd.EnsembleRequest((output / "2d", output / "3d"), output / "both", weights=(1, 2))
        >>> request.decision is None, request.save_probabilities
        (True, False)

    Attributes:
        members: folders of predictions with probabilities, of this program or of nnU-Net; two or more.
        output: folder for masks; made if missing.
        weights: of each member's probabilities in the mean, above 0; None weighs all alike.
        decision: threshold of the mean, "half" or "dice", see `decision`; None takes "dice" where all members were
            predicted with it and all have samples, else "half".
        combine: what masks are made of: "mean", or the samples of all members by "majority" or "staple".
        lesion_filter: which lesions of the mask stay in it; True takes what the filters of the members make together
            (see `combined_filter`), False keeps every lesion.
        promises: what is written because guarantees were asked for.
        dataset_json: what the label values of all members mean; None takes what each member says itself.
        cases: names of the cases to make; None takes all, and then every member must hold the same ones.
        max_memory_gb: as in `PredictRequest`.
        save_probabilities, save_samples: what is written beside masks, uncertainty and tables.
        overwrite: make finished cases again, and remove those of other members or other settings.
        part: (number of this run, number of runs) that share the output, where `cases` are those of this run.

    Raises:
        UsdError: fewer than two members, one that is given twice, or weights that do not fit.
    """

    members: Sequence[Path | str]
    output: Path | str
    _: KW_ONLY
    weights: Sequence[float] | None = None
    decision: Decision | None = None
    combine: Combination = "mean"
    lesion_filter: LesionFilter | bool = True
    promises: Promises | None = None
    dataset_json: Path | str | None = None
    cases: Sequence[str] | None = None
    max_memory_gb: float | None = None
    save_probabilities: bool = False
    save_samples: bool = False
    overwrite: bool = False
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        folders = [Path(member) for member in self.members]
        if len(folders) < 2:
            raise UsdError(f"an ensemble needs two or more folders of predictions; {len(folders)} given.")
        resolved = [folder.resolve() for folder in folders]
        if twice := next((f for f, r in zip(folders, resolved, strict=True) if resolved.count(r) > 1), None):
            raise UsdError(f"{twice} is given twice; name each folder once, and let --weights say how much it counts.")
        if Path(self.output).resolve() in resolved:
            raise UsdError(f"{self.output} is one of the members; choose another folder for the ensemble.")
        if self.weights is not None:
            if len(self.weights) != len(folders):
                raise UsdError(f"weights has {len(self.weights)} values for {len(folders)} members; give one for each.")
            if not all(0 < weight < math.inf for weight in self.weights):
                raise UsdError(f"weights are {', '.join(f'{w:g}' for w in self.weights)}; allowed are numbers above 0.")

    @property
    def fractions(self) -> tuple[float, ...]:
        """The weight of each member in the mean; together 1."""
        weights = [1.0] * len(self.members) if self.weights is None else [float(weight) for weight in self.weights]
        return tuple(weight / sum(weights) for weight in weights)


def require_whole(name: str, value: object, maximum: float = math.inf) -> None:
    """Raise a ValueError where a seed or a number of samples is no whole number from 0 to `maximum`."""
    if not isinstance(value, Integral) or not 0 <= int(value) <= maximum:
        allowed = "0 or more" if maximum == math.inf else f"0 to {maximum}"
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}, a whole number")
