"""Checkpoints of a running training, which survive a kill at any moment."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path

CHECKPOINT_NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a fold, atomically."""
    # Written in one go: torch's own writer turns a full disk into an internal error that says nothing of it.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(folder / CHECKPOINT_NAME) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def require_checksums(path: Path) -> None:
    """Raise BadZipFile where a part of an archive is damaged: torch's own reader does not compare their checksums."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def load_checkpoint(folder: Path, expected_plan_hash: str) -> dict[str, Any] | None:
    """Read the checkpoint of a fold; None where there is none.

    Raises:
        UsdError: where it is damaged or was made with another plan.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        require_checksums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsdError(
            f"{path} cannot be read ({error}); it is damaged or no checkpoint of this program: "
            f"delete it, or begin again with --restart."
        ) from error
    if not isinstance(state, dict) or state.get("plan_hash") != expected_plan_hash:
        raise UsdError(
            f"{path} was made with another plan: the network or the preprocessing in plans.json has changed since. "
            f"Restore the former plans.json to continue, or begin again with --restart."
        )
    return dict(state)
