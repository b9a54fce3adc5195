"""Prediction by the recipe in best.json: one model, or two whose probabilities are averaged.

Of two, each predicts into a folder of its own, OUT/.members/MODEL, with probabilities and samples; OUT is their
ensemble. The same command goes on where it stopped in any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.inference.dicom_input import InputImages, as_images
from unisegdiff_pipeline.inference.export import read_record
from unisegdiff_pipeline.inference.folder_ensemble import ensemble_folders
from unisegdiff_pipeline.inference.folder_run import CasesFailedError, predict_folder, require_seen_by_workers
from unisegdiff_pipeline.inference.guarantees import Promises
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, choose_folds, open_model_folder
from unisegdiff_pipeline.inference.model_inputs import ModelInputs
from unisegdiff_pipeline.inference.output_folder import require_for_ensemble
from unisegdiff_pipeline.inference.promised import of_source, promises_for, require_source
from unisegdiff_pipeline.inference.recipe import FILE_NAME, Recipe, read_recipe
from unisegdiff_pipeline.inference.request import EnsembleRequest, PredictRequest

MEMBERS = ".members"


@dataclass(frozen=True)
class BestModels:
    """The models that best.json in `folder` names, each with the folds to average."""

    folder: Path
    recipe: Recipe
    models: tuple[tuple[Path, tuple[str, ...]], ...]


def open_best(folder: Path) -> BestModels:
    """Read best.json of RESULTS/DATASET and find what it names.

    Raises:
        UsdError: there is none, or a model or fold that it names is not there any more.
    """
    recipe = read_recipe(folder)
    models = []
    for member in recipe.members:
        try:
            model = open_model_folder(folder / member.model)
            models.append((model.folder, choose_folds(model, member.folds)))
        except UsdError as error:
            raise UsdError(
                f"{folder / FILE_NAME} names {member.model} with the folds {' '.join(member.folds)}: {error} Or "
                f"compare again what is there: usd_find_best {quoted(recipe.dataset)}."
            ) from error
    return BestModels(folder, recipe, tuple(models))


def predict_best(request: PredictRequest) -> int:
    """Predict the cases of a folder by best.json; returns how many masks were made now.

    Args:
        request: as for a prediction by one model; `model_folder` is RESULTS/DATASET, and best.json names the folds.

    Raises:
        UsdError: as `open_best`, `predict_folder` and `ensemble_folders`; a request that an ensemble cannot serve.
    """
    best = open_best(Path(request.model_folder))
    if request.lesion_filter is True and request.utility is None and best.recipe.lesion_filter is not None:
        request = replace(request, lesion_filter=best.recipe.lesion_filter)
    if len(best.models) == 1:
        ((model, folds),) = best.models
        return predict_folder(replace(request, model_folder=model, folds=folds))
    with as_images(request.source, open_model_folder(best.models[0][0])) as images:
        require_seen_by_workers(request, images)
        return _predict_together(best, request, images)


def _predict_together(best: BestModels, request: PredictRequest, images: InputImages) -> int:
    """By several models, whose probabilities are averaged."""
    if request.save_uncertainty_parts:
        raise UsdError(
            f"--save-uncertainty-parts splits what one model says; {best.folder / FILE_NAME} names "
            f"{len(best.models)}. Leave it out, or predict by one of them with -m."
        )
    if request.utility is not None:
        raise UsdError(
            f"--utility {request.utility} chooses the lesion filter of one model; {best.folder / FILE_NAME} names "
            f"{len(best.models)}, whose mean has a filter of its own. Leave it out, or predict by one of them with -m."
        )
    promises = _promises(best, request)
    output = Path(request.output)
    require_for_ensemble(output, overwrite=request.overwrite)
    members = [output / MEMBERS / model.name for model, _ in best.models]
    failures = []
    for member, (model, folds) in zip(members, best.models, strict=True):
        own = replace(request, model_folder=model, folds=folds, output=member, combine="mean", guarantees=())
        try:
            predict_folder(replace(own, save_probabilities=True, save_samples=True), images)
        except CasesFailedError as error:
            failures.append(f"{model.name}: {error}")
    inputs = ModelInputs(open_model_folder(best.models[0][0]), request.source_name, request.suffixes)
    cases = inputs.find_cases(images.source)
    own_cases = {case.case_id: case for case in cases[request.part_id :: request.num_parts]}
    done = [case for case in own_cases if all(read_record(member, case) is not None for member in members)]
    failed = {name: inputs.file_ending(case.image_paths) for name, case in own_cases.items() if name not in done}
    if failures and not done:
        raise UsdError("\n".join(failures))
    if not done:  # more parts than cases
        return 0
    made = ensemble_folders(
        EnsembleRequest(
            members,
            output,
            decision=request.decision or ("half" if best.recipe.decision == "half" else None),
            combine=request.combine,
            lesion_filter=request.lesion_filter,
            promises=promises,
            cases=done,
            max_memory_gb=request.max_memory_gb,
            save_probabilities=request.save_probabilities,
            save_samples=request.save_samples,
            overwrite=request.overwrite,
            part=(request.part_id, request.num_parts),
        ),
        failed,
    )
    if failures:
        raise UsdError("\n".join(failures))
    return made


def _promises(best: BestModels, request: PredictRequest) -> Promises | None:
    """What is written of two models for the guarantees that are asked for."""
    if not request.guarantees:
        return None
    first = open_model_folder(best.models[0][0])
    require_source(request, first.configuration.sources)
    weights = [file_hash(model / f"fold_{fold}" / WEIGHTS_NAME) for model, folds in best.models for fold in folds]
    if request.num_samples is not None:
        raise UsdError(f"{best.folder / FILE_NAME} was calibrated with the models' own samples; leave --samples out.")
    place = str(best.folder / FILE_NAME), f"Run usd_find_best {quoted(best.recipe.dataset)}"
    guarantees = of_source(best.recipe, request.source_name)
    return promises_for(request, guarantees, first.plans.labels.names, place, weights, None)
