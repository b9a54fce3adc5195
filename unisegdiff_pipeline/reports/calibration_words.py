"""Calibration in a sentence: whether probabilities can be believed, and how they err."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unisegdiff_pipeline.core.units import VOLUMES, Units
from unisegdiff_pipeline.evaluation.aggregate import ReliabilitySummary
from unisegdiff_pipeline.evaluation.calibration import ReliabilityBin

GOOD, FAIR = 0.02, 0.05  # of the expected calibration error
ONE_WAY = 0.5  # of the error, by which the mean of p must be off to say that p is too high or too low throughout


def calibration_in_words(curves: Mapping[str, ReliabilitySummary], units: Units = VOLUMES) -> list[str]:
    """A sentence for each class."""
    prefix = "{}: " if len(curves) > 1 else ""
    return [prefix.format(name) + _sentence(curve, units.element) for name, curve in curves.items()]


def _sentence(curve: ReliabilitySummary, element: str) -> str:
    bins = [b for b in curve.bins if b.count]
    total = sum(b.count for b in bins)
    if not total:
        return f"No {element} with a probability was judged."
    points = f"{100 * curve.ece:.1f} percentage points on average (ECE {curve.ece:.3f})"
    highest = max(b.mean_confidence for b in bins)
    if highest < 0.5:
        return (
            f"No {element} is given much more than {highest:.0%}, so nothing is marked; probabilities are off by "
            f"{points}."
        )
    if curve.ece < GOOD:
        return f"Probabilities can be taken at face value: they are off by {points}."
    strength = "slightly " if curve.ece < FAIR else ""
    return (
        f"Probabilities are {strength}{_direction(bins, total, curve.ece)}: they are off by {points}. "
        f"{_example(bins, element)}"
    )


def _direction(bins: Sequence[ReliabilityBin], total: float, ece: float) -> str:
    excess = sum(b.count * (b.mean_confidence - b.frequency) for b in bins) / total
    if abs(excess) > ONE_WAY * ece:
        return "too high" if excess > 0 else "too low"
    # Too sure: too high where they are high, too low where they are low.
    sure = sum(b.count * (b.mean_confidence - b.frequency) * (1 if b.mean_confidence > 0.5 else -1) for b in bins)
    return "too sure of themselves (too close to 0 and 1)" if sure > 0 else "not sure enough (too close to 0.5)"


def _example(bins: Sequence[ReliabilityBin], element: str) -> str:
    """The bin that adds most to the error, as what a reader would see."""
    worst = max(bins, key=lambda b: b.count * abs(b.mean_confidence - b.frequency))
    return f"Of the {element}s given about {worst.mean_confidence:.0%}, {worst.frequency:.0%} hold the class."
