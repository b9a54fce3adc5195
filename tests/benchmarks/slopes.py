"""Seconds of the CPU and memory over samples, calls, voxels and classes: does anything grow faster than what is asked?

    python -m tests.benchmarks.slopes --work FOLDER [--axes AXIS ...] [--runs N] [--write]

One factor is varied at a time, of volumes of 32 x 64 x 64 with 100 balls that share the classes, so that there is as
much foreground whatever their number. Networks are as wide as planned for a CPU and untrained; the segmenter's logits
follow the brightness, so that the balls are found and little else is sampled. Each step runs in a process of its own;
its imports do not count. --write puts the table into documentation/benchmarks/results/slopes.json;
`python -m tests.pictures` and `python -m tests.benchmarks.pages` then draw the figure and write the page.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import platform
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.pages import RESULTS
from tests.benchmarks.prediction_memory import network_of, plans_of, segment_by, write_model
from tests.benchmarks.scale import Cost, command, cpu_seconds, peak_mb
from unisegdiff_pipeline.commands import evaluate, fingerprint, plan, predict, preprocess
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.serialization import to_jsonable, write_json
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.networks.staged_model import build_model
from unisegdiff_pipeline.planning.planner import denoiser_widths
from unisegdiff_pipeline.planning.plans import DenoiserPlan

DATASET = "Dataset952_Slopes"
PATCH, WIDTHS = (32, 48, 48), (16, 32, 64, 128)
SHAPE, BALLS, RADIUS = (32, 64, 64), (2, 5, 10), 3  # balls along each axis
SHARPNESS = 9.0  # of the logits: a class more or less is this much less likely
NOISE_INSIDE, NOISE_OUTSIDE = 0.2, 0.05  # so that the class of about every tenth voxel of a ball is in doubt
CASES = 2
SPACINGS_MM = ((1.0, 1.0, 1.0), (1.25, 1.25, 1.25))  # of every other case, so that half of them are resampled
MODEL = "StagedDiffusionTrainer__3d_fullres"


@dataclass(frozen=True)
class Work:
    """What a step is given: how many times the volume, classes, samples and network calls of a sample."""

    volumes: int = 1
    classes: int = 1
    samples: int = 8
    calls: int = 2


AXES: dict[str, tuple[str, tuple[int, ...]]] = {  # axis: field of Work, its values
    "samples": ("samples", (1, 2, 4, 8, 16, 32)),
    "calls": ("calls", (1, 2, 4, 8)),
    "voxels": ("volumes", (1, 2, 4, 8)),
    "classes": ("classes", (1, 3, 10, 30, 100)),
}
Measured = dict[str, dict[str, dict[int, Cost]]]  # axis, step, value
STEPS_OF = {"samples": ("predict",), "calls": ("predict",)}  # all steps of the others


def label_scheme(classes: int) -> LabelScheme:
    names = tuple(f"class_{i}" for i in range(1, classes + 1))
    coding = "binary" if classes == 1 else "softmax"
    return LabelScheme(names, tuple((i,) for i in range(1, classes + 1)), coding, tuple(range(1, classes + 1)))


def label_map(work: Work) -> np.ndarray:
    """Balls on a grid (Z, Y, X), uint8; the whole stacked `volumes` times along z."""
    cells = [n // count for n, count in zip(SHAPE, BALLS, strict=True)]
    out = np.zeros(SHAPE, np.uint8)
    z, y, x = np.ogrid[tuple(slice(-RADIUS, RADIUS + 1) for _ in SHAPE)]
    ball = z**2 + y**2 + x**2 <= RADIUS**2
    for number, place in enumerate(np.ndindex(*BALLS)):
        centre = [cell * p + cell // 2 for cell, p in zip(cells, place, strict=True)]
        out[tuple(slice(c - RADIUS, c + RADIUS + 1) for c in centre)][ball] = 1 + number % work.classes
    return np.tile(out, (work.volumes, 1, 1))


def make_data(root: Path, work: Work) -> None:
    """A raw data set, and masks of its cases that are the references moved by a voxel."""
    raw = root / "raw" / DATASET
    for case in range(CASES):
        labels, rng = label_map(work), np.random.default_rng(case)
        geometry = Geometry(spacing_mm=SPACINGS_MM[case % 2])
        noise = np.where(labels > 0, NOISE_INSIDE, NOISE_OUTSIDE) * rng.normal(0, 1, labels.shape)
        image = (labels + noise).astype(np.float32)
        write_map(raw / "imagesTr" / f"case_{case}_0000.nii.gz", image, geometry)
        write_labels(raw / "labelsTr" / f"case_{case}.nii.gz", labels, geometry)
        write_labels(root / "masks" / f"case_{case}.nii.gz", np.roll(labels, 1, axis=2), geometry)
    names = {"background": 0, **{name: i for i, name in enumerate(label_scheme(work.classes).names, start=1)}}
    facts = {"channel_names": {"0": "MR"}, "labels": names, "numTraining": CASES, "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", facts)


def make_model(folder: Path, work: Work) -> None:
    """A model folder of a plan as for a CPU."""
    labels = label_scheme(work.classes)
    network = network_of(PATCH, WIDTHS, 2)
    networks = network, DenoiserPlan(denoiser_widths(network, labels.num_channels)[0])
    plans = plans_of(DATASET, "3d_fullres", labels, networks)
    torch.manual_seed(0)
    model = build_model(plans.configurations["3d_fullres"], labels, True)
    write_model(folder, plans, model, num_calls=work.calls - 1)


def predict_by_brightness(arguments: Sequence[str]) -> int:
    """`usd_predict` with a segmenter whose logits follow the brightness; its network computes all that it would."""

    def by_brightness(image: Tensor, logits: Tensor) -> Tensor:
        channels = logits.shape[1]
        values = torch.arange(max(2, channels), dtype=image.dtype).reshape(1, -1, 1, 1, 1)
        found = -SHARPNESS * (image - values).square()
        return found[:, 1:] - found[:, :1] if channels == 1 else found

    segment_by(by_brightness)
    return predict.main(arguments)


def steps(root: Path, work: Work) -> dict[str, Callable[[], object]]:
    """What is measured, in this order."""
    of_data = ["-d", DATASET, "--raw", str(root / "raw"), "--preprocessed", str(root / "preprocessed")]
    raw = root / "raw" / DATASET
    image, model = str(raw / "imagesTr/case_0_0000.nii.gz"), str(root / MODEL)
    predicted = ["-i", image, "-o", str(root / "predicted"), "-m", model, "--device", "cpu"]
    scored = [str(raw / "labelsTr"), str(root / "masks"), "-o", str(root / "scores")]
    return {
        "predict": lambda: command(predict_by_brightness, *predicted, "--samples", str(work.samples)),
        "evaluate": lambda: command(evaluate.main, *scored),
        "fingerprint": lambda: command(fingerprint.main, *of_data, "--workers", "0"),
        "plan": lambda: command(plan.main, *of_data, "--device", "cpu"),
        "preprocess": lambda: command(preprocess.main, *of_data, "-c", "3d_fullres", "--workers", "0"),
    }


def measured(root: Path, work: Work, step: str) -> Cost:
    """Run one step in a process of its own, which begins with all modules of this one."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run_step, args=(root, work, step, sending))
    process.start()
    sending.close()
    try:
        cost: Cost = receiving.recv()
    except EOFError:
        raise SystemExit(f"{step} of {work} failed") from None
    process.join()
    return cost


def run_step(root: Path, work: Work, step: str, sending: Connection) -> None:
    """In the process of the step."""
    start = cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()):
        steps(root, work)[step]()
    sending.send(Cost(cpu_seconds() - start, peak_mb()))


def measure(folder: Path, axis: str, runs: int) -> dict[str, dict[int, Cost]]:
    """Step => value of the axis => medians."""
    field, values = AXES[axis]
    found: dict[str, dict[int, Cost]] = {}
    for value in values:
        root, work = folder / f"{axis}_{value}", replace(Work(), **{field: value})
        costs: dict[str, list[Cost]] = {step: [] for step in STEPS_OF.get(axis, steps(root, work))}
        for _ in range(runs):
            shutil.rmtree(root, ignore_errors=True)
            make_data(root, work)
            make_model(root / MODEL, work)
            for step, of_step in costs.items():
                of_step.append(measured(root, work, step))
        shutil.rmtree(root)
        for step, of_step in costs.items():
            seconds, peaks = (statistics.median(getattr(c, name) for c in of_step) for name in ("seconds", "peak_mb"))
            found.setdefault(step, {})[value] = Cost(seconds, peaks)
            print(f"{axis} {value:4} {step:12} {seconds:8.2f} s {peaks:6.0f} MB", flush=True)
    return found


def slope(costs: dict[int, Cost]) -> float:
    """Of log seconds over the log of the factor, between the last two values."""
    (low, before), (high, behind) = sorted(costs.items())[-2:]
    return math.log(behind.seconds / before.seconds) / math.log(high / low)


def table(found: Measured, runs: int) -> dict[str, Any]:
    rows = []
    for axis, of_steps in found.items():
        for step, costs in of_steps.items():
            values = sorted(costs)
            seconds, peaks = ([getattr(costs[v], name) for v in values] for name in ("seconds", "peak_mb"))
            times = f"{seconds[-1] / seconds[0]:.1f} times for {values[-1]}"
            shown = [", ".join(map(str, values)), ", ".join(f"{s:.3g}" for s in seconds), times]
            rows.append([axis, step, *shown, f"{slope(costs):.2f}", f"{peaks[0]:.0f} to {peaks[-1]:.0f}"])
    columns = ["over", "step", "of them", "seconds", "as long", "slope", "MB"]
    conditions = {
        "n": f"{runs} run{'s' * (runs > 1)} of each",
        "seeds": "0",
        "machine": "one core of an AMD EPYC, shared",
        "versions": f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}",
        "date": date.today().isoformat(),
    }
    return {"columns": columns, "rows": rows, "conditions": conditions}


def write(found: Measured, runs: int) -> None:
    """Put what was measured, and its table, into the result file; axes that were not measured stay."""
    path = RESULTS / "slopes.json"
    page = json.loads(path.read_text("utf-8"))
    page["measured"] |= to_jsonable(found)
    everything = {
        axis: {
            step: {int(v): Cost(**cost) for v, cost in costs.items()} for step, costs in page["measured"][axis].items()
        }
        for axis in AXES
        if axis in page["measured"]
    }
    for section in page["sections"]:
        for part in section["content"]:
            if isinstance(part, dict) and "table" in part and part["table"]["columns"][0] == "over":
                part["table"] = table(everything, runs)
    path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into the result file of the page")
    arguments = parser.parse_args()
    found = {axis: measure(arguments.work, axis, arguments.runs) for axis in arguments.axes}
    if arguments.write:
        write(found, arguments.runs)


if __name__ == "__main__":
    main()
