"""Weights of nnU-Net to start from: checkpoint_final.pth, and what OpenMind's pre-training (nnssl) writes.

Such a file is a pickle. torch's restricted reader reads it, which runs nothing; a file that asks for more is refused.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object, to_jsonable
from unisegdiff_pipeline.inference.model_folder import tensors_hash
from unisegdiff_pipeline.io.dataset_json import DatasetDescription, parse_description
from unisegdiff_pipeline.networks.nnunet_names import network_of, translated, without_duplicates
from unisegdiff_pipeline.planning.plans import NetworkPlan, Normalization
from unisegdiff_pipeline.training.checkpoint import require_checksums
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart, StartReader

_NAMES = ("checkpoint_final.pth", "checkpoint_best.pth")  # in a fold, the one to prefer first
_ENDINGS = (".pth", ".pt")
_ADAPTATION = "adaptation_plan.json"  # of nnssl
# What checkpoints hold beside weights and is not needed: numbers of the log, and plans of nnssl, which stand there as
# dictionaries too. Placeholders stand for them, so that no code but torch's own takes part.
_NOT_NEEDED = (
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "nnssl.experiment_planning.experiment_planners.plan.Plan",
    "nnssl.experiment_planning.experiment_planners.plan.ConfigurationPlan",
)
_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResEncL")  # nnssl calls one form of the second by the third
_RES_ENC_L_STRIDES = ((1, 1, 1), *((2, 2, 2),) * 5)  # nnssl builds that form with them, and does not write them down
_PARTS = ("encoder.", "decoder.")  # what pre-training adds to a network begins otherwise: projector, mask_tokens, ...
_NORMALIZATIONS: dict[str, Normalization] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "nonorm",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}


class _NotNeeded:
    """Stands for a value of a checkpoint that is not looked at."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class _Origin:
    """What the plans of a checkpoint say: patch and spacing in the network's axis order."""

    name: str
    architecture: Mapping[str, Any]  # the class, and the arguments it was built with
    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    normalization: tuple[str, ...]
    description: DatasetDescription | None
    pretraining: bool = False


def _accepts(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in _ENDINGS
    return _checkpoint_in(path) is not None or bool(_folds_of(path))


def _checkpoint_in(folder: Path) -> Path | None:
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def _folds_of(model: Path) -> dict[str, Path]:
    found = ((path.name.removeprefix("fold_"), _checkpoint_in(path)) for path in sorted(model.glob("fold_*")))
    return {fold: checkpoint for fold, checkpoint in found if checkpoint is not None}


def read_checkpoint(path: Path, fold: str | None = None) -> PretrainedStart:
    """Read a checkpoint of nnU-Net.

    Args:
        path: the file, a fold folder or a model folder of nnU-Net.
        fold: of a model folder, the fold to prefer, then "all", then the first one.

    Raises:
        UsdError: it is damaged, wants to run code, is of another architecture, or its plans are not to be found.
    """
    path = Path(path)
    if path.is_dir():
        folds = _folds_of(path)
        wanted = next((name for name in (fold, "all", *folds) if name in folds), None)
        checkpoint = _checkpoint_in(path) or (None if wanted is None else folds[wanted])
        if checkpoint is None:
            raise UsdError(f"{path} holds no {_NAMES[0]}; name a fold folder or a checkpoint of nnU-Net.")
        path = checkpoint
    content = _load(path)
    try:
        return _start_of(path, content)
    except UsdError as error:
        raise UsdError(f"{path}: {error}") from None


def _load(path: Path) -> dict[str, Any]:
    """The content of a file of `torch.save`, by the reader that runs nothing."""
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            require_checksums(path)
        with torch.serialization.safe_globals([(_NotNeeded, name) for name in _NOT_NEEDED]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about protocols, which asks to report it to its authors
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise UsdError(
                f"{path} asks for {match[1]} to be run when it is read. Weights need nothing run: it was not run and "
                f"the file is refused. If you trust the file, save its network_weights and init_args without it."
            ) from None
        raise UsdError(
            f"{path} cannot be read ({_reason(error)}); it is truncated, damaged or no checkpoint: copy it again."
        ) from None
    if not isinstance(content, dict):
        raise UsdError(f"{path} holds no dictionary as nnU-Net's checkpoints do; name a {_NAMES[0]}.")
    return content


def _reason(error: Exception) -> str:
    """What is wrong with a file, without torch's advice to read it by the reader that runs everything."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Weights only load failed"):
        lines = [line for line in lines if "error" in line.lower() and "weights_only" not in line] or [
            "no valid pickle"
        ]
    if not re.search("[a-z]", lines[0]):  # a KeyError of the byte that is no instruction
        return "no valid pickle"
    return lines[0].partition(". ")[0][:200].rstrip(" .")  # of torch's sentences the first names what is wrong


def _start_of(path: Path, content: dict[str, Any]) -> PretrainedStart:
    origin = _origin(path, content)
    _require_known(origin.architecture)
    weights = content.get("network_weights")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UsdError(f"network_weights is missing or holds other things than tensors; name a {_NAMES[0]} of nnU-Net.")
    weights = without_duplicates({str(name): tensor for name, tensor in weights.items()})
    if origin.pretraining:
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(_PARTS)}
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsdError(f"{name} holds values that are no finite numbers; take another checkpoint.")
    try:
        found = network_of(weights, origin.patch_size, _strides(origin.architecture) if origin.pretraining else None)
        network = from_jsonable(NetworkPlan, to_jsonable(found), "network")  # with the ranges of a plan
    except (ValueError, IndexError) as error:  # what a plan itself does not allow, shapes that no convolution has
        raise UsdError(f"its network is none that can be planned here: {error}.") from None
    _require_strides(origin.architecture, network)
    tensors = translated(weights, network)
    description = origin.description
    labels = None if description is None else description.labels
    labels = _fit_heads(tensors, labels)
    known = description is not None and len(description.channel_names) == network.num_input_channels
    normalization = tuple(_NORMALIZATIONS[name] for name in origin.normalization if name in _NORMALIZATIONS)
    spacing: tuple[float | None, ...] = (None, *origin.spacing) if network.dims == 2 else origin.spacing
    has_spacing = len(spacing) == 3 and (description is None or description.spacing_known)
    tensors = {f"segmenter.{name}": tensor.clone() for name, tensor in tensors.items()}
    return PretrainedStart(
        tensors=tensors,
        network=network,
        description=f"{path} ({origin.name})",
        hash=tensors_hash(tensors),
        labels=labels,
        channel_names=description.channel_names if description is not None and known else (),
        normalization=normalization if len(normalization) == network.num_input_channels else (),
        target_spacing_mm=(spacing[0], _number(spacing[1]), _number(spacing[2])) if has_spacing else None,
    )


def _fit_heads(tensors: dict[str, Tensor], labels: LabelScheme | None) -> LabelScheme | None:
    """Make the heads those of our coding, in place; what the channels mean, None where that is not known.

    nnU-Net codes one class as two channels, background and class: sigmoid(z_1 - z_0) is its softmax.
    """
    outputs = next((v.shape[0] for name, v in tensors.items() if name.startswith("heads.")), 0)
    if labels is None:
        return None
    if labels.coding == "binary" and outputs == 2:
        for name, value in tensors.items():
            if name.startswith("heads."):
                tensors[name] = value[1:] - value[:1]
        return labels
    return labels if outputs == labels.num_channels else None


# -------------------------------------------------------------------------------------------------------------- plans


def _origin(path: Path, content: Mapping[str, Any]) -> _Origin:
    folder = path.absolute().parent
    adaptation = content.get("nnssl_adaptation_plan")
    beside = next((place / _ADAPTATION for place in (folder, folder.parent) if (place / _ADAPTATION).is_file()), None)
    if not isinstance(adaptation, dict) and beside is not None:  # SparK's checkpoints have it there alone
        adaptation = read_object(beside)
    if isinstance(adaptation, dict):
        return _pretraining(adaptation, content)
    arguments = content.get("init_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    model = next((place for place in (folder, folder.parent) if (place / "plans.json").is_file()), None)
    plans, name = arguments.get("plans"), arguments.get("configuration")
    if not isinstance(plans, dict):
        if model is None:
            raise UsdError(
                "it holds no plans, and no plans.json lies in its folder or the one above: put the plans.json and "
                "dataset.json of its nnU-Net model beside it."
            )
        plans = read_object(model / "plans.json")
    if not isinstance(name, str):
        name = "" if model is None else model.name.rpartition("__")[2]  # TRAINER__PLANS__CONFIGURATION
    configuration = _resolved(plans, name)
    dataset = arguments.get("dataset_json")
    if not isinstance(dataset, dict):
        has_file = model is not None and (model / "dataset.json").is_file()
        dataset = read_object(model / "dataset.json") if model is not None and has_file else {}
    return _Origin(
        name=f"nnU-Net trained on {plans.get('dataset_name', 'a data set without a name')}, {name}",
        architecture=_architecture(configuration),
        patch_size=tuple(map(_whole, _sequence(configuration, "patch_size"))),
        spacing=tuple(map(_number, _sequence(configuration, "spacing"))),
        normalization=tuple(map(str, configuration.get("normalization_schemes") or ())),
        description=_description(dataset),
    )


def _pretraining(adaptation: Mapping[str, Any], content: Mapping[str, Any]) -> _Origin:
    """Self-supervised weights: their heads are of no classes."""
    architecture = _object(adaptation, "architecture_plans")
    configurations = _object(_object(adaptation, "pretrain_plan"), "configurations")
    configuration = next((value for value in configurations.values() if isinstance(value, dict)), {})
    return _Origin(
        name=f"pre-trained by nnssl, {content.get('trainer_name', 'unknown trainer')}",
        architecture={
            "network_class_name": architecture.get("arch_class_name"),
            "arch_kwargs": architecture.get("arch_kwargs") or {},
        },
        patch_size=tuple(map(_whole, _sequence(adaptation, "recommended_downstream_patchsize"))),
        spacing=tuple(map(_number, configuration.get("spacing") or ())),
        normalization=tuple(map(str, configuration.get("normalization_schemes") or ())),
        description=None,
        pretraining=True,
    )


def _resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    configurations = _object(plans, "configurations")
    found: dict[str, Any] = {}
    visited: list[str] = []
    while name not in visited:
        if not isinstance(configurations.get(name), dict):
            raise UsdError(f"its plans have no configuration {name!r}, only {', '.join(map(str, configurations))}.")
        visited.append(name)
        found = {**configurations[name], **found}
        name = configurations[name].get("inherits_from", name)
    return found


def _architecture(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    if "architecture" in configuration:
        return _object(configuration, "architecture")
    return {"network_class_name": configuration.get("UNet_class_name"), "arch_kwargs": {}}  # nnU-Net before 2.4


def _require_known(architecture: Mapping[str, Any]) -> None:
    """Refuse a network that computes something else with weights of the same names and shapes."""
    name = str(architecture.get("network_class_name")).rpartition(".")[2]
    if name not in _ARCHITECTURES:
        raise UsdError(f"its network is {name}; {' and '.join(_ARCHITECTURES[:2])} can be read.")
    given = _object(architecture, "arch_kwargs")
    norm = _object(given, "norm_op_kwargs") if given.get("norm_op_kwargs") else {}
    slope = _object(given, "nonlin_kwargs") if given.get("nonlin_kwargs") else {}
    checks = {
        "norm_op": _class(given.get("norm_op", "InstanceNorm")).startswith("InstanceNorm"),
        "norm_op_kwargs": norm.get("eps", 1e-5) == 1e-5 and norm.get("affine", True) is True,
        "nonlin": _class(given.get("nonlin", "LeakyReLU")) == "LeakyReLU",
        "nonlin_kwargs": slope.get("negative_slope", 0.01) == 0.01,
        "dropout_op": given.get("dropout_op") is None,
        "nonlin_first": not given.get("nonlin_first"),
        "block": given.get("block") is None or _class(given["block"]) == "BasicBlockD",
    }
    for key, is_known in checks.items():
        if not is_known:
            raise UsdError(
                f"its plans have arch_kwargs.{key} {given.get(key)!r:.80}; networks as nnU-Net plans them can be read: "
                f"instance norm (eps 1e-5, affine), then leaky ReLU (slope 0.01), no dropout, basic blocks."
            )


def _strides(architecture: Mapping[str, Any]) -> list[tuple[int, ...]] | None:
    """The strides that plans give, a number standing for all axes; None where they give none."""
    given = architecture["arch_kwargs"].get("strides")
    if given is None:
        is_fixed = _class(architecture["network_class_name"]) == "ResEncL"
        return list(_RES_ENC_L_STRIDES) if is_fixed else None
    if not isinstance(given, (list, tuple)):
        raise UsdError(f"its plans have arch_kwargs.strides {given!r:.80}, which must be a list.")
    return [tuple(map(_whole, s)) if isinstance(s, (list, tuple)) and s else (_whole(s),) for s in given]


def _require_strides(architecture: Mapping[str, Any], network: NetworkPlan) -> None:
    """The decoder tells the strides of all levels but the first, which has to be 1."""
    given = _strides(architecture)
    strides = [level.stride for level in network.levels]
    if given is not None and strides != [stride * (network.dims // len(stride)) for stride in given]:
        raise UsdError(f"its plans have strides {given!r:.80}; its weights are those of {strides}.")


def _class(dotted: object) -> str:
    return str(dotted).rpartition(".")[2]


def _description(dataset: dict[str, Any]) -> DatasetDescription | None:
    try:
        return parse_description(dataset)
    except UsdError:  # the weights serve without it; heads are then not taken over
        return None


def _object(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = mapping.get(key)
    if not isinstance(value, dict):
        raise UsdError(f"its plans hold {key} {value!r:.80}, which must be an object.")
    return value


def _sequence(mapping: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = mapping.get(key)
    if not isinstance(value, (list, tuple)) or len(value) not in (2, 3):
        raise UsdError(f"its plans hold {key} {value!r:.80}, which must be a list of 2 or 3 numbers.")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsdError(f"its plans hold {value!r:.80} where a number above 0 must be.")
    return float(value)


def _whole(value: Any) -> int:
    if _number(value) != int(value):
        raise UsdError(f"its plans hold {value!r:.80} where a whole number must be.")
    return int(value)


NNUNET = StartReader(
    kind="a checkpoint of nnU-Net or OpenMind (checkpoint_final.pth), or the folder that it lies in",
    accepts=_accepts,
    read=read_checkpoint,
)
