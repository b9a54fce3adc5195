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
from unisegdiff_pipeline.io.prediction_files import scores_of_fold
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.preprocessing.reference import reference_hashes, relabelled
from unisegdiff_pipeline.reports.training_log import of_kind
from unisegdiff_pipeline.selection.choosing import Choice
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from unisegdiff_pipeline.training.fold_files import CANDIDATES_NAME
from unisegdiff_pipeline.training.fold_run import STOP_NAME, FoldRun
from unisegdiff_pipeline.training.fold_settings import (
    choose_on_hold_out,
    say_chosen,
    settings_of_another_fold,
    settings_of_phase_1,
)
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
    Costs,
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
        _remove_what_only_training_needs(run.folder)
    checkpoint = load_checkpoint(run.folder, run.plan_hash)
    if finished:
        require_same_plan(run.folder / WEIGHTS_NAME, read_weights(run.folder / WEIGHTS_NAME)[1], run.plan_hash)
    run.watch.add(_seconds_so_far(run, checkpoint))
    if run.request.validate_only:
        require_weights(run.folder)
        scores = _validate(run, None)
        run.log.final_report()
    elif is_finished(run.folder):
        if not of_kind(run.log.entries(), "finished"):  # a kill came between the scores and the entry
            _record_end(run)
        run.log.say(f"{run.folder} is trained; nothing to do (--restart begins again)")
        _warn_of_former_labels(run)
        scores = _read_scores(run)
    else:
        if not finished:
            _train(run, trainer, checkpoint)
        scores = _validate(run, time_left_s(run))
        _record_end(run)
        (run.folder / STOP_NAME).unlink(missing_ok=True)
        run.log.say(f"fold trained in {format_duration(run.watch.seconds)}; results in {run.folder}")
    return FoldResult(run.fold, run.folder, scores, run.watch.seconds)


def _validate(run: FoldRun, left_s: float | None) -> dict[str, dict[str, float | None]]:
    """Predict and score the validation cases, as many as `left_s` seconds allow; scores by class and on average."""
    if not run.validation_cases:
        write_json(scores_of_fold(run.folder), {"summary": None, "cases": []})
        return {}
    model, settings = finished_model(run)
    summary = final_validation(run, model, settings, left_s)
    if summary is None:
        return {}
    LOGGER.info("%s", summary_table(summary, fold_units(run)))
    return _scores(summary)


def _remove_what_only_training_needs(folder: Path) -> None:
    for name in (CHECKPOINT_NAME, START_NAME):
        (folder / name).unlink(missing_ok=True)


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


def _train(run: FoldRun, trainer: type[Trainer], checkpoint: dict[str, Any] | None) -> None:
    """Train both phases, or what is left of them, and write the final weights and how to predict with them."""
    start = _start(run, checkpoint)
    run.log.say(f"to end the training early, with a complete model: touch {quoted(run.folder / STOP_NAME)}")
    if run.request.phase_1_from is not None and not (run.folder / PHASE_1_NAME).is_file():
        run.phase_1_seen = seen_by_phase_1(run.request.phase_1_from)
    write_json(run.folder / REQUEST_NAME, describe_training(run, trainer))
    segmenter, facts = _phase_1(run, trainer, checkpoint, start)
    settings = InferenceSettings(
        lam_a=facts.lam_a,
        lam_c=facts.lam_c,
        input_scale=facts.input_scale,
        calibration=facts.calibration,
        denoiser_calibration=facts.calibration,
        segmenter_weight=0.0,
        weights=facts.weights,
    )
    ends_before = run.is_asked_to_end and _phase_start_s(checkpoint, 2) is None
    if not issubclass(trainer, DiffusionTrainer) or ends_before:
        _finish_alone(run, segmenter, facts, settings, two_phases=issubclass(trainer, DiffusionTrainer))
    else:
        phase_2, costs = _phase_2(run, trainer, checkpoint, segmenter, settings)
        settings = replace(phase_2.settings, weights=take_best(phase_2))
        model = phase_2.model_for_prediction()
        choice: Choice | None = None
        if not run.holdout_cases:
            settings = settings_of_another_fold(run, settings)
        else:
            settings, choice = choose_on_hold_out(run, model, settings, costs)
        say_chosen(run, settings, choice)
        _finish(run, model, settings, choice)
    _remove_what_only_training_needs(run.folder)


def _phase_2(
    run: FoldRun,
    trainer: type[DiffusionTrainer],
    checkpoint: dict[str, Any] | None,
    segmenter: SegmentationUNet,
    settings: InferenceSettings,
) -> tuple[DiffusionTrainer, Costs]:
    """Phase 2, trained to its end, and what choosing and validation may cost after it."""
    denoiser = build_model(run.configuration, run.plans.labels, True).denoiser
    costs = measure_costs(run, to_device(StagedModel(segmenter, denoiser, run.plans.labels), run.device))
    former_start_s = _phase_start_s(checkpoint, 2)
    start_s = run.watch.seconds if former_start_s is None else former_start_s
    costs = within_budget(run, costs, start_s)
    budget = phase_2_budget(run, phase_1_fraction(run, trainer), costs, start_s)
    phase_2 = trainer(run, budget, segmenter, settings)
    if run.request.pretrained is not None and former_start_s is None:
        if (run.folder / START_NAME).is_file():
            run.log.say(load_denoiser(phase_2.network, read_weights(run.folder / START_NAME)[0]).table())
            phase_2.ema.network.load_state_dict(phase_2.network.state_dict())
        else:
            run.log.say("the denoiser is new: the start has none for these classes")
    phase_2.fit(checkpoint)
    return phase_2, within_budget(run, costs, start_s) if run.is_asked_to_end else costs


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


def _phase_1(
    run: FoldRun, trainer: type[Trainer], checkpoint: dict[str, Any] | None, start: PretrainedStart | None
) -> tuple[SegmentationUNet, Phase1Facts]:
    """The segmenter and its temperature: from this fold's folder, another training, or trained now."""
    if (run.folder / PHASE_1_NAME).is_file():
        kept = _read_phase_1(run, run.folder)
        run.log.say("phase 1 has ended")
        return kept
    if (other := run.request.phase_1_from) is not None:
        require_fair_phase_1(run, other)
        require_phase_1_of_plan(run, other)
        segmenter, facts = _read_phase_1(run, other)
        run.log.say(f"phase 1 is taken from {other / PHASE_1_NAME}")
        _keep_phase_1(run, segmenter, replace(facts, seconds=run.watch.seconds))
        return segmenter, facts
    if run.request.phase_2_only:
        assert start is not None  # until phase 1 is kept, nothing has begun
        weights, iterations = "pretrained", 0
        model = to_device(build_model(run.configuration, run.plans.labels, False), run.device).eval()
        _load_segmenter(run, model, start)
    else:
        kind = trainer if issubclass(trainer, SegmentationTrainer) else SegmentationTrainer
        fraction = phase_1_fraction(run, trainer)
        phase_1 = kind(run, phase_1_budget(run, fraction, _phase_start_s(checkpoint, 1)), fraction)
        if start is not None:
            _load_segmenter(run, StagedModel(phase_1.network, None, run.plans.labels), start)
            phase_1.ema.network.load_state_dict(phase_1.network.state_dict())
        phase_1.fit(checkpoint)
        weights, iterations = take_best(phase_1), phase_1.iteration
        model = phase_1.model_for_prediction()
    segmenter = model.segmenter
    settings, dice = settings_of_phase_1(run, model, issubclass(trainer, DiffusionTrainer))
    facts = Phase1Facts(
        calibration=settings.calibration,
        weights=weights,
        iterations=iterations,
        seconds=run.watch.seconds,
        lam_a=settings.lam_a,
        lam_c=settings.lam_c,
        input_scale=settings.input_scale,
        holdout_dice=dice,
        source_calibrations=dict(settings.source_calibrations),
    )
    _keep_phase_1(run, segmenter, facts)
    return segmenter, facts


def _read_phase_1(run: FoldRun, folder: Path) -> tuple[SegmentationUNet, Phase1Facts]:
    """The segmenter and its temperature as a phase 1 left them in a fold's folder."""
    segmenter = build_model(run.configuration, run.plans.labels, False).segmenter
    load_weights(folder / PHASE_1_NAME, segmenter, run.plan_hash)
    return segmenter, read_dataclass(Phase1Facts, folder / PHASE_1_FACTS_NAME)


def _load_segmenter(run: FoldRun, model: StagedModel, start: PretrainedStart) -> None:
    masks = run.plans.num_masks(run.configuration)
    report = load_start(model, run.configuration.network, start, len(run.plans.channel_names), masks)
    run.log.say(f"starts from {start.description}\n{report.table()}")


def _phase_start_s(checkpoint: dict[str, Any] | None, phase: int) -> float | None:
    """When a phase began that is continued now; None where it begins now."""
    return checkpoint["phase_start_s"] if checkpoint is not None and checkpoint["phase"] == phase else None


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


def _seconds_so_far(run: FoldRun, checkpoint: dict[str, Any] | None) -> float:
    """Seconds of earlier sessions that count: up to the checkpoint, or to what has been finished since."""
    if checkpoint is not None:
        return float(checkpoint["seconds"])
    if not (run.folder / PHASE_1_NAME).is_file():
        return 0.0
    return max((float(e["seconds"]) for e in run.log.entries() if "seconds" in e), default=0.0)


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
