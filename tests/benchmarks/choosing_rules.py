"""Which rule to choose settings by: each chooses on one half of the held-out patients and is judged on the other.

    python tests/benchmarks/choosing_rules.py FOLD [FOLD ...] [--halves 400] [--seed 0]

FOLD is a fold's folder, fold_k, of a finished training; its candidates.json has what each candidate reached in each
held-out case, with temperatures and a length of the field that all of them chose. A rule for masks is scored by their
energy score as a multiple of that of draws from p_det, a rule for the mean by its likelihood loss as a multiple of that
of p_det: over the halves, then the mean over the folds given. Last, w and threshold as they are chosen, with one
standard error of Dice and with two that rule a candidate out: Dice minus that of the plain segmenter (w = 1, threshold
0.5), loss as a multiple of p_det's, and the fraction of choices with w = 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.serialization import read_json
from unisegdiff_pipeline.diffusion.samplers import SamplerSettings
from unisegdiff_pipeline.evaluation.comparison import is_significantly_above
from unisegdiff_pipeline.inference.settings import read_settings
from unisegdiff_pipeline.selection.sampler import default_sampler
from unisegdiff_pipeline.selection.segmenter_weight import DEFAULT_SEGMENTER_WEIGHT, WEIGHTS, MeanTrial, rank_means
from unisegdiff_pipeline.training.fold import CANDIDATES_NAME

Scores = dict[str, np.ndarray]  # name of a candidate => one number a held-out case
Rule = Callable[[Scores, Sequence[str]], str]


def best(scores: Scores, groups: Sequence[str]) -> str:
    return min(scores, key=lambda name: float(np.nanmean(scores[name])))


def always(name: str) -> Rule:
    return lambda scores, groups: name


def unless_better(name: str, errors: float) -> Rule:
    """The candidate of this name, unless the best is better by so many standard errors."""

    def rule(scores: Scores, groups: Sequence[str]) -> str:
        found = best(scores, groups)
        return found if is_significantly_above(scores[name], scores[found], groups, errors) else name

    return rule


def random_halves(names: np.ndarray, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Which cases (N,) belong to a random half of the patients `names` (N,), so many times."""
    patients = np.unique(names)
    for _ in range(count):
        yield np.isin(names, rng.permutation(patients)[: len(patients) // 2])


def score_rules(
    rules: dict[str, Rule], scores: Scores, groups: Sequence[str], base: str, halves: int, rng: np.random.Generator
) -> dict[str, float]:
    """What each rule's choice reaches on the other half, over random halves, as a multiple of what `base` does."""
    names = np.array(groups)
    sums, total = dict.fromkeys(rules, 0.0), 0.0
    for chosen in random_halves(names, halves, rng):
        seen = {name: values[chosen] for name, values in scores.items()}
        of_others = {name: float(np.nanmean(values[~chosen])) for name, values in scores.items()}
        for name, rule in rules.items():
            sums[name] += of_others[rule(seen, names[chosen].tolist())]
        total += of_others[base]
    return {name: value / total for name, value in sums.items()}


def read_samplers(fold: Path) -> tuple[dict[str, Rule], Scores, Sequence[str], str]:
    """Rules for the sampler of the masks, its candidates, the groups of the cases, and the candidate to compare with.

    Of draws without calls only those with the chosen length of the field count, which stand first.
    """
    default = str(replace(default_sampler(read_settings(fold)), draw=True))
    scores: Scores = {}
    groups: Sequence[str] = ()
    for entry in read_json(fold / CANDIDATES_NAME)["samplers"]:
        name = str(replace(SamplerSettings(**entry["sampler"]), correlation_length_mm=0.0))
        scores.setdefault(name, np.array(entry["energy_of_cases"], dtype=float))
        groups = entry["groups"]
    rules = {
        "the best": best,
        "the default always": always(default),
        "the default, unless another is better by one standard error": unless_better(default, 1.0),
        "the default, unless by two": unless_better(default, 2.0),
    }
    return rules, scores, groups, str(SamplerSettings(method="ddim", start="det", num_calls=0, lam_end=0.0, draw=True))


def read_means(fold: Path) -> tuple[dict[str, Rule], Scores, Sequence[str], str]:
    """The same for w."""
    trials = read_mean_trials(fold)
    scores = {f"{trial.segmenter_weight:g}": np.array(trial.nll_of_cases) for trial in trials}
    rules: dict[str, Rule] = {"the likeliest w": best}
    rules |= {f"w = {w:g} always": always(f"{w:g}") for w in WEIGHTS}
    rules[f"w = {DEFAULT_SEGMENTER_WEIGHT:g}, unless another is likelier by one standard error"] = unless_better(
        f"{DEFAULT_SEGMENTER_WEIGHT:g}", 1.0
    )
    return rules, scores, trials[0].groups or (), "1"


def read_mean_trials(fold: Path) -> list[MeanTrial]:
    """The ways to make the mask that were tried; cases without Dice have NaN."""
    result = []
    for entry in read_json(fold / CANDIDATES_NAME)["means"]:
        dice, nll = (tuple(np.array(entry[key], dtype=float)) for key in ("dice_of_cases", "nll_of_cases"))
        sampler = SamplerSettings(**entry["sampler"])
        result.append(
            MeanTrial(sampler, entry["segmenter_weight"], entry["decision"], dice, nll, tuple(entry["groups"]))
        )
    return result


def score_dice_errors(
    trials: Sequence[MeanTrial], errors: float, halves: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Dice minus the plain segmenter's, loss over p_det's, fraction of w = 1, of choices judged on the other half."""
    found = []
    for chosen in random_halves(np.array(trials[0].groups), halves, rng):
        of_others = {(t.segmenter_weight, t.decision): t for t in (_of_cases(trial, ~chosen) for trial in trials)}
        plain = of_others[1.0, "half"]
        best = rank_means([_of_cases(trial, chosen) for trial in trials], errors)[0]
        there = of_others[best.segmenter_weight, best.decision]
        found.append((there.dice - plain.dice, there.nll / plain.nll, float(best.segmenter_weight == 1)))
    dice, nll, plain_fraction = np.nanmean(found, axis=0).tolist()
    return dice, nll, plain_fraction


def _of_cases(trial: MeanTrial, chosen: np.ndarray) -> MeanTrial:
    """The trial on some of its cases."""
    dice, nll, groups = (
        tuple(np.array(v)[chosen].tolist()) for v in (trial.dice_of_cases, trial.nll_of_cases, trial.groups)
    )
    return replace(trial, dice_of_cases=dice, nll_of_cases=nll, groups=groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--halves", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for title, read in (
        ("masks: energy score / that of draws from p_det", read_samplers),
        ("mean: loss / that of p_det", read_means),
    ):
        rng = np.random.default_rng(args.seed)
        found = [score_rules(*read(fold), args.halves, rng) for fold in args.folds]
        print(f"\n| {title}, {len(args.folds)} trainings | |\n|---|---|")
        for name in found[0]:
            print(f"| {name} | {np.mean([scores[name] for scores in found]):.3f} |")
    print(
        "\n| w and threshold, where Dice rules out by | Dice, minus plain | loss / that of p_det | w = 1 |\n"
        "|---|---|---|---|"
    )
    for errors in (1.0, 2.0):
        rng = np.random.default_rng(args.seed)
        trials = [score_dice_errors(read_mean_trials(fold), errors, args.halves, rng) for fold in args.folds]
        dice, nll, plain_fraction = np.mean(trials, axis=0)
        print(f"| {errors:g} standard errors | {dice:+.4f} | {nll:.3f} | {plain_fraction:.0%} |")


if __name__ == "__main__":
    main()
