"""Pre-trained starts: read the weights of another training, load what fits, and say what was done with each part.

What cannot be taken over is listed, and is no error: another number of input channels, other classes, another patch, a
source that the new model does not know. Only another dimension, or weights of which nothing fits, are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import read_dataclass
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
from unisegdiff_pipeline.io.sources import SEPARATOR, datasets_of_sources, repeated_channels
from unisegdiff_pipeline.networks.sources import TABLE
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, NetworkPlan, Plans
from unisegdiff_pipeline.training.embedding import embedded
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.nnunet_checkpoint import NNUNET
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart, SeenCases, StartReader
from unisegdiff_pipeline.training.resume import (
    PHASE_1_FACTS_NAME,
    PHASE_1_NAME,
    REQUEST_NAME,
    read_request,
    recorded_cases,
)
from unisegdiff_pipeline.training.synthetic_start import GENERATED

SEGMENTER, DENOISER = "segmenter.", "denoiser."
ENCODER, FIRST_BLOCK, HEADS = f"{SEGMENTER}encoder.", f"{SEGMENTER}encoder.0.0.", f"{SEGMENTER}heads."
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
        raise UsdError(f"{path} does not exist; weights to start from are {_kinds()}.")
    for reader in READERS:
        if reader.accepts(path):
            return reader.read(path, fold)
    raise UsdError(f"{path} holds no weights that can be read here; those to start from are {_kinds()}.")


def _kinds() -> str:
    return "; ".join(reader.kind for reader in reversed(READERS))  # ours first


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
            f"{path}: {model} holds no {PLANS_NAME}, which says what network the weights are of; name a "
            f"fold folder as it lies in its model folder, or the model folder."
        )
    plans = read_dataclass(Plans, model / PLANS_NAME)
    configuration = configuration_of(model, plans)
    tensors, metadata = read_weights(weights)
    require_same_plan(weights, metadata, plan_hash(configuration))
    if not any(name.startswith(SEGMENTER) for name in tensors):  # weights of phase 1 are the segmenter alone
        tensors = {SEGMENTER + name: tensor for name, tensor in tensors.items()}
    known = plans.in_mm(configuration)
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
        num_masks=plans.num_masks(configuration),
        seen=_seen_cases(folder, plans.dataset_name, model / DATASET_NAME),
        repeats_channels=configuration.sources is not None and configuration.sources.channel_rule == "replicate",
        source_names=() if configuration.sources is None else tuple(configuration.sources.plans),
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
            f"{model} holds no weights (fold_0/{WEIGHTS_NAME} or {PHASE_1_NAME}, ...); finish one of its "
            f"folds with usd_train, or name another folder."
        )
    return next((path for path in begun if path.name == f"fold_{fold}"), begun[0])


def seen_by_phase_1(folder: Path) -> SeenCases:
    """Cases that the phase 1 in a fold's folder was trained on, see `_seen_cases`.

    Raises:
        UsdError: no plan lies beside the folder, which says what data set it is of.
    """
    model = folder.absolute().parent
    return _seen_cases(folder, read_dataclass(Plans, model / PLANS_NAME).dataset_name, model / DATASET_NAME)


def _seen_cases(folder: Path, dataset: str, description: Path) -> SeenCases:
    """Cases that a fold was trained on, those of its sources and of what it began with included.

    Unknown for a model from an archive, which names none.
    """
    request = read_request(folder)
    if request is None:
        return SeenCases()
    own = by_dataset(dataset, request["train_cases"], description)
    before = _seen_before(request)
    return _together(SeenCases({name: tuple(cases) for name, cases in own.items()}, all_known=True), before)


def _seen_before(request: Mapping[str, Any]) -> SeenCases:
    """Cases that the weights had seen which a fold, whose request this is, began with."""
    return _together(*(recorded_cases(request, key) for key in ("pretrained_cases", "phase_1_cases")))


def _together(*parts: SeenCases) -> SeenCases:
    seen: dict[str, set[str]] = {}
    for part in parts:
        for name, cases in part.cases.items():
            seen.setdefault(name, set()).update(cases)
    every = {name: tuple(sorted(cases)) for name, cases in sorted(seen.items())}
    return SeenCases(every, all(part.all_known for part in parts))


def by_dataset(dataset: str, cases: Sequence[str], description: Path) -> dict[str, list[str]]:
    """Cases by the data set that they come from, under the names that they have there.

    Args:
        dataset: the data set that lists them; of a unified one the cases begin with their source.
        cases: as it names them.
        description: its dataset.json.
    """
    datasets = datasets_of_sources(description)
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
# The first that accepts a path reads it; nnU-Net's model folders hold a plans.json as ours do.
READERS: tuple[StartReader, ...] = (GENERATED, NNUNET, OWN)


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


def load_start(
    model: StagedModel,
    network: NetworkPlan,
    start: PretrainedStart,
    num_channels: int | None = None,
    num_masks: int = 0,
) -> LoadReport:
    """Load what fits into the segmenter of a model, in place; the rest keeps the values it has.

    Where inputs differ, what the first convolution reads of the image is adapted to the channels here (`adapt_inputs`),
    and what it reads after the image, the presence of channels or masks, is left out there and begins without weight
    here: it means something else. Heads are taken over where the classes are the same (`same_classes`).

    Args:
        model: the new model, with its initial weights.
        network: the plan of its segmenter.
        start: what to load.
        num_channels: of the image, where the network has inputs after them (see `preprocessing.presence`); by default
            all are channels of the image.
        num_masks: inputs that hold the mask of another network.

    Returns:
        What became of each group of tensors.

    Raises:
        UsdError: the start is of another dimension, or no tensor of its encoder fits.
    """
    require_same_dims(start, network)
    there, here = start.num_channels, network.num_input_channels if num_channels is None else num_channels
    alike = _same_inputs(start, network, here, num_masks, model.labels)

    def fitted(name: str, value: Tensor, source: Tensor) -> Fitted:
        if start.embeds:
            return _fitted_inside(name, value, source, here, model.labels)
        if name.startswith(HEADS) and not same_classes(start.labels, model.labels):
            return Fitted(None, "new", f"other classes: {_classes(start.labels)} there, {_classes(model.labels)} here")
        inputs, wanted = start.network.num_input_channels, network.num_input_channels
        if not alike and name.startswith(FIRST_BLOCK) and _reads_image(name, source, value, inputs, wanted):
            weight = torch.zeros_like(value)
            weight[:, :here] = adapt_inputs(source[:, :there], here)
            of_image = "" if (inputs, wanted) == (there, here) else f" (of the image {there} and {here})"
            return Fitted(weight, "adapted", f"{inputs} input channels there, {wanted} here{of_image}")
        return _fitted_as_it_is(value, source)

    own = _part(model.state_dict(), SEGMENTER)
    found = _part(start.tensors, SEGMENTER)
    result = {name: _missing() if name not in found else fitted(name, own[name], found[name]) for name in own}
    if not any(fit.tensor is not None for name, fit in result.items() if name.startswith(ENCODER)):
        raise UsdError(
            f"--pretrained {start.description} is of another architecture, no tensor of its encoder fits: it has "
            f"{describe_network(start.network)}, the plan has {describe_network(network)}. Plan for it with "
            f"usd_plan --for-weights, preprocess by that plan and train with it."
        )
    return LoadReport(start.description, _copied(own, found, result))


def denoiser_tensors(start: PretrainedStart, labels: LabelScheme) -> dict[str, Tensor]:
    """The denoiser of a start; empty where it has none, or one that reads and writes masks of other classes."""
    return _part(start.tensors, DENOISER) if same_classes(start.labels, labels) else {}


def load_denoiser(model: StagedModel, tensors: Mapping[str, Tensor]) -> LoadReport:
    """Load those of `denoiser_tensors` that fit into the denoiser of a model, in place; never an error."""
    own, found = _part(model.state_dict(), DENOISER), _part(tensors, DENOISER)
    result = {
        name: _missing() if name not in found else _fitted_as_it_is(value, found[name]) for name, value in own.items()
    }
    return LoadReport("the denoiser of the start", _copied(own, found, result))


@dataclass(frozen=True)
class Fitted:
    """What a tensor of the model takes over: the values, None for its own, the outcome and the reason."""

    tensor: Tensor | None
    outcome: Outcome
    reason: str = ""


def _missing() -> Fitted:
    return Fitted(None, "new", "the start has no such part")


def _fitted_as_it_is(value: Tensor, source: Tensor) -> Fitted:
    if source.shape == value.shape:
        return Fitted(source, "loaded")
    return Fitted(None, "new", f"other shape: {_shape(source)} there, {_shape(value)} here")


def _fitted_inside(name: str, value: Tensor, source: Tensor, channels: int, labels: LabelScheme) -> Fitted:
    """A tensor of a start that embeds, whose inputs are the channels of an image, and whose one class is a lesion."""
    read, reason = source, f"of a {'2D' if source.ndim < value.ndim else 'narrower'} network"
    if name.startswith(FIRST_BLOCK) and source.ndim > 1:
        read, reason = adapt_inputs(source, channels), f"{source.shape[1]} input channels there, {channels} here"
    elif name.startswith(HEADS) and labels.coding == "softmax":
        return Fitted(None, "new", f"{_classes(labels)} need not all be lesions")
    elif name.startswith(HEADS) and labels.coding == "regions":
        read, reason = source.expand(labels.num_channels, *source.shape[1:]), "each region begins as the lesion"
    weight = embedded(name, read, value)
    if weight is None or (read is source and weight.shape == source.shape):
        return _fitted_as_it_is(value, source)
    return Fitted(weight, "adapted", reason)


def _same_inputs(
    start: PretrainedStart, network: NetworkPlan, num_channels: int, num_masks: int, labels: LabelScheme
) -> bool:
    """Whether inputs agree in number and kind: channels of the image, their presence, and the classes of masks."""
    there = start.network.num_input_channels, start.num_channels, start.num_masks
    if there != (network.num_input_channels, num_channels, num_masks):
        return False
    return num_masks == 0 or same_classes(start.labels, labels)


def _reads_image(name: str, source: Tensor, value: Tensor, inputs: int, wanted: int) -> bool:
    """Whether two convolutions of the first block read so many inputs and are alike in all else."""
    if ".second." in name:  # of a residual block: reads features, which may be as many as the inputs
        return False
    if source.ndim != value.ndim or source.ndim < 3 or (source.shape[1], value.shape[1]) != (inputs, wanted):
        return False
    return source.shape[0] == value.shape[0] and source.shape[2:] == value.shape[2:]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def _copied(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], result: Mapping[str, Fitted]
) -> tuple[LoadedGroup, ...]:
    """Copy what fits into the model's own tensors; returns what became of each group."""
    for name, fit in result.items():
        if fit.tensor is not None:
            own[name].copy_(fit.tensor)
    left = {name: Fitted(None, "left out", _why_left(name)) for name in found if name not in own}
    return _grouped({**result, **left})


def _why_left(name: str) -> str:
    return "of its single sources, begins as none of them" if name.endswith(TABLE) else "the new model has no such part"


def adapt_inputs(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (F, C, *kernel) for another number of input channels, (F, channels, *kernel).

    An image with fewer channels than the network is given its channels again and again, 1 -> 111, 2 -> 121. What the
    adapted convolution answers to an image equals what the former one answers to the image so repeated; for more
    channels, what the adapted one answers to the repetition of an image of C channels equals the former answer to it.
    """
    former = weight.shape[1]
    if channels < former:
        return torch.stack([weight[:, first::channels].sum(dim=1) for first in range(channels)], dim=1)
    index = torch.from_numpy(repeated_channels(former, channels))
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


def require_same_dims(start: PretrainedStart, network: NetworkPlan) -> None:
    """Raise a UsdError where one of them works on slices and the other on volumes."""
    there, here = start.network.dims, network.dims
    if there != here and not (start.embeds and there < here):
        raise UsdError(
            f"--pretrained {start.description} is a {there}D network and the plan's is a {here}D one; choose a "
            f"{there}D configuration with -c, or start from {here}D weights."
        )


def open_start(run: FoldRun, warning: bool = True) -> PretrainedStart:
    """What the request of a fold names to start from, read and checked.

    Args:
        run: the fold.
        warning: say which cases that settings are chosen on it has seen, or that it is not known.

    Raises:
        UsdError: it cannot be read, has another dimension, has seen cases that the fold validates on, is not what the
            fold began with, or does not agree with the plan where phase 1 is to be skipped.
    """
    assert run.request.pretrained is not None
    start = read_start(run.request.pretrained, run.fold)
    require_same_dims(start, run.configuration.network)
    if run.start is not None and run.start.hash != start.hash:
        raise UsdError(
            f"--pretrained {start.description} is not what {run.folder} began with: its weights have changed since. "
            f"Restore them, train beside it with --run NAME, or begin again with --restart."
        )
    _require_unseen(run, f"--pretrained {start.description}", start.seen, warning)
    found = differences(start, run.configuration, run.plans.labels) if run.request.phase_2_only else ()
    if found:
        same = dataclasses.replace(run.configuration, network=_as_in(start.network, run.configuration.network))
        helps = not differences(start, same, run.plans.labels)
        remedy = ", or plan for the weights with usd_plan_and_preprocess --plans NAME --for-weights" if helps else ""
        raise UsdError(
            f"--phase-2-only takes the segmenter of {start.description} as it is, but {'; '.join(found)}. "
            f"Leave --phase-2-only out, so that phase 1 brings it to this data{remedy}."
        )
    sources = run.configuration.sources
    return start if sources is None else start.for_sources(tuple(sources.plans))


def require_fair_phase_1(run: FoldRun, folder: Path, warning: bool = True) -> None:
    """Check that a foreign phase 1 is there, and has seen no case that it must not have seen.

    Args:
        run: the fold that takes it over.
        folder: that of the fold whose phase 1 it is.
        warning: say which cases that settings are chosen on its start has seen, or that it is not known.

    Raises:
        UsdError: a file is missing; it was trained on a case that this fold holds out; or what it began with was
            trained on one that this fold validates on.
    """
    for name in (PHASE_1_NAME, PHASE_1_FACTS_NAME, REQUEST_NAME):
        if not (folder / name).is_file():
            raise UsdError(f"--phase-1-from {folder} holds no {name}; name a fold's folder whose phase 1 has ended.")
    request = read_request(folder)
    assert request is not None
    leaked = sorted(set(request["train_cases"]) & {*run.holdout_cases, *run.validation_cases})
    if leaked:
        raise UsdError(
            f"--phase-1-from {folder} was trained on {counted(len(leaked), 'case')} that {run.folder.name} "
            f"holds out ({leaked[0]}, ...): its scores would mean nothing. Take phase 1 from the same fold, and train "
            f"the folds singly."
        )
    _require_unseen(run, f"the start of --phase-1-from {folder}", _seen_before(request), warning)


def _require_unseen(run: FoldRun, start: str, seen: SeenCases, warning: bool) -> None:
    """Refuse weights that were trained on cases which the fold validates on; say what else they may have seen.

    Args:
        run: the fold.
        start: what and where the weights are, in words.
        seen: by them.
        warning: say it.
    """
    fold, warnings = run.folder.name, []
    description = run.data.folder.parent / DATASET_NAME
    if not seen.all_known:
        unsaid = "does not say which cases it was trained on"
        if seen.cases:
            unsaid = "began with weights that do not say which cases they were trained on"
        warnings.append(
            f"{start} {unsaid}. Scores of {fold} mean something where none of them is among its validation cases, "
            f"which is for you to know"
        )
    for cases, is_validation in ((run.validation_cases, True), (run.holdout_cases, False)):
        for dataset, names in by_dataset(run.plans.dataset_name, cases, description).items():
            leaked = sorted(set(names) & set(seen.cases.get(dataset, ())))
            if not leaked:
                continue
            known = f"{counted(len(leaked), 'case')} of {dataset} ({leaked[0]}{', ...' if len(leaked) > 1 else ''})"
            if is_validation:
                raise UsdError(
                    f"{start} was trained on {known} that {fold} validates on: its scores would mean nothing. Start "
                    f"from the same fold of that model, or from data without these cases."
                )
            warnings.append(
                f"the start was trained on {known} on which settings of {fold} are chosen, so that probabilities may "
                f"come out too sure"
            )
    for text in warnings if warning else ():
        run.log.say(f"warning: {text}")


def differences(start: PretrainedStart, configuration: ConfigurationPlan, labels: LabelScheme) -> tuple[str, ...]:
    """What keeps a segmenter from being taken over without a training of its own; empty where nothing does."""
    network, other = configuration.network, start.network
    found = []
    if not same_classes(start.labels, labels):
        found.append(f"the classes are {_classes(start.labels)} there and {_classes(labels)} here")
    channels = len(configuration.preprocessing.normalization)
    masks = network.num_input_channels - configuration.preprocessing.num_inputs
    if other.num_input_channels == network.num_input_channels:
        if not _same_inputs(start, network, channels, masks, labels):
            found.append(f"its {other.num_input_channels} inputs hold other things than those of the plan")
    elif not (start.repeats_channels and network.num_input_channels == channels < other.num_input_channels):
        found.append(f"it has {other.num_input_channels} input channels and the plan {network.num_input_channels}")
    if (other.dims, other.levels, other.encoder) != (network.dims, network.levels, network.encoder):
        found.append(f"it has {describe_network(other)} and the plan {describe_network(network)}")
    return tuple(found)


def _as_in(other: NetworkPlan, network: NetworkPlan) -> NetworkPlan:
    """A network with the architecture of another one, as a plan for its weights has it."""
    # Of the weights' patch: that of the plan may not divide by their strides.
    return dataclasses.replace(network, patch_size=other.patch_size, levels=other.levels, encoder=other.encoder)


def describe_network(network: NetworkPlan) -> str:
    """An architecture in a few words, such as "a plain 2D encoder with features 16, 32 and strides 1x1, 2x2"."""
    features = ", ".join(str(level.features) for level in network.levels)
    strides = ", ".join("x".join(map(str, level.stride)) for level in network.levels)
    return f"a {network.encoder} {network.dims}D encoder with features {features} and strides {strides}"


def _grouped(result: Mapping[str, Fitted]) -> tuple[LoadedGroup, ...]:
    """Tensors of one part of the network with one outcome and reason as one group, in the order of the model."""
    groups: dict[tuple[str, Outcome, str], int] = {}
    for name, fit in result.items():
        parts = name.split(".")
        # A level of encoder and decoder is a group; all heads are one, and so are all parts of the denoiser.
        depth = 1 if name.startswith(DENOISER) else 3 if parts[1] in ("encoder", "decoder", "up") else 2
        key = (".".join(parts[:depth]), fit.outcome, fit.reason)
        groups[key] = groups.get(key, 0) + 1
    return tuple(LoadedGroup(name, outcome, count, reason) for (name, outcome, reason), count in groups.items())


def _classes(labels: LabelScheme | None) -> str:
    return "not known" if labels is None else ", ".join(labels.names)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
