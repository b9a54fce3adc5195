"""What a cascade takes over from the model whose masks it refines, before its first fold begins.

    MODEL/3d_lowres/plans.json  dataset.json  fold_0/weights.safetensors  inference.json  ...
                                       a copy of that model, which prediction begins with
    MODEL/3d_lowres/masks/CASE.b2nd    its masks (1, Z, Y, X) on the cascade's grid, which training reads
    MODEL/3d_lowres/masks/hashes.json  of these files; written last
    MODEL/.former-3d_lowres/           with --restart the copy of before, until a fold has begun with the new one

A mask is that of the fold which validated the case, so that it comes from a network that was not trained on it. All
lies in the cascade's own folder: whatever becomes of the other model, the cascade goes on with what it began with.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, file_hash
from unisegdiff_pipeline.core.names import file_of
from unisegdiff_pipeline.core.parallel import map_cases
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object, write_json
from unisegdiff_pipeline.inference.model_folder import (
    DATASET_NAME,
    PLANS_NAME,
    SETTINGS_NAME,
    WEIGHTS_NAME,
    ModelFolder,
    finished_folds,
    open_model_folder,
    weights_of_all_folds,
)
from unisegdiff_pipeline.io.endings import label_ending
from unisegdiff_pipeline.io.prediction_files import VALIDATION, scores_of_fold
from unisegdiff_pipeline.planning.plans import Plans
from unisegdiff_pipeline.preprocessing.cascade_inputs import mask_on_grid
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder, mask_path, write_array

MASKS = "masks"
HASHES_NAME = "hashes.json"


@dataclass(frozen=True)
class CascadeStart:
    """The model whose masks a cascade refines, and where what is taken over from it lies.

    Attributes:
        source: RESULTS/DATASET/MODEL of the model.
        target: its copy in the cascade's folder.
        data: preprocessed cases of the cascade, which read their masks there.
        plans: of the cascade.
        patch_size: of the cascade.
        command: that trains the model, for messages.
    """

    source: Path
    target: Path
    data: PreprocessedFolder
    plans: Plans
    patch_size: tuple[int, ...]
    command: str

    def find_masks(self, case_ids: Sequence[str]) -> dict[str, Path]:
        """The mask file of each case, as the fold that validated it wrote it.

        Raises:
            UsdError: the model is not there, lacks folds or masks, has folds of different splits, or takes other
                channels or has other classes than the plan now.
        """
        folds = [fold for fold in finished_folds(self.source) if fold != "all"] if self.source.is_dir() else []
        found: dict[str, Path] = {}
        for fold in folds:
            fold_folder = self.source / f"fold_{fold}"
            folder = fold_folder / VALIDATION
            own = {case_id: self._mask_file(folder, case_id) for case_id in _validated(scores_of_fold(fold_folder))}
            if twice := sorted(own.keys() & found.keys()):
                raise UsdError(
                    f"{found[twice[0]].parent} and {folder} both hold a mask of {twice[0]}: these folds are of "
                    f"different splits, and one of the two networks may have been trained on the case. Move the folds "
                    f"that are not of the splits now out of {self.source}; train those anew whose cases changed."
                )
            found |= own
        lacking = [case_id for case_id in case_ids if case_id not in found]
        if lacking:
            there = f"finished and validated are its folds {', '.join(folds)}" if folds else "it has no finished fold"
            raise UsdError(
                f"a cascade refines the masks that the folds of {self.source} made of their validation cases, and "
                f"{len(lacking)} of {counted(len(case_ids), 'case')} have none ({lacking[0]}, ...): {there}. Train all "
                f"of its folds first: {self.command}; folds whose validation had no time are completed with --val."
            )
        if missing := [found[case_id] for case_id in case_ids if not found[case_id].is_file()]:
            raise UsdError(f"{missing[0]} is gone; predict the validation cases again: {self.command} --val")
        self._require_same_images_and_classes(open_model_folder(self.source))
        return {case_id: found[case_id] for case_id in case_ids}

    def _require_same_images_and_classes(self, model: ModelFolder) -> None:
        """Raise a UsdError where the model takes other images, or tells other classes, than the cascade."""
        now = self.plans.configurations[model.configuration.name].preprocessing.missing_channels
        for what, former, planned in (
            ("labels", model.plans.labels, self.plans.labels),
            ("channel_names", model.plans.channel_names, self.plans.channel_names),
            ("missing_channels", model.configuration.preprocessing.missing_channels, now),
        ):
            if former != planned:
                raise UsdError(
                    f"{self.source} was trained with {what} {former}, the plan has {planned} now; train it anew: "
                    f"{self.command} --restart"
                )

    def take_over(self, case_ids: Sequence[str], workers: int) -> None:
        """Copy the model, and bring its masks of the cases to the cascade's grid; `settle` removes the copy of before.

        Where it fails nothing has changed.

        Raises:
            UsdError: as `find_masks`; a mask that cannot be read or is on another grid than its image.
        """
        masks = self.find_masks(case_ids)
        with atomic_path(self.target) as copy:
            _copy(open_model_folder(self.source), copy)
            jobs = [_Job(masks[case], case, self.data, copy / MASKS, self.patch_size) for case in case_ids]
            found = map_cases(
                _take_over_mask, jobs, names=list(case_ids), workers=workers, description=f"masks of {self.source.name}"
            )
            write_json(copy / MASKS / HASHES_NAME, {outcome.name: outcome.value for outcome in found})
            if self.target.is_dir():
                self.target.replace(self._former)

    def settle(self, begun: bool) -> None:
        """Remove the copy of before where a fold has begun with the new one, else put it back."""
        if not self._former.is_dir():
            return
        if begun:
            shutil.rmtree(self._former)
            return
        if self.target.is_dir():
            shutil.rmtree(self.target)
        self._former.replace(self.target)

    @property
    def _former(self) -> Path:
        return self.target.with_name(f".former-{self.target.name}")

    def are_kept(self, case_ids: Sequence[str]) -> bool:
        """Whether the masks of these cases have been taken over."""
        return set(case_ids) <= self._hashes().keys()

    def require_kept(self, case_ids: Sequence[str]) -> None:
        """Raise a UsdError where a mask that was taken over is not there any more, or is damaged."""
        hashes = self._hashes()
        for case_id in case_ids:
            path = mask_path(self.target / MASKS, case_id)
            if case_id not in hashes or not path.is_file() or file_hash(path) != hashes[case_id]:
                raise UsdError(
                    f"{path} is missing or is not what was taken over from {self.source.name} when the first fold "
                    f"began; restore it, train beside with --run NAME, or train all folds anew: fold cv, --restart."
                )

    @property
    def is_former(self) -> bool:
        """Whether the model has other weights now than when its masks were taken over."""
        try:
            kept, now = (weights_of_all_folds(open_model_folder(folder)) for folder in (self.target, self.source))
        except UsdError:  # the cascade goes on with its copy, whatever became of the model
            return False
        return kept != now

    @property
    def masks_stamp(self) -> tuple[int, int] | None:
        """Another one whenever masks have been taken over anew; None where there are none."""
        path = self.target / MASKS / HASHES_NAME
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _hashes(self) -> Mapping[str, str]:
        path = self.target / MASKS / HASHES_NAME
        return from_jsonable(dict[str, str], read_object(path)) if path.is_file() else {}

    def _mask_file(self, folder: Path, case_id: str) -> Path:
        return file_of(folder, case_id, label_ending(self.plans.file_ending))


@dataclass(frozen=True)
class _Job:
    mask: Path
    case_id: str
    data: PreprocessedFolder
    folder: Path
    patch_size: tuple[int, ...]


def _copy(model: ModelFolder, folder: Path) -> None:
    names = [PLANS_NAME, DATASET_NAME]
    names += [f"fold_{fold}/{name}" for fold in model.folds for name in (WEIGHTS_NAME, SETTINGS_NAME)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.folder / name, folder / name)


def _take_over_mask(job: _Job) -> str:
    """Write the mask of one case on the cascade's grid; returns the hash of the file."""
    from unisegdiff_pipeline.io.images import read_labels

    properties, mask = job.data.properties(job.case_id), read_labels(job.mask).array[0]
    if mask.shape != properties.shape_original:
        raise UsdError(
            f"{job.mask} has shape {mask.shape}, its image {properties.shape_original} (Z, Y, X); predict the "
            f"validation cases of that fold again with --val."
        )
    path = mask_path(job.folder, job.case_id)
    write_array(path, mask_on_grid(mask, properties)[None], job.patch_size)
    return file_hash(path)


def _validated(summary: Path) -> tuple[str, ...]:
    """Names of the cases that a fold has validated."""
    if not summary.is_file():
        return ()
    try:
        return tuple(str(case["case_id"]) for case in read_object(summary)["cases"])
    except (KeyError, TypeError):
        raise UsdError(
            f"{summary} does not name its cases as validation writes them; run that fold again with --val."
        ) from None
