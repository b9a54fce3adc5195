"""Damaged files for every parser: each is read, or refused by a UsdError, within seconds and by a process that lives.

    python -m tests.robustness.fuzz --trials 10000 --seed 0 --out FILE.json

Each trial takes a sound file, damages it by its own seed and reads it in a worker process of bounded memory. What can
happen: `read`, `refused`, and the faults `traceback` (another exception), `garbage` (other content from a file whose
damage has to be noticed), `crash` (the process died) and `hang` (over 10 s of computing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.robustness.mutations import mutate
from tests.robustness.parsers import PARSERS, Parser

HANG_CPU_S = 10.0
HANG_WALL_S = 120.0  # a busy machine is no hang
MEMORY_BYTES = 2 << 30  # beside what the libraries have mapped when the first file is read
FAULTS = ("traceback", "garbage", "crash", "hang")


@dataclass(frozen=True)
class Outcome:
    """What one trial came to; `detail` is the message or the last line of the traceback."""

    parser: str
    trial: int
    kind: str
    detail: str = ""


def fuzz(trials: int, seed: int, names: Sequence[str] = ()) -> Iterator[Outcome]:
    """Outcomes of `trials` damaged files, shared out evenly over the parsers (or those of these names)."""
    chosen = [p for p in PARSERS if not names or p.name in names]
    with tempfile.TemporaryDirectory() as folder:
        worker = _Worker(Path(folder), seed)
        try:
            for trial in range(trials):
                yield worker.run(chosen[trial % len(chosen)], trial)
        finally:
            worker.stop()


def damaged_file(parser: Parser, folder: Path, seed: int, trial: int) -> tuple[Path, bytes]:
    """Write the file of a trial; returns its path and what the sound file reads as."""
    sound = folder / f"sound_{parser.name}"
    if not sound.exists():
        parser.write(sound)
    content = sound.read_bytes()
    rng = np.random.default_rng([seed, trial])
    if parser.wrap is not None and rng.random() < 0.7:
        import gzip

        content = parser.wrap(mutate(gzip.decompress(content), rng))
    else:
        content = mutate(content, rng)
    path = folder / parser.name
    path.write_bytes(content)
    return path, parser.read(sound)


class _Worker:
    """A process that reads files one after the other; a new one takes over where it dies or hangs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pipe: Connection | None = None

    def run(self, parser: Parser, trial: int) -> Outcome:
        if self.process is None:
            self._start()
        assert self.pipe is not None
        self.pipe.send((parser.name, trial))
        try:
            if not self.pipe.poll(HANG_WALL_S):
                self.stop()
                return Outcome(parser.name, trial, "hang", f"no answer in {HANG_WALL_S:g} s")
            kind, detail = self.pipe.recv()
        except EOFError:
            assert self.process is not None
            self.process.join()
            detail = f"exit code {self.process.exitcode}"
            self.stop()
            return Outcome(parser.name, trial, "crash", detail)
        return Outcome(parser.name, trial, kind, detail)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_read_files, args=(theirs, self.folder, self.seed), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = self.pipe = None


def _read_files(pipe: Connection, folder: Path, seed: int) -> None:
    by_name = {parser.name: parser for parser in PARSERS}
    is_limited = False
    while True:
        name, trial = pipe.recv()
        path, expected = damaged_file(by_name[name], folder, seed, trial)
        if not is_limited:
            _limit_memory()
            is_limited = True
        pipe.send(_outcome(by_name[name], path, expected))


def _limit_memory() -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(parser: Parser, path: Path, expected: bytes) -> tuple[str, str]:
    from unisegdiff_pipeline.core.errors import UsdError

    start = time.process_time()
    try:
        found = parser.read(path)
        kind, detail = ("garbage", "") if parser.is_checked and found != expected else ("read", "")
    except UsdError as error:
        kind, detail = ("refused", str(error)) if str(path) in str(error) else ("traceback", f"unnamed file: {error}")
    except BaseException:
        kind, detail = "traceback", "".join(traceback.format_exc().splitlines(keepends=True)[-4:])
    if time.process_time() - start > HANG_CPU_S:
        return "hang", f"{time.process_time() - start:.1f} s, then {kind}: {detail}"
    return kind, detail


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts by parser, as a Markdown table."""
    kinds = ("read", "refused", *FAULTS)
    counts = Counter((o.parser, o.kind) for o in outcomes)
    rows = ["| file | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for name in [p.name for p in PARSERS if any(o.parser == p.name for o in outcomes)]:
        rows.append(f"| `{name}` | " + " | ".join(str(counts[name, kind]) for kind in kinds) + " |")
    totals = Counter(o.kind for o in outcomes)
    rows.append("| all | " + " | ".join(str(totals[kind]) for kind in kinds) + " |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials, print the table and every fault; 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", nargs="+", default=[], help="kinds of files, such as labels.nii.gz; all by default")
    parser.add_argument("--out", type=Path, help="outcomes as JSON")
    given = parser.parse_args(arguments)
    outcomes = []
    for outcome in fuzz(given.trials, given.seed, given.file):
        outcomes.append(outcome)
        if outcome.kind in FAULTS:
            print(f"{outcome.kind} {outcome.parser} trial {outcome.trial}: {outcome.detail}", flush=True)
        if len(outcomes) % 500 == 0:
            print(f"{len(outcomes)} of {given.trials}", file=sys.stderr, flush=True)
    print(table(outcomes))
    if given.out is not None:
        given.out.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return int(any(outcome.kind in FAULTS for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
