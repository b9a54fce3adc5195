"""Checkpoints that survive a kill at any moment, and final weights that execute nothing on load."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import atomic_path, text_hash
from unisegdiff_pipeline.planning.plans import ConfigurationPlan

CHECKPOINT_NAME = "checkpoint.pt"
PHASE_1_NAME = "phase_1.safetensors"


def plan_hash(configuration: ConfigurationPlan) -> str:
    """Hash of what trained weights depend on: preprocessing, network and denoiser of a configuration.

    Batch size, learning rate and the like may change while a training is continued; these may not.
    """
    parts = {
        "preprocessing": asdict(configuration.preprocessing),
        "network": asdict(configuration.network),
        "denoiser": asdict(configuration.denoiser),
    }
    return text_hash(json.dumps(parts, sort_keys=True))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a fold, atomically."""
    with atomic_path(folder / CHECKPOINT_NAME) as temporary:
        torch.save(state, temporary)


def load_checkpoint(folder: Path, expected_plan_hash: str) -> dict[str, Any] | None:
    """Read the checkpoint of a fold; None where there is none.

    Raises:
        UsdError: where it is damaged or was made with another plan.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsdError(
            f"{path} cannot be read ({error}); it is damaged or no checkpoint of this program: "
            f"delete it, or begin again with --restart."
        ) from error
    if state.get("plan_hash") != expected_plan_hash:
        raise UsdError(
            f"{path} was made with another plan: the network or the preprocessing in plans.json has changed since. "
            f"Restore the former plans.json to continue, or begin again with --restart."
        )
    return dict(state)


def save_weights(path: Path, network: nn.Module, metadata: dict[str, str]) -> None:
    """Write weights as safetensors with string metadata, atomically."""
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_weights(path: Path, network: nn.Module, expected_plan_hash: str) -> dict[str, str]:
    """Load safetensors into `network`; returns the metadata.

    Raises:
        UsdError: where the file is missing or damaged, or belongs to another plan.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsdError(f"{path} does not exist; train that fold first, or check the path.")
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = dict(stream.metadata() or {})
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise UsdError(f"{path} cannot be read ({error}); it is damaged: copy it again or train again.") from error
    if metadata.get("plan_hash") != expected_plan_hash:
        raise UsdError(
            f"{path} was trained with another plan than the plans.json beside it; use the plans.json that it was "
            f"trained with, or train again."
        )
    network.load_state_dict(tensors)
    return metadata
