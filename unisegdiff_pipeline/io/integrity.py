"""Checking a raw data set: every problem is named with its file and remedy, all of them in one run.

`check_case` works on volumes that have been read already, so that the fingerprint can check and measure a case in
one pass over its files; `merge_checks` joins the checks of all cases.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.files import array_hash
from unisegdiff_pipeline.core.geometry import IDENTITY_DIRECTION, Geometry, Volume, geometry_differences, on_grid_of
from unisegdiff_pipeline.core.progress import counted
from unisegdiff_pipeline.core.scratch import Scratch
from unisegdiff_pipeline.core.words import listed
from unisegdiff_pipeline.io.dataset_json import DatasetDescription
from unisegdiff_pipeline.io.endings import NIFTI_ENDINGS
from unisegdiff_pipeline.io.images import (
    is_picture_ending,
    label_colours,
    label_ending,
    read_header,
    read_image,
    read_labels,
    spacing_known,
    split_ending,
)
from unisegdiff_pipeline.io.nifti import lies_in_two_places
from unisegdiff_pipeline.io.orientation import axis_codes, nearest_reorientation
from unisegdiff_pipeline.io.raw_dataset import RawCase, RawDataset, channel_problem
from unisegdiff_pipeline.io.spacing import spacing_problem
from unisegdiff_pipeline.io.unify import changed_sources

_MAX_NAMED = 10
_MAX_LOOKED_AT = 100_000  # voxels of an image whose spread is looked at
_TAIL_FRACTION = 0.001  # of the voxels on either side, which may lie anywhere
# Of the range of an image: if all but the tails spread less, the extreme values are no tissue. (A bladder in PET is
# some hundred times as bright as what surrounds it.)
_LEAST_SPREAD_FRACTION = 1e-4
Colour = tuple[int, int, int]  # red, green, blue


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file, and how to fix it; `remedy` is empty where the message says it already."""

    file: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}. {self.remedy}".rstrip()


@dataclass(frozen=True)
class LoadedCase:
    """The files of one case as far as they could be read; `problems` names the others."""

    image: Volume | None
    labels: Volume | None
    raters: tuple[Volume, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class CaseCheck:
    """What the check of one case found.

    Attributes:
        case_id: the case.
        problems: what must be fixed.
        warnings: what should be looked at.
        image_hash: hash of shape and voxels, the same for identical images; None without a readable image.
        is_2d: whether the image is 2D; None without a readable image, and for a single slice, which goes with both.
        shape: (Z, Y, X) of the image; None without a readable image.
        geometry: of the image; None without a readable image.
        empty: the label map holds background (and ignored voxels) only.
        classes: those that the label map or an annotation of a rater holds.
        inverted: foreground lies all along the edge of every slice, around background, as in a mask that is inverted.
        label_colours: (value, colour) of the values that occur in label pictures with a palette of colours.
    """

    case_id: str
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    image_hash: str | None
    is_2d: bool | None
    shape: tuple[int, ...] | None
    geometry: Geometry | None
    empty: bool
    classes: tuple[str, ...] = ()
    inverted: bool = False
    label_colours: tuple[tuple[int, Colour], ...] = ()


@dataclass(frozen=True)
class IntegrityReport:
    """Result for a whole data set.

    Attributes:
        folder: the data set.
        problems: all problems; the data set cannot be used while there is one.
        warnings: allowed but worth a look, identical images among them.
        empty_cases: cases whose label map holds background only.
    """

    folder: Path
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    empty_cases: tuple[str, ...]

    def require_ok(self) -> None:
        """Raise a UsdError that lists all problems, a line each, if there are any."""
        if self.problems:
            lines = [str(problem) for problem in self.problems]
            count, them = ("1 problem", "it") if len(lines) == 1 else (f"{len(lines)} problems", "them")
            lines.append(f"{count} in {self.folder}; nothing was written. Fix {them} and run again.")
            raise UsdError("\n".join(lines))


def read_case(case: RawCase, description: DatasetDescription, scratch: Scratch | None = None) -> LoadedCase:
    """Read all files of a case, the image into what `scratch` makes; what cannot be read becomes a problem."""
    problems: list[Problem] = []
    image = None
    if case.image_paths:
        try:
            # Missing and superfluous files are named by _check_files; what the others hold is looked at all the same.
            whole = len(description.channel_names)
            fits = not _in_few_files(case, whole) and channel_problem(case.image_paths, whole, case.channels) is None
            image = read_image(case.image_paths, case.num_channels(whole) if fits else None, scratch)
        except UsdError as error:
            problems.append(_from_error(error, case.image_paths))
    labels = _try_labels(case.label_path, problems) if case.label_path is not None else None
    raters = [volume for path in case.rater_paths if (volume := _try_labels(path, problems)) is not None]
    if image is not None:
        labels = None if labels is None else on_grid_of(labels, image)
        raters = [on_grid_of(rater, image) for rater in raters]
    return LoadedCase(image, labels, tuple(raters), tuple(problems))


def check_case(
    case: RawCase,
    description: DatasetDescription,
    volumes: LoadedCase | None = None,
    scratch: Scratch | None = None,
) -> CaseCheck:
    """Check one case, on `volumes` where it has been read already; of what `scratch` made nothing stays in memory."""
    scratch = scratch or Scratch()
    volumes = read_case(case, description) if volumes is None else volumes
    problems = [*volumes.problems, *_check_files(case, description, volumes.image)]
    warnings: list[Problem] = []
    image, labels, image_hash = volumes.image, volumes.labels, None
    if image is not None:
        problems += _check_intensities(case, image)
        warnings += [*image_warnings(case, image), *_check_grey(case, image)]
        image_hash = array_hash(image.array)
        scratch.release()
    if missing := case.missing(description.channel_names):
        what = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        warnings.append(Problem(str(case.image_paths[0]), what, "dataset.json allows it (missing_channels)."))
    if labels is not None and case.label_path is not None:
        problems += _check_labels(case, case.label_path, labels, image, description)
    if len(volumes.raters) == len(case.rater_paths):  # else it is not known which of them was read
        for path, rater in zip(case.rater_paths, volumes.raters, strict=True):
            problems += _check_labels(case, path, rater, image, description)
    of_maps = [_classes(volume, description) for volume in (labels, *volumes.raters)]
    return CaseCheck(
        case_id=case.case_id,
        problems=tuple(problems),
        warnings=tuple(warnings),
        image_hash=image_hash,
        is_2d=_is_2d(image),
        shape=None if image is None else image.array.shape[1:],
        geometry=None if image is None else image.geometry,
        empty=labels is not None and not of_maps[0],
        classes=tuple(dict.fromkeys(name for names in of_maps for name in names)),
        inverted=labels is not None and _surrounds_background(labels.array, description),
        label_colours=()
        if labels is None or case.label_path is None
        else used_colours(case.label_path, label_values(labels.array)),
    )


def merge_checks(raw: RawDataset, checks: Sequence[CaseCheck]) -> IntegrityReport:
    """Join the checks of all cases and look at what concerns the data set as a whole."""
    problems = [problem for check in checks for problem in check.problems]
    warnings = [warning for check in checks for warning in check.warnings]
    by_case = {check.case_id: check for check in checks}
    excluded = {source.dataset for source in raw.description.sources if source.excluded}
    for part in raw.parts():  # sources of a unified data set may differ in what the cases of one must agree in
        found = [by_case[case.case_id] for case in part.cases if case.case_id in by_case]
        unmatched = [Problem(str(file.path), file.reason, file.remedy) for file in part.stray_files]
        if part.folder.name not in excluded:
            unmatched += _check_number(part)
        (warnings if part.description.allow_unmatched else problems).extend(unmatched)
        problems += _mixed_dimensions(part, found)
        problems += _mixed_palettes(part, found)
        problems += _impossible_spacings(part, found)
        warnings += _check_groups(part)
        warnings += _mixed_orientations(part, found)
        warnings += _unlikely_units(part, found)
        warnings += _some_spacings_missing(part)
        warnings += _inverted_masks(part, found)
        warnings += _nothing_labelled(part, found, is_source=bool(raw.description.sources))
    for source in changed_sources(raw):
        warnings.append(
            Problem(
                str(raw.folder / "dataset.json"),
                f"the source {source.name} ({source.dataset}) has changed since the unified data set was made",
                "Look whether that is meant; usd_unify with --overwrite takes it as it is now.",
            )
        )
    warnings += [_identical_warning(raw, case_ids) for case_ids in _identical_images(checks)]
    return IntegrityReport(
        folder=raw.folder,
        problems=tuple(problems),
        warnings=_joined(warnings),
        empty_cases=tuple(check.case_id for check in checks if check.empty),
    )


# ------------------------------------------------------------------------------------------------- checks of a case


def _from_error(error: UsdError, paths: Sequence[Path]) -> Problem:
    """The whole message of a reader, "FILE what is wrong, and the remedy."; FILE is one of `paths`, else the first."""
    text = str(error).strip()
    file = next((str(path) for path in paths if text.startswith(str(path))), str(paths[0]))
    return Problem(file, text.removeprefix(file).strip(" :").removesuffix("."), "")


def _try_labels(path: Path, problems: list[Problem]) -> Volume | None:
    try:
        return read_labels(path)
    except UsdError as error:
        problems.append(_from_error(error, [path]))
        return None


def _in_few_files(case: RawCase, num_channels: int) -> bool:
    """Whether files must hold several channels each; how many they do is known when they have been read."""
    return case.channels is None and len(case.image_paths) < num_channels


def _check_files(case: RawCase, description: DatasetDescription, image: Volume | None) -> Iterable[Problem]:
    ending = description.file_ending
    if not case.image_paths:
        yield Problem(
            str(case.label_path),
            f"the label map has no image {case.case_id}_0000{ending}",
            "Add the image, or remove the label map.",
        )
        return
    if case.label_path is None:
        yield Problem(
            str(case.image_paths[0]),
            f"the image has no label map labelsTr/{case.case_id}{label_ending(ending)}",
            "Add the label map, or move the image to imagesTs.",
        )
    absent = [path for path in case.image_paths if not path.exists()]
    whole = len(description.channel_names)
    is_whole = _in_few_files(case, whole) and image is not None and len(image.array) == whole
    if not absent and not is_whole and (problem := channel_problem(case.image_paths, whole, case.channels)):
        names = ", ".join(description.channel_names)
        last = len(description.channel_names) - 1
        suffixes = f"{names} (_0000 to _{last:04d})" if last else f"{names} (_0000)"
        word = "channels" if last else "channel"
        has = "may have" if description.missing_channels else "has"
        yield Problem(str(case.image_paths[0]), problem, f"Each case {has} the {word} {suffixes}.")


def _check_grey(case: RawCase, image: Volume) -> Iterable[Problem]:
    """Colour pictures that were taken as one grey channel: `read_image` has found their channels equal."""
    if len(case.image_paths) != image.array.shape[0]:
        return
    for path in case.image_paths:
        if is_picture_ending(split_ending(path.name)[1]) and read_header(path)[0][0] > 1:
            yield Problem(
                str(path),
                "the colour picture is taken as one grey channel, because its colours are equal",
                "Save it as a grey image to avoid this.",
            )


def _check_forms(case: RawCase) -> Iterable[Problem]:
    """NIfTI images whose header holds two affines, as some programs write a registration beside the scanner's axes."""
    for path in case.image_paths:
        if split_ending(path.name)[1].lower() in NIFTI_ENDINGS and lies_in_two_places(path):
            yield Problem(
                str(path),
                "the two affines of its header (sform and qform) place it differently; programs take the one or the "
                "other",
                "It is read as SimpleITK reads it, and masks lie there; write one affine into both if others matter.",
            )


def _check_intensities(case: RawCase, image: Volume) -> Iterable[Problem]:
    for channel, values in enumerate(image.array):
        # Minimum and maximum find NaN and infinities without a temporary array of the volume's size.
        if values.size and np.isfinite(values.min()) and np.isfinite(values.max()):
            continue
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        what = f"{counted(bad, 'voxel')} hold NaN or infinity" if bad > 1 else "1 voxel holds NaN or infinity"
        yield Problem(
            str(_file_of_channel(case, image, channel)),
            what if values.size else "the image has no voxels",
            "Replace them by real intensities, or leave the case out.",
        )


def _file_of_channel(case: RawCase, image: Volume, channel: int) -> Path:
    """The file that holds a channel of an image: each its own, or one all of them."""
    return case.image_paths[channel if len(case.image_paths) == image.array.shape[0] else 0]


def image_warnings(case: RawCase, image: Volume) -> Iterable[Problem]:
    """What is doubtful in an image, of a training case or one to predict: intensities that are all but one value, and
    files that place it in two ways.
    """
    for channel, values in enumerate(image.array):
        if values.size > 1 and (what := _nearly_constant(values, channel)):
            file = str(_file_of_channel(case, image, channel))
            yield Problem(file, what, "Check that the image was exported rightly.")
    yield from _check_forms(case)


def _nearly_constant(values: np.ndarray, channel: int) -> str:
    """In words; empty where the intensities of a channel spread, or are not all finite.

    A channel of which nearly all voxels are one value, such as a mask, is not meant: few voxels are all that it has.
    """
    least, largest = float(values.min()), float(values.max())
    if not np.isfinite(largest - least):
        return ""
    if least == largest:
        return f"all voxels of channel {channel} are {least:g}"
    looked_at = values.ravel()[:: max(1, values.size // _MAX_LOOKED_AT)].astype(np.float64)
    low = np.quantile(looked_at, _TAIL_FRACTION, method="higher")  # so that a tail is one voxel at least
    high = np.quantile(looked_at, 1 - _TAIL_FRACTION, method="lower")
    if not 0 < high - low < _LEAST_SPREAD_FRACTION * (largest - least):
        return ""
    far = least if low - least > largest - high else largest
    return (
        f"nearly all voxels of channel {channel} lie between {low:g} and {high:g}, but one is {far:g}, beside which "
        f"a normalisation by mean and deviation makes all others one value"
    )


def _check_labels(
    case: RawCase, path: Path, labels: Volume, image: Volume | None, description: DatasetDescription
) -> Iterable[Problem]:
    unknown = sorted(label_values(labels.array) - description.labels.allowed_values)
    if unknown:
        allowed = sorted(description.labels.allowed_values)
        yield Problem(
            str(path),
            f"the label values {listed(unknown, _MAX_NAMED)} are not in dataset.json, which has {allowed}",
            _value_remedy(unknown, allowed),
        )
    if image is None:
        return
    if labels.array.shape[1:] != image.array.shape[1:]:
        yield Problem(
            str(path),
            f"the shape {labels.array.shape[1:]} (Z, Y, X) differs from the image's {image.array.shape[1:]}",
            "Resample the label map onto the image's grid with nearest neighbours, or find the right image.",
        )
        return
    differences = geometry_differences(image.geometry, labels.geometry, image.array.shape[1:])
    if differences:
        yield Problem(
            str(path),
            f"the label map lies elsewhere than {case.image_paths[0].name}: {'; '.join(differences)}",
            "If the voxels do correspond, copy the image's geometry into the label map; else resample it.",
        )


def _classes(labels: Volume | None, description: DatasetDescription) -> list[str]:
    """Names of the classes or regions that a label map holds."""
    return [] if labels is None else [name for name, mask in description.labels.class_masks(labels.array) if mask.any()]


def _surrounds_background(labels: np.ndarray, description: DatasetDescription) -> bool:
    """Whether foreground lies all along the edge of every slice (1, Z, Y, X), and not everywhere: what fills an image
    may be a large tumour.
    """
    edges = labels[..., [0, -1], :], labels[..., [0, -1]]
    foreground = description.labels.foreground
    return all(foreground(edge).all() for edge in edges) and not foreground(labels).all()


def _is_2d(image: Volume | None) -> bool | None:
    if image is None or (not image.geometry.is_2d and image.array.shape[1] == 1):
        return None
    return image.geometry.is_2d


def used_colours(path: Path, values: AbstractSet[int]) -> tuple[tuple[int, Colour], ...]:
    """Value and colour of those of `values` that the palette of a label picture shows in a colour."""
    colours = label_colours(path)
    return tuple((value, colours[value]) for value in sorted(values & colours.keys()))


def other_colour(
    place: str, colours: Iterable[tuple[int, Colour]], known: dict[int, tuple[str, Colour]]
) -> tuple[int, Colour, str, Colour] | None:
    """The first value that has another colour than before: value and colour, and the place and colour it had first.

    Programs number the colours of a palette as they come, so that red is 1 in one mask and 0 in the next: such a value
    is not one class.

    Args:
        place: what these colours are of.
        colours: see `used_colours`.
        known: where each value was met first, and its colour there; is extended.
    """
    for value, colour in colours:
        first, expected = known.setdefault(value, (place, colour))
        if colour != expected:
            return value, colour, first, expected
    return None


def _value_remedy(unknown: Sequence[int], allowed: Sequence[int]) -> str:
    if unknown == [255] and allowed == [0, 1]:
        return 'Masks of 0 and 255: add "label_map": {"255": 1} to dataset.json.'
    return "Add the values to labels (and label_map, where there is one) in dataset.json, or correct the label map."


def label_values(labels: np.ndarray) -> set[int]:
    """The values that occur in a label map of any shape; counted, not sorted, one slab of the first axes at a time."""
    if labels.size == 0:
        return set()
    if labels.min() < 0 or labels.max() >= 1 << 16:
        return {int(value) for value in np.unique(labels)}
    present = np.zeros(int(labels.max()) + 1, bool)
    for slab in labels.reshape(-1, *labels.shape[-2:]):
        present |= np.bincount(slab.ravel(), minlength=present.size) > 0
    return {int(value) for value in np.flatnonzero(present)}


# --------------------------------------------------------------------------------------------- the set as a whole


def _joined(warnings: Sequence[Problem]) -> tuple[Problem, ...]:
    """One warning in place of many that say the same of different files."""
    same: dict[tuple[str, str], list[Problem]] = {}
    for warning in warnings:
        same.setdefault((warning.message, warning.remedy), []).append(warning)
    joined: list[Problem] = []
    for first, *others in same.values():
        if len(others) < 3:
            joined += [first, *others]
        else:
            joined.append(replace(first, message=f"{first.message} ({len(others)} other files too)"))
    return tuple(joined)


def _mixed_dimensions(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    flat = [check.case_id for check in checks if check.is_2d]
    deep = [check.case_id for check in checks if check.is_2d is False]
    if flat and deep:
        rare, kind = (flat, "2D") if len(flat) <= len(deep) else (deep, "3D")
        yield Problem(
            str(raw.folder / "imagesTr"),
            f"2D and 3D images are mixed: {listed(rare, _MAX_NAMED)} are {kind}",
            "Split the data set, or convert these images.",
        )


def _mixed_palettes(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    known: dict[int, tuple[str, Colour]] = {}
    files = {case.case_id: case.label_path for case in raw.cases}
    for check in checks:
        if (found := other_colour(check.case_id, check.label_colours, known)) is not None:
            value, colour, case_id, expected = found
            yield Problem(
                str(files[check.case_id]),
                f"the label value {value} has the colour {colour}, but {expected} in {case_id}: its palette is in "
                "another order",
                "Save all label maps as grey values, or with one palette.",
            )


def _mixed_orientations(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    by_codes: dict[str, list[str]] = {}
    for check in checks:
        if check.geometry is not None and not check.geometry.is_2d:
            by_codes.setdefault(axis_codes(check.geometry.direction), []).append(check.case_id)
    if len(by_codes) < 2:
        return
    commonest_first = sorted(by_codes.items(), key=lambda item: -len(item[1]))
    counts = ", ".join(f"{len(case_ids)} {codes}" for codes, case_ids in commonest_first)
    yield Problem(
        str(raw.folder / "imagesTr"),
        f"the volumes are stored in different orientations: {counts} ({commonest_first[-1][0]}: "
        f"{listed(commonest_first[-1][1], _MAX_NAMED)})",
        "All are turned to one orientation before anything else, and predictions back; check the headers of the rare "
        "ones if they should be alike.",
    )


def _impossible_spacings(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    """Spacings that are far from the median of all cases, axis by axis of the patient."""
    files = {case.case_id: case.image_paths[0] for case in raw.cases if case.image_paths}
    grids = {
        check.case_id: _grid_of_patient(check.shape, check.geometry)
        for check in checks
        if check.shape is not None and check.geometry is not None
    }
    if not grids:
        return
    expected = [statistics.median_low(spacing[axis] for spacing, _ in grids.values()) for axis in range(3)]
    for case_id, (spacing, shape) in grids.items():
        if problem := spacing_problem(spacing, shape, expected, "the training images in the median"):
            yield Problem(str(files[case_id]), problem, "Write the right spacing in mm into it and into its label map.")


def _grid_of_patient(shape: Sequence[int], geometry: Geometry) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing in mm and voxels (Z, Y, X), of a volume along the patient's axes that are nearest to its own."""
    order = (0, 1, 2) if geometry.is_2d else nearest_reorientation(geometry.direction, IDENTITY_DIRECTION).axis_order
    return tuple(geometry.spacing_mm[axis] for axis in order), tuple(shape[axis] for axis in order)


def _unlikely_units(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    """Volumes that all are smaller than half a millimetre or larger than ten metres."""
    extents = [
        max(n * s for n, s in zip(check.shape, check.geometry.spacing_mm, strict=True))
        for check in checks
        if check.shape is not None and check.geometry is not None and not check.geometry.is_2d
    ]
    if extents and raw.description.spacing_known and not 0.5 <= (median := statistics.median(extents)) <= 1e4:
        yield Problem(
            str(raw.folder / "imagesTr"),
            f"the median image is {median:.3g} mm long",
            "If the spacings are not in mm, write them in mm, or results in mm and ml are wrong; if they are made up, "
            'set "spacing_known": false in dataset.json.',
        )


def _some_spacings_missing(raw: RawDataset) -> Iterable[Problem]:
    """TIFF images without a file that gives their spacing, where others have one."""
    cases = [case for case in raw.cases if case.image_paths]
    without = [case for case in cases if not spacing_known(case.image_paths)]
    if 0 < len(without) < len(cases):
        yield Problem(
            str(without[0].image_paths[0]),
            f"{len(without)} of {counted(len(cases), 'case')}, {without[0].case_id} first, have no file with their "
            f"spacing beside the image, so that 1 is taken",
            f'Write {without[0].case_id}.json with "spacing" beside it, and so on, as the other cases have it.',
        )


def _nothing_labelled(raw: RawDataset, checks: Sequence[CaseCheck], is_source: bool) -> Iterable[Problem]:
    if checks and all(check.empty for check in checks):
        learned = (
            "from this source only how images without a lesion look" if is_source else "to answer background alone"
        )
        yield Problem(
            str(raw.folder / "labelsTr"),
            f"none of the {len(checks)} label maps holds any foreground, so training learns {learned}",
            "Check that the label maps are the right ones and that labels in dataset.json names their values.",
        )
    held = {name for check in checks for name in check.classes}
    # The classes of a source may be merged, or those of another source, too.
    if held and not is_source and (never := [name for name in raw.description.labels.names if name not in held]):
        yield Problem(
            str(raw.folder / "labelsTr"),
            f"none of the {len(checks)} label maps holds any {listed(never, _MAX_NAMED)}, which cannot be learned",
            "Check that labels in dataset.json names the values of the label maps, or take the class out.",
        )


def _inverted_masks(raw: RawDataset, checks: Sequence[CaseCheck]) -> Iterable[Problem]:
    """Masks of one class that seem to be inverted; maps of several classes may leave no background at the edge."""
    found = [check.case_id for check in checks if check.inverted]
    if found and raw.description.labels.coding == "binary":
        yield Problem(
            str(raw.folder / "labelsTr"),
            f"the whole edge of the image is {raw.description.labels.names[0]}, around background, in {len(found)} of "
            f"{len(checks)} label maps: {listed(found, _MAX_NAMED)}",
            "Look whether these masks are inverted (a black lesion on white); 0 is the background.",
        )


def _check_number(raw: RawDataset) -> Iterable[Problem]:
    announced = raw.description.raw.get("numTraining")
    if announced is not None and str(announced) != str(len(raw.cases)):
        yield Problem(
            str(raw.folder / "dataset.json"),
            f"numTraining is {announced}, but there are {counted(len(raw.cases), 'case')}",
            "Add the cases that are missing, or correct the number."
            if not raw.description.allow_unmatched
            else "Correct the number.",
        )


def _check_groups(raw: RawDataset) -> Iterable[Problem]:
    table = str(raw.folder / "groups.csv")
    if raw.unknown_groups:
        yield Problem(table, f"there are no files of {listed(raw.unknown_groups, _MAX_NAMED)}", "Remove the lines.")
    ungrouped = [case.case_id for case in raw.cases if case.group is None]
    if ungrouped and len(ungrouped) < len(raw.cases):
        yield Problem(
            table,
            f"no group is given for {listed(ungrouped, _MAX_NAMED)}, so each counts as one of its own",
            "Add the lines.",
        )


def _identical_images(checks: Sequence[CaseCheck]) -> list[list[str]]:
    by_hash: dict[str, list[str]] = {}
    for check in checks:
        if check.image_hash is not None:
            by_hash.setdefault(check.image_hash, []).append(check.case_id)
    return [case_ids for case_ids in by_hash.values() if len(case_ids) > 1]


def _identical_warning(raw: RawDataset, case_ids: Sequence[str]) -> Problem:
    return Problem(
        str(raw.folder if raw.description.sources else raw.folder / "imagesTr"),
        f"{len(case_ids)} cases have identical images: {listed(case_ids, _MAX_NAMED)}",
        "They are kept in one group, so that no fold trains on a case it validates on; remove the copies if they are "
        "not meant.",
    )
