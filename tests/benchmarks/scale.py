"""Seconds of the CPU and memory of every step over the number of cases: does anything grow faster than the data set?

    python -m tests.benchmarks.scale --work FOLDER [--cases 1000 3000 10000] [--write]

Tiny volumes of noise with a box in them, two of each patient, are made, listed, checked, planned, preprocessed and
split; their prediction, of which one case is made by the network and the others are copies of it under other names, is
gone through again, and masks are scored. Each step runs in a process of its own. --write puts the table into
documentation/benchmarks/results/scale.json; `python -m tests.benchmarks.pages` then writes the page. About 0.1 MB of
disk a case, all of it removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.pages import RESULTS
from tests.benchmarks.prediction_memory import MODEL, make_model, tiny_networks
from unisegdiff_pipeline.commands import evaluate, fingerprint, plan, predict, preprocess, train
from unisegdiff_pipeline.core.files import file_hash
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.serialization import write_json
from unisegdiff_pipeline.inference.export import (
    lesions_path,
    read_record,
    summary_path,
    volumes_path,
    write_record,
)
from unisegdiff_pipeline.io.images import write_labels, write_map
from unisegdiff_pipeline.io.raw_dataset import open_raw_dataset
from unisegdiff_pipeline.training.data.splits import load_or_create_splits

DATASET = "Dataset950_Many"
SHAPE = (8, 16, 16)
TABLE = "Many cases"
TEMPLATE = "case_00000"


@dataclass(frozen=True)
class Cost:
    """Of one step: seconds of the CPU without the start of Python, and the largest memory of its process."""

    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Places:
    """Folders of one data set."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / DATASET

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def arguments(self, *names: str) -> list[str]:
        return [part for name in names for part in (f"--{name}", str(self.root / name))]


def make_cases(places: Places, count: int) -> None:
    """Images, label maps, dataset.json and groups.csv."""
    rng = np.random.default_rng(0)
    groups = ["case,group"]
    for number in range(count):
        case, labels = f"case_{number:05d}", np.zeros(SHAPE, np.uint8)
        y, x = rng.integers(2, 9, 2)
        labels[2:6, y : y + 5, x : x + 5] = number % 10 > 0
        image = rng.normal(0, 1, SHAPE).astype(np.float32) + 3 * labels
        write_map(places.raw / "imagesTr" / f"{case}_0000.nii.gz", image, Geometry())
        write_labels(places.raw / "labelsTr" / f"{case}.nii.gz", labels, Geometry())
        groups.append(f"{case},patient_{number // 2}")
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    write_json(places.raw / "dataset.json", {**description, "numTraining": count})
    (places.raw / "groups.csv").write_text("\n".join(groups) + "\n", "utf-8")


def copy_predictions(places: Places) -> None:
    """Give every case what the prediction of the first one left, so that the folder is a finished one."""
    record = read_record(places.masks, TEMPLATE)
    assert record is not None
    of_case = (places.masks / f"{TEMPLATE}.nii.gz", places.masks / "uncertainty" / f"{TEMPLATE}.nii.gz")
    tables = (lesions_path, volumes_path, summary_path)
    for image in sorted((places.raw / "imagesTr").iterdir()):
        case = image.name.removesuffix("_0000.nii.gz")
        if case == TEMPLATE:
            continue
        for path in of_case:
            shutil.copyfile(path, path.with_name(f"{case}.nii.gz"))
        for table in tables:
            text = table(places.masks, TEMPLATE).read_text("utf-8")
            table(places.masks, case).write_text(text.replace(TEMPLATE, case), "utf-8")
        write_record(places.masks, replace(record, case=case, inputs=(str(image),), input_hashes=(file_hash(image),)))


def predicting(places: Places) -> list[str]:
    model = str(places.root / MODEL)
    images, masks = str(places.raw / "imagesTr"), str(places.masks)
    return ["-i", images, "-o", masks, "-m", model, "--device", "cpu", "--samples", "0"]


def command(main: Callable[[Sequence[str]], int], *arguments: str) -> None:
    if main(arguments) != 0:
        raise SystemExit(f"{main.__module__} failed")


def steps(places: Places) -> dict[str, Callable[[], object]]:
    """What is measured, in this order."""
    of_data = ["-d", DATASET, *places.arguments("raw", "preprocessed")]
    training = [DATASET, "0", *places.arguments("preprocessed", "raw", "results")]
    labels, masks = str(places.raw / "labelsTr"), str(places.masks)
    return {
        "list the cases": lambda: open_raw_dataset(places.raw),
        "check and fingerprint": lambda: command(fingerprint.main, *of_data),
        "plan": lambda: command(plan.main, *of_data, "--device", "cpu"),
        "preprocess": lambda: command(preprocess.main, *of_data, "-c", "3d_fullres"),
        "preprocess again, nothing to do": lambda: command(preprocess.main, *of_data, "-c", "3d_fullres"),
        "splits": lambda: load_or_create_splits(places.preprocessed, places.raw),
        "train: dry run": lambda: command(train.main, *training, "--dry-run"),
        "predict: dry run": lambda: command(predict.main, *predicting(places), "--dry-run"),
        "predict again, nothing to do": lambda: command(predict.main, *predicting(places)),
        "evaluate": lambda: command(evaluate.main, labels, masks, "-o", str(places.root / "evaluation")),
    }


def measured(places: Places, step: str) -> Cost:
    """Run one step in a process of its own."""
    arguments = [sys.executable, "-m", "tests.benchmarks.scale", "--work", str(places.root), "--step", step]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{step} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def run_step(places: Places, step: str) -> None:
    """In the process of the step: print its cost as the last line."""
    start = cpu_seconds()
    steps(places)[step]()
    seconds = cpu_seconds() - start
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Largest memory of this process. (What getrusage says may be that of the process that started it.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cpu_seconds() -> float:
    """Of this process and those that it started and that have ended: what others do on the machine does not count."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(work: Path, count: int) -> dict[str, Cost]:
    """All steps with so many cases."""
    places = Places(work / str(count))
    shutil.rmtree(places.root, ignore_errors=True)
    start = time.perf_counter()
    make_cases(places, count)
    make_model(places.root / MODEL, tiny_networks())
    (places.root / "results").mkdir()
    print(f"{count} cases made in {time.perf_counter() - start:.0f} s", flush=True)
    found = {}
    for step in steps(places):
        if step == "predict again, nothing to do":
            first = places.raw / "imagesTr" / f"{TEMPLATE}_0000.nii.gz"
            command(predict.main, "-i", str(first), *predicting(places)[2:])
            copy_predictions(places)
        found[step] = measured(places, step)
        print(f"{count:6} {step:32} {found[step].seconds:8.2f} s {found[step].peak_mb:7.0f} MB", flush=True)
    shutil.rmtree(places.root)
    return found


def table(found: dict[int, dict[str, Cost]]) -> dict[str, Any]:
    """Seconds and memory at each size, and the slope of log seconds over log cases between the last two."""
    sizes = sorted(found)
    columns = ["step", *(f"{size} cases, s" for size in sizes), "slope", *(f"{size} cases, MB" for size in sizes)]
    rows = []
    for step in found[sizes[0]]:
        costs = [found[size][step] for size in sizes]
        slope = "-"
        if len(sizes) > 1 and costs[-2].seconds >= 0.05:
            slope = f"{math.log(costs[-1].seconds / costs[-2].seconds) / math.log(sizes[-1] / sizes[-2]):.2f}"
        seconds = [f"{cost.seconds:.2f}" if cost.seconds < 10 else f"{cost.seconds:.0f}" for cost in costs]
        rows.append([step, *seconds, slope, *(f"{cost.peak_mb:.0f}" for cost in costs)])
    import torch

    conditions = {
        "n": "one run a size",
        "seeds": "0",
        "machine": f"{counted(len(os.sched_getaffinity(0)), 'core')} of an AMD EPYC",
        "versions": f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}",
        "date": date.today().isoformat(),
    }
    return {"columns": columns, "rows": rows, "conditions": conditions}


def write_table(new: dict[str, Any]) -> None:
    """Replace the table of all steps in the result file."""
    path = RESULTS / "scale.json"
    page = json.loads(path.read_text("utf-8"))
    (section,) = (section for section in page["sections"] if section["heading"] == TABLE)
    for part in section["content"]:
        if "table" in part and part["table"]["columns"][0] == new["columns"][0]:
            part["table"] = new
    path.write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--write", action="store_true", help="into the result file of the page")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(Places(arguments.work), arguments.step)
        return
    found = {count: measure(arguments.work, count) for count in arguments.cases}
    print(json.dumps(table(found), indent=2))
    if arguments.write:
        write_table(table(found))


if __name__ == "__main__":
    main()
