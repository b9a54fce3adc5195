"""Which guarantees a prediction keeps: what its model was calibrated for, where nothing has changed since."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.inference.guarantees import Guarantees, Promises, parse_guarantees, promises_of, without
from unisegdiff_pipeline.inference.model_folder import SETTINGS_NAME, ModelFolder
from unisegdiff_pipeline.inference.recipe import FILE_NAME, Recipe, read_recipe
from unisegdiff_pipeline.inference.request import PredictRequest
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings
from unisegdiff_pipeline.planning.plans import SourcesPlan

LOGGER = logging.getLogger(__name__)


def promises_of_model(
    request: PredictRequest, model: ModelFolder, folds: Sequence[str], weights: Iterable[str], num_samples: int
) -> Promises | None:
    """What a prediction by the folds of one model writes for the guarantees that are asked for; None without any.

    Of one fold inference.json says it, of several the best.json of `usd_find_best` that is for all of them.

    Args:
        weights: hash of the weights of each fold.
        num_samples: that are drawn a case.

    Raises:
        UsdError: they were not calibrated, or for another prediction than this one.
        ValueError: a guarantee that there is not.
    """
    if not request.guarantees:
        return None
    require_source(request, model.configuration.sources)
    place = model.place
    if len(folds) == 1:
        settings = read_settings(model.fold_folder(folds[0]))
        guarantees = of_source(settings, request.source_name)
        where = f"fold {folds[0]} of {place} ({SETTINGS_NAME})"
        remedy = "Validate it with usd_train --val --save-validation all"
        if folds[0] == "all":
            remedy = "It was trained on every case, so that none is left to calibrate on. Predict by the numbered folds"
    else:
        where = f"{FILE_NAME} for the folds {' '.join(folds)} of {place}"
        guarantees, remedy = _of_folds(model, folds, request.source_name)
    where += "" if request.source_name is None else f" for the source {request.source_name}"
    named = model.plans.labels.names
    return promises_for(request, guarantees, named, (where, remedy), weights, num_samples)


def require_source(request: PredictRequest, sources: SourcesPlan | None) -> None:
    """Refuse guarantees of a model of a unified data set for images that no source is named of.

    They are like the patients of no source, or of several, and how many of each nobody knows.
    """
    if sources is not None and request.source_name is None:
        raise UsdError(
            f"models of unified data sets give guarantees for images of one source, by validation patients of that "
            f"source; name it (--source {' or '.join(sources.plans)}), or leave --guarantee out."
        )


def of_source(calibrated: InferenceSettings | Recipe, source: str | None) -> Guarantees | None:
    """The guarantees that inference.json or best.json holds, of a unified data set those of a source."""
    return calibrated.guarantees if source is None else calibrated.source_guarantees.get(source)


def promises_for(
    request: PredictRequest,
    guarantees: Guarantees | None,
    names: Sequence[str],
    place: tuple[str, str],
    weights: Iterable[str],
    num_samples: int | None,
) -> Promises:
    """As `promises_of_model`, of guarantees that were read.

    Args:
        names: of the classes.
        place: where they were read, and what makes them, for messages.
        num_samples: None is what each model takes by itself.
    """
    where, remedy = place
    asked = parse_guarantees(request.guarantees)
    if guarantees is None:
        raise UsdError(f"{where} holds no guarantees. {remedy}, or leave --guarantee out.")
    if tuple(sorted(weights)) != guarantees.weights:
        raise UsdError(f"{where}: the guarantees are those of other weights or folds. {remedy}.")
    if request.mirror:
        raise UsdError(f"{where} was calibrated without --mirror, which changes probabilities; leave one of them out.")
    if num_samples is not None and num_samples != guarantees.num_samples:
        raise UsdError(
            f"{where} was calibrated with {guarantees.num_samples} samples a case, {num_samples} are asked for; leave "
            f"--samples out."
        )
    promises = promises_of(guarantees, asked, names, where)
    for line in (*guarantees.in_words[:1], *promises.in_words(asked), *without(promises, asked)):
        LOGGER.info("guarantee: %s", line)
    return promises


def _of_folds(model: ModelFolder, folds: Sequence[str], source: str | None) -> tuple[Guarantees | None, str]:
    """Those of best.json beside the model, or in it, where an archive brought it; and what to do without them."""
    name, one_fold = Path(model.folder).absolute().name, f"or predict by one fold (-f {folds[0]})"
    remedy = f"Run usd_find_best {quoted(model.plans.dataset_name)}, {one_fold}"
    for folder in (Path(model.folder).absolute().parent, Path(model.folder)):
        if (folder / FILE_NAME).is_file():
            recipe = read_recipe(folder)
            is_asked = [member.model for member in recipe.members] == [name]
            if not is_asked or sorted(recipe.members[0].folds) != sorted(folds):
                members = " + ".join(f"{member.model} (folds {' '.join(member.folds)})" for member in recipe.members)
                remedy = f"{FILE_NAME} is for {members}: predict by that (--best), {one_fold}"
            if is_asked:
                return of_source(recipe, source), remedy
    return None, remedy
