"""Rates of a training: of its loader alone, of steps on one batch, and of both together.

    python tests/benchmarks/training_steps.py own|peer DATASET CONFIG --iterations N --output FILE

`own` is run by this package's Python, `peer` by that of a virtual environment with nnunetv2; folders are taken from
the variables of each. FILE becomes a JSON object of rates: examples a second of the loader, iterations a second. The
first iteration of each rate warms up and is not counted. Weights are random and nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

LOADED = "loader, examples/s"
STEP, TRAINING = "steps of phase {}, iterations/s", "training in phase {}, iterations/s"
LONGEST_S = 3600.0


def rate(work: Callable[[], object], times: int) -> float:
    """Calls a second, without the first."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return times / (time.perf_counter() - start)


def own(dataset: str, configuration: str, iterations: int) -> dict[str, float]:
    """Both phases of this package, in the number format that a training under a time budget would choose."""
    from unisegdiff_pipeline.io.paths import resolve_roots
    from unisegdiff_pipeline.networks.allocator import keep_freed_memory
    from unisegdiff_pipeline.networks.staged_model import build_model
    from unisegdiff_pipeline.selection.hold_out import planned_settings
    from unisegdiff_pipeline.training.data.loader import open_loader
    from unisegdiff_pipeline.training.interrupt import StopRequest
    from unisegdiff_pipeline.training.request import TrainRequest
    from unisegdiff_pipeline.training.run import open_fold
    from unisegdiff_pipeline.training.schedule import PhaseBudget
    from unisegdiff_pipeline.training.trainers.diffusion import StagedDiffusionTrainer
    from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer

    keep_freed_memory()
    request = TrainRequest(dataset, "0", resolve_roots(), configuration=configuration, device="cpu")
    run = open_fold(request, StopRequest())
    budget = PhaseBudget(seconds=LONGEST_S)
    segmenter = build_model(run.configuration, run.plans.labels, True).segmenter
    first = SegmentationTrainer(run, budget)
    second = StagedDiffusionTrainer(run, budget, segmenter, planned_settings(run.configuration))
    found = {}
    for trainer in (first, second):
        trainer.network.train()
        with open_loader(trainer.patches(), 0, None, run.workers) as batches:
            batch = next(batches)
            trainer.step(batch)  # chooses the number format
            found[TRAINING.format(trainer.phase)] = rate(lambda: trainer.step(next(batches)), iterations)  # noqa: B023
            found[STEP.format(trainer.phase)] = rate(lambda: trainer.step(batch), iterations)  # noqa: B023
            if trainer.phase == 1:
                size = run.configuration.training.batch_size
                found[LOADED] = size * loader_rate(lambda: next(batches))
    return found


def peer(dataset: str, configuration: str, iterations: int) -> dict[str, float]:
    """nnU-Net's own trainer on a CPU, with as many threads as its command starts on these cores."""
    import os

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(os.cpu_count() or 1)
    trainer = get_trainer_from_args(dataset, configuration, 0, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    batches = trainer.dataloader_train
    batch = next(batches)
    found = {
        TRAINING.format(1): rate(lambda: trainer.train_step(next(batches)), iterations),
        STEP.format(1): rate(lambda: trainer.train_step(batch), iterations),
        LOADED: trainer.batch_size * loader_rate(lambda: next(batches)),
    }
    for loader in (batches, trainer.dataloader_val):
        loader._finish()
    return found


def loader_rate(load: Callable[[], object], batches: int = 20, ahead: int = 10) -> float:
    """Batches a second of a loader that has nothing ready; those `ahead` are taken first."""
    for _ in range(ahead):
        load()
    return rate(load, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("own", "peer"))
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    rates = (own if args.side == "own" else peer)(args.dataset, args.configuration, args.iterations)
    args.output.write_text(json.dumps(rates))


if __name__ == "__main__":
    main()
