"""What ways to train do to false alarms: phase 1 alone, one way after the other, on equal numbers of iterations.

    python -m tests.benchmarks.false_alarms train DATASET FOLD --way WAY --seed N --iterations N --preprocessed ROOT
        --raw ROOT --tables DIR
    python -m tests.benchmarks.false_alarms compare DIR

Ways are "default", as the plan says; "lesion-free", where a quarter of each batch is patches of cases (of several
annotators: of a case and one of them) without any lesion; "dice", where the loss has in addition, for each example
without a lesion, the sum of its probabilities as a fraction of that sum and the mean lesion of the others; and
"uniform", where no patch is centred on a lesion. `train` keeps the tables of lesions of the inner hold-out, of the
validation cases and of some that were trained on; `compare` sets every way against the default, over the seeds, and
against the default with a lesion filter of as few false alarms.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.lesions import auroc, scores
from unisegdiff_pipeline.diffusion.coding import probabilities_from_logits
from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.inference.lesion_filter import LesionFilter, LesionRule
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.selection.calibration import choose_calibration
from unisegdiff_pipeline.selection.found_lesions import HeldOutCase, held_out_case
from unisegdiff_pipeline.selection.hold_out import planned_settings, sample_tiles, tiled
from unisegdiff_pipeline.training.data.patches import Batch, PatchSource, random_start
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import open_fold
from unisegdiff_pipeline.training.schedule import PhaseBudget
from unisegdiff_pipeline.training.trainers.segmentation import SegmentationTrainer, segmentation_loss
from unisegdiff_pipeline.training.trainers.trainer import StepResult

WAYS = ("default", "lesion-free", "dice", "uniform")
LESION_FREE_FRACTION = 0.25  # of a batch
NUM_TRAINED_ON = 40  # cases that were trained on and are looked at


class LesionFreeSource(PatchSource):
    """The first positions of a batch are patches without any lesion in the whole case."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free: list[tuple[str, int]] = []
        for case_id in self.case_ids:
            labels = np.asarray(self._case(case_id).labels[...])
            rows = [0] if len(labels) == 1 else range(1, len(labels))
            self._free += [(case_id, row) for row in rows if not (labels[row] > 0).any()]

    def _example(self, iteration: int, item: int) -> Any:
        self._is_lesion_free = item < round(LESION_FREE_FRACTION * self.batch_size)
        return super()._example(iteration, item)

    def _draw_location(self, rng: np.random.Generator, foreground: bool) -> Any:
        if not self._is_lesion_free:
            return super()._draw_location(rng, foreground)
        case_id, row = self._free[rng.integers(len(self._free))]
        return case_id, row, random_start(self._case(case_id).image.shape[1:], (1, *self._patch)[-3:], rng)


def loss_of_lesion_free(p: Tensor, batch: Batch) -> Tensor:
    """Mean over the batch of sum p / (sum p + mean lesion of the other examples), 0 for those with a lesion."""
    p, t = ((values * batch.valid).flatten(2).sum(dim=2) for values in (p, batch.target))  # (B, C)
    free = (t == 0).to(p.dtype)
    mean_lesion = (t.sum(dim=0) / (1 - free).sum(dim=0).clamp_min(1)).clamp_min(1)
    return (free * p / (p + mean_lesion)).mean()


class ComparedTrainer(SegmentationTrainer):
    """Phase 1 by one of the ways; for sigmoid channels."""

    way = "default"

    def patches(self) -> PatchSource:
        if self.way != "lesion-free":
            return super().patches()
        run = self.run
        return LesionFreeSource(run.data, run.train_cases, run.configuration, run.plans.labels, 2 * run.seed)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepResult:
        logits = self.network(batch.image, batch.source).logits
        result = segmentation_loss(logits, batch, self.run.configuration, self.coding)
        if self.way != "dice":
            return result
        more = loss_of_lesion_free(probabilities_from_logits(logits[0], self.coding), batch)
        return StepResult(result.loss + more, result.logged)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train phase 1 and look at its cases."""
    roots = Roots(args.raw, args.preprocessed, args.tables / "results")
    request = TrainRequest(
        args.dataset, args.fold, roots, "2d", "SegmentationTrainer", seed=args.seed, device="cpu", workers=0
    )
    run = open_fold(request, StopRequest())
    if args.way == "uniform":
        plan = dataclasses.replace(run.configuration.training, foreground_fraction=0.0)
        run = dataclasses.replace(run, configuration=dataclasses.replace(run.configuration, training=plan))
    trainer = ComparedTrainer(run, PhaseBudget(iterations=args.iterations))
    trainer.way, trainer.bf16 = args.way, False
    source, free = trainer.patches(), []
    trainer.network.train()
    for iteration in range(args.iterations):
        batch = source.batch(iteration)
        free.append(float((batch.target.flatten(1).sum(dim=1) == 0).float().mean()))
        trainer.iterate(batch)
    model = trainer.model_for_prediction()
    fitted = choose_calibration(run.held_out, model, run.holdout_cases)
    planned = dataclasses.replace(planned_settings(run.configuration), segmenter_weight=1.0, num_samples=0)
    trained_on = np.random.default_rng(0).permutation(run.train_cases)[:NUM_TRAINED_ON]
    found: dict[str, Any] = {"lesion_free_fraction": float(np.mean(free))}
    for name, cases in (("holdout", run.holdout_cases), ("validation", run.validation_cases), ("train", trained_on)):
        found[name] = []
        for case_id in cases:
            calibration = fitted.of_others.get(case_id, fitted.of_all)
            settings, stored = dataclasses.replace(planned, calibration=calibration), run.data.open(case_id)
            prediction = sample_tiles(run.held_out, tiled(run.held_out, model, stored), settings, stored)
            found[name].append(held_out_case(run.held_out, settings, stored, prediction))
    return found


def summary(cases: list[HeldOutCase], least_probability: float = 0.0) -> dict[str, float]:
    """Of the first class: what the tables of documentation/benchmarks/lesions.md have, after a filter."""
    units = cases[0].units.size
    rules = {cases[0].classes[0].class_name: LesionRule(min_probability=least_probability)}
    kept = LesionFilter(rules=rules, unit=units)
    of_cases = [scores(case.classes[0], kept, units) for case in cases]
    detected, false, reference = (sum(s[name] for s in of_cases) for name in ("detected", "false", "reference"))
    means = {name: float(np.nanmean([s[name] for s in of_cases])) for name in ("dice", "alarms", "any_alarm")}
    area = auroc([case.highest for case in cases], [case.holds_lesion for case in cases])
    return {**means, "lesion_f1": 2 * detected / (detected + false + reference), "auroc": area}


def filtered_to(cases: list[HeldOutCase], alarms: float) -> dict[str, float]:
    """The scores with the lowest mean probability of a lesion that leaves no more false alarms a lesion-free case."""
    for least in np.linspace(0, 1, 101):
        found = summary(cases, float(least))
        if found["alarms"] <= alarms:
            break
    return {"least_probability": float(least), **found}


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 3) for name, value in values.items()}


def compare(folder: Path) -> None:
    """Print every training, and each way against the default over the seeds."""
    runs: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.pkl")):
        dataset, fold, way, seed = path.stem.split("__")[:4]
        runs[dataset, fold][f"{way} {seed}"] = pickle.loads(path.read_bytes())
    for key, found in runs.items():
        for name, tables in found.items():
            print(*key, name, f"lesion-free patches {tables['lesion_free_fraction']:.2f}")
            for part in ("holdout", "validation", "train"):
                print("  ", part, len(tables[part]), rounded(summary(tables[part])))
            way, seed = name.split()
            if way != "default" and f"default {seed}" in found:
                own, default = (t["holdout"] + t["validation"] for t in (tables, found[f"default {seed}"]))
                print("   holdout and validation", rounded(summary(own)))
                print("   default of as few alarms", rounded(filtered_to(default, summary(own)["alarms"])))
        for way in WAYS[1:]:
            seeds = [name.split()[1] for name in found if name.startswith(f"{way} ")]
            pairs = [(found[f"{way} {s}"], found[f"default {s}"]) for s in seeds if f"default {s}" in found]
            for score in ("dice", "f1_of_case", "alarms", "any_alarm") if pairs else ():
                values: list[list[float]] = [[], []]
                groups = []
                for pair in pairs:
                    for values_of, tables in zip(values, pair, strict=True):
                        cases = tables["holdout"] + tables["validation"]
                        values_of += [scores(c.classes[0], LesionFilter(), c.units.size)[score] for c in cases]
                    groups += [case.group for case in cases]
                result = paired_comparison(values[0], values[1], groups)
                defined = sum(not math.isnan(value) for value in values[0])
                print(
                    f"{key} {way} against default, {score}: {result.mean_difference:+.3f} ({result.ci_low:+.3f} to "
                    f"{result.ci_high:+.3f}), p {result.p_wilcoxon:.2f}, {defined} cases over {len(pairs)} seeds"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("dataset")
    training.add_argument("fold")
    training.add_argument("--way", choices=WAYS, required=True)
    for name in ("--seed", "--iterations"):
        training.add_argument(name, type=int, required=True)
    for name in ("--preprocessed", "--raw", "--tables"):
        training.add_argument(name, type=Path, required=True)
    commands.add_parser("compare").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        compare(args.folder)
        return
    args.tables.mkdir(parents=True, exist_ok=True)
    path = args.tables / f"{args.dataset}__{args.fold}__{args.way}__{args.seed}__{args.iterations}.pkl"
    path.write_bytes(pickle.dumps(train(args)))


if __name__ == "__main__":
    main()
