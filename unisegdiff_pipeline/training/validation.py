"""Scores of whole preprocessed cases: during training on the inner hold-out, at its end on the fold's own cases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.progress import counted, progress
from unisegdiff_pipeline.core.serialization import to_jsonable, write_json
from unisegdiff_pipeline.core.units import Units, measured_grid, units_of
from unisegdiff_pipeline.evaluation.metrics import score_case
from unisegdiff_pipeline.evaluation.spread import SPREAD_NAME, CaseSpread, Spread
from unisegdiff_pipeline.evaluation.summary import CaseScores, Summary, mean_of_defined, summarise
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.guarantees import guarantees_in_words
from unisegdiff_pipeline.inference.measuring import final_mask
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.inference.settings import InferenceSettings, write_settings
from unisegdiff_pipeline.io.prediction_files import SCORES, VALIDATION
from unisegdiff_pipeline.io.sources import cases_by_source, in_turn, source_of_case
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.reference import read_cases, reference_hashes
from unisegdiff_pipeline.selection.guarantees import CaseEvidence, calibrate_for, case_evidence
from unisegdiff_pipeline.selection.hold_out import (
    annotated_classes,
    predict_stored,
    score_on_plan_grid,
    sources_of_cases,
)
from unisegdiff_pipeline.selection.spread import annotators, spread_of_case
from unisegdiff_pipeline.training.data.splits import shared_groups
from unisegdiff_pipeline.training.pictures import Moment, keep_pictures, shown_case
from unisegdiff_pipeline.training.source_scores import ScoresBySource, annotated_scores, by_source
from unisegdiff_pipeline.training.validation_files import (
    ensemble_of_one,
    keeps_everything,
    remove_cases,
    remove_tables,
    write_case,
    write_tables,
)

if TYPE_CHECKING:
    from unisegdiff_pipeline.training.fold_run import FoldRun

REFERENCES = "references"  # in SCORES, the hash of the label maps that each case was scored with


@dataclass(frozen=True)
class HeldOutDice:
    """Dice on held-out cases during training.

    `means` has the keys "dice_mean" and "dice_<class>"; `of_cases` the mean over the classes of each case, NaN where
    none is defined; `groups` the group (patient) of each, `case_sources` its source and `sources` the means by source,
    of a unified data set.
    """

    means: dict[str, float]
    of_cases: tuple[float, ...]
    groups: tuple[str, ...]
    sources: ScoresBySource | None = None
    case_sources: tuple[str, ...] = ()


def validate_cases(
    run: FoldRun, model: StagedModel, num_samples: int, settings: InferenceSettings, picture: Moment | None = None
) -> HeldOutDice:
    """Dice on the monitored held-out cases, on the plan's grid, of masks as the settings decide on them.

    With `picture`, pictures of one of the cases are kept on the way.
    """
    shown = None if picture is None else shown_case(run)
    cases, groups, plans, scheme = [], [], run.configuration.sources, run.plans.labels
    for case_id in run.monitored_cases:
        stored = run.data.open(case_id)
        groups.append(stored.group)
        prediction = predict_stored(run.held_out, model, stored, settings, num_samples, keep_samples=case_id == shown)
        if picture is not None and case_id == shown:
            keep_pictures(run, picture, stored, prediction)
        p, masks = prediction.probabilities(), prediction.masks(scheme)
        decided = decided_probabilities(p, masks, scheme, settings.decision)
        scores = score_on_plan_grid(run.held_out, stored, decided)
        cases.append(CaseScores(case_id, annotated_scores(plans, stored.properties.source, scheme, scores)))
    summary = summarise(cases)
    return HeldOutDice(
        {"dice_mean": summary.mean_dice, **{f"dice_{c.class_name}": c.mean_dice for c in summary.classes}},
        tuple(mean_of_defined(score.dice for score in case.scores) for case in cases),
        tuple(groups),
        by_source(plans, cases),
        sources_of_cases(plans, run.monitored_cases),
    )


def final_validation(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, time_left_s: float | None = None
) -> Summary | None:
    """Predict the fold's validation cases once, write their masks to validation/ and their scores to summary.json.

    Masks are compared with the reference on the grid of the label files.

    Args:
        run, model, settings: a finished fold.
        time_left_s: seconds after which the cases that are left are given up, and named in summary.json; so they are
            where the stop file is there.

    Returns:
        Scores over the cases that were predicted; None without any.
    """
    folder = run.folder / VALIDATION
    settings = replace(settings, guarantees=None, source_guarantees={})
    cases: list[CaseScores] = []
    spreads: list[CaseSpread] = []
    evidence: list[CaseEvidence] = []
    start, units = time.monotonic(), fold_units(run)
    references = reference_hashes(run.data.folder.parent, run.validation_cases)
    everything = keeps_everything(run, settings)
    kept = "masks, probabilities and samples" if everything else "masks"
    (folder / SCORES).unlink(missing_ok=True)  # until all are done, the fold counts as not validated
    remove_tables(run)
    visited = run.validation_cases
    if run.configuration.sources is not None:  # where time runs out, no source is left out
        visited = in_turn(cases_by_source(visited).values())
    run.log.say(f"validating {counted(len(visited), 'case')}; {kept} are kept in {folder}")
    with run.stop.limited(None if time_left_s is None else max(0.0, time_left_s)):
        for case_id in progress(visited, len(visited), "validation"):
            if run.is_asked_to_end:
                break
            scores, of_case, found = _validated(run, model, settings, case_id, units, everything)
            cases.append(scores)
            spreads += of_case
            evidence += found
    given_up = visited[len(cases) :]
    if given_up:
        remove_cases(run, given_up)
        reason = "the stop file is there" if run.is_asked_to_end else "--max-time is over"
        run.log.say(
            f"{reason}: {len(cases)} of {counted(len(visited), 'validation case')} are "
            f"predicted and scored; the model is complete. The same command with --val (without --restart) predicts "
            f"them all."
        )
    summary = summarise(cases) if cases else None
    if everything and cases:
        write_tables(run, settings)
    write_json(folder / SPREAD_NAME, Spread(tuple(spreads)))
    _keep_guarantees(run, settings, [] if given_up else evidence)
    written: dict[str, Any] = {"summary": summary, "units": units, "cases": cases, "not_validated": given_up}
    if (sources := by_source(run.configuration.sources, cases)) is not None:
        written["by_source"] = sources
        run.log.say(f"validation: {sources.describe()}")
    facts = {"seconds": time.monotonic() - start, "settings": settings, REFERENCES: references}
    write_json(folder / SCORES, units.named(to_jsonable(written)) | to_jsonable(facts))
    return summary


def _validated(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, case_id: str, units: Units, everything: bool
) -> tuple[CaseScores, list[CaseSpread], list[CaseEvidence]]:
    """Predict one validation case, score it and write what is kept of it; where that is all, with its evidence."""
    stored = run.data.open(case_id)
    prediction = predict_stored(run.held_out, model, stored, settings, None, keep_samples=True)
    source = stored.properties.source
    scheme, known = run.plans.labels, run.configuration.knows_spacing(source, run.plans.spacing_known)
    found = ensemble_of_one(prediction, settings, scheme)
    labels = final_mask(found, stored.properties, scheme, known)
    grid = measured_grid(stored.properties.geometry, units)
    reference = stored.reference()[0]
    scores = score_case(reference, labels, scheme, grid.spacing_mm, known, is_2d=grid.is_2d)
    write_case(run, stored, found, settings, labels, everything)
    of_case = annotated_scores(run.configuration.sources, source, scheme, scores)
    evidence, sources = [], run.configuration.sources
    if everything:
        evidence = [
            case_evidence(
                found, stored.properties, scheme, reference, stored.group, spacing_known=known, sources=sources
            )
        ]
    annotated = annotated_classes(run.held_out, stored)
    spreads = spread_of_case(prediction, annotators(stored), scheme, case_id, annotated)
    return CaseScores(case_id, of_case), spreads, evidence


def _keep_guarantees(run: FoldRun, settings: InferenceSettings, evidence: Sequence[CaseEvidence]) -> None:
    """Write what the validation cases allow to be promised into inference.json; without evidence remove it there.

    Patients that the fold was trained on or chosen by, as splits of one's own may have them, allow no promise.
    """
    groups = {record.case_id: record.group for record in read_cases(run.data.folder.parent)} if evidence else {}
    shared = shared_groups((*run.train_cases, *run.holdout_cases), run.validation_cases, groups) if evidence else ()
    if shared:
        run.log.say(
            f"guarantees: none; {counted(len(shared), 'group')} of validation cases ({shared[0]!r}) have cases that "
            f"the fold was trained on"
        )
    elif evidence:
        weights, words = [file_hash(run.folder / WEIGHTS_NAME)], f"fold {run.fold} on its validation cases"
        of_all, of_sources = calibrate_for(run.configuration.sources, evidence, weights, words)
        for line in guarantees_in_words(of_all, of_sources):
            run.log.say(f"guarantees: {line}")
        settings = replace(settings, guarantees=of_all, source_guarantees=of_sources)
    write_settings(run.folder, settings)


def fold_units(run: FoldRun) -> Units:
    """Units of sizes and distances of the fold's cases."""
    cases = run.validation_cases or run.train_cases
    is_2d = all(run.data.open(case_id).properties.geometry.is_2d for case_id in cases)
    sources = map(source_of_case, cases)
    known = all(run.configuration.knows_spacing(source, run.plans.spacing_known) for source in sources)
    return units_of(is_2d, known)
