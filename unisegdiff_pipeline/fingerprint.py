"""Facts about a data set that planning stands on: spacing, shape, intensities, and the lesions themselves.

Every case is read once: the integrity check looks at the same volumes. Axes are (Z, Y, X) after all volumes have been
turned into the orientation that most of them have; 2D images have Z = 1, their volumes are areas in mm2 (Z spacing 1)
and their spacing may be nominal (dataset.json: spacing_known).
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np

from unisegdiff_pipeline.core.bounds import (
    Count,
    Finite,
    Fraction,
    Length,
    NotNegative,
    SpacingMm,
    VoxelCount,
)
from unisegdiff_pipeline.core.boxes import box_slices, nonzero_box, whole_box
from unisegdiff_pipeline.core.components import find_components
from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.core.labels import LabelScheme
from unisegdiff_pipeline.core.scratch import CASE_BYTES, Scratch
from unisegdiff_pipeline.core.serialization import formerly, from_jsonable, read_object, to_jsonable, write_json
from unisegdiff_pipeline.io.orientation import (
    Direction,
    Reorientation,
    axis_codes,
    common_direction,
    nearest_reorientation,
    reorientation_of,
)

if TYPE_CHECKING:
    from unisegdiff_pipeline.io.dataset_json import DatasetDescription
    from unisegdiff_pipeline.io.integrity import CaseCheck, IntegrityReport, Problem
    from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset
    from unisegdiff_pipeline.io.sources import Source

T = TypeVar("T")

MAX_LISTED = 200  # components listed by size per class and label map; `count` is never cut
_SAMPLED_INTENSITIES = 4_000_000  # foreground voxels over all cases and one channel, the same number from each case
_SAMPLED_ANYWHERE = 10_000_000  # voxels over all cases, for channels whose foreground says nothing
_MOST_ANYWHERE = 10_000  # of them of one case
SMALL_BYTES = 30_000_000  # image files, compressed
_WORKER_GB = 0.2  # a process with the readers loaded
_COPIES_IN_MEMORY = 3  # image, cropped copies, label maps and component numbers, in sizes of the image
_THICKNESS_VOXELS = 2_000_000  # larger components are measured on every second (third, ...) voxel


@dataclass(frozen=True)
class IntensityStatistics:
    """Intensities of one channel inside the foreground, over all training cases.

    Where there is no foreground, or its intensities are all alike, they are those of the non-zero region of the images:
    clipped to the range of no or of one value, all images would be constants.
    """

    mean: Finite
    std: NotNegative
    minimum: Finite
    median: Finite
    maximum: Finite
    percentile_00_5: Finite
    percentile_99_5: Finite


@dataclass(frozen=True)
class ComponentFacts:
    """Connected components of one class (or region) in one label map, the largest first.

    Attributes:
        class_name: as in dataset.json.
        voxels: size of the class, all components together.
        count: number of components (voxels that touch by face, edge or corner).
        volumes_mm3: volume of the MAX_LISTED largest components; area in mm2 for 2D images.
        thickness_mm: twice the largest distance to the outside within each of these components.
    """

    class_name: str
    voxels: Count
    count: Count
    volumes_mm3: tuple[NotNegative, ...]
    thickness_mm: tuple[NotNegative, ...]


@dataclass(frozen=True)
class ClassOrder:
    """How two classes lie to each other over the `num_cases` cases that hold both.

    `same_fraction` is, along Z, Y and X, that of these cases in which the centres lie in the more frequent order.
    """

    first: str
    second: str
    num_cases: Count
    same_fraction: tuple[Fraction, Fraction, Fraction] = field(metadata=formerly("same_share"))


@dataclass(frozen=True)
class CaseFingerprint:
    """Facts of one case; `raters` holds the components per rater of data sets with several annotators.

    `orientation` says where the axes x, y, z of the file point ("LPS"), empty for 2D images; see `io.orientation`.
    `source` names the source of a case of a unified data set.
    """

    case_id: str
    group: str | None
    shape: tuple[VoxelCount, VoxelCount, VoxelCount]
    spacing_mm: tuple[SpacingMm, SpacingMm, SpacingMm]
    shape_after_crop: tuple[VoxelCount, VoxelCount, VoxelCount]
    foreground_fraction: Fraction = field(metadata=formerly("foreground_share"))
    empty: bool
    classes: tuple[ComponentFacts, ...]
    raters: tuple[tuple[ComponentFacts, ...], ...] = ()
    orientation: str = ""
    source: str | None = None


@dataclass(frozen=True)
class Percentiles:
    """Five percentiles of a list of numbers."""

    p10: NotNegative
    p25: NotNegative
    p50: NotNegative
    p75: NotNegative
    p90: NotNegative


@dataclass(frozen=True)
class LesionSummary:
    """One class over all label maps (those of raters included); None where the class never occurs.

    Attributes:
        class_name: as in dataset.json.
        fraction_of_maps: fraction of the label maps that hold the class.
        components_per_map: over the maps that hold it.
        volume_mm3: over the listed components.
        thickness_mm: over the listed components.
        main_thickness_mm: thickness of each map's thickest component; specks beside a lesion do not count here.
        foreground_fraction: mean fraction of the voxels of a map.
    """

    class_name: str
    fraction_of_maps: Fraction = field(metadata=formerly("share_of_maps"))
    components_per_map: Percentiles | None
    volume_mm3: Percentiles | None
    thickness_mm: Percentiles | None
    main_thickness_mm: Percentiles | None
    foreground_fraction: Fraction = field(metadata=formerly("foreground_share"))


@dataclass(frozen=True)
class Fingerprint:
    """Facts of a data set; lists are in the order of dataset.json (channels, classes) and of case_id (cases).

    `direction` is that of the axes x, y, z (LPS, row major) that all volumes are turned to; None leaves them as they
    are stored: 2D images, and single slices in different planes. `sources` holds the facts of each source of a unified
    data set by itself, with its own channels, by name.
    """

    dataset_name: str
    is_2d: bool
    channel_names: tuple[str, ...]
    fraction_of_empty_cases: Fraction = field(metadata=formerly("share_of_empty_cases"))
    median_crop_fraction: Fraction = field(metadata=formerly("median_crop_share"))
    intensities: tuple[IntensityStatistics, ...]
    lesions: tuple[LesionSummary, ...]
    class_orders: tuple[ClassOrder, ...]
    cases: Annotated[tuple[CaseFingerprint, ...], Length(1, 10**9)]
    direction: Direction | None
    sources: dict[str, Fingerprint] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, expected, of in (
            ("intensities", len(self.channel_names), "channels"),
            ("lesions", len(self.cases[0].classes), "classes"),
        ):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {expected} {of}; give one for each")


def write_fingerprint(path: Path, facts: Fingerprint) -> None:
    """Write fingerprint.json; cases of sources stand in it once, among those of the unified data set."""
    content = to_jsonable(facts)
    for source in content["sources"].values():
        del source["cases"]
    write_json(path, content)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read what `write_fingerprint` wrote, or an earlier version, which wrote the cases of sources twice.

    Raises:
        UsdError: names the file, and the key that is wrong.
    """
    content = read_object(path)
    cases, sources = content.get("cases"), content.get("sources")
    if isinstance(cases, list) and isinstance(sources, dict):
        for name, source in sources.items():
            if isinstance(source, dict):
                source.setdefault("cases", [c for c in cases if isinstance(c, dict) and c.get("source") == name])
    try:
        return from_jsonable(Fingerprint, content)
    except UsdError as error:
        raise UsdError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _CaseFacts:
    """What one worker sends back, in the axes of the file.

    Attributes:
        geometry: of the image; None where it was not read, or is turned already.
        samples: foreground intensities (C, n), None without foreground.
        anywhere: intensities of the non-zero region (C, n); None for a case with problems.
        centres: mean index (Z, Y, X) of each class's voxels, (classes, 3); NaN for classes that do not occur. None
            where there is one class only.
    """

    fingerprint: CaseFingerprint | None
    geometry: Geometry | None
    samples: np.ndarray | None
    anywhere: np.ndarray | None
    centres: np.ndarray | None
    check: CaseCheck

    def turned(self, direction: Direction | None) -> _CaseFacts:
        """The same facts in the axes that lie nearest to a direction."""
        if self.fingerprint is None or self.geometry is None or direction is None:
            return self
        turn, facts, centres = reorientation_of(self.geometry, direction), self.fingerprint, self.centres
        if centres is not None:
            from_the_other_end = np.asarray(facts.shape) - 1 - centres
            centres = np.where(turn.flipped, from_the_other_end[:, turn.axis_order], centres[:, turn.axis_order])
        facts = replace(
            facts,
            shape=_in_order(facts.shape, turn),
            spacing_mm=_in_order(facts.spacing_mm, turn),
            shape_after_crop=_in_order(facts.shape_after_crop, turn),
        )
        return replace(self, fingerprint=facts, centres=centres)


# ------------------------------------------------------------------------------------------------------ extraction


def extract_fingerprint(
    raw: RawDataset, workers: int | None = None, scheduler: str | None = None, scratch_folder: Path | None = None
) -> tuple[Fingerprint, IntegrityReport]:
    """Read every training case once; give the facts and the report of the integrity check.

    Cases with problems are left out of the fingerprint; whether to go on with a report that has problems is up to the
    caller.

    Args:
        raw: the data set.
        workers: processes, or threads for a small data set; by default as many as cores and memory allow.
        scheduler: address of a Dask scheduler to use instead.
        scratch_folder: for temporary files of large images; None keeps them in memory.

    Raises:
        UsdError: cases failed in a way that is no problem of the data (a killed worker), or no case is usable, which
            names all problems.
    """
    from unisegdiff_pipeline.core.parallel import choose_workers, map_cases
    from unisegdiff_pipeline.io.endings import has_native_reader
    from unisegdiff_pipeline.io.integrity import merge_checks
    from unisegdiff_pipeline.io.raw_dataset import largest_case_gb

    num_samples = max(500, _SAMPLED_INTENSITIES // len(raw.cases))
    num_anywhere = min(_MOST_ANYWHERE, max(500, _SAMPLED_ANYWHERE // len(raw.cases)))
    native = any(has_native_reader(path) for case in raw.cases for path in case.image_paths)
    results = map_cases(
        partial(
            _facts_of,
            num_samples=(num_samples, num_anywhere),
            labels=raw.description.labels,
            scratch_folder=scratch_folder,
        ),
        [(case, raw.description_of(case), raw.source_of(case)) for case in raw.cases],
        names=[case.case_id for case in raw.cases],
        workers=choose_workers(_WORKER_GB + _COPIES_IN_MEMORY * largest_case_gb(raw.cases), workers),
        description=f"{raw.name}: integrity and fingerprint",
        scheduler=scheduler,
        kind="native" if native else "threads" if _is_small(raw) else "processes",
        preload=("unisegdiff_pipeline.fingerprint", "unisegdiff_pipeline.io.integrity"),
    )
    facts = [result.value for result in results]
    report = merge_checks(raw, [fact.check for fact in facts])
    if not any(fact.fingerprint for fact in facts):
        report.require_ok()
    if not raw.source_descriptions:
        return summarize(raw.name, raw.description, facts), report
    return summarize_sources(raw, facts), report


def _facts_of(
    job: tuple[RawCase, DatasetDescription, Source | None],
    num_samples: tuple[int, int],
    labels: LabelScheme,
    scratch_folder: Path | None,
) -> _CaseFacts:
    case, description, source = job
    with Scratch(scratch_folder, CASE_BYTES) as scratch:
        return fingerprint_case(case, description, num_samples, source, labels, scratch)


def fingerprint_case(
    case: RawCase,
    description: DatasetDescription,
    num_samples: tuple[int, int],
    source: Source | None = None,
    unified: LabelScheme | None = None,
    scratch: Scratch | None = None,
) -> _CaseFacts:
    """Read one case, check it and collect its facts; a case with problems has no fingerprint.

    Args:
        case: its files.
        description: what they are to be read by.
        num_samples: intensities to keep, of the foreground and of the whole image.
        source: of a case of a unified data set, whose classes are then those of `unified`.
        unified: classes of the unified data set.
        scratch: makes the image; None keeps it in memory.
    """
    from unisegdiff_pipeline.io.integrity import check_case, read_case
    from unisegdiff_pipeline.io.sources import unified_volumes

    scratch = scratch or Scratch()
    volumes = read_case(case, description, scratch)
    check = check_case(case, description, volumes, scratch)
    image, labels = volumes.image, volumes.labels
    if check.problems or image is None or labels is None:
        return _CaseFacts(None, None, None, None, None, check)
    raters, scheme = volumes.raters, description.labels
    if source is not None and unified is not None:
        labels, *others = unified_volumes((labels, *raters), source, scheme, unified)
        raters, scheme = tuple(others), unified
    crop = box_slices(nonzero_box(*image.array) or whole_box(image.array.shape[1:]))
    scratch.release()
    cropped, cropped_labels = image.array[:, *crop], labels.array[0][crop]
    foreground = scheme.foreground(cropped_labels)
    check = replace(check, warnings=(*check.warnings, *_cut_away(case, scheme, labels.array[0], foreground)))
    spacing_mm = image.geometry.spacing_mm
    fingerprint = CaseFingerprint(
        case_id=case.case_id,
        group=case.group,
        shape=_triple(image.array.shape[1:]),
        spacing_mm=spacing_mm,
        shape_after_crop=_triple(cropped.shape[1:]),
        foreground_fraction=rounded(float(foreground.sum()) / labels.array.size),
        empty=not bool(foreground.any()),
        classes=component_facts(labels.array[0], scheme, spacing_mm),
        raters=tuple(component_facts(r.array[0], scheme, spacing_mm) for r in raters),
        orientation="" if image.geometry.is_2d else axis_codes(image.geometry.direction),
        source=case.source,
    )
    samples = _sample_intensities(cropped, np.flatnonzero(foreground), num_samples[0], case.case_id)
    anywhere = _sample_intensities(cropped, range(foreground.size), num_samples[1], case.case_id)
    if case.channels is not None:
        count = len(description.channel_names)
        samples, anywhere = _filled(samples, case.channels, count), _filled(anywhere, case.channels, count)
    centres = None
    if len(scheme.names) > 1:
        centres = np.array([centre_of_mask(mask) for _, mask in scheme.class_masks(labels.array[0])])
    return _CaseFacts(fingerprint, image.geometry, samples, anywhere, centres, check)


def _cut_away(case: RawCase, scheme: LabelScheme, labels: np.ndarray, kept: np.ndarray) -> Iterable[Problem]:
    """A warning where foreground (Z, Y, X) lies outside of the non-zero region, of which `kept` is what lies within."""
    from unisegdiff_pipeline.io.integrity import Problem

    if kept.shape == labels.shape:
        return
    lost = np.count_nonzero(scheme.foreground(labels)) - np.count_nonzero(kept)
    if lost:
        yield Problem(
            str(case.label_path),
            f"{'some' if kept.any() else 'all'} of what is labelled lies outside of the non-zero region, which images "
            f"are cropped to: it is neither learned nor predicted",
            "Check that image and label map belong together.",
        )


def component_facts(
    labels: np.ndarray, scheme: LabelScheme, spacing_mm: tuple[float, float, float]
) -> tuple[ComponentFacts, ...]:
    """Components of every class or region of a label map (Z, Y, X)."""
    return tuple(_facts_of_class(name, mask, spacing_mm) for name, mask in scheme.class_masks(labels))


def _facts_of_class(name: str, mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> ComponentFacts:
    box = nonzero_box(mask)
    if box is None:
        return ComponentFacts(name, 0, 0, (), ())
    found = find_components(mask[box_slices(box)])
    boxes = found.boxes()
    # Of equal ones that with the first voxel comes first.
    largest = np.lexsort((found.first_voxels, -found.voxels))[:MAX_LISTED].tolist()
    voxel_mm3 = math.prod(spacing_mm)
    is_2d = mask.shape[0] == 1
    thickness = [_thickness_mm(found.within(boxes[i].tolist()) == i + 1, spacing_mm, is_2d) for i in largest]
    return ComponentFacts(
        class_name=name,
        voxels=int(found.voxels.sum()),
        count=len(found),
        volumes_mm3=tuple(rounded(float(found.voxels[i]) * voxel_mm3) for i in largest),
        thickness_mm=tuple(rounded(t) for t in thickness),
    )


def centre_of_mask(mask: np.ndarray) -> list[float]:
    """Mean index (Z, Y, X) of the voxels of a mask; NaN without any."""
    box = nonzero_box(mask)
    if box is None:
        return [math.nan] * 3
    inside = mask[box_slices(box)]
    counts = [np.count_nonzero(inside, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [low + float(np.average(np.arange(len(n)), weights=n)) for (low, _), n in zip(box, counts, strict=True)]


def _thickness_mm(component: np.ndarray, spacing_mm: Sequence[float], is_2d: bool) -> float:
    """Twice the largest distance to the outside, by the component's own bounding box (Z, Y, X).

    The outside of the box is background; a 2D image has no outside along Z.
    """
    from scipy.ndimage import distance_transform_edt

    step = max(1, math.ceil((component.size / _THICKNESS_VOXELS) ** (1 / 3)))
    component = component[(slice(None, None, step),) * 3]
    pad = [(0, 0) if is_2d else (1, 1), (1, 1), (1, 1)]
    distance = distance_transform_edt(np.pad(component, pad), sampling=[s * step for s in spacing_mm])
    return 2.0 * float(distance.max())


def _sample_intensities(
    image: np.ndarray, positions: np.ndarray | range, num_samples: int, case_id: str
) -> np.ndarray | None:
    """Intensities (C, num_samples) at some of the voxels, drawn with replacement so that every case counts the same."""
    if len(positions) == 0:
        return None
    generator = np.random.default_rng(zlib.crc32(case_id.encode("utf-8")))
    drawn = generator.integers(0, len(positions), num_samples)
    chosen = drawn if isinstance(positions, range) else positions[drawn]
    places = np.unravel_index(chosen, image.shape[1:])  # making a cropped channel flat would copy it
    return np.stack([channel[places] for channel in image]).astype(np.float32)


def _filled(values: np.ndarray | None, channels: Sequence[int], count: int) -> np.ndarray | None:
    """Intensities (P, n) of these channels as those of all (count, n), NaN of the missing ones."""
    if values is None:
        return None
    result = np.full((count, values.shape[1]), np.nan, np.float32)
    result[list(channels)] = values
    return result


def _is_small(raw: RawDataset) -> bool:
    """Whether threads are done before the processes of a pool would have started (one to two seconds)."""
    files = [path for case in raw.cases for path in case.image_paths]
    return sum(path.stat().st_size for path in files if path.exists()) < SMALL_BYTES


# --------------------------------------------------------------------------------------------------------- summary


def summarize(dataset_name: str, description: DatasetDescription, facts: Sequence[_CaseFacts]) -> Fingerprint:
    """Put the facts of all cases without problems together; there must be one."""
    usable = [fact for fact in facts if fact.fingerprint is not None]
    direction = _direction_of(usable)
    usable = [fact.turned(direction) for fact in usable]
    cases = tuple(fact.fingerprint for fact in usable if fact.fingerprint is not None)
    samples = [fact.samples for fact in usable if fact.samples is not None]
    anywhere = np.concatenate([fact.anywhere for fact in usable if fact.anywhere is not None], axis=1)
    for name, values in zip(description.channel_names, anywhere, strict=True):
        if np.isnan(values).all():
            raise UsdError(f"{dataset_name}: all cases lack the channel {name}; take it out of channel_names.")
    crop_fractions = [math.prod(c.shape_after_crop) / math.prod(c.shape) for c in cases]
    return Fingerprint(
        dataset_name=dataset_name,
        is_2d=all(case.shape[0] == 1 for case in cases),
        channel_names=description.channel_names,
        fraction_of_empty_cases=rounded(float(np.mean([c.empty for c in cases]))),
        median_crop_fraction=rounded(float(np.median(crop_fractions))),
        intensities=_intensity_statistics(samples, anywhere),
        lesions=summarize_lesions(cases, description.labels.names),
        class_orders=class_orders([f.centres for f in usable if f.centres is not None], description.labels),
        cases=cases,
        direction=direction,
    )


def summarize_sources(raw: RawDataset, facts: Sequence[_CaseFacts]) -> Fingerprint:
    """Facts of a unified data set: of all cases, and of each source by itself.

    Volumes are turned within their source; intensities of all are those of the channels as the network repeats them.

    Raises:
        UsdError: no case of a source is usable.
    """
    sources, pooled = {}, []
    for part, source in zip(raw.parts(), raw.description.sources, strict=True):
        own = [fact for fact in facts if fact.fingerprint is not None and fact.fingerprint.source == source.name]
        if not own:
            raise UsdError(f"no case of the source {source.name} can be used; correct its cases, or leave it out.")
        description = replace(part.description, labels=raw.description.labels)
        sources[source.name] = summarize(source.dataset, description, own)
        direction = sources[source.name].direction
        widened = (_widened(fact.turned(direction), len(raw.description.channel_names)) for fact in own)
        pooled += [replace(fact, geometry=None) for fact in widened]
    whole = summarize(raw.name, raw.description, pooled)
    return replace(whole, cases=tuple(sorted(whole.cases, key=lambda case: case.case_id)), sources=sources)


def _widened(facts: _CaseFacts, channels: int) -> _CaseFacts:
    """The same facts with the channels of their image repeated to so many."""
    from unisegdiff_pipeline.io.sources import repeated_channels

    def repeated(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[repeated_channels(len(values), channels)]

    return replace(facts, samples=repeated(facts.samples), anywhere=repeated(facts.anywhere))


def _direction_of(facts: Sequence[_CaseFacts]) -> Direction | None:
    """The direction that all volumes are turned to.

    Single slices lie in planes of their own: where these differ, turning them into one orientation would lay some of
    them across, so all are left as they are stored.
    """
    volumes = [
        (fact.geometry.direction, fact.fingerprint)
        for fact in facts
        if fact.geometry is not None and not fact.geometry.is_2d and fact.fingerprint
    ]
    if not volumes:
        return None
    wanted = common_direction([direction for direction, _ in volumes])
    single = all(facts.shape[0] == 1 for _, facts in volumes)
    if single and any(nearest_reorientation(direction, wanted).axis_order[0] != 0 for direction, _ in volumes):
        return None
    return wanted


def summarize_lesions(cases: Sequence[CaseFingerprint], class_names: Sequence[str]) -> tuple[LesionSummary, ...]:
    """Summary of each class over all label maps; with raters, over theirs instead of the one in labelsTr."""
    maps = [(m, math.prod(c.shape)) for c in cases for m in (c.raters or (c.classes,))]
    summaries = []
    for i, name in enumerate(class_names):
        present = [m[i] for m, _ in maps if m[i].count > 0]
        summaries.append(
            LesionSummary(
                class_name=name,
                fraction_of_maps=rounded(len(present) / len(maps)),
                components_per_map=_percentiles([f.count for f in present]),
                volume_mm3=_percentiles([v for f in present for v in f.volumes_mm3]),
                thickness_mm=_percentiles([t for f in present for t in f.thickness_mm]),
                main_thickness_mm=_percentiles([max(f.thickness_mm) for f in present]),
                foreground_fraction=rounded(float(np.mean([m[i].voxels / size for m, size in maps]))),
            )
        )
    return tuple(summaries)


def class_orders(centres: Sequence[np.ndarray], scheme: LabelScheme) -> tuple[ClassOrder, ...]:
    """The order of every two classes that occur together; `centres` holds one array (classes, 3) per case.

    Regions that lie within one another are no two things that could be taken for each other, and are left out.
    """
    orders = []
    of_cases = np.array(centres).reshape(len(centres), len(scheme.names), 3)  # empty for one class
    nested = {frozenset(pair) for pair in scheme.nesting}
    for first, second in itertools.combinations(range(len(scheme.names)), 2):
        if {first, second} in nested:
            continue
        differences = of_cases[:, first] - of_cases[:, second]
        differences = differences[~np.isnan(differences).any(axis=1)]
        if len(differences):
            fractions = np.maximum((differences > 0).mean(axis=0), (differences < 0).mean(axis=0))
            z, y, x = (rounded(float(fraction)) for fraction in fractions)
            orders.append(ClassOrder(scheme.names[first], scheme.names[second], len(differences), (z, y, x)))
    return tuple(orders)


def _intensity_statistics(samples: Sequence[np.ndarray], anywhere: np.ndarray) -> tuple[IntensityStatistics, ...]:
    """Statistics over the foreground of all cases, of each channel where it says something, else over `anywhere`."""
    foreground = np.concatenate(samples, axis=1) if samples else anywhere
    statistics = []
    for channel, outside in zip(foreground, anywhere, strict=True):
        found = _statistics_of(channel)
        if found is None or found[5] == found[6]:
            found = _statistics_of(outside)
        assert found is not None
        statistics.append(IntensityStatistics(*(rounded(float(value)) for value in found)))
    return tuple(statistics)


def _statistics_of(channel: np.ndarray) -> tuple[float, ...] | None:
    """In the order of IntensityStatistics; NaN, of cases that lack the channel, is left out. None without others."""
    values = channel[np.isfinite(channel)].astype(np.float64)
    if not values.size:
        return None
    mean, std, least, most = values.mean(), values.std(), values.min(), values.max()
    low, median, high = np.percentile(values, (0.5, 50, 99.5), overwrite_input=True)
    return mean, std, least, median, most, low, high


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    return Percentiles(*(rounded(float(v)) for v in np.percentile(np.asarray(values, float), (10, 25, 50, 75, 90))))


def _in_order(values: tuple[T, T, T], turn: Reorientation) -> tuple[T, T, T]:
    z, y, x = turn.axis_order
    return values[z], values[y], values[x]


def rounded(value: float) -> float:
    """Six significant digits: what a reader of the JSON needs, the same on every machine."""
    return float(f"{value:.6g}")


def _triple(shape: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = shape
    return int(z), int(y), int(x)
