"""Batches of training patches: which case, where, which annotator, and how augmented.

Every random number of an example comes from a generator of its own, keyed by (seed, iteration, position in the batch).
A batch is therefore the same in any process and any order, and a resumed training needs no saved state.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.networks.threads import torch_threads
from unisegdiff_pipeline.planning.plans import ConfigurationPlan
from unisegdiff_pipeline.preprocessing.cascade_inputs import mask_channels
from unisegdiff_pipeline.preprocessing.presence import drop_channels
from unisegdiff_pipeline.training.data.augmentation import (
    AugmentationDraw,
    augment_intensity,
    draw_augmentation,
    recipe_for_patch,
)
from unisegdiff_pipeline.training.data.mask_augmentation import augment_mask, draw_mask_augmentation
from unisegdiff_pipeline.training.data.nnunet_augmentation import NnunetAugmentation
from unisegdiff_pipeline.training.data.reading import Arrays, Shape3, read_patch
from unisegdiff_pipeline.training.data.source_draw import SourceDraw, masked_channels

MAX_OPEN_CASES = 64  # a case on disk holds two files open; systems allow 256 to 1024 a process
MAX_CASE_DRAWS = 10
COMPONENT_BALANCED_FRACTION = 0.5


class ForegroundLocations(Protocol):
    """Foreground locations of a case; `preprocessing.components.ComponentTable` is one."""

    def draw(self, rng: np.random.Generator, balance: Literal["component", "voxel"], row: int | None) -> Any: ...

    def draw_annotated(self, rng: np.random.Generator, row: int) -> Any: ...


class Case(Arrays, Protocol):
    """What is needed of a preprocessed case; `preprocessing.storage.StoredCase` is one."""

    @property
    def components(self) -> ForegroundLocations: ...

    @property
    def num_bytes(self) -> int: ...

    def load(self) -> Case: ...


class CaseFolder(Protocol):
    """Where cases come from; `preprocessing.storage.PreprocessedFolder` is one."""

    def open(self, case_id: str) -> Any: ...


@dataclass(frozen=True)
class Part:
    """Which examples of a batch are in this process, of several that share it.

    Attributes:
        total: examples of the whole batch.
        rows: (B,) int64, their places in it; on the CPU.
    """

    total: int
    rows: Tensor

    @property
    def fraction(self) -> float:
        """Of the whole batch."""
        return len(self.rows) / self.total

    def of(self, values: Tensor) -> Tensor:
        """Of values of the whole batch (total, ...) those of this part (B, ...)."""
        return values[self.rows.to(values.device)]

    def repeated(self, times: int) -> Part:
        """The part where each example is repeated, one after the other (see `repeat_examples`)."""
        return Part(times * self.total, (times * self.rows[:, None] + torch.arange(times)).flatten())


def drawn(part: Part | None, count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Random values of the `count` examples that are here, by a function that draws them for any number.

    Each of several processes draws those of the whole batch, as a single one would, and keeps its own.
    """
    return draw(count) if part is None else part.of(draw(part.total))


@dataclass(frozen=True)
class Batch:
    """A batch as the losses take it.

    Attributes:
        image: (B, C, *patch) float32, normalised.
        target: (B, K, *patch) float32 of 0 and 1, coded by the label scheme.
        valid: (B, 1, *patch) float32, 1 where a voxel carries loss, 0 where its label is to be ignored; (B, K, *patch)
            where some source does not annotate some class.
        case_ids: the case of each example.
        source: (B,) int64, row of the source in the network's tables, 0 where it is hidden; None where there are none.
        part: which examples these are of a batch that several processes share; None where they are the whole batch.
    """

    image: Tensor
    target: Tensor
    valid: Tensor
    case_ids: tuple[str, ...]
    source: Tensor | None = None
    part: Part | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._each(lambda values: values.to(device, non_blocking=True), self.case_ids)

    def select(self, indices: Tensor) -> Batch:
        """The examples of these indices."""
        at = indices.to(self.image.device)
        chosen = self._each(lambda values: values[at], tuple(self.case_ids[i] for i in indices.tolist()))
        return replace(chosen, part=None)

    def find(self, chosen: Tensor) -> tuple[Tensor, Part | None]:
        """Indices of those examples that are here, among some (N,) of the whole batch; and which part of the N."""
        if self.part is None:
            return chosen, None
        rows, indices = (chosen[:, None] == self.part.rows).nonzero(as_tuple=True)
        return indices, Part(len(chosen), rows)

    def _each(self, function: Callable[[Tensor], Tensor], case_ids: tuple[str, ...]) -> Batch:
        source = None if self.source is None else function(self.source)
        return Batch(function(self.image), function(self.target), function(self.valid), case_ids, source, self.part)


@dataclass(frozen=True)
class PackedBatch:
    """A batch on its way between processes: targets as bytes, a quarter of the size of `Batch`.

    Attributes:
        image: (B, C, *patch) float32.
        target: (B, K, *patch) uint8.
        valid: (B, 1, *patch) or (B, K, *patch) uint8, None where all voxels are valid.
        case_ids: the case of each example.
        source: as in `Batch`.
    """

    image: Tensor
    target: Tensor
    valid: Tensor | None
    case_ids: tuple[str, ...]
    source: Tensor | None = None

    def unpack(self) -> Batch:
        """The batch as float32."""
        target = self.target.float()
        valid = torch.ones_like(target[:, :1]) if self.valid is None else self.valid.float()
        return Batch(self.image, target, valid, self.case_ids, self.source)

    def share_memory_(self) -> None:
        """Move the batch into memory that other processes can map."""
        for tensor in (self.image, self.target, self.valid, self.source):
            if tensor is not None:
                tensor.share_memory_()

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory, for fast copies to a GPU (the name is what DataLoader looks for)."""
        valid, source = (None if v is None else v.pin_memory() for v in (self.valid, self.source))
        return PackedBatch(self.image.pin_memory(), self.target.pin_memory(), valid, self.case_ids, source)


class PatchSource:
    """Makes batch number i out of preprocessed cases, the same one whenever it is asked.

    The last positions of a batch are centred on foreground as in nnU-Net (`foreground_fraction` of the plan: one of
    two, three of eight). Half of these draws take every component equally often, so that a small lesion beside a large
    one is seen, the other half every voxel of a class. The other positions lie anywhere in the case, or around any
    voxel with a label where the data set has an ignore label.

    Different from nnU-Net: a foreground position draws another case where one has no foreground, ten times at most (so
    that data sets with many empty cases keep their foreground fraction); and a patch around a location may hang over
    every border by a quarter of its size, where nnU-Net allows half a patch over the far border and nothing over the
    near one. Voxels outside the case are 0 and background.

    Of a unified data set the source is drawn first, with the probability of its number of images to the power of the
    plan's `temperature`, then one of its cases: a large source does not drown the small ones.
    """

    def __init__(
        self,
        folder: CaseFolder,
        case_ids: Sequence[str],
        configuration: ConfigurationPlan,
        scheme: LabelScheme,
        seed: int,
        augment: bool = True,
        memory_budget_gb: float = 1.0,
    ) -> None:
        """Set up; nothing is read yet.

        Args:
            folder: preprocessed cases of the configuration.
            case_ids: cases to draw from, uniformly; of a unified data set the names begin with the source.
            configuration: its network gives the patch, its training plan batch size and foreground fraction.
            scheme: codes the labels.
            seed: not negative.
            augment: off for patches that only measure.
            memory_budget_gb: cases are kept decompressed in memory as they are met until this is used up; the
                others are read patch by patch.
        """
        if not case_ids:
            raise ValueError("case_ids is empty; give at least one preprocessed case to draw patches from")
        self.case_ids = tuple(case_ids)
        self.batch_size = configuration.training.batch_size
        self._items: Sequence[int] = range(self.batch_size)
        self._folder, self._scheme, self._seed = folder, scheme, seed
        self._patch = tuple(configuration.network.patch_size)
        self._foreground_fraction = configuration.training.foreground_fraction
        self._sources = SourceDraw.of(configuration, self.case_ids, hiding=augment)
        in_plane_only = configuration.training.dummy_2d_augmentation
        recipe = recipe_for_patch(self._patch, in_plane_only, configuration.patch_mirror_axes)
        # Channels of the image, where their presence comes after them; None where there are no others.
        preprocessing = configuration.preprocessing
        self._num_channels = len(preprocessing.normalization) if preprocessing.missing_channels else None
        self._channel_dropout = configuration.training.channel_dropout if augment else 0.0
        by_library = augment and configuration.training.augmentation == "nnunet"
        self._augments_masks = augment
        self._masked = [masked_channels(preprocessing, len(preprocessing.normalization))]
        if self._sources is not None:
            self._masked += self._sources.masked
        libraries = [
            NnunetAugmentation(self._patch, recipe, masked, self._num_channels) for masked in self._masked if by_library
        ]
        self._library = libraries or None  # as `_masked`, by row of the source
        self._recipe = recipe if augment and not by_library else None
        self._memory_left_bytes = memory_budget_gb * 1e9
        self._in_memory: dict[str, Case] = {}
        self._opened: OrderedDict[str, Case] = OrderedDict()

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration` (from 0)."""
        return self.packed_batch(iteration).unpack()

    def packed_batch(self, iteration: int) -> PackedBatch:
        """Batch number `iteration` in its small form."""
        with torch_threads(1):  # sums have one order, and a batch the same bits in every process
            return _collate([self._example(iteration, item) for item in self._items])

    def restrict(self, items: Sequence[int]) -> None:
        """Make these items of each batch only; the others are made by other processes."""
        self._items = items

    def channel_fractions(self, num_patches: int) -> Tensor:
        """Fraction of valid voxels that each channel of the targets covers (K,), in so many patches or a few more."""
        covered, valid = torch.zeros(2, self._scheme.num_channels, dtype=torch.float64)
        for number in range(math.ceil(num_patches / self.batch_size)):
            batch = self.batch(number)
            covered += (batch.target * batch.valid).transpose(0, 1).flatten(1).sum(dim=1)
            valid += batch.valid.expand_as(batch.target).transpose(0, 1).flatten(1).sum(dim=1)
        return (covered / valid.clamp_min(1)).float()

    def preload(self) -> None:
        """Read cases into memory up to the budget, so that processes forked afterwards share them."""
        for case_id in self.case_ids:
            self._case(case_id)

    def is_foreground_item(self, item: int) -> bool:
        """Whether position `item` of a batch is centred on foreground."""
        return item >= round(self.batch_size * (1 - self._foreground_fraction))

    def _example(self, iteration: int, item: int) -> _Example:
        rng = np.random.default_rng([self._seed, iteration, item])
        case_id, row, start = self._draw_location(rng, self.is_foreground_item(item))
        source = 0 if self._sources is None else self._sources.index_of[case_id]
        image, labels, mask = self._read(self._case(case_id), row, start, source, rng)
        if self._num_channels is not None:
            drop_channels(image, self._channel_dropout, rng)
        if mask is not None:
            image = np.concatenate([image, self._mask_channels(mask, rng)])
        valid = None if self._scheme.ignore_value is None else ~self._scheme.ignored(labels)[None]
        if self._sources is None:
            return _Example(image, self._scheme.encode(labels), valid, case_id)
        valid = self._sources.annotated_voxels(source, valid, labels.shape)
        return _Example(image, self._scheme.encode(labels), valid, case_id, 0 if self._sources.hides(rng) else source)

    def _read(
        self, case: Case, row: int, start: Shape3, source: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Image (C, *patch), labels and a cascade's mask (*patch) at `start`, augmented."""
        if self._library is not None:
            return self._library[source].read_patch(case, row, start, rng)
        if self._recipe is None:
            patch, labels, mask = read_patch(case, row, start, self._patch, None)
            return patch.numpy(), labels, mask
        draw = draw_augmentation(self._recipe, self._num_channels or case.image.shape[0], rng)
        patch, labels, mask = read_patch(case, row, start, self._patch, draw.affine)
        augment_intensity(patch[: self._num_channels], draw, self._recipe, self._masked[source])
        flips = mirror_slices(draw)
        return patch.numpy()[:, *flips], labels[flips], None if mask is None else mask[flips]

    def _mask_channels(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A cascade's mask (*patch) as channels (classes, *patch) of the input, augmented."""
        channels = mask_channels(mask, self._scheme)
        if self._augments_masks:
            augment_mask(channels, draw_mask_augmentation(len(channels), rng))
        return channels.astype(np.float32)

    def _draw_location(self, rng: np.random.Generator, foreground: bool) -> tuple[str, int, Shape3]:
        """Draw case, label row and first voxel (z, y, x) of the patch."""
        for _ in range(MAX_CASE_DRAWS if foreground else 1):
            among = self.case_ids if self._sources is None else self._sources.draw_cases(rng)
            case_id = among[rng.integers(len(among))]
            case = self._case(case_id)
            num_rows = case.labels.shape[0]
            row = 0 if num_rows == 1 else int(rng.integers(1, num_rows))
            voxel = self._draw_voxel(rng, case.components, row, foreground)
            if voxel is not None:
                break
        if voxel is None and foreground and self._scheme.ignore_value is not None:
            voxel = case.components.draw_annotated(rng, row)  # a patch without any label would teach nothing
        shape, patch = case.image.shape[1:], (1,) * (3 - len(self._patch)) + self._patch
        if voxel is None:
            return case_id, row, random_start(shape, patch, rng)
        return case_id, row, start_around(voxel, shape, patch)

    def _draw_voxel(self, rng: np.random.Generator, components: ForegroundLocations, row: int, foreground: bool) -> Any:
        """Draw the voxel that the patch should hold, None where it may lie anywhere."""
        if foreground:
            balance: Literal["component", "voxel"] = (
                "component" if rng.random() < COMPONENT_BALANCED_FRACTION else "voxel"
            )
            voxel = components.draw(rng, balance, row)
            # A rater who saw nothing is trained on too, at the places where the others saw something.
            return voxel if voxel is not None else components.draw(rng, balance, None)
        if self._scheme.ignore_value is not None:
            return components.draw_annotated(rng, row)
        return None

    def _case(self, case_id: str) -> Case:
        """A case from memory, from the cases that are open, or newly opened."""
        if case_id in self._in_memory:
            return self._in_memory[case_id]
        if case_id in self._opened:
            self._opened.move_to_end(case_id)
            return self._opened[case_id]
        case: Case = self._folder.open(case_id)
        if case.num_bytes <= self._memory_left_bytes:
            self._memory_left_bytes -= case.num_bytes
            self._in_memory[case_id] = case.load()
            return self._in_memory[case_id]
        self._opened[case_id] = case
        if len(self._opened) > MAX_OPEN_CASES:
            self._opened.popitem(last=False)
        return case

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without open files and cases; a copy reads from disk, since each would hold its own memory."""
        emptied = {"_in_memory": {}, "_opened": OrderedDict(), "_memory_left_bytes": 0.0}
        return {**self.__dict__, **emptied}


@dataclass(frozen=True)
class _Example:
    image: np.ndarray  # (C, *patch) float32
    target: np.ndarray  # (K, *patch) uint8
    valid: np.ndarray | None  # (1 or K, *patch) bool
    case_id: str
    source: int | None = None  # 0 where it is hidden


def _collate(examples: Sequence[_Example]) -> PackedBatch:
    valid = source = None
    if examples[0].valid is not None:
        valid = torch.from_numpy(np.stack([np.asarray(e.valid) for e in examples]).astype(np.uint8))
    if examples[0].source is not None:
        source = torch.tensor([e.source for e in examples])
    return PackedBatch(
        torch.from_numpy(np.stack([e.image for e in examples])),
        torch.from_numpy(np.stack([e.target for e in examples])),
        valid,
        tuple(e.case_id for e in examples),
        source,
    )


def random_start(shape: Sequence[int], patch: Sequence[int], rng: np.random.Generator) -> Shape3:
    """First voxel of a patch anywhere inside the case; centred on axes where the case is smaller than the patch."""
    z, y, x = (
        int(rng.integers(size - wanted + 1)) if size >= wanted else -((wanted - size) // 2)
        for size, wanted in zip(shape, patch, strict=True)
    )
    return z, y, x


def start_around(voxel: Sequence[int], shape: Sequence[int], patch: Sequence[int]) -> Shape3:
    """First voxel of a patch with `voxel` in its middle, or as near to it as an overhang of a quarter patch allows."""
    starts = []
    for position, size, wanted in zip(voxel, shape, patch, strict=True):
        first, last = sorted((0, size - wanted))
        if size < wanted:
            first = last = -((wanted - size) // 2)
        overhang = wanted // 4
        starts.append(min(max(position - wanted // 2, first - overhang), last + overhang))
    z, y, x = starts
    return z, y, x


def mirror_slices(draw: AugmentationDraw) -> tuple[slice, ...]:
    """Slices of a patch that flip it as drawn."""
    return tuple(slice(None, None, -1) if flip else slice(None) for flip in draw.mirror)
