"""Weak scaling of one training over several processes: iterations a second where each has the same number of patches.

    python -m tests.benchmarks.scaling --work FOLDER [--processes 1 2 4] [--patches 4] [--iterations 60] [--device cpu]

Phantoms are made and planned in FOLDER; torchrun then trains a fold with so many patches for each process. With perfect
scaling iterations a second stay the same while the batch grows. On a CPU each process has one thread, so each needs a
free core; with --device cuda each has a GPU of its own. As many trainings of one process, started at once, show what
the machine itself takes from each where all of it is busy; the rest is what the exchange of gradients costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unisegdiff_pipeline.commands import plan_and_preprocess
from unisegdiff_pipeline.demo.phantoms import make_phantom_dataset

DATASET = 903
TRAIN = (
    "import sys\n"
    "from unisegdiff_pipeline.training.trainers import trainer\n"
    "from unisegdiff_pipeline.commands.train import main\n"
    "trainer.LOG_EVERY_S = 0.0\n"
    "sys.exit(main())\n"
)


def prepare(work: Path, device: str) -> Path:
    """Preprocessed 3D phantoms; made once."""
    root = work / "preprocessed"
    if not root.is_dir():
        make_phantom_dataset(work / "raw", DATASET, dims=3, num_train=8, num_test=1, seed=1, size=(32, 96, 96))
        arguments = ["-d", str(DATASET), "--raw", str(work / "raw"), "--preprocessed", str(root), "--device", device]
        if plan_and_preprocess.main([*arguments, "--memory-gb", "4"]) != 0:
            raise SystemExit("the phantoms could not be preprocessed")
    return root


def begin(
    work: Path, name: str, processes: int, patches: int, iterations: int, device: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a training; returns it and the folder of its results."""
    script, results = work / "train.py", work / f"results_{name}"
    script.write_text(TRAIN, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(script), str(DATASET), "all", "--restart", "--batch-size", str(patches * processes)]
    command += ["--iterations", str(iterations), "--device", device, "--workers", "0"]
    command += ["--preprocessed", str(prepare(work, device)), "--results", str(results)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}), results


def rates(trainings: Sequence[tuple[subprocess.Popen[bytes], Path]]) -> dict[int, float]:
    """Phase => median iterations a second of trainings that run at once, without the first that are warming up."""
    if any(process.wait() for process, _ in trainings):
        raise SystemExit("a training failed")
    logs = [path for _, results in trainings for path in results.glob("*/*/fold_all/log.jsonl")]
    found: dict[int, list[float]] = {1: [], 2: []}
    for log in logs:
        entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        for phase, values in found.items():
            values += [e["iterations_per_s"] for e in entries if e["kind"] == "train" and e["phase"] == phase][5:]
    return {phase: statistics.median(values) for phase, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--patches", type=int, default=4, help="of each process")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    length = arguments.patches, arguments.iterations, arguments.device
    found: dict[tuple[str, int], dict[int, float]] = {}  # (what, batch) => iterations a second
    for count in arguments.processes:
        found[f"{count}", count] = rates([begin(arguments.work, f"{count}", count, *length)])
    for count in arguments.processes:
        if count > 1:
            apart = [begin(arguments.work, f"{count}_{i}", 1, *length) for i in range(count)]
            found[f"{count} x 1", 1] = rates(apart)
    first = next(iter(found.values()))
    print("processes  batch  phase 1 it/s  phase 2 it/s  of the first, phase 1 and 2")
    for (what, count), speed in found.items():
        fractions = "  ".join(f"{speed[phase] / first[phase]:.0%}" for phase in (1, 2))
        print(f"{what:>9}  {count * arguments.patches:5}  {speed[1]:12.2f}  {speed[2]:12.2f}  {fractions}")


if __name__ == "__main__":
    main()
