"""A trained model on disk: RESULTS/DATASET/TRAINER__CONFIGURATION (see `model_name` for what may follow).

    plans.json  dataset.json
    fold_0/     weights.safetensors  inference.json  ...
    fold_all/   the model trained on every case, where there is one
    3d_lowres/  in a cascade a model folder, too: a copy of the model whose masks it refines

An archive of such a folder (see `archive_format`) is opened like the folder.

Weights are safetensors: loading them executes nothing. Their metadata says which plan they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path, text_hash
from unisegdiff_pipeline.core.serialization import read_dataclass
from unisegdiff_pipeline.inference.model_name import SEPARATOR, parse_model_name
from unisegdiff_pipeline.inference.settings import FILE_NAME as SETTINGS_NAME
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings
from unisegdiff_pipeline.planning.plans import ConfigurationPlan, Plans

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unisegdiff_pipeline.networks.staged_model import StagedModel

PLANS_NAME = "plans.json"
DATASET_NAME = "dataset.json"
WEIGHTS_NAME = "weights.safetensors"
TENSORS_HASH, MASKS_FROM = "tensors_hash", "masks_from"  # keys of the metadata
FORMER_METADATA = {"plan_hash", "dataset", "configuration"}  # of versions that wrote no hash


@dataclass(frozen=True)
class ModelFolder:
    """What is known of a model without loading weights.

    Attributes:
        folder: where its files lie; of an archive a temporary folder, which goes when this object does.
        plans, configuration: of the model.
        folds: the finished ones, by name.
        archive: that it was opened from, if it was.
        masks_from: of a cascade, the model whose masks it refines.
    """

    folder: Path
    plans: Plans
    configuration: ConfigurationPlan
    folds: tuple[str, ...]
    archive: Path | None = None
    masks_from: ModelFolder | None = None

    @property
    def place(self) -> Path:
        """The folder, or the archive, that a person knows the model by."""
        return self.folder if self.archive is None else self.archive

    def fold_folder(self, fold: str) -> Path:
        """Where a fold lies."""
        return self.folder / f"fold_{fold}"


def plan_hash(configuration: ConfigurationPlan) -> str:
    """Hash of what trained weights depend on: preprocessing, network and denoiser of a configuration.

    Batch size, learning rate and stages may change while a training goes on; these may not.
    """
    parts = {
        "preprocessing": configuration.preprocessing.fields(),
        "network": asdict(configuration.network),
        "denoiser": asdict(configuration.denoiser),
    }
    if configuration.sources is not None:
        sources = asdict(configuration.sources)
        parts["sources"] = {
            "channel_rule": sources["channel_rule"],
            "conditioning": sources["conditioning"],
            "plans": {
                name: plan.preprocessing.fields() | {"annotated": plan.annotated}
                for name, plan in configuration.sources.plans.items()
            },
        }
    if configuration.cascade is not None:
        parts["cascade"] = asdict(configuration.cascade)
    return text_hash(json.dumps(parts, sort_keys=True))


def plan_difference(former: Plans, now: Plans, configuration: str) -> str | None:
    """Say why weights of one plan are none of the other; None where they are.

    Weights know channels, classes and sources by their places alone, of which `plan_hash` says nothing.
    """
    if configuration not in former.configurations:
        return f"the former plan has no configuration {configuration}"
    before, after = former.configurations[configuration], now.configurations[configuration]
    if plan_hash(before) != plan_hash(after):
        return "preprocessing, network or denoiser differ"
    if former.labels != now.labels:
        labels = [json.dumps(plans.labels.fields()) for plans in (former, now)]
        return f"the labels were {labels[0]} and are {labels[1]} now"
    if former.channel_names != now.channel_names:
        return f"the channels were {_listed(former.channel_names)} and are {_listed(now.channel_names)} now"
    if before.sources is not None and after.sources is not None:
        first, then = list(before.sources.plans), list(after.sources.plans)
        if first != then:
            return (
                f"the sources were {_listed(first)} and are {_listed(then)} now; usd_unify -d takes them in the former "
                f"order"
            )
    return None


def open_model_folder(folder: Path) -> ModelFolder:
    """Read the plans of a model folder, or of the archive of one, and list its finished folds.

    Raises:
        UsdError: no folder, a fold's folder, no plans.json, an unknown configuration, or no finished fold; an archive
            that is refused, see `archive_reading`.
    """
    folder = Path(folder)
    if folder.is_file():
        return _open_archive(folder)
    above, name = folder.absolute().parent, folder.absolute().name
    if name.startswith("fold_") and (above / PLANS_NAME).is_file():
        fold = name.removeprefix("fold_")
        raise UsdError(f"{folder} is a fold of the model {above}; name that folder, with fold {fold} (-f, folds).")
    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; name a model folder, RESULTS/DATASET/TRAINER__CONFIGURATION.")
    if not (folder / PLANS_NAME).is_file():
        raise UsdError(
            f"{folder} holds no {PLANS_NAME}, so it is no model folder; name RESULTS/DATASET/TRAINER__CONFIGURATION."
        )
    plans = read_dataclass(Plans, folder / PLANS_NAME)
    folds = finished_folds(folder)
    if not folds:
        raise UsdError(f"{folder} holds no finished fold (fold_0/{WEIGHTS_NAME}, ...); finish a fold with usd_train.")
    configuration = configuration_of(folder, plans)
    return ModelFolder(folder, plans, configuration, folds, masks_from=_masks_from(folder, configuration))


def _masks_from(folder: Path, configuration: ConfigurationPlan) -> ModelFolder | None:
    """The model whose masks a cascade refines, of which training put a copy into the cascade's folder."""
    if configuration.cascade is None:
        return None
    copy = folder / configuration.cascade.masks_of
    if not copy.is_dir():
        raise UsdError(
            f"{folder} is a cascade but lacks {copy.name}/, the model whose masks it refines; copy the folder with all "
            f"that it holds, or take an archive of it (usd_export)."
        )
    return open_model_folder(copy)


def _open_archive(archive: Path) -> ModelFolder:
    """The model of an archive, unpacked into a temporary folder for as long as the model is in use."""
    from unisegdiff_pipeline.inference.archive_reading import unpack

    work = Path(tempfile.mkdtemp(prefix="usd_model_"))
    try:
        model = replace(open_model_folder(unpack(archive, work)), archive=archive)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    weakref.finalize(model, _remove, work, os.getpid())
    return model


def _remove(work: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process ends with the same object
        shutil.rmtree(work, ignore_errors=True)


def finished_folds(folder: Path) -> tuple[str, ...]:
    """Names of the folds of a model folder that have weights and settings, sorted."""
    return tuple(
        sorted(
            path.name.removeprefix("fold_")
            for path in folder.glob("fold_*")
            if (path / WEIGHTS_NAME).is_file() and (path / SETTINGS_NAME).is_file()
        )
    )


def choose_folds(model: ModelFolder, wanted: Sequence[str | int] | str | int | None) -> tuple[str, ...]:
    """Names of the folds to use; None takes all finished numbered folds, or the fold "all" where it is alone.

    Raises:
        UsdError: a fold that is not there.
    """
    if wanted is None:
        numbered = tuple(fold for fold in model.folds if fold != "all")
        return numbered or model.folds
    names = [str(wanted)] if isinstance(wanted, (str, int)) else [str(fold) for fold in wanted]
    missing = [name for name in names if name not in model.folds]
    if missing or not names:
        raise UsdError(
            f"fold {', '.join(missing) or '(none)'} of {model.place} is not there or not finished; finished are "
            f"{', '.join(model.folds)}. Name one of these, or finish the fold with usd_train."
        )
    return tuple(dict.fromkeys(names))


def load_fold(model: ModelFolder, fold: str, device: torch.device) -> tuple[StagedModel, InferenceSettings]:
    """The network of a fold, in eval mode on `device`, and how it predicts.

    Raises:
        UsdError: weights that are missing, damaged, or of another plan.
    """
    import torch

    from unisegdiff_pipeline.networks.layout import to_device
    from unisegdiff_pipeline.networks.staged_model import build_model

    folder = model.fold_folder(fold)
    path = folder / WEIGHTS_NAME
    tensors, metadata = read_weights(path)
    require_same_plan(path, metadata, plan_hash(model.configuration))
    require_same_masks(path, metadata, model)
    has_denoiser = any(name.startswith("denoiser.") for name in tensors)
    with torch.random.fork_rng(devices=[]):  # initial weights, which are replaced, are drawn from it
        network = build_model(model.configuration, model.plans.labels, has_denoiser)
    load_tensors(path, network, tensors)
    settings = read_settings(folder)
    if len(settings.input_scale) not in (0, model.plans.labels.num_channels):
        raise UsdError(
            f"{folder / SETTINGS_NAME}: input_scale has {len(settings.input_scale)} values, the labels are coded in "
            f"{model.plans.labels.num_channels} channels; restore the file."
        )
    return to_device(network, device).eval().requires_grad_(False), settings


def require_same_masks(path: Path, metadata: Mapping[str, str], model: ModelFolder) -> None:
    """Raise a UsdError where a fold of a cascade was trained with masks of another model than the one beside it."""
    if model.masks_from is not None and metadata.get(MASKS_FROM) != weights_of_all_folds(model.masks_from):
        raise UsdError(
            f"{path} was trained with masks of another model than the one in {model.masks_from.folder}, as where a "
            f"training that began all folds anew was left before this one; train this fold again with --restart."
        )


def weights_of_all_folds(model: ModelFolder) -> str:
    """Hash of the weights of all folds of a model, by what their files say of themselves."""
    hashes = [
        f"{fold} {read_metadata(model.fold_folder(fold) / WEIGHTS_NAME).get(TENSORS_HASH)}" for fold in model.folds
    ]
    return text_hash("|".join(hashes))


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, without its tensors; a UsdError where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            return dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsdError(f"{path} cannot be read ({error}); it is damaged: copy it again or train again.") from error


def save_weights(path: Path, network: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write weights as safetensors with string metadata, atomically; `metadata` must hold "plan_hash".

    A hash of all tensors is added to the metadata, which reading compares: safetensors itself has none. Equal weights
    and metadata give equal files.
    """
    if "plan_hash" not in metadata:
        raise ValueError(f"metadata has the keys {', '.join(metadata)}; it must hold plan_hash")
    save_tensors(path, network.state_dict(), metadata)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """As `save_weights`, for tensors that are not all of a network's."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = _with_sorted_metadata(save(tensors, metadata={**metadata, TENSORS_HASH: tensors_hash(tensors)}))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # safetensors' own writer gives the file to its owner alone


def _with_sorted_metadata(content: bytes) -> bytes:
    """A safetensors file whose metadata stand in the order of their keys; the library's order is random.

    The file is eight bytes with the length of the header, the header as JSON, and the tensors, placed from its end on.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, on the CPU.

    Raises:
        UsdError: missing, damaged (files of earlier versions hold no hash to tell by), or with values that are not
            finite.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UsdError(f"{path} does not exist; train that fold first, or check the path.")
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            metadata = dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UsdError(f"{path} cannot be read ({error}); it is damaged: copy it again or train again.") from error
    is_former = TENSORS_HASH not in metadata and FORMER_METADATA.issuperset(metadata)
    if not is_former and metadata.get(TENSORS_HASH) != tensors_hash(tensors):
        raise UsdError(f"{path} is damaged, its weights are not those that were written: copy it again or train again.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsdError(f"{path} holds values in {name} that are no finite numbers: copy it again or train again.")
    return tensors, metadata


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of names, types, shapes and values, whatever their order."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_same_plan(path: Path, metadata: Mapping[str, str], expected_plan_hash: str) -> None:
    """Raise a UsdError where weights were trained with another plan than the one at hand."""
    if metadata.get("plan_hash") != expected_plan_hash:
        raise UsdError(
            f"{path} was trained with another plan than the plans.json beside it: preprocessing, network or denoiser "
            f"differ. Use the plans.json that it was trained with, or train again."
        )


def load_tensors(path: Path, network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load tensors into a network; names or shapes that do not fit are a UsdError that names the file."""
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsdError(f"{path} does not fit the network of its plan ({reason}); train that fold again.") from error


def load_weights(path: Path, network: nn.Module, expected_plan_hash: str) -> None:
    """Load a safetensors file into a network of the same plan; anything that does not fit is a UsdError."""
    tensors, metadata = read_weights(path)
    require_same_plan(path, metadata, expected_plan_hash)
    load_tensors(path, network, tensors)


def configuration_of(folder: Path, plans: Plans) -> ConfigurationPlan:
    """The configuration that a model folder is of, by its name.

    Raises:
        UsdError: its name is that of none of the plan's configurations.
    """
    own = folder.resolve().name
    name = parse_model_name(own)
    # A folder that was put beside others under a name of its own may have more in front.
    candidates = (None if name is None else name.configuration, own.split(SEPARATOR)[-1])
    configuration = next((c for c in candidates if c in plans.configurations), None)
    if configuration is None:
        raise UsdError(
            f"{folder} is not named after one of the configurations that its {PLANS_NAME} holds "
            f"({_listed(plans.configurations)}); give the folder its name TRAINER__CONFIGURATION back, behind which "
            f"the names of the plan and the run may stand."
        )
    return plans.configurations[configuration]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
