"""One fold from the first iteration to the scored validation: both phases, what is chosen, the final weights."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.summary import Summary, summary_table
from unisegdiff_pipeline.inference.model_folder import WEIGHTS_NAME, load_weights, save_weights
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.io.serialization import read_dataclass, read_json, write_json
from unisegdiff_pipeline.networks.staged_model import StagedModel, build_model
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.training.checkpoint import CHECKPOINT_NAME, load_checkpoint
from unisegdiff_pipeline.training.choosing import CALLS, Candidate, choose_settings, choose_temperature
from unisegdiff_pipeline.training.diffusion import DiffusionTrainer
from unisegdiff_pipeline.training.request import FoldResult
from unisegdiff_pipeline.training.schedule import PhaseBudget, Stopwatch, format_seconds
from unisegdiff_pipeline.training.segmentation import SegmentationTrainer
from unisegdiff_pipeline.training.trainer import FoldRun, Trainer
from unisegdiff_pipeline.training.validation import (
    SUMMARY_NAME,
    final_validation,
    planned_settings,
    predict_stored,
)

PHASE_1_NAME = "phase_1.safetensors"
PHASE_1_FACTS_NAME = "phase_1.json"
BEST_MARGIN = 0.005  # earlier weights replace the last ones only if they are clearly better on the hold-out
CHOOSING_SHARE = 0.05  # of the time budget, for choosing on the hold-out
MONITORING_SHARE = 0.005  # of the time budget, for one validation during training
LARGEST_FINAL_SHARE = 0.25  # of the time budget, kept for choosing and the final validation


@dataclass(frozen=True)
class Phase1Facts:
    """What phase 1 leaves for phase 2 beside its weights."""

    temperature: float
    weights: str
    iterations: int
    seconds: float


def train_fold(run: FoldRun, trainer: type[Trainer]) -> FoldResult:
    """Train one fold, or go on where it stopped; a finished fold is only read.

    Raises:
        TrainingInterrupted: on SIGINT or SIGTERM, after saving.
    """
    if (run.folder / WEIGHTS_NAME).is_file() and (run.folder / "validation" / SUMMARY_NAME).is_file():
        run.log.say(f"{run.folder} is trained; nothing to do (--restart begins again)")
        return _result(run, _read_scores(run))
    checkpoint = load_checkpoint(run.folder, run.plan_hash)
    run.watch = Stopwatch(float(checkpoint["seconds"]) if checkpoint else 0.0)
    write_json(run.folder / "request.json", _describe(run, trainer))
    if not (run.folder / WEIGHTS_NAME).is_file():
        _train_phases(run, trainer, checkpoint)
        (run.folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    scores: dict[str, dict[str, float | None]] = {}
    if run.validation_cases:
        model, settings = _finished_model(run)
        summary = final_validation(run, model, settings)
        print(summary_table(summary, volumes_nominal=not run.plans.spacing_known), flush=True)
        scores = _scores(summary)
    else:
        write_json(run.folder / "validation" / SUMMARY_NAME, {"summary": None, "cases": []})
    run.log.record("finished", phase=3, iteration=0, seconds=run.watch.seconds)
    run.log.draw()
    run.log.say(f"fold trained in {format_seconds(run.watch.seconds)}; results in {run.folder}")
    return _result(run, scores)


def _train_phases(run: FoldRun, trainer: type[Trainer], checkpoint: dict[str, Any] | None) -> None:
    two_phases = issubclass(trainer, DiffusionTrainer)
    share = run.configuration.training.phase_1_share if two_phases else 1.0
    segmenter, facts = _phase_1(run, trainer, checkpoint, share)
    settings = replace(planned_settings(run.configuration, facts.temperature), weights=facts.weights)
    if not two_phases:
        _finish(run, StagedModel(segmenter, None, run.plans.labels.coding), replace(settings, w=1.0, num_samples=0), [])
        return
    assert issubclass(trainer, DiffusionTrainer)
    start_s = checkpoint["phase_start_s"] if checkpoint and checkpoint["phase"] == 2 else run.watch.seconds
    labels = run.plans.labels
    denoiser = build_model(run.configuration, labels.coding, labels.num_channels, True).denoiser
    costs = _measure(run, StagedModel(segmenter.to(run.device), denoiser, labels.coding).to(run.device))
    phase_2 = trainer(run, _phase_2_budget(run, share, costs, start_s), segmenter, facts.temperature)
    phase_2.fit(checkpoint)
    weights = _take_best(phase_2)
    model = phase_2.model_for_prediction()
    ranked: list[Candidate] = []
    if run.holdout_cases:
        cases = costs.choosing_cases(run)
        run.log.say(f"choosing the number of calls and w on {len(cases)} held-out cases")
        settings, ranked = choose_settings(run, model, replace(settings, weights=weights), cases)
        text = f"{len(cases)} cases of the inner hold-out, {run.watch.seconds:.0f} s into the training"
        settings = replace(settings, chosen_on=text)
        best = ranked[0]
        run.log.say(
            f"chosen: {best.num_calls} calls, w = {best.w:g} (Dice {best.dice:.3f}, NLL {best.nll:.3f} on the hold-out)"
        )
    _finish(run, model, settings, ranked)


def _phase_1(
    run: FoldRun, trainer: type[Trainer], checkpoint: dict[str, Any] | None, share: float
) -> tuple[SegmentationUNet, Phase1Facts]:
    """The segmenter and its temperature: from this fold's folder, another training, or trained now."""
    folder = run.folder
    if not (folder / PHASE_1_NAME).is_file() and run.request.phase_1_from is not None:
        folder = run.request.phase_1_from
    if (folder / PHASE_1_NAME).is_file():
        labels = run.plans.labels
        segmenter = build_model(run.configuration, labels.coding, labels.num_channels, False).segmenter
        load_weights(folder / PHASE_1_NAME, segmenter, run.plan_hash)
        run.log.say(f"phase 1 is taken from {folder / PHASE_1_NAME}")
        return segmenter, read_dataclass(Phase1Facts, folder / PHASE_1_FACTS_NAME)
    kind = trainer if issubclass(trainer, SegmentationTrainer) else SegmentationTrainer
    phase_1 = kind(run, _phase_1_budget(run, share))
    phase_1.fit(checkpoint)
    weights = _take_best(phase_1)
    segmenter = phase_1.model_for_prediction().segmenter
    temperature = 1.0
    if run.holdout_cases:
        temperature = choose_temperature(run, phase_1.model_for_prediction(), run.monitored_cases)
        run.log.say(f"temperature of the segmenter on the hold-out: {temperature:g}")
    facts = Phase1Facts(temperature, weights, phase_1.iteration, run.watch.seconds)
    write_json(run.folder / PHASE_1_FACTS_NAME, facts)
    save_weights(run.folder / PHASE_1_NAME, segmenter, {"plan_hash": run.plan_hash})
    return segmenter, facts


def _take_best(trainer: Trainer) -> str:
    """Put the best weights of the hold-out into the moving average where they are clearly better than the last."""
    last = trainer.last_score
    if trainer.best_weights is not None and trainer.best_score > last + BEST_MARGIN:
        trainer.ema.network.load_state_dict(trainer.best_weights)
        trainer.run.log.say(f"weights with Dice {trainer.best_score:.3f} on the hold-out replace the last ({last:.3f})")
        return "best"
    return "ema"


def _finish(run: FoldRun, model: StagedModel, settings: InferenceSettings, ranked: list[Candidate]) -> None:
    write_settings(run.folder, settings)
    write_json(run.folder / "candidates.json", ranked)
    save_weights(
        run.folder / WEIGHTS_NAME,
        model,
        {"plan_hash": run.plan_hash, "dataset": run.plans.dataset_name, "configuration": run.configuration.name},
    )


def _finished_model(run: FoldRun) -> tuple[StagedModel, InferenceSettings]:
    settings = read_settings(run.folder)
    with_denoiser = settings.num_samples > 0
    labels = run.plans.labels
    model = build_model(run.configuration, labels.coding, labels.num_channels, with_denoiser)
    load_weights(run.folder / WEIGHTS_NAME, model, run.plan_hash)
    return model.to(run.device).eval(), settings


@dataclass(frozen=True)
class Costs:
    """Seconds that one held-out case takes to segment, and to sample with the default settings on top."""

    segment_s: float = 0.0
    sample_s: float = 0.0

    @property
    def choosing_s(self) -> float:
        """Seconds a case takes when settings are chosen: every number of calls is tried on it."""
        return self.segment_s + self.sample_s * sum(CALLS) / SamplerSettings().num_calls

    def choosing_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as the time for choosing allows, at least three."""
        if run.request.max_time_s is None:
            return run.holdout_cases
        affordable = int(CHOOSING_SHARE * run.request.max_time_s / max(self.choosing_s, 1e-6))
        return run.holdout_cases[: max(3, affordable)]

    def monitored_cases(self, run: FoldRun) -> tuple[str, ...]:
        """As many held-out cases as may be scored several times during training, at least three."""
        if run.request.max_time_s is None:
            return run.holdout_cases
        per_case = self.segment_s + self.sample_s / 2
        return run.holdout_cases[: max(3, int(MONITORING_SHARE * run.request.max_time_s / max(per_case, 1e-6)))]

    def final_s(self, run: FoldRun) -> float:
        """Seconds to keep for choosing, the final validation and what is unforeseen."""
        assert run.request.max_time_s is not None
        choosing = self.choosing_s * len(self.choosing_cases(run)) if self.sample_s else 0.0
        # Restoring and scoring a case cost about as much as segmenting it; more calls than the default may be chosen.
        validation = len(run.validation_cases) * (2 * self.segment_s + 2 * self.sample_s)
        return min(LARGEST_FINAL_SHARE * run.request.max_time_s, choosing + validation) + 2.0


def _measure(run: FoldRun, model: StagedModel) -> Costs:
    """Time one held-out (or training) case, under a time budget only.

    With untrained weights this is the slowest case there is, since everything is foreground to them.
    """
    if run.request.max_time_s is None:
        return Costs()
    stored = run.data.open((run.holdout_cases or run.train_cases)[0])
    settings = planned_settings(run.configuration)
    seconds = []
    for num_samples in (0, 0, 0 if model.denoiser is None else settings.num_samples):  # the first one warms up
        start = time.monotonic()
        predict_stored(run, model, stored, settings, num_samples)
        seconds.append(time.monotonic() - start)
    return Costs(seconds[1], 0.0 if model.denoiser is None else max(0.0, seconds[2] - seconds[1]))


def _phase_1_budget(run: FoldRun, share: float) -> PhaseBudget:
    total = _total_iterations(run)
    if total is not None:
        run.monitored_cases = run.holdout_cases
        return PhaseBudget(iterations=round(total * share))
    assert run.request.max_time_s is not None
    labels = run.plans.labels
    untrained = build_model(run.configuration, labels.coding, labels.num_channels, share < 1).to(run.device)
    costs = _measure(run, untrained)
    run.monitored_cases = replace(costs, sample_s=0.0).monitored_cases(run)
    return PhaseBudget(seconds=share * max(0.0, run.request.max_time_s - costs.final_s(run)))


def _phase_2_budget(run: FoldRun, share: float, costs: Costs, start_s: float) -> PhaseBudget:
    """What is left; `start_s` is when phase 2 began, which may have been in an earlier sitting."""
    run.monitored_cases = costs.monitored_cases(run)
    total = _total_iterations(run)
    if total is not None:
        return PhaseBudget(iterations=total - round(total * share))
    assert run.request.max_time_s is not None
    return PhaseBudget(seconds=max(1.0, run.request.max_time_s - costs.final_s(run) - start_s))


def _total_iterations(run: FoldRun) -> int | None:
    """Iterations of both phases; None under a time budget."""
    if run.request.max_time_s is not None:
        return None
    if run.request.iterations is not None:
        return run.request.iterations
    plan = run.configuration.training
    return (run.request.epochs or plan.num_epochs) * plan.iterations_per_epoch


def _describe(run: FoldRun, trainer: type[Trainer]) -> dict[str, Any]:
    return {
        "trainer": trainer.__name__,
        "configuration": run.configuration.name,
        "training": run.configuration.training,
        "max_time_s": run.request.max_time_s,
        "epochs": run.request.epochs,
        "iterations": run.request.iterations,
        "seed": run.request.seed,
        "device": str(run.device),
        "torch": torch.__version__,
        "train_cases": run.train_cases,
        "holdout_cases": run.holdout_cases,
        "validation_cases": run.validation_cases,
    }


def _result(run: FoldRun, scores: dict[str, dict[str, float | None]]) -> FoldResult:
    return FoldResult(run.folder.name.removeprefix("fold_"), run.folder, scores, run.watch.seconds)


def _scores(summary: Summary) -> dict[str, dict[str, float | None]]:
    scores: dict[str, dict[str, float | None]] = {
        c.class_name: {"dice": c.mean_dice, "iou": c.mean_iou} for c in summary.classes
    }
    scores["mean"] = {"dice": summary.mean_dice, "iou": summary.mean_iou}
    return scores


def _read_scores(run: FoldRun) -> dict[str, dict[str, float | None]]:
    stored = read_json(run.folder / "validation" / SUMMARY_NAME)["summary"]
    if stored is None:
        return {}
    scores = {c["class_name"]: {"dice": c["mean_dice"], "iou": c["mean_iou"]} for c in stored["classes"]}
    scores["mean"] = {"dice": stored["mean_dice"], "iou": stored["mean_iou"]}
    return scores
