"""Trainers by name."""

from __future__ import annotations

import importlib

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.training.trainers.ablations import (
    EpsilonDiffusionTrainer,
    FixedThirdsDiffusionTrainer,
    VDiffusionTrainer,
    X0DiffusionTrainer,
)
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer, StagedDiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer

TRAINERS: dict[str, type[Trainer]] = {
    "StagedDiffusionTrainer": StagedDiffusionTrainer,
    "SegmentationTrainer": SegmentationTrainer,
    "X0DiffusionTrainer": X0DiffusionTrainer,
    "VDiffusionTrainer": VDiffusionTrainer,
    "EpsilonDiffusionTrainer": EpsilonDiffusionTrainer,
    "FixedThirdsDiffusionTrainer": FixedThirdsDiffusionTrainer,
}


def find_trainer(name: str) -> type[Trainer]:
    """A trainer by its name in TRAINERS, or by package.module:Class.

    Raises:
        UsdError: for an unknown name, listing the known ones, or a class that is no trainer of either phase.
    """
    if name in TRAINERS:
        return TRAINERS[name]
    if ":" not in name:
        raise UsdError(
            f"--trainer {name} is unknown; use one of {', '.join(TRAINERS)}, or your own as package.module:Class."
        )
    module_name, _, class_name = name.partition(":")
    try:
        result = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UsdError(
            f"--trainer {name} cannot be loaded ({error}); check the spelling and that the package is on PYTHONPATH."
        ) from error
    if not (isinstance(result, type) and issubclass(result, (SegmentationTrainer, DiffusionTrainer))):
        raise UsdError(f"--trainer {name} is no SegmentationTrainer or DiffusionTrainer; derive it from one of them.")
    if TRAINERS.get(result.__name__, result) is not result:  # its folds would be taken for those of the other
        raise UsdError(
            f"--trainer {name}: the class bears the name of a trainer of this package, {result.__name__}, by which the "
            f"model folder is named; call it something else."
        )
    return result
