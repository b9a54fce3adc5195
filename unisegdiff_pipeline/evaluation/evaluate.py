"""Score a folder of predictions against references: geometry first, then values, then all that the files allow."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import remove_stale_temporaries
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import to_jsonable, write_json
from unisegdiff_pipeline.core.units import Units, measured_grid, units_of, units_of_files
from unisegdiff_pipeline.core.words import joined, listed
from unisegdiff_pipeline.evaluation.aggregate import ClassReport, MetricSummary, mean_over_classes, report_classes
from unisegdiff_pipeline.evaluation.by_source import SourcesReport, report_sources
from unisegdiff_pipeline.evaluation.calibration import DEFAULT_MARGIN_MM, DIAGONAL_FRACTION, NUM_BINS, PROBABILITY_FLOOR
from unisegdiff_pipeline.evaluation.case import (
    CaseResult,
    CaseVolumes,
    rater_distances_mm,
    score_case_fully,
    score_volumes,
)
from unisegdiff_pipeline.evaluation.case_probability import CaseProbabilityReport, report_case_probability
from unisegdiff_pipeline.evaluation.inputs import (
    CaseInputs,
    Inputs,
    are_2d,
    check_geometry,
    collect_inputs,
    discover_folders,
)
from unisegdiff_pipeline.evaluation.meaning import Meaning, scheme_of_values
from unisegdiff_pipeline.evaluation.options import (
    CASE_CONFIDENCE,
    LESION_CONFIDENCE,
    CaseConfidence,
    CaseSettings,
    EvaluationOptions,
    LesionConfidence,
)
from unisegdiff_pipeline.evaluation.pair_metrics import grid_of, require_equal_shapes
from unisegdiff_pipeline.evaluation.profiles.registry import find_profile
from unisegdiff_pipeline.evaluation.profiles.report import ProfileReport, profile_file, report_profile, write_profile
from unisegdiff_pipeline.evaluation.reading import require_scored_values
from unisegdiff_pipeline.evaluation.run_comparison import RankedRun, RunComparison, compare_runs, rank_runs
from unisegdiff_pipeline.evaluation.summary import Summary, summarise
from unisegdiff_pipeline.evaluation.tables import write_lesions, write_metrics
from unisegdiff_pipeline.evaluation.unified import SourceLabels
from unisegdiff_pipeline.io.endings import has_native_reader
from unisegdiff_pipeline.io.prediction_files import validated_since

LOGGER = logging.getLogger(__name__)
# Below this many voxels in all files together, starting worker processes takes longer than scoring.
VOXELS_WORTH_PROCESSES = 30_000_000
PRELOADED = ("unisegdiff_pipeline.evaluation.case", "unisegdiff_pipeline.io.images", "scipy.spatial", "cc3d", "nibabel")


@dataclass(frozen=True)
class FolderSummary:
    """What summary.json holds; undefined values are null there.

    Attributes:
        reference, prediction: what was compared.
        spacing_known: False says that all distances and volumes are nominal, or of 2D images in pixels.
        units: of all sizes and distances.
        settings: every choice that the scores depend on.
        not_predicted: references without a prediction, left out because a subset was asked for.
        mean: each metric over all classes; see `aggregate.mean_over_classes`.
        by_source: of a unified data set the same by source; else None, and not in summary.json.
        case_probability: how well cases.csv beside the masks tells cases with and without lesion apart; None, and not
            in summary.json, without such a table or cases of both kinds.
        classes: each class over all cases.
        against: other runs on the same cases.
        ranking: all runs, best first; empty without others.
    """

    reference: str
    prediction: str
    spacing_known: bool
    units: Units
    settings: dict[str, Any]
    not_predicted: tuple[str, ...]
    mean: dict[str, MetricSummary]
    classes: tuple[ClassReport, ...]
    against: tuple[RunComparison, ...]
    ranking: tuple[RankedRun, ...]
    by_source: SourcesReport | None = None
    case_probability: CaseProbabilityReport | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names of classes and sources, which are keys of the settings and belong to no unit."""
        return frozenset((*self.settings["classes"], *self.settings.get("sources", ())))

    @property
    def surface_dice(self) -> str:
        """Name of the surface Dice at the first tolerance, which stands for all in tables; empty without any."""
        tolerances = self.settings["surface_dice_tolerances_mm"]
        return f"surface_dice_{tolerances[0]:g}mm" if tolerances else ""


@dataclass(frozen=True)
class WrittenFiles:
    """Where the scores of an evaluation lie."""

    metrics: Path
    lesions: Path
    summary: Path

    @classmethod
    def of(cls, folder: Path) -> WrittenFiles:
        """The files in the folder of an evaluation."""
        return cls(folder / "metrics.csv", folder / "lesion_scores.csv", folder / "summary.json")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a prediction folder.

    Attributes:
        inputs: files of every case.
        options: choices of the user.
        cases: per case and class, in the order of the case names.
        report: over all cases.
        profiles: over all cases, by the rules of challenges.
    """

    inputs: Inputs
    options: EvaluationOptions
    cases: tuple[CaseResult, ...]
    report: FolderSummary
    profiles: tuple[ProfileReport, ...] = ()

    def __repr__(self) -> str:
        scores, classes = self.summary, ", ".join(report.class_name for report in self.report.classes)
        return f"Evaluation({len(self.cases)} cases, classes: {classes}, mean Dice {scores.mean_dice:.3f})"

    @property
    def summary(self) -> Summary:
        """Overlap of all cases alone, as training reports it."""
        return summarise([case.overlap for case in self.cases])

    @property
    def not_predicted(self) -> tuple[str, ...]:
        """References that are left out, because the prediction or a run that it is compared with lacks them."""
        return self.inputs.not_predicted

    def write(self, folder: Path) -> WrittenFiles:
        """Write metrics.csv, lesion_scores.csv (undefined cells are empty) and summary.json (undefined: null).

        Columns and keys are named by the units of the data; see `core.units`.
        """
        remove_stale_temporaries(folder, below=True)  # of evaluations that were killed
        files = WrittenFiles.of(folder)
        units = self.report.units
        write_metrics(files.metrics, self.cases, self.options.tolerances_mm, units)
        write_lesions(files.lesions, self.cases, units)
        for profile in self.profiles:
            write_profile(folder / profile_file(profile.name), profile.name, self.cases, units)
        report = to_jsonable(self.report)
        for name in ("by_source", "case_probability"):
            if getattr(self.report, name) is None:
                del report[name]
        profiles = {"profiles": {profile.name: profile for profile in self.profiles}} if self.profiles else {}
        write_json(files.summary, units.named(report | to_jsonable(profiles), self.report.names))
        return files


def evaluate_folders(
    reference: Path,
    prediction: Path,
    meaning: Meaning,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Score all cases of two folders (or one file against another).

    Args:
        reference: folder of reference label maps, CASE + ending.
        prediction: folder of predicted label maps with the same case names; the endings may differ.
        meaning: of the label values.
        options: tolerances, matching rule, what else is scored, and the like.

    Raises:
        UsdError: naming every missing case, every pair of different shape or geometry, or every case that fails.
    """
    options = options or EvaluationOptions()
    _check_profiles(options)
    subset, against = options.subset, tuple(map(Path, options.against))
    for folder in (prediction, *against):
        if former := validated_since(folder):
            folds = joined([f"fold {fold}" for fold in former])
            LOGGER.warning("%s holds earlier results of %s; usd_train with FOLD cv gathers it again", folder, folds)
    inputs = collect_inputs(discover_folders(reference, prediction, options), subset=subset)
    scored, *names = run_names([prediction, *against])
    runs = {scored: inputs}
    for name, other in zip(names, against, strict=True):
        runs[name] = _other_inputs(inputs, other, subset)
    if subset and prediction.is_dir():
        runs = _common_cases(runs)
    if meaning.source is not None:
        runs = {name: _of_source(run, meaning.source) for name, run in runs.items()}
    inputs = runs[scored]
    voxels = [check_geometry(run.cases) for run in runs.values()]
    settings = CaseSettings(
        meaning.scheme,
        meaning.spacing_known,
        meaning.check_values,
        options.tolerances_mm,
        options.rule,
        confidence=_confidence(inputs.cases),
        lesion_confidence=_lesion_confidence(inputs.cases),
        units=units_of_files(are_2d(inputs.cases), meaning.spacing_known),
        profiles=options.profiles,
        min_lesion_ml=options.min_lesion_ml,
    )
    settings = _with_rater_tolerances(settings, inputs, voxels[0], options)
    others = dataclasses.replace(settings, profiles=())  # runs are compared by the common metrics alone
    results = {
        name: _map(
            score_case_fully, settings if name == scored else others, run.cases, count, options, f"scoring {name}"
        )
        for (name, run), count in zip(runs.items(), voxels, strict=True)
    }
    return _put_together(inputs, options, settings, results)


def evaluate_arrays(
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float] | None = None,
    labels: Sequence[int] | None = None,
    options: EvaluationOptions | None = None,
) -> CaseResult:
    """Score one label map against another.

    Args:
        reference, predicted: integers (Z, Y, X), or (Y, X) for 2D images.
        spacing_mm: of their axes; without it voxels count as 1 mm wide, see `pipeline.evaluate`.
        labels: values to score, a class each; by default all that occur but 0.
        options: tolerances and matching rule.

    Raises:
        ValueError: arrays of other types or of different shapes, a spacing that does not fit, or nothing to score.
    """
    require_equal_shapes(reference, predicted)
    if reference.dtype.kind not in "bui" or predicted.dtype.kind not in "bui":
        raise ValueError(f"label maps have dtypes {reference.dtype} and {predicted.dtype}; both must be integers")
    known = spacing_mm is not None
    grid = grid_of(reference.shape, (1.0,) * reference.ndim if spacing_mm is None else spacing_mm)
    occurring = {*np.unique(reference).tolist(), *np.unique(predicted).tolist()} - {0}
    values = sorted(occurring) if labels is None else list(labels)
    if not values:
        raise ValueError("both label maps are empty, so that there is no class to score; name the values with labels")
    options = options or EvaluationOptions()
    _check_profiles(options)
    settings = CaseSettings(
        scheme_of_values([int(value) for value in values]),
        known,
        tolerances_mm=options.tolerances_mm,
        rule=options.rule,
        units=units_of(grid.is_2d, known),
        profiles=options.profiles,
        min_lesion_ml=options.min_lesion_ml,
    )
    shape = (-1, *reference.shape[-2:])
    geometry = measured_grid(grid, settings.units)
    one, other = (array.astype(np.int64).reshape(shape) for array in (reference, predicted))
    return score_volumes("array", None, CaseVolumes(one, other, geometry), settings)


def _check_profiles(options: EvaluationOptions) -> None:
    """Refuse an unknown name before anything is scored."""
    for name in options.profiles:
        find_profile(name)


def run_names(folders: Sequence[Path]) -> list[str]:
    """Names of runs: those of their folders, each with as many folders above as it takes to differ from all others.

    Raises:
        UsdError: a folder that is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    twice = next((folder for folder, p in zip(folders, parts, strict=True) if parts.count(p) > 1), None)
    if twice is not None:
        raise UsdError(f"{twice} is given twice; name each run once.")

    def name(own: tuple[str, ...]) -> str:
        ends = (own[-count:] for count in range(1, len(own) + 1))
        return "/".join(next(end for end in ends if sum(p[-len(end) :] == end for p in parts) == 1))

    return [name(own) for own in parts]


def _of_source(inputs: Inputs, source: SourceLabels) -> Inputs:
    """The same files, with references that are read by a source."""
    return dataclasses.replace(inputs, cases=tuple(dataclasses.replace(case, source=source) for case in inputs.cases))


def _common_cases(runs: dict[str, Inputs]) -> dict[str, Inputs]:
    """All runs, on the cases that each of them holds."""
    common = set.intersection(*({case.case_id for case in run.cases} for run in runs.values()))
    if not common:
        raise UsdError(f"{', '.join(runs)} have no case in common; name runs on the same cases.")
    return {name: run.restricted(common) for name, run in runs.items()}


def _other_inputs(inputs: Inputs, prediction: Path, subset: bool) -> Inputs:
    """Files of another run for the cases that are scored; of a subset for those that it holds."""
    scored = inputs.folders.prediction
    if not prediction.exists() or prediction.is_dir() != scored.is_dir():
        state = "does not exist" if not prediction.exists() else "is a folder" if prediction.is_dir() else "is a file"
        kind = "folder" if scored.is_dir() else "file"
        raise UsdError(f"--against {prediction} {state}; give a {kind} of another run, as {scored} is a {kind}.")
    groups = None if inputs.folders.unified else inputs.folders.groups
    folders = discover_folders(inputs.folders.reference, prediction, EvaluationOptions(groups=groups))
    folders = dataclasses.replace(folders, raters=inputs.folders.raters, named=frozenset())  # of this run none is
    found = {case.case_id: case for case in collect_inputs(folders, subset=True, more_predictions=True).cases}
    if inputs.folders.prediction.is_file() and prediction.is_file():
        found = {inputs.cases[0].case_id: next(iter(found.values()))}
    missing = [case.case_id for case in inputs.cases if case.case_id not in found]
    if missing and not subset:
        raise UsdError(
            f"--against {prediction} lacks predictions of {len(missing)} of {counted(len(inputs.cases), 'case')}: "
            f"{listed(missing)}. Runs are compared on the same cases; predict these, leave the run out, or compare on "
            f"the cases that all runs hold with --subset."
        )
    cases = [(case, found[case.case_id]) for case in inputs.cases if case.case_id in found]
    return Inputs(folders, tuple(dataclasses.replace(own, group=case.group) for case, own in cases))


def _confidence(cases: Sequence[CaseInputs]) -> CaseConfidence | None:
    """What the confidence of a case is taken from: the same for all cases, so that it can be compared."""
    if any(len(case.samples) > 1 for case in cases):
        return "samples"
    if any(case.probability is not None for case in cases):
        return "probabilities"
    return "uncertainty" if any(case.uncertainty is not None for case in cases) else None


def _lesion_confidence(cases: Sequence[CaseInputs]) -> LesionConfidence | None:
    """What the confidence of lesions is taken from: the same for all cases, and best what all of them have."""
    has: dict[LesionConfidence, list[bool]] = {
        "samples": [bool(case.samples) for case in cases],
        "probabilities": [case.probability is not None for case in cases],
    }
    return next((name for enough in (all, any) for name, of_cases in has.items() if enough(of_cases)), None)


def _with_rater_tolerances(
    settings: CaseSettings, inputs: Inputs, voxels: int, options: EvaluationOptions
) -> CaseSettings:
    """Add the distance between raters per class: the median over the cases that have several raters.

    Of a unified data set it is that of each source, whose voxels are of another size than those of the others.
    """
    cases = [case for case in inputs.cases if len(case.raters) > 1]
    if not cases:
        return settings
    rows = _map(rater_distances_mm, settings, cases, voxels * len(cases) // len(inputs.cases), options, "raters")
    if not inputs.folders.unified:
        return dataclasses.replace(settings, rater_tolerances_mm=_medians(rows))
    of_sources: dict[str, list[tuple[float, ...]]] = {}
    for case, row in zip(cases, rows, strict=True):
        assert case.source is not None
        of_sources.setdefault(case.source.name, []).append(row)
    tolerances = {source: _medians(own) for source, own in of_sources.items()}
    return dataclasses.replace(settings, source_tolerances_mm=tolerances)


def _medians(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Median of each column over the rows where it is defined; NaN where it is in none."""
    columns = np.array(rows, float).T
    return tuple(
        float(np.median(column[~np.isnan(column)])) if not np.isnan(column).all() else math.nan for column in columns
    )


def _map(
    function: Any,
    settings: CaseSettings,
    cases: Sequence[CaseInputs],
    voxels: int,
    options: EvaluationOptions,
    what: str,
) -> list[Any]:
    """Call `function` for every case, on processes where that pays; the results do not depend on their number."""
    from unisegdiff_pipeline.core.parallel import choose_workers, map_cases

    maps = max(2 + len(case.samples) + len(case.raters) for case in cases)
    channels = len(settings.scheme.names) + 1
    workers = options.workers
    if workers is None:
        # Label maps kept as they are, and what reading and scoring takes beside them: about 24 bytes a voxel.
        of_probabilities = 6 * channels if any(case.probability for case in cases) else 0
        of_profiles = 20 if settings.profiles else 0  # numbers of lesions, and the place of the nearest one
        memory_gb = 0.3 + (24 + maps + of_probabilities + of_profiles) * voxels / len(cases) / 1e9
        worth_it = voxels * (maps + len(settings.scheme.names)) > VOXELS_WORTH_PROCESSES
        workers = choose_workers(memory_gb, None) if worth_it else 1
    call = functools.partial(function, settings=settings)
    names = [case.case_id for case in cases]
    native = any(has_native_reader(path) for case in cases for path in (case.reference, case.prediction))
    found = map_cases(
        call,
        cases,
        names=names,
        workers=workers,
        description=what,
        scheduler=options.scheduler,
        kind="native" if native else "processes",
        preload=PRELOADED,
    )
    return [result.value for result in found]


def _put_together(
    inputs: Inputs, options: EvaluationOptions, settings: CaseSettings, results: dict[str, list[CaseResult]]
) -> Evaluation:
    scored, *_ = results.values()
    other_values = _other_values(scored, settings)
    others = dict(list(results.items())[1:])
    names, units = settings.scheme.names, settings.units
    classes = report_classes(scored, names, options, settings.confidence, units)
    holds = {case.case_id: any(found.overlap.reference_ml > 0 for found in case.classes) for case in scored}
    report = FolderSummary(
        reference=str(inputs.folders.reference),
        prediction=str(inputs.folders.prediction),
        spacing_known=settings.spacing_known,
        units=units,
        settings=_describe(inputs, options, settings) | other_values,
        not_predicted=inputs.not_predicted,
        mean=mean_over_classes(scored, classes, options),
        classes=classes,
        against=compare_runs(scored, others, options),
        ranking=rank_runs(results, options) if others else (),
        by_source=report_sources(scored, names, options, settings.confidence, units),
        case_probability=report_case_probability(inputs.folders.prediction, holds),
    )
    profiles = tuple(report_profile(name, scored, options, units) for name in options.profiles)
    return Evaluation(inputs, options, tuple(scored), report, profiles)


def _describe(inputs: Inputs, options: EvaluationOptions, settings: CaseSettings) -> dict[str, Any]:
    """Every choice that the scores depend on."""
    folders, scheme = inputs.folders, settings.scheme
    counts = [len(case.samples) for case in inputs.cases]
    return {
        "classes": dict(zip(scheme.names, scheme.members, strict=True)),
        "ignore_value": scheme.ignore_value,
        "num_cases": len(inputs.cases),
        "num_groups": len({case.group or case.case_id for case in inputs.cases}),
        **_sources(inputs.cases),
        "surface_dice_tolerances_mm": options.tolerances_mm,
        "rater_tolerances_mm": dict(zip(scheme.names, settings.rater_tolerances_mm, strict=False))
        or {s: dict(zip(scheme.names, values, strict=True)) for s, values in settings.source_tolerances_mm.items()},
        "lesion_matching": options.rule,
        "lesion_matching_in_words": options.rule.describe(settings.units),
        "lesion_confidence": None
        if settings.lesion_confidence is None
        else LESION_CONFIDENCE[settings.lesion_confidence],
        "lesion_strata_edges_ml": options.strata_edges_ml,
        "case_confidence": None if settings.confidence is None else CASE_CONFIDENCE[settings.confidence],
        "probability_region": _region_in_words(inputs.cases, settings),
        "probability_floor": PROBABILITY_FLOOR,
        "calibration_bins": NUM_BINS,
        "intervals": {"level": options.level, "resamples": options.resamples, "seed": options.seed},
        "probabilities": _where(folders.probabilities, sum(case.probability is not None for case in inputs.cases)),
        "samples": _where(folders.samples, sum(count > 0 for count in counts)),
        "samples_per_case": [min(counts), max(counts)],
        "raters": _where(folders.raters, sum(bool(case.raters) for case in inputs.cases)),
        "uncertainty": _where(folders.uncertainty, sum(case.uncertainty is not None for case in inputs.cases)),
        "groups": _where(folders.groups, sum(case.group is not None for case in inputs.cases)),
    }


def _region_in_words(cases: Sequence[CaseInputs], settings: CaseSettings) -> str:
    """Where probabilities are judged: by millimetres in the cases whose own spacing is known."""
    margins = {
        True: f"{DEFAULT_MARGIN_MM:g} mm around it",
        False: f"{100 * DIAGONAL_FRACTION:g} % of the image diagonal around it",
    }
    known = {case.knows_spacing(settings.spacing_known) for case in cases}
    of_some = " where the spacing of the source is known" if len(known) > 1 else ""
    return f"union of masks and {f'{of_some}, else '.join(text for k, text in margins.items() if k in known)}"


def _other_values(cases: Sequence[CaseResult], settings: CaseSettings) -> dict[str, Any]:
    """Label values of both sides that are not scored, where only some were asked for.

    Raises:
        UsdError: no mask holds any of those that were.
    """
    if settings.check_values:
        return {}
    found = {
        side: sorted({value for case in cases for value in case.other_values[i]})
        for i, side in enumerate(("reference", "prediction"))
    }
    holds_any = any(result.overlap.tp + result.overlap.fp + result.overlap.fn for c in cases for result in c.classes)
    require_scored_values(holds_any, [value for values in found.values() for value in values], settings.scheme)
    return {"not_scored_values": found}


def _sources(cases: Sequence[CaseInputs]) -> dict[str, Any]:
    """The sources of a unified data set, and the classes that each of them annotates."""
    found = {case.source.name: sorted(case.source.annotated) for case in cases if case.source is not None}
    return {"sources": found} if found else {}


def _where(folder: Path | None, cases: int) -> dict[str, Any] | None:
    return {"path": str(folder), "cases": cases} if folder is not None and cases else None
