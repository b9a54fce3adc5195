"""A self-configuring lesion-segmentation pipeline whose network is a staged diffusion model, after UniSegDiff.

    import unisegdiff_pipeline as usd

Names are resolved when they are first used (PEP 562), so that this import loads neither torch nor numpy.
Order of axes everywhere: arrays are (C, Z, Y, X), of 2D images (C, Y, X), masks without C, and spacings in mm follow
the axes of the array. Files and image objects of SimpleITK and nibabel know theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.core.version import __version__

if TYPE_CHECKING:
    from unisegdiff_pipeline.core.errors import UsdError
    from unisegdiff_pipeline.core.geometry import Geometry, Volume
    from unisegdiff_pipeline.core.progress import Progress
    from unisegdiff_pipeline.evaluation import conformal as guarantees
    from unisegdiff_pipeline.evaluation import pair_metrics as metrics
    from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
    from unisegdiff_pipeline.evaluation.options import EvaluationOptions
    from unisegdiff_pipeline.inference.prediction import Prediction
    from unisegdiff_pipeline.inference.predictor import Predictor
    from unisegdiff_pipeline.inference.request import EnsembleRequest, PredictRequest
    from unisegdiff_pipeline.io.paths import Roots
    from unisegdiff_pipeline.io.unify import UnifyRequest
    from unisegdiff_pipeline.pipeline import (
        PreparedDataset,
        cross_validate,
        ensemble,
        evaluate,
        find_best,
        plan_and_preprocess,
        predict,
        predict_best,
        train,
        unify,
    )
    from unisegdiff_pipeline.planning.budget import detect_budget
    from unisegdiff_pipeline.planning.plans import Budget, Plans
    from unisegdiff_pipeline.training.request import TrainRequest, TrainResult

_HOMES = {
    "Budget": "planning.plans",
    "EnsembleRequest": "inference.request",
    "EvaluationOptions": "evaluation.options",
    "Geometry": "core.geometry",
    "MatchingRule": "evaluation.lesion_matching",
    "Plans": "planning.plans",
    "PredictRequest": "inference.request",
    "Prediction": "inference.prediction",
    "Predictor": "inference.predictor",
    "PreparedDataset": "pipeline",
    "Progress": "core.progress",
    "Roots": "io.paths",
    "TrainRequest": "training.request",
    "TrainResult": "training.request",
    "UnifyRequest": "io.unify",
    "UsdError": "core.errors",
    "Volume": "core.geometry",
    "cross_validate": "pipeline",
    "detect_budget": "planning.budget",
    "ensemble": "pipeline",
    "evaluate": "pipeline",
    "find_best": "pipeline",
    "guarantees": "evaluation.conformal",
    "metrics": "evaluation.pair_metrics",
    "plan_and_preprocess": "pipeline",
    "predict": "pipeline",
    "predict_best": "pipeline",
    "train": "pipeline",
    "unify": "pipeline",
}

__all__ = [
    "Budget",
    "EnsembleRequest",
    "EvaluationOptions",
    "Geometry",
    "MatchingRule",
    "Plans",
    "PredictRequest",
    "Prediction",
    "Predictor",
    "PreparedDataset",
    "Progress",
    "Roots",
    "TrainRequest",
    "TrainResult",
    "UnifyRequest",
    "UsdError",
    "Volume",
    "__version__",
    "cross_validate",
    "detect_budget",
    "ensemble",
    "evaluate",
    "find_best",
    "guarantees",
    "metrics",
    "plan_and_preprocess",
    "predict",
    "predict_best",
    "train",
    "unify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_HOMES[name]}")
    value = module if name in ("guarantees", "metrics") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
