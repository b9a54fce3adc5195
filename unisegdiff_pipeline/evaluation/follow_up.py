"""Two time points of a patient: which lesions are new, have vanished, grow, shrink or stay, and how sure that is.

Both masks lie on one grid, registered beforehand. Lesions of both time points are matched by a rule
(`lesion_matching`); those that matches connect, directly or through others, are one changing lesion, so that a lesion
that breaks up or merges is followed as a whole: its size is the sum of its parts, volumes and longest diameters alike
(RECIST 1.1 sums the diameters of the parts of a lesion that has broken up).

A lesion changes where its volume, or its diameter, crosses a threshold:

- volume (default): 25 % more or less, as growth of lung nodules is defined (van Klaveren et al. 2009, NEJM 361:2221).
- diameter: 20 % and 5 mm more, or 30 % less, the limits of RECIST 1.1 (Eisenhauer et al. 2009, European Journal of
  Cancer 45:228), which applies them to the sum over target lesions; the diameter here is the longest in 3D.

With samples of both time points, every pair of a sample of the one and a sample of the other is judged in the same way.
Samples are drawn for each time point on its own, so that all pairs are equally likely. In a sample the lesion is what
touches the lesion of the masks at either time (comes as near as the matching rule allows); a component that touches two
of them counts for both. What only samples show is no row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.units import Units, voxel_size
from unisegdiff_pipeline.evaluation.dilation import dilated
from unisegdiff_pipeline.evaluation.lesion_matching import MatchingRule
from unisegdiff_pipeline.evaluation.lesions import ScoredLesion, score_lesions

Measure = Literal["volume", "diameter"]
Status = Literal["new", "vanished", "growing", "shrinking", "stable"]
STATUSES: tuple[Status, ...] = get_args(Status)
SampleStatus = Literal["new", "vanished", "growing", "shrinking", "stable", "absent"]
SAMPLE_STATUSES: tuple[SampleStatus, ...] = get_args(SampleStatus)
INTERVAL = (0.05, 0.95)
ROUNDING = 1e-9  # of sizes, which are multiples of that of a voxel: 4 voxels that become 5 grow by 25 %


@dataclass(frozen=True)
class Thresholds:
    """From where on a lesion grows or shrinks; the module names the sources of the defaults.

    Attributes:
        measure: what is compared.
        grow_percent: it grows by at least so much.
        grow_mm: and, of diameters, by at least so many mm.
        shrink_percent: it shrinks by at least so much.

    Raises:
        ValueError: for a percentage that is not above 0, a shrinkage above 100 %, or a negative distance.
    """

    measure: Measure = "volume"
    grow_percent: float = 25.0
    grow_mm: float = 0.0
    shrink_percent: float = 25.0

    def __post_init__(self) -> None:
        if not (0 < self.grow_percent < math.inf and 0 < self.shrink_percent <= 100 and 0 <= self.grow_mm < math.inf):
            raise ValueError(
                f"grow_percent is {self.grow_percent}, shrink_percent {self.shrink_percent} and grow_mm "
                f"{self.grow_mm}; give percentages above 0, of shrinking at most 100, and a distance of 0 or more"
            )

    def describe(self, units: Units) -> str:
        """The thresholds in words."""
        name = self.measure if self.measure == "diameter" else units.size_word
        also = f" and {units.length_text(self.grow_mm)}" if self.measure == "diameter" and self.grow_mm else ""
        return (
            f"growing: {name} at least {self.grow_percent:g} %{also} larger; shrinking: at least "
            f"{self.shrink_percent:g} % smaller"
        )


VOLUME_THRESHOLDS = Thresholds()
RECIST_THRESHOLDS = Thresholds("diameter", grow_percent=20.0, grow_mm=5.0, shrink_percent=30.0)


@dataclass(frozen=True)
class FollowUpOptions:
    """How two time points are compared.

    Attributes:
        rule: when lesions of both time points match.
        thresholds: from where on a lesion grows or shrinks.
    """

    rule: MatchingRule = field(default_factory=MatchingRule)
    thresholds: Thresholds = VOLUME_THRESHOLDS


@dataclass(frozen=True)
class Interval:
    """Quantiles 5 and 95 % over all pairs of samples; NaN without samples."""

    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class LesionChange:
    """One lesion at two time points; a row of follow_up.csv.

    Attributes:
        lesion_id: number within patient and class, from 1, the largest at either time first.
        baseline_ids, follow_up_ids: its parts, as `lesions.ScoredLesion` numbers them; several where it merges or
            breaks up.
        status: by the masks.
        baseline_ml, follow_up_ml: volumes, of 2D images areas.
        baseline_diameter_mm, follow_up_diameter_mm: sums of the longest diameters of the parts.
        centroid_mm: of its largest part, at follow-up where it is there.
        probability: of each status over the pairs of samples, "absent" at both times among them; None without samples.
        change_ml: interval of the change in volume.
    """

    lesion_id: int
    baseline_ids: tuple[int, ...]
    follow_up_ids: tuple[int, ...]
    status: Status
    baseline_ml: float
    follow_up_ml: float
    baseline_diameter_mm: float
    follow_up_diameter_mm: float
    centroid_mm: tuple[float, float, float]
    probability: Mapping[SampleStatus, float] | None
    change_ml: Interval

    @property
    def change_percent(self) -> float:
        """Change in volume in percent of the baseline; NaN for a new lesion."""
        return percent(self.baseline_ml, self.follow_up_ml)

    @property
    def diameter_change_percent(self) -> float:
        """Change in diameter in percent of the baseline; NaN for a new lesion and for one of a single voxel."""
        return percent(self.baseline_diameter_mm, self.follow_up_diameter_mm)


@dataclass(frozen=True)
class ClassChange:
    """One class of a patient at two time points.

    Attributes:
        baseline_ml, follow_up_ml: of all lesions together.
        change_ml: interval of its change.
    """

    class_name: str
    lesions: tuple[LesionChange, ...]
    baseline_ml: float
    follow_up_ml: float
    change_ml: Interval

    @property
    def counts(self) -> dict[Status, int]:
        """Lesions of each status."""
        found = Counter(lesion.status for lesion in self.lesions)
        return {status: found[status] for status in STATUSES}


@dataclass(frozen=True, eq=False)
class TimePoint:
    """Boolean masks (Z, Y, X) of one class at one time: the mask, and its samples."""

    mask: np.ndarray
    samples: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class _Group:
    """Lesions of both time points that belong together."""

    baseline: tuple[ScoredLesion, ...]
    follow_up: tuple[ScoredLesion, ...]

    @property
    def voxels(self) -> tuple[int, int]:
        """The larger of both sizes, then their sum."""
        sizes = [sum(lesion.voxels for lesion in side) for side in (self.baseline, self.follow_up)]
        return max(sizes), sum(sizes)

    @property
    def largest(self) -> ScoredLesion:
        return max(self.follow_up or self.baseline, key=lambda lesion: lesion.voxels)


def percent(before: float, after: float) -> float:
    """Change in percent of the value before; NaN where that is 0."""
    return 100 * (after - before) / before if before else math.nan


def compare_time_points(
    class_name: str, baseline: TimePoint, follow_up: TimePoint, geometry: Geometry, options: FollowUpOptions
) -> ClassChange:
    """Follow the lesions of one class of a patient.

    Args:
        class_name: of the class.
        baseline, follow_up: masks of one shape; probabilities need samples of both.
        geometry: of the grid that sizes and distances are measured on.
        options: rule and thresholds.

    Raises:
        ValueError: where shapes differ.
    """
    _, lesions = score_lesions(baseline.mask, follow_up.mask, geometry, options.rule)
    groups = sorted(_groups(lesions), key=lambda group: [-size for size in group.voxels])
    has_samples = bool(baseline.samples and follow_up.samples)
    sizes = _sample_sizes(groups, baseline, follow_up, geometry, options) if has_samples else None
    voxel_ml = voxel_size(geometry)
    totals = [
        np.array([np.count_nonzero(sample) * voxel_ml for sample in time.samples] if has_samples else [])
        for time in (baseline, follow_up)
    ]
    return ClassChange(
        class_name,
        tuple(
            _change(number, group, None if sizes is None else sizes[number - 1], voxel_ml, options.thresholds)
            for number, group in enumerate(groups, start=1)
        ),
        int(np.count_nonzero(baseline.mask)) * voxel_ml,
        int(np.count_nonzero(follow_up.mask)) * voxel_ml,
        _interval(*totals),
    )


def judge(before: float, after: float, exists: tuple[bool, bool], thresholds: Thresholds) -> SampleStatus:
    """Status of a lesion by its volume, or diameter, at both time points and by whether it is there at all."""
    there, still_there = exists
    if not (there and still_there):
        return "vanished" if there else "new" if still_there else "absent"
    grown, rounding = after - before, ROUNDING * before
    if grown > 0 and grown + rounding >= max(before * thresholds.grow_percent / 100, thresholds.grow_mm):
        return "growing"
    return "shrinking" if grown < 0 and rounding - grown >= before * thresholds.shrink_percent / 100 else "stable"


def _groups(lesions: Sequence[ScoredLesion]) -> list[_Group]:
    """Lesions that matches connect."""
    baseline = {lesion.lesion_id: lesion for lesion in lesions if lesion.side == "reference"}
    follow_up = {lesion.lesion_id: lesion for lesion in lesions if lesion.side == "prediction"}
    open_baseline, open_follow_up, found = set(baseline), set(follow_up), []
    while open_baseline or open_follow_up:
        ours, theirs = ({min(open_baseline)}, set[int]()) if open_baseline else (set[int](), {min(open_follow_up)})
        size = 0
        while len(ours) + len(theirs) > size:
            size = len(ours) + len(theirs)
            theirs |= {other for number in ours for other in baseline[number].matched_ids}
            ours |= {other for number in theirs for other in follow_up[number].matched_ids}
        open_baseline -= ours
        open_follow_up -= theirs
        found.append(_Group(tuple(baseline[i] for i in sorted(ours)), tuple(follow_up[i] for i in sorted(theirs))))
    return found


@dataclass(frozen=True, eq=False)
class _SampleSizes:
    """Volume (ml) and summed diameter (mm) of one lesion in each sample of one time point."""

    volume_ml: np.ndarray
    diameter_mm: np.ndarray


def _sample_sizes(
    groups: Sequence[_Group], baseline: TimePoint, follow_up: TimePoint, geometry: Geometry, options: FollowUpOptions
) -> list[tuple[_SampleSizes, _SampleSizes]]:
    """Of each group its sizes in the samples of the baseline and in those of the follow-up."""
    places = _places(groups, baseline, follow_up, geometry, options.rule)
    columns = [_sizes(time.samples, places, geometry, options) for time in (baseline, follow_up)]
    return list(zip(*columns, strict=True))


def _places(
    groups: Sequence[_Group], baseline: TimePoint, follow_up: TimePoint, geometry: Geometry, rule: MatchingRule
) -> list[np.ndarray]:
    """Flat indices of the voxels of each group at either time, and of those as near as the rule allows."""
    voxels, owners = [], []
    for time, sides in ((baseline, [g.baseline for g in groups]), (follow_up, [g.follow_up for g in groups])):
        components = find_components(time.mask, rule.connectivity)
        owner = np.zeros(len(components) + 1, np.int64)
        for number, side in enumerate(sides):
            owner[[lesion.lesion_id for lesion in side]] = number
        flat = np.flatnonzero(time.mask)
        voxels.append(flat)
        owners.append(owner[components.numbers_at(flat)])
    flat, owner = np.concatenate(voxels), np.concatenate(owners)
    ends = np.cumsum(np.bincount(owner, minlength=len(groups)))
    places = np.split(flat[np.argsort(owner, kind="stable")], ends[:-1])
    if rule.criterion != "dilated":
        return places
    return [_grown(place, baseline.mask.shape, geometry, rule.dilation_mm) for place in places]


def _grown(place: np.ndarray, shape: tuple[int, ...], geometry: Geometry, distance_mm: float) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask.ravel()[place] = True
    return np.flatnonzero(dilated(mask, distance_mm, geometry.spacing_mm))


def _sizes(
    samples: Sequence[np.ndarray], places: Sequence[np.ndarray], geometry: Geometry, options: FollowUpOptions
) -> list[_SampleSizes]:
    volumes, diameters = np.zeros((2, len(places), len(samples)))
    voxel_ml = voxel_size(geometry)
    for index, sample in enumerate(samples):
        components = find_components(sample, options.rule.connectivity)
        spans = np.zeros(len(components))
        if options.thresholds.measure == "diameter" and len(components):
            spans = components.longest_diameters_mm(geometry.spacing_mm)
        for number, place in enumerate(places):
            touched = np.unique(components.numbers_at(place))
            touched = touched[touched > 0] - 1
            volumes[number, index] = components.voxels[touched].sum() * voxel_ml
            diameters[number, index] = spans[touched].sum()
    return [_SampleSizes(*rows) for rows in zip(volumes, diameters, strict=True)]


def _change(
    number: int,
    group: _Group,
    sizes: tuple[_SampleSizes, _SampleSizes] | None,
    voxel_ml: float,
    thresholds: Thresholds,
) -> LesionChange:
    volumes = [sum(lesion.voxels for lesion in side) * voxel_ml for side in (group.baseline, group.follow_up)]
    diameters = [math.fsum(lesion.longest_diameter_mm for lesion in side) for side in (group.baseline, group.follow_up)]
    measured = volumes if thresholds.measure == "volume" else diameters
    status = judge(measured[0], measured[1], (bool(group.baseline), bool(group.follow_up)), thresholds)
    assert status != "absent", "a group has a lesion"
    return LesionChange(
        lesion_id=number,
        baseline_ids=tuple(lesion.lesion_id for lesion in group.baseline),
        follow_up_ids=tuple(lesion.lesion_id for lesion in group.follow_up),
        status=status,
        baseline_ml=volumes[0],
        follow_up_ml=volumes[1],
        baseline_diameter_mm=diameters[0],
        follow_up_diameter_mm=diameters[1],
        centroid_mm=group.largest.centroid_mm,
        probability=None if sizes is None else _probabilities(*sizes, thresholds),
        change_ml=Interval() if sizes is None else _interval(sizes[0].volume_ml, sizes[1].volume_ml),
    )


def _probabilities(
    baseline: _SampleSizes, follow_up: _SampleSizes, thresholds: Thresholds
) -> dict[SampleStatus, float]:
    """Fraction of all pairs of samples with each status."""
    is_volume = thresholds.measure == "volume"
    before, after = (side.volume_ml if is_volume else side.diameter_mm for side in (baseline, follow_up))
    found = Counter(
        judge(float(a), float(b), (bool(x), bool(y)), thresholds)
        for a, x in zip(before, baseline.volume_ml > 0, strict=True)
        for b, y in zip(after, follow_up.volume_ml > 0, strict=True)
    )
    return {status: found[status] / found.total() for status in SAMPLE_STATUSES}


def _interval(before: np.ndarray, after: np.ndarray) -> Interval:
    """Of the change over all pairs of samples."""
    if not (len(before) and len(after)):
        return Interval()
    low, high = np.quantile(after[None, :] - before[:, None], INTERVAL)
    return Interval(float(low), float(high))
