"""What a user asks of a training, in one dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.planning.plans import Augmentation, ConfigurationPlan
from unisegdiff_pipeline.training.data.splits import Folds
from unisegdiff_pipeline.training.loggers import LoggerName

Kept = Literal["auto", "masks", "all"]
DEFAULT_TRAINER = "StagedDiffusionTrainer"
DEFAULT_SEED = 0
SYNTHETIC = "synthetic"  # the start that comes with the package
SYNTHETIC_WEIGHTS = Path(__file__).parent / "assets" / "synthetic_lesions.safetensors"


def start_path(source: str) -> Path:
    """What `--pretrained` names: the file of the package for the word "synthetic", else a path."""
    return SYNTHETIC_WEIGHTS if source == SYNTHETIC else Path(source)


def start_name(path: Path) -> str:
    """The word for the file of the package, which may be installed elsewhere tomorrow; else the absolute path."""
    return SYNTHETIC if path == SYNTHETIC_WEIGHTS else str(path.absolute())


@dataclass(frozen=True)
class TrainRequest:
    """What is asked of a training: data set, fold, budget, and what differs from the plan.

    Example:
        >>> request = usd.TrainRequest("902", fold="0", roots=roots, max_time_s=3600)
        >>> request.fold, request.seed_or_default
        ('0', 0)

    What is None is left open: a fold that was begun goes on with what it was asked then, a new one takes the plan's
    value (seed: DEFAULT_SEED).

    Attributes:
        dataset: number or name of the data set.
        fold: "0", "1", ..., "all" (one model on every case) or "cv" (all folds in sequence).
        roots: where raw, preprocessed and result folders lie.
        configuration: None takes the plan's recommended one.
        trainer: name in `registry.TRAINERS`, or package.module:Class.
        max_time_s: seconds for everything a fold does: both phases, choosing, the final validation.
        epochs, iterations: budget of both phases together; at most one of the three budgets may be given.
        batch_size, learning_rate, augmentation: override the plan.
        workers: processes that prepare patches; None chooses from the cores, 0 works in this process.
        checkpoint_every_s: seconds between checkpoints.
        restart: begin again instead of resuming.
        phase_1_from: fold folder whose phase 1 has ended; its segmenter and held-out cases are taken over, phase 1 is
            skipped.
        pretrained: what to start from instead of random weights, see `pretrained.read_start` and `start_path`.
        phase_2_only: skip phase 1; the segmenter of `pretrained` takes its place, which must be of the same classes,
            input channels and architecture.
        logger: "tensorboard", "wandb" or "mlflow": where numbers of the training go besides log.jsonl.
        tensorboard: the same as logger="tensorboard".
        save_validation: what is kept of the validation cases: "masks", "all" (probabilities and samples, too), or
            "auto" (None for a new fold): all where it is little; see `validation_files`.
        validate_only: predict the validation cases of finished folds again, and train nothing.
        run: name of a training beside others of the same trainer and configuration; part of the model folder's name.
        plans: name of the plan; None is the default one, plans.json.
        patience: end a phase when its held-out score has not become better for so many looks.
        deterministic: compute by torch's deterministic algorithms alone; not with `max_time_s`.
        compile: compile the networks by torch before they are trained; not with `deterministic`. None: long trainings
            on a GPU, see `compilation.is_worthwhile`.
        splits: how folds are made where the data set has none: "default" (grouped, stratified), "nnunet" or "by-group".
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
    augmentation: Augmentation | None = None
    seed: int | None = None
    workers: int | None = None
    device: str = "auto"
    checkpoint_every_s: float = 300.0
    restart: bool = False
    phase_1_from: Path | None = None
    pretrained: Path | None = None
    phase_2_only: bool | None = None
    tensorboard: bool = False
    logger: LoggerName | None = None
    save_validation: Kept | None = None
    validate_only: bool = False
    run: str | None = None
    plans: str | None = None
    patience: int | None = None
    deterministic: bool | None = None
    compile: bool | None = None
    splits: Folds = "default"

    def __post_init__(self) -> None:
        for name in ("dataset", "fold"):
            object.__setattr__(self, name, str(getattr(self, name)))  # numbers are natural in Python
        if self.tensorboard:
            if self.logger not in (None, "tensorboard"):
                raise UsdError(
                    f"tensorboard (--tensorboard) and logger {self.logger} were both given; keep one of them."
                )
            object.__setattr__(self, "logger", "tensorboard")

    @property
    def seed_or_default(self) -> int:
        """The seed, where it is left open the default one."""
        return DEFAULT_SEED if self.seed is None else self.seed


FoldState = Literal["new", "restarted", "begun", "finished", "validated"]


@dataclass(frozen=True)
class FoldPreview:
    """What would be done with a fold.

    Attributes:
        fold: name of the fold.
        folder: its results folder.
        state: what is there now, or that it begins again.
        request: what it is asked, nothing left open that it was asked before.
        configuration: the plan, with the request's overrides.
    """

    fold: str
    folder: Path
    state: FoldState
    request: TrainRequest
    configuration: ConfigurationPlan


@dataclass(frozen=True)
class FoldResult:
    """What a fold's training left behind.

    Attributes:
        fold: name of the fold.
        folder: its results folder.
        scores: mean over the fold's validation cases, keyed by class, "mean" included; empty for fold "all".
        seconds: training time, all sessions together.
    """

    fold: str
    folder: Path
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class CollectedCases:
    """Where the cases lie, the folder of their label files (None where they lie in several or are not known), and the
    cases that a fold had no time for.
    """

    folder: Path
    labels: Path | None
    not_validated: tuple[str, ...]


@dataclass(frozen=True)
class TrainResult:
    """Results of all folds that were trained; of all folds (cv) also where the table over them and their cases lie.

    Example:
        >>> result = usd.train(request)
        >>> [(fold.fold, fold.folder.parent.name) for fold in result.folds]
        [('0', 'SegmentationTrainer__2d')]
    """

    folds: tuple[FoldResult, ...]
    summary_path: Path | None = None
    table: str = ""
    collected: CollectedCases | None = None
