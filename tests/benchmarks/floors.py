"""How near training steps and predictions come to what this processor can do: operations over its peak.

    python -m tests.benchmarks.floors DATASET CONFIGURATION [--repeats N] [--write]

DATASET is preprocessed (usd_preprocessed). The peak is the best rate of matrix products and of convolutions of the
shapes of the network's levels, in each number format, and of copying memory; operations are counted by torch, those of
convolutions and matrix products alone. The share is the time that they would take at the peak of the format in which
the step runs, of the time that it takes. Seconds are of the processor, so that other work counts little; one thread.
--write puts the tables into documentation/benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import pages
from tests.benchmarks.speed import machine
from unisegdiff_pipeline.diffusion.schedule import NoiseLevel
from unisegdiff_pipeline.io.paths import resolve_roots
from unisegdiff_pipeline.networks.allocator import keep_freed_memory
from unisegdiff_pipeline.networks.denoiser import Condition
from unisegdiff_pipeline.networks.layout import to_device
from unisegdiff_pipeline.networks.precision import autocast, bf16_in_hardware
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.planning.plans import NetworkPlan
from unisegdiff_pipeline.selection.hold_out import planned_settings
from unisegdiff_pipeline.training.data.loader import open_loader
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import FoldRun, open_fold
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainers.diffusion import StagedDiffusionTrainer
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer

HEADING = "Floors"
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
MATRIX, COPIED = 1536, 1 << 26  # rows, and bytes that no cache holds
SAMPLES = 8
LONGEST_S = 3600.0


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Of the processor, the median without the first call."""
    taken = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def operations_of(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peaks(network: NetworkPlan, batch: int, repeats: int) -> list[list[str]]:
    """Rows of what was tried: name, G operations a second in each format; the last one is that of copying, GB/s."""
    rows = []
    for name, work_in in candidates(network, batch).items():
        rates = []
        for dtype in FORMATS.values():
            work = work_in(dtype)
            rates.append(operations_of(work) / seconds_of(work, repeats) / 1e9)
        rows.append([name, *(f"{rate:.0f}" for rate in rates)])
    source, target = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    rate = 2 * COPIED / seconds_of(lambda: target.copy_(source), repeats) / 1e9  # read and written
    return [*rows, ["copying, GB/s", f"{rate:.1f}", ""]]


def candidates(network: NetworkPlan, batch: int) -> dict[str, Callable[[torch.dtype], Callable[[], object]]]:
    """A matrix product, and the second convolution of each level forward."""

    def matrices(dtype: torch.dtype) -> Callable[[], object]:
        a = torch.randn(MATRIX, MATRIX, dtype=dtype)
        return lambda: a @ a

    def convolution(
        width: int, kernel: tuple[int, ...], shape: list[int]
    ) -> Callable[[torch.dtype], Callable[[], object]]:
        def of(dtype: torch.dtype) -> Callable[[], object]:
            layout = torch.channels_last if len(shape) == 2 else torch.channels_last_3d
            x = torch.randn(batch, width, *shape, dtype=dtype).to(memory_format=layout)
            weight = torch.randn(width, width, *kernel, dtype=dtype).to(memory_format=layout)
            call = functional.conv2d if len(shape) == 2 else functional.conv3d
            return lambda: call(x, weight, padding=[k // 2 for k in kernel])  # type: ignore[operator]

        return of

    found: dict[str, Callable[[torch.dtype], Callable[[], object]]] = {f"matrices of {MATRIX} rows": matrices}
    shape = list(network.patch_size)
    for level in network.levels:
        shape = [size // stride for size, stride in zip(shape, level.stride, strict=True)]
        name = f"{level.features} features, {'x'.join(map(str, shape))}"
        found[name] = convolution(level.features, tuple(level.kernel), list(shape))
    return found


def works(run: FoldRun) -> dict[str, tuple[Callable[[], object], str]]:
    """What is measured, and the number format that it takes."""
    budget = PhaseBudget(seconds=LONGEST_S)
    model = build_model(run.configuration, run.plans.labels, True)
    steps = {}
    trainers = (
        SegmentationTrainer(run, budget),
        StagedDiffusionTrainer(run, budget, model.segmenter, planned_settings(run.configuration)),
    )
    for trainer in trainers:
        trainer.network.train()
        with open_loader(trainer.patches(), 0, None, 0) as batches:
            batch = next(batches)
        trainer.step(batch)  # chooses the number format
        chosen = "bf16" if trainer.bf16 else "fp32"
        steps[f"training step of phase {trainer.phase}"] = (lambda t=trainer, b=batch: t.step(b), chosen)
    patch, channels = run.configuration.network.patch_size, len(run.plans.channel_names)
    predicting = to_device(build_model(run.configuration, run.plans.labels, True), run.device).eval()
    image, lam = torch.randn(1, channels, *patch), torch.zeros(1)
    x_t = torch.randn(SAMPLES, run.plans.labels.num_channels, *patch)

    def segment() -> Condition:
        with autocast(run.device):
            return predicting.condition(image)

    guide = predicting.guide(segment())

    def denoise() -> object:
        with autocast(run.device):
            return predicting.denoise_guided(x_t, NoiseLevel(lam, lam), guide, corrected=False)

    by_hardware = "bf16" if bf16_in_hardware(run.device.type) else "fp32"
    steps["segmenter of a tile"] = (segment, by_hardware)
    steps[f"denoiser of a tile, {SAMPLES} samples"] = (denoise, by_hardware)
    return steps


def share_rows(run: FoldRun, best: dict[str, float], repeats: int) -> list[list[str]]:
    rows = []
    for name, (work, chosen) in works(run).items():
        operations = operations_of(work)
        with torch.inference_mode(not name.startswith("training")):
            seconds = seconds_of(work, repeats)
        floor = operations / best[chosen] / 1e9
        rows.append(
            [
                name,
                chosen,
                f"{operations / 1e9:.1f}",
                f"{1e3 * floor:.0f}",
                f"{1e3 * seconds:.0f}",
                f"{floor / seconds:.0%}",
            ]
        )
    return rows


def write(tried: list[list[str]], shares: list[list[str]], repeats: str) -> None:
    """Put both tables into the section of the result file, behind its first text; all else stays."""
    conditions = {
        "n": repeats,
        "seeds": "0",
        "machine": machine(),
        "versions": f"torch {torch.__version__}",
        "date": date.today().isoformat(),
    }
    columns = (
        ["what", "fp32, G operations/s", "bf16, G operations/s"],
        ["work", "format", "G operations", "floor, ms", "takes, ms", "share of the peak"],
    )
    new = [
        {"table": {"columns": of, "rows": rows, "conditions": conditions}}
        for of, rows in zip(columns, (tried, shares), strict=True)
    ]
    path = pages.RESULTS / "speed.json"
    result = json.loads(path.read_text("utf-8"))
    section = next(section for section in result["sections"] if section["heading"] == HEADING)
    first, *others = section["content"]
    kept = [part for part in others if not (isinstance(part, dict) and part["table"]["columns"] in columns)]
    section["content"] = [first, *new, *kept]
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    pages.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into the result file of the page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    request = TrainRequest(args.dataset, "0", resolve_roots(), configuration=args.configuration, device="cpu")
    run = open_fold(request, StopRequest())
    training = run.configuration.training
    tried = peaks(run.configuration.network, training.batch_size, args.repeats)
    best = {name: max(float(row[1 + i]) for row in tried[:-1]) for i, name in enumerate(FORMATS)}
    shares = share_rows(run, best, args.repeats)
    print(json.dumps([tried, shares], indent=1))
    if args.write:
        write(tried, shares, f"{args.repeats} repeats, medians")


if __name__ == "__main__":
    main()
