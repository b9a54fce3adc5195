"""The training loop that both phases share; what a step is, subclasses say."""

from __future__ import annotations

import abc
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.progress import counted, format_duration
from unisegdiff_pipeline.core.serialization import to_jsonable
from unisegdiff_pipeline.evaluation.comparison import macro_gain
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.precision import autocast, is_faster_in_bf16
from unisegdiff_pipeline.networks.sources import source_parameters
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.networks.unet import SegmentationUNet
from unisegdiff_pipeline.reports.training_log import PHASES, of_kind
from unisegdiff_pipeline.training.adamw import AdamW
from unisegdiff_pipeline.training.checkpoint import save_checkpoint
from unisegdiff_pipeline.training.compilation import compile_in_place, compiler_errors, undo_compilation
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.data.patches import Batch, Part, PatchSource
from unisegdiff_pipeline.training.ema import Ema, cpu_state
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.interrupt import TrainingInterrupted
from unisegdiff_pipeline.training.pictures import Moment
from unisegdiff_pipeline.training.ranks import RankLost, StepOrder
from unisegdiff_pipeline.training.schedule import PhaseBudget, learning_rate, risen
from unisegdiff_pipeline.training.validation import HeldOutDice

GRADIENT_CLIP = 12.0  # nnU-Net's
LOG_EVERY_S = 10.0
LOADER_TIMEOUT_S = 600.0
LOOKS_OF_PATIENCE = 4  # times patience looks at held-out cases in a phase, so that patience is a quarter of it
PROBING_FRACTION = 0.1  # of a phase's time, for finding out whether bf16 is faster


class Diverged(UsdError):
    """A gradient is no number, on all processes that share the batch."""


@dataclass(frozen=True)
class StepResult:
    """Loss to descend, and numbers to log: means over a batch, or over the part of it that a process has.

    Attributes:
        summed: they are terms already, which the processes that share the batch only have to add up.
    """

    loss: Tensor
    logged: dict[str, Tensor]
    summed: bool = False

    def of_part(self, part: Part | None) -> StepResult:
        """The terms of this process, of means over a part of a batch; the means of a part without examples are 0."""
        if part is None:
            return self
        if len(part.rows) == 0:
            logged = {name: torch.zeros_like(value) for name, value in self.logged.items()}
            return StepResult(torch.zeros_like(self.loss), logged, summed=True)
        logged = {name: value * part.fraction for name, value in self.logged.items()}
        return StepResult(self.loss * part.fraction, logged, summed=True)


class Trainer(abc.ABC):
    """One phase of a fold: loop, moving average, mixed precision, checkpoints, log.

    A subclass builds the network that learns, says what a step is and how held-out cases are scored.

    Args:
        run: what the phases of the fold share.
        budget: how long this phase lasts.
        schedule_end: where the learning rate's schedule is at the end of this phase; below 1 where a later phase goes
            on with the same weights.
    """

    phase: ClassVar[int]
    num_validations: ClassVar[int]  # on held-out cases, over the phase, where no patience asks for more

    def __init__(self, run: FoldRun, budget: PhaseBudget, schedule_end: float = 1.0) -> None:
        self.run = run
        self.budget = budget
        self.schedule_end = schedule_end
        self.plan = run.configuration.training
        self.coding = run.plans.labels.coding
        self.iteration = 0
        self.phase_start_s = run.watch.seconds
        # Dice of each held-out case with `best_weights`, and with the last ones that were looked at
        self.best: tuple[float, ...] = ()
        self.last: tuple[float, ...] = ()
        self.groups: tuple[str, ...] = ()
        self.sources: tuple[str, ...] = ()
        self.best_weights: dict[str, Tensor] | None = None
        self.looks_without_gain = 0  # since the best one
        self.validated = 0  # looks at held-out cases so far, without the one at the end
        self.last_look: int | None = None  # iteration of the last one of this session
        self.bf16: bool | None = None  # decided on the first batch, and kept when the training is continued
        self.is_compiled = False
        with torch.random.fork_rng(devices=[]):  # weights are made on the CPU; the caller's generator stays as it is
            torch.manual_seed(run.derived_seed("weights", self.phase))
            network = self.build_network()
        self.network = to_device(network, run.device)
        self.ema = Ema(self.network, self.plan.ema_decay)
        self.optimizer = self._build_optimizer()

    @abc.abstractmethod
    def build_network(self) -> nn.Module:
        """The network whose weights this phase learns, freshly initialised from torch's global generator."""

    @abc.abstractmethod
    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        """Forward pass and loss of one batch; runs under autocast."""

    @abc.abstractmethod
    def model_for_prediction(self) -> StagedModel:
        """The model with the moving average of this phase's weights."""

    @abc.abstractmethod
    def validate(self) -> HeldOutDice:
        """Dice on the inner hold-out."""

    def compiled_networks(self) -> list[nn.Module]:
        """What is compiled where the run is: the modules that a step calls."""
        return [self.network]

    def extra_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the network that the optimiser also moves, without weight decay."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's parameters as groups of the optimiser, each with the "span" of the schedule it goes through."""
        return self.network_groups(self.network, (0.0, self.schedule_end))

    def network_groups(self, network: nn.Module, span: tuple[float, float]) -> list[dict[str, Any]]:
        """A network's parameters; those of single sources are a group of their own where they have a rate of their own.

        Args:
            network: whose parameters they are.
            span: of the schedule.
        """
        parameters, tables = list(network.parameters()), source_parameters(network)
        sources = self.run.configuration.sources
        if not tables or sources is None or sources.learning_rate_factor == 1:
            return [{"params": parameters, "span": span}]
        factor = {"factor": sources.learning_rate_factor, "warmup": 0.0}
        return [{"params": without(parameters, tables), "span": span}, {"params": tables, "span": span, **factor}]

    def segmenter_groups(
        self, segmenter: SegmentationUNet, span: tuple[float, float], warmup: float
    ) -> list[dict[str, Any]]:
        """The segmenter's parameters; an encoder that does not start from random weights is a group of its own.

        Args:
            segmenter: whose parameters they are.
            span: of the schedule.
            warmup: fraction of the phase over which the rate of such an encoder rises from zero.
        """
        whole, *tables = self.network_groups(segmenter, span)
        if self.run.request.pretrained is None:
            return [whole, *tables]
        encoder = list(segmenter.encoder.parameters())
        factor = {"factor": self.plan.pretrained_encoder_rate, "warmup": warmup}
        rest = {"params": without(whole["params"], encoder), "span": span}
        return [rest, {"params": encoder, "span": span, **factor}, *tables]

    def after_step(self) -> None:  # noqa: B027 (most phases need nothing here)
        """Called after every step of the optimiser, to keep parameters within their limits."""

    def fit(self, checkpoint: dict[str, Any] | None = None) -> None:
        """Train until the budget is spent, patience runs out, or the stop file is there.

        Continues from `checkpoint` if it is of this phase.

        Raises:
            TrainingInterrupted: after SIGINT or SIGTERM, with the checkpoint saved.
        """
        if checkpoint is not None and checkpoint["phase"] == self.phase:
            self._restore(checkpoint)
        else:
            self.run.log.forget_phase(self.phase)
        run = self.run
        source = self.patches()
        run.log.say(f"phase {self.phase}, {PHASES.get(self.phase, '')} ({type(self).__name__}): {self._describe()}")
        self.network.train()
        run.ranks.begin_phase(lambda: (run.for_followers(), self))
        try:
            self._train_on(source)
            self._say_why_ended()
            self.save()
            if not run.is_asked_to_end and self.last_look != self.iteration:
                self._validate()
        except (TrainingInterrupted, RankLost):
            if self.iteration > 0:
                self.save()
            raise

    def patches(self) -> PatchSource:
        """The patches of this phase, or of each batch the items of this process."""
        run = self.run
        # Phase 2 sees other patches than phase 1 did.
        seed = 2 * run.seed + self.phase - 1
        source = PatchSource(run.data, run.train_cases, run.configuration, run.plans.labels, seed, augment=True)
        source.restrict(run.ranks.items(self.plan.batch_size))
        return source

    def __getstate__(self) -> dict[str, Any]:
        """What the other processes need of a phase: without what the first has alone."""
        return {**self.__dict__, "run": None, "ema": None, "best_weights": None, "is_compiled": False}

    def _train_on(self, source: PatchSource) -> None:
        run = self.run
        last_save = last_log = lap = time.monotonic()
        seconds_of_iterations = 0.0  # since the last log entry, without validations and checkpoints
        sums: dict[str, list[Tensor]] = defaultdict(list)
        pinned = run.device.type == "cuda"
        self._validate_if_due()  # where a former session ended before it could
        with open_loader(
            source, self.iteration, self.budget.iterations, run.workers, LOADER_TIMEOUT_S, pinned
        ) as batches:
            for batch in batches:
                if self.is_over and self.iteration > 0:
                    break
                for name, value in self.iterate(batch).items():
                    sums[name].append(value)
                now = time.monotonic()
                seconds_of_iterations += now - lap
                if now - last_log > LOG_EVERY_S or self.is_over:
                    self._log(sums, seconds_of_iterations)
                    sums.clear()
                    last_log, seconds_of_iterations = now, 0.0
                self._validate_if_due()
                run.leave_if_asked()
                if time.monotonic() - last_save > run.request.checkpoint_every_s:
                    self.save()
                    run.log.refresh_report()
                    last_save = time.monotonic()
                lap = time.monotonic()
        if sums:  # of a phase that a look, or the stop file, has ended
            self._log(sums, seconds_of_iterations)

    @property
    def progress(self) -> float:
        """Fraction of this phase that is done."""
        return self.budget.progress(self.iteration, self.run.watch.seconds - self.phase_start_s)

    @property
    def is_over(self) -> bool:
        """Whether this phase is to end now."""
        return self.progress >= 1 or self._is_out_of_patience or self.run.is_asked_to_end

    @classmethod
    def looks(cls, patience: int | None) -> int:
        """At held-out cases, over a whole phase."""
        return max(cls.num_validations, LOOKS_OF_PATIENCE * (patience or 0))

    @property
    def num_looks(self) -> int:
        """At held-out cases, over the phase."""
        return self.looks(self.run.request.patience)

    @property
    def _is_out_of_patience(self) -> bool:
        patience = self.run.request.patience
        return patience is not None and self.looks_without_gain >= patience

    def _say_why_ended(self) -> None:
        """Log an end before the budget is spent; once, however often the training is resumed after it."""
        if self.progress >= 1 or of_kind(self.run.log.entries(), "ended_early", self.phase):
            return
        if self.run.is_asked_to_end:
            reason = "the stop file is there"
        else:
            reason = f"no better Dice on held-out cases in {counted(self.looks_without_gain, 'look')} (--patience)"
        self.run.log.record(
            "ended_early",
            phase=self.phase,
            iteration=self.iteration,
            seconds=self.run.watch.seconds,
            progress=self.progress,
            reason=reason,
        )
        self.run.log.say(f"phase {self.phase} ends at {self.progress:.0%} of its length: {reason}")

    @property
    def moment(self) -> Moment:
        """Where the training is, for the pictures of a held-out case."""
        return Moment(self.phase, self.iteration)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "phase": self.phase,
            "iteration": self.iteration,
            "seconds": self.run.watch.seconds,
            "phase_start_s": self.phase_start_s,
            "plan_hash": self.run.plan_hash,
            "network": self.network.state_dict(),
            "extra": [p.detach() for p in self.extra_parameters()],
            "ema": self.ema.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_weights": self.best_weights,
            "validated": self.validated,
            "looks_without_gain": self.looks_without_gain,
            "bf16": self.bf16,
            "log_entries": self.run.log.num_entries,
        }
        with self.run.stop.deferred():
            save_checkpoint(self.run.folder, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.phase_start_s = state["phase_start_s"]
        self.network.load_state_dict(state["network"])
        with torch.no_grad():
            for parameter, value in zip(self.extra_parameters(), state["extra"], strict=True):
                parameter.copy_(value)
        self.ema.network.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.best_weights = tuple(state["best"]), state["best_weights"]
        # Checkpoints of earlier versions were not made while a validation was due.
        self.validated = state.get("validated", math.floor(self.progress * self.num_looks))
        self.looks_without_gain = state.get("looks_without_gain", 0)
        self.bf16 = state["bf16"]
        if "log_entries" in state:  # not in checkpoints of earlier versions
            self.run.log.keep(state["log_entries"])
        self.run.log.say(f"continuing phase {self.phase} at iteration {self.iteration}")

    def step(self, batch: Batch) -> None:
        """One iteration on its own, for timing: nothing is written."""
        if self.bf16 is None:
            self.bf16 = self._choose_bf16(batch.to(self.run.device))
        self.iterate(batch)

    def iterate(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the optimiser and of the moving average; returns the loss and what else is logged."""
        batch = batch.to(self.run.device)
        if self.bf16 is None:
            self.bf16 = self._choose_bf16(batch)
            precision = "bfloat16, which is faster here" if self.bf16 else "single precision (fp32)"
            self.run.log.say(f"phase {self.phase} computes in {precision}")
            self.save()  # the choice goes by the clock; a training that is continued must keep it
        step = StepOrder(self.iteration, self.progress, self.bf16)
        with self.run.ranks.leading(step, self.run.stop):
            return self.take_step(step, batch)

    def take_step(self, step: StepOrder, batch: Batch) -> dict[str, Tensor]:
        """One iteration as the leading process decides it, on the items of the batch that this process has.

        Args:
            step: what is decided.
            batch: on the device of the training.
        """
        for group in self.optimizer.param_groups:
            start, end = group["span"]
            base = self.plan.learning_rate
            if "factor" in group:
                base *= group["factor"] * risen(group["warmup"], step.progress)
            group["lr"] = learning_rate(base, step.iteration, start + (end - start) * step.progress)
        ranks = self.run.ranks
        if ranks.size > 1:
            batch = replace(batch, part=Part(self.plan.batch_size, torch.tensor(ranks.items(self.plan.batch_size))))
        with autocast(self.run.device, self.bf16):
            result = self._compiled_backward(batch) if self.run.compiled else self._backward(batch)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        numbers = ranks.sum_step(parameters, {"loss": result.loss.detach(), **result.logged}, self.run.stop)
        groups = [group["params"] for group in self.optimizer.param_groups]
        # A group without any gradient has a norm of zero, on the CPU.
        norms = [nn.utils.clip_grad_norm_(params, GRADIENT_CLIP).to(self.run.device) for params in groups]
        norm = torch.stack(norms).norm()
        if not torch.isfinite(norm):
            others = "" if batch.part is None else " or others of the batch"
            raise Diverged(
                f"the gradient of phase {self.phase} is {norm.item()} at iteration {self.iteration}, cases "
                f"{', '.join(batch.case_ids)}{others}: the training has diverged. Lower --lr (now "
                f"{self.plan.learning_rate:g}) and begin again with --restart."
            )
        with self.run.stop.deferred():
            self.optimizer.step()
            self.after_step()
            if ranks.leads:
                self.ema.update(self.network, self.iteration)
            self.iteration += 1
        return {"loss": numbers.pop("loss"), "gradient_norm": norm.detach(), **numbers}

    def _compiled_backward(self, batch: Batch) -> StepResult:
        """`_backward` by compiled networks; what fails where nobody asked for a compiler is computed without it."""
        run = self.run
        if not self.is_compiled:
            compile_in_place(self.compiled_networks())
            self.is_compiled = True
            if run.ranks.leads:
                run.log.say(
                    f"phase {self.phase}: torch compiles the networks at the first iterations, which takes a minute or "
                    f"more (--no-compile leaves it out)"
                )
        if run.request.compile:
            with compiler_errors():
                return self._backward(batch)
        try:
            return self._backward(batch)
        except Exception as error:  # of the compiler, or of what it made; any other is raised again below
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        # Behind the handler, which would keep all that the failed step holds in memory.
        undo_compilation(self.compiled_networks())
        self.is_compiled = run.compiled = False
        run.log.say(f"warning: torch cannot compile the networks here, so they are trained without it ({reason})")
        return self._backward(batch)

    def _backward(self, batch: Batch) -> StepResult:
        """Loss and fresh gradients of a batch; the generator makes it the same however often it is called."""
        self.optimizer.zero_grad()
        result = self.training_step(batch, self.run.generator(self.phase, self.iteration))
        if not result.summed:
            result = result.of_part(batch.part)
        if batch.part is None or result.loss.requires_grad:  # a process may have no example of a step
            self.descend(result.loss)
        return result

    def descend(self, loss: Tensor) -> None:
        """Add the gradient of a loss; a step may call it for a part of its loss, whose graph is then free.

        Where several processes share a batch, the loss is this one's term (`StepResult.of_part`).
        """
        with torch.autocast(self.run.device.type, enabled=False):
            loss.backward()

    def gather_statistics(self) -> None:  # noqa: B027 (most phases count nothing)
        """Add up what each process has counted since this was last called; all call it together."""

    def _choose_bf16(self, batch: Batch) -> bool:
        """By the clock under a time budget, fp32 where that takes too long.

        On a CPU under an iteration budget always fp32, because that promises equal weights.
        """
        if self.budget.iterations is not None and self.run.device.type == "cpu":
            return False
        faster = False  # where the time limit ends the comparison
        limit_s = None if self.budget.seconds is None else PROBING_FRACTION * self.budget.seconds
        with self.run.alone(), self.run.stop.limited(limit_s):
            faster = is_faster_in_bf16(self.run.device, lambda: self._backward(batch))
        return faster

    def _build_optimizer(self) -> AdamW | torch.optim.SGD:
        groups = self.parameter_groups()
        if extra := self.extra_parameters():
            groups.append({"params": extra, "weight_decay": 0.0, "span": (0.0, 1.0)})
        if self.plan.optimizer == "sgd":
            return torch.optim.SGD(
                groups, self.plan.learning_rate, momentum=0.99, nesterov=True, weight_decay=self.plan.weight_decay
            )
        return AdamW(groups, self.plan.learning_rate, self.plan.weight_decay)

    def _log(self, sums: dict[str, list[Tensor]], seconds: float) -> None:
        if not sums:
            return
        means = {name: float(torch.stack([v.float() for v in values]).nanmean()) for name, values in sums.items()}
        rate = len(sums["loss"]) / max(seconds, 1e-6)
        self.run.log.record(
            "train",
            phase=self.phase,
            iteration=self.iteration,
            seconds=self.run.watch.seconds,
            progress=self.progress,
            seconds_left=self._seconds_left(rate),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            iterations_per_s=rate,
            **means,
        )
        self.run.log.say(
            f"phase {self.phase}  {self.progress:4.0%}  iteration {self.iteration}  loss {means['loss']:.3f}  "
            f"{rate:.2f} it/s  left in this phase: {format_duration(self._seconds_left(rate))}"
        )

    def _seconds_left(self, rate: float) -> float:
        if self.budget.iterations is not None:
            return (self.budget.iterations - self.iteration) / max(rate, 1e-9)
        assert self.budget.seconds is not None
        return self.budget.seconds * (1 - self.progress)

    def _validate_if_due(self) -> None:
        due = math.floor(self.progress * self.num_looks)
        if due > self.validated and not self.is_over:
            self._validate()
            self.validated = due

    def _validate(self) -> None:
        if not self.run.monitored_cases:
            return
        found: HeldOutDice | None = None
        with self.run.stop.limited(self.run.monitoring_limit_s) as limit:
            found = self.validate()
        if found is None or limit.exceeded:
            self.run.log.say(
                f"scoring {counted(len(self.run.monitored_cases), 'held-out case')} took longer than --max-time leaves "
                f"room for; no more are scored during this training"
            )
            self.run.monitored_cases = ()
            return
        scores = found.means
        entry: dict[str, Any] = dict(scores)
        if found.sources is not None:
            entry["by_source"] = to_jsonable(found.sources)
        self.run.log.record(
            "validation", phase=self.phase, iteration=self.iteration, seconds=self.run.watch.seconds, **entry
        )
        shown = "  ".join(f"{name.removeprefix('dice_')} {value:.3f}" for name, value in scores.items())
        cases = counted(len(self.run.monitored_cases), "held-out case")
        self.run.log.say(f"phase {self.phase}  Dice on {cases}: {shown}")
        if found.sources is not None:
            self.run.log.say(f"phase {self.phase}  {found.sources.describe()}")
        with self.run.stop.deferred():
            self.last, self.groups, self.sources = found.of_cases, found.groups, found.case_sources
            self.last_look = self.iteration
            if self._is_better():
                self.best, self.best_weights, self.looks_without_gain = self.last, cpu_state(self.ema.network), 0
            elif not all(map(math.isnan, self.last)):  # held-out cases without any object tell nothing
                self.looks_without_gain += 1
        self.run.log.refresh_report()

    def _is_better(self) -> bool:
        """Whether the last look saw a higher Dice than the best one, case by case."""
        if self.best_weights is None:
            return True
        if min(len(self.best), len(self.last)) == 1:  # whose gain tells nothing, but there is nothing else
            return self.last[0] > self.best[0]
        return self.gain_of_best()[0] < 0

    def gain_of_best(self) -> tuple[float, float]:
        """How much higher Dice on the hold-out is with the best weights than with the last, and its standard error.

        Dice is the mean over cases, of a unified data set over its sources.
        A session with less time may look at fewer cases than an earlier one, the first of them.
        """
        count = min(len(self.best), len(self.last))
        if count < 2:  # one case tells nothing
            return 0.0, 0.0
        return macro_gain(self.best[:count], self.last[:count], self.groups[:count], self.sources[:count])

    def _describe(self) -> str:
        length = (
            counted(self.budget.iterations, "iteration")
            if self.budget.iterations is not None
            else format_duration(self.budget.seconds or 0)
        )
        patch = "x".join(map(str, self.run.configuration.network.patch_size))
        return f"{length}, batch {self.plan.batch_size}, patch {patch}"


def without(parameters: Sequence[nn.Parameter], others: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters that are none of the others; they are compared as objects, not by value."""
    left_out = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in left_out]


def pool_targets(target: Tensor, valid: Tensor, strides: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Targets and masks for deep supervision: the full ones, then means over the strides of each level.

    A coarse target is the mean of the VALID voxels below it (a soft label), its mask the fraction of these.
    """
    pool = nn.functional.avg_pool2d if target.ndim == 4 else nn.functional.avg_pool3d
    targets, masks = [target], [valid]
    for stride in strides:
        mask = pool(masks[-1], tuple(stride), tuple(stride))
        known = pool(targets[-1] * masks[-1], tuple(stride), tuple(stride))
        targets.append(known / mask.clamp_min(1e-6))
        masks.append(mask)
    return targets, masks
