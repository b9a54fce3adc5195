"""What is scored: masks by case, and the probabilities, samples, raters and uncertainty maps that belong to them.

| what | looked for in | names |
|---|---|---|
| masks | REF, PRED | CASE.ext |
| probabilities | PRED/probabilities, else PRED | CASE.npz (ours, nnU-Net's), or CASE.ext with real numbers |
| samples | PRED/samples | CASE_sampleN.ext, CASE/any name.ext, or any name/CASE.ext |
| raters | beside REF: ratersTr for labelsTr | CASE_raterN.ext, CASE/any name.ext, or any name/CASE.ext |
| uncertainty | PRED/uncertainty | CASE.ext |
| groups | beside REF: groups.csv | lines "case,group" |

Where REF is the raw folder of a unified data set, masks, raters and groups are those of its sources; cases are named
SOURCE__CASE.

A folder that the user names must serve every case (raters and groups: at least one). One that was only found may serve
some; the values of the other cases are undefined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.options import EvaluationOptions
from unisegdiff_pipeline.evaluation.unified import SourceLabels, is_unified, unified_cases
from unisegdiff_pipeline.io.paths import places_of
from unisegdiff_pipeline.io.prediction_files import MANIFEST

if TYPE_CHECKING:
    from unisegdiff_pipeline.core.geometry import Geometry, Shape
    from unisegdiff_pipeline.io.raw_dataset import RawCase


@dataclass(frozen=True)
class InputFolders:
    """Where everything lies; None where there is nothing of the kind.

    Attributes:
        reference, prediction: folders of masks, or one file each; the reference may be a unified data set.
        named: names of those of the other fields that the user has given, and which must therefore be complete.
        unified: the reference is the raw folder of a unified data set.
    """

    reference: Path
    prediction: Path
    probabilities: Path | None = None
    samples: Path | None = None
    raters: Path | None = None
    uncertainty: Path | None = None
    groups: Path | None = None
    named: frozenset[str] = field(default_factory=frozenset)
    unified: bool = False


@dataclass(frozen=True)
class CaseInputs:
    """Files of one case; `samples` and `raters` in the order of their numbers or names, `group` for the bootstrap.

    `source` says what reference and raters of a unified data set mean, whose `images` are known, too.
    """

    case_id: str
    reference: Path
    prediction: Path
    probability: Path | None = None
    samples: tuple[Path, ...] = ()
    raters: tuple[Path, ...] = ()
    uncertainty: Path | None = None
    group: str | None = None
    source: SourceLabels | None = None
    images: tuple[Path, ...] = ()

    @property
    def has_foreign_arrays(self) -> bool:
        """Whether the probabilities are an array without a grid that another program has written, perhaps turned."""
        is_array = self.probability is not None and self.probability.suffix.lower() == ".npz"
        return is_array and not (self.prediction.parent / MANIFEST).is_file()

    def knows_spacing(self, of_data_set: bool) -> bool:
        """Whether the spacing is known, and with it the patient's sides; of a unified data set by the case's source."""
        return of_data_set if self.source is None else self.source.spacing_known


@dataclass(frozen=True)
class Inputs:
    """All cases in the order of their names, and the references that are left out because only a subset is scored."""

    folders: InputFolders
    cases: tuple[CaseInputs, ...]
    not_predicted: tuple[str, ...] = ()

    def restricted(self, case_ids: Collection[str]) -> Inputs:
        """The same files, of these cases only; references of the others count as not predicted."""
        kept = tuple(case for case in self.cases if case.case_id in case_ids)
        dropped = {case.case_id for case in self.cases} - {case.case_id for case in kept}
        return replace(self, cases=kept, not_predicted=tuple(sorted({*self.not_predicted, *dropped})))


def discover_folders(reference: Path, prediction: Path, options: EvaluationOptions) -> InputFolders:
    """Take the folders that the options name, and for the others those that lie where prediction writes them.

    Raises:
        UsdError: a named folder or file is not there.
    """
    asked = {name: getattr(options, name) for name in ("probabilities", "samples", "raters", "uncertainty", "groups")}
    named = {name: Path(path) for name, path in asked.items() if path is not None}
    for name, path in named.items():
        if name == "groups" and not path.is_file():
            raise UsdError(f'--groups is {path}, which is no file; give a CSV file with the line "case,group" on top.')
        if name != "groups" and not path.is_dir():
            raise UsdError(f"--{name} is {path}, which is no folder; give the folder that holds the files.")
    unified = is_unified(reference)
    if unified and "raters" in named:
        raise UsdError(
            f"--raters is {named['raters']}, but {reference} is a unified data set, whose sources bring the raters of "
            f"their cases; leave the flag out."
        )
    beside = {"raters": reference, "groups": reference} if unified else _places_beside(reference)
    places = {**_default_places(prediction), **beside, **named}
    return InputFolders(
        reference,
        prediction,
        probabilities=places.get("probabilities"),
        samples=places.get("samples"),
        raters=places.get("raters"),
        uncertainty=places.get("uncertainty"),
        groups=places.get("groups"),
        named=frozenset(named),
        unified=unified,
    )


def collect_inputs(folders: InputFolders, *, subset: bool = False, more_predictions: bool = False) -> Inputs:
    """Find the files of every case.

    Args:
        folders: where to look.
        subset: score only the predicted cases; otherwise a reference without a prediction is an error.
        more_predictions: leave out predictions without a reference; otherwise they are an error.

    Raises:
        UsdError: naming the cases that have no reference, no prediction, or nothing in a folder that the user named,
            and those that only such a folder holds.
    """
    of_sources = unified_cases(folders.reference) if folders.unified else {}
    cases, not_predicted = find_pairs(
        folders.reference,
        folders.prediction,
        subset=subset,
        more_predictions=more_predictions,
        references={name: raw.label_path for name, (raw, _) in of_sources.items() if raw.label_path} or None,
    )
    cases = [_of_source(case, *of_sources[case.case_id]) for case in cases] if folders.unified else cases
    names = [case.case_id for case in cases]
    probabilities = _one_per_case(folders, "probabilities", names, subset)
    uncertainty = _one_per_case(folders, "uncertainty", names, subset)
    samples = _several_per_case(folders, "samples", names, subset)
    raters = {} if folders.unified else _several_per_case(folders, "raters", names, True)
    own_groups = folders.unified and "groups" not in folders.named
    groups = {case.case_id: case.group for case in cases} if own_groups else _read_groups(folders.groups)
    if "groups" in folders.named and not any(name in groups for name in names):
        raise UsdError(
            f"--groups {folders.groups} names none of {counted(len(names), 'case')}: {listed(names)}. Write the "
            f"names of cases into its first column, as those of files without their ending."
        )
    return Inputs(
        folders=folders,
        cases=tuple(
            replace(
                case,
                probability=probabilities.get(case.case_id),
                samples=samples.get(case.case_id, ()),
                raters=raters.get(case.case_id, case.raters),
                uncertainty=uncertainty.get(case.case_id),
                group=groups.get(case.case_id),
            )
            for case in cases
        ),
        not_predicted=tuple(not_predicted),
    )


def find_pairs(
    reference: Path,
    prediction: Path,
    *,
    subset: bool,
    more_predictions: bool = False,
    references: Mapping[str, Path] | None = None,
) -> tuple[list[CaseInputs], list[str]]:
    """Match label files by case name; returns the cases and the references that have no prediction.

    `references` names the label files of a reference that is no folder of them.
    """
    from unisegdiff_pipeline.io.images import split_ending

    if reference.is_file() and prediction.is_file():
        return [CaseInputs(split_ending(prediction.name)[0], reference, prediction)], []
    references = find_masks(reference) if references is None else references
    predictions = find_masks(prediction)
    unknown = sorted(predictions.keys() - references.keys())
    missing = sorted(references.keys() - predictions.keys())
    if unknown and not more_predictions:
        raise UsdError(
            f"{prediction} holds {len(unknown)} prediction(s) that have no reference in {reference}: "
            f"{listed(unknown)}. Give the folder of the matching references, or move these files away."
        )
    if missing and not subset:
        raise UsdError(
            f"{prediction} lacks predictions of {counted(len(missing), 'reference case')}: {listed(missing)}. "
            f"Predict them, or score only what is there with --subset."
        )
    common = sorted(predictions.keys() & references.keys())
    return [CaseInputs(case, references[case], predictions[case]) for case in common], missing


def _of_source(case: CaseInputs, raw: RawCase, source: SourceLabels) -> CaseInputs:
    """A case with what its source says of it."""
    return replace(case, raters=raw.rater_paths, group=raw.group, source=source, images=raw.image_paths)


def find_masks(folder: Path) -> dict[str, Path]:
    """Label files of a folder by case name (file name without its ending).

    Raises:
        UsdError: no such folder, no label file, or two of one case.
    """
    from unisegdiff_pipeline.io.images import SUPPORTED_ENDINGS

    if not folder.is_dir():
        raise UsdError(f"{folder} is no folder; give a folder of label files, or one file for each of REF and PRED.")
    masks: dict[str, Path] = {}
    for case, path in _image_files(folder):
        if case in masks:
            raise UsdError(
                f"{folder} holds two label files of case {case}: {masks[case].name} and {path.name}; remove one."
            )
        masks[case] = path
    if not masks:
        inside = [name for name in ("labelsTr", "labelsTs") if (folder / name).is_dir()]
        give = f"; its labels lie in {' and '.join(inside)}: give {folder / inside[0]}" if inside else ""
        raise UsdError(f"{folder} holds no label file{give}. Supported endings are {', '.join(SUPPORTED_ENDINGS)}.")
    return masks


def find_repeated(folder: Path, word: str, cases: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Several label files per case, in one of the three forms that the module names.

    Args:
        folder: where to look.
        word: "sample" or "rater", the word before the number in the file names.
        cases: names of cases; a folder inside with such a name holds files of this case only.

    Raises:
        UsdError: two files of the same number or name, as with two endings.
    """
    from unisegdiff_pipeline.core.names import composed

    known = set(cases)
    found: dict[str, list[tuple[tuple[int, str], Path]]] = {}
    numbered = re.compile(rf"(?P<case>.+)_{word}_?(?P<number>\d+)")
    for name, path in _image_files(folder):
        if match := numbered.fullmatch(name):
            found.setdefault(match["case"], []).append(((int(match["number"]), ""), path))
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for name, path in _image_files(inner):
            # Within a folder the order is by name; of folders that each hold one file of a case, by theirs.
            folder_name = composed(inner.name)
            case, key = (folder_name, name) if folder_name in known else (name, folder_name)
            found.setdefault(case, []).append(((_last_number(key), key), path))
    for case, files in found.items():
        places = dict(files)
        if twice := next((path for key, path in files if places[key] != path), None):
            other = next(places[key] for key, path in files if path == twice)
            raise UsdError(f"{folder} holds one {word} of case {case} twice: {twice} and {other}; remove one.")
    return {case: tuple(path for _, path in sorted(files)) for case, files in found.items()}


def check_geometry(cases: Sequence[CaseInputs]) -> int:
    """Compare shape, spacing, origin and direction of all masks by their headers; returns the number of voxels.

    Raises:
        UsdError: naming every case whose prediction lies on another grid than its reference.
    """
    from unisegdiff_pipeline.io.images import read_header

    problems, voxels = [], 0
    for case in cases:
        grid = read_header(case.reference)
        voxels += math.prod(grid[0][1:])
        if problem := grid_problem(grid, read_header(case.prediction), "predicted"):
            problems.append(f"{case.case_id}: {problem}")
    if problems:
        raise UsdError(
            f"{len(problems)} of {len(cases)} predictions lie on another grid than their reference, so that voxels "
            f"cannot be compared: {listed(problems, separator='; ')}. Resample the predictions to the grid of the "
            f"references."
        )
    return voxels


def grid_problem(grid: tuple[Shape, Geometry], other: tuple[Shape, Geometry], what: str) -> str:
    """How the grid of another file, called `what`, differs: shape (1, Z, Y, X) or geometry; "" where it does not."""
    from unisegdiff_pipeline.core.geometry import geometry_differences, same_plane

    (shape, geometry), (other_shape, other_geometry) = grid, other
    if same_plane(other_shape[1:], other_geometry, shape[1:], geometry):
        return ""
    if shape[1:] != other_shape[1:]:
        return f"shape {shape[1:]} (Z, Y, X), {what} {other_shape[1:]}"
    return "; ".join(geometry_differences(geometry, other_geometry, shape[1:]))


def are_2d(cases: Sequence[CaseInputs]) -> list[bool]:
    """Which references are 2D images, by their headers."""
    from unisegdiff_pipeline.io.images import read_header

    return [read_header(case.reference)[1].is_2d for case in cases]


def _default_places(prediction: Path) -> dict[str, Path]:
    places: dict[str, Path] = {}
    if prediction.is_dir():
        for name in ("probabilities", "samples", "uncertainty"):
            if (prediction / name).is_dir():
                places[name] = prediction / name
        if "probabilities" not in places and any(prediction.glob("*.npz")):  # nnU-Net puts them beside the masks
            places["probabilities"] = prediction
    return places


def _places_beside(reference: Path) -> dict[str, Path]:
    places: dict[str, Path] = {}
    if reference.is_dir():
        for folder in places_of(reference):
            raters = folder.with_name(folder.name.replace("labels", "raters"))
            if raters != folder and raters.is_dir():
                places.setdefault("raters", raters)
            if (groups := folder.with_name("groups.csv")).is_file():
                places.setdefault("groups", groups)
    return places


def _one_per_case(folders: InputFolders, name: str, cases: Sequence[str], subset: bool) -> Mapping[str, Path]:
    folder: Path | None = getattr(folders, name)
    if folder is None:
        return {}
    from unisegdiff_pipeline.core.names import composed

    arrays = sorted(path for path in folder.glob("*.npz") if path.name[0] != ".")
    files = [(composed(path.name).removesuffix(".npz"), path) for path in arrays]
    if folder != folders.prediction:  # where the masks lie, other files than .npz are masks
        files += _image_files(folder)
    result: dict[str, Path] = {}
    for case, path in files:
        if result.setdefault(case, path) != path:
            raise UsdError(f"{folder} holds two files of case {case}: {result[case].name} and {path.name}; remove one.")
    _check_complete(folders, name, result.keys(), cases, subset)
    return result


def _several_per_case(
    folders: InputFolders, name: str, cases: Sequence[str], subset: bool
) -> Mapping[str, tuple[Path, ...]]:
    folder: Path | None = getattr(folders, name)
    if folder is None:
        return {}
    result = find_repeated(folder, name.removesuffix("s"), cases)
    _check_complete(folders, name, result.keys(), cases, subset)
    return result


def _check_complete(folders: InputFolders, name: str, found: Iterable[str], cases: Sequence[str], subset: bool) -> None:
    """Refuse a folder that the user named where it lacks cases or, unless a subset is scored, holds unknown ones."""
    if name not in folders.named:
        return
    folder = getattr(folders, name)
    present = set(found)
    missing = [case for case in cases if case not in present]
    unknown = sorted(present.difference(cases))
    if name == "raters" and len(missing) < len(cases):
        missing = []  # in practice only some cases are annotated repeatedly
    if missing:
        raise UsdError(
            f"--{name} {folder} holds nothing of {len(missing)} of {counted(len(cases), 'case')}: {listed(missing)}. "
            f"Complete the folder (the file names begin with the case), or leave the flag out."
        )
    if unknown and not subset:
        raise UsdError(
            f"--{name} {folder} holds files of {counted(len(unknown), 'case')} not in {folders.prediction}: "
            f"{listed(unknown)}. Give the folder that belongs to the prediction, or score only what is there with "
            f"--subset."
        )


def _read_groups(path: Path | None) -> dict[str, str]:
    from unisegdiff_pipeline.io.raw_dataset import read_groups

    return {} if path is None else read_groups(path)


def _image_files(folder: Path) -> list[tuple[str, Path]]:
    """(name without ending, path) of all files with a supported ending, sorted by name; hidden ones are left out."""
    from unisegdiff_pipeline.core.names import composed
    from unisegdiff_pipeline.io.images import split_ending

    files = []
    for path in sorted(folder.iterdir()):
        name, ending = split_ending(composed(path.name))
        if ending and not path.name.startswith("."):
            files.append((name, path))
    return files


def _last_number(text: str) -> int:
    """Number at the end of a name, so that sample10 follows sample9; 0 without one."""
    match = re.search(r"(\d+)$", text)
    return int(match[1]) if match else 0
