"""Promises with a finite-sample bound, from held-out patients: `usd.guarantees`.

    >>> held_out = {f"patient{i}": [0.5 + i / 20] for i in range(9)}  # the score of each lesion, see lesion_scores
    >>> usd.guarantees.lesion_threshold(held_out, alpha=0.1)
    RiskThreshold(threshold=0.5, alpha=0.1, corrected_risk=0.1, num_patients=9)

Each promise holds on average over hold-outs and new patients, whatever the model and the law of the data, as long as
held-out and new patients are exchangeable, and the model was neither trained nor chosen on them. It is no promise for
a subgroup, or for one hold-out. The unit is the patient: all images of one count together. Where a promise cannot be
kept it is refused, which counts as no error in the average.

- Lesions missed, and masks that enclose or lie within the reference: conformal risk control (Angelopoulos, Bates,
  Fisch, Lei & Schuster 2022, "Conformal risk control", arXiv 2208.02814).
- Intervals of volumes: conformalised quantiles (Romano, Patterson & Candes 2019, "Conformalized quantile regression",
  arXiv 1905.03222).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unisegdiff_pipeline.core.bounds import Count, Finite, Fraction
from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.errors import UsdError

__all__ = [
    "THRESHOLDS",
    "MaskThresholds",
    "MaskVolumes",
    "RiskThreshold",
    "VolumeMargin",
    "control_risk",
    "lesion_scores",
    "lesion_threshold",
    "mask_thresholds",
    "mask_volumes",
    "smallest_num_patients",
    "volume_margin",
]

# Of masks, fixed before any data is seen; even in log odds from -9 to 9, as sure networks give 0.999 and 0.9999.
THRESHOLDS = tuple(round(1 / (1 + math.exp(-i / 10)), 6) for i in range(-90, 91))
ROUNDING = 1e-9


@dataclass(frozen=True)
class RiskThreshold:
    """A threshold of the probability, and what it promises.

    Attributes:
        threshold: a voxel of at least this probability belongs to the mask.
        alpha: the risk that was asked for.
        corrected_risk: (n R + 1) / (n + 1) of the mean loss R of the n held-out patients, at most `alpha`.
        num_patients: n.
    """

    threshold: Fraction
    alpha: Fraction
    corrected_risk: Fraction
    num_patients: Count

    def mask(self, probability: ArrayLike) -> np.ndarray:
        """Voxels of at least this probability, boolean; compared in double precision, as when the threshold was made.

        Example:
            >>> usd.guarantees.RiskThreshold(0.25, 0.1, 0.1, 9).mask([0.1, 0.25, 0.9])
            array([False,  True,  True])
        """
        return np.asarray(np.asarray(probability) >= np.float64(self.threshold))


def smallest_num_patients(alpha: float) -> int:
    """The fewest held-out patients that allow a risk of at most alpha, or a coverage of 1 - alpha: 1 / alpha - 1.

    Raises:
        ValueError: alpha is not between 0 and 1.

    Example:
        >>> usd.guarantees.smallest_num_patients(0.1)
        9
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; allowed is a number between 0 and 1, both excluded")
    return max(1, math.ceil(1 / alpha - 1 - ROUNDING))


def control_risk(losses: ArrayLike, alpha: float) -> tuple[int, float]:
    """The boldest setting whose expected loss for a new patient is at most alpha (Angelopoulos et al. 2022, eq. 4).

    Args:
        losses: (n, T), of n held-out patients at T settings that are ordered from careful to bold: between 0 and 1,
            and no row falls. The settings must not be made from the losses.
        alpha: largest expected loss.

    Returns:
        Index of the setting, and its corrected risk n / (n + 1) R + B / (n + 1) with B = 1, the largest loss there is.

    Raises:
        ValueError: wrong shape, values or order of the losses.
        UsdError: too few patients, or even the most careful setting loses too much.

    Example:
        >>> usd.guarantees.control_risk([[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]], alpha=0.2)
        (0, 0.2)
    """
    return _boldest(losses, alpha, "the expected loss")


def _boldest(losses: ArrayLike, alpha: float, what: str) -> tuple[int, float]:
    """As `control_risk`; `what` is the expected loss in words."""
    table = np.asarray(losses, np.float64)
    if table.ndim != 2 or not table.shape[1] or not ((table >= 0) & (table <= 1)).all():
        raise ValueError(f"losses have shape {table.shape}; allowed is (patients, settings) with values from 0 to 1")
    if (np.diff(table, axis=1) < -ROUNDING).any():
        raise ValueError(
            "losses fall from one setting to the next; order the settings from careful to bold, or take "
            "the running maximum of each row"
        )
    _refuse_too_few(len(table), alpha)
    return _boldest_of(_corrected(table), len(table), alpha, what)


def _boldest_of(corrected: np.ndarray, num_patients: int, alpha: float, what: str) -> tuple[int, float]:
    """As `_boldest`, from the corrected risks (T,)."""
    allowed = np.flatnonzero(corrected <= alpha + ROUNDING)
    if not len(allowed):
        raise UsdError(
            f"no threshold keeps {what} at or below {alpha:g}: the most careful one has a corrected risk of "
            f"{corrected[0]:.3f} on {num_patients} held-out patients. Ask for at least {_up(corrected[0])}, or hold "
            f"out more patients."
        )
    return int(allowed[-1]), float(corrected[allowed[-1]])


# --------------------------------------------------------------------------------------------------- lesions missed


def lesion_scores(probability: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """The score of each lesion of a reference: the highest threshold at which a mask still shares a voxel with it.

    Args:
        probability: of the class, (Z, Y, X) or (Y, X).
        reference: mask of the same shape; a lesion is a connected component (26 neighbours, 8 in 2D).

    Returns:
        (lesions,), largest lesion first; empty where the reference is.

    Raises:
        ValueError: shapes differ or are none of the above, or probabilities are not between 0 and 1.

    Example:
        >>> usd.guarantees.lesion_scores([[0.9, 0.3, 0.1, 0.4]], [[1, 1, 0, 1]])
        array([0.9, 0.4])
    """
    p, truth = _checked(probability, reference)
    components = find_components(truth.reshape(1, *truth.shape) if truth.ndim == 2 else truth)
    scores = np.zeros(len(components), p.dtype)
    numbers = components.numbers_at(np.flatnonzero(truth))
    np.maximum.at(scores, numbers - 1, p[truth])
    return scores


def lesion_threshold(scores: Mapping[str, Sequence[float] | np.ndarray], alpha: float) -> RiskThreshold:
    """The highest threshold at which, in expectation, at most the fraction alpha of a patient's lesions is missed.

    The expectation is over patients with a lesion, and each counts the same however many lesions it has. A lesion is
    found where the mask shares a voxel with it; no lesion filter may follow.

    Args:
        scores: patient -> `lesion_scores` of all lesions in all its images. Patients without a lesion do not count.
        alpha: largest expected fraction.

    Raises:
        ValueError: scores or alpha are not between 0 and 1.
        UsdError: too few patients with a lesion, or too many of their lesions have no probability at all.

    Example:
        >>> usd.guarantees.lesion_threshold({"a": [0.9, 0.4], "b": [0.7], "c": []}, alpha=0.5).threshold
        0.7
    """
    own = [np.asarray(values, np.float64) for values in scores.values() if len(values)]
    every = np.concatenate([np.zeros(0), *own])
    if not ((every >= 0) & (every <= 1)).all():
        raise ValueError("a score of a lesion is not between 0 and 1; it is a probability")
    _refuse_too_few(len(own), alpha, "patients with a lesion")
    # The infimum of eq. 4 over all thresholds lies at one of the scores, where losses step up; 0 would mark everything.
    thresholds = np.unique(every[every > 0])
    if not len(thresholds):
        raise UsdError("every lesion of the held-out patients has probability 0; train longer, or hold out others.")
    weight = np.concatenate([np.full(len(values), 1 / len(values)) for values in own])  # of a lesion in its patient
    order = np.argsort(every)
    missed = np.concatenate([[0.0], weight[order].cumsum()])[np.searchsorted(every[order], thresholds, side="left")]
    corrected = (missed + 1) / (len(own) + 1)  # see `_corrected`
    best, risk = _boldest_of(corrected, len(own), alpha, "the expected fraction of missed lesions")
    return RiskThreshold(float(thresholds[best]), alpha, risk, len(own))


# ------------------------------------------------------------------------------------------- inner and outer masks


@dataclass(frozen=True)
class MaskVolumes:
    """How the masks of one image at rising thresholds compare with its reference.

    Attributes:
        thresholds: rising.
        common: (T,), volume of the mask inside the reference.
        mask: (T,), volume of the mask.
        reference: volume of the reference.
    """

    thresholds: tuple[float, ...]
    common: np.ndarray
    mask: np.ndarray
    reference: float


@dataclass(frozen=True)
class MaskThresholds:
    """The threshold of a mask that lies within the reference, and of one that encloses it.

    Attributes:
        inner: in expectation over all patients at most the fraction alpha of the inner mask lies outside the reference;
            an empty mask has nothing outside.
        outer: in expectation over patients with a lesion at most the fraction alpha of the reference lies outside the
            outer mask. Its threshold is at most that of the inner mask.
    """

    inner: RiskThreshold
    outer: RiskThreshold


def mask_volumes(
    probability: ArrayLike,
    reference: ArrayLike,
    voxel_volume: float = 1.0,
    thresholds: Sequence[float] = THRESHOLDS,
) -> MaskVolumes:
    """Compare the masks of one image at all thresholds with its reference.

    Args:
        probability: of the class, (Z, Y, X) or (Y, X).
        reference: mask of the same shape.
        voxel_volume: in any unit; needed where the images of a patient differ in it.
        thresholds: rising, above 0, and not chosen by the held-out cases.

    Raises:
        ValueError: shapes differ, or numbers are not as stated.

    Example:
        >>> volumes = usd.guarantees.mask_volumes([[0.9, 0.6, 0.2]], [[1, 0, 1]], thresholds=(0.1, 0.5, 0.8))
        >>> volumes.common.tolist(), volumes.mask.tolist(), volumes.reference
        ([2.0, 1.0, 1.0], [3.0, 2.0, 1.0], 2.0)
    """
    p, truth = _checked(probability, reference)
    levels = np.asarray(thresholds, np.float64)
    if levels.ndim != 1 or not len(levels) or levels[0] <= 0 or levels[-1] > 1 or not (np.diff(levels) > 0).all():
        raise ValueError(f"thresholds are {thresholds}; allowed are rising numbers above 0, up to 1")
    if not 0 < voxel_volume < math.inf:
        raise ValueError(f"voxel_volume is {voxel_volume}; allowed is a number above 0")
    reached = np.searchsorted(levels, p, side="right")  # thresholds that a voxel reaches
    mask, common = (
        np.bincount(voxels.ravel(), minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:] * float(voxel_volume)
        for voxels in (reached, reached[truth])
    )
    return MaskVolumes(tuple(levels.tolist()), common, mask, float(np.count_nonzero(truth) * voxel_volume))


def mask_thresholds(patients: Mapping[str, Sequence[MaskVolumes]], alpha: float) -> MaskThresholds:
    """The thresholds of inner and outer masks with a risk of at most alpha each; see `MaskThresholds`.

    The part of the inner mask outside the reference may fall where the threshold does, so each patient's loss at a
    threshold is the largest at this or any higher one, as the paper does with losses that are not monotone.

    Args:
        patients: patient -> `mask_volumes` of each of its images, whose volumes are added up.
        alpha: largest expected fraction, of each of the two.

    Raises:
        ValueError: alpha is not between 0 and 1, thresholds differ, or a patient has no image.
        UsdError: too few patients, with a lesion for the outer mask, or no threshold serves.

    Example:
        >>> one = usd.guarantees.mask_volumes([[0.9, 0.6, 0.2]], [[1, 1, 0]], thresholds=(0.1, 0.5, 0.8))
        >>> found = usd.guarantees.mask_thresholds({name: [one] for name in "abcd"}, alpha=0.2)
        >>> found.inner.threshold, found.outer.threshold
        (0.5, 0.5)
    """
    own = [_of_patient(patient, images) for patient, images in patients.items()]
    if len({volumes.thresholds for volumes in own}) > 1:
        raise ValueError("images were compared at different thresholds; compare all at the same ones")
    diseased = [volumes for volumes in own if volumes.reference > 0]
    _refuse_too_few(len(own), alpha)
    _refuse_too_few(len(diseased), alpha, "patients with a lesion")
    levels = own[0].thresholds
    outside = [np.maximum(1 - volumes.common / volumes.reference, 0) for volumes in diseased]  # sums are rounded
    outer, _ = _boldest(outside, alpha, "the expected part of the reference outside the outer mask")
    false = [
        np.maximum.accumulate((1 - _ratio(volumes.common, volumes.mask))[::-1])  # from careful to bold
        for volumes in own
    ]
    inner, _ = _boldest(false, alpha, "the expected part of the inner mask outside the reference")
    # Where both promises leave room the masks would change places; a lower outer and a higher inner threshold only
    # lower the losses.
    low, high = sorted((outer, len(levels) - 1 - inner))
    inner_risk, outer_risk = _corrected(false)[len(levels) - 1 - high], _corrected(outside)[low]
    return MaskThresholds(
        inner=RiskThreshold(levels[high], alpha, float(inner_risk), len(own)),
        outer=RiskThreshold(levels[low], alpha, float(outer_risk), len(diseased)),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """1 where the whole is empty."""
    return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)


def _of_patient(patient: str, images: Sequence[MaskVolumes]) -> MaskVolumes:
    if len({volumes.thresholds for volumes in images}) != 1:
        raise ValueError(f"patient {patient!r} has no image, or images that were compared at different thresholds")
    return MaskVolumes(
        thresholds=images[0].thresholds,
        common=np.sum([volumes.common for volumes in images], axis=0),
        mask=np.sum([volumes.mask for volumes in images], axis=0),
        reference=math.fsum(volumes.reference for volumes in images),
    )


# --------------------------------------------------------------------------------------------- intervals of volumes


@dataclass(frozen=True)
class VolumeMargin:
    """What the central interval of the samples' volumes is widened by on both sides, and what it then promises.

    Attributes:
        margin: in the unit of the volumes; below 0 where the samples spread too far.
        coverage: fraction of new patients of whom every image's volume lies in its interval, at least.
        num_patients: that it was made from.
        num_samples: an image's, here and in use.
    """

    margin: Finite
    coverage: Fraction
    num_patients: Count
    num_samples: Count

    def interval(self, volumes: ArrayLike) -> tuple[float, float]:
        """The interval of a new image, not below 0, from the volumes of its samples (N,) (Romano et al. 2019, eq. 7).

        Where a margin below 0 leaves nothing of the interval, both ends are its middle.

        Raises:
            ValueError: another number of samples than the margin was made from, or a volume that is none.

        Example:
            >>> usd.guarantees.VolumeMargin(0.5, 0.8, 9, 9).interval([1, 2, 3, 4, 5, 6, 7, 8, 9])
            (0.5, 9.5)
        """
        values = _volumes(volumes)
        if len(values) != self.num_samples:
            raise ValueError(
                f"{len(values)} samples are given; allowed are {self.num_samples}, as the margin was made from"
            )
        low, high = _central(values, self.coverage)
        if low - self.margin > high + self.margin:
            return (low + high) / 2, (low + high) / 2
        return max(0.0, low - self.margin), high + self.margin


def volume_margin(patients: Mapping[str, Sequence[tuple[ArrayLike, float]]], coverage: float) -> VolumeMargin:
    """Conformalised quantiles: what makes intervals of the samples' volumes cover as often as promised.

    The score of an image is how far its reference's volume lies outside the central interval of its samples' volumes,
    below 0 inside (Romano et al. 2019, eq. 6); of a patient the highest of its images. The margin is the
    ceil((n + 1) coverage)-th smallest score of the n patients (eq. 8).

    Args:
        patients: patient -> (volumes of the samples (N,), volume of the reference) of each of its images; all in one
            unit, with the same number of samples. Margins fit volumes of all sizes better when cube roots are given
            for volumes, and the ends of the intervals are cubed.
        coverage: between 0 and 1.

    Raises:
        ValueError: numbers of samples differ, a patient has no image, or a number is not as stated.
        UsdError: too few patients.

    Example:
        >>> held_out = {f"p{i}": [([1.0, 2.0, 3.0], 3.0 + i)] for i in range(4)}
        >>> usd.guarantees.volume_margin(held_out, coverage=0.8).margin
        3.0
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; allowed is a number between 0 and 1, both excluded")
    _refuse_too_few(len(patients), 1 - coverage)
    scores, numbers = [], set()
    for patient, images in patients.items():
        if not images:
            raise ValueError(f"patient {patient!r} has no image; leave it out")
        own = []
        for samples, reference in images:
            values, (volume,) = _volumes(samples), _volumes([reference])
            low, high = _central(values, coverage)
            own.append(max(low - volume, volume - high))
            numbers.add(len(values))
        scores.append(max(own))
    if len(numbers) > 1:
        raise ValueError(f"images have {sorted(numbers)} samples; allowed is the same number for all")
    rank = math.ceil((len(scores) + 1) * coverage - ROUNDING)
    return VolumeMargin(float(np.sort(scores)[rank - 1]), coverage, len(scores), numbers.pop())


def _central(values: np.ndarray, coverage: float) -> tuple[float, float]:
    """Ends of the central interval, at the positions q (N + 1) of the ordered volumes, as volumes.csv has them."""
    low, high = np.quantile(values, ((1 - coverage) / 2, (1 + coverage) / 2), method="weibull").tolist()
    return low, high


def _volumes(values: ArrayLike) -> np.ndarray:
    volumes = np.asarray(values, np.float64)
    if volumes.ndim != 1 or not len(volumes) or not ((volumes >= 0) & np.isfinite(volumes)).all():
        raise ValueError(f"volumes are {values!r}; allowed is a list of finite numbers of 0 or more")
    return volumes


def _checked(probability: ArrayLike, reference: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, truth = np.asarray(probability), np.asarray(reference) != 0
    if p.ndim not in (2, 3) or p.shape != truth.shape:
        raise ValueError(
            f"probability has shape {p.shape}, reference {truth.shape}; allowed is (Z, Y, X) or (Y, X), both the same"
        )
    if not np.issubdtype(p.dtype, np.floating) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probability is not between 0 and 1, or no floating number; it is that of one class")
    return p, truth


def _corrected(losses: ArrayLike) -> np.ndarray:
    """n / (n + 1) R + B / (n + 1) of each column, B = 1: as if the new patient lost all there is to lose."""
    table = np.asarray(losses, np.float64)
    return (table.sum(axis=0) + 1) / (len(table) + 1)


def _refuse_too_few(num_patients: int, alpha: float, which: str = "patients") -> None:
    needed = smallest_num_patients(alpha)
    if num_patients < needed:
        risk = _up(1 / (num_patients + 1))
        least = f", or ask for a risk of {risk:g} or more, a coverage of {1 - risk:.3g} or less" if num_patients else ""
        raise UsdError(
            f"{num_patients} held-out {which} cannot promise a risk of at most {alpha:g} (1 - coverage): at least "
            f"{needed} are needed. Hold out more patients{least}."
        )


def _up(risk: float) -> float:
    """Rounded up to three decimals, so that what is named is allowed."""
    return math.ceil(risk * 1000 - ROUNDING) / 1000
