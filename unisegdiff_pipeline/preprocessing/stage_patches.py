"""Label patches as the network will see them, from which the stages are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np

from unisegdiff_pipeline.core.boxes import CroppedLabels
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.preprocessing.storage import PreprocessedFolder, StoredCase

MAX_PATCHES_PER_CLASS = 64
MAX_ROUNDS = 16  # small data sets give several patches a case


@dataclass(frozen=True)
class MaskPatches(Sequence[np.ndarray]):
    """Boolean masks of which the boxes around the foreground are kept: whole ones of many classes fill the memory."""

    kept: list[CroppedLabels] = field(default_factory=list)

    def add(self, mask: np.ndarray) -> None:
        """Append one."""
        self.kept.append(CroppedLabels.of(mask))

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [patch.whole() for patch in self.kept[index]]
        return self.kept[index].whole()


def collect_label_patches(
    folder: PreprocessedFolder,
    scheme: LabelScheme,
    patch_size: Sequence[int],
    case_ids: Sequence[str] | None = None,
) -> dict[str, MaskPatches]:
    """Boolean masks of `patch_size` (two or three axes), up to MAX_PATCHES_PER_CLASS for each class or region.

    Each patch is centred on a component drawn uniformly, in a row drawn uniformly from those that show the class (so
    that all raters count), moved inwards where it would leave the image and padded where the image is smaller.
    """
    rng = np.random.default_rng(0)
    chosen = folder.case_ids if case_ids is None else case_ids
    patches = {name: MaskPatches() for name in scheme.names}
    for _ in range(MAX_ROUNDS):
        before = sum(map(len, patches.values()))
        for index in rng.permutation(len(chosen)):
            if all(len(found) >= MAX_PATCHES_PER_CLASS for found in patches.values()):
                return patches
            _add_patches(folder.open(chosen[index]), scheme, patch_size, rng, patches)
        if sum(map(len, patches.values())) == before:
            break
    return patches


def _add_patches(
    case: StoredCase,
    scheme: LabelScheme,
    patch_size: Sequence[int],
    rng: np.random.Generator,
    patches: dict[str, MaskPatches],
) -> None:
    table = case.components
    for class_index in table.present_classes().tolist():
        name, members = scheme.names[class_index], scheme.members[class_index]
        if len(patches[name]) < MAX_PATCHES_PER_CLASS:
            row = int(rng.choice(np.unique(table.row[table.class_index == class_index])))
            centre = table.draw(rng, "component", row, class_index)
            assert centre is not None
            patches[name].add(np.isin(label_patch(case, row, centre, patch_size), members))


def label_patch(case: StoredCase, row: int, centre: Sequence[int], patch_size: Sequence[int]) -> np.ndarray:
    """Labels of one row around `centre` (z, y, x), shape `patch_size`; two axes give a slice (Y, X)."""
    size = [1] * (3 - len(patch_size)) + [int(p) for p in patch_size]
    shape = case.labels.shape[1:]
    starts = [int(np.clip(c - p // 2, 0, max(n - p, 0))) for c, p, n in zip(centre, size, shape, strict=True)]
    box = tuple(slice(start, min(start + p, n)) for start, p, n in zip(starts, size, shape, strict=True))
    labels = np.asarray(case.labels[(row, *box)]).reshape([b.stop - b.start for b in box])
    missing = [p - n for p, n in zip(size, labels.shape, strict=True)]
    padded = np.pad(labels, [(m // 2, m - m // 2) for m in missing])
    return padded.reshape(tuple(patch_size))
