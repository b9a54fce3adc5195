"""Two folders of masks, one a time point: pairing, reading, and follow_up.csv and follow_up.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.boxes import CroppedLabels, grow_box, join_boxes
from unisegdiff_pipeline.core.csv_tables import read_csv, write_csv
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import composed
from unisegdiff_pipeline.core.serialization import to_jsonable, write_json
from unisegdiff_pipeline.core.units import Units, measured_grid, units_of_files
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.evaluation.follow_up import (
    SAMPLE_STATUSES,
    STATUSES,
    ClassChange,
    FollowUpOptions,
    Status,
    TimePoint,
    compare_time_points,
)
from unisegdiff_pipeline.evaluation.inputs import find_masks, find_repeated, grid_problem
from unisegdiff_pipeline.evaluation.meaning import Meaning
from unisegdiff_pipeline.evaluation.reading import (
    crop_geometry,
    other_values,
    read_mask,
    read_masks,
    require_scored_values,
)
from unisegdiff_pipeline.evaluation.summary import format_table
from unisegdiff_pipeline.evaluation.tables import DIGITS
from unisegdiff_pipeline.evaluation.unified import SourceLabels

PAIRS_HEADER = ["case", "baseline", "follow_up"]
MIN_SAMPLES = 2  # of one sample nothing follows about how sure a change is


@dataclass(frozen=True)
class PatientFiles:
    """Files of one patient; samples are empty where there are none."""

    case_id: str
    baseline: Path
    follow_up: Path
    baseline_samples: tuple[Path, ...] = ()
    follow_up_samples: tuple[Path, ...] = ()

    @property
    def has_samples(self) -> bool:
        """Whether both time points have enough of them for probabilities."""
        return min(len(self.baseline_samples), len(self.follow_up_samples)) >= MIN_SAMPLES


@dataclass(frozen=True)
class PatientChange:
    """One patient at two time points, each class; `other_values` are label values that are not followed."""

    files: PatientFiles
    classes: tuple[ClassChange, ...]
    other_values: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class FollowUp:
    """All patients at two time points.

    Attributes:
        baseline, follow_up: the folders.
        classes: name => label values; those that both time points say something about.
        spacing_known: False says that distances and volumes are nominal, of 2D images in pixels.
        not_paired: cases of either folder that are left out, because only a subset is compared or no pair names them.
        other_values: label values of the masks that are not followed, where only some were asked for.
        source: what the masks at baseline are read by, where they are label maps of one source and the follow-up is
            predicted by a unified model.
    """

    baseline: Path
    follow_up: Path
    classes: Mapping[str, Sequence[int]]
    spacing_known: bool
    units: Units
    options: FollowUpOptions
    patients: tuple[PatientChange, ...]
    not_paired: tuple[str, ...]
    other_values: tuple[int, ...] = ()
    source: SourceLabels | None = None

    def counts(self, class_name: str) -> dict[Status, int]:
        """Lesions of each status over all patients."""
        found: Counter[Status] = Counter()
        for patient in self.patients:
            found.update(next(entry.counts for entry in patient.classes if entry.class_name == class_name))
        return {status: found[status] for status in STATUSES}

    @property
    def num_with_samples(self) -> int:
        """Patients whose probabilities are known."""
        return sum(patient.files.has_samples for patient in self.patients)


@dataclass(frozen=True)
class FollowUpFiles:
    """Where the comparison lies."""

    table: Path
    summary: Path

    @classmethod
    def of(cls, folder: Path) -> FollowUpFiles:
        """The files in the folder of a comparison."""
        return cls(folder / "follow_up.csv", folder / "follow_up.json")


def follow_up_folders(
    baseline: Path,
    follow_up: Path,
    meaning: Meaning,
    options: FollowUpOptions,
    pairs: Path | None = None,
    subset: bool = False,
) -> FollowUp:
    """Compare two time points of all patients.

    Args:
        baseline, follow_up: folders of label maps, or one file each; samples are looked for in `samples` inside.
        meaning: of the label values.
        options: matching rule and thresholds.
        pairs: CSV with the line "case,baseline,follow_up" on top; by default cases of the same name are paired.
        subset: leave out cases that only one folder holds; otherwise they are an error.

    Raises:
        UsdError: naming every case without a partner, every pair on different grids, or a file that is unreadable or
            holds unknown label values.
    """
    patients, not_paired = _find_patients(baseline, follow_up, pairs, subset)
    units = units_of_files(_check_grids(patients), meaning.spacing_known)
    scheme = meaning.scheme
    compared = tuple(_compare(files, meaning, units, options) for files in patients)
    not_followed = sorted({value for patient in compared for value in patient.other_values})
    require_scored_values(any(own.lesions for p in compared for own in p.classes), not_followed, scheme)
    return FollowUp(
        baseline=baseline,
        follow_up=follow_up,
        classes={name: scheme.members[scheme.names.index(name)] for name in _followed(meaning)},
        spacing_known=meaning.spacing_known,
        units=units,
        options=options,
        patients=compared,
        not_paired=tuple(not_paired),
        other_values=tuple(not_followed),
        source=meaning.source,
    )


def write_follow_up(folder: Path, result: FollowUp) -> FollowUpFiles:
    """Write follow_up.csv, a row a lesion, and follow_up.json; undefined values are empty cells and null."""
    files, units = FollowUpFiles.of(folder), result.units
    names = ["case", "class_name", "lesion_id", "status", "baseline_ids", "follow_up_ids"]
    numbers = ["baseline_ml", "follow_up_ml", "change_percent", "change_low_ml", "change_high_ml"]
    numbers += ["baseline_diameter_mm", "follow_up_diameter_mm", "diameter_change_percent"]
    numbers += [f"centroid_{axis}_mm" for axis in "xyz"] + [f"p_{status}" for status in SAMPLE_STATUSES]
    write_csv(files.table, [*names, *map(units.name, numbers)], (row for row in _rows(result)), DIGITS)
    write_json(files.summary, units.named(to_jsonable(_summary(result)), result.classes))
    return files


def follow_up_table(result: FollowUp) -> str:
    """A line a class with the lesions of each status, and the rule below."""
    rows = [("class", "lesions", *STATUSES)]
    for name in result.classes:
        counts = result.counts(name)
        rows.append((name, str(sum(counts.values())), *(str(counts[status]) for status in STATUSES)))
    return f"{format_table(rows)}\n{rules_in_words(result)}"


def rules_in_words(result: FollowUp) -> str:
    """Matching rule, thresholds, and what probabilities rest on."""
    options, units = result.options, result.units
    text = f"{options.rule.describe(units)}; {options.thresholds.describe(units)}."
    known = result.num_with_samples
    of_all = "" if known == len(result.patients) else f" ({known} of {len(result.patients)} patients)"
    samples = f" Probabilities and 90 % intervals are over all pairs of samples of the two time points{of_all}."
    none = (
        f" No probabilities: they need at least {MIN_SAMPLES} samples of both time points, in samples/ of each folder."
    )
    return text[:1].upper() + text[1:] + (samples if known else none)


def _find_patients(
    baseline: Path, follow_up: Path, pairs: Path | None, subset: bool
) -> tuple[list[PatientFiles], list[str]]:
    if baseline.is_file() and follow_up.is_file():
        if pairs is not None:
            raise UsdError(f"--pairs {pairs} pairs cases of folders, but two files are given; leave it out.")
        from unisegdiff_pipeline.io.images import split_ending

        return [PatientFiles(split_ending(follow_up.name)[0], baseline, follow_up)], []
    before, after = find_masks(baseline), find_masks(follow_up)
    if pairs is None:
        named = {case: (case, case) for case in sorted(before.keys() & after.keys())}
        alone = sorted(before.keys() ^ after.keys())
        if not named:
            raise UsdError(
                f"{baseline} and {follow_up} have no case name in common; name the pairs in a CSV file with --pairs."
            )
        if alone and not subset:
            raise UsdError(
                f"{len(alone)} case(s) lie in only one of {baseline} and {follow_up}: {listed(alone)}. Add the masks, "
                f"name the pairs with --pairs, or compare only what both hold with --subset."
            )
    else:
        named = _read_pairs(pairs, before, after, baseline, follow_up)
        ones, others = zip(*named.values(), strict=True)
        alone = sorted((before.keys() - {*ones}) | (after.keys() - {*others}))
    samples = [_samples(folder, masks) for folder, masks in ((baseline, before), (follow_up, after))]
    patients = [
        PatientFiles(case, before[one], after[other], samples[0].get(one, ()), samples[1].get(other, ()))
        for case, (one, other) in named.items()
    ]
    return patients, alone


def _read_pairs(
    path: Path, before: Mapping[str, Path], after: Mapping[str, Path], baseline: Path, follow_up: Path
) -> dict[str, tuple[str, str]]:
    if not path.is_file():
        raise UsdError(
            f'--pairs is {path}, which is no file; give a CSV with the line "{",".join(PAIRS_HEADER)}" on top.'
        )
    rows = read_csv(path)
    if not rows or [cell.strip().lower() for cell in rows[0][1]] != PAIRS_HEADER:
        raise UsdError(f'{path} must begin with the line "{",".join(PAIRS_HEADER)}"; add it.')
    named: dict[str, tuple[str, str]] = {}
    for line, row in rows[1:]:
        cells = [composed(cell.strip()) for cell in row]
        if len(cells) != 3 or not all(cells):
            raise UsdError(
                f"{path} line {line} is {','.join(row)[:200]!r}; each line holds a case and the names of its two masks."
            )
        case, one, other = cells
        for name, masks, folder in ((one, before, baseline), (other, after, follow_up)):
            if name not in masks:
                raise UsdError(f"{path} line {line} names {name!r}, but {folder} holds no such mask; correct the line.")
        if case in named:
            raise UsdError(f"{path} line {line} names the case {case!r} again; give each pair a name of its own.")
        named[case] = (one, other)
    if not named:
        raise UsdError(f"{path} names no pair; add a line for each.")
    return named


def _samples(folder: Path, masks: Mapping[str, Path]) -> Mapping[str, tuple[Path, ...]]:
    inner = folder / "samples"
    return find_repeated(inner, "sample", masks) if inner.is_dir() else {}


def _check_grids(patients: Sequence[PatientFiles]) -> list[bool]:
    """Refuse pairs on different grids; returns which are 2D images."""
    from unisegdiff_pipeline.io.images import read_header

    problems, is_2d = [], []
    for patient in patients:
        grid = read_header(patient.baseline)
        is_2d.append(grid[1].is_2d)
        if problem := grid_problem(grid, read_header(patient.follow_up), "at follow-up"):
            problems.append(f"{patient.case_id}: {problem}")
    if problems:
        raise UsdError(
            f"{len(problems)} of {len(patients)} patients have the two time points on different grids: "
            f"{listed(problems, separator='; ')}. Register the follow-up to the baseline and resample its masks (and "
            f"samples) to the grid of the baseline first."
        )
    return is_2d


def _followed(meaning: Meaning) -> list[str]:
    """Classes that are compared: of label maps of a source those that it annotates, as others would all be new."""
    source = meaning.source
    return [name for name in meaning.scheme.names if source is None or name in source.annotated]


def _compare(files: PatientFiles, meaning: Meaning, units: Units, options: FollowUpOptions) -> PatientChange:
    scheme, check = meaning.scheme, meaning.check_values
    before = read_mask(files.baseline, scheme, check_values=check, source=meaning.source)
    after = read_mask(files.follow_up, scheme, before, check)
    masks = [CroppedLabels.of(volume.array[0]) for volume in (before, after)]
    samples: list[list[CroppedLabels]] = [[], []]
    if files.has_samples:
        samples = [
            read_masks(files.baseline_samples, scheme, before, check, meaning.source),
            read_masks(files.follow_up_samples, scheme, before, check),
        ]
    shape = before.array.shape[1:]
    box = join_boxes([labels.box for labels in (*masks, *samples[0], *samples[1])]) or ((0, 1),) * 3
    box = grow_box(box, (1,) * 3, shape)  # so that a lesion in one slice of a volume is not taken for a 2D image
    cropped = [labels.within(box) for labels in masks]
    hidden = scheme.ignored(cropped[0]) | scheme.ignored(cropped[1]) if scheme.ignore_value is not None else None
    before_masks, after_masks = (
        [_class_masks(labels, scheme, hidden) for labels in (one, *(sample.within(box) for sample in drawn))]
        for one, drawn in zip(cropped, samples, strict=True)
    )
    geometry = crop_geometry(measured_grid(before.geometry, units), box)
    followed = _followed(meaning)
    classes = tuple(
        compare_time_points(name, _time_point(before_masks, i), _time_point(after_masks, i), geometry, options)
        for i, name in enumerate(scheme.names)
        if name in followed
    )
    others = () if check else tuple(value for labels in cropped for value in other_values(labels, scheme))
    return PatientChange(files, classes, others)


def _time_point(masks: Sequence[Sequence[np.ndarray]], index: int) -> TimePoint:
    """One class of a mask and, after it, of its samples."""
    first, *samples = (of_classes[index] for of_classes in masks)
    return TimePoint(first, samples)


def _class_masks(labels: np.ndarray, scheme: LabelScheme, hidden: np.ndarray | None) -> list[np.ndarray]:
    """A mask a class; False where either time point says to ignore."""
    masks = [mask for _, mask in scheme.class_masks(labels)]
    return masks if hidden is None else [mask & ~hidden for mask in masks]


def _rows(result: FollowUp) -> list[list[object]]:
    rows: list[list[object]] = []
    for patient in result.patients:
        for entry in patient.classes:
            for lesion in entry.lesions:
                chances = [None if lesion.probability is None else lesion.probability[s] for s in SAMPLE_STATUSES]
                rows.append(
                    [
                        patient.files.case_id,
                        entry.class_name,
                        lesion.lesion_id,
                        lesion.status,
                        ";".join(map(str, lesion.baseline_ids)),
                        ";".join(map(str, lesion.follow_up_ids)),
                        lesion.baseline_ml,
                        lesion.follow_up_ml,
                        lesion.change_percent,
                        lesion.change_ml.low,
                        lesion.change_ml.high,
                        lesion.baseline_diameter_mm,
                        lesion.follow_up_diameter_mm,
                        lesion.diameter_change_percent,
                        *lesion.centroid_mm,
                        *chances,
                    ]
                )
    return rows


def _summary(result: FollowUp) -> dict[str, Any]:
    options = result.options
    return {
        "baseline": str(result.baseline),
        "follow_up": str(result.follow_up),
        "units": result.units,
        "spacing_known": result.spacing_known,
        "settings": {
            "classes": result.classes,
            "lesion_matching": options.rule,
            "thresholds": options.thresholds,
            "in_words": rules_in_words(result),
        },
        "not_paired": result.not_paired,
        "not_followed_values": result.other_values,
        "num_patients": len(result.patients),
        "num_patients_with_samples": result.num_with_samples,
        "classes": {name: {"lesions": result.counts(name)} for name in result.classes},
        "patients": [
            {
                "case": patient.files.case_id,
                "samples": [len(patient.files.baseline_samples), len(patient.files.follow_up_samples)],
                "classes": {
                    entry.class_name: {
                        "lesions": entry.counts,
                        "baseline_ml": entry.baseline_ml,
                        "follow_up_ml": entry.follow_up_ml,
                        "change_low_ml": entry.change_ml.low,
                        "change_high_ml": entry.change_ml.high,
                    }
                    for entry in patient.classes
                },
            }
            for patient in result.patients
        ],
    }
