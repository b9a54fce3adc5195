"""What label values mean: classes or regions, the ignore label, and their coding as channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np

from unisegdiff_pipeline.core.bounds import Length, Range

MAX_LABEL = 32767  # label maps are stored in 16 bits
LabelValue = Annotated[int, Range(1, MAX_LABEL)]
Coding = Literal["binary", "softmax", "regions"]


@dataclass(frozen=True)
class LabelScheme:
    """Foreground classes (or regions) of a data set and how a network codes them.

    Attributes:
        names: foreground classes or regions, in the order of the network's foreground channels.
        members: the label values of files that make up each of `names`; of regions a value may be in several.
        coding: "binary" = one sigmoid channel, "softmax" = background + classes, "regions" = a sigmoid per region.
        write_values: label value written for each of `names`; later names overwrite earlier ones when decoding
            regions (nnU-Net's `regions_class_order`).
        ignore_value: voxels of this value carry no loss and no score; None where the data set has none.
        background_values: values besides 0 that files may hold and that mean the background, too.
    """

    names: Annotated[tuple[str, ...], Length(1, MAX_LABEL)]
    members: tuple[Annotated[tuple[LabelValue, ...], Length(1, MAX_LABEL)], ...]
    coding: Coding
    write_values: tuple[LabelValue, ...]
    ignore_value: LabelValue | None = None
    background_values: tuple[LabelValue, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(self.names), len(self.members), len(self.write_values)}
        if len(counts) > 1:
            raise ValueError(
                f"names has {len(self.names)} values, members {len(self.members)} and write_values "
                f"{len(self.write_values)}; each class needs one in all three"
            )
        if self.coding == "binary" and len(self.names) != 1:
            raise ValueError(f"coding is 'binary' for {len(self.names)} classes; allowed is exactly one")
        used = [value for values in self.members for value in values]
        if self.coding != "regions" and len(set(used)) < len(used):
            raise ValueError(f"members is {self.members}; a value is of one class only, unless coding is 'regions'")
        if twice := [v for v in self.background_values if v in used or v == self.ignore_value]:
            raise ValueError(f"background_values holds {twice}, which mean something else, too")

    def fields(self) -> dict[str, Any]:
        """All fields, for hashes: schemes of before a field was there keep theirs."""
        fields = asdict(self)
        if not self.background_values:
            del fields["background_values"]
        return fields

    @property
    def num_channels(self) -> int:
        """Channels of the network's output."""
        return len(self.names) + (1 if self.coding == "softmax" else 0)

    @property
    def foreground_offset(self) -> int:
        """Index of the first foreground channel: 1 for softmax, where channel 0 is the background, else 0."""
        return 1 if self.coding == "softmax" else 0

    @property
    def nesting(self) -> tuple[tuple[int, int], ...]:
        """Pairs (inner, outer) of region channels of which the first lies within the second; largest regions first."""
        if self.coding != "regions":
            return ()
        regions = [frozenset(values) for values in self.members]
        largest_first = sorted(range(len(regions)), key=lambda i: -len(regions[i]))
        return tuple((i, j) for i in largest_first for j in largest_first if regions[i] < regions[j])

    @property
    def overlap(self) -> bool:
        """Whether regions share values of which neither lies within the other."""
        pairs = combinations(map(set, self.members), 2)
        return self.coding == "regions" and any(a & b and not (a <= b or b <= a) for a, b in pairs)

    @property
    def combinations(self) -> tuple[tuple[int, ...], ...]:
        """The sets of region channels (their indices) that a label value is in, those of most regions first."""
        values = sorted({v for values in self.members for v in values})
        found = {tuple(i for i, held in enumerate(self.members) if value in held) for value in values}
        return tuple(sorted(found, key=lambda regions: (-len(regions), regions)))

    @property
    def allowed_values(self) -> frozenset[int]:
        """All label values that a label file may hold."""
        values = {0, *self.background_values, *(v for group in self.members for v in group)}
        return frozenset(values if self.ignore_value is None else values | {self.ignore_value})

    def in_words(self) -> str:
        """The classes or regions with their values, as in "lesion (1), tumour (1, 2)"."""
        parts = zip(self.names, self.members, strict=True)
        return ", ".join(f"{name} ({', '.join(map(str, values))})" for name, values in parts)

    def regions_of(self, value: int) -> tuple[str, ...]:
        """Names of the classes or regions that a label value belongs to."""
        return tuple(name for name, values in zip(self.names, self.members, strict=True) if value in values)

    def order_problem(self) -> str | None:
        """Say which label value a perfect prediction would write as one of other regions, and what to do; None if none.

        Of the regions that hold a voxel the last one is written, so its value must belong to all of them, and to no
        other.
        """
        for value in sorted({v for values in self.members for v in values}):
            regions = self.regions_of(value)
            written = self.write_values[self.names.index(regions[-1])]
            if self.regions_of(written) != regions:
                found = ", ".join(self.regions_of(written)) or "no region"
                return (
                    f"{list(self.write_values)} for {', '.join(self.names)}: voxels of the value {value}, which is in "
                    f"{', '.join(regions)}, would be written as {written}, which is in {found}; "
                    f"{_order_remedy(self.names, self.members)}"
                )
        return None

    def class_masks(self, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, boolean mask) for each foreground class or region of a label map of any shape."""
        for index, name in enumerate(self.names):
            yield name, self.class_mask(index, labels)

    def class_mask(self, index: int, labels: np.ndarray) -> np.ndarray:
        """Boolean mask of one foreground class or region of a label map of any shape."""
        first, *others = self.members[index]
        mask: np.ndarray = labels == first
        for value in others:  # np.isin takes more than ten times as long
            mask |= labels == value
        return mask

    def foreground(self, labels: np.ndarray) -> np.ndarray:
        """Boolean mask of all classes or regions of a label map of any shape, which holds `allowed_values` only."""
        mask = np.asarray(labels != 0)
        for value in (*self.background_values, self.ignore_value):
            if value is not None:
                mask &= labels != value
        return mask

    def ignored(self, labels: np.ndarray) -> np.ndarray:
        """Boolean mask of the voxels to leave out; all False without an ignore label."""
        if self.ignore_value is None:
            return np.zeros(labels.shape, bool)
        return labels == self.ignore_value

    def encode(self, labels: np.ndarray) -> np.ndarray:
        """Code a label map (...) as uint8 channels (num_channels, ...) of 0 and 1; ignored voxels are background."""
        channels = np.stack([mask for _, mask in self.class_masks(labels)]).astype(np.uint8)
        if self.coding == "softmax":
            channels = np.concatenate([1 - channels.max(axis=0, keepdims=True), channels])
        return channels

    def decode(self, probabilities: np.ndarray) -> np.ndarray:
        """Turn probabilities (num_channels, ...) into a label map (...): argmax, or p > 0.5 for sigmoid channels."""
        dtype = np.uint8 if max(self.write_values) < 256 else np.int16
        if self.coding == "softmax":
            values = np.array([0, *self.write_values], dtype)
            return values[np.argmax(probabilities, axis=0)]
        labels = np.zeros(probabilities.shape[1:], dtype)
        for channel, value in zip(probabilities, self.write_values, strict=True):
            labels[channel > 0.5] = value
        return labels


def classes_in_words(labels: LabelScheme) -> str:
    """The classes or regions with their values; the same text for schemes whose masks mean the same."""
    parts = zip(labels.names, labels.members, labels.write_values, strict=True)
    if labels.coding == "regions":
        return ", ".join(f"{name} {list(values)} written as {value}" for name, values, value in parts)
    return ", ".join(f"{name} {value}" for name, _, value in parts)


def _order_remedy(names: tuple[str, ...], members: tuple[tuple[int, ...], ...]) -> str:
    """An order that keeps the regions of every value: of the regions as they are, else of the larger ones first."""
    if order := _working_order(members):
        return f"[{', '.join(map(str, order))}] would keep the regions of every value."
    largest_first = sorted(range(len(names)), key=lambda i: -len(members[i]))
    if order := _working_order(tuple(members[i] for i in largest_first)):
        return (
            f"list the regions as {', '.join(names[i] for i in largest_first)}, with regions_class_order "
            f"[{', '.join(map(str, order))}]."
        )
    return (
        "no order keeps the regions of every value, because regions overlap and neither lies within the other: add a "
        "region for the values that they share, and list it last."
    )


def _working_order(members: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """A value to write for each region, of those whose last region it is; empty where they are in different regions."""
    order = []
    for i, values in enumerate(members):
        own = [v for v in values if not any(v in later for later in members[i + 1 :])]
        if len({tuple(v in earlier for earlier in members[:i]) for v in own}) > 1:
            return ()
        order.append(own[0] if own else values[0])  # one that is overwritten everywhere may be written as anything
    return tuple(order)
