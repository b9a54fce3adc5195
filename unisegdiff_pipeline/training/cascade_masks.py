"""When a training of a cascade takes over the masks that it refines, and when their former copy goes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.locks import holder_of, locked
from unisegdiff_pipeline.training.cascade import CascadeStart
from unisegdiff_pipeline.training.fold_files import has_begun_anew
from unisegdiff_pipeline.training.model_files import begun_folds
from unisegdiff_pipeline.training.opened_request import FOLD_LOCK, OpenedRequest

LOGGER = logging.getLogger(__name__)
MASKS_LOCK = ".lock-masks"
LOOK_AGAIN_S = 1.0


def take_over_masks(opened: OpenedRequest, writing: bool = True) -> None:
    """Give a cascade the masks that it refines: before its first fold begins anew, and afterwards those of then.

    Of several folds that begin at once, as the tasks of a job array do, one takes them over for all.
    """
    if opened.cascade is None:
        return
    if not writing:
        if begun_folds(opened):
            opened.cascade.require_kept(opened.cases)
        else:
            opened.cascade.find_masks(opened.cases)
        return
    before = opened.cascade.masks_stamp
    with _alone_with_masks(opened, opened.cascade):
        settle_masks(opened)  # of a training that was killed
        just_taken_over = opened.cascade.masks_stamp != before
        others_train = any(map(holder_of, opened.model_folder.glob(FOLD_LOCK.format("*"))))
        if begun_folds(opened) or just_taken_over or others_train:
            opened.cascade.require_kept(opened.cases)
            if opened.cascade.is_former:
                LOGGER.info(
                    "%s has been trained again since the first fold of the cascade began, which goes on with the masks "
                    "of then; to refine the new ones, train all its folds anew: FOLD cv, --restart",
                    opened.cascade.source,
                )
            return
        opened.cascade.take_over(opened.cases, opened.workers)
        if not opened.request.restart:  # no fold needs the copy of before
            opened.cascade.settle(begun=True)


@contextlib.contextmanager
def _alone_with_masks(opened: OpenedRequest, cascade: CascadeStart) -> Iterator[None]:
    """Hold the lock of the masks; where another process has it, wait until it has taken them over."""
    path, told = opened.model_folder / MASKS_LOCK, False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(path, str(cascade.target)))
                break
            except UsdError:
                if not told:
                    LOGGER.info("waiting for the process that takes over %s for another fold", cascade.target)
                told = True
                time.sleep(LOOK_AGAIN_S)
        yield


def settle_masks(opened: OpenedRequest) -> None:
    """Keep the masks that a fold has begun anew with, else those of before; called before its own files are settled."""
    if opened.cascade is not None:
        opened.cascade.settle(begun=any(map(has_begun_anew, opened.model_folder.glob("fold_*"))))
