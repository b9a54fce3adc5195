"""Weak scaling of one training over several processes: iterations a second where each has the same number of patches.

    python -m tests.benchmarks.scaling --work FOLDER [--processes 1 2 4] [--patches 4] [--iterations 60] [--device cpu]

Phantoms are made and planned in FOLDER; torchrun then trains a fold with so many patches for each process. With perfect
scaling iterations a second stay the same while the batch grows. On a CPU each process has one thread, so each needs a
free core; with --device cuda each has a GPU of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
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


def train(work: Path, processes: int, patches: int, iterations: int, device: str) -> dict[int, float]:
    """Phase => median iterations a second, without the first that are still warming up."""
    script, results = work / "train.py", work / f"results_{processes}"
    script.write_text(TRAIN, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(script), str(DATASET), "all", "--restart", "--batch-size", str(patches * processes)]
    command += ["--iterations", str(iterations), "--device", device, "--workers", "0"]
    command += ["--preprocessed", str(prepare(work, device)), "--results", str(results)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    (log,) = results.glob("*/*/fold_all/log.jsonl")
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    rates = {
        phase: [e["iterations_per_s"] for e in entries if e["kind"] == "train" and e["phase"] == phase][5:]
        for phase in (1, 2)
    }
    return {phase: statistics.median(values) for phase, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--patches", type=int, default=4, help="of each process")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {
        count: train(arguments.work, count, arguments.patches, arguments.iterations, arguments.device)
        for count in arguments.processes
    }
    first = found[arguments.processes[0]]
    print("processes  batch  phase 1 it/s  phase 2 it/s  of the first, phase 1 and 2")
    for count, rates in found.items():
        fractions = "  ".join(f"{rates[phase] / first[phase]:.0%}" for phase in (1, 2))
        print(f"{count:9}  {count * arguments.patches:5}  {rates[1]:12.2f}  {rates[2]:12.2f}  {fractions}")


if __name__ == "__main__":
    main()
