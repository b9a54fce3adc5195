"""Connected components of the labels, with sampled voxels, so that a small lesion can be drawn like a large one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box
from unisegdiff_pipeline.core.components import label_components
from unisegdiff_pipeline.core.files import atomic_path, text_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.npz import read_npz

Balance = Literal["component", "voxel"]
MAX_VOXELS_PER_COMPONENT = 2000
ANNOTATED = -1  # class index of the entry that holds the voxels a partly annotated case gives labels for


@dataclass(frozen=True)
class ComponentTable:
    """Components of one case on the plan grid; entry i owns `voxels[offsets[i]:offsets[i + 1]]`.

    Attributes:
        row: row of the label array, 0 = labelsTr, 1.. = raters; shape (N,).
        class_index: index into `LabelScheme.names`, or ANNOTATED; shape (N,).
        component_id: number of the component in its row and class, from 1; shape (N,).
        num_voxels: its size; shape (N,).
        offsets: shape (N + 1,).
        voxels: (z, y, x) of at most MAX_VOXELS_PER_COMPONENT voxels a component, drawn without replacement.
    """

    row: np.ndarray
    class_index: np.ndarray
    component_id: np.ndarray
    num_voxels: np.ndarray
    offsets: np.ndarray
    voxels: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def present_classes(self, row: int | None = None) -> np.ndarray:
        """Sorted class indices with at least one voxel in `row` (None = in any row)."""
        return np.unique(self.class_index[self._entries(row)])

    def draw(
        self, rng: np.random.Generator, balance: Balance, row: int | None = None, class_index: int | None = None
    ) -> tuple[int, int, int] | None:
        """Draw a foreground voxel (z, y, x), or None where `row` (None = any row) has no foreground.

        "component": class uniformly, component of the class uniformly, voxel uniformly: a lesion of ten voxels is met
        as often as one of ten thousand. "voxel": class uniformly, voxel uniformly over the class. `class_index` fixes
        the class.
        """
        entries = self._entries(row)
        classes = self.class_index[entries]
        if class_index is None and len(entries):
            class_index = int(rng.choice(np.unique(classes)))
        entries = entries[classes == class_index]
        if len(entries) == 0:
            return None
        sizes = self.num_voxels[entries].astype(float)
        weights = sizes / sizes.sum() if balance == "voxel" else None
        return self._draw_voxel(rng, int(rng.choice(entries, p=weights)))

    def draw_annotated(self, rng: np.random.Generator, row: int = 0) -> tuple[int, int, int] | None:
        """Draw a voxel that carries a label (background included); None where the data set has no ignore label."""
        entries = np.flatnonzero((self.class_index == ANNOTATED) & (self.row == row))
        return self._draw_voxel(rng, int(entries[0])) if len(entries) else None

    def _entries(self, row: int | None) -> np.ndarray:
        chosen = self.class_index != ANNOTATED
        return np.flatnonzero(chosen if row is None else chosen & (self.row == row))

    def _draw_voxel(self, rng: np.random.Generator, entry: int) -> tuple[int, int, int]:
        z, y, x = self.voxels[rng.integers(self.offsets[entry], self.offsets[entry + 1])].tolist()
        return z, y, x

    def save(self, path: Path) -> None:
        """Write the table as .npz, atomically."""
        with atomic_path(path) as temporary:
            np.savez(temporary, **vars(self))

    @classmethod
    def load(cls, path: Path) -> ComponentTable:
        """Read what `save` wrote.

        Raises:
            UsdError: missing or damaged.
        """
        return cls(**read_npz(path, cls.__dataclass_fields__, "Run usd_preprocess again, it redoes that case."))


def sample_components(labels: np.ndarray, scheme: LabelScheme, case_id: str) -> ComponentTable:
    """Find the components (26-neighbourhood) of each class or region in each row of `labels` (R, Z, Y, X).

    The sampled voxels depend on the case's name and labels alone.
    """
    rng = np.random.default_rng(int(text_hash(case_id)[:16], 16))
    entries: list[tuple[int, int, int, int]] = []
    samples: list[np.ndarray] = []
    for row, row_labels in enumerate(labels):
        for class_index, (_, mask) in enumerate(scheme.class_masks(row_labels)):
            for component_id, size, voxels in _sampled_components(mask, rng):
                entries.append((row, class_index, component_id, size))
                samples.append(voxels)
        if scheme.ignore_value is not None:
            size, voxels = _sample_mask(row_labels != scheme.ignore_value, rng)
            if size:
                entries.append((row, ANNOTATED, 1, size))
                samples.append(voxels)
    return _table(entries, samples)


def _sampled_components(mask: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int, np.ndarray]]:
    """List (component id, voxels in it, sampled coordinates (n, 3)) of a boolean mask (Z, Y, X)."""
    box = nonzero_box(mask)
    if box is None:
        return []
    inside = mask[box_slices(box)]
    flat = np.flatnonzero(inside)
    owner = label_components(inside).ravel()[flat]
    order = np.argsort(owner, kind="stable")
    ids, starts, sizes = np.unique(owner[order], return_index=True, return_counts=True)
    corner = [low for low, _ in box]
    result = []
    for component_id, start, size in zip(ids.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        chosen = flat[order[start + _choose(size, rng)]]
        result.append((component_id, size, np.stack(np.unravel_index(chosen, inside.shape), axis=1) + corner))
    return result


def _sample_mask(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    flat = np.flatnonzero(mask)
    chosen = flat[_choose(len(flat), rng)]
    return len(flat), np.stack(np.unravel_index(chosen, mask.shape), axis=1)


def _choose(size: int, rng: np.random.Generator) -> np.ndarray:
    if size <= MAX_VOXELS_PER_COMPONENT:
        return np.arange(size)
    return np.sort(rng.choice(size, MAX_VOXELS_PER_COMPONENT, replace=False, shuffle=False))


def _table(entries: list[tuple[int, int, int, int]], samples: list[np.ndarray]) -> ComponentTable:
    columns = np.array(entries, np.int64).reshape(-1, 4)
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in samples], dtype=np.int64)]).astype(np.int64)
    voxels = np.concatenate(samples).astype(np.int32) if samples else np.zeros((0, 3), np.int32)
    return ComponentTable(
        row=columns[:, 0].astype(np.int16),
        class_index=columns[:, 1].astype(np.int16),
        component_id=columns[:, 2].astype(np.int32),
        num_voxels=columns[:, 3],
        offsets=offsets,
        voxels=voxels,
    )
