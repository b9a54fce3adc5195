"""The whole way as functions: plan and preprocess, train, cross-validate, predict, evaluate.

The commands are a thin layer over this module. Nothing is printed here: messages go to `logging` (logger
"unisegdiff_pipeline"), progress to the callback `on_progress`, results are returned as dataclasses, and errors that a
user can fix are `UsdError`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from unisegdiff_pipeline.core.arrays import plain_array
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.locks import locked
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.progress import Listener, counted, telling
from unisegdiff_pipeline.core.serialization import read_dataclass, write_json
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.fingerprint import Fingerprint, extract_fingerprint, read_fingerprint, write_fingerprint
from unisegdiff_pipeline.io.integrity import IntegrityReport
from unisegdiff_pipeline.io.raw_dataset import RawDataset, open_as_measured, open_raw_dataset
from unisegdiff_pipeline.planning.budget import detect_budget
from unisegdiff_pipeline.planning.description import describe_plans, differences_from_plan
from unisegdiff_pipeline.planning.for_weights import WeightsToFollow, plan_for_weights
from unisegdiff_pipeline.planning.moved import move_plans
from unisegdiff_pipeline.planning.planner import plan_dataset
from unisegdiff_pipeline.planning.plans import Budget, ConfigurationPlan, Plans, plans_file, require_plans

if TYPE_CHECKING:
    from unisegdiff_pipeline.evaluation.case import CaseResult
    from unisegdiff_pipeline.evaluation.evaluate import Evaluation
    from unisegdiff_pipeline.evaluation.options import EvaluationOptions
    from unisegdiff_pipeline.inference.request import EnsembleRequest, PredictRequest
    from unisegdiff_pipeline.io.paths import Roots
    from unisegdiff_pipeline.io.unify import UnifyRequest
    from unisegdiff_pipeline.training.data.splits import Folds
    from unisegdiff_pipeline.training.find_best import FoundBest
    from unisegdiff_pipeline.training.request import TrainRequest, TrainResult

LOGGER = logging.getLogger(__name__)
FINGERPRINT, DATASET, WARNINGS = "fingerprint.json", "dataset.json", "warnings.json"
LOCK = ".lock"
LISTED_CASES = 10


@dataclass(frozen=True)
class PreparedDataset:
    """A data set that has been planned and preprocessed.

    Example:
        >>> prepared = usd.plan_and_preprocess(raw / "Dataset902_Phantom2D", preprocessed)
        >>> prepared.folder == preprocessed / "Dataset902_Phantom2D", prepared.first_fold
        (True, '0')

    Attributes:
        folder: preprocessed/DatasetXXX_Name.
        plans: with the stages of the diffusion.
        plans_path: the file that holds them.
        report: dataset_report.html; None of a plan with a name, which has none.
        warnings: what the check of the raw data found that is worth a look.
        first_fold: the fold to begin training with: "0", or "all" where the cases are too few to be split.
    """

    folder: Path
    plans: Plans
    plans_path: Path
    report: Path | None
    warnings: tuple[str, ...]
    first_fold: str


@dataclass(frozen=True)
class StepOutput:
    """What a single step left behind: the preprocessed folder, the report, and the plans where it made them."""

    folder: Path
    report: Path | None = None
    plans: Plans | None = None


# ------------------------------------------------------------------------------------------- raw to preprocessed data


def unify(raw: Path | str, request: UnifyRequest) -> Path:
    """Make one data set of several, as usd_unify does: a dataset.json that names them; no image is copied.

    Example:
        >>> folder = usd.unify(raw, usd.UnifyRequest(500, "Both", (902, 903)))
        >>> sorted(path.name for path in folder.iterdir())
        ['dataset.json']

    Args:
        raw: root of the raw data sets.
        request: number and name of the new data set, its sources, and what becomes of their classes.

    Returns:
        Folder of the data set, for `plan_and_preprocess`.

    Raises:
        UsdError: names that clash, a source that is missing, empty or unified itself, classes that a label map does not
            name, a data set that is there already.
    """
    from unisegdiff_pipeline.io.unify import unify as write_unified

    return write_unified(Path(raw), request)


def plan_and_preprocess(
    raw: Path | str,
    preprocessed: Path | str,
    *,
    configurations: Sequence[str] | None = None,
    budget: Budget | None = None,
    plans_name: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    on_progress: Listener | None = None,
) -> PreparedDataset:
    """Check a raw data set, collect its facts, plan, and preprocess; only what changed since is done again.

    Example:
        >>> prepared = usd.plan_and_preprocess(raw / "Dataset902_Phantom2D", preprocessed)
        >>> prepared.plans.recommended_configuration
        '2d'

    Args:
        raw: folder DatasetXXX_Name in nnU-Net's raw layout.
        preprocessed: root of preprocessed data; the result lies in DatasetXXX_Name there.
        configurations: "2d", "3d_fullres", ..., one or several; None takes all that make sense for the data.
        budget: what to plan for, see `detect_budget`; None looks at this machine.
        plans_name: makes a plan of this name beside the default one, to which the report of the data set belongs.
        workers: processes; None decides by cores and memory, 0 works in this process.
        scheduler: address of a Dask scheduler whose workers are used instead.
        on_progress: called with a `Progress` after each case.

    Raises:
        UsdError: naming every problem of the data set, all of them in one run.
    """
    request = PrepareRequest(_several(configurations), budget, plans_name, workers, scheduler)
    return prepare(raw, preprocessed, request, on_progress=on_progress)


@dataclass(frozen=True)
class PrepareRequest:
    """What is asked of `prepare`.

    Attributes:
        configurations: "2d", "3d_fullres", ...; empty takes all that make sense for the data.
        budget: what to plan for; None looks at this machine.
        plans_name: makes a plan of this name beside the default one.
        workers: processes; None decides by cores and memory, 0 works in this process.
        scheduler: address of a Dask scheduler whose workers are used instead.
        for_weights: weights that are to be started from; the plan follows them where it must.
        label_map: of label files, where dataset.json has none; see `io.label_map`.
        splits: folds to make now, "nnunet" or "by-group"; "default" leaves it to the training.
    """

    configurations: tuple[str, ...] = ()
    budget: Budget | None = None
    plans_name: str | None = None
    workers: int | None = None
    scheduler: str | None = None
    for_weights: Path | None = None
    label_map: Mapping[str, int | str] | None = None
    splits: Folds = "default"


def prepare(
    raw: Path | str, preprocessed: Path | str, request: PrepareRequest, *, on_progress: Listener | None = None
) -> PreparedDataset:
    """As `plan_and_preprocess`, by a request that can also name weights to plan for.

    Raises:
        UsdError: as `plan_and_preprocess`; weights that cannot be read, or of a dimension that the data has not.
    """
    from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_dataset

    opened = open_raw_dataset(Path(raw), request.label_map)
    folder = Path(preprocessed) / opened.name
    plans_name, workers, scheduler = request.plans_name, request.workers, request.scheduler
    path = folder / plans_file(plans_name)
    weights = None if request.for_weights is None else weights_to_follow(request.for_weights)
    with telling(on_progress), working_on(folder):
        fingerprint, integrity = check_and_measure(opened, workers, scheduler, folder)
        plans = make_plans(opened, fingerprint, request.budget or detect_budget(), path, weights)
        names = choose_configurations(plans, request.configurations)
        _write_facts(folder, opened, fingerprint, integrity)
        write_json(path, plans)
        LOGGER.info("%s", describe_plans(plans))
        plans = preprocess_dataset(opened, plans, names, folder, workers, scheduler, plans_name=plans_name).plans
        report = _write_report(folder, opened) if plans_name is None else None
    return PreparedDataset(
        folder, plans, path, report, tuple(map(str, integrity.warnings)), _first_fold(opened, folder, request.splits)
    )


def fingerprint(
    raw: Path | str, preprocessed: Path | str, *, workers: int | None = None, scheduler: str | None = None
) -> StepOutput:
    """The first step of `plan_and_preprocess`: check every case and write its facts."""
    opened = open_raw_dataset(Path(raw))
    folder = Path(preprocessed) / opened.name
    with working_on(folder):
        facts, integrity = check_and_measure(opened, workers, scheduler, folder)
        _write_facts(folder, opened, facts, integrity)
        return StepOutput(folder, _write_report(folder, opened, with_plans=False))  # a former plan may be of other data


def plan(
    raw: Path | str,
    preprocessed: Path | str,
    *,
    budget: Budget,
    plans_name: str | None = None,
    writing: bool = True,
    for_weights: Path | None = None,
    moved_from: Path | None = None,
) -> StepOutput:
    """The second step: plan from the fingerprint; the stages are planned when the labels are preprocessed.

    Raises:
        UsdError: there is no fingerprint yet; `for_weights`, which the plan is to follow, cannot be followed, or the
            plan `moved_from` cannot be moved to these data.
    """
    other = None if moved_from is None else read_dataclass(Plans, moved_from)
    weights = None if for_weights is None else weights_to_follow(for_weights)
    folder = Path(preprocessed) / Path(raw).name
    opened = open_as_measured(Path(raw), folder)
    if not (folder / FINGERPRINT).is_file():
        raise UsdError(f"{folder} holds no {FINGERPRINT}; run usd_fingerprint -d {quoted(opened.name)} first.")
    facts = read_fingerprint(folder / FINGERPRINT)
    path = folder / plans_file(plans_name)

    def planned() -> Plans:
        plans = make_plans(opened, facts, budget, None if other else path, weights)
        return plans if other is None else move_plans(plans, other, str(moved_from))

    if not writing:
        return StepOutput(folder, plans=planned())
    with working_on(folder):
        plans = planned()
        write_json(path, plans)
        return StepOutput(folder, _write_report(folder, opened) if plans_name is None else None, plans)


def preprocess(
    raw: Path | str,
    folder: Path,
    *,
    configurations: Sequence[str] | None = None,
    plans_name: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> StepOutput:
    """The third step: preprocess what is new or changed, and plan the stages from the preprocessed labels."""
    from unisegdiff_pipeline.preprocessing.preprocessor import preprocess_dataset

    opened = open_as_measured(Path(raw), folder)
    with working_on(folder):
        path = require_plans(folder, plans_name)
        plans = read_dataclass(Plans, path)
        _warn_of_former_plan(opened, plans, path)
        names = choose_configurations(plans, configurations)
        plans = preprocess_dataset(opened, plans, names, folder, workers, scheduler, plans_name=plans_name).plans
        reported = plans_name is None and (folder / FINGERPRINT).is_file()
        return StepOutput(folder, _write_report(folder, opened) if reported else None, plans)


def _warn_of_former_plan(raw: RawDataset, plans: Plans, path: Path) -> None:
    """Say where dataset.json names other classes or channels than the plan, by which cases are preprocessed."""
    if different := list(differences_from_plan(raw.description, plans)):
        LOGGER.warning(
            "%s was made before dataset.json of %s was changed: %s. Preprocessing goes by the plan; to take the change "
            "over, run usd_plan_and_preprocess -d %s.",
            path,
            raw.folder,
            "; ".join(different),
            quoted(raw.name),
        )


def check_and_measure(
    raw: RawDataset, workers: int | None = None, scheduler: str | None = None, scratch_folder: Path | None = None
) -> tuple[Fingerprint, IntegrityReport]:
    """Check every case and collect its facts in one pass; large images become temporary files in `scratch_folder`.

    Raises:
        UsdError: listing every problem that was found.
    """
    LOGGER.info("%s: checking and measuring %s", raw.name, counted(len(raw.cases), "case"))
    reader = raw.description.raw.get("overwrite_image_reader_writer")
    if isinstance(reader, str) and reader.endswith("Reorient"):
        LOGGER.info("%s: dataset.json asks for %s: volumes are turned to one orientation, as always", raw.name, reader)
    found, report = extract_fingerprint(raw, workers, scheduler, scratch_folder)
    for warning in report.warnings:
        LOGGER.warning("%s", warning)
    if report.empty_cases:
        names = listed(report.empty_cases, LISTED_CASES)
        LOGGER.info("%d of %d cases hold no foreground: %s", len(report.empty_cases), len(raw.cases), names)
    report.require_ok()
    return found, report


def weights_to_follow(path: Path) -> WeightsToFollow:
    """What a plan needs to know of weights; raises a UsdError where they cannot be read, or fit into every plan."""
    from unisegdiff_pipeline.training.pretrained import read_start
    from unisegdiff_pipeline.training.request import SYNTHETIC

    if str(path) == SYNTHETIC and not path.exists():
        raise UsdError(
            f"--for-weights is {SYNTHETIC}, which starts a plain network of any plan; leave it out, and name it in "
            f"usd_train --pretrained {SYNTHETIC}."
        )
    start = read_start(path)
    return WeightsToFollow(start.network, start.target_spacing_mm, start.description)


def make_plans(
    raw: RawDataset,
    facts: Fingerprint,
    budget: Budget,
    former: Path | None = None,
    weights: WeightsToFollow | None = None,
) -> Plans:
    """Plan all configurations that make sense; stages of a former plans.json stay where nothing else changed."""
    plans = plan_dataset(facts, raw.description, budget, source_descriptions=raw.source_descriptions)
    if weights is not None:
        plans = plan_for_weights(plans, weights, len(facts.cases))
    return plans if former is None or not former.is_file() else keep_stages(plans, former)


def choose_configurations(plans: Plans, asked_for: Sequence[str] | None) -> tuple[str, ...]:
    """The planned ones of the configurations asked for, all of them without a wish.

    One that makes no sense for the data is left out with a warning, so that a call can name what suits several data
    sets.

    Raises:
        UsdError: none of them is planned.
    """
    names = _several(asked_for) or tuple(plans.configurations)
    planned = tuple(name for name in names if name in plans.configurations)
    for name in names:
        if name in planned:
            continue
        reason = plans.decisions.get(f"configurations.{name}")
        why = f" ({reason})" if reason else "; only configurations that make sense for the data are"
        message = f"{plans.dataset_name}: {name} is not planned{why}"
        if not planned:
            raise UsdError(f"{message}. Leave it out of -c; there are {', '.join(plans.configurations)}.")
        LOGGER.warning("%s. Left out; %s is preprocessed.", message, ", ".join(planned))
    return planned


def _several(names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of a sequence; a text is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def working_on(folder: Path) -> AbstractContextManager[None]:
    """Lock a preprocessed data set, so that two processes do not write it at once."""
    return locked(folder / LOCK, str(folder))


def keep_stages(plans: Plans, former: Path) -> Plans:
    """Take over the stages of configurations that the former plans.json plans in the same way."""
    try:
        old = read_dataclass(Plans, former)
    except UsdError:  # written by another version, or edited: the new plans replace it anyway
        return plans
    kept = {
        name: _with_stages(configuration, old.configurations[name])
        for name, configuration in plans.configurations.items()
        if name in old.configurations and _with_stages(old.configurations[name], None) == configuration
    }
    keys = [f"configurations.{name}.stages" for name in kept]
    reasons = {key: old.decisions[key] for key in keys if key in old.decisions}
    return replace(plans, configurations={**plans.configurations, **kept}, decisions={**plans.decisions, **reasons})


def _with_stages(configuration: ConfigurationPlan, other: ConfigurationPlan | None) -> ConfigurationPlan:
    """A configuration with the stages of another one, those of each source too; with none, as they are planned last."""
    sources, theirs = configuration.sources, None if other is None else other.sources
    if sources is not None:
        stages = {name: None if theirs is None else theirs.plans[name].stages for name in sources.plans}
        sources = replace(sources, plans={n: replace(plan, stages=stages[n]) for n, plan in sources.plans.items()})
    return replace(configuration, stages=None if other is None else other.stages, sources=sources)


def _write_facts(folder: Path, raw: RawDataset, facts: Fingerprint, integrity: IntegrityReport) -> None:
    """Write fingerprint.json, the warnings of the check and a copy of dataset.json into the preprocessed folder."""
    write_fingerprint(folder / FINGERPRINT, facts)
    write_json(folder / WARNINGS, integrity.warnings)
    write_json(folder / DATASET, raw.description.raw)


def _write_report(folder: Path, raw: RawDataset, with_plans: bool = True) -> Path:
    """Write dataset_report.html from what the preprocessed folder holds, and pictures; returns its path."""
    from unisegdiff_pipeline.reports.dataset_report import write_dataset_report

    return write_dataset_report(folder, with_plans, raw)


def _first_fold(raw: RawDataset, folder: Path, splits: Folds) -> str:
    """The fold to begin training with: "0", or "all", with a warning, where the cases are too few to be split.

    Folds that were asked for are written.
    """
    from unisegdiff_pipeline.training.data.splits import load_or_create_splits

    try:
        load_or_create_splits(folder, raw.folder, writing=splits != "default", folds=splits)
    except UsdError as error:
        if splits != "default":
            raise
        LOGGER.warning("%s", error)
        return "all"
    return "0"


# --------------------------------------------------------------------------------------------------------- training


def train(request: TrainRequest, *, began: float | None = None, on_progress: Listener | None = None) -> TrainResult:
    """Train what the request asks for: one fold, "all" cases, or "cv"; what was begun goes on, what is done is kept.

    Example:
        >>> request = usd.TrainRequest("902", fold="0", roots=roots, iterations=2, workers=0, device="cpu")
        >>> result = usd.train(request)
        >>> result.folds[0].folder.name, sorted(result.folds[0].scores)
        ('fold_0', ['lesion', 'mean'])

    Args:
        request: data set, fold, budget and all that may differ from the plan.
        began: time.monotonic() from which the first fold's time counts; by default now.
        on_progress: called with a `Progress` while files are checked and cases validated; the training itself is
            logged.

    Raises:
        UsdError: data, plan or budget cannot be used, or the fold was asked another thing before. Of a training that
            could not begin nothing is left.
        TrainingInterrupted: on SIGINT or SIGTERM in the main thread, with a checkpoint saved.
    """
    from unisegdiff_pipeline.training import run

    with telling(on_progress):
        return run.train(request, began)


def cross_validate(request: TrainRequest, *, on_progress: Listener | None = None) -> TrainResult:
    """Train all folds and gather their validation cases in one folder that `evaluate` takes; see `train`.

    Example:
        >>> result = usd.cross_validate(request)
        >>> len(result.folds), result.collected.folder.name
        (5, 'cross_validation')

    Args:
        request: as for `train`; its fold does not matter.
        on_progress: as for `train`.

    Raises:
        UsdError, TrainingInterrupted: as `train`.
    """
    return train(replace(request, fold="cv"), on_progress=on_progress)


# ------------------------------------------------------------------------------------------- prediction, evaluation


def predict(request: PredictRequest, *, on_progress: Listener | None = None) -> Path:
    """Predict the images of a folder, as usd_predict does; returns the folder of masks. See `Predictor` for one image.

    Example:
        >>> masks = usd.predict(usd.PredictRequest(images, output, model_folder, device="cpu"))
        >>> sorted(path.name for path in masks.glob("*.png"))
        ['phantom_0012.png', 'phantom_0013.png', 'phantom_0014.png', 'phantom_0015.png']

    Args:
        request: images, output folder, model, and what is written.
        on_progress: called with a `Progress` after each case.

    Raises:
        UsdError: no such model or input, or an output folder of other predictions; and cases that failed, named after
            all others have been finished.
    """
    from unisegdiff_pipeline.inference.folder_run import predict_folder

    with telling(on_progress):
        predict_folder(request)
    return Path(request.output)


def find_best(roots: Roots, dataset: str | int, *, on_progress: Listener | None = None, workers: int = 0) -> FoundBest:
    """Compare all trained models of a data set, and all pairs of them, by their validation cases; writes best.json.

    Example:
        >>> trained = usd.Roots(raw, preprocessed, results=model_folder.parents[1])
        >>> found = usd.find_best(trained, "902")
        >>> [member.model for member in found.recipe.members], found.path.name
        (['StagedDiffusionTrainer__2d'], 'best.json')

    Args:
        roots: where preprocessed data and results lie.
        dataset: number or name.
        on_progress: called with a `Progress` after each case of a pair.
        workers: processes that score pairs; 0 works in this one.

    Raises:
        UsdError: no model with a validated fold, or files of one that cannot be read.
    """
    from unisegdiff_pipeline.training import find_best as finding

    with telling(on_progress):
        return finding.find_best(roots, dataset, workers=workers)


def predict_best(request: PredictRequest, *, on_progress: Listener | None = None) -> Path:
    """Predict the images of a folder by best.json, as usd_predict --best does; returns the folder of masks.

    Example:
        >>> found = usd.find_best(usd.Roots(raw, preprocessed, results=model_folder.parents[1]), "902")
        >>> masks = usd.predict_best(usd.PredictRequest(images, output / "best", found.path.parent, device="cpu"))
        >>> len(list(masks.glob("*.png")))
        4

    Args:
        request: as for `predict`, but `model_folder` is RESULTS/DATASET, and the folds are those of best.json.
        on_progress: called with a `Progress` after each case.

    Raises:
        UsdError: as `predict`; no best.json, or a model that it names is gone.
    """
    from unisegdiff_pipeline.inference.best_prediction import predict_best as predict_by_recipe

    with telling(on_progress):
        predict_by_recipe(request)
    return Path(request.output)


def ensemble(request: EnsembleRequest, *, on_progress: Listener | None = None) -> Path:
    """Average the probabilities of several folders of predictions, as usd_ensemble does; returns the folder of masks.

    Example:
        >>> saved = {"device": "cpu", "save_probabilities": True}
        >>> one = usd.predict(usd.PredictRequest(images, output / "one", model_folder, **saved))
        >>> two = usd.predict(usd.PredictRequest(images, output / "two", model_folder, seed=1, **saved))
        >>> masks = usd.ensemble(usd.EnsembleRequest((one, two), output / "both"))
        >>> len(list(masks.glob("*.png")))
        4

    Args:
        request: folders, weights, output folder, and what is written.
        on_progress: called with a `Progress` after each case.

    Raises:
        UsdError: folders of different cases, classes or grids, or without probabilities; an output folder of other
            predictions; and cases that failed, named after all others have been finished.
    """
    from unisegdiff_pipeline.inference.folder_ensemble import ensemble_folders

    with telling(on_progress):
        ensemble_folders(request)
    return Path(request.output)


@overload
def evaluate(
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing_mm: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    options: EvaluationOptions | None = None,
) -> CaseResult: ...


@overload
def evaluate(
    reference: Path | str,
    prediction: Path | str,
    *,
    labels: Sequence[int] | None = None,
    dataset_json: Path | str | None = None,
    output: Path | str | None = None,
    options: EvaluationOptions | None = None,
    on_progress: Listener | None = None,
) -> Evaluation: ...


def evaluate(
    reference: np.ndarray | Path | str,
    prediction: np.ndarray | Path | str,
    *,
    spacing_mm: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    dataset_json: Path | str | None = None,
    output: Path | str | None = None,
    options: EvaluationOptions | None = None,
    on_progress: Listener | None = None,
) -> CaseResult | Evaluation:
    """Score a prediction against its reference: two label maps, or two folders of them.

    Example:
        >>> reference, predicted = np.zeros((8, 8), int), np.zeros((8, 8), int)
        >>> reference[2:6, 2:6], predicted[2:6, 2:4] = 1, 1
        >>> lesion = usd.evaluate(reference, predicted, spacing_mm=(0.5, 0.5)).classes[0]
        >>> round(lesion.overlap.dice, 3), lesion.boundary.hd_mm
        (0.667, 1.0)

    Args:
        reference, prediction: integer arrays (Z, Y, X) or (Y, X); or folders (or files) of label maps with the same
            case names.
        spacing_mm: of the axes of arrays; without it voxels count as 1 mm wide, so that distances are in voxels, sizes
            of 2D images in pixels, and those of volumes in thousands of voxels.
        labels: values to score, a class each; by default all that occur in arrays, and those of dataset.json.
        dataset_json: what the labels of folders mean; by default it is looked for in and above them.
        output: folder where metrics.csv, lesion_scores.csv and summary.json of folders are written; none by default.
        options: tolerances of surface Dice, rule that matches lesions; of folders what else is scored, a subset of
            the cases, other predictions to compare with, and the like.
        on_progress: called with a `Progress` after each case of folders.

    Returns:
        Of arrays a `CaseResult`, with overlap, boundary and lesions of each class; of folders an `Evaluation`, with
        the cases and a report over them.

    Raises:
        UsdError: naming missing cases, files on another grid, or unknown label values.
        ValueError: arrays that do not fit together, label values below 1, or an argument that does not go with them.
        TypeError: neither two arrays nor two paths.
    """
    from unisegdiff_pipeline.core.files import require_writable
    from unisegdiff_pipeline.evaluation.evaluate import evaluate_arrays, evaluate_folders
    from unisegdiff_pipeline.evaluation.meaning import find_meaning

    if not isinstance(reference, (str, Path)) or not isinstance(prediction, (str, Path)):
        one, other = _arrays(reference, prediction)
        if dataset_json is not None or output is not None:
            raise ValueError("dataset_json and output go with folders; leave them out where arrays are scored")
        return evaluate_arrays(one, other, spacing_mm, labels, options)
    if spacing_mm is not None:
        raise ValueError("spacing_mm goes with arrays; files say it themselves, leave it out")
    references, predictions = Path(reference), Path(prediction)
    described = None if dataset_json is None else Path(dataset_json)
    others = () if options is None else tuple(map(Path, options.against))
    meaning = find_meaning(references, predictions, described, labels, others)
    if output is not None:
        require_writable(Path(output))
    with telling(on_progress):
        evaluation = evaluate_folders(references, predictions, meaning, options)
    if output is not None:
        evaluation.write(Path(output))
    return evaluation


def _arrays(*sides: object) -> list[np.ndarray]:
    """Reference and prediction as arrays.

    Raises:
        TypeError: one is neither an array nor a sequence of numbers, a path for instance.
        ValueError: values of one are hidden (`numpy.ma`).
    """
    names = ("reference", "prediction")
    arrays = [plain_array(side, name) for side, name in zip(sides, names, strict=True)]
    for name, side, array in zip(names, sides, arrays, strict=True):
        if array.dtype.kind not in "buifc":
            raise TypeError(
                f"{name} is a {type(side).__name__}; allowed are two integer arrays (of a Prediction its mask) or two "
                f"paths"
            )
    return arrays
