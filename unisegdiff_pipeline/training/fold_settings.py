"""What a fold predicts with: chosen on its held-out cases as far as time allows, or taken over from another fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings
from unisegdiff_pipeline.inference.settings_words import settings_in_words
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.planning.plans import StagePlan
from unisegdiff_pipeline.selection.calibration import choose_calibration, choose_source_calibrations
from unisegdiff_pipeline.selection.choosing import Choice, choose_settings, chosen_on
from unisegdiff_pipeline.selection.found_lesions import HeldOutCase, choose_lesions, find_in_held_out
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.selection.objects import numbers_of_objects
from unisegdiff_pipeline.selection.stage_refinement import refined_stages
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.time_budget import (
    DESCRIBING_LIMIT_FRACTION,
    Costs,
    affordable_cases,
    fraction_s,
    measure_costs,
)
from unisegdiff_pipeline.training.validation import fold_units


def settings_of_phase_1(
    run: FoldRun, model: StagedModel, two_phases: bool
) -> tuple[InferenceSettings, dict[str, float]]:
    """Temperature and edges of the stages as the hold-out has them, and the Dice of each class there."""
    settings = planned_settings(run.configuration)
    if not run.holdout_cases:
        folder = _finished_fold(run, two_phases)
        found = settings if folder is None else read_settings(folder)
        return replace(
            settings,
            calibration=found.denoiser_calibration,  # that of the other fold's segmenter when its phase 1 ended
            source_calibrations={} if two_phases else found.source_calibrations,
            lam_a=found.lam_a,
            lam_c=found.lam_c,
            input_scale=found.input_scale,
        ), {}
    cases = measure_costs(run, model).described_cases(run)
    described: tuple[LogitCalibration, StagePlan, dict[str, float]] | None = None
    of_sources: dict[str, LogitCalibration] = {}
    if cases:
        run.log.say(f"measuring on {counted(len(cases), 'held-out case')} how sure the segmenter may be")
        with run.stop.limited(fraction_s(run, DESCRIBING_LIMIT_FRACTION)):
            calibration = choose_calibration(run.held_out, model, cases).of_all
            described = (
                calibration,
                *refined_stages(run.held_out, model, replace(settings, calibration=calibration), cases),
            )
            if run.configuration.sources is not None and not two_phases:
                by_source = choose_source_calibrations(run.held_out, model, cases)
                of_sources = {source: fitted.of_all for source, fitted in by_source.items()}
    if described is None:
        run.log.say("there is no time to describe the segmenter on held-out cases: the stages stay as planned")
        return settings, {}
    calibration, stages, dice = described
    settings = replace(settings, calibration=calibration, source_calibrations=of_sources)
    phase = "is skipped" if run.request.phase_2_only else "has ended"
    run.log.say(
        f"phase 1 {phase}. By {counted(len(cases), 'held-out case')}: temperature of the segmenter "
        f"{calibration.describe()} (above 1: it was too sure); stage B, where image and noised mask both count, "
        f"runs from lam {stages.lam_a:g} (planned {settings.lam_a:g}) to {stages.lam_c:g} ({settings.lam_c:g})"
    )
    return replace(settings, lam_a=stages.lam_a, lam_c=stages.lam_c, input_scale=stages.input_scale), dice


def choose_on_hold_out(
    run: FoldRun, model: StagedModel, settings: InferenceSettings, costs: Costs
) -> tuple[InferenceSettings, Choice | None]:
    """What is chosen on held-out cases, as far as the time budget allows; else the defaults, which is said."""
    cases, left_s = affordable_cases(run, model, costs)
    ends_s = None if left_s is None else run.watch.seconds + left_s
    choice: Choice | None = None
    if cases:
        run.log.say(
            f"choosing how to predict, on {counted(len(cases), 'held-out case')}: how sure the segmenter may be "
            "(temperature), how samples are made, and how much it counts beside the samples (segmenter weight)"
        )
        with run.stop.limited(left_s):
            told = costs.described_cases(run) if run.configuration.sources is not None else ()
            for further in choose_settings(run.held_out, model, settings, cases, costs.search, told):
                choice = further
    if choice is None:
        run.log.say(
            "there is no time left to choose temperature, sampler and segmenter weight: they are the defaults, so "
            "that probabilities may be too sure or too unsure. Train with a longer --max-time."
        )
        return replace(settings, chosen_on="nothing, for lack of time: all settings are the defaults"), None
    warning = choice.warning
    if choice.left_at_default:
        warning = f"{choice.left_at_default} are the defaults, for lack of time (--max-time)"
    if warning:
        run.log.say(f"warning: {warning}")
    settings = replace(choice.settings, chosen_on=chosen_on(cases, warning))
    # The filter needs more cases than the settings, and one prediction of each: all of them, as far as time allows.
    examined = cases if run.is_asked_to_end else run.holdout_cases
    calibrations = {
        case_id: choice.calibrations.get(case_id) or _calibration(run, settings, case_id) for case_id in examined
    }
    left_s = None if ends_s is None else ends_s - run.watch.seconds
    return _with_lesion_filter(run, model, settings, calibrations, left_s), choice


def _with_lesion_filter(
    run: FoldRun,
    model: StagedModel,
    settings: InferenceSettings,
    calibrations: Mapping[str, LogitCalibration],
    left_s: float | None,
) -> InferenceSettings:
    """The settings with the lesion filter that held-out cases choose, as many as `left_s` seconds allow.

    `calibrations` says with which calibration each case is predicted.
    """
    found: list[HeldOutCase] = []
    with run.stop.limited(left_s) as limit:
        for case in find_in_held_out(run.held_out, model, settings, calibrations):
            found.append(case)
    if limit.exceeded:
        of_all = f"{len(found)} of {counted(len(calibrations), 'held-out case')}"
        chosen = f"the lesion filter is chosen on {of_all}" if found else "no lesion filter is chosen"
        run.log.say(f"{chosen}, for lack of time (--max-time)")
    lesions = choose_lesions(found, run.plans.labels.names, numbers_of_objects(run.held_out)) if found else None
    return settings if lesions is None else lesions.settings(settings)


def _calibration(run: FoldRun, settings: InferenceSettings, case_id: str) -> LogitCalibration:
    """That of a case that it was not chosen on."""
    sources = run.configuration.sources
    return settings.for_source(sources, None if sources is None else source_of_case(case_id)).calibration


def say_chosen(run: FoldRun, settings: InferenceSettings, choice: Choice | None) -> None:
    if choice is not None and choice.samplers and choice.means:
        masks, mean = choice.samplers[0], choice.means[0]
        run.log.say(
            f"chosen for prediction (on the hold-out: Dice {mean.dice:.3f}, NLL {mean.nll:.4f}, energy score of the "
            f"samples {masks.energy:.3f}, lower is better):"
        )
        for sentence in settings_in_words(settings, fold_units(run)):
            run.log.say(f"  {sentence}")
    elif settings.filter_in_words:
        run.log.say(f"lesions of the mask: {' '.join(settings.filter_in_words)}")


def settings_of_another_fold(run: FoldRun, settings: InferenceSettings) -> InferenceSettings:
    """Fold "all" holds no case out: it takes what a finished fold of the same model chose, else the defaults."""
    folder = _finished_fold(run, two_phases=True)
    if folder is None:
        run.log.say("no case is held out and no other fold has ended phase 2: how to predict is left at the defaults")
        return settings
    found = read_settings(folder)
    if not _is_chosen(found):
        run.log.say(
            f"warning: no case is held out, and how to predict is as in {folder.name}, since no finished fold has "
            f"chosen more; {folder.name} has chosen {found.chosen_on}"
        )
    return replace(
        settings,
        calibration=found.calibration,
        source_calibrations=found.source_calibrations,
        segmenter_weight=found.segmenter_weight,
        decision=found.decision,
        sampler=found.sampler,
        mask_sampler=found.mask_sampler,
        lesion_filter=found.lesion_filter,
        filter_in_words=found.filter_in_words,
        operating_points=found.operating_points,
        case_calibration=found.case_calibration,
        chosen_on=f"{folder.name}, as there" if _is_chosen(found) else found.chosen_on,
    )


def _is_chosen(settings: InferenceSettings) -> bool:
    """Whether anything but the lesion filter was chosen on held-out cases."""
    return not settings.chosen_on.startswith("nothing")


def _finished_fold(run: FoldRun, two_phases: bool) -> Path | None:
    """The fold of the same model whose settings fold "all" takes over; one that has chosen them comes first.

    A model of two phases takes none of a fold that ended before phase 2, which predicts by its segmenter alone.
    """
    without_choice: Path | None = None
    for folder in sorted(run.folder.parent.glob("fold_[0-9]*")):
        if not (folder / WEIGHTS_NAME).is_file():
            continue
        settings = read_settings(folder)
        if two_phases and settings.num_samples == 0:
            continue
        if _is_chosen(settings):
            return folder
        without_choice = without_choice or folder
    return without_choice
