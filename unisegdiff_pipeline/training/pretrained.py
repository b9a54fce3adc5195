"""Pre-trained starts: read the weights of another training, load what fits, and say what was done with each part.

What cannot be taken over is listed, and is no error: another number of input channels, other classes, another patch, a
source that the new model does not know. Only another dimension, or weights of which nothing fits, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import read_dataclass, read_object
from unisegdiff_pipeline.inference.model_folder import (
    DATASET_NAME,
    PLANS_NAME,
    WEIGHTS_NAME,
    configuration_of,
    finished_folds,
    plan_hash,
    read_weights,
    require_same_plan,
    tensors_hash,
)
from unisegdiff_pipeline.io.sources import SEPARATOR
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, NetworkPlan, Plans
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart, StartReader
from unisegdiff_pipeline.training.resume import PHASE_1_NAME, read_request

SEGMENTER, DENOISER = "segmenter.", "denoiser."
ENCODER, FIRST_LEVEL, HEADS = f"{SEGMENTER}encoder.", f"{SEGMENTER}encoder.0.", f"{SEGMENTER}heads."
Outcome = Literal["loaded", "adapted", "new", "left out"]


# ------------------------------------------------------------------------------------------------------------ reading


def read_start(path: Path, fold: str | None = None) -> PretrainedStart:
    """Read weights to start from, whatever kind of file or folder they are.

    Args:
        path: a fold folder or a model folder of this program, or what another reader in READERS takes.
        fold: the fold that is to be trained; a model folder's fold of the same name has seen none of its validation
            cases, where both are of one data set.

    Raises:
        UsdError: nothing there that can be read; names the path and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise UsdError(f"--pretrained {path} does not exist; name one of: {_kinds()}.")
    for reader in READERS:
        if reader.accepts(path):
            return reader.read(path, fold)
    raise UsdError(f"--pretrained {path} holds no weights that can be read here; name one of: {_kinds()}.")


def _kinds() -> str:
    return "; ".join(reader.kind for reader in READERS)


def _is_own(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".safetensors"
    return _weights_in(path) is not None or (path / PLANS_NAME).is_file()


def _weights_in(folder: Path) -> Path | None:
    """The weights of a fold: of both phases where it is finished, else those of phase 1."""
    return next((folder / name for name in (WEIGHTS_NAME, PHASE_1_NAME) if (folder / name).is_file()), None)


def _read_own(path: Path, fold: str | None) -> PretrainedStart:
    weights = path if path.is_file() else _weights_in(path) or _weights_in(_fold_of_model(path, fold))
    assert weights is not None
    folder = weights.absolute().parent
    model = folder.parent
    if not (model / PLANS_NAME).is_file():
        raise UsdError(
            f"--pretrained {path}: {model} holds no {PLANS_NAME}, which says what network the weights are of; name a "
            f"fold folder as it lies in its model folder, or the model folder."
        )
    plans = read_dataclass(Plans, model / PLANS_NAME)
    configuration = configuration_of(model, plans)
    tensors, metadata = read_weights(weights)
    require_same_plan(weights, metadata, plan_hash(configuration))
    if not any(name.startswith(SEGMENTER) for name in tensors):  # weights of phase 1 are the segmenter alone
        tensors = {SEGMENTER + name: tensor for name, tensor in tensors.items()}
    known = plans.spacing_known
    return PretrainedStart(
        tensors=tensors,
        network=configuration.network,
        description=f"{weights} (trained on {plans.dataset_name}, {configuration.name})",
        hash=tensors_hash(tensors),
        labels=plans.labels,
        channel_names=plans.channel_names,
        normalization=configuration.preprocessing.normalization,
        target_spacing_mm=configuration.preprocessing.target_spacing_mm if known else None,
        plan_hash=plan_hash(configuration),
        seen_cases=_seen_cases(folder, plans.dataset_name, model / DATASET_NAME),
    )


def _fold_of_model(model: Path, fold: str | None) -> Path:
    """The fold of a model folder to start from: that of the same name, else "all", else the first one."""
    finished = finished_folds(model)
    names = [*([] if fold is None else [fold]), "all", *finished]
    found = next((name for name in names if name in finished), None)
    if found is not None:
        return model / f"fold_{found}"
    begun = sorted(path.parent for path in model.glob(f"fold_*/{PHASE_1_NAME}"))
    if not begun:
        raise UsdError(
            f"--pretrained {model} holds no weights (fold_0/{WEIGHTS_NAME} or {PHASE_1_NAME}, ...); finish one of its "
            f"folds with usd_train, or name another folder."
        )
    return next((path for path in begun if path.name == f"fold_{fold}"), begun[0])


def _seen_cases(folder: Path, dataset: str, description: Path) -> dict[str, tuple[str, ...]]:
    """Data set => cases that a fold was trained on, those of its sources and of its own start included."""
    request = read_request(folder)
    if request is None:
        return {}
    seen: dict[str, set[str]] = {name: set(cases) for name, cases in (request.get("pretrained_cases") or {}).items()}
    for name, cases in by_dataset(dataset, request["train_cases"], description).items():
        seen.setdefault(name, set()).update(cases)
    return {name: tuple(sorted(cases)) for name, cases in sorted(seen.items())}


def by_dataset(dataset: str, cases: Sequence[str], description: Path) -> dict[str, list[str]]:
    """Cases by the data set that they come from, under the names that they have there.

    Args:
        dataset: the data set that lists them; of a unified one the cases are SOURCE__CASE.
        cases: as it names them.
        description: its dataset.json.
    """
    listed = read_object(description).get("sources") if description.is_file() else None
    datasets = {source["name"]: source["dataset"] for source in listed or ()}
    result: dict[str, list[str]] = {}
    for case in cases:
        source, separator, rest = case.partition(SEPARATOR)
        known = separator and source in datasets
        result.setdefault(datasets[source] if known else dataset, []).append(rest if known else case)
    return result


OWN = StartReader(
    kind="a fold or model folder of usd_train (RESULTS/DATASET/TRAINER__CONFIGURATION/fold_0)",
    accepts=_is_own,
    read=_read_own,
)
READERS: tuple[StartReader, ...] = (OWN,)  # the first that accepts a path reads it


# ------------------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class LoadedGroup:
    """What became of tensors that belong together, such as the second level of the encoder.

    Attributes:
        name: what their names begin with.
        outcome: "loaded" as they are, "adapted" to other inputs, "new" (the model's own, nothing was there for them)
            or "left out" (the model has no place for them).
        tensors: how many there are.
        reason: why; empty for "loaded".
    """

    name: str
    outcome: Outcome
    tensors: int
    reason: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What `load_start` did with each part; `description` is that of the start."""

    description: str
    groups: tuple[LoadedGroup, ...]

    def count(self, outcome: Outcome) -> int:
        """Number of tensors with an outcome."""
        return sum(group.tensors for group in self.groups if group.outcome == outcome)

    def table(self) -> str:
        """A line for each group: name, tensors, outcome, reason."""
        rows = [("part", "tensors", "outcome", "why")]
        rows += [(group.name, str(group.tensors), group.outcome, group.reason) for group in self.groups]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


@torch.no_grad()
def load_start(
    model: StagedModel, network: NetworkPlan, start: PretrainedStart, part: Literal["segmenter", "denoiser"]
) -> LoadReport:
    """Load what fits into one part of a model, in place; the rest keeps the values it has.

    The first convolution is adapted to another number of inputs (`adapt_inputs`). Heads, and the denoiser as a whole,
    which reads and writes masks, are taken over where the classes are the same (`same_classes`).

    Args:
        model: the new model, with its initial weights.
        network: the plan of its segmenter.
        start: what to load.
        part: which of the two; "denoiser" of a start without one loads nothing.

    Returns:
        What became of each group of tensors.

    Raises:
        UsdError: the start is of another dimension, or no tensor of its encoder fits.
    """
    if start.network.dims != network.dims:
        raise UsdError(
            f"--pretrained {start.description} is a {start.network.dims}D network and the plan's is a {network.dims}D "
            f"one; start a {network.dims}D configuration from {network.dims}D weights (choose one with -c)."
        )
    prefix = f"{part}."
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    found = {name: value for name, value in start.tensors.items() if name.startswith(prefix)}
    outcomes: dict[str, tuple[Outcome, str]] = {}
    for name, value in own.items():
        source, outcome, reason = _fitted(name, value, found.get(name), model.labels, network, start)
        outcomes[name] = (outcome, reason)
        if source is not None:
            value.copy_(source)
    if part == "segmenter" and not any(
        outcome in ("loaded", "adapted") and name.startswith(ENCODER) for name, (outcome, _) in outcomes.items()
    ):
        raise UsdError(
            f"--pretrained {start.description} is of another architecture, no tensor of its encoder fits: it has "
            f"{describe_network(start.network)}, the plan has {describe_network(network)}. Plan for it with "
            f"usd_plan --for-weights, preprocess by that plan and train with it."
        )
    outcomes |= {name: ("left out", "the new model has no such part") for name in found if name not in own}
    return LoadReport(start.description, _grouped(outcomes))


def _fitted(
    name: str,
    value: Tensor,
    source: Tensor | None,
    labels: LabelScheme,
    network: NetworkPlan,
    start: PretrainedStart,
) -> tuple[Tensor | None, Outcome, str]:
    """What a tensor of the model takes over: the values, the outcome and the reason."""
    if source is None:
        return None, "new", "the start has no such part"
    if name.startswith((HEADS, DENOISER)) and not same_classes(start.labels, labels):
        return None, "new", f"other classes: {_classes(start.labels)} there, {_classes(labels)} here"
    if source.shape == value.shape:
        return source, "loaded", ""
    inputs, wanted = start.network.num_input_channels, network.num_input_channels
    reads_image = name.startswith(FIRST_LEVEL) and source.ndim == value.ndim > 2 and source.shape[1] == inputs
    if reads_image and value.shape[1] == wanted and _without_inputs(source) == _without_inputs(value):
        return adapt_inputs(source, wanted), "adapted", f"{inputs} input channels there, {wanted} here"
    return None, "new", f"shape {_shape(source)} there, {_shape(value)} here"


def adapt_inputs(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (F, C, *kernel) for another number of input channels, (F, channels, *kernel).

    An image with fewer channels than the network is given its channels again and again, 1 -> 111, 2 -> 121. What the
    adapted convolution answers to an image equals what the former one answers to the image so repeated; for more
    channels, what the adapted one answers to the repetition of an image of C channels equals the former answer to it.
    """
    former = weight.shape[1]
    if channels < former:
        return torch.stack([weight[:, first::channels].sum(dim=1) for first in range(channels)], dim=1)
    index = torch.arange(channels) % former
    times = torch.bincount(index, minlength=former)[index].to(weight.dtype)
    return weight[:, index] / times.reshape(1, -1, *[1] * (weight.ndim - 2))


def same_classes(one: LabelScheme | None, other: LabelScheme) -> bool:
    """Whether heads of one data set answer for another: the same classes in the same order, or one class on both sides,
    which is then foreground against background whatever its name.
    """
    if one is None or one.coding != other.coding:
        return False
    if other.coding == "binary":
        return True
    return [name.casefold() for name in one.names] == [name.casefold() for name in other.names]


def differences(start: PretrainedStart, configuration: ConfigurationPlan, labels: LabelScheme) -> tuple[str, ...]:
    """What keeps a segmenter from being taken over without a training of its own; empty where nothing does."""
    network, other = configuration.network, start.network
    found = []
    if not same_classes(start.labels, labels):
        found.append(f"the classes are {_classes(start.labels)} there and {_classes(labels)} here")
    if other.num_input_channels != network.num_input_channels:
        found.append(f"it has {other.num_input_channels} input channels and the plan {network.num_input_channels}")
    if (other.dims, other.levels, other.encoder) != (network.dims, network.levels, network.encoder):
        found.append(f"it has {describe_network(other)} and the plan {describe_network(network)}")
    return tuple(found)


def describe_network(network: NetworkPlan) -> str:
    """An architecture in a few words, such as "a plain 2D encoder with features 16, 32 and strides 1x1, 2x2"."""
    features = ", ".join(str(level.features) for level in network.levels)
    strides = ", ".join("x".join(map(str, level.stride)) for level in network.levels)
    return f"a {network.encoder} {network.dims}D encoder with features {features} and strides {strides}"


def _grouped(outcomes: Mapping[str, tuple[Outcome, str]]) -> tuple[LoadedGroup, ...]:
    """Tensors of one part of the network with one outcome and reason as one group, in the order of the model."""
    groups: dict[tuple[str, Outcome, str], int] = {}
    for name, (outcome, reason) in outcomes.items():
        parts = name.split(".")
        # "segmenter.encoder.3" is a level; "segmenter.heads" and "denoiser" are one group whatever their number.
        depth = 1 if name.startswith(DENOISER) else 3 if name.startswith((ENCODER, f"{SEGMENTER}decoder.")) else 2
        key = (".".join(parts[:depth]), outcome, reason)
        groups[key] = groups.get(key, 0) + 1
    return tuple(LoadedGroup(name, outcome, count, reason) for (name, outcome, reason), count in groups.items())


def _without_inputs(tensor: Tensor) -> tuple[int, ...]:
    return (tensor.shape[0], *tensor.shape[2:])


def _classes(labels: LabelScheme | None) -> str:
    return "not known" if labels is None else ", ".join(labels.names)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
