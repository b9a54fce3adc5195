"""Names of the files that a prediction writes beside its masks, and that evaluation and ensembles read."""

from __future__ import annotations

from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.serialization import from_jsonable, read_object

LESIONS = "lesions.csv"
VOLUMES = "volumes.csv"
CASES = "cases.csv"
MANIFEST = "manifest.json"
SUMMARY_FILES = (LESIONS, VOLUMES, CASES, MANIFEST)
VALIDATION = "validation"  # in the folder of a fold: its validation cases
SCORES = "summary.json"  # there
VALIDATED = "validated"  # in the manifest.json of a gathered cross-validation: the hash of each fold's scores


def scores_of_fold(fold_folder: Path) -> Path:
    """The scores of a fold's validation cases; each validation writes others, as its seconds are in them."""
    return fold_folder / VALIDATION / SCORES


def validated_since(gathered: Path) -> tuple[str, ...]:
    """Folds of MODEL/cross_validation that were trained or validated again after it was gathered.

    Of any other folder, and of one without the folders of its folds beside it, there are none.
    """
    try:
        hashes = from_jsonable(dict[str, str], read_object(gathered / MANIFEST).get(VALIDATED) or {}, VALIDATED)
    except UsdError:
        return ()
    scores = {fold: scores_of_fold(gathered.absolute().parent / f"fold_{fold}") for fold in hashes}
    there = {fold: path for fold, path in scores.items() if path.parent.parent.is_dir()}
    return tuple(fold for fold, path in there.items() if not path.is_file() or file_hash(path) != hashes[fold])
