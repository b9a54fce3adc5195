"""Guarantees that a model was calibrated for on its validation patients, and which of them a prediction keeps.

Of one fold they lie in its inference.json, of the mean of several folds or models in best.json (`usd_find_best`).
They hold for the networks and the number of samples that they were calibrated with, and for nothing else:

    lesions  OUT/masks_lesions/                      at least the rate of a patient's lesions is touched, on average
    masks    OUT/masks_inner/  OUT/masks_outer/      the reference lies between them, but for 1 - rate, on average
    volume   guaranteed_low, guaranteed_high         in volumes.csv, hold the volume of the reference at the rate

Masks are probabilities at a threshold, one for each class, which no decision and no lesion filter changes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from unisegdiff_pipeline.core.bounds import Count, Length
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.units import Units
from unisegdiff_pipeline.evaluation.conformal import MaskThresholds, RiskThreshold, VolumeMargin

GuaranteeKind = Literal["lesions", "masks", "volume"]
KINDS: tuple[GuaranteeKind, ...] = get_args(GuaranteeKind)
RATES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
LESIONS, INNER, OUTER = "masks_lesions", "masks_inner", "masks_outer"  # folders of masks
FOLDERS = (LESIONS, INNER, OUTER)
CLOSE = 1e-6  # of two rates that are the same
WORDS: dict[GuaranteeKind, str] = {
    "lesions": "on average at least {rate} of a patient's lesions share a voxel with the mask in masks_lesions/",
    "masks": "on average at least {rate} of the volume of a patient's reference lies within masks_outer/, and at "
    "least {rate} of that of masks_inner/ within the reference",
    "volume": "in at least {rate} of patients the volume lies between guaranteed_low and guaranteed_high of "
    "volumes.csv in all of their images",
}
Calibrated = TypeVar("Calibrated", RiskThreshold, MaskThresholds, VolumeMargin)


def kind_in_words(kind: GuaranteeKind, rate: float) -> str:
    """What is promised at a rate."""
    return WORDS[kind].format(rate=f"{rate:.0%}")


@dataclass(frozen=True)
class ClassGuarantees:
    """What is calibrated for one class or region, each by itself.

    Attributes:
        lesions, masks, volume: one for each of `RATES` that the validation patients allow.
        refused: why the others are not, by "KIND=RATE".
    """

    lesions: tuple[RiskThreshold, ...] = ()
    masks: tuple[MaskThresholds, ...] = ()
    volume: tuple[VolumeMargin, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def rates(self, kind: GuaranteeKind) -> list[float]:
        """Rates that are calibrated, rising."""
        return sorted(_rate_of(found) for found in getattr(self, kind))

    def why_none(self, kind: GuaranteeKind) -> str:
        """Of a kind without any rate, that there is none and why."""
        return f"no guarantee of {kind}: {self.refused[f'{kind}={RATES[0]:g}']}"


@dataclass(frozen=True)
class Guarantees:
    """What a model was calibrated for.

    Attributes:
        num_patients: of the validation cases; a case of no known patient is one by itself.
        num_samples: of a case, there and in use.
        weights: hashes of the weights of all networks, sorted.
        unit: of sizes; margins of volumes are in their root, see `size_root`.
        classes: by name.
        in_words: what is calibrated on, and what is promised at which rates.
    """

    num_patients: Count
    num_samples: Count
    weights: Annotated[tuple[str, ...], Length(1, 1000)]
    unit: Literal["ml", "mm2", "pixels2"]
    classes: Mapping[str, ClassGuarantees]
    in_words: tuple[str, ...] = ()


def guarantees_in_words(of_all: Guarantees | None, of_sources: Mapping[str, Guarantees]) -> list[str]:
    """What inference.json or best.json holds: of an ordinary data set the one, of a unified one the other.

    Of sources each has one line, and what the kinds mean is said once after them.
    """
    if of_all is not None:
        return list(of_all.in_words)
    lines = [" ".join([*found.in_words[:1], *_up_to(found.classes)]) for found in of_sources.values()]
    classes = [own for found in of_sources.values() for own in found.classes.values()]
    promised = [kind for kind in KINDS if any(own.rates(kind) for own in classes)]
    return [*lines, *(f"{kind}=RATE: {WORDS[kind].format(rate='RATE')}." for kind in promised)]


def _up_to(classes: Mapping[str, ClassGuarantees]) -> list[str]:
    """The highest rate of each kind for each class, and why a kind has none; as sentences."""
    lines = []
    for name, own in classes.items():
        if highest := [f"{kind}={own.rates(kind)[-1]:g}" for kind in KINDS if own.rates(kind)]:
            lines.append(f"{name}: up to {', '.join(highest)}.")
        lines += [f"{name}, {own.why_none(kind)}" for kind in KINDS if not own.rates(kind)]
    return lines


@dataclass(frozen=True)
class ClassPromises:
    """What is written for one class: of each kind one, or none."""

    lesions: RiskThreshold | None = None
    masks: MaskThresholds | None = None
    volume: VolumeMargin | None = None

    @property
    def thresholds(self) -> dict[str, RiskThreshold]:
        """The threshold of each folder of masks."""
        found = {} if self.lesions is None else {LESIONS: self.lesions}
        return found if self.masks is None else {**found, INNER: self.masks.inner, OUTER: self.masks.outer}


@dataclass(frozen=True)
class Promises:
    """What a prediction writes because guarantees were asked for.

    Attributes:
        classes: all classes of the model, in their order.
        unit: as in `Guarantees`.
    """

    classes: Mapping[str, ClassPromises]
    unit: Literal["ml", "mm2", "pixels2"]

    def in_words(self, asked: Mapping[GuaranteeKind, float]) -> list[str]:
        """What is promised, and for which classes."""
        return [
            f"{', '.join(names)}: {kind_in_words(kind, rate)}"
            for kind, rate in asked.items()
            if (names := [name for name, own in self.classes.items() if getattr(own, kind) is not None])
        ]

    def masks(self) -> Iterator[tuple[int, Path, RiskThreshold]]:
        """(number of the class, folder below the output, threshold) of each mask of a case."""
        for number, (name, own) in enumerate(self.classes.items()):
            below = "" if len(self.classes) == 1 else f"{number + 1}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:40]}"
            for folder, threshold in own.thresholds.items():
                yield number, Path(folder) / below, threshold

    def interval(self, class_name: str, sizes: Sequence[float], units: Units) -> tuple[float, float] | None:
        """Ends of the guaranteed interval of a class, from the sizes of its samples; None where none is promised.

        Raises:
            UsdError: the image is measured in another unit than those that it was calibrated on.
        """
        margin = self.classes[class_name].volume
        if margin is None:
            return None
        if units.size != self.unit:
            raise UsdError(
                f"the image is measured in {units.size}, but the intervals were calibrated in {self.unit}; predict it "
                f"without the guarantee of volumes."
            )
        low, high = margin.interval([size_root(size, units) for size in sizes])
        return low ** _power(units), high ** _power(units)


def size_root(size: float, units: Units) -> float:
    """Cube root of a volume, square root of an area: one margin then serves small and large lesions."""
    return float(size ** (1 / _power(units)))


def _power(units: Units) -> int:
    return 3 if units.size == "ml" else 2


def parse_guarantees(texts: Iterable[str]) -> dict[GuaranteeKind, float]:
    """What texts such as "lesions=0.9" ask for.

    Raises:
        ValueError: another kind, a kind twice, or a rate that is none of `RATES`.
    """
    result: dict[GuaranteeKind, float] = {}
    allowed = ", ".join(f"{rate:g}" for rate in RATES)
    for text in texts:
        name, _, value = text.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None or kind in result:
            what = "is asked for twice" if kind else "is no guarantee"
            raise ValueError(f"{text!r} {what}; allowed is each of {', '.join(KINDS)} once, as in lesions=0.9")
        try:
            rate = float(value)
        except ValueError:
            raise ValueError(f"{text!r} names no rate; allowed are {allowed}, as in {kind}=0.9") from None
        if not any(abs(rate - one) < CLOSE for one in RATES):
            raise ValueError(f"the rate of {text!r} is none that models are calibrated for; allowed are {allowed}")
        result[kind] = rate
    return result


def promises_of(
    guarantees: Guarantees, asked: Mapping[GuaranteeKind, float], names: Sequence[str], where: str
) -> Promises:
    """What is written for guarantees that are asked for; a class that none was calibrated for goes without.

    Args:
        names: of the classes, in the model's order.
        where: that they were read from, for messages.

    Raises:
        UsdError: no class has one of them; says why, and which rates there are.
    """
    calibrated = {name: guarantees.classes.get(name, ClassGuarantees()) for name in names}
    classes = {
        name: ClassPromises(
            _at(own.lesions, asked.get("lesions")),
            _at(own.masks, asked.get("masks")),
            _at(own.volume, asked.get("volume")),
        )
        for name, own in calibrated.items()
    }
    for kind, rate in asked.items():
        if all(getattr(own, kind) is None for own in classes.values()):
            reasons = [
                f"{name}: {own.refused.get(f'{kind}={rate:g}', 'it was not calibrated')} {_others(own, kind)}"
                for name, own in calibrated.items()
            ]
            raise UsdError(f"{where} holds no guarantee {kind}={rate:g}. {' '.join(reasons)}")
    return Promises(classes, guarantees.unit)


def without(promises: Promises, asked: Mapping[GuaranteeKind, float]) -> list[str]:
    """Classes that go without a guarantee that is asked for, in words."""
    return [
        f"{name} goes without {kind}={rate:g}"
        for name, own in promises.classes.items()
        for kind, rate in asked.items()
        if getattr(own, kind) is None
    ]


def promised_folders(output: Path) -> list[Path]:
    """Folders of `FOLDERS` in an output, with those of single classes in them."""
    folders = [output / name for name in FOLDERS]
    return [*folders, *(path for folder in folders if folder.is_dir() for path in _folders_of_classes(folder))]


def _folders_of_classes(folder: Path) -> list[Path]:
    """Of a folder that holds these or masks, never both: this is asked for each case, and masks may be many."""
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(Path(entry.path) for entry in itertools.takewhile(os.DirEntry.is_dir, visible))


def _others(own: ClassGuarantees, kind: GuaranteeKind) -> str:
    rates = ", ".join(f"{kind}={rate:g}" for rate in own.rates(kind))
    return f"Calibrated are {rates}." if rates else f"No rate of {kind} is calibrated."


def _at(calibrated: Sequence[Calibrated], rate: float | None) -> Calibrated | None:
    return next((one for one in calibrated if rate is not None and abs(_rate_of(one) - rate) < CLOSE), None)


def _rate_of(found: RiskThreshold | MaskThresholds | VolumeMargin) -> float:
    if isinstance(found, VolumeMargin):
        return found.coverage
    return round(1 - (found.alpha if isinstance(found, RiskThreshold) else found.outer.alpha), 6)
