"""Tiny models with random weights, whose answers are far from constant and know no symmetry."""

from __future__ import annotations

from pathlib import Path

import torch

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.inference.model_folder import plan_hash, save_weights
from unisegdiff_pipeline.inference.settings import InferenceSettings, write_settings
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.planning.plans import (
    Budget,
    ConfigurationPlan,
    DenoiserPlan,
    LevelPlan,
    NetworkPlan,
    Plans,
    PreprocessingPlan,
    TrainingPlan,
)


def tiny_plans(
    labels: LabelScheme, preprocessing: PreprocessingPlan, channels: tuple[str, ...], ending: str, spacing_known: bool
) -> Plans:
    """Plans of one configuration, a network of two levels; slices where the plan keeps the spacing along Z."""
    dims = 2 if preprocessing.target_spacing_mm[0] is None else 3
    levels = tuple(LevelPlan(f, (1 if i == 0 else 2,) * dims, (3,) * dims, 1) for i, f in enumerate((4, 6)))
    network = NetworkPlan(dims, (8, 16, 16)[-dims:], len(channels), levels)
    tiny = ConfigurationPlan("tiny", preprocessing, (1, 1, 1), network, DenoiserPlan((4,)), TrainingPlan(2))
    budget = Budget("cpu", 8, 2)
    return Plans(1, "Dataset001_X", labels, channels, ending, spacing_known, budget, "tiny", {"tiny": tiny})


def write_model(root: Path, plans: Plans, folds: tuple[str, ...] = ("0",), denoiser: bool = True) -> Path:
    """A model folder of these plans, one network a fold."""
    folder, configuration = root / "StagedDiffusionTrainer__tiny", plans.configurations["tiny"]
    write_json(folder / "plans.json", plans)
    for fold in folds:
        torch.manual_seed(int(fold))
        model = build_model(configuration, plans.labels, denoiser)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.4 * torch.randn_like(parameter))
        save_weights(folder / f"fold_{fold}/weights.safetensors", model, {"plan_hash": plan_hash(configuration)})
        settings = InferenceSettings(lam_a=-3.0, lam_c=0.5, sampler=SamplerSettings(num_calls=1), num_samples=2)
        write_settings(folder / f"fold_{fold}", settings)
    return folder
