"""Score a folder of predicted masks against a folder of references: geometry first, then values, then scores."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.evaluation.metrics import ClassScore, score_case
from unisegdiff_pipeline.evaluation.summary import CaseScores, Summary, summarise
from unisegdiff_pipeline.io.errors import UsdError
from unisegdiff_pipeline.io.files import atomic_path
from unisegdiff_pipeline.io.labels import LabelScheme
from unisegdiff_pipeline.io.serialization import write_json

# Below this many voxels in all, starting worker processes takes longer than scoring.
VOXELS_WORTH_PROCESSES = 400_000_000
LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class MaskPair:
    """Reference and prediction of one case."""

    case_id: str
    reference: Path
    prediction: Path


@dataclass(frozen=True)
class Evaluation:
    """Scores of a prediction folder.

    Attributes:
        reference, prediction: what was compared.
        spacing_known: False says that all volumes are nominal.
        not_predicted: references without a prediction, left out because a subset was asked for.
        summary: per class over all cases.
        cases: per case and class.
    """

    reference: str
    prediction: str
    spacing_known: bool
    not_predicted: tuple[str, ...]
    summary: Summary
    cases: tuple[CaseScores, ...]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write evaluation.json (undefined values are null) and evaluation.csv (undefined cells are empty)."""
        json_path, csv_path = folder / "evaluation.json", folder / "evaluation.csv"
        write_json(json_path, self)
        columns = [field.name for field in dataclasses.fields(ClassScore)]
        with atomic_path(csv_path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["case", *columns])
            for case in self.cases:
                for score in case.scores:
                    writer.writerow([case.case_id, *(_cell(getattr(score, column)) for column in columns)])
        return json_path, csv_path


def evaluate_folders(
    reference: Path,
    prediction: Path,
    scheme: LabelScheme,
    *,
    spacing_known: bool = True,
    subset: bool = False,
    check_values: bool = True,
    workers: int | None = None,
) -> Evaluation:
    """Score all cases of two folders (or one file against another).

    Args:
        reference: folder of reference label maps, CASE + ending.
        prediction: folder of predicted label maps with the same case names; the endings may differ.
        scheme: what the label values mean.
        spacing_known: False marks the volumes as nominal.
        subset: score only the predicted cases; otherwise a reference without a prediction is an error.
        check_values: refuse label values that the scheme does not know.
        workers: processes; 0 or 1 works in this one, None decides by the amount of data.

    Raises:
        UsdError: naming every missing case, every pair of different shape or geometry, or every unknown label value.
    """
    pairs, not_predicted = find_pairs(reference, prediction, subset=subset)
    voxels = check_geometry(pairs)
    score = functools.partial(score_pair, scheme=scheme, spacing_known=spacing_known, check_values=check_values)
    cases = _score_all(score, pairs, voxels, workers)
    return Evaluation(
        reference=str(reference),
        prediction=str(prediction),
        spacing_known=spacing_known,
        not_predicted=tuple(not_predicted),
        summary=summarise(cases),
        cases=tuple(cases),
    )


def find_pairs(reference: Path, prediction: Path, *, subset: bool) -> tuple[list[MaskPair], list[str]]:
    """Match label files by case name; returns the pairs and the references that have no prediction."""
    from unisegdiff_pipeline.io.images import split_ending

    if reference.is_file() and prediction.is_file():
        return [MaskPair(split_ending(prediction.name)[0], reference, prediction)], []
    references, predictions = find_masks(reference), find_masks(prediction)
    unknown = sorted(predictions.keys() - references.keys())
    missing = sorted(references.keys() - predictions.keys())
    if unknown:
        raise UsdError(
            f"{prediction} holds {len(unknown)} prediction(s) that have no reference in {reference}: "
            f"{_listing(unknown)}. Give the folder of the matching references, or move these files away."
        )
    if missing and not subset:
        raise UsdError(
            f"{prediction} lacks predictions of {len(missing)} reference case(s): {_listing(missing)}. Predict them, "
            f"or score only what is there with --subset."
        )
    return [MaskPair(case, references[case], path) for case, path in sorted(predictions.items())], missing


def find_masks(folder: Path) -> dict[str, Path]:
    """Label files of a folder by case name (file name without its ending)."""
    from unisegdiff_pipeline.io.images import SUPPORTED_ENDINGS, split_ending

    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; give a folder of label files, or one file for each of REF and PRED.")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        case, ending = split_ending(path.name)
        if not ending or path.name.startswith("."):
            continue
        if case in masks:
            raise UsdError(
                f"{folder} holds two label files of case {case}: {masks[case].name} and {path.name}; remove one."
            )
        masks[case] = path
    if not masks:
        raise UsdError(f"{folder} holds no label file; supported endings are {', '.join(SUPPORTED_ENDINGS)}.")
    return masks


def check_geometry(pairs: Sequence[MaskPair]) -> int:
    """Compare shape, spacing, origin and direction of all pairs by their headers; returns the number of voxels."""
    from unisegdiff_pipeline.io.geometry import geometry_differences
    from unisegdiff_pipeline.io.images import read_header

    problems, voxels = [], 0
    for pair in pairs:
        shape, geometry = read_header(pair.reference)
        predicted_shape, predicted_geometry = read_header(pair.prediction)
        voxels += math.prod(shape[1:])
        if shape[1:] != predicted_shape[1:]:
            problems.append(f"{pair.case_id}: shape {shape[1:]} (Z, Y, X), predicted {predicted_shape[1:]}")
        elif differences := geometry_differences(geometry, predicted_geometry):
            problems.append(f"{pair.case_id}: {'; '.join(differences)}")
    if problems:
        raise UsdError(
            f"{len(problems)} of {len(pairs)} predictions lie on another grid than their reference, so that voxels "
            f"cannot be compared: {_listing(problems, '; ')}. Resample the predictions to the grid of the references."
        )
    return voxels


def score_pair(pair: MaskPair, *, scheme: LabelScheme, spacing_known: bool, check_values: bool) -> CaseScores:
    """Read and score one case."""
    from unisegdiff_pipeline.io.images import read_labels

    reference, predicted = read_labels(pair.reference), read_labels(pair.prediction)
    if check_values:
        _check_values(pair.reference, reference.array, scheme)
        _check_values(pair.prediction, predicted.array, scheme)
    spacing_mm = reference.geometry.spacing_mm
    scores = score_case(reference.array[0], predicted.array[0], scheme, spacing_mm, spacing_known)
    return CaseScores(pair.case_id, tuple(scores))


def _check_values(path: Path, labels: np.ndarray, scheme: LabelScheme) -> None:
    unknown = sorted(set(np.unique(labels).tolist()) - scheme.allowed_values)
    if unknown:
        raise UsdError(
            f"{path} holds the label value(s) {_listing(list(map(str, unknown)))}; dataset.json allows "
            f"{', '.join(map(str, sorted(scheme.allowed_values)))}. Correct the file, or give the dataset.json that "
            f"belongs to it with --dataset-json."
        )


def _score_all(
    score: functools.partial[CaseScores], pairs: Sequence[MaskPair], voxels: int, workers: int | None
) -> list[CaseScores]:
    from unisegdiff_pipeline.io.parallel import choose_workers, map_cases

    if workers is None:
        # Label maps of one case, their masks and what reading them needs: about 16 bytes a voxel.
        memory_gb = 0.3 + 16e-9 * voxels / len(pairs)
        workers = choose_workers(memory_gb, None) if voxels > VOXELS_WORTH_PROCESSES else 0
    names = [pair.case_id for pair in pairs]
    return [result.value for result in map_cases(score, pairs, names=names, workers=workers, description="scoring")]


def _listing(names: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(names) - LISTED_PROBLEMS} more" if len(names) > LISTED_PROBLEMS else ""
    return separator.join(names[:LISTED_PROBLEMS]) + more


def _cell(value: object) -> object:
    return "" if isinstance(value, float) and math.isnan(value) else value
