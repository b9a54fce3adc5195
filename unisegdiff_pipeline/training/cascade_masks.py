"""When a training of a cascade takes over the masks that it refines, and when their former copy goes."""

from __future__ import annotations

from unisegdiff_pipeline.training.fold_files import has_begun_anew
from unisegdiff_pipeline.training.model_files import begun_folds
from unisegdiff_pipeline.training.opened_request import OpenedRequest


def take_over_masks(opened: OpenedRequest, writing: bool = True) -> None:
    """Give a cascade the masks that it refines: before its first fold begins anew, and afterwards those of then."""
    if opened.cascade is None:
        return
    if writing:
        settle_masks(opened)  # of a training that was killed
    if begun_folds(opened):
        opened.cascade.require_kept(opened.cases)
    elif writing:
        opened.cascade.take_over(opened.cases, opened.workers)
        if not opened.request.restart:  # no fold needs the copy of before
            opened.cascade.settle(begun=True)
    else:
        opened.cascade.find_masks(opened.cases)


def settle_masks(opened: OpenedRequest) -> None:
    """Keep the masks that a fold has begun anew with, else those of before; called before its own files are settled."""
    if opened.cascade is not None:
        opened.cascade.settle(begun=any(map(has_begun_anew, opened.model_folder.glob("fold_*"))))
