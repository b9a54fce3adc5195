"""What a user asks of a training, in one dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unisegdiff_pipeline.io.paths import Roots

DEFAULT_TRAINER = "StagedDiffusionTrainer"


@dataclass(frozen=True)
class TrainRequest:
    """One call of usd_train.

    Attributes:
        dataset: number or name of the data set.
        fold: "0", "1", ..., "all" (one model on every case) or "cv" (all folds in sequence).
        roots: where raw, preprocessed and result folders lie.
        configuration: None takes the plan's recommended one.
        trainer: name in `registry.TRAINERS`, or package.module:Class.
        max_time_s: seconds for everything a fold does: both phases, choosing, the final validation.
        epochs, iterations: budget of both phases together; at most one of the three budgets may be given.
        batch_size, learning_rate: override the plan.
        workers: processes that prepare patches; None chooses from the cores, 0 works in this process.
        checkpoint_every_s: seconds between checkpoints.
        restart: begin again instead of continuing.
        phase_1_from: fold folder whose phase 1 has ended; its segmenter and held-out cases are taken over, phase 1 is
            skipped.
        tensorboard: also write TensorBoard events.
    """

    dataset: str
    fold: str
    roots: Roots
    configuration: str | None = None
    trainer: str = DEFAULT_TRAINER
    max_time_s: float | None = None
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    checkpoint_every_s: float = 300.0
    restart: bool = False
    phase_1_from: Path | None = None
    tensorboard: bool = False


@dataclass(frozen=True)
class FoldResult:
    """What a fold's training left behind.

    Attributes:
        fold: name of the fold.
        folder: its results folder.
        scores: mean over the fold's validation cases, keyed by class, "mean" included; empty for fold "all".
        seconds: training time, all sittings together.
    """

    fold: str
    folder: Path
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """Results of all folds that were trained, and where the table over them lies (cv only)."""

    folds: tuple[FoldResult, ...]
    summary_path: Path | None = None
    table: str = ""
