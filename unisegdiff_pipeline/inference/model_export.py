"""A model folder as an archive: what prediction needs and what people should know, nothing of the machine or the cases.

Of the model's files only those that `archive_format` names are taken: no state of the training, no image. Names of
cases and absolute paths are taken out of texts.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import atomic_path
from unisegdiff_pipeline.core.serialization import json_text, read_object
from unisegdiff_pipeline.core.version import __version__
from unisegdiff_pipeline.inference.archive_format import (
    BEST_NAME,
    CARD_NAME,
    ENDING,
    FORMAT,
    MANIFEST_NAME,
    OPTIONAL,
    SCORES_NAME,
    VERSION,
    FileRecord,
    Manifest,
    is_weights,
)
from unisegdiff_pipeline.inference.model_card import model_card
from unisegdiff_pipeline.inference.model_folder import (
    DATASET_NAME,
    PLANS_NAME,
    WEIGHTS_NAME,
    ModelFolder,
    open_model_folder,
    plan_hash,
    read_weights,
    require_same_masks,
    require_same_plan,
)
from unisegdiff_pipeline.inference.model_scores import case_names, read_scores
from unisegdiff_pipeline.inference.settings import FILE_NAME as SETTINGS_NAME
from unisegdiff_pipeline.inference.settings import read_settings

# What of a dataset.json says what images and labels are, or where the data come from. The rest names cases and files.
DATASET_KEYS = (
    "name",
    "description",
    "reference",
    "citation",
    "licence",
    "license",
    "release",
    "channel_names",
    "modality",
    "labels",
    "regions_class_order",
    "label_map",
    "class_codes",
    "numTraining",
    "file_ending",
    "spacing_known",
    "overwrite_image_reader_writer",
    "sources",
)
_DATE = (1980, 1, 1, 0, 0, 0)  # of all entries: equal models give equal archives
_CHOSEN_ON = "of the inner hold-out"  # names of cases follow, in inference.json
# /a/b, C:\a, \\host\a and file:///a, but neither mm/s nor https://a/b
_PATH = re.compile(
    r"file://\S+|(?<![\w:/.])/(?:[^/\s,;:'\"()]+/)+[^/\s,;:'\"()]*|\b[A-Za-z]:\\[^\s,;'\"]*|\\\\[^\s,;'\"]+"
)


def export_model(
    model_folder: Path,
    output: Path,
    *,
    with_case_scores: bool = False,
    notes: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Write a model with all of its finished folds into an archive.

    Args:
        model_folder: RESULTS/DATASET/TRAINER__CONFIGURATION.
        output: the archive, NAME.zip.
        with_case_scores: keep scores, and with them names, of single cases.
        notes: Markdown for the model card.
        overwrite: replace an archive that is there.

    Raises:
        UsdError: no model, damaged weights, folds of a cascade trained with masks of another model, a wrong ending, or
            an archive that is there; nothing is left half written.
    """
    output = Path(output)
    if output.suffix.lower() != ENDING:
        raise UsdError(f"{output} does not end in {ENDING}; an archive of a model is a zip file, name it NAME{ENDING}.")
    if output.exists() and not overwrite:
        raise UsdError(f"{output} is there already; replace it with --overwrite, or choose another name.")
    model = open_model_folder(Path(model_folder))
    if model.archive is not None:
        raise UsdError(f"{model_folder} is an archive already; copy it, or name a model folder.")
    weights: dict[str, Path] = {}
    for prefix, part in _parts(model):
        for fold in part.folds:
            path = weights[f"{prefix}fold_{fold}/{WEIGHTS_NAME}"] = part.fold_folder(fold) / WEIGHTS_NAME
            metadata = read_weights(path)[1]
            require_same_plan(path, metadata, plan_hash(part.configuration))
            require_same_masks(path, metadata, part)
    texts = _texts(model, with_case_scores, notes)
    with atomic_path(output) as temporary:
        return _write(temporary, model, {**texts, **weights})


def _parts(model: ModelFolder) -> Iterator[tuple[str, ModelFolder]]:
    """The model, and in a cascade the one whose masks it refines, with what its files' names begin with."""
    yield "", model
    if model.masks_from is not None:
        yield f"{model.masks_from.folder.name}/", model.masks_from


def _texts(model: ModelFolder, with_case_scores: bool, notes: str) -> dict[str, str]:
    """All files of an archive but the weights."""
    scores = read_scores(model.folder, model.folds, with_case_scores)
    names: frozenset[str] = frozenset() if with_case_scores else case_names(model.folder, model.folds)
    result: dict[str, str] = {}
    for prefix, part in _parts(model):
        result |= {
            prefix + name: json_text(without_paths(content)) for name, content in _contents(part, with_case_scores)
        }
    for name in OPTIONAL:
        path = _best(model) if name == BEST_NAME else model.folder / name
        if path is not None and path.is_file():
            result[name] = json_text(without_paths(without_cases(read_object(path), names)))
    result[SCORES_NAME] = json_text(scores)
    settings_of_first = read_settings(model.fold_folder(model.folds[0]))
    result[CARD_NAME] = model_card(model, model.folds, scores, settings_of_first, notes)
    return result


def _contents(model: ModelFolder, with_cases: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a model's plans.json, dataset.json and settings hold, these with names of cases or without."""
    yield PLANS_NAME, read_object(model.folder / PLANS_NAME)
    dataset = read_object(model.folder / DATASET_NAME) if (model.folder / DATASET_NAME).is_file() else {}
    yield DATASET_NAME, described_dataset(dataset)
    for fold in model.folds:
        settings = read_object(model.fold_folder(fold) / SETTINGS_NAME)
        if not with_cases and isinstance(settings.get("chosen_on"), str):
            settings["chosen_on"] = without_chosen_cases(settings["chosen_on"])
        yield f"fold_{fold}/{SETTINGS_NAME}", settings


def _best(model: ModelFolder) -> Path | None:
    """The recipe of usd_find_best that names this model: beside it, or as an archive brought it."""
    beside = model.folder.absolute().parent / BEST_NAME
    if beside.is_file():
        members = read_object(beside).get("members") or ()
        if any(isinstance(m, dict) and m.get("model") == model.folder.absolute().name for m in members):
            return beside
    return model.folder / BEST_NAME


def _write(path: Path, model: ModelFolder, files: Mapping[str, str | Path]) -> Manifest:
    root = f"{model.plans.dataset_name}/{model.folder.absolute().name}/"
    records = {}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in sorted(files.items()):
            records[name] = _add(archive, root + name, content)
        manifest = Manifest(
            FORMAT,
            VERSION,
            __version__,
            model.plans.dataset_name,
            model.folder.absolute().name,
            model.folds,
            records,
        )
        _add(archive, MANIFEST_NAME, json_text(asdict(manifest)))
    return manifest


def _add(archive: zipfile.ZipFile, name: str, content: str | Path) -> FileRecord:
    """Add a text, or a file block by block. Tensors are stored as they are: they hardly become smaller."""
    info = zipfile.ZipInfo(name, _DATE)
    info.create_system, info.external_attr = 3, 0o100644 << 16
    info.compress_type = zipfile.ZIP_STORED if is_weights(name) else zipfile.ZIP_DEFLATED
    digest, num_bytes = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=is_weights(name)) as target:
        for block in _blocks(content):
            target.write(block)
            digest.update(block)
            num_bytes += len(block)
    return FileRecord(digest.hexdigest(), num_bytes)


def _blocks(content: str | Path) -> Iterator[bytes]:
    if isinstance(content, str):
        yield content.encode("utf-8")
        return
    with open(content, "rb") as stream:
        while block := stream.read(2**20):
            yield block


def described_dataset(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a dataset.json that describe the data, without those that name cases or files."""
    kept = {key: content[key] for key in DATASET_KEYS if key in content}
    if isinstance(kept.get("sources"), list):
        kept["sources"] = [
            {k: v for k, v in source.items() if k != "excluded"} if isinstance(source, dict) else source
            for source in kept["sources"]
        ]
    return kept


def without_chosen_cases(chosen_on: str) -> str:
    """What settings were chosen on, in words, without the names of the cases."""
    before, found, behind = chosen_on.partition(_CHOSEN_ON)
    if not found:
        return chosen_on
    warning = behind.rpartition("; ")[2] if "; " in behind else ""
    # A warning says what was left at its default, and why; anything else after a semicolon may be the name of a case.
    is_warning = " too few (" in warning or " are the defaults, for lack of time" in warning
    return f"{before}{found}{f'; {warning}' if is_warning else ''}"


def without_cases(value: Any, names: Collection[str]) -> Any:
    """JSON without what is said of single cases: keys and values that are names of cases, objects with a case_id."""
    if isinstance(value, dict):
        return {k: without_cases(v, names) for k, v in value.items() if k not in names and not _is_case(v, names)}
    if isinstance(value, list):
        return [without_cases(v, names) for v in value if not _is_case(v, names)]
    return value


def _is_case(value: Any, names: Collection[str]) -> bool:
    if isinstance(value, dict):
        return bool(names) and "case_id" in value
    return isinstance(value, str) and value in names


def without_paths(value: Any) -> Any:
    """JSON whose texts hold no absolute path: of each only the last part is left."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    if not isinstance(value, str):
        return value
    if re.match(r"/|[A-Za-z]:[\\/]|\\\\|file://", value):  # all of it is a path, spaces included
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], value)
