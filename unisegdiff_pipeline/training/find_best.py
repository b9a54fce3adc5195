"""Which model, or pair of models, predicts a data set best, by the cases that its folds held out for validation.

Candidates are ordered from the simplest on: single models before pairs, fewer parameters first. The simplest is the
best until another one is significantly better on the cases that both have. Both a paired test and an interval must say
so, at a level divided by the number of comparisons, since of many candidates some are better by chance.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.parallel import map_cases
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.units import Units, measured_grid, size_of_voxel, units_of
from unisegdiff_pipeline.evaluation.comparison import (
    bootstrap_interval,
    macro_interval,
    macro_signed_rank_test,
    paired_comparison,
)
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.summary import mean_of_defined
from unisegdiff_pipeline.inference.averaging import (
    average_case,
    have_samples,
    require_same_classes,
    require_same_grids,
)
from unisegdiff_pipeline.inference.ensemble import EnsemblePrediction
from unisegdiff_pipeline.inference.guarantees import Guarantees
from unisegdiff_pipeline.inference.lesion_filter import NO_FILTER, LesionFilter, can_filter, combined_filter
from unisegdiff_pipeline.inference.measuring import final_mask, find_lesions
from unisegdiff_pipeline.inference.model_folder import DATASET_NAME, WEIGHTS_NAME, open_model_folder
from unisegdiff_pipeline.inference.prediction_folder import PredictionFolder
from unisegdiff_pipeline.inference.recipe import Candidate, CandidateComparison, Recipe, RecipeMember, write_recipe
from unisegdiff_pipeline.inference.restoring import restore_samples
from unisegdiff_pipeline.inference.settings import Decision
from unisegdiff_pipeline.io.paths import Roots, find_dataset
from unisegdiff_pipeline.io.sources import cases_by_source, source_of_case
from unisegdiff_pipeline.planning.plans import SourcesPlan
from unisegdiff_pipeline.preprocessing.properties import CaseProperties
from unisegdiff_pipeline.preprocessing.reference import read_cases
from unisegdiff_pipeline.preprocessing.restore import restore_labels
from unisegdiff_pipeline.preprocessing.storage import read_array, reference_path
from unisegdiff_pipeline.selection.found_lesions import compare_lesions, of_source
from unisegdiff_pipeline.selection.guarantees import CaseEvidence, calibrate_for, case_evidence
from unisegdiff_pipeline.selection.lesion_filter import LesionCase
from unisegdiff_pipeline.training.data.splits import load_or_create_splits, shared_groups
from unisegdiff_pipeline.training.filter_over_folds import RechosenFilter, rechoose_filter
from unisegdiff_pipeline.training.resume import REQUEST_NAME, read_request
from unisegdiff_pipeline.training.source_scores import annotated_scores
from unisegdiff_pipeline.training.validated_models import (
    CaseDice,
    ClassDice,
    ValidatedModel,
    find_validated_models,
    mean_dice,
    of_all_sources,
    of_known_cases,
    of_same_classes,
    of_same_references,
    score_of_case,
)

SIGNIFICANT = 0.05
FEW_GROUPS = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class FoundBest:
    """The recipe, and best.json, which holds it."""

    recipe: Recipe
    path: Path


@dataclass(frozen=True)
class Contender:
    """A model or a pair with the scores of its validation cases; `decision` is that of a pair's mean."""

    members: tuple[ValidatedModel, ...]
    scores: Mapping[str, CaseDice]
    decision: Decision | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the folders."""
        return tuple(member.folder.name for member in self.members)

    @property
    def num_parameters(self) -> int:
        """Of one fold of each member."""
        return sum(member.num_parameters for member in self.members)

    def sources_of(self, cases: Sequence[str]) -> tuple[str, ...]:
        """The source of each case, of a model of a unified data set; else none."""
        return tuple(map(source_of_case, cases)) if self.members[0].sources else ()


def find_best(roots: Roots, dataset: str | int, *, workers: int = 0, writing: bool = True) -> FoundBest:
    """Compare all models of a data set and all pairs of them, and write best.json beside them.

    Args:
        roots: where preprocessed data, which holds the references, and results lie.
        dataset: number or name.
        workers: processes that score pairs; 0 works in this one.
        writing: off to look only.

    Raises:
        UsdError: no model with a validated fold, or files of one that cannot be read.
    """
    preprocessed = roots.preprocessed_dataset(dataset)
    results = roots.require_results()
    training = f"usd_train {quoted(dataset)} cv"
    folder = results / find_dataset(results, preprocessed.name, f"Train a model with {training} first.")
    raw = None if roots.raw is None else roots.raw / preprocessed.name
    splits = load_or_create_splits(preprocessed, raw, writing=False)
    models, left_out = find_validated_models(folder, [str(number) for number in range(len(splits))])
    if not models:
        why = f": {'; '.join(left_out)}" if left_out else ""
        raise UsdError(f"{folder} holds no model with a validated fold{why}. Train one with {training}.")
    groups = {record.case_id: record.group for record in read_cases(preprocessed)}
    models, former = of_same_classes(models, preprocessed / DATASET_NAME)
    models, gone = of_known_cases(models, groups)
    models, relabelled = of_same_references(models, preprocessed)
    gone += relabelled
    if not models:
        raise UsdError(f"{folder} holds no model that validated a case of the data set as it is: {'; '.join(gone)}.")
    models, narrow = of_all_sources(models)
    pairs, without = _pairs(models, preprocessed, groups, workers)
    contenders = [*(Contender((model,), model.scores) for model in models), *pairs]
    best, candidates = compare_candidates(contenders, groups)
    why_not, why_none = _without_filter(best), _without_guarantees(best, groups)
    if lacking := _without_probabilities(best.members, sorted(best.scores)):
        why_not, why_none = why_not or lacking, why_none or lacking
    found = _examined(best, preprocessed, groups, workers, lesions=not why_not, evidence=not why_none)
    rechosen = None if why_not else _rechosen(best, found)
    if rechosen is None:
        why_not = why_not or "it takes two folds, and a case with a lesion"
    of_all, of_sources = (None, {}) if why_none else _guaranteed(best, found)
    recipe = Recipe(
        schema_version=1,
        dataset=preprocessed.name,
        members=tuple(_recipe_member(member) for member in best.members),
        decision=best.decision,
        reason=_reason(best, candidates),
        notes=(*_notes(candidates, groups, best), *_filter_notes(why_not), *_guarantee_notes(why_none)),
        left_out=(*left_out, *former, *gone, *narrow, *without),
        candidates=candidates,
        lesion_filter=None if rechosen is None else rechosen.lesion_filter,
        filter_evidence=None if rechosen is None else rechosen.evidence,
        guarantees=of_all,
        source_guarantees=of_sources,
    )
    return FoundBest(recipe, write_recipe(folder, recipe) if writing else folder / "best.json")


def compare_candidates(
    contenders: Sequence[Contender], groups: Mapping[str, str]
) -> tuple[Contender, tuple[Candidate, ...]]:
    """The best of several candidates by the rule of this module, and what is known of each, the simplest first.

    Args:
        contenders: in any order.
        groups: group (patient) of each case; a case that is not in it is a group by itself.
    """
    ordered = sorted(contenders, key=lambda one: (len(one.members), one.num_parameters, one.models))
    best, found = ordered[0], [_candidate(ordered[0], groups, None)]
    for other in ordered[1:]:
        comparison = _compare(other, best, groups, len(ordered) - 1)
        found.append(_candidate(other, groups, comparison))
        if comparison.is_better:
            best = other
    return best, tuple(found)


def _compare(other: Contender, best: Contender, groups: Mapping[str, str], num_comparisons: int) -> CandidateComparison:
    cases = sorted(other.scores.keys() & best.scores.keys())
    a, b = ([score_of_case(one.scores[case]) for case in cases] for one in (other, best))
    own = [groups.get(case, case) for case in cases]
    sources = best.sources_of(cases)
    pairs = paired_comparison(a, b, own, resamples=0 if sources else RESAMPLES)
    gain, low, high, p = pairs.mean_difference, pairs.ci_low, pairs.ci_high, pairs.p_wilcoxon
    if sources:
        gain, low, high = macro_interval(a, b, own, sources)
        p = macro_signed_rank_test(a, b, own, sources).p
    corrected = min(1.0, p * num_comparisons)
    return CandidateComparison(
        with_models=best.models,
        num_cases=pairs.n,
        num_groups=pairs.num_groups,
        difference=gain,
        low=low,
        high=high,
        p_wilcoxon=p,
        p_corrected=corrected,
        is_better=low > 0 and corrected < SIGNIFICANT,
    )


def _candidate(one: Contender, groups: Mapping[str, str], comparison: CandidateComparison | None) -> Candidate:
    cases = sorted(one.scores)
    values = [score_of_case(one.scores[case]) for case in cases]
    own = [groups.get(case, case) for case in cases]
    if not (sources := one.sources_of(cases)):
        low, high = bootstrap_interval(values, own, resamples=RESAMPLES)
        score, dice = mean_of_defined(values), mean_dice(one.scores.values())
        return Candidate(one.models, one.num_parameters, len(cases), score, low, high, dice, comparison)
    score, low, high = macro_interval(values, [0.0] * len(values), own, sources)
    found = cases_by_source(cases)
    parts = {source: found[source] for source in one.members[0].sources if source in found}
    dice = mean_of_defined(mean_dice(one.scores[case] for case in part) for part in parts.values())
    of_sources = {
        source: mean_of_defined(score_of_case(one.scores[case]) for case in part) for source, part in parts.items()
    }
    return Candidate(one.models, one.num_parameters, len(cases), score, low, high, dice, comparison, of_sources)


# ------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class _CaseOfMembers:
    """A validation case to predict by one model or by the mean of two; `files` of each hold this case alone."""

    case_id: str
    files: tuple[PredictionFolder, ...]
    decision: Decision
    pooling: bool
    lesion_filter: LesionFilter
    reference: Path
    group: str
    spacing_known: bool
    sources: SourcesPlan | None
    source: str | None

    @property
    def scheme(self) -> LabelScheme:
        """What labels mean."""
        return self.files[0].labels

    def predict(self, lesion_filter: LesionFilter) -> tuple[EnsemblePrediction, CaseProperties]:
        """What the members say together; the files say nothing of the source."""
        fractions = [1 / len(self.files)] * len(self.files)
        found, properties = average_case(
            self.files, self.case_id, fractions, self.decision, pooling=self.pooling, lesion_filter=lesion_filter
        )
        return found, dataclasses.replace(properties, source=self.source)


def _pairs(
    models: Sequence[ValidatedModel], preprocessed: Path, groups: Mapping[str, str], workers: int
) -> tuple[list[Contender], list[str]]:
    """All pairs of models whose probabilities were kept for all cases that both have, and why others are none."""
    found: list[Contender] = []
    without: list[str] = []
    tasks: list[tuple[int, _CaseOfMembers]] = []
    for pair in itertools.combinations(models, 2):
        cases = sorted(pair[0].scores.keys() & pair[1].scores.keys())
        names = " + ".join(model.folder.name for model in pair)
        if not cases:
            without.append(f"{names}: no case in common")
        elif lacking := _without_probabilities(pair, cases):
            without.append(f"{names}: {lacking}")
        else:
            own = _cases_of(pair, cases, preprocessed, groups)
            tasks += [(len(found), task) for task in own]
            found.append(Contender(pair, {}, own[0].decision))
    scored = map_cases(
        _score,
        [task for _, task in tasks],
        names=[task.case_id for _, task in tasks],
        workers=workers,
        description="averaging pairs",
    )
    scores: list[dict[str, CaseDice]] = [{} for _ in found]
    for (number, task), result in zip(tasks, scored, strict=True):
        scores[number][task.case_id] = result.value
    return [dataclasses.replace(pair, scores=own) for pair, own in zip(found, scores, strict=True)], without


def _without_probabilities(members: Sequence[ValidatedModel], cases: Sequence[str]) -> str:
    """Which members kept no probabilities of all these cases, and what to do; empty where all have."""
    lacking = [model.folder.name for model in members if not all(model.has_probabilities(case) for case in cases)]
    if not lacking:
        return ""
    remedy = "usd_train with --val --save-validation all keeps them"
    return f"{' and '.join(lacking)} kept no probabilities of validation cases; {remedy}"


def _cases_of(
    members: Sequence[ValidatedModel], cases: Sequence[str], preprocessed: Path, groups: Mapping[str, str]
) -> list[_CaseOfMembers]:
    """Validation cases of which all members kept probabilities."""
    model = open_model_folder(members[0].folder)
    sources = model.configuration.sources
    pooling = all(have_samples([m.files[m.fold_of[case]] for m in members], [case]) for case in cases)
    decision: Decision = "dice" if pooling and all(member.decision == "dice" for member in members) else "half"
    result = []
    for case_id in cases:
        source = None if sources is None else source_of_case(case_id)
        result.append(
            _CaseOfMembers(
                case_id=case_id,
                files=tuple(member.files[member.fold_of[case_id]].only(case_id) for member in members),
                decision=decision,
                pooling=pooling,
                lesion_filter=combined_filter([member.filters[member.fold_of[case_id]] for member in members]),
                reference=reference_path(preprocessed, case_id),
                group=groups.get(case_id, case_id),
                spacing_known=model.configuration.knows_spacing(source, model.plans.spacing_known),
                sources=sources,
                source=source,
            )
        )
    return result


def _score(task: _CaseOfMembers) -> CaseDice:
    """Scores of the mask that the members make of a case, as final validation scores those of a model."""
    require_same_classes(task.files)
    require_same_grids(task.files, [task.case_id])
    scheme = task.scheme
    found, properties = task.predict(task.lesion_filter)
    labels = final_mask(found, properties, scheme, task.spacing_known)
    geometry = properties.geometry
    grid = measured_grid(geometry, units_of(geometry.is_2d, task.spacing_known))
    reference = read_array(task.reference)[0]
    scores = score_case(reference, labels, scheme, grid.spacing_mm, task.spacing_known, is_2d=grid.is_2d)
    return tuple(ClassDice.of(score) for score in annotated_scores(task.sources, task.source, scheme, scores))


# ----------------------------------------------------------------------------------------- lesion filter, guarantees


@dataclass(frozen=True)
class _Findings:
    """What a validation case says before any filter, of what was asked for: of its lesions, and for guarantees."""

    lesions: tuple[Units, tuple[LesionCase, ...]] | None
    evidence: CaseEvidence | None


def _without_filter(best: Contender) -> str:
    """Why no lesion filter can be chosen over all folds; empty where one can."""
    if can_filter(open_model_folder(best.members[0].folder).plans.labels):
        return ""
    return "lesions of one region cannot be taken out without voxels of another"


def _without_guarantees(best: Contender, groups: Mapping[str, str]) -> str:
    """Why the validation cases of all folds allow no promise; empty where they may.

    By what each fold was trained on: the splits of the data set may have been replaced since.
    """
    for member in best.members:
        for fold in member.folds:
            request = read_request(member.folder / f"fold_{fold}")
            if request is None:
                return (
                    f"fold_{fold} of {member.folder.name} holds no {REQUEST_NAME}, so that what it was trained on is "
                    f"not known"
                )
            own = [case_id for case_id in sorted(best.scores) if member.fold_of[case_id] == fold]
            if shared := shared_groups((*request["train_cases"], *request["holdout_cases"]), own, groups):
                return f"fold {fold} validates cases of the group {shared[0]!r}, which it was also trained on"
    return ""


def _examined(
    best: Contender, preprocessed: Path, groups: Mapping[str, str], workers: int, *, lesions: bool, evidence: bool
) -> dict[str, _Findings]:
    """The validation cases of all folds; their probabilities are read and averaged once for both."""
    if not (lesions or evidence):
        return {}
    cases = sorted(best.scores)
    results = map_cases(
        partial(_examine, lesions=lesions, evidence=evidence),
        _cases_of(best.members, cases, preprocessed, groups),
        names=cases,
        workers=workers,
        description="comparing the best with references",
    )
    return {result.name: result.value for result in results}


def _examine(task: _CaseOfMembers, *, lesions: bool, evidence: bool) -> _Findings:
    found, properties = task.predict(NO_FILTER)
    reference, known = read_array(task.reference)[0], task.spacing_known
    return _Findings(
        _lesions(task, found, properties, reference) if lesions else None,
        case_evidence(found, properties, task.scheme, reference, task.group, spacing_known=known, sources=task.sources)
        if evidence
        else None,
    )


def _lesions(
    task: _CaseOfMembers, found: EnsemblePrediction, properties: CaseProperties, reference: np.ndarray
) -> tuple[Units, tuple[LesionCase, ...]]:
    """The lesions of a case before any filter, beside those of its reference."""
    scheme = task.scheme
    labels = restore_labels(found.decided(scheme.coding), properties, scheme)
    plain = restore_labels(found.probabilities, properties, scheme)
    ignored = scheme.ignored(reference)
    labels[ignored], plain[ignored] = 0, 0
    samples = restore_samples(found, properties, scheme)
    lesions = find_lesions(found, properties, scheme, task.spacing_known, labels, samples)
    geometry, known = properties.geometry, task.spacing_known
    rows = lesions.rows(task.case_id, geometry.spacing_mm, is_2d=geometry.is_2d, spacing_known=known)
    units = units_of(geometry.is_2d, known)
    per_voxel = size_of_voxel(geometry.spacing_mm, units)
    cases = compare_lesions(scheme, (reference, labels, plain), rows, per_voxel, (task.group, task.case_id))
    return units, of_source(cases, task.sources, task.source, scheme)


def _rechosen(best: Contender, found: Mapping[str, _Findings]) -> RechosenFilter | None:
    """The lesion filter of the best candidate chosen over all folds; None for too few folds, or without a lesion."""
    folds: dict[str, list[LesionCase]] = {}
    units: set[Units] = set()
    for case_id, findings in found.items():
        assert findings.lesions is not None
        units.add(findings.lesions[0])
        folds.setdefault(best.members[0].fold_of[case_id], []).extend(findings.lesions[1])
    one = next(iter(units))
    names = open_model_folder(best.members[0].folder).plans.labels.names
    return rechoose_filter(folds, names, one.size if len(units) == 1 else None, one)


def _guaranteed(best: Contender, found: Mapping[str, _Findings]) -> tuple[Guarantees | None, dict[str, Guarantees]]:
    """What the validation cases of all folds allow to be promised of the best candidate, see `calibrate_for`."""
    networks = [(member, fold) for member in best.members for fold in member.folds]
    weights = [file_hash(member.folder / f"fold_{fold}" / WEIGHTS_NAME) for member, fold in networks]
    calibrated_on = "each fold on its own validation cases"
    if len(networks) > 1:
        calibrated_on += "; for new images the mean of all is taken, which no proof covers"
    evidence = [findings.evidence for findings in found.values() if findings.evidence is not None]
    sources = open_model_folder(best.members[0].folder).configuration.sources
    return calibrate_for(sources, evidence, weights, calibrated_on)


# ------------------------------------------------------------------------------------------------------------- words


def _recipe_member(model: ValidatedModel) -> RecipeMember:
    name = model.name
    return RecipeMember(model.folder.name, name.trainer, name.configuration, name.plans, name.run, model.folds)


def _reason(best: Contender, candidates: Sequence[Candidate]) -> str:
    own = next(candidate for candidate in candidates if candidate.models == best.models)
    if len(candidates) == 1:
        return f"{own.name} is the only candidate"
    if own.comparison is None:
        return f"{own.name} is the simplest candidate, and none is significantly better"
    against = own.comparison
    return (
        f"{own.name} is significantly better than {' + '.join(against.with_models)}: by {against.difference:.4f} "
        f"({against.low:.4f} to {against.high:.4f}) on {counted(against.num_cases, 'case')}, p = "
        f"{against.p_corrected:.2g} after correction for {counted(len(candidates) - 1, 'comparison')}; none of the "
        f"less simple ones is better still"
    )


def _notes(candidates: Sequence[Candidate], groups: Mapping[str, str], best: Contender) -> tuple[str, ...]:
    notes = []
    if len(candidates) == 1:
        notes.append("there is nothing to compare with: train another configuration or trainer and run this again")
    num_groups = len({groups.get(case, case) for case in best.scores})
    if num_groups < FEW_GROUPS:
        notes.append(
            f"with {counted(num_groups, 'independent case')} hardly any difference can be significant; the simplest "
            f"candidate is taken for lack of evidence, not because it was shown to be as good"
        )
    return tuple(notes)


def _guarantee_notes(why_none: str) -> tuple[str, ...]:
    return (f"no guarantees were calibrated: {why_none}",) if why_none else ()


def _filter_notes(why_not: str) -> tuple[str, ...]:
    return (f"no lesion filter was chosen over the folds, theirs stay: {why_not}",) if why_not else ()
