"""How well the probability that a case holds any lesion (cases.csv of a prediction) tells cases apart.

The reference of a case holds a lesion where any class has a voxel in it. AUROC is the chance that a case with a lesion
has the higher probability than one without, ties counting half; the Brier score is the mean squared difference of the
probability and 1 or 0 (Brier 1950), to be read beside that of always saying the fraction of cases with a lesion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.csv_tables import read_csv
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.evaluation.profiles.picai import auroc
from unisegdiff_pipeline.io.prediction_files import CASES

NUM_BINS = 5


@dataclass(frozen=True)
class ProbabilityBin:
    """Cases of a range of probabilities: their mean, the fraction that holds a lesion, and how many they are."""

    mean_probability: float
    fraction_with_lesion: float
    num_cases: int


@dataclass(frozen=True)
class CaseProbabilityReport:
    """Scores of the probability of any lesion.

    Attributes:
        path: the table that it was read from.
        num_with, num_without: cases with and without a lesion in the reference that have a probability.
        num_unknown: cases that the table says nothing of.
        auroc: NaN without cases of both kinds.
        brier: mean squared error of the probability, and `brier_of_prevalence` that of a constant one.
        bins: of equally wide ranges of probability, those that hold any case.
    """

    path: str
    num_with: int
    num_without: int
    num_unknown: int
    auroc: float
    brier: float
    brier_of_prevalence: float
    bins: tuple[ProbabilityBin, ...]


def report_case_probability(prediction: Path, holds_lesion: Mapping[str, bool]) -> CaseProbabilityReport | None:
    """Score cases.csv of a prediction folder; None where there is none, or where all cases are of one kind.

    Args:
        prediction: a folder, or a file, which has no table.
        holds_lesion: of the reference, for each case that is scored.

    Raises:
        UsdError: the table is damaged.
    """
    path = prediction / CASES
    if not path.is_file() or len(set(holds_lesion.values())) < 2:
        return None
    known = _read(path)
    cases = [(known[case], holds) for case, holds in holds_lesion.items() if case in known]
    return _score(str(path), cases, len(holds_lesion) - len(cases)) if cases else None


def _score(path: str, cases: Sequence[tuple[float, bool]], num_unknown: int) -> CaseProbabilityReport:
    p, y = np.array([value for value, _ in cases]), np.array([holds for _, holds in cases], float)
    place = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = tuple(
        ProbabilityBin(float(p[place == i].mean()), float(y[place == i].mean()), int((place == i).sum()))
        for i in sorted(set(place.tolist()))
    )
    return CaseProbabilityReport(
        path=path,
        num_with=int(y.sum()),
        num_without=int(len(y) - y.sum()),
        num_unknown=num_unknown,
        auroc=auroc(cases),
        brier=float(((p - y) ** 2).mean()),
        brier_of_prevalence=float(y.mean() * (1 - y.mean())),
        bins=bins,
    )


def _read(path: Path) -> dict[str, float]:
    """The probability of each case."""
    lines = read_csv(path)
    header = lines[0][1] if lines else []
    if not {"case", "probability"} <= set(header):
        raise UsdError(f"{path} has no columns case and probability; it is not what usd_predict writes: delete it.")
    case, probability = header.index("case"), header.index("probability")
    found = {}
    for line, row in lines[1:]:
        text = row[probability] if len(row) == len(header) else ""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise UsdError(f"{path}, line {line}: probability is {text!r}, allowed is 0 to 1; correct or delete it.")
        if row[case] in found:
            raise UsdError(f"{path}, line {line}: the case {row[case]!r} stands there twice; delete one of the lines.")
        found[row[case]] = value
    return found
