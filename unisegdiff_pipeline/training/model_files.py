"""The files that the folds of a model share, plans.json and dataset.json, and the folders that a training makes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_empty_folders
from unisegdiff_pipeline.core.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME, PLANS_NAME, plan_difference
from unisegdiff_pipeline.planning.plans import Plans
from unisegdiff_pipeline.training.cascade import MASKS
from unisegdiff_pipeline.training.fold_files import has_begun
from unisegdiff_pipeline.training.opened_request import OpenedRequest


def write_model_files(opened: OpenedRequest) -> None:
    """Put plans.json and dataset.json beside the folds, so that a model can be used without its data."""
    check_plan_of_folds(opened)
    write_json(opened.model_folder / PLANS_NAME, opened.plans)
    write_json(opened.model_folder / DATASET_NAME, read_json(opened.dataset / DATASET_NAME))


def check_plan_of_folds(opened: OpenedRequest) -> None:
    """Raise a UsdError where the model folder holds folds of another plan, other than those that begin again now."""
    folder = opened.model_folder
    path, others = folder / PLANS_NAME, begun_folds(opened)
    if not path.is_file() or not others:
        return
    if difference := plan_difference(read_dataclass(Plans, path), opened.plans, opened.configuration.name):
        raise UsdError(
            f"{folder} holds {', '.join(sorted(others))}, trained with another plan than {opened.plans_path} is now: "
            f"{difference}. Restore the former plan, as {path} holds it, train beside it with --run NAME, or move "
            f"{folder} away and train anew."
        )


def begun_folds(opened: OpenedRequest) -> list[str]:
    """Folders of the folds of the model that have begun, without those that begin again now."""
    folders = opened.model_folder.glob("fold_*")
    return [p.name for p in folders if p.name.removeprefix("fold_") not in opened.restarted and has_begun(p)]


def folders_to_make(model_folder: Path) -> tuple[Path, ...]:
    """The folders that a training may have to make for its model, the innermost first."""
    return model_folder, model_folder.parent, model_folder.parent.parent


def remove_what_is_empty(model_folder: Path, made: Sequence[Path]) -> None:
    """Remove what this command made for a model of which no fold has begun, so that it is not taken for one."""
    in_use = any(path for pattern in ("fold_*", ".lock-*") for path in model_folder.glob(pattern))
    if model_folder in made and not in_use:
        for name in (PLANS_NAME, DATASET_NAME):
            (model_folder / name).unlink(missing_ok=True)
        for copy in model_folder.glob(f"*/{MASKS}"):  # of the model whose masks a cascade refines
            shutil.rmtree(copy.parent)
    remove_empty_folders(made)
