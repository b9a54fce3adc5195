"""What the staged diffusion gives beside a plain segmenter: tables of documentation/benchmarks/staged_diffusion.md.

    python tests/benchmarks/staged_diffusion.py train DATASET CONFIG --work FOLDER [--raw ROOT] [--arms ARM ...]
    python tests/benchmarks/staged_diffusion.py score DATASET CONFIG --work FOLDER [--raw ROOT]
    python tests/benchmarks/staged_diffusion.py holdout|lengths|attention DATASET CONFIG --work FOLDER

`train` trains on fold 0: the staged diffusion for --seconds, as `usd_train --max-time` does, choosing and validation
inside; the segmenter alone for as long; and each other arm's phase 2, on top of the staged one's phase 1, for as many
iterations as the staged one's had, which cost the same. What is there is not trained again. With --together all of them
train side by side on one GPU, each phase 2 for the seconds that the staged one's has left. With --pretrained the staged
one and the segmenter begin with it. An arm is a trainer as `usd_train --trainer` takes it, so that
`variants:NearestDrawTrainer` (variants.py) is one too. With --seed S the arms' second phases are trained again, on the
same phase 1 and hold-out with other initial weights, patches and noise, and lie in seed_S.
`score` predicts the fold's validation cases, which nothing was chosen on, and evaluates them with usd_evaluate, `table`
prints what has been scored again; likelihood, Brier score and calibration are taken near what any annotator or any row
sees, the same voxels for every row, and likelihood over whole cases as well:

    segmenter   trained for the seconds of both phases, temperature fitted on the hold-out near objects, as scored
    whole       the same, temperature fitted on all voxels of held-out cases
    rival       coherent samples from that segmenter, without any denoiser; length of the field and temperature by the
                energy score on the hold-out
    p_det       the staged diffusion's segmenter, and draws from it
    others      the arms, by trainer, as chosen; where that is a draw without calls, the default sampler as well; the
                staged one also with masks of four calls in all, from p_A and from p_det

`holdout` prints what choosing found on the held-out cases: energy scores of the samplers that were tried, likelihood
loss by w. `lengths` prints energy scores of the default sampler on them by the length of its field. `attention` prints
from the arms' logs how fast they learn and what they do at each noise level: Dice on held-out cases over the seconds of
phase 2; Dice of held-out patches, and the fraction of the gradient's norm, in bands of lam.

Differences of Dice to the segmenter's, and in a second table of energy scores to the rival's, p_det's and the staged
row's, are paired over cases (groups where groups.csv has them), with bootstrap intervals.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unisegdiff_pipeline.core.serialization import read_dataclass, read_json
from unisegdiff_pipeline.diffusion.coding import LogitCalibration, calibrate, cross_entropy
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.calibration import calibration_error, case_calibration, evaluation_region, merge
from unisegdiff_pipeline.evaluation.comparison import paired_comparison
from unisegdiff_pipeline.inference.settings import InferenceSettings, read_settings, write_settings
from unisegdiff_pipeline.io.dataset_json import read_dataset_json
from unisegdiff_pipeline.io.images import read_labels
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.io.raw_dataset import read_groups
from unisegdiff_pipeline.networks.allocator import keep_freed_memory
from unisegdiff_pipeline.selection.calibration import DIVISORS, choose_calibration, held_out_logits
from unisegdiff_pipeline.selection.choosing import choose_settings, default_settings
from unisegdiff_pipeline.selection.field_length import field_lengths_mm, planned_length_mm
from unisegdiff_pipeline.selection.sampler import (
    FULL_SEARCH,
    QUICK_SEARCH,
    SHORT_SEARCH,
    default_sampler,
    score_samplers,
)
from unisegdiff_pipeline.selection.segmenter_weight import WEIGHTS, rank_means, try_means, with_samplers
from unisegdiff_pipeline.training import run
from unisegdiff_pipeline.training.fold import CANDIDATES_NAME, Phase1Facts, finished_model, write_choice
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.resume import PHASE_1_FACTS_NAME, PHASE_1_NAME

ARMS = (
    "StagedDiffusionTrainer",
    "X0DiffusionTrainer",
    "VDiffusionTrainer",
    "EpsilonDiffusionTrainer",
    "FixedThirdsDiffusionTrainer",
)
EVALUATED = ("dice", "single_sample_dice", "energy_score_u", "ged_u", "ged_v")  # by usd_evaluate
COLUMNS = (*EVALUATED, "majority", "soft_dice", "nll", "brier", "nll_whole")
NUM_SAMPLES = 8
PLAIN = ("segmenter", "whole")  # rows without samples
LABELS = {
    "segmenter": "segmenter, tempered near objects",
    "whole": "segmenter, tempered on whole cases",
    **dict(zip(ARMS, ("staged", "x0", "v", "epsilon", "fixed thirds"), strict=True)),
}
SEARCHES = {"full": FULL_SEARCH, "short": SHORT_SEARCH, "quick": QUICK_SEARCH}


class Bench:
    """Folders and commands of one data set."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.dataset, self.configuration = args.dataset, args.config
        self.work, self.raw = args.work.absolute(), args.raw.absolute()
        self.arms = tuple(args.arms)
        self.holdout_cases = args.holdout_cases
        self.seconds, self.device, self.jobs, self.seed = args.seconds, args.device, args.jobs, args.seed
        self.own = self.work if self.seed == 0 else self.work / f"seed_{self.seed}"  # where arms, masks and tables lie
        self.together, self.workers, self.search = args.together, args.workers, args.search
        self.pretrained, self.processor_seconds = args.pretrained, args.processor_seconds
        self.env = {
            **os.environ,
            "usd_raw": str(self.raw),
            "usd_preprocessed": str(self.work / "preprocessed"),
            "usd_results": str(self.own / "results"),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        }

    def start(self, command: str, *arguments: object) -> subprocess.Popen[bytes]:
        start = [str(Path(sys.executable).parent / command)]
        if self.processor_seconds:
            start = [sys.executable, str(Path(__file__).with_name("processor_clock.py")), command]
        return subprocess.Popen([*start, *map(str, arguments)], env=self.env)

    def call(self, command: str, *arguments: object) -> None:
        process = self.start(command, *arguments)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)

    def model(self, name: str) -> Path:
        """RESULTS/DATASET/TRAINER__CONFIGURATION of an arm."""
        home = self.work if name == "segmenter" else self.own
        return home / "results" / self.dataset / f"{_trainer(name).rpartition(':')[2]}__{self.configuration}"

    @property
    def phase_1(self) -> Path:
        """The fold whose phase 1 all arms share: the staged one of seed 0."""
        return self.work / "results" / self.dataset / f"{ARMS[0]}__{self.configuration}" / "fold_0"

    def train(self) -> None:
        if not (self.work / "preprocessed" / self.dataset / "plans.json").is_file():
            self.call(
                "usd_plan_and_preprocess", "-d", self.dataset[7:10], "-c", self.configuration, "--device", self.device
            )
        if self.together:
            self._train_together(self.phase_1)
            return
        if self.seed == 0:
            whole = ["--max-time", self.seconds, *(["--pretrained", self.pretrained] if self.pretrained else [])]
            self._train(ARMS[0], *whole)
            self._train("segmenter", *whole)
        entries = map(json.loads, (self.phase_1 / "log.jsonl").read_text().splitlines())
        iterations = max(e["iteration"] for e in entries if e.get("phase") == 2)
        for arm in self.arms:
            self._train(arm, "--iterations", iterations, "--phase-1-from", self.phase_1, "--seed", self.seed)

    def _train(self, name: str, *length: object) -> None:
        if (self.model(name) / "fold_0/validation/summary.json").is_file():
            return
        print(f"== {self.dataset} {name}, {length}", flush=True)
        self.call("usd_train", *self._training(name, *length))

    def _train_together(self, staged: Path) -> None:
        running = [
            self.start("usd_train", *self._training(name, "--max-time", self.seconds))
            for name in (ARMS[0], "segmenter")
        ]
        while not (staged / PHASE_1_NAME).is_file() and running[0].poll() is None:
            time.sleep(0.5)
        if not (staged / PHASE_1_NAME).is_file():
            raise SystemExit(f"the training in {staged} ended before phase 1 had")
        facts = read_dataclass(Phase1Facts, staged / PHASE_1_FACTS_NAME)
        rest = ("--max-time", round(self.seconds - facts.seconds), "--phase-1-from", staged)
        running += [self.start("usd_train", *self._training(arm, *rest)) for arm in self.arms if arm != ARMS[0]]
        failed = [" ".join(map(str, process.args)) for process in running if process.wait()]
        if failed:
            raise SystemExit("these trainings failed:\n" + "\n".join(failed))

    def _training(self, name: str, *length: object) -> list[object]:
        """Arguments of usd_train for one arm."""
        what = [self.dataset[7:10], "0", "-c", self.configuration, "--trainer", _trainer(name)]
        workers = [] if self.workers is None else ["--workers", self.workers]
        return [*what, "--device", self.device, *workers, *length]

    def holdout_run(self, name: str) -> FoldRun:
        """The run of a finished fold, to choose on its hold-out."""
        folder = self.model(name)
        roots = Roots(self.raw, self.work / "preprocessed", folder.parent.parent)
        request = TrainRequest(
            self.dataset,
            "0",
            roots,
            self.configuration,
            _trainer(name),
            device=self.device,
            workers=0,
            seed=self.seed,
            phase_1_from=None if self.seed == 0 else self.phase_1,
        )
        return run.open_fold(request, StopRequest())

    def rows(self) -> dict[str, Path]:
        """Model folder of each row; the segmenter and its rival get the settings they are scored with."""
        rows = {}
        fold_run = self.holdout_run("segmenter")
        model, settings = finished_model(fold_run)
        cases = fold_run.holdout_cases[: self.holdout_cases]
        tempered = replace(settings, calibration=_one_calibration(fold_run, model, cases, near_only=True))
        whole = replace(settings, calibration=_one_calibration(fold_run, model, cases, near_only=False))
        calibrations = (LogitCalibration(), settings.calibration, tempered.calibration)
        rival = _best_rival(fold_run, model, settings, calibrations, cases)
        for name, chosen in (("segmenter", tempered), ("whole", whole), ("rival", rival)):
            rows[name] = self._with_settings(self.model("segmenter"), name, chosen)
        trained = [arm for arm in self.arms if (self.model(arm) / "fold_0/inference.json").is_file()]
        with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn")) as pool:
            for found in pool.map(self._rows_of_arm, trained):
                rows |= found
        return rows

    def _with_settings(self, model: Path, name: str, settings: InferenceSettings) -> Path:
        """A copy of a model that predicts with these settings."""
        target = self.own / "rivals" / self.dataset / name / model.name
        shutil.copytree(model, target, dirs_exist_ok=True)
        write_settings(target / "fold_0", settings)
        return target

    def _rows_of_arm(self, arm: str) -> dict[str, Path]:
        """Choose an arm's settings on as many cases as the rival's: its own training had time for a few.

        The default sampler is a row of its own where one without calls was chosen; the staged arm also has four calls
        from either start, which tells what stage A is worth.
        """
        keep_freed_memory()  # as usd_train does
        fold_run = self.holdout_run(arm)
        model, settings = finished_model(fold_run)
        settings = default_settings(fold_run.held_out, settings)
        cases = fold_run.holdout_cases[: self.holdout_cases]
        *_, choice = choose_settings(fold_run.held_out, model, settings, cases, SEARCHES[self.search])
        settings = choice.settings
        write_choice(self.model(arm) / "fold_0", replace(settings, chosen_on=f"{len(cases)} held-out cases"), choice)
        rows, samplers = {arm: self.model(arm)}, {}
        length = next(t.sampler.correlation_length_mm for t in choice.samplers if t.sampler.draw)
        if not choice.samplers[0].sampler.total_calls:
            default = default_sampler(settings)
            samplers["with calls"] = replace(default, correlation_length_mm=length, draw=True)
        if arm == ARMS[0]:
            samplers["from p_A"] = SamplerSettings(
                method="ddim", start="stage_a", num_calls=3, lam_end=0.0, correlation_length_mm=length, draw=True
            )
            samplers["from p_det"] = SamplerSettings(
                method="ddim", start="det", num_calls=4, lam_end=0.0, correlation_length_mm=length, draw=True
            )
            drawn = next(t.sampler for t in choice.samplers if not t.sampler.total_calls)
            plain = replace(settings, sampler=drawn, mask_sampler=None, segmenter_weight=1.0, decision="half")
            rows = {"p_det": self._with_settings(self.model(arm), "p_det", plain), **rows}
        for name, sampler in samplers.items():
            tried = with_samplers(settings, sampler)
            best = rank_means(try_means(fold_run.held_out, model, tried, choice.calibrations))[0]
            chosen = replace(with_samplers(settings, sampler, best.segmenter_weight), decision=best.decision)
            rows[f"{arm}, {name}"] = self._with_settings(self.model(arm), f"{arm}, {name}", chosen)
        return rows

    def images(self) -> tuple[Path, list[str]]:
        """A folder with the images of the fold's validation cases, and the cases."""
        splits = json.loads((self.work / "preprocessed" / self.dataset / "splits_final.json").read_text())
        cases = splits[0]["val"]
        folder = self.work / "validation" / self.dataset
        folder.mkdir(parents=True, exist_ok=True)
        for path in (self.raw / self.dataset / "imagesTr").iterdir():
            if any(path.name.startswith((f"{case}.", f"{case}_0")) for case in cases):
                shutil.copy(path, folder / path.name)
        return folder, cases

    def score(self) -> None:
        images, _ = self.images()
        rows = self.rows()
        shutil.rmtree(self.own / "masks" / self.dataset, ignore_errors=True)  # of rows chosen before
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda item: self._predict(*item, images), enumerate(rows.items())))
        self.table()

    def _predict(self, number: int, row: tuple[str, Path], images: Path) -> None:
        """The masks of a row of the table for the validation cases, evaluated."""
        name, model = row
        output = self.own / "masks" / self.dataset / name
        start = time.monotonic()
        samples = ["--samples", NUM_SAMPLES, "--save-samples"] if name not in PLAIN else []
        arguments = ["-i", images, "-o", output, "-m", model, "-f", 0, "--save-probabilities", "--device", self.device]
        self.call("usd_predict", *arguments, *samples)
        facts = {"number": number, "seconds": time.monotonic() - start, "model": str(model)}
        reference = self.raw / self.dataset / "labelsTr"
        description = self.raw / self.dataset / "dataset.json"
        report = ["--no-report", "-o", output / "evaluation", "--dataset-json", description]
        self.call("usd_evaluate", reference, output, "--subset", *report)
        (output / "evaluation" / "row.json").write_text(json.dumps(facts))

    def table(self) -> None:
        """Write the table of the rows that have been scored."""
        masks = self.own / "masks" / self.dataset
        facts = {path.parts[-3]: json.loads(path.read_text()) for path in masks.glob("*/evaluation/row.json")}
        found = {}
        for name in sorted(facts, key=lambda name: facts[name]["number"]):
            cases = self._cases(masks / name, [masks / other for other in facts])
            counts = zip(*(scores.pop("counts") for scores in cases.values()), strict=True)
            ece = _mean([calibration_error(merge(of_class)) for of_class in counts])
            settings = read_settings(Path(facts[name]["model"]) / "fold_0")
            found[name] = {"seconds": facts[name]["seconds"], "settings": settings, "cases": cases, "ece": ece}
        groups = read_groups(self.raw / self.dataset / "groups.csv")
        table = _table(found, groups)
        (self.own / f"{self.dataset}.md").write_text(table)
        print(table, flush=True)

    def holdout(self) -> None:
        """Print what was tried on the held-out cases, from the arms' candidates.json."""
        energies: dict[str, dict[str, float]] = {}
        losses: dict[str, dict[str, float]] = {f"w = {w:g}": {} for w in WEIGHTS}
        for arm in self.arms:
            path = self.model(arm) / "fold_0" / CANDIDATES_NAME
            if not path.is_file():
                continue
            found = read_json(path)
            for trial in found["samplers"]:
                s = SamplerSettings(**trial["sampler"])
                if not s.draw:
                    continue
                row = f"{s.method}, {s.total_calls} from {s.start}" if s.total_calls else "draws from p_det"
                # Best first, so that of several lengths of the field the one that was taken counts.
                energies.setdefault(row, {}).setdefault(arm, _mean(trial["energy_of_cases"]))
            for trial in found["means"]:
                losses[f"w = {trial['segmenter_weight']:g}"][arm] = _mean(trial["nll_of_cases"])
        for title, rows in (("energy score", energies), ("likelihood loss, whole cases", losses)):
            print("\n" + _line([title, *map(_arm, self.arms)]))
            print("|" + "---|" * (1 + len(self.arms)))
            for row, values in rows.items():
                print(_line([row, *(f"{values[arm]:.4f}" if arm in values else "-" for arm in self.arms)]))

    def lengths(self) -> None:
        """Print energy scores of the default sampler with each length of the field, on all held-out cases."""
        for arm in self.arms:
            fold_run = self.holdout_run(arm)
            model, settings = finished_model(fold_run)
            cases = fold_run.holdout_cases
            lengths_mm = field_lengths_mm(fold_run, fold_run.data.open(cases[0]))
            default = default_sampler(settings)
            samplers = [replace(default, correlation_length_mm=length_mm, draw=True) for length_mm in lengths_mm]
            calibrations = choose_calibration(fold_run.held_out, model, cases).of_others
            found = score_samplers(fold_run.held_out, model, settings, samplers, calibrations)
            planned_mm = planned_length_mm(fold_run.held_out)
            print(_line([_arm(arm), *(f"{mm:g} mm" + " (planned)" * (mm == planned_mm) for mm in lengths_mm)]))
            print(_line([default.describe(), *(f"{_mean(found[s]):.4f}" for s in samplers)]), flush=True)

    def attention(self) -> None:
        """Print how the arms learn and what they do at each noise level, from their logs."""
        logs = {arm: self.model(arm) / "fold_0/log.jsonl" for arm in self.arms}
        entries = {
            arm: [json.loads(line) for line in path.read_text().splitlines()]
            for arm, path in logs.items()
            if path.is_file()
        }
        for arm, mine in entries.items():
            phase_2 = [e for e in mine if e.get("phase") == 2]
            start = next(e["seconds"] for e in phase_2 if "seconds" in e)
            scores = [(e["seconds"] - start, e["dice_mean"]) for e in phase_2 if e["kind"] == "validation"]
            print(f"{_arm(arm)}: " + ", ".join(f"{dice:.3f} at {seconds:.0f} s" for seconds, dice in scores))
        for title, cases, key in (
            ("Dice of held-out patches", "held_out", "dice"),
            ("loss of held-out patches", "held_out", "loss"),
            ("fraction of the gradient's norm", "training", "gradient_norm"),
        ):
            print(f"\n{title}, by band of lam\n")
            for arm, mine in entries.items():
                bands = [e for e in mine if e["kind"] == "bands" and e["cases"] == cases]
                found = _bands(bands[-1:] if cases == "held_out" else bands[len(bands) // 2 :], key)
                print(f"{_arm(arm)}: " + ", ".join(f"{name}: {v:.3g}" for name, v in found.items()))

    def _cases(self, output: Path, all_rows: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """Scores of each case, mean over its classes."""
        by_case: dict[str, list[dict[str, float]]] = {}
        with open(output / "evaluation" / "metrics.csv", newline="") as stream:
            for row in csv.DictReader(stream):
                by_case.setdefault(row["case"], []).append({key: _number(row.get(key, "")) for key in EVALUATED})
        dataset = self.raw / self.dataset
        description = read_dataset_json(dataset / "dataset.json")
        cases: dict[str, dict[str, Any]] = {}
        for case, rows in by_case.items():
            cases[case] = {key: _mean([row[key] for row in rows]) for key in EVALUATED}
            cases[case] |= _more_scores(dataset, output, all_rows, case, description)
        return cases


def _trainer(name: str) -> str:
    return "SegmentationTrainer" if name == "segmenter" else name


def _bands(entries: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Mean of a column of the log by band of lam; norms of the gradient as fractions of their sum."""
    columns = zip(*(entry[key] for entry in entries), strict=True)
    means = [_mean([math.nan if v is None else v for v in column]) for column in columns]
    if key == "gradient_norm":
        total = sum(v for v in means if not math.isnan(v))
        means = [v / total for v in means]
    intervals = [f"{low:.1f} to {high:.1f}" for low, high in itertools.pairwise(entries[-1]["limits"])]
    return dict(zip(["pure noise", *intervals, "from p_det"], means, strict=True))


def _more_scores(dataset: Path, output: Path, all_rows: Sequence[Path], case: str, description: Any) -> dict[str, Any]:
    """Dice of the vote over the samples, and what the probabilities are worth beside the annotators' masks.

    They are judged near what any annotator or any row of the table sees, the same voxels for every row: usd_evaluate
    takes each row's own mask, and the rows threshold their masks in different ways.
    """
    scheme, ending = description.labels, description.file_ending
    labels = read_labels(dataset / "labelsTr" / f"{case}{ending}")
    reference = labels.array[0]
    raters = sorted((dataset / "ratersTr").glob(f"{case}_rater*{ending}")) if (dataset / "ratersTr").is_dir() else []
    maps = [read_labels(path).array[0] for path in raters] or [reference]
    p = np.load(output / "probabilities" / f"{case}.npz")["probabilities"].astype(np.float32)
    predicted = [read_labels(row / f"{case}{ending}").array[0] for row in all_rows]
    scores: dict[str, list[Any]] = {
        name: [] for name in ("soft_dice", "nll", "brier", "counts", "nll_whole", "majority")
    }
    for index, of_class in enumerate(zip(*(scheme.class_masks(labels) for labels in maps), strict=True)):
        masks, soft = [mask for _, mask in of_class], p[scheme.foreground_offset + index]
        target = np.mean(masks, axis=0)
        total = float(soft.sum() + target.sum())
        scores["soft_dice"].append(2 * float((soft * target).sum()) / total if total else math.nan)
        seen = [[mask for _, mask in scheme.class_masks(labels)][index] for labels in predicted]
        union = np.logical_or.reduce(masks)
        region = evaluation_region(
            union, np.logical_or.reduce(seen), labels.geometry.spacing_mm, description.spacing_known
        )
        found = case_calibration(soft, masks, region)
        for name in ("nll", "brier", "counts"):
            scores[name].append(getattr(found, name))
        scores["nll_whole"].append(case_calibration(soft, masks, ~scheme.ignored(reference)).nll)
    samples = [read_labels(path).array[0] for path in sorted((output / "samples").glob(f"{case}_sample*{ending}"))]
    if samples:
        vote = scheme.decode(np.mean([scheme.encode(labels) for labels in samples], axis=0))
        for (_, a), (_, b) in zip(scheme.class_masks(vote), scheme.class_masks(reference), strict=True):
            scores["majority"].append(2 * (a & b).sum() / (a.sum() + b.sum()) if b.any() else math.nan)
    return {name: values if name == "counts" else _mean(values) for name, values in scores.items()}


def _one_calibration(fold_run: FoldRun, model: Any, cases: Sequence[str], near_only: bool) -> LogitCalibration:
    """The one temperature with the least likelihood loss near objects, where calibration is scored, or everywhere."""
    coding = fold_run.plans.labels.coding
    z, t, weights, _ = held_out_logits(fold_run.held_out, model, cases, near_only)
    one = [LogitCalibration(value, value) for value in DIVISORS]
    return min(one, key=lambda value: float((weights * cross_entropy(calibrate(z, coding, value), t, coding)[0]).sum()))


def _best_rival(
    fold_run: FoldRun, model: Any, settings: Any, calibrations: Sequence[LogitCalibration], cases: Sequence[str]
) -> Any:
    """Settings of coherent samples from the segmenter, the best on the hold-out."""
    lengths_mm = field_lengths_mm(fold_run, fold_run.data.open(cases[0]))
    samplers = [
        SamplerSettings(
            method="ddim", start="det", num_calls=0, lam_end=0.0, correlation_length_mm=length_mm, draw=True
        )
        for length_mm in lengths_mm
    ]
    found = []
    for calibration in dict.fromkeys(calibrations):
        tried = replace(settings, calibration=calibration, num_samples=NUM_SAMPLES)
        tempered = dict.fromkeys(cases, calibration)
        for sampler, energies in score_samplers(fold_run.held_out, model, tried, samplers, tempered).items():
            found.append((float(np.mean(energies)), replace(tried, sampler=sampler)))
    return min(found, key=lambda item: item[0])[1]


def _table(found: dict[str, Any], groups: dict[str, str]) -> str:
    """Scores of the rows, then paired differences of what is drawn."""
    base = found["segmenter"]["cases"]
    several = any(not math.isnan(case["ged_u"]) for row in found.values() for case in row["cases"].values())
    columns = ["row", "w, threshold", "calls", "Dice, minus segmenter's [95 %] p", "of the vote", "soft Dice"]
    columns += ["one sample", "energy U", *(["GED U / V"] if several else [])]
    columns += ["NLL", "Brier", "ECE", "NLL, whole cases", "s/case"]
    lines = [_line(columns), "|" + "---|" * len(columns)]
    for name, row in found.items():
        cases, settings = row["cases"], row["settings"]
        means = {key: _mean([case[key] for case in cases.values()]) for key in COLUMNS}
        drawing = settings.drawn_by
        values = [
            _label(name),
            "-" if name in (*PLAIN, "rival", "p_det") else f"{settings.segmenter_weight:g}, {settings.decision}",
            "-" if name in PLAIN else f"{drawing.total_calls}" + " hard" * (drawing.method == "hard"),
            f"{means['dice']:.3f}" + ("" if name == "segmenter" else f", {_difference(cases, base, 'dice', groups)}"),
            *(f"{means[key]:.3f}" for key in ("majority", "soft_dice", "single_sample_dice", "energy_score_u")),
            *([f"{means['ged_u']:.3f} / {means['ged_v']:.3f}"] if several else []),
            *(f"{value:.3f}" for value in (means["nll"], means["brier"], row["ece"])),
            f"{means['nll_whole']:.4f}",
            f"{row['seconds'] / len(cases):.2f}",
        ]
        lines.append(_line(["-" if v in ("nan", "nan / nan") else v for v in values]))
    others = [name for name in ("rival", "p_det", ARMS[0]) if name in found]
    title = "energy U" + ", as GED U" * several + ", minus that of"  # annotators' own distances cancel
    columns = [title, *(_label(name) for name in others)]
    lines += ["", _line(columns), "|" + "---|" * len(columns)]
    for name in found:
        if name not in PLAIN:
            mine, theirs = found[name]["cases"], [found[other]["cases"] for other in others]
            lines.append(_line([_label(name), *(_difference(mine, b, "energy_score_u", groups) for b in theirs)]))
    return "\n".join(lines) + "\n"


def _difference(a: dict[str, Any], b: dict[str, Any], key: str, groups: dict[str, str]) -> str:
    """Mean paired difference, with its interval over groups (patients) and Wilcoxon's p where there are any."""
    pair = paired_comparison([a[c][key] for c in b], [b[c][key] for c in b], [groups.get(c, c) for c in b])
    if not pair.ci_low < pair.ci_high:
        return f"{pair.mean_difference:+.3f}"
    return f"{pair.mean_difference:+.3f} [{pair.ci_low:+.3f}, {pair.ci_high:+.3f}] {pair.p_wilcoxon:.2g}"


def _label(name: str) -> str:
    """A row's name in the table."""
    arm, _, rest = name.partition(", ")
    if arm == ARMS[0]:
        return f"{_arm(arm)}, {rest.replace('from', '4 calls from') or 'as chosen'}"
    return f"{_arm(arm)}, {rest}" if rest else _arm(arm)


def _arm(name: str) -> str:
    return LABELS.get(name, name.rpartition(":")[2].removesuffix("Trainer"))


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return float(np.mean(defined)) if defined else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["train", "score", "table", "holdout", "lengths", "attention"])
    parser.add_argument("dataset", help="full name, DatasetXXX_Name")
    parser.add_argument("config")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--raw", type=Path, default=os.environ.get("usd_raw", os.environ.get("nnUNet_raw")))
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--holdout-cases", type=int, default=24, help="to choose on in `score`, for every row")
    parser.add_argument("--search", choices=SEARCHES, default="full", help="how far samplers are searched in `score`")
    parser.add_argument("--seconds", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0, help="of the arms' second phases")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pretrained", help="start of the staged one and of the segmenter, as of usd_train")
    parser.add_argument("--processor-seconds", action="store_true", help="budgets in processor time, see that module")
    parser.add_argument("--together", action="store_true", help="train all arms side by side")
    parser.add_argument("--workers", type=int, help="of each training")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="arms to choose for and rows to score at a time; more make s/case incomparable",
    )
    args = parser.parse_args()
    if args.together and args.pretrained:
        parser.error("--pretrained is for trainings in turn; leave out --together")
    if args.together and args.seed:
        parser.error("--together trains phase 1 as well; give --seed without it, to train second phases in turn")
    getattr(Bench(args), args.part)()


if __name__ == "__main__":
    main()
