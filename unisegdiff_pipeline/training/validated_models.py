"""The models of a data set with the validation cases of their finished folds, as training left them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import classes_in_words
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.metrics import ClassScore, Outcome
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter
from unisegdiff_pipeline.inference.model_folder import (
    WEIGHTS_NAME,
    ModelFolder,
    finished_folds,
    open_model_folder,
    read_metadata,
    require_same_masks,
)
from unisegdiff_pipeline.inference.model_name import ModelName, parse_model_name
from unisegdiff_pipeline.inference.prediction_folder import PredictionFolder, open_prediction_folder
from unisegdiff_pipeline.inference.settings import Decision, decision_of_folds, read_settings
from unisegdiff_pipeline.io.dataset_json import read_dataset_json
from unisegdiff_pipeline.io.prediction_files import VALIDATION, scores_of_fold
from unisegdiff_pipeline.preprocessing.reference import reference_hashes, relabelled
from unisegdiff_pipeline.training.resume import LISTED_CASES, REQUEST_NAME, read_request
from unisegdiff_pipeline.training.validation import REFERENCES

VALUES = {"both_empty": 1.0, "false_positive": 0.0}  # of a class that the reference lacks


@dataclass(frozen=True)
class ClassDice:
    """Of one class in one case; `dice` is NaN unless the outcome is "scored"."""

    class_name: str
    outcome: Outcome
    dice: float

    @classmethod
    def of(cls, score: ClassScore) -> ClassDice:
        """What is kept of a score."""
        return cls(score.class_name, score.outcome, score.dice)

    @property
    def value(self) -> float:
        """What the class counts: its Dice, or whether an empty reference was met by an empty mask."""
        return VALUES.get(self.outcome, self.dice)


CaseDice = tuple[ClassDice, ...]


@dataclass(frozen=True)
class ValidatedModel:
    """A model whose folds have predicted their validation cases.

    Attributes:
        folder: RESULTS/DATASET/MODEL.
        name: what the folder's name says.
        folds: finished and validated.
        num_parameters: of the networks of one fold.
        decision: of most of the folds.
        scores: of each validation case.
        fold_of: fold of each validation case.
        files: what each fold kept of its cases, where it kept probabilities.
        filters: lesion filter of each fold.
        sources: of a unified data set, those that the model was trained on.
        classes: that it tells, in words.
        references: hash of the label maps that each validation case was scored with; earlier versions kept none.
    """

    folder: Path
    name: ModelName
    folds: tuple[str, ...]
    num_parameters: int
    decision: Decision
    scores: Mapping[str, CaseDice]
    fold_of: Mapping[str, str]
    files: Mapping[str, PredictionFolder]
    filters: Mapping[str, LesionFilter]
    sources: tuple[str, ...] = ()
    classes: str = ""
    references: Mapping[str, str] = field(default_factory=dict)

    def has_probabilities(self, case_id: str) -> bool:
        """Whether the probabilities of a case were kept."""
        files = self.files.get(self.fold_of.get(case_id, ""))
        return files is not None and case_id in files.probabilities and case_id in files.masks


def score_of_case(classes: CaseDice) -> float:
    """Mean over the classes of a case of what each counts; NaN without classes."""
    return mean_of_defined(one.value for one in classes)


def mean_dice(cases: Iterable[CaseDice]) -> float:
    """Mean over classes of the mean Dice of the cases whose reference holds the class."""
    found: dict[str, list[float]] = {}
    for classes in cases:
        for one in classes:
            found.setdefault(one.class_name, []).append(one.dice)
    return mean_of_defined(mean_of_defined(values) for values in found.values())


def of_all_sources(models: Sequence[ValidatedModel]) -> tuple[list[ValidatedModel], list[str]]:
    """The models that know as many sources as any, and in words why others are left out.

    The best model of a unified data set is to predict images of all sources, and the score of one that leaves some out
    says nothing of them.
    """
    most = max((model.sources for model in models), key=len, default=())
    kept = [model for model in models if len(model.sources) == len(most)]
    left_out = [
        f"{model.folder.name}: it knows nothing of images of {', '.join(s for s in most if s not in model.sources)}"
        for model in models
        if model not in kept
    ]
    return kept, left_out


def of_same_classes(models: Sequence[ValidatedModel], description: Path) -> tuple[list[ValidatedModel], list[str]]:
    """The models of one set of classes, and in words why others are left out; where they differ, those of now.

    A model that stands beside newer ones since before the classes changed would be compared by scores of others.

    Args:
        models: of one data set.
        description: dataset.json that says what classes the data set has now.

    Raises:
        UsdError: the models differ, and none has the classes of the data set, or these cannot be read.
    """
    if len({model.classes for model in models}) < 2:
        return list(models), []
    now = classes_in_words(read_dataset_json(description).labels)
    kept = [model for model in models if model.classes == now]
    if not kept:
        each = "; ".join(f"{model.folder.name}: {model.classes}" for model in models)
        raise UsdError(
            f"the models of {models[0].folder.parent} tell different classes, and none those that the data set has now "
            f"({now}): {each}. Train one on the data set as it is, or move models of other classes away."
        )
    left_out = [f"{m.folder.name}: its classes are {m.classes}, those now {now}" for m in models if m not in kept]
    return kept, left_out


def of_known_cases(
    models: Sequence[ValidatedModel], case_ids: Collection[str]
) -> tuple[list[ValidatedModel], list[str]]:
    """The models with the cases alone that the data set still has, and in words what is left out."""
    return _without(
        models,
        lambda model: [case for case in model.scores if case not in case_ids],
        "that the preprocessed data set does not have any more",
    )


def of_same_references(models: Sequence[ValidatedModel], preprocessed: Path) -> tuple[list[ValidatedModel], list[str]]:
    """The models with the cases alone that were scored with the label maps of now, and in words what is left out."""
    now = reference_hashes(preprocessed, {case_id for model in models for case_id in model.references})
    return _without(
        models,
        lambda model: relabelled(model.references, now),
        "scored with other labels than the data set has now; usd_train with --val scores them again",
    )


def _without(
    models: Sequence[ValidatedModel], cases_of: Callable[[ValidatedModel], Iterable[str]], why: str
) -> tuple[list[ValidatedModel], list[str]]:
    """The models without some cases of each, those that have others, and in words what is left out."""
    kept: list[ValidatedModel] = []
    left_out: list[str] = []
    for model in models:
        out = set(cases_of(model))
        scores = {case: score for case, score in model.scores.items() if case not in out}
        if out:
            left_out.append(
                f"{model.folder.name}: {counted(len(out), 'case')} ({listed(sorted(out), LISTED_CASES)}) {why}"
            )
        if scores:
            fold_of = {case: fold for case, fold in model.fold_of.items() if case not in out}
            kept.append(replace(model, scores=scores, fold_of=fold_of) if out else model)
    return kept, left_out


def find_validated_models(
    results_folder: Path, expected_folds: Sequence[str]
) -> tuple[list[ValidatedModel], list[str]]:
    """All models in RESULTS/DATASET with a validated fold, sorted by name, and in words what is left out and why.

    Args:
        results_folder: of the data set.
        expected_folds: names of the folds of its splits.

    Raises:
        UsdError: a plan, settings or scores of a finished fold that cannot be read.
    """
    models, left_out = [], []
    for folder in sorted(results_folder.iterdir()):
        name = parse_model_name(folder.name) if folder.is_dir() else None
        if name is None or not any(folder.glob("fold_*")):
            continue
        found, reasons = _validated(folder, name, expected_folds)
        left_out += reasons
        if found is not None:
            models.append(found)
    return models, left_out


def _validated(folder: Path, name: ModelName, expected_folds: Sequence[str]) -> tuple[ValidatedModel | None, list[str]]:
    finished = [fold for fold in finished_folds(folder) if fold != "all"]
    left_out: list[str] = []
    scores: dict[str, CaseDice] = {}
    fold_of: dict[str, str] = {}
    files: dict[str, PredictionFolder] = {}
    references: dict[str, str] = {}
    if missing := [fold for fold in expected_folds if fold not in finished]:
        trained = "only fold all" if not finished and finished_folds(folder) else "not finished"
        left_out.append(f"{folder.name}: fold {' '.join(missing)} ({trained})")
    model = open_model_folder(folder) if finished else None
    for fold in finished:
        cases, hashes, problem = _scores_of_fold(scores_of_fold(folder / f"fold_{fold}"))
        if problem is not None and read_request(folder / f"fold_{fold}") is None:  # as of an imported model
            problem = f"no scores of single cases, and none can be made: it holds no {REQUEST_NAME}"
        twice = sorted(cases.keys() & scores.keys())
        if problem is None and twice:
            problem = f"validated {twice[0]}, which fold {fold_of[twice[0]]} has validated, too: other splits"
        if problem is None and model is not None:
            problem = _of_other_masks(model, fold)
        if problem is not None:
            left_out.append(f"{folder.name}: fold {fold} ({problem})")
            continue
        scores |= cases
        fold_of |= dict.fromkeys(cases, fold)
        references |= {case_id: value for case_id, value in hashes.items() if case_id in cases}
        if any((folder / f"fold_{fold}" / VALIDATION).glob("probabilities/*.npz")):
            files[fold] = open_prediction_folder(folder / f"fold_{fold}" / VALIDATION)
    if not scores or model is None:
        return None, left_out
    folds = tuple(fold for fold in finished if fold in fold_of.values())
    settings = {fold: read_settings(model.fold_folder(fold)) for fold in folds}
    decision = decision_of_folds(own.decision for own in settings.values())
    filters = {fold: own.lesion_filter for fold, own in settings.items()}
    size = _num_parameters(model, folds[0])
    if model.masks_from is not None:  # a cascade runs both
        size += _num_parameters(model.masks_from, model.masks_from.folds[0])
    sources = model.configuration.sources
    known = () if sources is None else tuple(sources.plans)
    classes = classes_in_words(model.plans.labels)
    found = ValidatedModel(
        folder, name, folds, size, decision, scores, fold_of, files, filters, known, classes, references
    )
    return found, left_out


def _scores_of_fold(path: Path) -> tuple[dict[str, CaseDice], dict[str, str], str | None]:
    """Scores of a fold's validation cases and the hashes of their references, or why it has none."""
    if not path.is_file():
        return {}, {}, "not validated; usd_train with --val does it"
    content = read_object(path)
    try:
        found = {
            str(case["case_id"]): tuple(
                ClassDice(score["class_name"], score["outcome"], _number(score["dice"])) for score in case["scores"]
            )
            for case in content["cases"]
        }
        given_up = list(content.get("not_validated") or [])
        references = from_jsonable(dict[str, str], content.get(REFERENCES) or {}, REFERENCES)
    except (KeyError, TypeError, UsdError):
        raise UsdError(
            f"{path} does not hold scores as validation writes them; validate that fold again with usd_train --val."
        ) from None
    if given_up:
        return {}, {}, f"{len(given_up)} of its cases not validated; usd_train with --val does it"
    return found, references, None if found else "no validation cases"


def _of_other_masks(model: ModelFolder, fold: str) -> str | None:
    """Why prediction refuses a fold of a cascade, if it does."""
    if model.masks_from is None:
        return None
    path = model.fold_folder(fold) / WEIGHTS_NAME
    try:
        require_same_masks(path, read_metadata(path), model)
    except UsdError as error:
        return str(error)
    return None


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _num_parameters(model: ModelFolder, fold: str) -> int:
    """Numbers in the weights of a fold, by their header."""
    from math import prod

    from safetensors import safe_open

    path = model.fold_folder(fold) / WEIGHTS_NAME
    try:
        with safe_open(path, framework="numpy") as stored:
            return sum(prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    except Exception as error:
        raise UsdError(f"{path} cannot be read ({error}); train that fold again.") from error
