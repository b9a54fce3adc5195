"""The model of an archive as a model folder below the results."""

from __future__ import annotations

import shutil
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_empty_folders, require_writable, temporary_path
from unisegdiff_pipeline.core.locks import require_free
from unisegdiff_pipeline.inference.archive_reading import checked_archive
from unisegdiff_pipeline.inference.model_folder import ModelFolder, load_fold, open_model_folder


def import_model(archive: Path, results: Path, *, overwrite: bool = False) -> ModelFolder:
    """Unpack an archive into RESULTS/DATASET/MODEL.

    The archive is checked before anything is written (see `archive_reading`), unpacked into a temporary folder and
    opened there as prediction opens it; only then the folder gets its name.

    Args:
        archive: as usd_export wrote it.
        results: root of the results; made if missing.
        overwrite: replace a model that is there, with all that its folder holds.

    Raises:
        UsdError: an archive that is refused, a model that is there, or is being trained; nothing has changed then.
    """
    results = Path(results)
    with checked_archive(Path(archive)) as found:
        target = results / found.manifest.dataset / found.manifest.model
        _require_replaceable(target, overwrite=overwrite)
        require_writable(target.parent)
        made = [folder for folder in target.parents if not folder.exists()]
        work = temporary_path(target)
        try:
            work.mkdir(parents=True)
            require_usable(found.unpack(work))
            if target.exists() or target.is_symlink():
                target.rename(work / "former")
            (work / found.manifest.model).rename(target)
        except BaseException:
            if (work / "former").exists() and not target.exists():
                (work / "former").rename(target)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
            remove_empty_folders(made)
    return open_model_folder(target)


def _require_replaceable(target: Path, *, overwrite: bool) -> None:
    """Raise a UsdError where a model is there that is not to be replaced, or is being trained."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise UsdError(
            f"{target} is there already; import into another root (--results), or replace it, with all that it "
            f"holds, by --overwrite."
        )
    for lock in target.glob(".lock-*"):
        require_free(lock, str(target))


def require_usable(folder: Path) -> None:
    """Raise a UsdError where a model folder is not one that prediction could open, fold by fold."""
    import torch

    model = open_model_folder(folder)
    parts = [model] if model.masks_from is None else [model, model.masks_from]
    for part in parts:
        for fold in part.folds:
            load_fold(part, fold, torch.device("cpu"))
