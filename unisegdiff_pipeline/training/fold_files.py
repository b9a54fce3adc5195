"""The files of a fold's folder that training writes, so that no more than these is ever removed.

request.json  log.jsonl  report.html  tensorboard/           from the first moment on
logger.json                                                  of a training with a logger of a server
checkpoint.pt                                                while it trains
pretrained.safetensors                                       while it trains, of a start that had a denoiser
phase_1.safetensors  phase_1.json  pictures/                 from phase 1 on
weights.safetensors  inference.json  candidates.json         at the end, and then
validation/                                                  masks CASE.ext, their scores, and what is beside them
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_empty_folders, remove_stale_temporaries
from unisegdiff_pipeline.inference.model_folder import SETTINGS_NAME, WEIGHTS_NAME
from unisegdiff_pipeline.reports.training_log import LOG_NAME
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME
from unisegdiff_pipeline.training.loggers import RUN_NAME
from unisegdiff_pipeline.training.resume import PHASE_1_FACTS_NAME, PHASE_1_NAME, REQUEST_NAME, START_NAME, read_request

CANDIDATES_NAME = "candidates.json"
REPORT_NAME = "report.html"
BEGUN_NAMES = (LOG_NAME, CHECKPOINT_NAME, PHASE_1_NAME, WEIGHTS_NAME)
NAMES = (
    CHECKPOINT_NAME,
    LOG_NAME,
    REQUEST_NAME,
    PHASE_1_NAME,
    PHASE_1_FACTS_NAME,
    START_NAME,
    CANDIDATES_NAME,
    REPORT_NAME,
    RUN_NAME,
    SETTINGS_NAME,
)
FOLDERS = ("validation", "pictures", "tensorboard")
FORMER_NAME = ".former"
_PICTURE = re.compile(r"(image|reference|phase_\d+_\d+_\w+)\.png")
_EVENTS = re.compile(r"events\.out\.tfevents\..*")
_TABLE = re.compile(
    r"(summary|manifest|dataset|plans|spread)\.json|(lesions|volumes|cases|metrics|lesion_scores)\.csv|report\.html"
)


def has_begun(folder: Path) -> bool:
    """Whether anything has been trained in a fold's folder."""
    return any((folder / name).exists() for name in BEGUN_NAMES)


def has_begun_anew(folder: Path) -> bool:
    """Whether a training has begun where `set_aside` made room for it, and is not settled yet."""
    return (folder / FORMER_NAME).is_dir() and has_begun(folder)


def remove_training(folder: Path, validation_cases: Iterable[str]) -> None:
    """Remove what training wrote into a fold's folder, and the folder where nothing else is in it.

    Args:
        folder: folder of the fold.
        validation_cases: names of the masks in validation/; those that the folder's request names are added.
    """
    for path in _written(folder, validation_cases):
        path.unlink(missing_ok=True)
    remove_temporaries(folder)
    _remove_empty_folders(folder)


def set_aside(folder: Path, validation_cases: Iterable[str]) -> None:
    """Move what training wrote out of the way, into folder/.former, until a new training has begun."""
    (folder / FORMER_NAME).mkdir(parents=True, exist_ok=True)  # where nothing has been written, too
    for path in _written(folder, validation_cases):
        target = folder / FORMER_NAME / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    _remove_empty_folders(folder)


def settle_former(folder: Path) -> None:
    """Remove what was set aside where a new training has begun, else put it back."""
    former = folder / FORMER_NAME
    if not former.is_dir():
        return
    if not has_begun(folder):
        # The weights last, so that a kill in between leaves no finished fold that lacks a file.
        for path in sorted((p for p in former.rglob("*") if p.is_file()), key=lambda p: p.name == WEIGHTS_NAME):
            target = folder / path.relative_to(former)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    shutil.rmtree(former)
    _remove_empty_folders(folder)


def _written(folder: Path, validation_cases: Iterable[str]) -> list[Path]:
    """Files in a fold's folder that training wrote, the weights first: without them it is no finished fold."""
    cases = sorted({*validation_cases, *_validated(folder)})
    of_case = re.compile(rf"({'|'.join(map(re.escape, cases))})(_sample\d+)?(\.\w+)+" if cases else "(?!)")
    result = [folder / name for name in (WEIGHTS_NAME, *NAMES) if (folder / name).is_file()]
    for name, patterns in zip(FOLDERS, ((of_case, _TABLE), (_PICTURE,), (_EVENTS,)), strict=True):
        files = (path for path in (folder / name).rglob("*") if path.is_file())
        result += [path for path in files if any(pattern.fullmatch(path.name) for pattern in patterns)]
    return result


def remove_temporaries(folder: Path) -> None:
    """Remove what trainings that were killed have left half written in a fold's folder, whose lock the caller holds."""
    remove_stale_temporaries(folder, below=True, of_anyone=True)


def _validated(folder: Path) -> tuple[str, ...]:
    try:
        former = read_request(folder)
    except UsdError:  # damaged: it is removed
        return ()
    return () if former is None else tuple(former["validation_cases"])


def _remove_empty_folders(folder: Path) -> None:
    """Remove the folders that hold nothing (any more), `folder` itself included."""
    own = [folder / name for name in FOLDERS]
    inner = [path for part in own for path in part.rglob("*") if path.is_dir() and not path.is_symlink()]
    remove_empty_folders((*sorted(inner, reverse=True), *own, folder))
