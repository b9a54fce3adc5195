"""Several processes that train one fold together, as torchrun starts them: who leads, and sums over all of them.

Process 0 leads: it trains as a single process does, and it alone writes, logs, validates and chooses. The others
follow: they are told each step that the leader takes, and add the gradient of their own items of the batch.

Gradients are added up in one flat tensor and not by DistributedDataParallel, since a step runs through parts of the
network, not through its `forward`; phase 2 goes backward twice a step; and the mean over a batch whose items are shared
unevenly is a sum, not a mean over processes. What that costs is the overlap of adding up with the backward pass.

`torch.distributed` is imported where there are several processes only.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.networks.precision import resolve_device
from unisegdiff_pipeline.training.interrupt import StopRequest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from unisegdiff_pipeline.training.data.patches import Part

# Within a step the processes differ by the time that one waits for a batch, which has a limit of its own.
STEP_LIMIT = timedelta(minutes=30)
# Between steps the followers wait while the leader validates and chooses. A process that dies is noticed at once.
WAIT_LIMIT = timedelta(days=1)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RankLost(UsdError):
    """Another process of the training has ended, or does not answer."""


class _Order(IntEnum):
    END = 0
    PHASE = 1
    STEP = 2
    GATHER = 3


@dataclass(frozen=True)
class PhaseOrder:
    """A phase begins: what the leader saved of it, for torch.load."""

    content: bytes


@dataclass(frozen=True)
class StepOrder:
    """One iteration, as the leader decides it.

    Attributes:
        iteration: from 0.
        progress: fraction of the phase that is done, by the leader's clock.
        bf16: whether it is computed in bfloat16.
    """

    iteration: int
    progress: float
    bf16: bool


@dataclass(frozen=True)
class GatherOrder:
    """Statistics that every process counts on its own are added up."""


@dataclass(eq=False)
class Ranks:
    """The processes of one training, seen from one of them; alone by default, where every method does nothing.

    Attributes:
        rank: number of this process, 0 leads.
        size: number of processes.
        local_size: processes on this machine.
        device: that of this process; None alone, where the request says it.
        orders, sums: groups of torch.distributed for what the leader tells, and for what is added up.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device | None = None
    orders: ProcessGroup | None = None
    sums: ProcessGroup | None = None
    _in_step: bool = field(default=False, init=False)  # the followers wait for this process to add up, not for orders

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs, validates and chooses."""
        return self.rank == 0

    def items(self, batch_size: int) -> range:
        """Items of a batch that this process has: as even as can be, in the order of ranks.

        Raises:
            UsdError: fewer items than processes.
        """
        if batch_size < self.size:
            raise UsdError(
                f"a batch of {batch_size} cannot be shared by {self.size} processes: give --batch-size {self.size} or "
                f"more, or start at most {batch_size} processes (torchrun --nproc-per-node, --nnodes)."
            )
        return range(batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    # Orders: the leader tells, the followers hear. ----------------------------------------------------------------

    def begin_phase(self, content: Callable[[], object]) -> None:
        """Send the followers what a phase is made of, anything that torch.save takes."""
        if self.size == 1:
            return
        buffer = io.BytesIO()
        torch.save(content(), buffer)
        self._tell(_Order.PHASE)
        self._broadcast_object(buffer.getvalue())

    @contextlib.contextmanager
    def leading(self, step: StepOrder, stop: StopRequest) -> Iterator[None]:
        """Around a step of the leader: the followers take it too; a signal waits until all have ended it."""
        if self.size == 1:
            yield
            return
        with stop.deferred():
            self._tell(_Order.STEP, step.iteration, step.progress, step.bf16)
            self._in_step = True
            yield

    def ask_for_statistics(self) -> None:
        """Let the followers take part in adding up statistics, see `GatherOrder`."""
        if self.size > 1:
            self._tell(_Order.GATHER)

    def hear(self) -> PhaseOrder | StepOrder | GatherOrder | None:
        """The next order of the leader; None where the training is at an end.

        Raises:
            RankLost: the leader has ended.
        """
        order, iteration, progress, bf16 = self._broadcast_numbers(torch.zeros(4, dtype=torch.float64))
        if order == _Order.PHASE:
            return PhaseOrder(self._broadcast_object(None))
        if order == _Order.STEP:
            return StepOrder(int(iteration), progress, bool(bf16))
        return GatherOrder() if order == _Order.GATHER else None

    def end(self) -> None:
        """Let the followers go; where they cannot hear it, they end when the leader does."""
        if self.size > 1 and self.leads and not self._in_step:
            with contextlib.suppress(RankLost):
                self._tell(_Order.END)

    def _tell(self, order: _Order, iteration: int = 0, progress: float = 0.0, bf16: bool = False) -> None:
        self._broadcast_numbers(torch.tensor([order, iteration, progress, bf16], dtype=torch.float64))

    def _broadcast_numbers(self, numbers: Tensor) -> list[float]:
        import torch.distributed as dist

        with self._reaching_the_others():
            dist.broadcast(numbers, src=0, group=self.orders)
        return [float(number) for number in numbers]

    def _broadcast_object(self, value: Any) -> Any:
        import torch.distributed as dist

        values = [value]
        with self._reaching_the_others():
            dist.broadcast_object_list(values, src=0, group=self.orders)
        return values[0]

    # Sums over all processes. -------------------------------------------------------------------------------------

    def sum_(self, values: Tensor) -> Tensor:
        """Replace values by their sum over all processes; returns them."""
        if self.size > 1:
            import torch.distributed as dist

            with self._reaching_the_others():
                dist.all_reduce(values, group=self.sums)
        return values

    def gather(self, values: Tensor, part: Part | None) -> Tensor:
        """What all processes have of a batch (total, ...), of what this one has of it (B, ...); gradients flow back."""
        if part is None:
            return values
        whole = values.new_zeros(part.total, *values.shape[1:])
        return _Total.apply(whole.index_copy(0, part.rows.to(values.device), values), self)

    def sum_step(
        self, parameters: Sequence[Tensor], numbers: dict[str, Tensor], stop: StopRequest
    ) -> dict[str, Tensor]:
        """Add up the gradients of all processes, in place, and the numbers of the step, which are returned.

        A parameter without a gradient on any process has none afterwards. A signal that some process was sent becomes
        that of all.
        """
        if self.size == 1:
            return numbers
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        known = [float(p.grad is not None) for p in parameters]
        asked = [float(stop.signal_number == number) for number in SIGNALS]
        flags = torch.tensor([*known, *asked], device=self.device)
        told = [value.detach().reshape(1).to(flags) for value in numbers.values()]
        parts = [gradient.flatten() for gradient in gradients] + [flags, *told]
        pieces = self.sum_(torch.cat(parts)).split([len(part) for part in parts])
        self._in_step = False
        counts = pieces[len(parameters)].tolist()
        for parameter, gradient, piece, count in zip(parameters, gradients, pieces, counts, strict=False):
            parameter.grad = gradient.copy_(piece.view_as(gradient)) if count else None
        for number, count in zip(SIGNALS, counts[len(parameters) :], strict=True):
            if count:
                stop.signal_number = stop.signal_number or number
        summed = (piece[0] for piece in pieces[len(parameters) + 1 :])
        return dict(zip(numbers, summed, strict=True))

    @contextlib.contextmanager
    def _reaching_the_others(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            who = "another process" if self.leads else "process 0, which leads,"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RankLost(
                f"{who} of this training has ended or does not answer, as process {self.rank} of {self.size} sees it "
                f"({reason}); what that process says itself tells why. Run the same command again to continue."
            ) from error


ALONE = Ranks()


class _Total(torch.autograd.Function):
    """The sum over all processes.

    As torch.distributed.nn.functional.all_reduce, which is deprecated, with errors that say who is gone.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # The losses of all processes are added up, and each depends on the values of all.
        return ctx.ranks.sum_(gradient.clone(memory_format=torch.contiguous_format)), None


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; `ALONE` without torchrun, or with one process.

    Only torchrun counts: other launchers leave variables like its own to jobs that are processes of their own.

    Args:
        device: as it is asked for; each process takes a GPU of its own.

    Raises:
        UsdError: the device does not fit, or the processes do not find each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    import torch.distributed as dist

    rank, size, local_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    own = local_device(device, int(os.environ["LOCAL_RANK"]), local_size)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("gloo", timeout=STEP_LIMIT)
    except (RuntimeError, ValueError) as error:
        raise UsdError(
            f"process {rank} of {size} cannot reach the others ({str(error).splitlines()[0]}); check --nnodes, "
            f"--rdzv-endpoint and that the machines may open connections to each other (GLOO_SOCKET_IFNAME names the "
            f"network interface)."
        ) from error
    try:
        _require_equal_devices(own, size)
        sums = dist.new_group(timeout=STEP_LIMIT, backend="nccl") if own.type == "cuda" else None
        ranks = Ranks(rank, size, local_size, own, dist.new_group(timeout=WAIT_LIMIT, backend="gloo"), sums)
        try:
            yield ranks
        except RankLost:
            raise  # some connections are gone: nobody can be told
        except BaseException:
            ranks.end()
            raise
        ranks.end()
    finally:
        if own.type != "cuda":  # NCCL may wait for processes that are gone; the end of this one closes all
            dist.destroy_process_group()


def _require_equal_devices(device: torch.device, size: int) -> None:
    import torch.distributed as dist

    kinds: list[Any] = [None] * size
    dist.all_gather_object(kinds, (device.type, socket.gethostname()))
    if len({kind for kind, _ in kinds}) > 1:
        found = ", ".join(f"process {rank} on {host}: {kind}" for rank, (kind, host) in enumerate(kinds))
        raise UsdError(f"the processes would compute on different devices ({found}); give --device cpu or cuda.")


def local_device(name: str, local_rank: int, local_size: int) -> torch.device:
    """The device of one process among those of a machine.

    Raises:
        UsdError: fewer GPUs than processes, one GPU for all, or a kind of device that several processes cannot use.
    """
    device = resolve_device(name)
    if device.type == "mps":
        raise UsdError("--device mps cannot be used by several processes together; use --device cpu, or no torchrun.")
    named = ":" in name
    if device.type != "cuda" or (named and local_size == 1):
        return device
    if named:
        raise UsdError(
            f"--device {name} is one device, but torchrun started {local_size} processes on this machine; give "
            f"--device cuda, and each takes one of its own."
        )
    if local_size > torch.cuda.device_count():
        raise UsdError(
            f"torchrun started {local_size} processes on {socket.gethostname()}, which has {torch.cuda.device_count()} "
            f"CUDA devices; give --nproc-per-node {torch.cuda.device_count()}, or --device cpu."
        )
    return torch.device("cuda", local_rank)
