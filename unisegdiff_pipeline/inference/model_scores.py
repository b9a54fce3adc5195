"""What a model's folds scored on their validation cases, without the names of cases: scores.json of an archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from unisegdiff_pipeline.core.bounds import Count, Undefined
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.serialization import from_jsonable, read_dataclass, read_object
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.archive_format import SCORES_NAME
from unisegdiff_pipeline.io.prediction_files import scores_of_fold

REQUEST = "request.json"
_PARTS = ("train_cases", "holdout_cases", "validation_cases")

Score = Annotated[float, Undefined()]


@dataclass(frozen=True)
class ClassScores:
    """One class over the validation cases of a fold; as in `evaluation.summary.ClassSummary`."""

    class_name: str
    num_cases: Count
    num_scored: Count
    num_false_positive: Count
    mean_dice: Score
    mean_iou: Score


@dataclass(frozen=True)
class FoldScores:
    """What one fold was trained on and scored.

    Attributes:
        fold: "0", "1", ..., "all".
        num_train, num_held_out, num_validation: cases that weights were learned from, that settings were chosen on,
            and that were to be predicted at the end; None where it is not known.
        num_not_validated: validation cases that there was no time for.
        classes: scores; empty where nothing was validated.
        cases: scores of each case, on request only.
    """

    fold: str
    num_train: Count | None
    num_held_out: Count | None
    num_validation: Count | None
    num_not_validated: Count
    classes: tuple[ClassScores, ...]
    cases: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class ModelScores:
    """All folds, each scored by its own network alone on cases that this network never saw."""

    folds: tuple[FoldScores, ...]

    def pooled(self) -> tuple[ClassScores, ...]:
        """Each class over the validation cases of all folds; means weigh every case alike."""
        names = dict.fromkeys(c.class_name for fold in self.folds for c in fold.classes)
        return tuple(
            _pooled(name, [c for fold in self.folds for c in fold.classes if c.class_name == name]) for name in names
        )


def read_scores(model_folder: Path, folds: Sequence[str], with_cases: bool = False) -> ModelScores:
    """The scores of some folds of a model folder: as training left them, else as the archive brought them.

    Raises:
        UsdError: a file that is damaged.
    """
    path = model_folder / SCORES_NAME
    brought = {fold.fold: fold for fold in read_dataclass(ModelScores, path).folds} if path.is_file() else {}
    found = []
    for fold in folds:
        folder = model_folder / f"fold_{fold}"
        if not scores_of_fold(folder).is_file() and fold in brought:
            found.append(brought[fold])
        else:
            found.append(_fold_scores(folder, fold, with_cases))
    return ModelScores(tuple(found))


def case_names(model_folder: Path, folds: Sequence[str]) -> frozenset[str]:
    """Names of the cases that the folds know: those that were trained on, held out and validated."""
    names: set[str] = set()
    for fold in folds:
        request = _read(model_folder / f"fold_{fold}" / REQUEST)
        for part in _PARTS:
            names.update(from_jsonable(tuple[str, ...], request.get(part, []), part))
    return frozenset(names)


def _fold_scores(folder: Path, fold: str, with_cases: bool) -> FoldScores:
    path = scores_of_fold(folder)
    request, stored = _read(folder / REQUEST), _read(path)
    trained, held_out, validation = (None if part not in request else len(request[part]) for part in _PARTS)
    try:
        classes = [] if stored.get("summary") is None else stored["summary"]["classes"]
        kept = [{name: of_class.get(name) for name in ClassScores.__annotations__} for of_class in classes]
        return FoldScores(
            fold,
            trained,
            held_out,
            validation,
            num_not_validated=len(stored.get("not_validated") or []),
            classes=from_jsonable(tuple[ClassScores, ...], kept, "summary.classes"),
            cases=tuple(stored.get("cases") or []) if with_cases else None,
        )
    except (KeyError, TypeError, AttributeError, UsdError):
        raise UsdError(
            f"{path} holds no scores as training writes them; validate the fold again with usd_train --val."
        ) from None


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _pooled(name: str, results: Sequence[ClassScores]) -> ClassScores:
    def mean(of: str) -> float:
        return mean_of_defined(getattr(r, of) for r in results for _ in range(r.num_scored))

    return ClassScores(
        name,
        sum(r.num_cases for r in results),
        sum(r.num_scored for r in results),
        sum(r.num_false_positive for r in results),
        mean("mean_dice"),
        mean("mean_iou"),
    )
