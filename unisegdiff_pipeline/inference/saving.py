"""Saving a single prediction into a folder, with the files and the rules of `folder_run`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

from unisegdiff_pipeline.core.files import require_writable
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.export import (
    OutputOptions,
    PredictionRecord,
    endings_there,
    output_folders,
    read_record,
    uncertainty_scale,
    write_prediction,
    write_record,
    write_summary,
)
from unisegdiff_pipeline.inference.origin import UNNAMED, Origin, request_hash
from unisegdiff_pipeline.inference.output_folder import Owner, claimed, remove_former
from unisegdiff_pipeline.preprocessing.properties import CaseProperties

LOGGER = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()  # threads of this process wait; another process that writes the folder is named


def save_case(
    output: Path,
    found: EnsemblePrediction,
    properties: CaseProperties,
    scheme: LabelScheme,
    origin: Origin,
    options: OutputOptions,
) -> None:
    """Write what a folder run writes of one case, tables over all cases of the folder included.

    Raises:
        UsdError: the folder holds predictions of another model or settings, cannot be written into, or is being
            written by another process.
    """
    owner = Owner(request_hash(origin.made_of), origin.model, origin.made_of)
    for folder in output_folders(output):
        require_writable(folder)
    endings = {properties.case_id: options.file_ending}
    with _ONE_AT_A_TIME, claimed(output, owner, endings, options.file_ending):
        if properties.case_id == UNNAMED and not origin.hashes and read_record(output, UNNAMED) is not None:
            LOGGER.warning(
                "the case %r in %s is replaced: images in memory are all named so; to keep several in one folder, "
                "name each with case_id of predict",
                UNNAMED,
                output,
            )
        remove_former(output, properties.case_id, options.file_ending)
        num_lesions = write_prediction(output, found, properties, scheme, options)
        facts = facts_of(found, num_lesions)
        seconds = {"segmenter": found.facts.seconds_segmenter, "samples": found.facts.seconds_samples}
        record = PredictionRecord(
            properties.case_id, owner.request, origin.paths, origin.hashes, seconds, facts, options.file_ending
        )
        write_record(output, record)
        endings_now = endings_there(output, options.file_ending)
        manifest = manifest_of(owner, scheme, origin.device, endings_now, spacing_known=options.spacing_known)
        write_summary(output, manifest)


def facts_of(found: EnsemblePrediction, num_lesions: int) -> dict[str, float]:
    """What the record of a case says of its prediction."""
    return {
        "num_tiles": found.facts.num_tiles,
        "num_active_tiles": found.facts.num_active_tiles,
        "num_recomputed": found.facts.num_recomputed,
        "num_samples": len(found.sample_places),
        "num_lesions": num_lesions,
        "threshold": found.threshold,
    }


def manifest_of(
    owner: Owner, scheme: LabelScheme, device: str, endings: Collection[str], *, spacing_known: bool
) -> dict[str, Any]:
    """What manifest.json says of a folder besides its cases, whose images have these endings.

    The meaning of its label values is there, too: the model may be moved, or be an archive.
    """
    scales = {ending: uncertainty_scale(ending) for ending in sorted(endings)}
    return {
        "request": owner.request,
        "model": owner.model,
        **owner.made_of,
        "labels": to_jsonable(scheme),
        "spacing_known": spacing_known,
        "device": device,
        "uncertainty": {
            "meaning": "entropy of the mean probability as a fraction of the largest possible",
            "scale": next(iter(scales.values())) if len(set(scales.values())) == 1 else scales,
        },
    }
