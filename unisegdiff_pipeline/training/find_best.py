"""Which model, or pair of models, predicts a data set best, by the cases that its folds held out for validation.

Candidates are ordered from the simplest on: single models before pairs, fewer parameters first. The simplest is the
best until another one is significantly better on the cases that both have. Both a paired test and an interval must say
so, at a level divided by the number of comparisons, since of many candidates some are better by chance.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.parallel import map_cases
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.units import measured_grid, units_of
from unisegdiff_pipeline.evaluation.comparison import bootstrap_interval, paired_comparison
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.inference.averaging import (
    average_case,
    have_samples,
    require_same_classes,
    require_same_grids,
)
from unisegdiff_pipeline.inference.model_folder import open_model_folder
from unisegdiff_pipeline.inference.prediction_folder import PredictionFolder
from unisegdiff_pipeline.inference.recipe import Candidate, CandidateComparison, Recipe, RecipeMember, write_recipe
from unisegdiff_pipeline.inference.settings import Decision
from unisegdiff_pipeline.io.paths import Roots, find_dataset
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.planning.plans import SourcesPlan
from unisegdiff_pipeline.preprocessing.reference import read_cases
from unisegdiff_pipeline.preprocessing.restore import restore_labels
from unisegdiff_pipeline.preprocessing.storage import read_array, reference_path
from unisegdiff_pipeline.training.data.splits import load_or_create_splits
from unisegdiff_pipeline.training.source_scores import annotated_scores
from unisegdiff_pipeline.training.validated_models import (
    CaseDice,
    ClassDice,
    ValidatedModel,
    find_validated_models,
    mean_dice,
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
    folder = results / find_dataset(results, preprocessed.name, f"Train a model with usd_train {dataset} cv first.")
    raw = None if roots.raw is None else roots.raw / preprocessed.name
    splits = load_or_create_splits(preprocessed, raw, writing=False)
    models, left_out = find_validated_models(folder, [str(number) for number in range(len(splits))])
    if not models:
        why = f": {'; '.join(left_out)}" if left_out else ""
        raise UsdError(f"{folder} holds no model with a validated fold{why}. Train one with usd_train {dataset} cv.")
    groups = {record.case_id: record.group for record in read_cases(preprocessed)}
    pairs, without = _pairs(models, preprocessed, workers)
    contenders = [*(Contender((model,), model.scores) for model in models), *pairs]
    best, candidates = compare_candidates(contenders, groups)
    recipe = Recipe(
        schema_version=1,
        dataset=preprocessed.name,
        members=tuple(_recipe_member(member) for member in best.members),
        decision=best.decision,
        reason=_reason(best, candidates),
        notes=_notes(candidates, groups, best),
        left_out=(*left_out, *without),
        candidates=candidates,
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
    pairs = paired_comparison(a, b, [groups.get(case, case) for case in cases], resamples=RESAMPLES)
    corrected = min(1.0, pairs.p_wilcoxon * num_comparisons)
    return CandidateComparison(
        with_models=best.models,
        num_cases=pairs.n,
        num_groups=pairs.num_groups,
        difference=pairs.mean_difference,
        low=pairs.ci_low,
        high=pairs.ci_high,
        p_wilcoxon=pairs.p_wilcoxon,
        p_corrected=corrected,
        is_better=pairs.ci_low > 0 and corrected < SIGNIFICANT,
    )


def _candidate(one: Contender, groups: Mapping[str, str], comparison: CandidateComparison | None) -> Candidate:
    cases = sorted(one.scores)
    values = [score_of_case(one.scores[case]) for case in cases]
    defined = [value for value in values if not math.isnan(value)]
    low, high = bootstrap_interval(values, [groups.get(case, case) for case in cases], resamples=RESAMPLES)
    mean = sum(defined) / len(defined) if defined else math.nan
    return Candidate(
        one.models, one.num_parameters, len(cases), mean, low, high, mean_dice(one.scores.values()), comparison
    )


# ------------------------------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class _PairedCase:
    """A case to predict by the mean of two models; `files` of each hold this case alone."""

    case_id: str
    files: tuple[PredictionFolder, ...]
    decision: Decision
    pooling: bool
    reference: Path
    spacing_known: bool
    sources: SourcesPlan | None


def _pairs(models: Sequence[ValidatedModel], preprocessed: Path, workers: int) -> tuple[list[Contender], list[str]]:
    """All pairs of models whose probabilities were kept for all cases that both have, and why others are none."""
    found: list[Contender] = []
    without: list[str] = []
    tasks: list[tuple[int, _PairedCase]] = []
    for pair in itertools.combinations(models, 2):
        cases = sorted(pair[0].scores.keys() & pair[1].scores.keys())
        names = " + ".join(model.folder.name for model in pair)
        if not cases:
            without.append(f"{names}: no case in common")
            continue
        lacking = [model.folder.name for model in pair if not all(model.has_probabilities(case) for case in cases)]
        if lacking:
            remedy = "usd_train with --val --save-validation all keeps them"
            without.append(f"{names}: {' and '.join(lacking)} kept no probabilities of validation cases; {remedy}")
            continue
        pooling = all(have_samples([m.files[m.fold_of[case]] for m in pair], [case]) for case in cases)
        decision: Decision = "dice" if pooling and all(model.decision == "dice" for model in pair) else "half"
        tasks += [(len(found), task) for task in _paired_cases(pair, cases, decision, pooling, preprocessed)]
        found.append(Contender(pair, {}, decision))
    scored = map_cases(
        _score_pair,
        [task for _, task in tasks],
        names=[task.case_id for _, task in tasks],
        workers=workers,
        description="averaging pairs",
    )
    scores: list[dict[str, CaseDice]] = [{} for _ in found]
    for (number, task), result in zip(tasks, scored, strict=True):
        scores[number][task.case_id] = result.value
    return [dataclasses.replace(pair, scores=own) for pair, own in zip(found, scores, strict=True)], without


def _paired_cases(
    pair: Sequence[ValidatedModel], cases: Sequence[str], decision: Decision, pooling: bool, preprocessed: Path
) -> list[_PairedCase]:
    model = open_model_folder(pair[0].folder)
    sources = model.configuration.sources
    result = []
    for case_id in cases:
        files = tuple(member.files[member.fold_of[case_id]].only(case_id) for member in pair)
        source = source_of_case(case_id)
        known = model.plans.spacing_known if sources is None else sources.plans[source].spacing_known
        reference = reference_path(preprocessed, case_id)
        result.append(_PairedCase(case_id, files, decision, pooling, reference, known, sources))
    return result


def _score_pair(task: _PairedCase) -> CaseDice:
    """Scores of the mask that a pair makes of a case, as final validation scores those of a model."""
    require_same_classes(task.files)
    require_same_grids(task.files, [task.case_id])
    scheme = task.files[0].labels
    found, properties = average_case(task.files, task.case_id, (0.5, 0.5), task.decision, pooling=task.pooling)
    labels = restore_labels(found.decided(scheme.coding), properties, scheme)
    geometry = properties.geometry
    grid = measured_grid(geometry, units_of(geometry.is_2d, task.spacing_known))
    reference = read_array(task.reference)[0]
    scores = score_case(reference, labels, scheme, grid.spacing_mm, task.spacing_known, is_2d=grid.is_2d)
    source = None if task.sources is None else source_of_case(task.case_id)
    return tuple(ClassDice.of(score) for score in annotated_scores(task.sources, source, scheme, scores))


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
