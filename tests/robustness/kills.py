"""Kills at seeded moments: a command that is killed and given again ends with the files of one that was left alone.

    python -m tests.robustness.kills --trials 200 --seed 0 --work FOLDER

Each trial takes one of the commands preprocess, train, predict and evaluate on small phantoms, kills it with its
workers after a random part of the time that it takes, gives it again until it ends, and compares every result byte for
byte with the undisturbed one; what a killed run left half written must be gone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset

DATASET = "Dataset902_Phantom2D"
MODEL = "StagedDiffusionTrainer__2d"
MOST_KILLS = 2  # of one trial
# What may differ between two runs that did the same: times, process numbers, and reports that show times.
VARYING = (
    ".prediction.json",
    "dataset_report.html",
    "log.jsonl",
    "manifest.json",
    "phase_1.json",
    "report.html",
    "request.json",
    "summary.json",
)


@dataclass(frozen=True)
class Step:
    """One command on the phantoms: its arguments, and the folder that it writes, below the work folder."""

    command: str
    arguments: tuple[str, ...]
    output: str


STEPS = (
    Step(
        "plan_and_preprocess",
        ("-d", "902", "--device", "cpu", "--memory-gb", "4", "--workers", "2"),
        f"preprocessed/{DATASET}",
    ),
    Step(
        "train",
        ("902", "0", "-c", "2d", "--iterations", "24", "--batch-size", "2", "--workers", "0", "--device", "cpu"),
        f"results/{DATASET}/{MODEL}/fold_0",
    ),
    Step(
        "predict",
        (
            "-i",
            f"raw/{DATASET}/imagesTs",
            "-o",
            "masks",
            "-d",
            "902",
            "--device",
            "cpu",
            "--samples",
            "2",
            "--save-samples",
            "--save-probabilities",
        ),
        "masks",
    ),
    Step("evaluate", (f"raw/{DATASET}/labelsTs", "masks", "-o", "scores", "--workers", "0"), "scores"),
)


@dataclass(frozen=True)
class KillResult:
    """What a trial came to; `problem` is empty where all is as it should be."""

    command: str
    kills: int
    problem: str = ""


class Bench:
    """The undisturbed run of every step: a snapshot of the folder before it, its seconds and the files it wrote."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, Mapping[str, str]] = {}
        now = work / "now"
        now.mkdir(parents=True, exist_ok=True)
        make_phantom_dataset(now / "raw", 902, dims=2, num_train=10, num_test=3, seed=1, size=(48, 48))
        for step in STEPS:
            shutil.copytree(now, self._before(step), dirs_exist_ok=True)
            start = time.monotonic()
            code, text = run(step, now)
            if code:
                raise RuntimeError(f"usd_{step.command} failed without any kill: {text}")
            self.seconds[step.command] = time.monotonic() - start
            self.expected[step.command] = files_of(now / step.output)

    def trial(self, step: Step, rng: np.random.Generator) -> KillResult:
        """Kill the step once or twice at random moments, let it end, compare."""
        folder = self.work / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._before(step), folder)
        kills = 0
        for _ in range(int(rng.integers(1, MOST_KILLS + 1))):
            code, text = run(step, folder, kill_after_s=float(rng.uniform(0.1, 1.0)) * self.seconds[step.command])
            if code == 0:
                break
            if code != -signal.SIGKILL:
                return KillResult(step.command, kills, f"exit code {code} after {kills} kill(s): {text[-500:]}")
            kills += 1
        code, text = run(step, folder)
        if code:
            return KillResult(step.command, kills, f"exit code {code} when it was given again: {text[-500:]}")
        found, expected = files_of(folder / step.output), self.expected[step.command]
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        return KillResult(step.command, kills, f"other files than without a kill: {', '.join(names)}" if names else "")

    def _before(self, step: Step) -> Path:
        return self.work / f"before_{step.command}"


def run(step: Step, folder: Path, kill_after_s: float | None = None) -> tuple[int, str]:
    """Run a step in a work folder; returns its exit code, -9 where it was killed, and what it said."""
    program = f"import sys; from unisegdiff_pipeline.commands.{step.command} import main; sys.exit(main())"
    variables = {f"usd_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *step.arguments],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
    return process.returncode, text


def files_of(folder: Path) -> dict[str, str]:
    """Hash of every file that must not differ, and the name of any other, by its place in the folder."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            place = path.relative_to(folder).as_posix()
            varies = path.name in VARYING or (place.startswith(".cases/") and path.suffix == ".json")
            result[place] = "" if varies else hashlib.sha256(path.read_bytes()).hexdigest()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials and print what differed; 1 where anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    given = parser.parse_args(arguments)
    bench = Bench(given.work)
    results = []
    for number in range(given.trials):
        result = bench.trial(STEPS[number % len(STEPS)], np.random.default_rng([given.seed, number]))
        results.append(result)
        if result.problem:
            print(f"usd_{result.command} trial {number}: {result.problem}", flush=True)
    kills, problems = sum(r.kills for r in results), sum(bool(r.problem) for r in results)
    print(f"{kills} kills in {len(results)} trials, {problems} with another result")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main())
