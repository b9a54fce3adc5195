"""Running one function over many cases on a process pool, on threads, in this process, or on a Dask cluster.

A case that fails is named with what failed and where, and the others finish. A worker that is killed for lack of
memory, or whose native code crashes, costs the cases under way; they are tried again one at a time, so that the one
that ends its worker is found. Tracebacks go to the log of this module at level INFO.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Generic, Literal, TypeVar

from unisegdiff_pipeline.core.control_groups import cpu_quota, memory_left
from unisegdiff_pipeline.core.errors import UsdError, describe_failure
from unisegdiff_pipeline.core.progress import progress
from unisegdiff_pipeline.core.signals import held_back

Item = TypeVar("Item")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_MEMORY_FRACTION = 0.8
LOCKS_PER_WORKER = 5  # of a pool or a loader: 3 for each queue, and one queue more than workers
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
_hiding = threading.Lock()
_hidden_mains: list[types.ModuleType] = []  # the main module, once for each thread that hides it
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


@dataclass(frozen=True)
class CaseOutcome(Generic[Result]):
    """What the function returned for one item, and the seconds it took."""

    name: str
    value: Result
    seconds: float


class MappedCasesError(UsdError):
    """Some cases of many failed; the others are done.

    Attributes:
        failures: name of each case that failed => why.
    """

    def __init__(self, message: str, failures: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    workers: int,
    description: str,
    scheduler: str | None = None,
    kind: Literal["processes", "threads", "native"] = "processes",
    preload: Sequence[str] = (),
) -> list[CaseOutcome[Result]]:
    """Call `function` on every item and return the results in the order of the items.

    Args:
        function: called with one item; importable by name, from another module than the main one, unless it runs in
            this process or on threads.
        items: what to work on.
        names: name of each item, for messages.
        workers: processes (or threads) at most; 0 means in this process, and so does 1 unless "native".
        description: what is done, shown with the progress.
        scheduler: address of a Dask scheduler; the workers there are used instead of a pool here.
        kind: "threads" start at once and share memory; for work that leaves the interpreter lock. "native" is work of
            native code that a damaged file may crash, and this process with it: a process for a single worker too.
        preload: modules that the server of the pool imports once for all workers.

    Raises:
        UsdError: one or more items failed, after all others have finished; every failure is named with its reason.
    """
    if len(names) != len(items):
        raise ValueError(f"{len(names)} names for {len(items)} items; pass one name for each item")
    if not items:
        return []
    job = _Job(function, list(items), list(names), description)
    workers = min(workers, len(items))
    processes = workers > 0 and (kind == "native" or (workers > 1 and kind == "processes"))
    if processes and scheduler is None and (reason := no_processes(workers)):
        warnings.warn(f"{reason}; {description} works in this process, as with --workers 0.", stacklevel=2)
        processes = False
        workers = 0
    if scheduler is not None:
        with _dask_executor(scheduler) as executor:
            job.run_on(executor)
    elif processes:
        job.run_on_processes(workers, preload)
    elif workers > 1:
        with ThreadPoolExecutor(workers) as executor, _one_blas_thread():
            job.run_on(executor)
    else:
        job.run_here()
    return job.finish()


@dataclass(frozen=True)
class _Failure:
    """What is left of an error of one case; errors of libraries do not always survive the way between processes."""

    reason: str
    traceback: str | None = None  # None of an error that the user can fix, "" of a process that ended


class _Job(Generic[Item, Result]):
    """One call of `map_cases`: results and failures so far."""

    def __init__(self, function: Callable[[Item], Result], items: list[Item], names: list[str], description: str):
        self.function, self.items, self.names, self.description = function, items, names, description
        self.results: dict[int, CaseOutcome[Result]] = {}
        self.failures: dict[int, _Failure] = {}

    def run_here(self) -> None:
        for index in progress(range(len(self.items)), len(self.items), self.description):
            self._keep(index, _outcome(self.function, self.items[index]))

    def run_on(self, executor: Executor) -> None:
        """Submit all open items; those whose worker died stay open."""
        futures: dict[Future[tuple[Result, float] | _Failure], int] = {}
        # Where the pool breaks, the rest stays open.
        with suppress(BrokenProcessPool), held_back(signal.SIGINT, signal.SIGTERM), main_module_hidden():
            for index in self._open():
                futures[executor.submit(_outcome, self.function, self.items[index])] = index
        try:
            for future in progress(as_completed(futures), len(futures), self.description):
                self._collect(futures[future], future)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise

    def run_on_processes(self, workers: int, preload: Sequence[str]) -> None:
        with process_pool(workers, preload) as pool:
            self.run_on(pool)
        for index in self._open():
            _log.warning("a worker process died; trying %s again on its own", self.names[index])
            with process_pool(1, preload) as pool:
                with held_back(signal.SIGINT, signal.SIGTERM), main_module_hidden():
                    future = pool.submit(_outcome, self.function, self.items[index])
                processes = list((getattr(pool, "_processes", None) or {}).values())
                self._collect(index, future)
            if index not in self.results and index not in self.failures:
                self.failures[index] = _Failure(_how_it_died(processes[0].exitcode if processes else None), "")

    def finish(self) -> list[CaseOutcome[Result]]:
        if not self.failures:
            return [self.results[index] for index in range(len(self.items))]
        failures = sorted(self.failures.items())
        for index, failure in failures:
            if failure.traceback:
                _log.debug("%s failed\n%s", self.names[index], failure.traceback)
        lines = [f"{self.names[index]}: {failure.reason}" for index, failure in failures]
        failed = {self.names[index]: failure.reason for index, failure in failures}
        if len(self.items) == 1:  # what the user can fix names its file
            raise MappedCasesError(failures[0][1].reason if failures[0][1].traceback is None else lines[0], failed)
        summary = f"{self.description}: {len(lines)} of {len(self.items)} cases failed, the others are done"
        raise MappedCasesError(f"{summary}. {' | '.join(lines)}", failed)

    def _open(self) -> list[int]:
        return [i for i in range(len(self.items)) if i not in self.results and i not in self.failures]

    def _collect(self, index: int, future: Future[tuple[Result, float] | _Failure]) -> None:
        try:
            self._keep(index, future.result())
        except BrokenProcessPool:
            pass
        except Exception as error:  # on the way: what does not fit through the pipe, or a cluster's own trouble
            self._keep(index, _failure(error))

    def _keep(self, index: int, outcome: tuple[Result, float] | _Failure) -> None:
        if isinstance(outcome, _Failure):
            self.failures[index] = outcome
        else:
            self.results[index] = CaseOutcome(self.names[index], *outcome)


def _outcome(function: Callable[[Item], Result], item: Item) -> tuple[Result, float] | _Failure:
    """The value and the seconds it took, or what failed."""
    start = time.perf_counter()
    try:
        value = function(item)
    except Exception as error:
        return _failure(error)
    return value, time.perf_counter() - start


def _failure(error: Exception) -> _Failure:
    users = isinstance(error, UsdError)
    return _Failure(describe_failure(error), None if users else "".join(traceback.format_exception(error)))


def _how_it_died(exit_code: int | None) -> str:
    """What ended the process of a case, with the remedy; `exit_code` is the negative number of a signal."""
    name = ""
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):
            name = signal.Signals(-exit_code).name
    if name in _CRASHES:
        return (
            f"its worker process crashed ({name}) in the native code of a library; a file of the case is damaged or of "
            f"an unusual kind: export it again, or leave the case out"
        )
    by = f" by {name}" if name else ""
    return (
        f"its worker process was killed{by}, mostly because memory ran out; free memory, or use fewer workers with "
        f"--workers"
    )


# ------------------------------------------------------------------------------------------------------ executors


@contextmanager
def process_pool(workers: int, preload: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    # Not "fork": forking a process that has started threads (torch, blosc2) can hang. A fork server forks a clean
    # process that has the modules loaded already, which starts workers about ten times faster than "spawn".
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(preload))
        _start_fork_server(context)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except BaseException:  # interrupted: the cases under way are of no use any more
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_fork_server(context: BaseContext) -> None:
    """Start it deaf to Ctrl-C, since it imports for seconds and would answer with a traceback; and wait until it is
    ready. A worker that it forks when its parent has been interrupted meanwhile would print another one.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # first, because it lets SIGINT through when it has started
    with held_back(signal.SIGINT), main_module_hidden():
        forkserver.ensure_running()
    try:
        first = context.Process(target=_nothing)  # type: ignore[attr-defined]
        with main_module_hidden():
            first.start()
        first.join()
    except BaseException:
        pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Keep processes that start from running the main module again.

    Python runs it in each of them, so that a script which calls this package outside `if __name__ == "__main__":` would
    start itself anew in place of a worker. What workers do is of this package and needs no main module. Where several
    threads start processes at once, the last of them to be done brings it back.
    """
    with _hiding:
        _hidden_mains.append(_hidden_mains[0] if _hidden_mains else sys.modules["__main__"])
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        with _hiding:
            main = _hidden_mains.pop()
            if not _hidden_mains:
                sys.modules["__main__"] = main


def _nothing() -> None:
    """What the first process of a fork server does."""


def _start_worker() -> None:
    """One thread a worker: the workers are the parallelism, and threads of many libraries multiply.

    Ctrl-C reaches all processes of a terminal; only the one that owns the pool reacts to it, and ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"
    for name in ("torch", "blosc2"):
        library = sys.modules.get(name)
        set_threads = getattr(library, "set_num_threads", None) or getattr(library, "set_nthreads", None)
        if set_threads is not None:
            set_threads(1)
    _one_blas_thread()  # numpy has been loaded before, by the fork server, and does not look at the variables again


def _one_blas_thread() -> AbstractContextManager[object]:
    """Let products of matrices of numpy and scipy use one thread: from now on, or for the length of a block."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


@contextmanager
def _dask_executor(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsdError("--scheduler needs Dask; install it with: pip install 'unisegdiff_pipeline[dask]'") from None
    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        raise UsdError(f"no Dask scheduler answers at {address} ({error}); check --scheduler.") from error
    try:
        yield client.get_executor()
    finally:
        client.close()


# ------------------------------------------------------------------------------------------ what the machine offers


def choose_workers(memory_per_item_gb: float, requested: int | None = None) -> int:
    """Number of workers: as asked for, else as many as the usable cores and 80 % of the free memory allow.

    Args:
        memory_per_item_gb: peak memory of one worker.
        requested: what the user asked for; taken as it is. 0 means in this process.
    """
    if requested is not None:
        if requested < 0:
            raise UsdError(f"--workers is {requested}; allowed is 0 (no further processes) or more.")
        return requested
    by_memory = int(_MEMORY_FRACTION * available_memory_gb() / max(memory_per_item_gb, 1e-3))
    return max(1, min(usable_cores(), by_memory))


def no_processes(workers: int) -> str | None:
    """Why so many worker processes cannot be started; None where they can.

    They lock each other out by semaphores, which take 4 KB of shared memory each.
    """
    try:
        locks = [multiprocessing.Lock() for _ in range(LOCKS_PER_WORKER * (workers + 1))]
    except OSError as error:
        return f"worker processes cannot be started, most often because /dev/shm is full or missing ({error.strerror})"
    del locks
    return None


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (containers, clusters)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def available_memory_gb() -> float:
    """Memory that can still be taken without swapping, in GB, within the limits of the control group."""
    import psutil

    free = psutil.virtual_memory().available
    left = memory_left()
    return (free if left is None else min(free, left)) / 1e9
