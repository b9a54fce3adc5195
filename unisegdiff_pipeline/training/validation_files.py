"""What is kept of the validation cases: masks always; probabilities, samples and tables as prediction writes them.

    validation/summary.json          scores, and the settings that the cases were predicted with
    validation/spread.json           samples beside the references, see `evaluation.spread`
    validation/CASE.ext              masks
    validation/probabilities/  samples/  uncertainty/  lesions.csv  volumes.csv  cases.csv
                                     manifest.json
                                     where everything is kept; see `inference.export`

`usd_evaluate LABELS validation/ --subset` takes the folder as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from unisegdiff_pipeline.core.files import file_hash, text_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.io.prediction_files import VALIDATION
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.training.fold_run import FoldRun

# Of probabilities at half precision and samples at a byte a voxel, before compression, which leaves about a tenth.
LARGEST_KEPT_BYTES = 2_000_000_000


def keeps_everything(run: FoldRun, settings: InferenceSettings) -> bool:
    """Whether more than masks is kept: as asked for, else where it comes to LARGEST_KEPT_BYTES at most for the fold."""
    if run.request.save_validation in ("masks", "all"):
        return run.request.save_validation == "all"
    bytes_each = 2 * run.plans.labels.num_channels + settings.num_samples
    voxels = sum(math.prod(run.data.open(case_id).properties.shape_original) for case_id in run.validation_cases)
    return voxels * bytes_each <= LARGEST_KEPT_BYTES


def ensemble_of_one(prediction: CasePrediction, settings: InferenceSettings, scheme: LabelScheme) -> EnsemblePrediction:
    """What prediction makes of a fold alone."""
    places = tuple((0, index) for index in range(prediction.num_samples))
    found = EnsemblePrediction(
        (prediction,),
        places,
        prediction.facts,
        lesion_filter=settings.lesion_filter,
        case_calibration=settings.case_calibration,
    )
    return replace(found, threshold=found.best_threshold(scheme)) if settings.decision == "dice" else found


def write_case(
    run: FoldRun,
    stored: StoredCase,
    found: EnsemblePrediction,
    settings: InferenceSettings,
    labels: np.ndarray,
    everything: bool,
) -> None:
    """Write what is kept of one case, after all that was kept of it before is removed.

    Args:
        found: the prediction, with its samples where everything is kept.
        labels: the mask (Z, Y, X) on the image's grid.
        everything: see `keeps_everything`.
    """
    # Readers are imported here only: a machine that trains need not have them.
    try:
        from unisegdiff_pipeline.inference.export import (
            OutputOptions,
            PredictionRecord,
            mask_path,
            write_prediction,
            write_record,
        )
        from unisegdiff_pipeline.inference.output_folder import remove_case
        from unisegdiff_pipeline.io.images import write_labels
    except ImportError as error:
        run.log.say(f"masks of the validation cases are not written: {error}")
        return
    output, case_id, ending = run.folder / VALIDATION, stored.case_id, _ending(run, stored.case_id)
    remove_case(output, case_id, ending)
    if not everything:
        write_labels(mask_path(output, case_id, ending), labels, stored.properties.geometry)
        return
    known = run.configuration.knows_spacing(stored.properties.source, run.plans.spacing_known)
    options = OutputOptions(ending, known, save_samples=True, save_probabilities=True)
    lesions = write_prediction(output, found, stored.properties, run.plans.labels, options)
    facts = {"num_samples": len(found.sample_places), "num_lesions": lesions, "threshold": found.threshold}
    write_record(output, PredictionRecord(case_id, _request(run, settings), (), (), {}, facts))


def remove_cases(run: FoldRun, case_ids: Iterable[str]) -> None:
    """Remove what is kept of some cases, half written files of a case that was given up among them."""
    try:
        from unisegdiff_pipeline.inference.output_folder import remove_case
    except ImportError:
        return
    for case_id in case_ids:
        remove_case(run.folder / VALIDATION, case_id, _ending(run, case_id))


def remove_tables(run: FoldRun) -> None:
    """Remove the tables over the validation cases: those of an earlier validation, which no case belongs to now."""
    try:
        from unisegdiff_pipeline.inference.export import remove_summary
    except ImportError:
        return
    remove_summary(run.folder / VALIDATION)


def write_tables(run: FoldRun, settings: InferenceSettings) -> None:
    """Write lesions.csv, volumes.csv, cases.csv and manifest.json over the validation cases of the fold."""
    from unisegdiff_pipeline.inference.export import write_summary

    made_of = {"request": _request(run, settings), "model": str(run.folder.parent.resolve()), "fold": run.fold}
    write_summary(run.folder / VALIDATION, {**made_of, "seed": run.seed, "settings": to_jsonable(settings)})


def _ending(run: FoldRun, case_id: str) -> str:
    """Of a case's masks: that of its own source."""
    sources = run.configuration.sources
    return run.plans.file_ending if sources is None else sources.plans[source_of_case(case_id)].file_ending


def _request(run: FoldRun, settings: InferenceSettings) -> str:
    """Hash of all that the masks of the fold's cases depend on."""
    return text_hash(f"{file_hash(run.folder / WEIGHTS_NAME)}|{to_jsonable(settings)}|{run.seed}")
