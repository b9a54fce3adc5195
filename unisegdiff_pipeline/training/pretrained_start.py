"""What a training may start from, whichever program wrote it.

A reader (`pretrained.READERS`) brings the weights of one kind of file to this form; `pretrained.load_start` puts them
into a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.networks.sources import TABLE
from unisegdiff_pipeline.planning.plans import NetworkPlan, Normalization


@dataclass(frozen=True)
class SeenCases:
    """Cases that weights were trained on, those of what the weights began with included.

    Attributes:
        cases: data set => cases, as far as they are known.
        all_known: whether these are all of them; checkpoints of other programs and archives do not say, nor do weights
            that began with such.
    """

    cases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    all_known: bool = False


@dataclass(frozen=True)
class PretrainedStart:
    """Weights to start from, and what is known of the network that they were trained in.

    Attributes:
        tensors: by the names of `StagedModel.state_dict()`: "segmenter.encoder...", and "denoiser..." where there is
            one; on the CPU. Names that this package's networks do not have are allowed, they are listed as left out.
        network: the architecture, with the number of input channels and the patch that it was trained with.
        description: what it is and where it lies, for people.
        hash: of names and values of the tensors, hexadecimal.
        labels: what the channels of the heads mean; None where it is not known, and then heads are not taken over.
        channel_names: of the image, which the first inputs of the network are; empty where they are not known.
        normalization: of each channel; empty where it is not known.
        target_spacing_mm: voxel size (Z, Y, X) that images were resampled to, None for an axis that was left as it is;
            None as a whole where millimetres were not known.
        plan_hash: of the plan it was trained with; None for weights of other programs.
        num_masks: inputs of the network that hold the mask of another one (`Plans.num_masks`).
        seen: cases that the weights were trained on; a fold that validates on one of them cannot start here.
        embeds: whether it also starts wider networks, and 3D ones where it is a 2D one (`embedding`).
        repeats_channels: whether images with fewer channels had theirs repeated, so that it knows what they look like.
        source_names: of a unified model, in the order of its tables' rows.
    """

    tensors: Mapping[str, Tensor]
    network: NetworkPlan
    description: str
    hash: str
    labels: LabelScheme | None = None
    channel_names: tuple[str, ...] = ()
    normalization: tuple[Normalization, ...] = ()
    target_spacing_mm: tuple[float | None, float, float] | None = None
    plan_hash: str | None = None
    num_masks: int = 0
    seen: SeenCases = field(default_factory=SeenCases)
    embeds: bool = False
    repeats_channels: bool = False
    source_names: tuple[str, ...] = ()

    def for_sources(self, names: Sequence[str]) -> PretrainedStart:
        """This start with a row in each table for the sources of another unified model, in their order.

        A source that is not known here has zeros, as it has in a new network.
        """
        rows = [self.source_names.index(name) if name in self.source_names else None for name in names]
        tensors = dict(self.tensors)
        for name, table in self.tensors.items():
            if name.endswith(TABLE):
                tensors[name] = torch.stack([torch.zeros_like(table[0]) if i is None else table[i] for i in rows])
        return replace(self, tensors=tensors, source_names=tuple(names))

    @property
    def num_channels(self) -> int:
        """Channels of the image, which are all inputs of the network where nothing else is known."""
        return len(self.channel_names) or self.network.num_input_channels


@dataclass(frozen=True)
class StartRecord:
    """What a fold keeps of its start: the hash of the weights, and the cases that these were trained on."""

    hash: str
    seen: SeenCases


@dataclass(frozen=True)
class StartReader:
    """One kind of file or folder to start from.

    Attributes:
        kind: what it reads, for the message that lists all kinds.
        accepts: whether a path is of this kind, by names alone; cheap, and never an error.
        read: the path, and the fold that is to be trained ("0", "all", None where it does not matter) => the start;
            raises a UsdError that names the file and what is wrong with it.
    """

    kind: str
    accepts: Callable[[Path], bool]
    read: Callable[[Path, str | None], PretrainedStart]
