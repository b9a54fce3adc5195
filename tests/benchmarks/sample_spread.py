"""Whether samples spread as the truth does: tables of documentation/benchmarks/sample_spread.md.

    python tests/benchmarks/sample_spread.py FOLD ... --preprocessed ROOT [--raw ROOT] [--cases validation|holdout]
        [--samples 24] [--json FILE] [--set KEY=VALUE ...] [--from-truth]

FOLD is the folder of a finished fold, RESULTS/DATASET/TRAINER__CONFIGURATION/fold_K. Its validation cases, which
nothing was chosen on, are sampled with the settings of its inference.json on the plan's grid; folds of one data set
are put together. Printed are, by class:

    coverage at 50 and 90 %     of intervals of the sampled volumes, with the standard error of that many cases
    sd / error's                spread of the sampled volumes over that of the error of their mean
    volume                      sampled volume as a multiple of the annotators'
    distance                    mean 1 - IoU of two samples, and of two annotators
    empty                       empty draws of the cases whose largest probability is over 0.95
    in all, in none             how often voxels that all samples, or none, mark are marked in truth
    energy score, GED           as `usd_evaluate` has them, unbiased
    wrong class                 of integer classes: largest part of a class that a draw gives to another, mean and worst
    Dice                        of the mask that is committed to against the reference, and of a sample against an
                                annotator; cases where these are empty are left out

--set changes fields of the sampler of the masks, as --set surface_length_mm=null for one field alone.
With --raw, of phantoms of usd_demo the fraction of samples is set against the true probability, too; --from-truth draws
from that probability instead of the network's, with the same fields: what is off then is the fields' fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.demo.phantoms import true_probability
from unisegdiff_pipeline.diffusion.coding import NO_CALIBRATION, LogitCalibration
from unisegdiff_pipeline.evaluation.diversity import generalised_energy_distance, pairwise_overlaps, single_sample_dice
from unisegdiff_pipeline.evaluation.spread import (
    CaseSpread,
    empty_samples,
    fraction_curve,
    interval_coverage,
    mean_distances,
    spread_ratio,
    volume_bias,
)
from unisegdiff_pipeline.inference.case_prediction import CasePrediction
from unisegdiff_pipeline.inference.decision import decided_probabilities
from unisegdiff_pipeline.inference.limits import find_limits
from unisegdiff_pipeline.inference.model_name import parse_model_name
from unisegdiff_pipeline.inference.settings import InferenceSettings
from unisegdiff_pipeline.inference.tiled_case import TiledCase
from unisegdiff_pipeline.inference.volume_sampler import sample_case
from unisegdiff_pipeline.io.paths import Roots
from unisegdiff_pipeline.networks.staged_model import StagedModel
from unisegdiff_pipeline.preprocessing.storage import StoredCase
from unisegdiff_pipeline.selection.spread import annotators, spread_of_case
from unisegdiff_pipeline.training.fold import finished_model
from unisegdiff_pipeline.training.fold_run import FoldRun
from unisegdiff_pipeline.training.interrupt import StopRequest
from unisegdiff_pipeline.training.request import TrainRequest
from unisegdiff_pipeline.training.run import open_fold

SURE = 0.95
TRUTH_BINS = 10


@dataclasses.dataclass(frozen=True)
class Scored:
    """One class of one case."""

    spread: CaseSpread
    ged: float
    wrong_class: tuple[float, ...]  # of each sample: part of the reference's class that it gives to another one
    truth: tuple[tuple[float, float, float], ...]  # (voxels, sum of sampled fractions, sum of truth) by truth
    dice: float  # of the mask that is committed to
    sample_dice: float


def open_run(folder: Path, preprocessed: Path, raw: Path | None) -> FoldRun:
    """The run of a finished fold."""
    name = parse_model_name(folder.parent.name)
    assert name is not None
    roots = Roots(raw, preprocessed, folder.parent.parent.parent)
    dataset, fold = folder.parent.parent.name, folder.name.removeprefix("fold_")
    request = TrainRequest(
        dataset, fold, roots, name.configuration, name.trainer, run=name.run, device="cpu", workers=0
    )
    return open_fold(request, StopRequest())


def changed(settings: InferenceSettings, changes: dict[str, Any]) -> InferenceSettings:
    """The settings with other fields of the sampler that samples the masks."""
    sampler = dataclasses.replace(settings.drawn_by, **changes)
    if settings.mask_sampler is None:
        return dataclasses.replace(settings, sampler=sampler)
    return dataclasses.replace(settings, mask_sampler=sampler)


class KnownCase(TiledCase):
    """A case whose probabilities are known; no network is asked."""

    truth: np.ndarray  # (Z, Y, X)

    def det_probabilities(self, calibration: LogitCalibration = NO_CALIBRATION) -> torch.Tensor:
        del calibration  # the truth needs none
        p = torch.zeros(1, *self.grid.padded_shape)
        p[(slice(None), *self.grid.inner)] = torch.from_numpy(self.truth).float()
        return p


def predict(
    run: FoldRun,
    model: StagedModel,
    settings: InferenceSettings,
    stored: StoredCase,
    num_samples: int,
    truth: np.ndarray | None,
) -> CasePrediction:
    """Samples of a case, from the true probability (Z, Y, X) where one is given."""
    kind = TiledCase if truth is None else KnownCase
    tiles = kind(
        torch.as_tensor(stored.image[...]), model, run.configuration.network.patch_size, find_limits(run.device)
    )
    if isinstance(tiles, KnownCase) and truth is not None:
        tiles.truth = truth
        without_calls = dataclasses.replace(settings.drawn_by, method="ddim", start="det", num_calls=0, draw=True)
        settings = dataclasses.replace(settings, sampler=without_calls, mask_sampler=None)
    return sample_case(
        tiles,
        settings,
        case_id=stored.case_id,
        seed=1000 + run.request.seed,
        sample_ids=range(num_samples),
        spacing_mm=stored.properties.spacing_mm,
    )


def score_fold(
    run: FoldRun,
    cases: Sequence[str],
    num_samples: int,
    changes: dict[str, Any],
    raw: Path | None,
    from_truth: bool = False,
) -> list[Scored]:
    """Sample and score some cases of a fold."""
    model, settings = finished_model(run)
    model.eval()
    settings, scheme, result = changed(settings, changes), run.plans.labels, []
    for case_id in cases:
        stored = run.data.open(case_id)
        raters = annotators(stored)
        known = true_probability(raw / run.plans.dataset_name, case_id) if from_truth and raw else None
        prediction = predict(run, model, settings, stored, num_samples, known)
        samples = [scheme.decode(prediction.sample(i).numpy()) for i in range(prediction.num_samples)]
        p = decided_probabilities(prediction.probabilities(), samples, scheme, settings.decision)
        committed = [[mask for _, mask in scheme.class_masks(m)] for m in (scheme.decode(p.numpy()), stored.labels[0])]
        truth = _truth(raw, run.plans.dataset_name, case_id, samples)
        for index, spread in enumerate(spread_of_case(prediction, raters, scheme, case_id, frozenset(scheme.names))):
            masks, references = ([list(scheme.class_masks(m))[index][1] for m in maps] for maps in (samples, raters))
            overlaps = pairwise_overlaps(masks, references)
            wrong = ()
            if scheme.coding == "softmax" and len(scheme.names) > 1 and references[0].any():
                others = (labels[references[0]] for labels in samples)
                wrong = tuple(float(np.mean((v > 0) & (v != scheme.members[index][0]))) for v in others)
            ged = generalised_energy_distance(overlaps).ged_u
            dice = single_sample_dice(pairwise_overlaps(*([masks[index]] for masks in committed)))
            result.append(Scored(spread, ged, wrong, truth, dice, single_sample_dice(overlaps)))
    return result


def _truth(
    raw: Path | None, dataset: str, case_id: str, samples: Sequence[np.ndarray]
) -> tuple[tuple[float, float, float], ...]:
    if raw is None:
        return ()
    try:
        p = true_probability(raw / dataset, case_id).ravel()
    except UsdError:
        return ()
    fraction = np.mean([labels > 0 for labels in samples], axis=0).ravel()
    bins = np.minimum((p * TRUTH_BINS).astype(int), TRUTH_BINS - 1)
    sums = [np.bincount(bins, weights, TRUTH_BINS) for weights in (None, fraction, p)]
    return tuple(zip(*(s.tolist() for s in sums), strict=True))


def describe(name: str, scored: Sequence[Scored]) -> dict[str, Any]:
    """The row of one class."""
    cases = [s.spread for s in scored]
    fifty, ninety = interval_coverage(cases, 0.5), interval_coverage(cases, 0.9)
    curve = {(b.fraction == 0, b.fraction == 1): b.marked for b in fraction_curve(cases)}
    empty, draws = empty_samples(cases, SURE)
    distances = mean_distances(cases)
    wrong = [value for s in scored for value in s.wrong_class]
    own = np.nanmean([c.sample_distance for c in cases])
    return {
        "class": name,
        "cases": len(cases),
        "coverage_50": fifty[0],
        "coverage_90": ninety[0],
        "error_50": fifty[1],
        "error_90": ninety[1],
        "sd_ratio": spread_ratio(cases),
        "volume": volume_bias(cases),
        "distance": float(own),
        "distance_of_annotators": distances[1],
        "empty": empty,
        "draws": draws,
        "in_all": curve.get((False, True), np.nan),
        "in_none": curve.get((True, False), np.nan),
        "energy": float(np.mean([s.spread.energy for s in scored])),
        "ged": float(np.mean([s.ged for s in scored])),
        "wrong_mean": float(np.mean(wrong)) if wrong else np.nan,
        "wrong_worst": max(wrong, default=np.nan),
        "dice": float(np.nanmean([s.dice for s in scored])),
        "sample_dice": float(np.nanmean([s.sample_dice for s in scored])),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        "| "
        + " | ".join(
            [
                f"{row['dataset']}, {row['class']} ({row['cases']})",
                f"{row['coverage_50']:.2f} ± {row['error_50']:.2f}",
                f"{row['coverage_90']:.2f} ± {row['error_90']:.2f}",
                f"{row['sd_ratio']:.2f}",
                f"{row['volume']:.2f}",
                f"{row['distance']:.2f} / {row['distance_of_annotators']:.2f}",
                f"{row['empty']} of {row['draws']}",
                f"{row['in_all']:.3f} / {row['in_none']:.4f}",
                f"{row['energy']:.3f} / {row['ged']:.3f}",
                f"{row['wrong_mean']:.3f} / {row['wrong_worst']:.2f}",
                f"{row['dice']:.3f} / {row['sample_dice']:.3f}",
            ]
        ).replace("nan", "-")
        + " |"
    )


HEAD = (
    "| cases | coverage at 50 % | at 90 % | sd / error's | volume | distance: samples / annotators | empty where sure "
    "| true in all / in none | energy score / GED | wrong class: mean / worst | Dice: mask / sample |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--preprocessed", type=Path, required=True)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--cases", choices=["validation", "holdout"], default="validation")
    parser.add_argument("--most", type=int, help="of the cases of each fold, the first")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--from-truth", action="store_true", help="of phantoms, whose --raw it needs")
    parser.add_argument("--json", type=Path, help="write rows, curves and cases there, too")
    args = parser.parse_args()
    if args.from_truth and args.raw is None:
        parser.error("--from-truth needs --raw, where the true probabilities are")
    changes = {key: json.loads(value) for key, _, value in (item.partition("=") for item in args.set)}
    by_class: dict[tuple[str, str], list[Scored]] = defaultdict(list)
    for folder in args.folds:
        run = open_run(folder.absolute(), args.preprocessed, args.raw)
        cases = run.validation_cases if args.cases == "validation" else run.holdout_cases
        for scored in score_fold(run, cases[: args.most], args.samples, changes, args.raw, args.from_truth):
            by_class[run.plans.dataset_name, scored.spread.class_name].append(scored)
    rows = [{"dataset": dataset, **describe(name, scored)} for (dataset, name), scored in by_class.items()]
    print("\n".join([HEAD, "|" + "---|" * HEAD.count(" |"), *map(line, rows)]))
    for (dataset, name), all_scored in by_class.items():
        if truth := [s.truth for s in all_scored if s.truth]:
            voxels, sampled, true = np.sum(truth, axis=0).T
            curve = ", ".join(f"{t / v:.2f}: {s / v:.2f}" for v, s, t in zip(voxels, sampled, true, strict=True) if v)
            print(f"{dataset}, {name}: sampled fraction by true probability: {curve}")
        curve = ", ".join(f"{b.fraction:.2f}: {b.marked:.2f}" for b in fraction_curve([s.spread for s in all_scored]))
        print(f"{dataset}, {name}: true fraction by sampled fraction: {curve}")
    if args.json:
        cases = [dataclasses.asdict(s) for all_scored in by_class.values() for s in all_scored]
        args.json.write_text(json.dumps({"rows": rows, "cases": cases}))


if __name__ == "__main__":
    main()
