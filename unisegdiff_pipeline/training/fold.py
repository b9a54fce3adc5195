"""One fold from the first iteration to the scored validation: both phases, what is chosen, the final weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from unisegdiff_pipeline.core.bounds import Count, Fraction, LogSignalToNoise, NotNegative, Range
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.names import quoted
from unisegdiff_pipeline.core.progress import counted, format_duration
from unisegdiff_pipeline.core.serialization import formerly, from_jsonable, read_dataclass, read_object, write_json
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.diffusion.coding import LogitCalibration
from unisegdiff_pipeline.evaluation.summary import Summary, summary_table
from unisegdiff_pipeline.inference.model_folder import (
    MASKS_FROM,
    WEIGHTS_NAME,
    load_weights,
    open_model_folder,
    read_weights,
    require_same_plan,
    save_tensors,
    save_weights,
    weights_of_all_folds,
)
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.inference.settings_words import settings_in_words
from unisegdiff_pipeline.io.prediction_files import scores_of_fold
from unisegdiff_pipeline.io.sources import source_of_case
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.planning.plans import StagePlan
from unisegdiff_pipeline.preprocessing.reference import reference_hashes, relabelled
from unisegdiff_pipeline.reports.training_log import of_kind
from unisegdiff_pipeline.selection.calibration import choose_calibration, choose_source_calibrations
from unisegdiff_pipeline.selection.choosing import Choice, choose_settings, chosen_on
from unisegdiff_pipeline.selection.found_lesions import HeldOutCase, choose_lesions, find_in_held_out
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.selection.objects import numbers_of_objects
from unisegdiff_pipeline.selection.stage_refinement import refined_stages
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from unisegdiff_pipeline.training.fold_files import CANDIDATES_NAME
from unisegdiff_pipeline.training.fold_run import STOP_NAME, FoldRun
from unisegdiff_pipeline.training.pretrained import (
    denoiser_tensors,
    load_denoiser,
    load_start,
    open_start,
    require_fair_phase_1,
    seen_by_phase_1,
)
from unisegdiff_pipeline.training.pretrained_start import PretrainedStart, StartRecord
from unisegdiff_pipeline.training.request import FoldResult
from unisegdiff_pipeline.training.resume import (
    LISTED_CASES,
    PHASE_1_FACTS_NAME,
    PHASE_1_NAME,
    REQUEST_NAME,
    START_NAME,
    describe_training,
    require_phase_1_of_plan,
    require_same_training,
)
from unisegdiff_pipeline.training.time_budget import (
    DESCRIBING_LIMIT_FRACTION,
    Costs,
    affordable_cases,
    fraction_s,
    measure_costs,
    phase_1_budget,
    phase_1_fraction,
    phase_2_budget,
    time_left_s,
    within_budget,
)
from unisegdiff_pipeline.training.trainers.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainers.trainer import Trainer
from unisegdiff_pipeline.training.validation import (
    REFERENCES,
    final_validation,
    fold_units,
)

LOGGER = logging.getLogger(__name__)
BEST_MARGIN = 0.005  # of Dice on the hold-out, by which earlier weights must be better to replace the last ones
BEST_STANDARD_ERRORS = 2.0  # and of that difference, case by case: of few cases the best is mostly the luckiest


@dataclass(frozen=True)
class Phase1Facts:
    """What phase 1 leaves for phase 2 beside its weights; the temperature is that of the denoiser's input there.

    Temperatures of single sources are those of a segmenter that stays alone: phase 2 chooses its own.
    """

    calibration: LogitCalibration = field(metadata=formerly("temperature"))
    weights: str
    iterations: Count
    seconds: NotNegative
    lam_a: LogSignalToNoise
    lam_c: LogSignalToNoise
    input_scale: tuple[Annotated[float, Range(1e-3, 1e3)], ...]
    holdout_dice: dict[str, Fraction]
    source_calibrations: dict[str, LogitCalibration] = field(default_factory=dict)


@torch.random.fork_rng(devices=[])  # models that are filled or timed draw initial weights from it
def train_fold(run: FoldRun, trainer: type[Trainer]) -> FoldResult:
    """Train one fold, or go on where it stopped; a finished fold is only read.

    Raises:
        TrainingInterrupted: on SIGINT or SIGTERM, after saving.
    """
    require_same_training(run, trainer)
    finished = (run.folder / WEIGHTS_NAME).is_file()
    _remove_stop_file_of_before(run, finished)
    if finished:  # a kill may have come between the two
        for name in (CHECKPOINT_NAME, START_NAME):
            (run.folder / name).unlink(missing_ok=True)
    checkpoint = load_checkpoint(run.folder, run.plan_hash)
    if finished:
        require_same_plan(run.folder / WEIGHTS_NAME, read_weights(run.folder / WEIGHTS_NAME)[1], run.plan_hash)
        run.watch.add(_seconds_so_far(run, checkpoint))
    if run.request.validate_only:
        require_weights(run.folder)
    elif is_finished(run.folder):
        if not of_kind(run.log.entries(), "finished"):  # a kill came between the scores and the entry
            _record_end(run)
        run.log.say(f"{run.folder} is trained; nothing to do (--restart begins again)")
        _warn_of_former_labels(run)
        return _result(run, _read_scores(run))
    if not finished:
        run.watch.add(_seconds_so_far(run, checkpoint))
        start = _start(run, checkpoint)
        run.log.say(f"to end the training early, with a complete model: touch {quoted(run.folder / STOP_NAME)}")
        if run.request.phase_1_from is not None and not (run.folder / PHASE_1_NAME).is_file():
            run.phase_1_seen = seen_by_phase_1(run.request.phase_1_from)
        write_json(run.folder / REQUEST_NAME, describe_training(run, trainer))
        _train_phases(run, trainer, checkpoint, start)
        for name in (CHECKPOINT_NAME, START_NAME):
            (run.folder / name).unlink(missing_ok=True)
    scores: dict[str, dict[str, float | None]] = {}
    if run.validation_cases:
        model, settings = finished_model(run)
        summary = final_validation(run, model, settings, None if run.request.validate_only else time_left_s(run))
        if summary is not None:
            LOGGER.info("%s", summary_table(summary, fold_units(run)))
            scores = _scores(summary)
    else:
        write_json(scores_of_fold(run.folder), {"summary": None, "cases": []})
    if run.request.validate_only:
        run.log.final_report()
        return _result(run, scores)
    _record_end(run)
    (run.folder / STOP_NAME).unlink(missing_ok=True)
    run.log.say(f"fold trained in {format_duration(run.watch.seconds)}; results in {run.folder}")
    return _result(run, scores)


def _warn_of_former_labels(run: FoldRun) -> None:
    """Say where the scores of a finished fold are by labels that have been corrected since."""
    path = scores_of_fold(run.folder)
    hashes = from_jsonable(dict[str, str], read_object(path).get(REFERENCES) or {}, f"{path}: {REFERENCES}")
    if former := relabelled(hashes, reference_hashes(run.data.folder.parent, hashes)):
        run.log.say(
            f"warning: {counted(len(former), 'validation case')} ({listed(former, LISTED_CASES)}) scored with other "
            f"labels than the data set has now; --val scores them again"
        )


def _remove_stop_file_of_before(run: FoldRun, finished: bool) -> None:
    """A stop file ends a training that has begun; one that lies there before is of an earlier training."""
    path = run.folder / STOP_NAME
    begun = (run.folder / CHECKPOINT_NAME).is_file() or (run.folder / PHASE_1_NAME).is_file()
    if path.exists() and (finished or not begun):
        path.unlink()
        run.log.say(f"{path} was there before this training and is removed")


def _record_end(run: FoldRun) -> None:
    run.log.record("finished", phase=3, iteration=0, seconds=run.watch.seconds)
    run.log.final_report()


def require_weights(folder: Path) -> None:
    """Raise a UsdError where a fold has not been trained to its end, so that there is nothing to validate."""
    if not (folder / WEIGHTS_NAME).is_file():
        raise UsdError(f"{folder} holds no finished fold to validate; train it first, without --val.")


def is_finished(folder: Path) -> bool:
    """Whether a fold's folder holds the final weights and the scores of its validation."""
    return (folder / WEIGHTS_NAME).is_file() and scores_of_fold(folder).is_file()


def _start(run: FoldRun, checkpoint: dict[str, Any] | None) -> PretrainedStart | None:
    """What a fold that begins now starts from; None for random weights, and where it has begun.

    What phase 2 will need of it is copied into the fold's folder, so that to continue nothing has to be read again.
    """
    if run.request.pretrained is None or checkpoint is not None or (run.folder / PHASE_1_NAME).is_file():
        return None
    start = open_start(run)
    run.start = StartRecord(start.hash, start.seen)
    tensors = denoiser_tensors(start, run.plans.labels)
    (run.folder / START_NAME).unlink(missing_ok=True)
    if tensors:
        save_tensors(run.folder / START_NAME, tensors, {"plan_hash": run.plan_hash})
    return start


def _train_phases(
    run: FoldRun, trainer: type[Trainer], checkpoint: dict[str, Any] | None, start: PretrainedStart | None
) -> None:
    two_phases = issubclass(trainer, DiffusionTrainer)
    fraction = phase_1_fraction(run, trainer)
    segmenter, facts = _phase_1(run, trainer, checkpoint, fraction, start)
    settings = InferenceSettings(
        lam_a=facts.lam_a,
        lam_c=facts.lam_c,
        input_scale=facts.input_scale,
        calibration=facts.calibration,
        denoiser_calibration=facts.calibration,
        segmenter_weight=0.0,
        weights=facts.weights,
    )
    in_phase_2 = checkpoint is not None and checkpoint["phase"] == 2
    if not two_phases or (run.is_asked_to_end and not in_phase_2):
        _finish_alone(run, segmenter, facts, settings, two_phases)
        return
    assert issubclass(trainer, DiffusionTrainer)
    denoiser = build_model(run.configuration, run.plans.labels, True).denoiser
    costs = measure_costs(run, to_device(StagedModel(segmenter, denoiser, run.plans.labels), run.device))
    start_s = _phase_start_s(checkpoint, 2)
    start_s = run.watch.seconds if start_s is None else start_s
    costs = within_budget(run, costs, start_s)
    budget = phase_2_budget(run, fraction, costs, start_s)
    phase_2 = trainer(run, budget, segmenter, settings)
    begins = run.request.pretrained is not None and (checkpoint is None or checkpoint["phase"] != 2)
    if begins and not (run.folder / START_NAME).is_file():
        run.log.say("the denoiser is new: the start has none for these classes")
    elif begins:
        run.log.say(load_denoiser(phase_2.network, read_weights(run.folder / START_NAME)[0]).table())
        phase_2.ema.network.load_state_dict(phase_2.network.state_dict())
    phase_2.fit(checkpoint)
    costs = within_budget(run, costs, start_s) if run.is_asked_to_end else costs
    settings = replace(phase_2.settings, weights=take_best(phase_2))
    model = phase_2.model_for_prediction()
    choice: Choice | None = None
    if not run.holdout_cases:
        settings = _settings_of_another_fold(run, settings)
    else:
        settings, choice = _chosen(run, model, settings, costs)
    _say_chosen(run, settings, choice)
    _finish(run, model, settings, choice)


def _finish_alone(
    run: FoldRun, segmenter: SegmentationUNet, facts: Phase1Facts, settings: InferenceSettings, two_phases: bool
) -> None:
    """End with the segmenter as the model: it is all that was asked for, or the stop file came before phase 2."""
    model = StagedModel(segmenter, None, run.plans.labels)
    if two_phases:
        run.log.say(
            "the stop file is there before phase 2: the model is the segmenter alone and samples no masks. "
            f"--run NAME --phase-1-from {quoted(run.folder)} trains phase 2 on it"
        )
    fitted = facts.holdout_dice and facts.calibration != planned_settings(run.configuration).calibration
    if fitted and not two_phases:
        settings = replace(settings, chosen_on="temperature on held-out cases, at the end of phase 1")
    alone = replace(settings, segmenter_weight=1.0, num_samples=0, source_calibrations=facts.source_calibrations)
    _finish(run, model, alone, None)


def _say_chosen(run: FoldRun, settings: InferenceSettings, choice: Choice | None) -> None:
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


def _chosen(
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
    found: list[HeldOutCase] = []
    with run.stop.limited(None if ends_s is None else ends_s - run.watch.seconds) as limit:
        for case in find_in_held_out(run.held_out, model, settings, calibrations):
            found.append(case)
    if limit.exceeded:
        of_all = f"{len(found)} of {counted(len(calibrations), 'held-out case')}"
        chosen = f"the lesion filter is chosen on {of_all}" if found else "no lesion filter is chosen"
        run.log.say(f"{chosen}, for lack of time (--max-time)")
    lesions = choose_lesions(found, run.plans.labels.names, numbers_of_objects(run.held_out)) if found else None
    return (settings if lesions is None else lesions.settings(settings)), choice


def _calibration(run: FoldRun, settings: InferenceSettings, case_id: str) -> LogitCalibration:
    """That of a case that it was not chosen on."""
    sources = run.configuration.sources
    return settings.for_source(sources, None if sources is None else source_of_case(case_id)).calibration


def _phase_1(
    run: FoldRun,
    trainer: type[Trainer],
    checkpoint: dict[str, Any] | None,
    fraction: float,
    start: PretrainedStart | None,
) -> tuple[SegmentationUNet, Phase1Facts]:
    """The segmenter and its temperature: from this fold's folder, another training, or trained now."""
    folder = run.folder
    if not (folder / PHASE_1_NAME).is_file() and run.request.phase_1_from is not None:
        folder = run.request.phase_1_from
        require_fair_phase_1(run, folder)
        require_phase_1_of_plan(run, folder)
    if (folder / PHASE_1_NAME).is_file():
        segmenter = build_model(run.configuration, run.plans.labels, False).segmenter
        load_weights(folder / PHASE_1_NAME, segmenter, run.plan_hash)
        if folder == run.folder:
            run.log.say("phase 1 has ended")
        else:
            run.log.say(f"phase 1 is taken from {folder / PHASE_1_NAME}")
        facts = read_dataclass(Phase1Facts, folder / PHASE_1_FACTS_NAME)
        if folder != run.folder:
            _keep_phase_1(run, segmenter, replace(facts, seconds=run.watch.seconds))
        return segmenter, facts
    kind = trainer if issubclass(trainer, SegmentationTrainer) else SegmentationTrainer
    if run.request.phase_2_only:
        assert start is not None  # until phase 1 is kept, nothing has begun
        weights, iterations = "pretrained", 0
        model = to_device(build_model(run.configuration, run.plans.labels, False), run.device).eval()
        _load_segmenter(run, model, start)
    else:
        phase_1 = kind(run, phase_1_budget(run, fraction, _phase_start_s(checkpoint, 1)), fraction)
        if start is not None:
            _load_segmenter(run, StagedModel(phase_1.network, None, run.plans.labels), start)
            phase_1.ema.network.load_state_dict(phase_1.network.state_dict())
        phase_1.fit(checkpoint)
        weights, iterations = take_best(phase_1), phase_1.iteration
        model = phase_1.model_for_prediction()
    segmenter = model.segmenter
    settings, dice = _settings_of_phase_1(run, model, issubclass(trainer, DiffusionTrainer))
    facts = Phase1Facts(
        settings.calibration,
        weights,
        iterations,
        run.watch.seconds,
        settings.lam_a,
        settings.lam_c,
        settings.input_scale,
        dice,
        dict(settings.source_calibrations),
    )
    _keep_phase_1(run, segmenter, facts)
    return segmenter, facts


def _load_segmenter(run: FoldRun, model: StagedModel, start: PretrainedStart) -> None:
    masks = run.plans.num_masks(run.configuration)
    report = load_start(model, run.configuration.network, start, len(run.plans.channel_names), masks)
    run.log.say(f"starts from {start.description}\n{report.table()}")


def _phase_start_s(checkpoint: dict[str, Any] | None, phase: int) -> float | None:
    """When a phase began that is continued now; None where it begins now."""
    return checkpoint["phase_start_s"] if checkpoint is not None and checkpoint["phase"] == phase else None


def _settings_of_phase_1(
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


def _keep_phase_1(run: FoldRun, segmenter: SegmentationUNet, facts: Phase1Facts) -> None:
    with run.stop.deferred():
        write_json(run.folder / PHASE_1_FACTS_NAME, facts)
        save_weights(run.folder / PHASE_1_NAME, segmenter, {"plan_hash": run.plan_hash})


def take_best(trainer: Trainer) -> str:
    """Put the best weights of the hold-out into the moving average where they are better than the last."""
    if trainer.best_weights is None:
        return "ema"
    gain, standard_error = trainer.gain_of_best()
    if gain <= max(BEST_MARGIN, BEST_STANDARD_ERRORS * standard_error):
        return "ema"
    trainer.ema.network.load_state_dict(trainer.best_weights)
    trainer.run.log.say(f"earlier weights, whose Dice on the hold-out is {gain:.3f} higher, replace the last")
    return "best"


def _finish(run: FoldRun, model: StagedModel, settings: InferenceSettings, choice: Choice | None) -> None:
    metadata = {
        "plan_hash": run.plan_hash,
        "dataset": run.plans.dataset_name,
        "configuration": run.configuration.name,
    }
    if run.data.masks is not None:
        metadata[MASKS_FROM] = weights_of_all_folds(open_model_folder(run.data.masks.parent))
    with run.stop.deferred():
        write_choice(run.folder, settings, choice)
        save_weights(run.folder / WEIGHTS_NAME, model, metadata)


def write_choice(folder: Path, settings: InferenceSettings, choice: Choice | None) -> None:
    """What a fold predicts with, and what was tried before that was chosen."""
    write_settings(folder, settings)
    tried = {} if choice is None else {"samplers": choice.samplers, "means": choice.means}
    write_json(folder / CANDIDATES_NAME, tried)


def finished_model(run: FoldRun) -> tuple[StagedModel, InferenceSettings]:
    """The model that a fold ended with, and what was chosen for it."""
    settings = read_settings(run.folder)
    with_denoiser = settings.num_samples > 0
    model = build_model(run.configuration, run.plans.labels, with_denoiser)
    load_weights(run.folder / WEIGHTS_NAME, model, run.plan_hash)
    return to_device(model, run.device).eval(), settings


def _settings_of_another_fold(run: FoldRun, settings: InferenceSettings) -> InferenceSettings:
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


def _seconds_so_far(run: FoldRun, checkpoint: dict[str, Any] | None) -> float:
    """Seconds of earlier sessions that count: up to the checkpoint, or to what has been finished since."""
    if checkpoint is not None:
        return float(checkpoint["seconds"])
    if not (run.folder / PHASE_1_NAME).is_file():
        return 0.0
    return max((float(e["seconds"]) for e in run.log.entries() if "seconds" in e), default=0.0)


def _result(run: FoldRun, scores: dict[str, dict[str, float | None]]) -> FoldResult:
    return FoldResult(run.fold, run.folder, scores, run.watch.seconds)


def _scores(summary: Summary) -> dict[str, dict[str, float | None]]:
    scores: dict[str, dict[str, float | None]] = {
        c.class_name: {"dice": c.mean_dice, "iou": c.mean_iou} for c in summary.classes
    }
    scores["mean"] = {"dice": summary.mean_dice, "iou": summary.mean_iou}
    return scores


def _read_scores(run: FoldRun) -> dict[str, dict[str, float | None]]:
    path = scores_of_fold(run.folder)
    stored = read_object(path).get("summary")
    if stored is None:
        return {}
    try:
        scores = {c["class_name"]: {"dice": c["mean_dice"], "iou": c["mean_iou"]} for c in stored["classes"]}
        scores["mean"] = {"dice": stored["mean_dice"], "iou": stored["mean_iou"]}
        return from_jsonable(dict[str, dict[str, float | None]], scores)
    except (KeyError, TypeError, UsdError):
        raise UsdError(
            f"{path} holds no scores as validation writes them; delete it and run the same command again: it only "
            f"validates anew."
        ) from None
